//! Watchdogs: a disk that does not answer behind a network that does makes a leader that commits through others but
//! never applies. Ticks are the clock.

use super::{AbortReason, Group};

/// Election timeouts that a disk may owe us a write before the leadership goes elsewhere.
const LATE_ELECTION_TIMEOUTS: u64 = 2;

/// A leader with a full disk tries to hand over this often, ticks: one second, so that its successor can be full too
/// without a storm of elections.
const FULL_HAND_OVER: u64 = 20;

impl Group {
    pub(super) fn tick(&mut self) {
        self.ticks += 1;
        // Another group may need the room that this one does not use any more.
        self.raw.mut_store().evict();
        self.expire_offers();
        self.give_credit();
        let age = self.oldest_write_age();
        let full = self.full.contains(&self.config.peer_id);
        // A full disk owes us writes until there is room; that is no reason to give it up.
        if age >= self.config.limits.hung_disk_ticks
            && !full
            && let Some(oldest) = self.unpersisted.front()
        {
            let (group, number) = (self.config.group, oldest.number);
            return self.abort(AbortReason::DiskHung {
                group,
                number,
                ticks: age,
            });
        }
        if self.disk_late() {
            if !self.leads() {
                // Without ticks it does not campaign; it still follows and votes, when its disk allows.
                return;
            }
            if self.raw.raft.lead_transferee.is_none() {
                self.transfer_leader(None);
            }
        }
        if self.installs() {
            // Between the old log and the snapshot there is nothing that Raft could campaign with.
            return;
        }
        let spared = full && self.leads() && !self.majority_full();
        if spared
            && self.ticks.is_multiple_of(FULL_HAND_OVER)
            && self.raw.raft.lead_transferee.is_none()
        {
            // A leader writes all mail; a follower with a full disk is spared it.
            self.transfer_leader(None);
        }
        self.raw.tick();
        self.take_step();
    }

    /// Ticks since the oldest write that is not durable was submitted.
    fn oldest_write_age(&self) -> u64 {
        // What waits for a snapshot does not wait for the disk.
        let submitted = self.unpersisted.front().filter(|_| !self.installs());
        submitted.map_or(0, |oldest| self.ticks - oldest.since)
    }

    /// The disk owes us a write for longer than an election takes, twice.
    pub(super) fn disk_late(&self) -> bool {
        let election = self.config.election_ticks.start as u64;
        self.oldest_write_age() >= LATE_ELECTION_TIMEOUTS * election
    }
}
