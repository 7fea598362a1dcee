//! What a queue node is started with.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;

use proto::NodeTls;
use tokio::sync::watch;

use crate::identity::ClusterId;

/// What an empty data directory means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InitialState {
    /// A first start: this node is one of those of the initial cluster.
    New,
    /// This node joins a cluster that exists; it waits to be added.
    Existing,
}

/// How long the log is kept for a replica that does not answer. Beyond both it gets a snapshot when it comes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retention {
    /// Octets of log that are kept for lagging replicas only; `None`: a tenth of the disk, at most 20 GiB.
    pub log_bytes: Option<u64>,
    /// A replica that was heard of within this time still counts: what it lacks is soon sent.
    pub silence: std::time::Duration,
}

impl Default for Retention {
    fn default() -> Retention {
        Retention {
            log_bytes: None,
            // Longer than a restart takes, much shorter than a disk takes to fill.
            silence: std::time::Duration::from_secs(60),
        }
    }
}

impl Retention {
    /// [`Retention::silence`] as groups count it.
    pub fn silent_ticks(&self) -> u64 {
        self.silence.as_millis() as u64 / crate::node::TICK_MS
    }
}

/// The settings of a queue node.
#[derive(Clone)]
pub struct Config {
    /// Data directory: identity, log and metadata.
    pub dir: PathBuf,
    /// Names this node's disk; never reused.
    pub node: u64,
    /// The cluster.
    pub cluster_id: ClusterId,
    /// Where other replicas connect.
    pub listen_peer: SocketAddr,
    /// Where edges, delivery nodes and administrators connect.
    pub listen_client: SocketAddr,
    /// What other replicas are told to connect to.
    pub advertise_peer: String,
    /// What clients are told to connect to.
    pub advertise_client: String,
    /// The first nodes with their peer addresses; the same on each of them.
    pub initial_cluster: BTreeMap<u64, String>,
    /// What an empty data directory means.
    pub initial_state: InitialState,
    /// Shards, a power of two up to 256; fixed at the creation of the cluster.
    pub shards: u32,
    /// Replicas of each group.
    pub replication_factor: u32,
    /// This node's certificate.
    pub tls: Arc<NodeTls>,
    /// What of the disk the queue may use, octets; `None`: the file system.
    pub disk_bytes: Option<u64>,
    /// Octets of log a second at most, for a device that is shared with others; `None`: as fast as it goes.
    pub disk_bytes_per_second: Option<NonZeroU64>,
    /// Octets of a log segment.
    pub segment_bytes: u64,
    /// How long the log is kept for replicas that lag.
    pub retention: Retention,
    /// When deferred mail is tried again and given up, as it changes.
    pub retry: watch::Receiver<queue::retry::Policy>,
    /// The name that reports are signed with.
    pub hostname: String,
    /// Zone of this node; may be empty.
    pub zone: String,
    /// Versions of the state machine that this program says it knows: [`crate::wire::log::STATE_MACHINE_VERSION`]. A lower
    /// one makes it behave as an older program, for trials of mixed clusters.
    pub state_machine: u32,
}

/// Why a queue node does not run, or runs no longer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting makes no sense.
    #[error("{0}")]
    Setting(String),
    /// The data directory is not this node's, or another process has it.
    #[error("{0}")]
    Identity(String),
    /// The other nodes refuse this one.
    #[error("this node is refused: {0}")]
    Refused(String),
    /// The log cannot be opened.
    #[error(transparent)]
    Log(#[from] crate::log::OpenError),
    /// The metadata cannot be opened.
    #[error(transparent)]
    Store(#[from] crate::state::StoreError),
    /// A group cannot begin.
    #[error(transparent)]
    Group(#[from] crate::node::StartError),
    /// What this node promised is damaged or gone. It must not take part with what is left.
    #[error("queue node {node} does not start: {source}")]
    Damaged {
        /// Which.
        node: u64,
        /// What was found, where, and what to do.
        source: Box<Error>,
    },
    /// What was recovered does not fit together.
    #[error("{0}")]
    Recovered(String),
    /// An address cannot be listened on.
    #[error("cannot listen on {address} for {purpose}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// `replicas` or `clients`.
        purpose: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The system refuses a thread or a directory.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// Why.
        source: std::io::Error,
    },
    /// It stopped for good while it ran.
    #[error("the replica node stopped: {0}")]
    Stopped(String),
}

impl Config {
    /// What the cluster is made with, if these are first nodes.
    pub fn cluster(&self) -> queue::control::Cluster {
        queue::control::Cluster {
            id: self.cluster_id.0,
            shards: self.shards,
            replication_factor: self.replication_factor,
        }
    }

    /// Checks the settings against each other.
    ///
    /// # Errors
    /// [`Error::Setting`] says what to change.
    pub fn validate(&self) -> Result<(), Error> {
        let setting = |text: String| Err(Error::Setting(text));
        if self.node == 0 || self.node > u64::from(u32::MAX) {
            return setting(format!(
                "--node-id {} is out of range: give 1 to 4294967295",
                self.node
            ));
        }
        if !self.shards.is_power_of_two() || self.shards > 256 {
            return setting(format!(
                "--shards {} is no power of two up to 256",
                self.shards
            ));
        }
        if self.initial_state == InitialState::New && !self.initial_cluster.contains_key(&self.node)
        {
            return setting(format!(
                "--initial-cluster does not name node {}; give all first nodes as ID=HOST:PORT, separated by commas",
                self.node
            ));
        }
        let first = self.initial_cluster.len() as u32;
        if !matches!(self.replication_factor, 1 | 3 | 5) {
            return setting(format!(
                "--replication-factor {} is not 1, 3 or 5",
                self.replication_factor
            ));
        }
        if self.initial_state == InitialState::New && self.replication_factor > first {
            return setting(format!(
                "--initial-cluster names {first} node(s), but --replication-factor is {}: fewer nodes than copies; name more \
                 nodes or ask for fewer copies",
                self.replication_factor
            ));
        }
        Ok(())
    }
}
