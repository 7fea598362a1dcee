//! What an entry of the control group did, and why something is refused, in words for a person.

use super::{Cluster, NODES_MAX};

/// What an entry of the control group did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ControlEffect {
    /// The cluster exists now.
    Created(Cluster),
    /// It existed before; as it is.
    AlreadyCreated(Cluster),
    /// A node is known, with what it said.
    Announced {
        /// Which.
        node: u64,
    },
    /// A node is waited for, or its address changed.
    Added {
        /// Which.
        node: u64,
    },
    /// A node is on its way out.
    Leaving {
        /// Which.
        node: u64,
    },
    /// A node is gone, or was so before.
    Gone {
        /// Which.
        node: u64,
    },
    /// A group was placed anew.
    Placed {
        /// Which.
        group: u32,
    },
    /// A node rests, or no longer.
    Rested {
        /// Which.
        node: u64,
    },
    /// Every group is to have so many copies.
    Copies {
        /// So many.
        factor: u32,
    },
    /// A node is not taken, or not let go; or the number of copies is not possible (node 0).
    Refused {
        /// Which.
        node: u64,
        /// Why.
        why: Refusal,
    },
}

/// Why a node is not taken, or not let go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// The disk behind this id is another one.
    #[error(
        "node {node} was known with another disk: its log was lost or replaced. A node id names a disk and is never used \
         again; start it with an empty data directory, --initial-cluster-state existing and a new --node-id above {highest}"
    )]
    OtherDisk {
        /// Which.
        node: u64,
        /// Highest id that was ever used.
        highest: u64,
    },
    /// The id may have belonged to a node that is gone.
    #[error(
        "node id {node} is not known and not above {highest}, the highest ever used; start it with a new --node-id"
    )]
    Reused {
        /// Which.
        node: u64,
        /// Highest id that was ever used.
        highest: u64,
    },
    /// Ids are 1 to 2^32 - 1.
    #[error("node id {node} is out of range: give 1 to 4294967295")]
    OutOfRange {
        /// Which.
        node: u64,
    },
    /// More than [`NODES_MAX`].
    #[error(
        "node {node} is one more than the {NODES_MAX} that a cluster can have; remove nodes that are gone"
    )]
    TooMany {
        /// Which.
        node: u64,
    },
    /// It announced itself, and nobody added it.
    #[error(
        "node {node} was not added to this cluster; add it (postroad members add {node}), then start it with \
         --initial-cluster-state existing"
    )]
    NotAdded {
        /// Which.
        node: u64,
    },
    /// It is on its way out.
    #[error(
        "node {node} is being removed and its id is never used again; add the new node under an id above {highest}"
    )]
    Leaving {
        /// Which.
        node: u64,
        /// Highest id that was ever used.
        highest: u64,
    },
    /// There would be fewer nodes than copies.
    #[error(
        "removing node {node} leaves {left} node(s) for the {factor} copies of {}: add another node first \
         (postroad members add)", GroupName(*group)
    )]
    TooFewNodes {
        /// Which.
        node: u64,
        /// The first group that has a replica there.
        group: u32,
        /// Nodes that would be left.
        left: usize,
        /// Copies.
        factor: u32,
    },
    /// A majority of an even number is no smaller than that of the next odd one.
    #[error("a group has 1, 3 or 5 copies, and not {factor}")]
    BadFactor {
        /// What was asked for.
        factor: u32,
    },
    /// There are fewer nodes than copies.
    #[error(
        "{factor} copies of every group need {factor} nodes, and {nodes} can have one: add nodes first (postroad members add)"
    )]
    TooFewForCopies {
        /// What was asked for.
        factor: u32,
        /// Nodes that can be given a copy.
        nodes: usize,
    },
    /// Nobody knows it.
    #[error("node {node} is not known and never was; see `postroad members list`")]
    Unknown {
        /// Which.
        node: u64,
    },
    /// No CreateCluster came before.
    #[error("node {node} announced itself before the cluster was created; it tries again")]
    NoCluster {
        /// Which.
        node: u64,
    },
}

/// A group's name for people: shard s is group s + 1.
#[derive(Clone, Copy, Debug)]
pub struct GroupName(pub u32);

impl std::fmt::Display for GroupName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            0 => f.write_str("the control group"),
            group => write!(f, "shard {}", group - 1),
        }
    }
}
