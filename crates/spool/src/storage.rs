//! What raft-rs reads of a group's log: an index in RAM of the window that is not truncated, and a cache of the
//! entries themselves. Nothing here touches the disk: what is not cached is asked of the driver (see
//! [`GroupLog::take_wanted`]), or handed out without its octets where Raft needs only its place.

mod budget;
mod convert;
mod snapshot;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry as RaftEntry, HardState as RaftHardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use crate::log::{EntryKind, Location, RecoveredEntry, RecoveredGroup};
pub use budget::{CACHE_BYTES, CacheBudget};
use budget::{ENTRY_OVERHEAD, weight};
use convert::{entry_type_of, kind_of};
pub(crate) use convert::{hard_state_from_log, hard_state_to_log, to_log};

/// A log that has a hole.
#[derive(Debug, thiserror::Error)]
#[error("entry {index} follows entry {last}: the log has a hole")]
pub struct Hole {
    /// The entry that does not fit.
    pub index: u64,
    /// The last one before it.
    pub last: u64,
}

/// What is known of an entry without its octets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) term: u64,
    pub(crate) kind: EntryKind,
    pub(crate) context_len: u32,
    pub(crate) data_len: u32,
    /// `None` until the write is durable.
    pub(crate) location: Option<Location>,
}

impl Slot {
    /// Octets that the entry weighs in limits.
    pub(crate) fn bytes(&self) -> u64 {
        u64::from(self.context_len) + u64::from(self.data_len) + ENTRY_OVERHEAD as u64
    }
}

/// Entries that were submitted in one write and are not durable.
#[derive(Debug)]
struct Pending {
    number: u64,
    first: u64,
    last: u64,
}

/// A read that Raft waits for.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) low: u64,
    pub(crate) high: u64,
    pub(crate) max_bytes: u64,
    pub(crate) context: GetEntriesContext,
}

/// The log of one group as Raft sees it.
#[derive(Debug)]
pub struct GroupLog {
    /// Index and term of the entry before the first: Raft matches against it.
    before: (u64, u64),
    slots: VecDeque<Slot>,
    cached: BTreeMap<u64, (Bytes, Bytes)>,
    cached_bytes: usize,
    budget: Arc<CacheBudget>,
    /// Entries from here on stay cached although they are on disk.
    pinned_from: u64,
    pending: VecDeque<Pending>,
    hard_state: RaftHardState,
    conf_state: ConfState,
    /// Read back for lagging followers; dropped as soon as Raft had its chance to send them.
    fetched: BTreeMap<u64, (Bytes, Bytes)>,
    wanted: RefCell<Vec<Wanted>>,
    offers: snapshot::Offers,
}

impl GroupLog {
    /// An empty log.
    pub fn new(budget: Arc<CacheBudget>) -> GroupLog {
        GroupLog::starting_after(0, 0, budget)
    }

    /// A log whose first entry will follow the one of this index and term.
    pub fn starting_after(index: u64, term: u64, budget: Arc<CacheBudget>) -> GroupLog {
        GroupLog {
            before: (index, term),
            slots: VecDeque::new(),
            cached: BTreeMap::new(),
            cached_bytes: 0,
            budget,
            pinned_from: u64::MAX,
            pending: VecDeque::new(),
            hard_state: RaftHardState::default(),
            conf_state: ConfState::default(),
            fetched: BTreeMap::new(),
            wanted: RefCell::new(Vec::new()),
            offers: snapshot::Offers::default(),
        }
    }

    /// The log as recovery found it. `payload` reads an entry back (context, data); it is asked for changes of
    /// membership, which Raft may want before anything can be fetched.
    pub fn recovered<E: From<Hole>>(
        found: &RecoveredGroup,
        budget: Arc<CacheBudget>,
        mut payload: impl FnMut(&RecoveredEntry) -> Result<(Bytes, Bytes), E>,
    ) -> Result<GroupLog, E> {
        let mut log = GroupLog::starting_after(found.truncated.0, found.truncated.1, budget);
        for entry in &found.entries {
            if entry.index != log.last() + 1 {
                return Err(Hole {
                    index: entry.index,
                    last: log.last(),
                }
                .into());
            }
            let RecoveredEntry {
                term,
                kind,
                location,
                ..
            } = *entry;
            let Location {
                context_len,
                data_len,
                ..
            } = location;
            log.slots.push_back(Slot {
                term,
                kind,
                context_len,
                data_len,
                location: Some(location),
            });
            if kind != EntryKind::Normal {
                let (context, data) = payload(entry)?;
                log.cache(entry.index, context, data);
            }
        }
        Ok(log)
    }

    /// First index that is kept; one past [`GroupLog::last`] when there is none.
    pub fn first(&self) -> u64 {
        self.before.0 + 1
    }

    /// Last index.
    pub fn last(&self) -> u64 {
        self.before.0 + self.slots.len() as u64
    }

    pub(crate) fn slot(&self, index: u64) -> Option<&Slot> {
        let at = index.checked_sub(self.first())?;
        self.slots.get(usize::try_from(at).ok()?)
    }

    /// Term of an entry of the window, or of the one before it.
    pub fn term_of(&self, index: u64) -> Option<u64> {
        if index == self.before.0 {
            return Some(self.before.1);
        }
        self.slot(index).map(|slot| slot.term)
    }

    /// Where an entry lies; `None` while it is not durable, or out of the window.
    pub fn location(&self, index: u64) -> Option<Location> {
        self.slot(index)?.location
    }

    /// Context and data while they are in RAM.
    pub fn cached(&self, index: u64) -> Option<(Bytes, Bytes)> {
        let slot = self.slot(index)?;
        if slot.context_len == 0 && slot.data_len == 0 {
            return Some((Bytes::new(), Bytes::new()));
        }
        self.cached.get(&index).cloned()
    }

    pub(crate) fn hard_state(&self) -> &RaftHardState {
        &self.hard_state
    }

    pub(crate) fn set_hard_state(&mut self, state: RaftHardState) {
        self.hard_state = state;
    }

    pub(crate) fn set_conf_state(&mut self, state: ConfState) {
        self.conf_state = state;
    }

    /// Replaces everything from the first entry's index on, as part of write `number`.
    pub(crate) fn truncate_and_append(&mut self, number: u64, entries: &[RaftEntry]) {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
            return;
        };
        assert!(
            first.index > self.before.0 && first.index <= self.last() + 1,
            "Raft appends {} to a log of {}..={}",
            first.index,
            self.first(),
            self.last()
        );
        self.forget_from(first.index);
        for entry in entries {
            self.slots.push_back(Slot {
                term: entry.term,
                kind: kind_of(entry.get_entry_type()),
                context_len: entry.context.len() as u32,
                data_len: entry.data.len() as u32,
                location: None,
            });
            self.cache(entry.index, entry.context.clone(), entry.data.clone());
        }
        self.pending.push_back(Pending {
            number,
            first: first.index,
            last: last.index,
        });
        self.evict();
    }

    /// A location that comes late for an entry that was replaced meanwhile must not be kept, so writes in flight
    /// forget the indexes that are replaced.
    fn forget_from(&mut self, index: u64) {
        self.slots.truncate((index - self.first()) as usize);
        for (_, (context, data)) in self.cached.split_off(&index) {
            self.uncount(&context, &data);
        }
        self.fetched.split_off(&index);
        for pending in &mut self.pending {
            pending.last = pending.last.min(index - 1);
        }
    }

    /// Write `number`, and all before it, are durable.
    pub(crate) fn located(&mut self, number: u64, locations: &[(u64, Location)]) {
        while let Some(pending) = self.pending.front() {
            if pending.number > number {
                break;
            }
            let (first, last) = (pending.first, pending.last);
            for &(index, location) in locations
                .iter()
                .filter(|(index, _)| (first..=last).contains(index))
            {
                let at = index.checked_sub(self.first()).map(|at| at as usize);
                if let Some(slot) = at.and_then(|at| self.slots.get_mut(at)) {
                    slot.location = Some(location);
                }
            }
            self.pending.pop_front();
        }
        self.evict();
    }

    /// The collector moved an entry.
    pub(crate) fn relocated(&mut self, index: u64, old: Location, new: Location) {
        let at = index.checked_sub(self.first()).map(|at| at as usize);
        if let Some(slot) = at.and_then(|at| self.slots.get_mut(at))
            && slot.location == Some(old)
        {
            slot.location = Some(new);
        }
    }

    /// Drops everything up to `upto`, which must be applied.
    pub(crate) fn truncate_to(&mut self, upto: u64) {
        while self.before.0 < upto {
            let Some(slot) = self.slots.pop_front() else {
                break;
            };
            self.before = (self.before.0 + 1, slot.term);
            if let Some((context, data)) = self.cached.remove(&self.before.0) {
                self.uncount(&context, &data);
            }
        }
        self.fetched = self.fetched.split_off(&self.first());
    }

    /// A leader's own proposals stay cached until they are handed out: raft-rs counts their data then, and would
    /// take ever less of them if it were elided.
    pub(crate) fn pin_from(&mut self, index: u64) {
        self.pinned_from = index;
    }

    /// No more entries may come from elsewhere until the disk has taken some; see [`CacheBudget`].
    pub(crate) fn is_exhausted(&self) -> bool {
        self.budget.is_exhausted()
    }

    /// Makes room, from the oldest on, if the node's budget is used up.
    pub(crate) fn evict(&mut self) {
        let mut over = self.budget.excess();
        if over == 0 {
            return;
        }
        let mut gone = Vec::new();
        for (&index, (context, data)) in self.cached.range(..self.pinned_from) {
            if over == 0 {
                break;
            }
            let evictable = self
                .slot(index)
                .is_none_or(|slot| slot.location.is_some() && slot.kind == EntryKind::Normal);
            if evictable {
                over = over.saturating_sub(weight(context, data));
                gone.push(index);
            }
        }
        for index in gone {
            if let Some((context, data)) = self.cached.remove(&index) {
                self.uncount(&context, &data);
            }
        }
    }

    fn cache(&mut self, index: u64, context: Bytes, data: Bytes) {
        if context.is_empty() && data.is_empty() {
            return;
        }
        self.cached_bytes += weight(&context, &data);
        self.budget.take(weight(&context, &data));
        if let Some((context, data)) = self.cached.insert(index, (context, data)) {
            self.uncount(&context, &data);
        }
    }

    fn uncount(&mut self, context: &Bytes, data: &Bytes) {
        self.cached_bytes -= weight(context, data);
        self.budget.give_back(weight(context, data));
    }

    /// Reads that Raft asked for since the last call.
    pub(crate) fn take_wanted(&mut self) -> Vec<Wanted> {
        std::mem::take(self.wanted.get_mut())
    }

    /// Puts an entry that was read back where [`Storage::entries`] finds it.
    pub(crate) fn lend(&mut self, index: u64, context: Bytes, data: Bytes) {
        self.fetched.insert(index, (context, data));
    }

    pub(crate) fn lent(&self) -> bool {
        !self.fetched.is_empty()
    }

    /// Raft had its chance with what was lent.
    pub(crate) fn end_loan(&mut self) {
        self.fetched.clear();
    }

    fn entry(&self, index: u64, slot: &Slot, payload: Option<(Bytes, Bytes)>) -> RaftEntry {
        let (context, data) = payload.unwrap_or_default();
        RaftEntry {
            index,
            term: slot.term,
            entry_type: entry_type_of(slot.kind),
            context,
            data,
            ..RaftEntry::default()
        }
    }

    /// Whole entries from `low` on, up to the first that is not in RAM.
    fn whole(&self, low: u64, high: u64, max: u64) -> Vec<RaftEntry> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        for index in low..high {
            let Some(slot) = self.slot(index) else { break };
            bytes += slot.bytes();
            if !entries.is_empty() && bytes > max {
                break;
            }
            let Some(payload) = self
                .cached(index)
                .or_else(|| self.fetched.get(&index).cloned())
            else {
                break;
            };
            entries.push(self.entry(index, slot, Some(payload)));
        }
        entries
    }

    /// Entries whose octets are left out unless `payload` gives them.
    fn outline(
        &self,
        low: u64,
        high: u64,
        max: u64,
        payload: impl Fn(u64, &Slot) -> bool,
    ) -> Vec<RaftEntry> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        for index in low..high {
            let Some(slot) = self.slot(index) else { break };
            bytes += slot.bytes();
            if !entries.is_empty() && bytes > max {
                break;
            }
            let octets = if payload(index, slot) {
                self.cached(index)
            } else {
                None
            };
            entries.push(self.entry(index, slot, octets));
        }
        entries
    }
}

impl Drop for GroupLog {
    fn drop(&mut self) {
        self.budget.give_back(self.cached_bytes);
    }
}

impl Storage for GroupLog {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(
            self.hard_state.clone(),
            self.conf_state.clone(),
        ))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<RaftEntry>> {
        if low < self.first() {
            return Err(StorageError::Compacted.into());
        }
        if high > self.last() + 1 {
            return Err(StorageError::Unavailable.into());
        }
        let max = max_size.into();
        if !context.can_async() {
            return Ok(match max {
                // Raft looks for changes of membership, in all entries: a prefix would hide one, and the octets of a
                // long backlog would fill the memory of whoever campaigns.
                None => self.outline(low, high, u64::MAX, |_, slot| {
                    slot.kind != EntryKind::Normal
                }),
                Some(max) => self.outline(low, high, max, |_, _| true),
            });
        }
        let max = max.unwrap_or(u64::MAX);
        let entries = self.whole(low, high, max);
        if entries.is_empty() && low < high {
            self.wanted.borrow_mut().push(Wanted {
                low,
                high,
                max_bytes: max,
                context,
            });
            return Err(StorageError::LogTemporarilyUnavailable.into());
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        match self.term_of(index) {
            Some(term) => Ok(term),
            None if index < self.before.0 => Err(StorageError::Compacted.into()),
            None => Err(StorageError::Unavailable.into()),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        self.give_snapshot(request_index, to)
    }
}
