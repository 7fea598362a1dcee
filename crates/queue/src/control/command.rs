//! The entries of the control group.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Cluster, NodeRow, Rest};
use crate::config::Put;
use crate::version;

/// An entry of the control group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ControlCommand {
    /// The first of all; a later one changes nothing.
    CreateCluster {
        /// What it is made with.
        cluster: Cluster,
        /// The nodes of `--initial-cluster`: each announces itself once, in any order.
        initial_nodes: Vec<u64>,
    },
    /// A node tells where it is, at each of its starts.
    AnnounceNode {
        /// Its id: names a disk, never used again for another.
        node: u64,
        /// What it says.
        row: NodeRow,
    },
    /// A node may join: it is waited for at this address. Of a node that is known, address and zone change.
    AddNode {
        /// Its id.
        node: u64,
        /// Host and port for the other nodes.
        peer_address: Arc<str>,
        /// Host and port for clients; may be empty until it says so itself.
        client_address: Arc<str>,
        /// May be empty.
        zone: Arc<str>,
    },
    /// A node gets no replicas any more and loses those it has.
    RemoveNode {
        /// Its id.
        node: u64,
    },
    /// A node that was removed has no replicas left: it is gone, and its id never comes back.
    ForgetNode {
        /// Its id.
        node: u64,
    },
    /// Where a group shall be. Nothing happens when it was placed anew since the decision.
    Place {
        /// Which group.
        group: u32,
        /// [`super::Placement::version`] that the decision saw.
        version: u64,
        /// Nodes with a replica that votes.
        voters: BTreeSet<u64>,
        /// Who should lead.
        leader: u64,
        /// The group's members were exactly those of the placement before. If not, whoever was to leave may still be one.
        settled: bool,
    },
    /// A node should not lead for a while.
    Rest {
        /// Its id.
        node: u64,
        /// For how long.
        rest: Rest,
    },
    /// It may lead again.
    EndRest {
        /// Its id.
        node: u64,
    },
    /// Every group has so many copies from now on; they come and go one by one.
    SetReplicationFactor {
        /// 1, 3 or 5.
        factor: u32,
    },
    /// From the next entry on the state machine behaves as this version.
    SetVersion {
        /// Which.
        version: u32,
    },
    /// Every replica digests the same state at this entry.
    VerifyDigest {
        /// The key of the last document that the digest before had; empty: begin.
        from: Arc<[u8]>,
        /// How many documents.
        rows: u32,
    },
    /// A writer's change to what is declared.
    PutConfig(Arc<Put>),
    /// A remark for the record.
    Note {
        /// Who.
        actor: Arc<str>,
        /// What.
        text: Arc<str>,
    },
}

impl ControlCommand {
    /// The version of the state machine that brought this command: a program that does not know it cannot read the entry.
    pub fn since(&self) -> u32 {
        match self {
            ControlCommand::SetVersion { version } => (*version).max(version::DOCUMENTS),
            ControlCommand::PutConfig(_)
            | ControlCommand::VerifyDigest { .. }
            | ControlCommand::SetReplicationFactor { .. } => version::DOCUMENTS,
            _ => 1,
        }
    }
}
