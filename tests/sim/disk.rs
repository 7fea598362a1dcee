//! A replica's disk: writes in order, late, and a crash loses all that was not flushed.

use std::collections::VecDeque;

use bytes::Bytes;
use spool::log::{EntryKind, HardState, Location, RecoveredEntry, RecoveredGroup, WriteTask};

#[derive(Clone, Debug)]
pub struct Stored {
    pub term: u64,
    pub kind: EntryKind,
    pub context: Bytes,
    pub data: Bytes,
}

#[derive(Default)]
pub struct Disk {
    /// By index - 1. `None`: a lying disk lost it.
    entries: Vec<Option<Stored>>,
    hard_state: HardState,
    /// Logical truncation; the octets stay, as they would in an older generation.
    truncated: (u64, u64),
    /// Submitted, not durable.
    pub queue: VecDeque<WriteTask>,
}

impl Disk {
    /// Makes the oldest write durable. `lie`: reports it and loses it.
    pub fn flush_one(&mut self, lie: bool) -> Option<(u64, Vec<(u64, Location)>)> {
        let task = self.queue.pop_front()?;
        if let Some(hard_state) = task.hard_state {
            self.hard_state = hard_state;
        }
        let mut locations = Vec::new();
        for entry in task.entries {
            let at = entry.index as usize - 1;
            assert!(
                at <= self.entries.len(),
                "a write leaves a hole before {}",
                entry.index
            );
            let (term, kind) = (entry.term, entry.kind);
            let stored = Stored {
                term,
                kind,
                context: entry.context,
                data: entry.data,
            };
            locations.push((entry.index, location(entry.index, &stored)));
            self.entries.truncate(at);
            self.entries.push(if lie { None } else { Some(stored) });
        }
        Some((task.number, locations))
    }

    pub fn get(&self, index: u64) -> Option<&Stored> {
        self.entries.get(index as usize - 1)?.as_ref()
    }

    /// What lies at a location, if it is still that entry.
    pub fn read(&self, index: u64, at: Location) -> Option<&Stored> {
        self.get(index)
            .filter(|stored| location(index, stored) == at)
    }

    pub fn truncate(&mut self, first: u64) {
        let before = first - 1;
        let term = self
            .get(before)
            .map_or(self.truncated.1, |stored| stored.term);
        self.truncated = (before, term);
    }

    pub fn recovered(&self) -> RecoveredGroup {
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
