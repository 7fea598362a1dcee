//! Snapshots as raft-rs asks for them: what the driver has made is offered, what it has not is asked for later again.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use raft::StorageError;
use raft::eraftpb::Snapshot;

use super::GroupLog;
use crate::node::Membership;

/// What is offered to whom, and who wants one.
#[derive(Debug, Default)]
pub(super) struct Offers {
    made: BTreeMap<u64, Snapshot>,
    wanted: RefCell<BTreeSet<u64>>,
}

impl GroupLog {
    /// Only "not now" may be answered in place of a snapshot: Raft takes any other error for the end of the world.
    pub(super) fn give_snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let fits = |s: &&Snapshot| {
            let index = s.get_metadata().index;
            index >= request_index && index + 1 >= self.first()
        };
        if let Some(snapshot) = self.offers.made.get(&to).filter(fits) {
            return Ok(snapshot.clone());
        }
        self.offers.wanted.borrow_mut().insert(to);
        Err(StorageError::SnapshotTemporarilyUnavailable.into())
    }

    /// Puts a snapshot where Raft finds it for this peer.
    pub(crate) fn offer(&mut self, to: u64, snapshot: Snapshot) {
        self.offers.made.insert(to, snapshot);
    }

    /// Ends an offer.
    pub(crate) fn withdraw(&mut self, to: u64) {
        self.offers.made.remove(&to);
    }

    /// Peers for whom Raft asked since the last call.
    pub(crate) fn take_wanted_snapshots(&mut self) -> BTreeSet<u64> {
        std::mem::take(self.offers.wanted.get_mut())
    }

    /// A snapshot takes the place of everything; the members are its.
    pub(crate) fn reset_to(&mut self, snapshot: &Snapshot) -> Membership {
        let of = snapshot.get_metadata();
        self.before = (of.index, of.term);
        self.slots.clear();
        for (_, (context, data)) in std::mem::take(&mut self.cached) {
            self.uncount(&context, &data);
        }
        self.fetched.clear();
        // Whatever is being written of the old log has no place in the new one.
        self.pending.clear();
        self.set_conf_state(of.get_conf_state().clone());
        Membership::from(of.get_conf_state())
    }
}
