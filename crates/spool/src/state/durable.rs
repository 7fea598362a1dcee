//! What of the state is durable: told to whoever asks from other threads than the one that applies.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::bodies::SegmentLive;
use crate::directory::group_of;

/// What is durable.
#[derive(Default)]
pub(super) struct Durable {
    pub(super) applied: BTreeMap<u32, u64>,
    pub(super) segments: BTreeMap<u32, BTreeMap<u64, SegmentLive>>,
    /// Where the rows of a group lie, if not under its own number (see [`super::import`]).
    pub(super) slots: BTreeMap<u32, u32>,
    /// Of which rows are being flushed: what fjall shows of them may be newer than what is said here.
    pub(super) flushing: BTreeSet<u32>,
}

impl Durable {
    /// It is changed by assignments that cannot stop half way, so a panic elsewhere leaves it usable.
    pub(super) fn of(shared: &Mutex<Durable>) -> MutexGuard<'_, Durable> {
        shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first octets of the keys of a group's rows.
    pub(super) fn slot(&self, group: u32) -> u32 {
        self.slots.get(&group).copied().unwrap_or(group)
    }

    /// The same, of a replica that is not gone and of which a flush was durable.
    pub(super) fn slot_if_here(&self, replica: u32) -> Option<u32> {
        let here = self.applied.contains_key(&replica);
        here.then(|| self.slot(replica))
    }

    /// Of the replicas that this node has or had of a group, the last one that has rows.
    pub(super) fn replica_of(&self, group: u32) -> Option<u32> {
        let replicas = self.applied.keys().copied();
        replicas.filter(|replica| group_of(*replica) == group).max()
    }

    /// The replicas that have rows, from `first` on, each with its slot.
    pub(super) fn slots_from(&self, first: u32) -> Vec<(u32, u32)> {
        let replicas = self.applied.range(first..);
        replicas
            .map(|(replica, _)| (*replica, self.slot(*replica)))
            .collect()
    }
}
