//! The state thread's part in snapshots: it gives out what is durable, and changes to rows that were installed.

use super::{Shard, StateThread};
use crate::event::{LogEvent, RaftEvent, SnapshotWork, StateEvent};
use crate::node::{Made, Membership, SnapshotInput};
use crate::runtime::snapshots::{self, Failed};
use crate::state::{Cleaner, GroupState, StoreError, Switched};

impl StateThread {
    pub(super) fn snapshot(&mut self, group: u32, work: SnapshotWork) {
        match work {
            SnapshotWork::Make { to } => {
                let made = self.make_snapshot(group, to).unwrap_or_else(|error| {
                    tracing::error!(group, %error, "no snapshot can be made");
                    None
                });
                let input = SnapshotInput::Made { to, made };
                let _ = self.to.raft.send(RaftEvent::Snapshot { group, input });
            }
            SnapshotWork::Install(made) => {
                self.installing.insert(group, Some(made));
                self.begin_installs();
            }
            SnapshotWork::Installed(made, outcome) => self.installed(group, &made, *outcome),
        }
    }

    /// What the last flush made durable reaches as far as the log was truncated, so it is always recent enough; only a
    /// member that is younger than it must wait for the next flush.
    fn make_snapshot(&mut self, group: u32, to: u64) -> Result<Option<Made>, StoreError> {
        if !self.snapshots.may_make() {
            return Ok(None);
        }
        let Some(replica) = self.replica(group) else {
            return Ok(None);
        };
        let Some(export) = self.store.export(replica)? else {
            return Ok(None);
        };
        let members = crate::wire::members::from_bytes(&export.conf_state)
            .map_err(|e| StoreError::Fatal(format!("group {group}: its members: {e}")))?;
        if !contains(&members, to) {
            return Ok(None);
        }
        let made = Made {
            id: rand::random(),
            index: export.applied.0,
            term: export.applied.1,
            members,
            body_bytes: export.body_bytes,
        };
        self.snapshots.made(made.id, export);
        Ok(Some(made))
    }

    /// A flush under way would write the old rows over the new ones: installs begin between flushes, and their groups are
    /// not flushed until they end.
    pub(super) fn begin_installs(&mut self) {
        if self.flushing || self.health.stopped().is_some() {
            return;
        }
        let begin: Vec<_> = self
            .installing
            .iter_mut()
            .filter_map(|(group, made)| Some((*group, made.take()?)))
            .collect();
        for (group, made) in begin {
            let Some(replica) = self.replica(group) else {
                self.installing.remove(&group);
                self.snapshots.discard(group, made.id);
                continue;
            };
            let (hub, importer) = (self.snapshots.clone(), self.store.importer());
            let (log, state) = (self.log.clone(), self.to.state.clone());
            let spawned = self.helpers.spawn("install", move |helper| {
                let outcome =
                    snapshots::install(hub.staging(), helper, replica, &made, &importer, &log);
                let work = SnapshotWork::Installed(made, Box::new(outcome));
                let _ = state.send(StateEvent::Snapshot { group, work });
            });
            if let Err(error) = spawned {
                self.reopen(&format!("no thread to install a snapshot: {error}"));
            }
        }
    }

    fn installed(&mut self, group: u32, made: &Made, outcome: Result<Switched, Failed>) {
        self.installing.remove(&group);
        if let Some(peer) = self.parted.remove(&group) {
            if let Ok(switched) = outcome {
                // Its rows are to be found when they are removed.
                self.store.switched(switched);
            }
            self.snapshots.discard(group, made.id);
            self.destroyed(group, peer);
            let _ = self.log.send(LogEvent::Unpin(vec![made.id]));
            return;
        }
        let replaced = match outcome {
            Ok(switched) => {
                let replica = switched.replica();
                self.store.switched(switched);
                self.store.group(replica)
            }
            Err(Failed::Ends) => return,
            Err(Failed::Store(error)) => Err(error),
            // Raft's memory has the snapshot already, the disk has the old state: a start goes on from that.
            Err(other) => return self.reopen(&format!("group {group}: {other}")),
        };
        match replaced {
            Ok(rows) => self.replace(group, rows, made.index),
            Err(error) => {
                self.store_failed(&format!("group {group}: a snapshot"), &error);
                return;
            }
        }
        tracing::info!(group, index = made.index, "a snapshot is installed");
        metrics::counter!("postroad_snapshots_total", "outcome" => "installed").increment(1);
        // First what lives, then the end of the pins: in this order nothing new is ever recycled.
        self.tell_what_is_durable();
        let _ = self.log.send(LogEvent::Unpin(vec![made.id]));
        self.snapshots.discard(group, made.id);
        let input = SnapshotInput::Installed { index: made.index };
        let _ = self.to.raft.send(RaftEvent::Snapshot { group, input });
        self.clean();
    }

    fn replace(&mut self, group: u32, rows: GroupState, index: u64) {
        if group != crate::CONTROL_GROUP {
            let known = super::check_version(group, &rows, self.known);
            self.shards.insert(group, Shard::new(rows));
            if let Err(error) = known {
                // The rows are durable: a program that knows the version goes on with them.
                self.health.stop_for_good(&error.to_string());
                let _ = self.to.raft.send(RaftEvent::Stop);
            }
            return;
        }
        self.control_conf.retain(|of, _| *of > index);
        let Some(control) = &mut self.control else {
            return;
        };
        if let Err(error) = control.replace(rows, &self.directory) {
            self.health.stop_for_good(&format!(
                "the control group's state in a snapshot cannot be understood: {error}; run the version of postroad that \
                 the other replicas run"
            ));
            let _ = self.to.raft.send(RaftEvent::Stop);
        }
    }

    fn reopen(&self, reason: &str) {
        self.health.reopen(reason);
        let _ = self.to.raft.send(RaftEvent::Stop);
    }

    /// Removes the rows that snapshots left behind, in a thread that began while nothing was installed. One at a time: what one
    /// has done is given out anew, and another that still has it on its list would take away what lives there by then.
    pub(super) fn clean(&mut self) {
        self.to_clean = true;
        if !self.installing.is_empty() || self.cleaning {
            return;
        }
        let cleaner = match Cleaner::new(&self.store, self.helpers.closing()) {
            Ok(cleaner) => cleaner,
            Err(error) => {
                return tracing::warn!(%error, "rows from before a snapshot are left for the next start");
            }
        };
        let state = self.to.state.clone();
        let spawned = self.helpers.spawn("clean", move |_| {
            let _ = state.send(StateEvent::Cleaned(cleaner.run()));
        });
        // Without it the garbage waits for the next start.
        (self.cleaning, self.to_clean) = (spawned.is_ok(), false);
    }

    pub(super) fn cleaned(&mut self, result: Result<(), crate::state::StoreError>) {
        self.cleaning = false;
        match result {
            Ok(()) if self.to_clean => self.clean(),
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(%error, "rows from before a snapshot are left for the next start");
            }
        }
    }
}

fn contains(members: &Membership, peer: u64) -> bool {
    let all = [&members.voters, &members.learners, &members.voters_outgoing];
    all.into_iter().any(|peers| peers.contains(&peer))
}
