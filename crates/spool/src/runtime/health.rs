//! Whether a replica node is well, and why it stopped.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::digests::Judgement;
use crate::collect::Space;
use crate::log::DiskUse;

/// Shared by all threads of a node.
#[derive(Clone)]
pub struct Health {
    stopped: Arc<watch::Sender<Option<String>>>,
    reopen: Arc<std::sync::atomic::AtomicBool>,
    quarantined: Arc<std::sync::atomic::AtomicBool>,
    over_budget: Arc<std::sync::atomic::AtomicBool>,
    disk: Arc<Mutex<DiskUse>>,
    space: Arc<Mutex<Space>>,
}

impl Health {
    /// A node that is well.
    pub fn new() -> Health {
        Health {
            stopped: Arc::new(watch::channel(None).0),
            reopen: Arc::default(),
            quarantined: Arc::default(),
            over_budget: Arc::default(),
            disk: Arc::default(),
            space: Arc::default(),
        }
    }

    /// The replica node stops for good: its groups close, nothing more is sent. The first such reason stands.
    pub fn stop_for_good(&self, reason: &str) {
        self.stop(reason, false);
    }

    /// The replica node closes now, to be opened again: there was no space, and a half-written batch is best resolved
    /// by recovery. Nothing is opened again over what stopped for good, before this or while it closes.
    pub fn reopen(&self, reason: &str) {
        self.stop(reason, true);
    }

    fn stop(&self, reason: &str, reopens: bool) {
        self.stopped.send_if_modified(|stopped| {
            let stands = stopped.is_some() && (reopens || !self.wants_reopen());
            if stands {
                return false;
            }
            tracing::error!(reason, "this replica node stops");
            self.reopen
                .store(reopens, std::sync::atomic::Ordering::Relaxed);
            *stopped = Some(reason.to_owned());
            true
        });
    }

    /// What a comparison of rows with the other replicas came to. `true`: this node stops, and must not start again.
    pub fn judge(&self, group: u32, judgement: &Judgement) -> bool {
        let count = |what| {
            metrics::counter!("postroad_digests_differ_total", "who" => what).increment(1);
        };
        match judgement {
            Judgement::Fine => {}
            Judgement::OtherDiffers { index, node } => {
                count("other");
                tracing::error!(
                    group,
                    index,
                    node,
                    "the rows of another node's replica differ from those of the majority; it stops when it hears of that"
                );
            }
            Judgement::Split { index } => {
                count("split");
                tracing::error!(
                    group,
                    index,
                    "the replicas of this group have different rows and no majority of them agrees: stop the queue, keep \
                     copies of all data directories, and find out which one is right before anything is deleted"
                );
            }
            Judgement::OwnDiffers { index, with } => {
                count("own");
                self.quarantined
                    .store(true, std::sync::atomic::Ordering::Relaxed);
                self.stop_for_good(&format!(
                    "at entry {index} of group {group} this replica's rows differ from those of nodes {with:?}, which \
                     agree: its state machine has drifted, or its metadata are damaged. It must not serve again: start a \
                     node with a new node id and an empty data directory in its place, and keep this directory for \
                     whoever looks for the cause"
                ));
                return true;
            }
        }
        false
    }

    /// Whether it must not start again.
    pub fn quarantined(&self) -> bool {
        self.quarantined.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Whether it is to be opened again.
    pub fn wants_reopen(&self) -> bool {
        self.reopen.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Why it stopped, if it did.
    pub fn stopped(&self) -> Option<String> {
        self.stopped.borrow().clone()
    }

    /// To wait for it.
    pub fn watch(&self) -> watch::Receiver<Option<String>> {
        self.stopped.subscribe()
    }

    /// Whether the log kept for lagging followers alone has used up its budget.
    pub fn set_over_budget(&self, over: bool) {
        self.over_budget
            .store(over, std::sync::atomic::Ordering::Relaxed);
    }

    /// See [`Health::set_over_budget`].
    pub fn over_budget(&self) -> bool {
        self.over_budget.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// What the log thread saw last.
    pub fn set_disk(&self, disk: DiskUse) {
        *self.disk.lock().unwrap_or_else(PoisonError::into_inner) = disk;
    }

    /// What the collector saw last.
    pub fn set_space(&self, space: Space) {
        *self.space.lock().unwrap_or_else(PoisonError::into_inner) = space;
    }

    /// What the collector saw last.
    pub fn space(&self) -> Space {
        *self.space.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the log thread saw last.
    pub fn disk(&self) -> DiskUse {
        *self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Health {
    fn default() -> Health {
        Health::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A failed fsync while a snapshot was installed: the log said that it stops for good, the installation that it opens again,
    /// and it was opened again.
    #[test]
    fn an_end_for_good_counts_whatever_else_wants_to_open_again() {
        let health = Health::new();
        health.stop_for_good("fsync");
        health.reopen("no room");
        assert_eq!(health.stopped().as_deref(), Some("fsync"));
        assert!(!health.wants_reopen());

        let health = Health::new();
        health.reopen("no room");
        assert!(health.wants_reopen());
        health.stop_for_good("fsync");
        health.stop_for_good("another");
        assert_eq!(health.stopped().as_deref(), Some("fsync"));
        assert!(!health.wants_reopen());
    }
}
