//! Snapshots on their way: what this node sends, what it receives, and what it installs. One hub a node; the Raft thread
//! tells it what Raft wants, the state thread gives it rows, gRPC tasks carry the octets.
//!
//! Every send ends in one report to Raft, by [`Report`]'s drop if by nothing else: a follower whose snapshot nobody
//! reports is paused for ever.

mod install;
mod receive;
mod send;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use raft::eraftpb::Message;
use tokio_util::sync::CancellationToken;

pub use install::{Failed, install};

use super::{Health, Helper, Helpers, Mender};
use crate::event::RaftEvent;
use crate::log::LogReader;
use crate::node::SnapshotInput;
use crate::peer::Peers;
use crate::snapshot::Staging;
use crate::state::Export;

/// Snapshots that a node makes and sends at once: each reads the disk that everybody's mail needs.
const OUTGOING_MAX: usize = 2;

/// Snapshots that a node receives at once.
const INCOMING_MAX: usize = 2;

/// A snapshot that is made, or being sent.
struct Outgoing {
    /// Until it is sent.
    export: Option<Export>,
    /// Octets of bodies that left, and how many there are, about.
    sent: Arc<AtomicU64>,
    total: u64,
    /// Nobody needs it any more.
    dropped: CancellationToken,
}

/// A snapshot that is received, staged or being installed.
struct Incoming {
    id: u64,
    /// That are staged.
    octets: u64,
    /// Octets of the disk that it takes in all, staged and in the log.
    needed: u64,
}

struct Inner {
    staging: Staging,
    reader: LogReader,
    raft: Sender<RaftEvent>,
    peers: Peers,
    health: Health,
    runtime: tokio::runtime::Handle,
    outgoing: Mutex<BTreeMap<u64, Outgoing>>,
    incoming: Mutex<BTreeMap<u32, Incoming>>,
    helpers: Helpers,
    mender: Mender,
}

/// The hub. Cheap to clone.
#[derive(Clone)]
pub struct Snapshots(Arc<Inner>);

impl Snapshots {
    /// For a node that starts, in its runtime. What an earlier life staged is removed. `mender` brings what this disk does not
    /// give back of a body that is to be sent.
    ///
    /// # Errors
    /// The staging directory cannot be emptied.
    pub fn new(
        data: &std::path::Path,
        reader: LogReader,
        raft: Sender<RaftEvent>,
        peers: Peers,
        health: Health,
        helpers: Helpers,
        mender: Mender,
    ) -> std::io::Result<Snapshots> {
        let staging = Staging::new(data);
        staging.clear()?;
        Ok(Snapshots(Arc::new(Inner {
            staging,
            reader,
            raft,
            peers,
            health,
            runtime: tokio::runtime::Handle::current(),
            outgoing: Mutex::default(),
            incoming: Mutex::default(),
            helpers,
            mender,
        })))
    }

    fn outgoing(&self) -> MutexGuard<'_, BTreeMap<u64, Outgoing>> {
        let lock = self.0.outgoing.lock();
        lock.unwrap_or_else(PoisonError::into_inner)
    }

    fn incoming(&self) -> MutexGuard<'_, BTreeMap<u32, Incoming>> {
        let lock = self.0.incoming.lock();
        lock.unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, group: u32, input: SnapshotInput) {
        let _ = self.0.raft.send(RaftEvent::Snapshot { group, input });
    }

    fn helper(&self) -> Helper {
        self.0.helpers.helper()
    }

    /// Where snapshots are staged.
    pub fn staging(&self) -> &Staging {
        &self.0.staging
    }

    /// Ends all sends.
    pub fn close(&self) {
        let mut outgoing = self.outgoing();
        for outgoing in outgoing.values() {
            outgoing.dropped.cancel();
        }
        // Those that nobody asked for still hold the store.
        outgoing.clear();
    }

    /// Whether one more may be made.
    pub fn may_make(&self) -> bool {
        self.outgoing().len() < OUTGOING_MAX
    }

    /// A snapshot was made: its segments stay until it is sent or dropped.
    pub fn made(&self, id: u64, export: Export) {
        let segments = self.0.reader.segments();
        segments.pin(id, export.segments.iter().copied());
        let outgoing = Outgoing {
            total: export.body_bytes,
            export: Some(export),
            sent: Arc::default(),
            dropped: CancellationToken::new(),
        };
        self.outgoing().insert(id, outgoing);
    }

    /// Nobody needs it any more.
    pub fn drop_made(&self, id: u64) {
        let mut outgoing = self.outgoing();
        let Some(it) = outgoing.get(&id) else {
            return;
        };
        it.dropped.cancel();
        if it.export.is_some() {
            outgoing.remove(&id);
            drop(outgoing);
            self.0.reader.segments().unpin(id);
        }
    }

    /// Sends one that was made, in a task of its own.
    pub fn send(&self, group: u32, to: u64, id: u64, message: Message) {
        let report = Report {
            hub: self.clone(),
            group,
            to,
            id,
            staged: false,
        };
        let hub = self.clone();
        self.0.runtime.spawn(send::send(hub, report, message));
    }

    /// How far one is, for people.
    pub fn progress(&self, id: u64) -> String {
        let outgoing = self.outgoing();
        let Some(it) = outgoing.get(&id) else {
            return "snapshot".to_owned();
        };
        let sent = it.sent.load(Ordering::Relaxed);
        // The total is an estimate; who waits for the receiver's last fsync is not done yet.
        let percent = (sent * 100).checked_div(it.total).unwrap_or(0).min(99);
        format!("snapshot {percent} %, {} MiB", sent >> 20)
    }

    /// Octets that are staged.
    pub fn staged_bytes(&self) -> u64 {
        self.incoming().values().map(|it| it.octets).sum()
    }

    /// The replica for which something was done is no longer here, and another one of its group is not here yet.
    pub fn ownerless(&self, group: u32, input: SnapshotInput) {
        match input {
            SnapshotInput::Made { made, .. } => made.iter().for_each(|it| self.drop_made(it.id)),
            SnapshotInput::Staged(message) => {
                if let Ok(made) = crate::wire::snapshot::from_raft(message.get_snapshot()) {
                    self.discard(group, made.id);
                }
            }
            SnapshotInput::Progress { .. }
            | SnapshotInput::Sent { .. }
            | SnapshotInput::Installed { .. } => {}
        }
    }

    /// What is staged of a group is of no use, or is installed.
    pub fn discard(&self, group: u32, id: u64) {
        let mut incoming = self.incoming();
        if incoming.get(&group).is_some_and(|it| it.id == id) {
            if let Err(error) = self.0.staging.remove_group(group) {
                tracing::warn!(group, %error, "what was staged of a snapshot cannot be removed; the next start does it");
            }
            incoming.remove(&group);
        }
    }
}

/// Tells Raft how a send went, whatever happens to the task.
struct Report {
    hub: Snapshots,
    group: u32,
    to: u64,
    id: u64,
    staged: bool,
}

impl Drop for Report {
    fn drop(&mut self) {
        self.hub.outgoing().remove(&self.id);
        self.hub.0.reader.segments().unpin(self.id);
        let (to, id, staged) = (self.to, self.id, self.staged);
        let outcome = if staged { "sent" } else { "failed" };
        metrics::counter!("postroad_snapshots_total", "outcome" => outcome).increment(1);
        self.hub
            .tell(self.group, SnapshotInput::Sent { to, id, staged });
    }
}
