//! The flush of applied rows to the metadata store, and what the log may let go by it.

use std::time::Instant;

use super::{FLUSH_BYTES, FLUSH_EVERY, StateThread};
use crate::directory::group_of;
use crate::event::{LogEvent, RaftEvent, StateEvent};
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
        let helper = std::thread::Builder::new().name("flush".to_owned());
        let spawned = helper.spawn(move || {
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
            Err(error @ StoreError::NoSpace(_)) => {
                // The store refuses writes after a failed one: the replica node closes, and opens again in 5 s.
                self.health.reopen(&error.to_string());
                let _ = self.to.raft.send(RaftEvent::Stop);
                true
            }
            Err(error) => {
                self.health
                    .stop_for_good(&format!("the metadata store failed: {error}"));
                let _ = self.to.raft.send(RaftEvent::Stop);
                false
            }
        }
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
