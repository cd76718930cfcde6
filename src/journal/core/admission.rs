//! What must hold for a batch to be written: names, sequences, terms, keys.

use super::group::Group;
use super::{Core, next_seq};
use crate::error::{Conflict, Error, Result};
use crate::format::{Records, Target, WireRecord};
use crate::journal::append::{Part, Prepared, Waiting};
use crate::journal::{Receipt, Scope};
use crate::position::{Position, Seq, StreamId};
use std::collections::BTreeMap;
use std::sync::Arc;

impl Core {
    /// Gives every record its sequence. Answers with the last one of each append, and whether any sequence is
    /// another than it was thought to be.
    pub(super) fn admit(&mut self, group: &mut Group, batch: &mut Prepared) -> (Vec<Result<Seq>>, bool) {
        let encoder = Arc::clone(&self.encoder);
        let (mut answers, mut changed) = (Vec::with_capacity(batch.waiting().len()), false);
        let mut seqs = Vec::new();
        for (append, parts) in batch.appends() {
            seqs.clear();
            let answer = self.check(group, append, parts, &mut seqs);
            if answer.is_ok() {
                for (part, seq) in parts.iter_mut().zip(&seqs) {
                    changed |= part.place(*seq, &encoder.guesses);
                }
                append.ends.iter().for_each(|id| encoder.guesses.forget(*id));
            } else {
                self.give_back(group, parts);
            }
            answers.push(answer);
        }
        (answers, changed)
    }

    /// Records are not written: those that come behind them get their sequences.
    pub(super) fn give_back(&mut self, group: &Group, parts: &[Part]) {
        for part in parts {
            let Some(id) = part.stream() else { continue };
            match self.last_seq(group, id).map(|last| last.and_then(Seq::next)) {
                Ok(Some(next)) => part.give_back(next, &self.encoder.guesses),
                Ok(None) | Err(_) => self.encoder.guesses.forget(id),
            }
        }
    }

    /// The last sequence of a stream, with what was admitted.
    fn last_seq(&mut self, group: &Group, id: StreamId) -> Result<Option<Seq>> {
        if let Some(last) = group.streams.get(&id) {
            return Ok(Some(*last));
        }
        Ok(self.view()?.stream(id)?.map(|state| state.last_seq))
    }

    /// Finds the sequence of each part of an append, unless it does not fit. Answers with the last one of its
    /// records.
    fn check(
        &mut self,
        group: &mut Group,
        append: &Waiting,
        parts: &[Part],
        seqs: &mut Vec<Seq>,
    ) -> Result<Seq> {
        let mut opened: Option<Seq> = None;
        let mut last_seq = Seq::ZERO;
        // The stream of the records before, and those before it: records of one mostly stand side by side.
        let mut current: Option<(StreamId, Seq)> = None;
        let mut streams: BTreeMap<StreamId, Seq> = BTreeMap::new();
        let mut names = Vec::new();
        let expected = append.conditions.expected;
        let mut first = true;
        for part in parts {
            let count = part.count();
            let seq = match &part.target {
                Target::Open(name) => {
                    let taken = group.names.contains(name) || names.contains(name);
                    if taken || self.view()?.find_name(name)?.is_some() {
                        let name = String::from_utf8_lossy(name).into_owned();
                        return Err(Error::conflict_of(Conflict::Exists, format!("{name} exists already")));
                    }
                    names.push(name.clone());
                    opened = Some(Seq(count));
                    Seq(1)
                }
                Target::Opened => {
                    let last = opened.ok_or_else(|| Error::misuse("no stream was opened in this batch"))?;
                    let seq = next_seq(last)?;
                    opened = Some(Seq(last.0 + count));
                    seq
                }
                Target::Stream(id) => {
                    let last = match current {
                        Some((before, seq)) if before == *id => seq,
                        _ => {
                            streams.extend(current.take());
                            let known = match streams.get(id) {
                                Some(last) => Some(*last),
                                None => self.last_seq(group, *id)?,
                            };
                            known.ok_or_else(|| Error::misuse(format!("there is no stream {id}")))?
                        }
                    };
                    let seq = next_seq(last)?;
                    // There is none behind the last.
                    let last = next_seq(Seq(last.0.saturating_add(count - 1)))?;
                    current = Some((*id, last));
                    seq
                }
            };
            let is_first = std::mem::take(&mut first);
            if let Some(expected) = expected.filter(|e| is_first && *e != seq) {
                let message = format!("the next sequence of the stream is {seq}, not {expected} as expected");
                return Err(Error::conflict_of(Conflict::Sequence { expected, found: seq }, message)
                    .hint("Somebody else has written to it; nothing of this append was written."));
            }
            last_seq = Seq(seq.0 + (count - 1));
            seqs.push(seq);
        }
        if let Some(id) = append.must_be_open {
            let state = self.view()?.stream(id)?;
            if group.ended.contains(&id) || state.is_some_and(|state| !state.open) {
                return Err(Error::misuse("the stream has ended; its state does not change any more")
                    .hint("Nothing of this append was written."));
            }
        }
        self.check_term(group, append, parts)?;
        group.streams.extend(streams);
        group.streams.extend(current);
        group.ended.extend(append.ends);
        group.names.extend(names);
        group.keys.extend(append.conditions.key.clone());
        Ok(last_seq)
    }

    /// Refuses an append of a conductor that another has taken over from.
    fn check_term(&mut self, group: &mut Group, append: &Waiting, parts: &[Part]) -> Result<()> {
        let Some((given, scope)) = append.conditions.term else { return Ok(()) };
        let mut streams: Vec<StreamId> = Vec::new();
        for id in parts.iter().filter_map(Part::stream) {
            if !streams.contains(&id) {
                streams.push(id);
            }
        }
        let (seen, whose) = match scope {
            Scope::Journal => (group.term.max(self.view()?.index.term), "in the journal"),
            Scope::Stream => {
                let mut seen = 0;
                for id in &streams {
                    let here = group.terms.get(id).copied().unwrap_or(0);
                    seen = seen.max(here).max(self.view()?.stream_term(*id)?);
                }
                (seen, "of the stream")
            }
        };
        if given < seen {
            let message = format!("term {given} is over: the highest one {whose} is {seen}");
            return Err(Error::conflict_of(Conflict::Term { given, seen }, message)
                .hint("Another conductor has taken over; nothing of this append was written."));
        }
        group.term = group.term.max(given);
        for id in streams {
            let term = group.terms.entry(id).or_default();
            *term = (*term).max(given);
        }
        Ok(())
    }

    /// The receipt of the append that has the same key, where it has the same content too. It has a
    /// batch of its own.
    pub(super) fn repeated(&mut self, batch: &Prepared) -> Result<Option<Receipt>> {
        let Some(key) = batch.key() else { return Ok(None) };
        let Some((header, body)) = self.view()?.find_key(key)? else { return Ok(None) };
        let (mut same, mut ends, mut opened) = (true, None, None);
        let own_header = batch.header(Position(u64::MAX >> 1), Position::ZERO);
        let mut own = Records::new(&own_header, batch.body()).flatten();
        let mut targets = batch.targets();
        for stored in Records::new(&header, &body).flatten() {
            if stored.opens.is_some() {
                opened = Some(stored.stream);
            }
            let stream = match targets.next() {
                Some(Target::Stream(id)) => Some(*id),
                Some(Target::Open(_) | Target::Opened) => opened,
                None => None,
            };
            same &=
                stream == Some(stored.stream) && own.next().is_some_and(|own| says_the_same(&own, &stored));
            ends = Some((ends.map_or(stored.stream, |(first, _)| first), stored.seq));
        }
        if let Some((stream, last_seq)) = ends.filter(|_| same && own.next().is_none()) {
            let (first, last) = (header.first_position, header.last_position());
            return Ok(Some(Receipt { stream, first, last, last_seq, chain: header.chain }));
        }
        let position = header.first_position;
        let message = format!(
            "the idempotency key \"{}\" was used for something else, at position {position}",
            String::from_utf8_lossy(key).escape_debug()
        );
        Err(Error::conflict_of(Conflict::Key { position }, message)
            .hint("Nothing was written. A key belongs to one append for good: choose another."))
    }
}

/// Whether two records, of which the first is about to be written, are one append made twice.
fn says_the_same(own: &WireRecord<'_>, stored: &WireRecord<'_>) -> bool {
    let stamped = |r: &WireRecord<'_>| r.created == r.time;
    (own.kind, own.version, own.closes, own.more) == (stored.kind, stored.version, stored.closes, stored.more)
        && (own.opens, own.key, own.payload) == (stored.opens, stored.key, stored.payload)
        && (own.created == stored.created || (stamped(own) && stamped(stored)))
}
