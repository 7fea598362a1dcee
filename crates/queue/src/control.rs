//! The state machine of the control group (group 0): which cluster this is, how many shards it has, and which nodes
//! there are. Small, so it is kept in memory whole and persisted as one row.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Nodes that the control group keeps. Far above any cluster; it bounds the row.
pub const NODES_MAX: usize = 1024;

/// Highest id of a node: peer ids of the Raft groups are built from it in 64 bits.
pub const NODE_MAX: u64 = u32::MAX as u64;

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
    /// A remark for the record.
    Note {
        /// Who.
        actor: Arc<str>,
        /// What.
        text: Arc<str>,
    },
}

/// What a cluster is made with, for good.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cluster {
    /// A UUID.
    pub id: [u8; 16],
    /// A power of two; a message's shard is the low byte of its ULID modulo this.
    pub shards: u32,
    /// Replicas of each group.
    pub replication_factor: u32,
}

/// A queue node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeRow {
    /// Random, of its log: a wiped disk has another.
    pub incarnation: [u8; 16],
    /// Host and port for the other nodes.
    pub peer_address: Arc<str>,
    /// Host and port for clients.
    pub client_address: Arc<str>,
    /// Zone that it runs in; may be empty.
    pub zone: Arc<str>,
}

/// All that the control group knows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ControlState {
    /// `None` until the cluster was created.
    pub cluster: Option<Cluster>,
    /// Nodes by id.
    pub nodes: BTreeMap<u64, NodeRow>,
    /// First nodes that did not announce themselves yet.
    pub expected: BTreeSet<u64>,
    /// The highest id that was ever used, also by nodes that are gone.
    pub highest_node: u64,
}

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
    /// A node is not taken.
    Refused {
        /// Which.
        node: u64,
        /// Why.
        why: Refusal,
    },
}

/// Why a node is not taken.
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
    /// No CreateCluster came before.
    #[error("node {node} announced itself before the cluster was created; it tries again")]
    NoCluster {
        /// Which.
        node: u64,
    },
}

impl ControlState {
    /// Applies one entry; total and deterministic.
    pub fn apply(&mut self, command: &ControlCommand) -> Vec<ControlEffect> {
        match command {
            ControlCommand::CreateCluster {
                cluster,
                initial_nodes,
            } => vec![self.create(*cluster, initial_nodes)],
            ControlCommand::AnnounceNode { node, row } => vec![match self.announce(*node, row) {
                Ok(()) => ControlEffect::Announced { node: *node },
                Err(why) => ControlEffect::Refused { node: *node, why },
            }],
            ControlCommand::Note { .. } => Vec::new(),
        }
    }

    fn create(&mut self, cluster: Cluster, initial_nodes: &[u64]) -> ControlEffect {
        match self.cluster {
            Some(first) => ControlEffect::AlreadyCreated(first),
            None => {
                self.cluster = Some(cluster);
                self.expected = initial_nodes.iter().copied().take(NODES_MAX).collect();
                ControlEffect::Created(cluster)
            }
        }
    }

    fn announce(&mut self, node: u64, row: &NodeRow) -> Result<(), Refusal> {
        let highest = self.highest_node;
        if node == 0 || node > NODE_MAX {
            return Err(Refusal::OutOfRange { node });
        }
        if self.cluster.is_none() {
            return Err(Refusal::NoCluster { node });
        }
        match self.nodes.get(&node) {
            Some(known) if known.incarnation != row.incarnation => {
                return Err(Refusal::OtherDisk { node, highest });
            }
            Some(_) => {}
            None if node <= highest && !self.expected.contains(&node) => {
                return Err(Refusal::Reused { node, highest });
            }
            None if self.nodes.len() >= NODES_MAX => return Err(Refusal::TooMany { node }),
            None => {}
        }
        self.expected.remove(&node);
        self.nodes.insert(node, row.clone());
        self.highest_node = highest.max(node);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(disk: u8) -> NodeRow {
        NodeRow {
            incarnation: [disk; 16],
            peer_address: "a:7000".into(),
            client_address: "a:7100".into(),
            zone: "".into(),
        }
    }

    fn announce(state: &mut ControlState, node: u64, disk: u8) -> ControlEffect {
        state
            .apply(&ControlCommand::AnnounceNode {
                node,
                row: row(disk),
            })
            .remove(0)
    }

    fn created(initial_nodes: &[u64]) -> ControlState {
        let mut state = ControlState::default();
        let cluster = Cluster {
            id: [7; 16],
            shards: 4,
            replication_factor: 3,
        };
        let create = ControlCommand::CreateCluster {
            cluster,
            initial_nodes: initial_nodes.to_vec(),
        };
        assert_eq!(state.apply(&create), [ControlEffect::Created(cluster)]);
        state
    }

    #[test]
    fn the_first_create_wins() {
        let mut state = created(&[]);
        let first = state.cluster.expect("created");
        let create = ControlCommand::CreateCluster {
            cluster: Cluster {
                id: [8; 16],
                ..first
            },
            initial_nodes: vec![1],
        };
        assert_eq!(state.apply(&create), [ControlEffect::AlreadyCreated(first)]);
        assert_eq!((state.cluster, state.expected.len()), (Some(first), 0));
    }

    #[test]
    fn a_wiped_disk_and_an_unknown_lower_id_are_refused_and_a_higher_one_is_taken() {
        let mut state = created(&[]);
        assert_eq!(
            announce(&mut state, 3, 1),
            ControlEffect::Announced { node: 3 }
        );
        assert_eq!(
            announce(&mut state, 3, 1),
            ControlEffect::Announced { node: 3 }
        );
        let other = Refusal::OtherDisk {
            node: 3,
            highest: 3,
        };
        assert_eq!(
            announce(&mut state, 3, 2),
            ControlEffect::Refused {
                node: 3,
                why: other
            }
        );
        let reused = Refusal::Reused {
            node: 2,
            highest: 3,
        };
        assert_eq!(
            announce(&mut state, 2, 2),
            ControlEffect::Refused {
                node: 2,
                why: reused
            }
        );
        assert_eq!(
            announce(&mut state, 4, 2),
            ControlEffect::Announced { node: 4 }
        );
        assert_eq!(state.highest_node, 4);
    }

    #[test]
    fn the_first_nodes_announce_themselves_in_any_order() {
        let mut state = created(&[1, 2, 3]);
        for node in [3, 1, 2] {
            assert_eq!(
                announce(&mut state, node, node as u8),
                ControlEffect::Announced { node }
            );
        }
        let why = Refusal::OutOfRange { node: 0 };
        assert_eq!(
            announce(&mut state, 0, 0),
            ControlEffect::Refused { node: 0, why }
        );
    }

    #[test]
    fn nobody_announces_himself_before_the_cluster_exists() {
        let why = Refusal::NoCluster { node: 1 };
        assert_eq!(
            announce(&mut ControlState::default(), 1, 1),
            ControlEffect::Refused { node: 1, why }
        );
    }
}
