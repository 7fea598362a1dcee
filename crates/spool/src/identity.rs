//! Which store this is: the `IDENTITY` file, the lock on the data directory, and the decisions of a first start.
//!
//! A node id names a disk. The incarnation, random and made with the directory, is how a disk that was lost and
//! replaced is told from the one that voted.

mod file;
mod roster;
mod start;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

pub use file::{DirError, Lock};
pub use roster::Roster;
pub use start::{FirstStart, Introduction, answer, first_start};

/// How far a store is in the life of its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreState {
    /// Its directory is new: it neither votes nor campaigns, and counts as no data.
    Starting,
    /// Its directory is new and waits to be added to a cluster that runs.
    Joining,
    /// It takes part.
    Member,
}

/// What the `IDENTITY` file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster that the store belongs to.
    pub cluster: ClusterId,
    /// The node id, 1 to 2^32-1, never used again for another disk.
    pub node: u64,
    /// Random, made with the directory.
    pub incarnation: u128,
    /// Starting or member.
    pub state: StoreState,
    /// The number of shards that the cluster was made with.
    pub shards: u32,
    /// The incarnation of every peer, recorded at first contact.
    pub known: BTreeMap<u64, u128>,
}

/// Who a message comes from, by its node id and incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contact {
    /// The store that has always had this node id.
    Known,
    /// Nothing is recorded of this node id: record it, durably, before anything is answered.
    First,
    /// Another store under a node id that is taken: drop its messages.
    Foreign,
}

impl Identity {
    /// A store that begins; `incarnation` is random.
    pub fn starting(cluster: ClusterId, node: u64, incarnation: u128, shards: u32) -> Self {
        Self {
            cluster,
            node,
            incarnation,
            state: StoreState::Starting,
            shards,
            known: BTreeMap::new(),
        }
    }

    /// Whether messages of `incarnation` under the id `node` are to be listened to.
    pub fn contact(&self, node: u64, incarnation: u128) -> Contact {
        match self.known.get(&node) {
            None => Contact::First,
            Some(known) if *known == incarnation => Contact::Known,
            Some(_) => Contact::Foreign,
        }
    }
}

/// The cluster's id, a UUID (RFC 9562).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterId(pub [u8; 16]);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a cluster id is a UUID, such as 6f1d2c3b-0a4e-4b8e-9d57-0e6f3c2b1a09")]
pub struct NotACluster;

impl FromStr for ClusterId {
    type Err = NotACluster;

    fn from_str(text: &str) -> Result<Self, NotACluster> {
        let dashes_stand_right = text.len() == 36
            && [8, 13, 18, 23]
                .iter()
                .all(|at| text.as_bytes()[*at] == b'-');
        let hex: String = text.chars().filter(|c| *c != '-').collect();
        if !dashes_stand_right || hex.len() != 32 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(NotACluster);
        }
        u128::from_str_radix(&hex, 16)
            .map(|id| Self(id.to_be_bytes()))
            .map_err(|_| NotACluster)
    }
}
