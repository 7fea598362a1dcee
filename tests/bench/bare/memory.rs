//! The part of the log that raft-rs reads, in memory.

use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::storage::{GetEntriesContext, RaftState};
use raft::{Storage, StorageError};
use spool::log::EntryKind;

/// What an entry takes besides its data, octets, as Raft limits messages.
const ENTRY_OVERHEAD: u64 = 32;

/// The entries from some index on.
pub struct Memory {
    hard_state: HardState,
    members: ConfState,
    /// Index and term of the entry before the first.
    before: (u64, u64),
    entries: VecDeque<Entry>,
}

impl Memory {
    /// An empty log of a new cluster.
    pub fn new(voters: impl Iterator<Item = u64>) -> Memory {
        Memory {
            hard_state: HardState::default(),
            members: ConfState::from((voters.collect::<Vec<_>>(), Vec::new())),
            before: (0, 0),
            entries: VecDeque::new(),
        }
    }

    /// Adds entries; what stands at their indexes or behind them goes.
    pub fn append(&mut self, entries: &[Entry]) {
        if let Some(first) = entries.first() {
            let kept = first.index.saturating_sub(self.before.0 + 1);
            self.entries.truncate(kept as usize);
            self.entries.extend(entries.iter().cloned());
        }
    }

    /// See the Raft paper.
    pub fn set_hard_state(&mut self, state: HardState) {
        self.hard_state = state;
    }

    /// Lets go of entries up to `index`.
    pub fn forget(&mut self, index: u64) {
        while let Some(entry) = self.entries.pop_front_if(|entry| entry.index <= index) {
            self.before = (entry.index, entry.term);
        }
    }

    /// Index and term of the last entry that is gone.
    pub fn forgotten(&self) -> (u64, u64) {
        self.before
    }

    fn at(&self, index: u64) -> raft::Result<&Entry> {
        if index <= self.before.0 {
            return Err(StorageError::Compacted.into());
        }
        let entry = self.entries.get((index - self.before.0 - 1) as usize);
        entry.ok_or_else(|| StorageError::Unavailable.into())
    }
}

impl Storage for Memory {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(
            self.hard_state.clone(),
            self.members.clone(),
        ))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let most = max_size.into().unwrap_or(u64::MAX);
        let (mut found, mut size) = (Vec::new(), 0);
        for index in low..high {
            let entry = self.at(index)?;
            size += entry.data.len() as u64 + ENTRY_OVERHEAD;
            if size > most && !found.is_empty() {
                break;
            }
            found.push(entry.clone());
        }
        Ok(found)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.before.0 {
            return Ok(self.before.1);
        }
        self.at(index).map(|entry| entry.term)
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.before.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.before.0 + self.entries.len() as u64)
    }

    fn snapshot(&self, _index: u64, _to: u64) -> raft::Result<Snapshot> {
        // A follower so far behind is none that this load leaves behind; Raft asks again later.
        Err(StorageError::SnapshotTemporarilyUnavailable.into())
    }
}

/// As the log has it.
pub fn to_log(mut entry: Entry) -> spool::log::Entry {
    spool::log::Entry {
        index: entry.index,
        term: entry.term,
        kind: EntryKind::Normal,
        context: entry.take_context(),
        data: entry.take_data(),
    }
}

/// As the log has it.
pub fn hard_state_to_log(state: &HardState) -> spool::log::HardState {
    spool::log::HardState {
        term: state.term,
        vote: state.vote,
        commit: state.commit,
    }
}
