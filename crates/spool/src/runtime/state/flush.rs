//! The flush of applied rows to the metadata store, and what the log may let go by it.

use std::time::Instant;

use super::{FLUSH_BYTES, FLUSH_EVERY, StateThread};
use crate::directory::group_of;
use crate::event::{LogEvent, RaftEvent, StateEvent};
use crate::runtime::Health;
use crate::state::{Flushed, StoreError};

impl StateThread {
    pub(super) fn flush_if_due(&mut self) {
        let now = Instant::now();
        let bytes: usize = self.shards.values().map(|s| s.rows.overlay_bytes()).sum();
        if self.flushing
            || self.health.stopped().is_some()
            || (now < self.next_flush && bytes < FLUSH_BYTES)
        {
            return;
        }
        self.next_flush = now + FLUSH_EVERY;
        // A group that is left out keeps the pins of all: whose they are is not known.
        if self.installing.is_empty() {
            self.moved.freeze();
        }
        let Some(flush) = self.freeze() else {
            // Nothing changed since, but a follower may have caught up: the log may end later by now.
            return self.tell_what_is_durable();
        };
        self.flushing = true;
        let state = self.to.state.clone();
        // One flush at a time; the thread lives as long as the flush.
        let spawned = self.helpers.spawn("flush", move |_| {
            let _ = state.send(StateEvent::Flushed(flush.run()));
        });
        if let Err(error) = spawned {
            // The frozen rows went with it: recovery replays them.
            self.health
                .reopen(&format!("no thread for the flush of the metadata: {error}"));
            let _ = self.to.raft.send(RaftEvent::Stop);
        }
    }

    pub(super) fn freeze(&mut self) -> Option<crate::state::Flush> {
        // A group whose rows are being replaced has nothing more to say.
        let installing = &self.installing;
        let shards = self.shards.values_mut().map(|s| &mut s.rows);
        let control = self.control.as_mut().map(|control| control.rows());
        let groups = shards.chain(control);
        let flush = self
            .store
            .freeze(groups.filter(|rows| !installing.contains_key(&group_of(rows.group()))))?;
        if self.installing.is_empty() {
            self.mending.append(&mut self.mended);
        }
        Some(flush)
    }

    /// What the log may let go, by the last flush that is durable.
    pub(super) fn tell_what_is_durable(&mut self) {
        // First what lives, then what may be truncated: the log thread releases a segment by both, and what was
        // truncated by this flush must not meet what lived at the flush before.
        let (live, applied) = (self.store.segments_live(), self.store.all_applied());
        let _ = self.log.send(LogEvent::Durable {
            live: live.clone(),
            applied,
        });
        self.moved.durable(&self.log, live);
        let shards = self
            .shards
            .iter()
            .map(|(group, shard)| (*group, shard.rows.group()));
        let control = self.control.as_ref();
        let control = control.map(|control| (crate::CONTROL_GROUP, control.replica()));
        for (group, replica) in shards.chain(control) {
            let applied = self.store.durable_applied(replica);
            let _ = self.to.raft.send(RaftEvent::Durable { group, applied });
        }
    }

    pub(super) fn flushed(&mut self, result: Result<Flushed, StoreError>) -> bool {
        self.flushing = false;
        match result {
            Ok(flushed) => {
                let shards = self.shards.values_mut().map(|s| &mut s.rows);
                let control = self.control.as_mut().map(|control| control.rows());
                self.store.flushed(flushed, shards.chain(control));
                self.tell_what_is_durable();
                if !self.mending.is_empty() {
                    let pins = std::mem::take(&mut self.mending);
                    let _ = self.log.send(LogEvent::Unpin(pins));
                }
                if let Ok(bytes) = self.store.disk_bytes() {
                    let bytes = bytes + self.snapshots.staged_bytes();
                    let _ = self.log.send(LogEvent::OtherBytes(bytes));
                }
                self.begin_installs();
                true
            }
            Err(error) => self.store_failed("the metadata cannot be flushed", &error),
        }
    }

    /// The store refuses writes after a failed one. For want of space the replica node closes, and opens again in 5 s; else it
    /// stops for good. `false`: for good.
    pub(super) fn store_failed(&self, what: &str, error: &StoreError) -> bool {
        let reopens = give_up(&self.health, what, error);
        let _ = self.to.raft.send(RaftEvent::Stop);
        reopens
    }

    pub(super) fn finish(mut self) {
        for (group, shard) in &mut self.shards {
            if let Some(leader) = shard.leader.take() {
                let address = self.directory.leader_address(*group);
                leader.ended(&mut self.streams, &address);
            }
        }
        if self.flushing || self.health.stopped().is_some() {
            return;
        }
        if let Some(flush) = self.freeze()
            && let Err(error) = flush.run()
        {
            tracing::warn!(%error, "the last flush failed; the log has everything, the next start replays it");
        }
    }
}

fn give_up(health: &Health, what: &str, error: &StoreError) -> bool {
    let reason = format!("{what}: {error}");
    match error {
        StoreError::NoSpace(_) => health.reopen(&reason),
        _ => health.stop_for_good(&reason),
    }
    matches!(error, StoreError::NoSpace(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A full disk stopped a node for good when it was given a replica, or gave one up.
    #[test]
    fn a_store_without_space_is_opened_again_and_one_that_failed_is_not() {
        let (full, failed) = (Health::new(), Health::new());
        assert!(give_up(
            &full,
            "a replica of group 3 cannot be made",
            &StoreError::NoSpace("no space left on device".to_owned())
        ));
        assert!(full.wants_reopen());
        let reason = full.stopped().expect("it closes");
        assert!(reason.contains("a replica of group 3"), "{reason}");
        let error = StoreError::Fatal("input/output error".to_owned());
        assert!(!give_up(&failed, "a replica is not given up", &error));
        assert!(failed.stopped().is_some() && !failed.wants_reopen());
    }
}
