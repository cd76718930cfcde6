//! The way on after corruption at the end of the journal: it is ended where it is, nothing is
//! deleted, and the next segment says which positions are lost.

use super::{Core, mark_at, next};
use crate::disk::{Kind, Open, Stat};
use crate::error::{Error, Result};
use crate::format::{MAX_SEGMENT_NUMBER, Phase, SEGMENT_DATA_START, SegmentHeader};
use crate::journal::index;
use crate::journal::mark::MarkView;
use crate::journal::recovery::{self, Plan};
use crate::journal::segment::{self, Bound, Damage, Scanner, Segment, Spot, Step, Unopened};
use crate::journal::spare::Blank;
use crate::journal::view::{known_journal, newest};
use crate::position::Position;

impl Core {
    /// Gives up what is damaged at the end: the way on after corruption. Nothing is deleted; the
    /// next segment says which positions are lost.
    pub(in crate::journal) fn accept_damage(&mut self) -> Result<Option<Damage>> {
        self.lock.take(&*self.disk, &*self.clock, self.options.patience, &self.mark)?;
        let result = self.accept_damage_locked();
        self.lock.give_back()?;
        result
    }

    fn accept_damage_locked(&mut self) -> Result<Option<Damage>> {
        let mark = self.mark.read()?;
        let strays = self.set_strays_aside(&mark)?;
        let told = mark.evidence().map_or(Position::ZERO, |m| m.position);
        let Some(number) = newest(&*self.disk)? else {
            if told == Position::ZERO {
                return Ok(strays);
            }
            let header = recovery::first_header(&*self.entropy, &*self.clock)?;
            let header = SegmentHeader { first_position: next(told)?, born_upto: told, ..header };
            let damage = Damage::new(1, 0, "every segment is missing").losing(Position(1), told);
            return self.give_up(&mark, header, damage).map(Some);
        };
        let named = mark.evidence().map_or(0, |m| m.segment);
        let journal = known_journal(&*self.disk, &mark)?;
        let readable = Segment::open(&*self.disk, number, Open::Write);
        let (header, damage) = match readable {
            Ok(segment) if named <= number && journal.is_none_or(|j| j == segment.header.journal) => {
                let found = recovery::inspect(segment, None, Some(told))?;
                if recovery::plan(found.facts(&mark)) != Plan::Refuse {
                    return Ok(strays);
                }
                let damage = found.loss();
                // Whatever is whole behind the damage stays readable where it is.
                let end = Spot {
                    position: found.evidence.max(found.last_readable.position),
                    ..found.last_readable
                };
                let mut header =
                    recovery::successor(&found.segment.header, &end, self.entropy.number()?, &*self.clock)?;
                header.epoch = header.next_epoch();
                (header, damage)
            }
            Err(Unopened::Failed(error)) => return Err(error),
            _ => self.beyond_unreadable(&mark, journal, number.max(named), told)?,
        };
        self.give_up(&mark, header, damage).map(Some)
    }

    /// Moves files out of the way that have a segment's name, can hold no batch, and stand behind
    /// everything that the journal is known to have had.
    fn set_strays_aside(&mut self, mark: &MarkView) -> Result<Option<Damage>> {
        let mut damage = None;
        let named = mark.evidence().map_or(0, |m| m.segment);
        for number in segment::list(&*self.disk)?.into_iter().rev() {
            // Whatever could hold a batch stays where it is, and what it held is told.
            let name = segment::file_name(number);
            let holds_none = |stat: Stat| stat.kind != Kind::File || stat.len <= SEGMENT_DATA_START;
            if number <= named || !self.disk.stat(&name)?.is_some_and(holds_none) {
                break;
            }
            match Segment::open(&*self.disk, number, Open::Read) {
                Ok(_) => break,
                Err(Unopened::Failed(error)) => return Err(error),
                Err(_) => {}
            }
            self.disk.create_dir(recovery::QUARANTINE)?;
            let mut n = 0;
            while !self.disk.rename(
                &name,
                &format!("{}/{number:010}-{n}.stray", recovery::QUARANTINE),
                false,
            )? {
                n += 1;
            }
            damage = Some(Damage::new(
                number,
                0,
                format!("{name} is no segment of this journal; it was set aside"),
            ));
        }
        self.disk.sync_dir(segment::FOLDER)?;
        Ok(damage)
    }

    /// The header of a segment that follows one which is missing or cannot be opened.
    fn beyond_unreadable(
        &mut self,
        mark: &MarkView,
        journal: Option<[u8; 16]>,
        last: u64,
        told: Position,
    ) -> Result<(SegmentHeader, Damage)> {
        let own = |segment: &Segment| journal.is_none_or(|journal| journal == segment.header.journal);
        let numbers = segment::list(&*self.disk)?;
        let before = numbers
            .into_iter()
            .rev()
            .filter(|n| *n < last)
            .find_map(|n| Segment::open(&*self.disk, n, Open::Read).ok().filter(own));
        let from = match &before {
            Some(segment) => {
                let (journal, next) = (&segment.header.journal, segment.number() + 1);
                let successor = Segment::open_of(&*self.disk, journal, next, Open::Read).ok();
                let len = segment.len()?;
                let bound = successor
                    .as_ref()
                    .map_or(Bound { offset: len, position: None }, |s| index::sealed_bound(&s.header));
                let mut scanner = Scanner::new(segment.clone(), Spot::start(&segment.header), bound);
                let mut end = scanner.spot();
                while let Some(step) = scanner.step()? {
                    if matches!(step, Step::Batch { .. }) {
                        end = scanner.spot();
                    }
                }
                end.position
            }
            None => Position::ZERO,
        };
        // A copied mark proves nothing of this copy, but its numbers are taken all the same.
        let upto = mark.best.map_or(told, |best| best.position).max(told).max(from);
        if last >= MAX_SEGMENT_NUMBER {
            let message = format!("no segment can follow {}", segment::file_name(last));
            return Err(Error::corrupt_data(message, "Move that file away, and try again."));
        }
        let base = recovery::first_header(&*self.entropy, &*self.clock)?;
        let journal = before.as_ref().map(|s| s.header.journal).or(mark.evidence().map(|m| m.journal));
        let header = SegmentHeader {
            journal: journal.unwrap_or(base.journal),
            segment: last + 1,
            epoch: before.as_ref().map_or(1, |s| s.header.next_epoch()),
            first_position: next(upto)?,
            chain: mark.evidence().map_or([0; 32], |m| m.chain),
            born_upto: upto,
            ..base
        };
        let damage = Damage::new(last, 0, format!("segment {last} is missing or cannot be read"));
        Ok((header, damage.losing(Position(from.0 + 1), upto)))
    }

    fn give_up(&mut self, mark: &MarkView, header: SegmentHeader, damage: Damage) -> Result<Damage> {
        let header = SegmentHeader { lost: (damage.from, damage.to), ..header };
        self.guard(|core| {
            core.mark.set_busy(Phase::Recovering, core.clock.now())?;
            let blank = Blank::fresh(&*core.disk, &*core.entropy)?;
            let (segment, spot) = recovery::create_segment(&*core.disk, blank, header, &[])?;
            core.mark.publish(mark, mark_at(&segment.header, &spot), &*core.entropy)?;
            Ok(())
        })?;
        self.view = None;
        Ok(damage)
    }
}
