//! Reading the journal as records.

use super::subscription::{Cursor, Filter, Start, Subscription};
use super::{World, rebuild};
use crate::error::{Error, ErrorKind, Result};
use crate::journal::{Batch, Damage, Journal, Verification, WireRecord};
use crate::position::{Position, Seq, StreamId, Time};
use crate::projection::publish::Rebuilt;
use crate::projection::{Parts, RunFold};
use crate::reader::{Item, Lent, RawRecord, Reader, Scan, Sequence};
use crate::record::{Body, Checkpoint, Id, Record, RunName, RunPrepared};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// A journal opened for reading. Nothing is written, nothing is locked for longer than a look.
#[derive(Debug)]
pub struct Log {
    pub(super) reader: Reader,
}

/// What reading in order gives.
#[derive(Debug)]
pub enum Entry {
    /// A record.
    Record(Record),
    /// Something that cannot be read; what stands behind it can.
    Damage(Damage),
}

/// What reading batch by batch gives.
#[derive(Debug)]
pub enum BatchEntry<'a> {
    /// The records of a batch.
    Batch(Batch<'a>),
    /// Something that cannot be read; what stands behind it can.
    Damage(Damage),
}

/// Sizes and counts of a journal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Info {
    /// Its random id, in hex.
    pub journal: String,
    /// The last durable position.
    pub durable: Position,
    /// Records that can be read.
    pub records: u64,
    /// Batches they stand in.
    pub batches: u64,
    /// Runs.
    pub runs: u64,
    /// Runs without an end.
    pub open_runs: u64,
    /// Segments.
    pub segments: u64,
    /// Bytes of the segments' files.
    pub bytes: u64,
    /// Bytes they take on the disk.
    pub allocated_bytes: u64,
}

/// A run that is in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunInfo {
    /// Its name.
    pub name: RunName,
    /// Its stream.
    pub stream: StreamId,
}

impl Log {
    /// Opens the journal of an existing data directory.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] where there is no data directory or no journal in it.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        Self::open_in(&World::existing(dir.as_ref())?)
    }

    /// The same in a world of the caller's.
    pub fn open_in(world: &World) -> Result<Self> {
        let reader = Reader::open(std::sync::Arc::clone(&world.disk), std::sync::Arc::clone(&world.clock))?;
        Ok(Self { reader })
    }

    /// The same from what a writer of this process knows.
    pub(super) fn of_writer(world: &World, journal: &Journal) -> Result<Self> {
        Ok(Self { reader: Reader { handle: journal.reader()?, clock: std::sync::Arc::clone(&world.clock) } })
    }

    /// The last durable position, as of the last refresh.
    pub fn durable(&self) -> Position {
        self.reader.handle.durable()
    }

    /// The journal's random id; zeros where nothing was ever written.
    pub fn journal_id(&self) -> [u8; 16] {
        self.reader.handle.journal()
    }

    /// Moves on to what is durable now; answers whether that is more.
    pub fn refresh(&mut self) -> Result<bool> {
        self.reader.refresh()
    }

    /// The same with the help of what a writer of this process knows.
    pub(super) fn refresh_with(&mut self, journal: &Journal) -> Result<bool> {
        self.reader.refresh_with(journal)
    }

    /// The position that a cursor names.
    ///
    /// # Errors
    /// [`ErrorKind::Misuse`] where it belongs to another journal, or stands behind the end of this
    /// one.
    pub fn position_of(&mut self, cursor: &Cursor) -> Result<Position> {
        if *cursor == Cursor::default() {
            return Ok(Position::ZERO);
        }
        if cursor.journal() != self.journal_id() {
            let (its, ours) = (super::hex(&cursor.journal()), super::hex(&self.journal_id()));
            let message = format!("the cursor belongs to another journal: to {its}, and this is {ours}");
            return Err(Error::misuse(message));
        }
        if cursor.position() > self.durable() {
            self.refresh()?;
        }
        // What is known to be lost has been there.
        let known = self.damage_at_end().iter().map(|lost| lost.to).fold(self.durable(), Position::max);
        if cursor.position() > known {
            let said = cursor.position();
            let message =
                format!("the cursor stands behind record {said}, and the journal ends with record {known}");
            return Err(Error::misuse(message).hint(
                "Nothing was done. It was taken of a longer copy of this journal; begin anew, or at a place of this one.",
            ));
        }
        Ok(cursor.position())
    }

    /// Reads on from some place, also what is still to come: see [`Subscription`].
    ///
    /// # Errors
    /// As [`position_of`](Self::position_of).
    pub fn subscribe(self, start: Start, filter: Filter) -> Result<Subscription> {
        Subscription::begin(self, start, filter, None)
    }

    /// The records from a position on, in order.
    pub fn records(&mut self, from: Position) -> Result<Records<'_>> {
        let sequence = self.reader.sequence(from)?;
        Ok(Records { log: self, sequence })
    }

    /// The same as they stand in the journal, batch by batch: nothing is copied, and what a record means is
    /// found out where [`Record::of`] is asked. Checksums are compared, over headers and bodies, and the
    /// chain from header to header; not the digests of the bodies, so that what somebody changed on purpose,
    /// with its checksum, is not told. [`verify`](Self::verify) tells it, and so does [`records`](Self::records).
    ///
    /// ```
    /// # use runwal::engine::{BatchEntry, Engine, Options};
    /// # use runwal::position::Position;
    /// # use runwal::record::kind;
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let (engine, _) = Engine::open(dir.path().join("data"), Options::default())?;
    /// let mut log = engine.log()?;
    /// let mut batches = log.batches(Position::ZERO)?;
    /// let mut printed = 0;
    /// while let Some(entry) = batches.next()? {
    ///     match entry {
    ///         BatchEntry::Batch(batch) => {
    ///             for record in batch {
    ///                 let record = record?;
    ///                 if record.kind == kind::STDOUT {
    ///                     printed += record.payload.len();
    ///                 }
    ///             }
    ///         }
    ///         BatchEntry::Damage(damage) => eprintln!("{}", damage.to_error()),
    ///     }
    /// }
    /// # Ok::<(), runwal::Error>(())
    /// ```
    pub fn batches(&mut self, from: Position) -> Result<Batches<'_>> {
        let scan = self.reader.scan(from)?;
        Ok(Batches { log: self, scan })
    }

    /// The records from about a time on: begins before the first record of that time or later.
    pub fn records_since(&mut self, time: Time) -> Result<Records<'_>> {
        let sequence = self.reader.sequence_since(time)?;
        Ok(Records { log: self, sequence })
    }

    /// The records of one stream, a run's or another, from a sequence on, read by the index: what others have
    /// recorded beside it is not read. `visit` answers whether to go on. Answers with the damage met. Who wants
    /// what is still to come [subscribes](Self::subscribe).
    pub fn stream(
        &mut self,
        stream: StreamId,
        from: Seq,
        visit: &mut dyn FnMut(&Record) -> Result<bool>,
    ) -> Result<Vec<Damage>> {
        self.reader.stream(stream, from, &mut |raw| {
            let record = decode(raw)?;
            visit(&record)
        })
    }

    /// One record of a stream; `None` where the stream has no record with this sequence. The first one
    /// in a part of the journal costs the batch that it stands in; what is learnt on the way (at most
    /// about 24 MiB) makes the next one there cost itself and up to half a KiB beside it. Its own checksum is
    /// compared.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] where the record, or whether there is one, cannot be read.
    pub fn record(&mut self, stream: StreamId, seq: Seq) -> Result<Option<Record>> {
        self.reader.record(stream, seq)?.map(decode).transpose()
    }

    /// The segments that are missing or cannot be opened: whose records they held is not known.
    pub fn unreadable_segments(&mut self) -> Result<Vec<u64>> {
        self.reader.unreadable_segments()
    }

    /// How many streams there are whose first record, and so whose name, cannot be read.
    pub fn unreadable_streams(&mut self) -> Result<u64> {
        let mut count = 0;
        for stream in self.reader.streams()? {
            count += u64::from(self.reader.name(stream)?.is_none());
        }
        Ok(count)
    }

    /// Every run whose first record can be read, in the order of their beginning.
    pub fn runs(&mut self) -> Result<Vec<RunInfo>> {
        let mut runs = Vec::new();
        for stream in self.reader.streams()? {
            runs.extend(self.run_of(stream)?);
        }
        Ok(runs)
    }

    /// The run that a stream belongs to; `None` where it is not a run's.
    pub fn run_of(&mut self, stream: StreamId) -> Result<Option<RunInfo>> {
        let name = self.reader.name(stream)?;
        Ok(name.and_then(|name| RunName::parse(&name)).map(|name| RunInfo { name, stream }))
    }

    /// The stream with this name: `task/run`, or that of the timed jobs.
    pub fn find(&mut self, name: &str) -> Result<Option<StreamId>> {
        self.reader.find(name.as_bytes())
    }

    /// The run that a person means: `@last`, `task/run`, a run id, or an unambiguous beginning of
    /// a run id (an exact id wins).
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] where there is none; [`ErrorKind::Misuse`] where there are several.
    pub fn resolve(&mut self, spec: &str) -> Result<RunInfo> {
        if spec.contains('/') {
            // The index of names tells, whatever else there is.
            let Some(name) = RunName::parse(spec.as_bytes()) else { return Err(self.no_such_run(spec)?) };
            let Some(stream) = self.find(spec)? else { return Err(self.no_such_run(spec)?) };
            return Ok(RunInfo { name, stream });
        }
        if spec == "@last" {
            return match self.newest_run()? {
                Some(run) => Ok(run),
                None => Err(self.no_such_run(spec)?),
            };
        }
        let runs = self.runs()?;
        let exact: Vec<_> = runs.iter().filter(|run| run.name.run.as_str() == spec).cloned().collect();
        let mut found = exact;
        if found.is_empty() {
            found = runs.into_iter().filter(|run| run.name.run.as_str().starts_with(spec)).collect();
        }
        match (found.pop(), found.len()) {
            (None, _) => Err(self.no_such_run(spec)?),
            (Some(run), 0) => Ok(run),
            (Some(run), more) => {
                let message = format!("\"{spec}\" could be {} runs, {} among them", more + 1, run.name);
                Err(Error::misuse(message).hint("Give more of the id, or task/run."))
            }
        }
    }

    /// The run that began last, by its name, whatever else its first record says.
    fn newest_run(&mut self) -> Result<Option<RunInfo>> {
        let mut most = 1;
        loop {
            let mut streams = Vec::new();
            self.reader.beginnings(&mut |raw| {
                streams.push(raw.stream);
                Ok(streams.len() < most)
            })?;
            for stream in &streams {
                if let Some(run) = self.run_of(*stream)? {
                    return Ok(Some(run));
                }
            }
            if streams.len() < most {
                return Ok(None);
            }
            most *= 16;
        }
    }

    /// The error where no run is found, which may be among those that cannot be read.
    fn no_such_run(&mut self, spec: &str) -> Result<Error> {
        let shown = spec.escape_debug();
        let (unreadable, segments) = (self.unreadable_streams()?, self.unreadable_segments()?.len());
        if unreadable > 0 || segments > 0 {
            let message = format!(
                "there is no run \"{shown}\" among those that can be read; {segments} segments and the first \
                 records of {unreadable} runs cannot"
            );
            return Ok(Error::corrupt_data(message, "`runwal verify` tells what is damaged."));
        }
        Ok(Error::not_found(format!("there is no run \"{shown}\""), "`runwal runs` lists the runs."))
    }

    /// Compares the files that a stream feeds with its records; with `write` makes them what they
    /// should be. `None` where they are being published by the run's recorder.
    pub fn rebuild(&mut self, stream: StreamId, write: bool) -> Result<Option<Rebuilt>> {
        rebuild::rebuild_unless_live(self, stream, write)
    }

    /// The same for many runs. Those that have ended are gone through together, up to 256 of them at a time, whose
    /// files are all locked meanwhile; where that is 16 MiB of journal or more, by a thread for each processor, up to
    /// four, which share the runs. `progress` is told how much of how much is done, which gets no less, and in the
    /// end is all.
    ///
    /// # Errors
    /// The first that was met; what could be done for other runs is done.
    pub fn rebuild_runs(
        &mut self,
        runs: &[RunInfo],
        write: bool,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<BTreeMap<StreamId, Option<Rebuilt>>> {
        rebuild::rebuild_runs(self, runs, write, progress)
    }

    /// The stream of the timed jobs, if there is one.
    pub fn ticks(&mut self) -> Result<Option<StreamId>> {
        self.find(crate::record::TICKS_STREAM)
    }

    /// The last sequence and position of a stream.
    pub fn end_of(&mut self, stream: StreamId) -> Result<Option<(Seq, Position)>> {
        self.reader.stream_end(stream)
    }

    /// A run's fold over all of its records, and the damage met.
    pub fn fold(&mut self, stream: StreamId) -> Result<(RunFold, Vec<Damage>)> {
        let mut fold = RunFold::new();
        let damage = self.stream(stream, Seq(1), &mut |record| {
            fold.apply(record, &mut |_| {});
            Ok(true)
        })?;
        Ok((fold, damage))
    }

    /// The same for several runs, for the state alone: a batch that many of them have records in is read once.
    pub fn folds(&mut self, streams: &[StreamId]) -> Result<(BTreeMap<StreamId, RunFold>, Vec<Damage>)> {
        let mut folds: BTreeMap<_, _> = streams.iter().map(|id| (*id, RunFold::for_state())).collect();
        let from = streams.iter().map(|id| (*id, Seq(1))).collect();
        self.reader.several(&from, &mut |raw| {
            let record = decode(raw)?;
            if let Some(fold) = folds.get_mut(&record.stream) {
                fold.apply(&record, &mut |_| {});
            }
            Ok(())
        })?;
        let mut damage = Vec::new();
        for (stream, fold) in &folds {
            let last = self.end_of(*stream)?.map_or(Seq::ZERO, |(last, _)| last);
            let whole = !fold.has_gap() && fold.last_seq() == last;
            if !whole || !self.reader.lost_behind(*stream)?.is_empty() {
                // Reading it alone tells what is missing.
                damage.extend(self.stream(*stream, Seq(1), &mut |_| Ok(true))?);
            }
        }
        damage.sort_by_key(|met: &Damage| (met.segment, met.offset));
        damage.dedup_by_key(|met| (met.segment, met.offset));
        Ok((folds, damage))
    }

    /// The last checkpoint of a run that is wanted, whole, with its content; and the damage met.
    /// One of which a part cannot be read is not there.
    pub fn checkpoint(
        &mut self,
        stream: StreamId,
        wanted: &dyn Fn(&Checkpoint) -> bool,
    ) -> Result<(Option<Checkpoint>, Vec<Damage>)> {
        let (mut parts, mut found) = (Parts::default(), None);
        let damage = self.stream(stream, Seq(1), &mut |record| {
            if let Body::Checkpoint(part) = &record.body
                && wanted(part)
                && let Some(whole) = parts.add(part, record.more)
            {
                found = Some(whole);
            }
            Ok(true)
        })?;
        Ok((found, damage))
    }

    /// Reads everything and says what is wrong. `progress` is told how many bytes are behind it.
    pub fn verify(&mut self, progress: &mut dyn FnMut(u64)) -> Result<Verification> {
        self.reader.verify(progress)
    }

    /// Damage at the end of the journal, which reading up to it does not meet.
    pub fn damage_at_end(&self) -> &[Damage] {
        &self.reader.handle.end_damage
    }

    /// Whether bytes that nobody was told are durable stand at the end: `None` while a writer is
    /// at work.
    pub fn is_torn(&mut self) -> Result<Option<bool>> {
        let incomplete = self.reader.handle.incomplete.is_some();
        let tail = self.reader.handle.judge_tail(false)?;
        Ok(tail.map(|tail| tail.torn.is_some() || tail.in_doubt > 0 || incomplete))
    }

    /// Waits until more is durable than at the last look, and moves on to it; answers whether there
    /// is more. Gives up after `patience`.
    pub fn wait(&mut self, patience: Duration) -> Result<bool> {
        self.reader.wait(patience)
    }

    /// The runs without an end whose recorder is not alive: what opening for writing would end.
    pub fn unfinished(&mut self) -> Result<Vec<RunInfo>> {
        let mut found = Vec::new();
        for stream in self.reader.open_streams() {
            let Some(info) = self.run_of(stream)? else { continue };
            let recorder = self.recorder_of(stream)?;
            let disk = &**self.reader.handle.disk();
            if recorder.is_some_and(|id| !crate::journal::live::seems_alive(disk, &id)) {
                found.push(info);
            }
        }
        Ok(found)
    }

    /// What timed jobs of dead processes left behind: the batch ids of ticks without an end, which
    /// opening for writing would end, and what they missed up to now.
    pub fn left_by_timed_jobs(&mut self) -> Result<(Vec<String>, Vec<super::MissedTicks>)> {
        let now = self.reader.clock.now();
        super::tickers::left_behind(self, now)
    }

    /// The highest term that an append was made in; 0 where none was.
    pub fn term(&mut self) -> u64 {
        self.reader.handle.view().map_or(0, |view| view.index.term)
    }

    /// The recorder of a run; `None` where its first record cannot be read, or it is not a run.
    pub(super) fn recorder_of(&mut self, stream: StreamId) -> Result<Option<[u8; 16]>> {
        Ok(self.request_of(stream)?.0.map(|run| run.recorder))
    }

    /// What was asked for: the first record of a run, and nothing behind it. `None` where it cannot
    /// be read, or the stream is not a run's; and the damage met.
    pub fn request_of(&mut self, stream: StreamId) -> Result<(Option<RunPrepared>, Vec<Damage>)> {
        let mut request = None;
        let damage = self.stream(stream, Seq(1), &mut |record| {
            if let Body::Run(run) = &record.body {
                request = Some((**run).clone());
            }
            Ok(false)
        })?;
        Ok((request, damage))
    }

    /// The newest run of a task whose request is wanted. With it comes the damage behind which a newer one may be
    /// hidden.
    pub fn newest(
        &mut self,
        task: &Id,
        wanted: &dyn Fn(&RunPrepared) -> bool,
    ) -> Result<(Option<RunInfo>, Vec<Damage>)> {
        let mut newest = None;
        let damage = self.requests(&mut |stream, request| {
            if request.name.task == *task && wanted(&request) {
                newest = Some(RunInfo { name: request.name, stream });
            }
            Ok(newest.is_none())
        })?;
        Ok((newest, damage))
    }

    /// Hands each run with what was asked for on to `visit`, the newest first, until that has enough. Goes back from
    /// the end of the journal and reads first records only. Answers with the damage behind which there may be others.
    pub fn requests(
        &mut self,
        visit: &mut dyn FnMut(StreamId, RunPrepared) -> Result<bool>,
    ) -> Result<Vec<Damage>> {
        self.reader.beginnings(&mut |raw| {
            let record = decode(raw)?;
            match record.body {
                Body::Run(request) => visit(record.stream, *request),
                _ => Ok(true),
            }
        })
    }

    /// Whether a run has its end, as the journal counts it: its state does not change any more, also
    /// where the end itself cannot be read.
    pub fn has_ended(&mut self, stream: StreamId) -> Result<bool> {
        Ok(self.reader.stream_end(stream)?.is_some() && !self.reader.open_streams().contains(&stream))
    }

    /// Sizes and counts, from the indexes.
    pub fn info(&mut self) -> Result<Info> {
        let (records, batches) = self.reader.counts()?;
        let mut open_runs = 0;
        for stream in self.reader.open_streams() {
            open_runs += u64::from(self.run_of(stream)?.is_some());
        }
        let mut info = Info {
            journal: super::hex(&self.journal_id()),
            durable: self.durable(),
            records,
            batches,
            runs: self.runs()?.len() as u64,
            open_runs,
            ..Info::default()
        };
        let disk = std::sync::Arc::clone(self.reader.handle.disk());
        for number in self.segments()? {
            if let Some(stat) = disk.stat(&crate::journal::segment::file_name(number))? {
                info.segments += 1;
                info.bytes += stat.len;
                info.allocated_bytes += stat.allocated;
            }
        }
        Ok(info)
    }

    /// The numbers of the segments, for those who count bytes.
    pub fn segments(&self) -> Result<Vec<u64>> {
        crate::journal::read::segment_numbers(&**self.reader.handle.disk())
    }
}

/// A read in order, which can be waited on for more.
#[derive(Debug)]
pub struct Records<'l> {
    log: &'l mut Log,
    sequence: Sequence,
}

impl Records<'_> {
    /// The next entry; `None` at the durable end.
    #[expect(clippy::should_implement_trait, reason = "it fails, and goes on after None")]
    pub fn next(&mut self) -> Result<Option<Entry>> {
        match self.log.reader.next(&mut self.sequence)? {
            Some(Item::Record(raw)) => decode(raw).map(Entry::Record).map(Some),
            Some(Item::Damage(damage)) => Ok(Some(Entry::Damage(damage))),
            None => Ok(None),
        }
    }

    /// Waits until more is durable than at the last look, and moves on to it; answers whether there
    /// is more. Gives up after `patience`.
    pub fn wait(&mut self, patience: Duration) -> Result<bool> {
        self.log.reader.wait(patience)
    }

    /// The log, for looking things up between two records.
    pub fn log(&mut self) -> &mut Log {
        self.log
    }
}

/// A read in order, batch by batch, which can be waited on for more.
#[derive(Debug)]
pub struct Batches<'l> {
    log: &'l mut Log,
    scan: Scan,
}

impl Batches<'_> {
    /// The next batch, or the damage in its place; `None` at the durable end.
    #[expect(clippy::should_implement_trait, reason = "it lends, fails, and goes on after None")]
    pub fn next(&mut self) -> Result<Option<BatchEntry<'_>>> {
        Ok(self.log.reader.next_batch(&mut self.scan)?.map(|lent| match lent {
            Lent::Batch(batch) => BatchEntry::Batch(batch),
            Lent::Damage(damage) => BatchEntry::Damage(damage),
        }))
    }

    /// Waits as [`Records::wait`] does.
    pub fn wait(&mut self, patience: Duration) -> Result<bool> {
        self.log.reader.wait(patience)
    }
}

impl Record {
    /// Gives a record its meaning, and copies what it says.
    ///
    /// # Errors
    /// None that reading has not told before.
    pub fn of(record: &WireRecord<'_>) -> Result<Self> {
        decode(RawRecord::of(record))
    }
}

/// Gives a record its meaning. One that cannot be what its kind says is damage of a kind that only
/// its writer can have done, and is passed on as unknown rather than ending the read.
pub(super) fn decode(raw: RawRecord) -> Result<Record> {
    let len = raw.payload.len() as u64;
    let body = match Body::decode(raw.kind, raw.version, raw.payload) {
        Ok(body) => body,
        Err(why) => {
            let error = crate::record::malformed(raw.position, raw.kind, &why);
            debug_assert_eq!(error.kind(), ErrorKind::Corrupt);
            Body::Unknown { kind: raw.kind, version: raw.version }
        }
    };
    if raw.seq == Seq::ZERO {
        return Err(Error::misuse("a record without a sequence"));
    }
    Ok(Record {
        position: raw.position,
        stream: raw.stream,
        seq: raw.seq,
        time: raw.time,
        created_at: raw.created,
        ends: raw.closes,
        more: raw.more,
        key: raw.key,
        term: raw.term,
        len,
        body,
    })
}
