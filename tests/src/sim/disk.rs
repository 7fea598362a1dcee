//! A replica's disk: writes in order, late, and a crash loses all that was not flushed. What is said to be durable is
//! kept here as a model; with the real log beneath it, the two are held against each other at every read and start.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use spool::log::{EntryKind, HardState, Location, RecoveredEntry, RecoveredGroup, WriteTask};

use crate::sim::real_log::RealLog;
use crate::sim::replica::Place;
use crate::sim::rng::Rng;

#[derive(Clone, PartialEq, Debug)]
pub struct Stored {
    pub term: u64,
    pub kind: EntryKind,
    pub context: Bytes,
    pub data: Bytes,
}

/// Why nothing became durable.
pub enum Trouble {
    /// The disk failed: the replica stops for good.
    Failed(String),
    /// The power failed in the middle.
    Power,
    /// There is no room for what cannot wait: the process ends, and begins again later.
    NoRoom,
    /// The simulation or the log is wrong.
    Wrong(String),
}

/// Marks the locations of copies: no term is so high.
const COPIES: u64 = 1 << 63;

/// A write that is durable: its number, and where its entries lie.
pub type Durable = (u64, Vec<(u64, Location)>);

#[derive(Default)]
pub struct Disk {
    /// By index - 1. `None`: a lying disk lost it.
    entries: Vec<Option<Stored>>,
    hard_state: HardState,
    /// Logical truncation; the octets stay, as they would in an older generation.
    truncated: (u64, u64),
    /// Bodies that came with snapshots, by what their locations say.
    copies: BTreeMap<(u64, u64), Stored>,
    /// Submitted, not durable.
    pub queue: VecDeque<WriteTask>,
    /// The real code beneath.
    pub real: Option<RealLog>,
    /// No room for the front of `queue`.
    pub no_room: bool,
}

impl Disk {
    /// Makes up to `most` of the oldest writes durable. `lie`: reports them and loses them.
    pub fn flush(&mut self, most: usize, lie: bool) -> Result<Vec<Durable>, Trouble> {
        let count = most.min(self.queue.len());
        let mut tasks: Vec<WriteTask> = self.queue.drain(..count).collect();
        let mut durable = None;
        if let Some(real) = self.real.as_mut() {
            let (done, left) = real.write(&tasks)?;
            self.no_room = !left.is_empty();
            for at in left.into_iter().rev() {
                self.queue.push_front(tasks.remove(at));
            }
            durable = Some(done);
        }
        for task in &tasks {
            self.adopt(task, lie).map_err(Trouble::Wrong)?;
        }
        Ok(match durable {
            Some(durable) => durable,
            None => tasks.iter().map(|task| self.report(task)).collect(),
        })
    }

    /// The model holds it from now on.
    fn adopt(&mut self, task: &WriteTask, lie: bool) -> Result<(), String> {
        if let Some(new) = task.hard_state {
            let old = self.hard_state;
            if new.term < old.term
                || (new.term == old.term && old.vote != 0 && new.vote != old.vote)
            {
                return Err(format!("{new:?} is written over {old:?}"));
            }
            self.hard_state = new;
        }
        if let Some(begin) = task.reset {
            self.begin_at(begin);
        }
        for entry in &task.entries {
            let at = entry.index as usize - 1;
            if at > self.entries.len() {
                return Err(format!("a write leaves a hole before {}", entry.index));
            }
            let stored = Stored {
                term: entry.term,
                kind: entry.kind,
                context: entry.context.clone(),
                data: entry.data.clone(),
            };
            self.entries.truncate(at);
            self.entries.push(if lie { None } else { Some(stored) });
        }
        Ok(())
    }

    fn report(&self, task: &WriteTask) -> Durable {
        let place = |entry: &spool::log::Entry| {
            let at = Location {
                segment: entry.term,
                offset: entry.index as u32,
                context_len: entry.context.len() as u32,
                data_len: entry.data.len() as u32,
            };
            (entry.index, at)
        };
        (task.number, task.entries.iter().map(place).collect())
    }

    /// The log begins after a snapshot, and holds nothing before it.
    pub fn begin_at(&mut self, begin: (u64, u64)) {
        self.entries = vec![None; begin.0 as usize];
        self.truncated = begin;
    }

    /// A start completes what a crash came into: the log begins at the snapshot whose rows are there.
    pub fn finish_install(
        &mut self,
        begin: (u64, u64),
        found: &mut RecoveredGroup,
    ) -> Result<(), Trouble> {
        if found.term_of(begin.0) == Some(begin.1) {
            return Ok(());
        }
        if let Some(real) = &mut self.real {
            real.begin_at(begin)?;
        }
        self.begin_at(begin);
        self.hard_state.commit = self.hard_state.commit.max(begin.0);
        found.truncated = begin;
        found.entries.clear();
        found.hard_state.commit = found.hard_state.commit.max(begin.0);
        Ok(())
    }

    /// The node gives its replica up: the log, if it is a real one, stays with what it holds for nobody.
    pub fn part(&mut self) {
        if let Some(real) = &mut self.real {
            real.part();
        }
    }

    /// The node is given another replica, for which nothing was written yet. What the log calls it.
    pub fn host(&mut self, group: u32) {
        let mut real = self.real.take();
        if let Some(real) = &mut real {
            real.host(group);
        }
        *self = Disk {
            real,
            ..Disk::default()
        };
    }

    /// The last entry that is durable, or is part of the snapshot that the log begins with.
    pub fn last(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Part of a snapshot that the log begins with.
    pub fn covers(&self, index: u64) -> bool {
        index <= self.truncated.0 && self.get(index).is_none()
    }

    /// Keeps bodies that came with a snapshot; where they lie.
    pub fn keep_copies(
        &mut self,
        snapshot: u64,
        bodies: &[(u64, Bytes)],
    ) -> Result<Vec<Location>, Trouble> {
        match &mut self.real {
            Some(real) => real.keep(snapshot, bodies),
            None => Ok(bodies
                .iter()
                .map(|(index, data)| self.keep_copy(snapshot, *index, data.clone()))
                .collect()),
        }
    }

    fn keep_copy(&mut self, snapshot: u64, index: u64, data: Bytes) -> Location {
        let at = Location {
            segment: COPIES | snapshot >> 1,
            offset: index as u32,
            context_len: 0,
            data_len: data.len() as u32,
        };
        let stored = Stored {
            term: 0,
            kind: EntryKind::Normal,
            context: Bytes::new(),
            data,
        };
        self.copies.insert((at.segment, index), stored);
        at
    }

    /// What is durable at an index.
    pub fn get(&self, index: u64) -> Option<&Stored> {
        self.entries.get(index as usize - 1)?.as_ref()
    }

    /// What lies at a location, if it is still that entry.
    pub fn read(&self, index: u64, at: Location) -> Option<Stored> {
        match &self.real {
            Some(real) => real.read(index, at),
            None if at.segment & COPIES != 0 => self.copies.get(&(at.segment, index)).cloned(),
            None => {
                let stored = self.get(index)?;
                (location(index, stored) == at).then(|| stored.clone())
            }
        }
    }

    pub fn truncate(&mut self, first: u64) {
        let before = first - 1;
        let term = self
            .get(before)
            .map_or(self.truncated.1, |stored| stored.term);
        self.truncated = (before, term);
        if let Some(real) = &mut self.real {
            real.truncate(self.truncated);
        }
    }

    /// The replica is idle: old segments go in which nothing lives, and the log says what it must.
    pub fn tidy_up(&mut self, live: &BTreeSet<u64>) -> Result<(), Trouble> {
        match &mut self.real {
            Some(real) => real.tidy_up(live),
            None => Ok(()),
        }
    }

    /// The process is gone, and with `power` all that was not flushed. `in_write`: in the middle of a write.
    pub fn crash(&mut self, rng: &mut Rng, power: bool, in_write: bool) {
        self.no_room = false;
        let waiting: Vec<WriteTask> = self.queue.drain(..).collect();
        if let Some(real) = &mut self.real {
            real.crash(rng, waiting, power, in_write);
        }
    }

    /// What a start finds.
    pub fn recovered(
        &mut self,
        rng: &mut Rng,
        live: &BTreeMap<u64, Place>,
    ) -> Result<RecoveredGroup, Trouble> {
        let Some(real) = &mut self.real else {
            return Ok(self.known());
        };
        let (found, in_flight) = real.open(rng, live)?;
        self.reconcile(&found, &in_flight).map_err(Trouble::Wrong)?;
        Ok(found)
    }

    fn known(&self) -> RecoveredGroup {
        let from = self.truncated.0 as usize;
        let kept = self.entries.iter().skip(from).map_while(Option::as_ref);
        let entries = (self.truncated.0 + 1..)
            .zip(kept)
            .map(|(index, stored)| RecoveredEntry {
                index,
                term: stored.term,
                kind: stored.kind,
                location: location(index, stored),
            });
        RecoveredGroup {
            hard_state: self.hard_state,
            truncated: self.truncated,
            entries: entries.collect(),
        }
    }

    /// What was durable must be there; what was on its way may be; nothing else is.
    fn reconcile(&mut self, found: &RecoveredGroup, in_flight: &[WriteTask]) -> Result<(), String> {
        let (old, new) = (self.hard_state, found.hard_state);
        let written = |state: HardState| {
            in_flight
                .iter()
                .filter_map(|task| task.hard_state)
                .any(|task| (task.term, task.vote) == (state.term, state.vote))
        };
        if (new.term, new.vote) != (old.term, old.vote) && !written(new) {
            return Err(format!("the log comes back with {new:?}, and had {old:?}"));
        }
        // A snapshot's log took the place of the old one.
        let reset = in_flight.iter().filter_map(|task| task.reset).next_back();
        if let Some(begin) = reset.filter(|begin| found.truncated.0 >= begin.0) {
            self.begin_at(begin);
        }
        let overwritten = in_flight
            .iter()
            .flat_map(|task| &task.entries)
            .map(|entry| entry.index)
            .min()
            .unwrap_or(u64::MAX);
        let mut entries = std::mem::take(&mut self.entries);
        let kept = found.last_index().max(self.truncated.0) as usize;
        if kept < entries.len() && overwritten as usize > kept + 1 {
            return Err(format!(
                "the log comes back with {kept} entries, and had {}",
                entries.len()
            ));
        }
        entries.truncate(kept);
        for entry in &found.entries {
            let at = entry.index as usize - 1;
            let same = entries.get(at).and_then(Option::as_ref);
            if same.is_some_and(|stored| stored.term == entry.term) {
                continue;
            }
            let sent = in_flight
                .iter()
                .rev()
                .flat_map(|task| &task.entries)
                .find(|sent| (sent.index, sent.term) == (entry.index, entry.term));
            let Some(sent) = sent else {
                return Err(format!("nobody wrote what the log has as {entry:?}"));
            };
            entries.truncate(at);
            entries.push(Some(Stored {
                term: sent.term,
                kind: sent.kind,
                context: sent.context.clone(),
                data: sent.data.clone(),
            }));
        }
        self.entries = entries;
        self.hard_state = new;
        for entry in found.entries.iter().rev().take(8) {
            if self.read(entry.index, entry.location).as_ref() != self.get(entry.index) {
                return Err(format!("the log reads other bytes at {entry:?}"));
            }
        }
        Ok(())
    }
}

/// Term and index name the entry, so that a stale location is noticed.
fn location(index: u64, stored: &Stored) -> Location {
    Location {
        segment: stored.term,
        offset: index as u32,
        context_len: stored.context.len() as u32,
        data_len: stored.data.len() as u32,
    }
}
