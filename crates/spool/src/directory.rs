//! What every thread of a node needs to know of the others: who leads which group, where nodes are, whose disk is
//! full, what their wall clocks say. Read at every redirect, written by the Raft thread and the transport.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};
use std::time::Instant;

use bytes::Bytes;
use proto::v1;
use tokio::sync::watch;

use crate::runtime::{Digests, Judgement};

/// A node that was heard of within this time is up: every stream says something each second.
const HEARD_LATELY: std::time::Duration = std::time::Duration::from_secs(3);

/// A node id is the upper part of a Raft peer id; the lower part counts how often its group was placed there before.
const PLACEMENTS_BITS: u32 = 20;

/// The Raft peer id of a node's first replica of a group.
pub fn peer_id(node: u64) -> u64 {
    node << PLACEMENTS_BITS
}

/// The node of a Raft peer id.
pub fn node_of(peer: u64) -> u64 {
    peer >> PLACEMENTS_BITS
}

/// Shared by all threads of a node.
#[derive(Clone)]
pub struct Directory {
    inner: Arc<RwLock<Inner>>,
    topology: Arc<watch::Sender<v1::Topology>>,
}

struct Inner {
    own: u64,
    nodes: BTreeMap<u64, NodeInfo>,
    leaders: BTreeMap<u32, Leader>,
    voters: BTreeMap<u32, Vec<u64>>,
    cluster_time_ms: u64,
    digests: Digests,
}

#[derive(Clone, Copy, Default, PartialEq)]
struct Leader {
    term: u64,
    node: u64,
}

#[derive(Clone, Default)]
struct NodeInfo {
    client_address: String,
    full: bool,
    /// Newest version of the state machine that its program knows; 0: not heard of yet.
    state_machine: u32,
    wall: Option<(u64, Instant)>,
}

impl Directory {
    /// Of the node `own` in a cluster with that id and count of shards.
    pub fn new(own: u64, cluster_id: Bytes, shards: u32) -> Directory {
        let topology = v1::Topology {
            cluster_id,
            shards,
            ..Default::default()
        };
        Directory {
            inner: Arc::new(RwLock::new(Inner {
                own,
                nodes: BTreeMap::new(),
                leaders: BTreeMap::new(),
                voters: BTreeMap::new(),
                cluster_time_ms: 0,
                digests: Digests::default(),
            })),
            topology: Arc::new(watch::channel(topology).0),
        }
    }

    /// This node.
    pub fn own(&self) -> u64 {
        self.read(|i| i.own)
    }

    /// Where clients find a node.
    pub fn set_client_address(&self, node: u64, address: &str) {
        let changed = self.write(|i| {
            let info = i.nodes.entry(node).or_default();
            let changed = info.client_address != address;
            info.client_address = address.to_owned();
            changed
        });
        if changed {
            self.publish();
        }
    }

    /// The nodes that vote in a group.
    pub fn set_voters(&self, group: u32, nodes: Vec<u64>) {
        self.write(|i| i.voters.insert(group, nodes));
    }

    /// Who leads a group; `node` 0: nobody known.
    pub fn set_leader(&self, group: u32, term: u64, node: u64) {
        let changed = self.write(|i| {
            i.leaders.insert(group, Leader { term, node }) != Some(Leader { term, node })
        });
        if changed {
            self.publish();
        }
    }

    /// Whether this node leads any group.
    pub fn leads_any(&self) -> bool {
        self.read(|i| i.leaders.values().any(|l| l.node == i.own))
    }

    /// The client address of a group's leader; empty when unknown or when it is this very node.
    pub fn leader_address(&self, group: u32) -> String {
        self.read(|i| {
            let node = i.leaders.get(&group).map_or(0, |l| l.node);
            if node == i.own {
                return String::new();
            }
            i.nodes
                .get(&node)
                .map(|n| n.client_address.clone())
                .unwrap_or_default()
        })
    }

    /// What a peer's frame said of its node.
    pub fn heard(&self, node: u64, wall_ms: u64, full: bool, now: Instant) -> bool {
        self.write(|i| {
            let info = i.nodes.entry(node).or_default();
            info.wall = Some((wall_ms, now));
            std::mem::replace(&mut info.full, full) != full
        })
    }

    /// What a peer's frame said of its program. 0 on the wire stands for the first version.
    pub fn heard_state_machine(&self, node: u64, version: u32) {
        self.write(|i| i.nodes.entry(node).or_default().state_machine = version.max(1));
    }

    /// The newest version of the state machine that this program says it knows.
    pub fn set_own_state_machine(&self, version: u32) {
        self.heard_state_machine(self.own(), version);
    }

    /// See [`Directory::set_own_state_machine`].
    pub fn own_state_machine(&self) -> u32 {
        self.read(|i| i.nodes.get(&i.own).map_or(0, |n| n.state_machine))
    }

    /// The newest version of the state machine that the program of every voter of a group knows; 1 while one of them was
    /// not heard of.
    pub fn members_know(&self, group: u32) -> u32 {
        self.read(|i| {
            let voters = i.voters.get(&group).map(Vec::as_slice).unwrap_or_default();
            let known = voters
                .iter()
                .map(|node| i.nodes.get(node).map_or(0, |n| n.state_machine));
            known.min().unwrap_or_default().max(1)
        })
    }

    /// `node` digested rows at an entry of a group: what that means for this node.
    pub fn digested(&self, group: u32, index: u64, node: u64, digest: [u8; 16]) -> Judgement {
        self.write(|i| {
            let voters = i.voters.get(&group).map(Vec::as_slice).unwrap_or_default();
            i.digests.found(i.own, voters, (group, index), node, digest)
        })
    }

    /// What this node tells the others of its own rows.
    pub fn own_digests(&self) -> Vec<v1::RowsDigest> {
        let own = self.read(|i| i.digests.own(i.own));
        own.into_iter()
            .map(|(group, index, digest)| v1::RowsDigest {
                group,
                index,
                digest: Bytes::copy_from_slice(&digest),
            })
            .collect()
    }

    /// Whether a frame of the node came within the last seconds.
    pub fn heard_lately(&self, node: u64, now: Instant) -> bool {
        let lately = |at: Instant| now.saturating_duration_since(at) < HEARD_LATELY;
        self.read(|i| {
            i.nodes
                .get(&node)
                .and_then(|n| n.wall)
                .is_some_and(|(_, at)| lately(at))
        })
    }

    /// This node's own disk.
    pub fn set_own_full(&self, full: bool) {
        self.write(|i| {
            let own = i.own;
            i.nodes.entry(own).or_default().full = full;
        });
    }

    /// Whether this node's disk takes no more bodies.
    pub fn own_full(&self) -> bool {
        self.read(|i| i.nodes.get(&i.own).is_some_and(|n| n.full))
    }

    /// Whether a majority of a group's replicas is full: then it takes no more mail. A group with a single replica
    /// is full when that one is.
    pub fn majority_full(&self, group: u32) -> bool {
        self.read(|i| {
            let Some(voters) = i.voters.get(&group) else {
                return false;
            };
            let full = voters
                .iter()
                .filter(|n| i.nodes.get(n).is_some_and(|n| n.full))
                .count();
            // With a majority full, no majority is left that could take it: n - full < majority.
            full > 0 && voters.len() - full < voters.len() / 2 + 1
        })
    }

    /// The other voters' wall clocks, carried forward to `now`, in milliseconds since the epoch.
    pub fn walls(&self, group: u32, now: Instant) -> Vec<u64> {
        self.read(|i| {
            let voters = i.voters.get(&group).map(Vec::as_slice).unwrap_or_default();
            let others = voters.iter().filter(|n| **n != i.own);
            others
                .filter_map(|n| i.nodes.get(n)?.wall)
                // A node that has died says nothing of the time any more.
                .filter(|(_, at)| now.saturating_duration_since(*at) < HEARD_LATELY)
                .map(|(ms, at)| ms + now.saturating_duration_since(at).as_millis() as u64)
                .collect()
        })
    }

    /// What clients are told: now, and on every change.
    pub fn watch(&self) -> watch::Receiver<v1::Topology> {
        self.topology.subscribe()
    }

    /// The cluster time of a shard that this node leads, for the topology.
    pub fn set_cluster_time(&self, ms: u64) {
        self.write(|i| i.cluster_time_ms = ms);
    }

    /// Publishes the topology anew; called on changes and every five seconds.
    pub fn publish(&self) {
        let (groups, nodes, time) = self.read(|i| {
            let address = |n: u64| {
                i.nodes
                    .get(&n)
                    .map(|n| n.client_address.clone())
                    .unwrap_or_default()
            };
            let groups = i.leaders.iter().map(|(group, l)| v1::GroupLeader {
                group: *group,
                term: l.term,
                leader_node: l.node,
                leader_address: address(l.node),
            });
            let nodes = i.nodes.iter().filter(|(_, n)| !n.client_address.is_empty());
            let nodes = nodes.map(|(id, n)| v1::NodeAddress {
                node: *id,
                client_address: n.client_address.clone(),
            });
            (
                groups.collect::<Vec<_>>(),
                nodes.collect::<Vec<_>>(),
                i.cluster_time_ms,
            )
        });
        self.topology.send_modify(|t| {
            t.groups = groups;
            t.nodes = nodes;
            t.cluster_time_ms = time;
        });
    }

    fn read<T>(&self, f: impl FnOnce(&Inner) -> T) -> T {
        f(&self
            .inner
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn write<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self
            .inner
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Directory {
        let d = Directory::new(1, Bytes::from_static(&[0; 16]), 4);
        d.set_voters(1, vec![1, 2, 3]);
        d
    }

    #[test]
    fn one_full_disk_of_three_is_no_reason_to_refuse_two_are() {
        let d = three();
        d.set_own_full(true);
        assert!(!d.majority_full(1));
        d.heard(2, 0, true, Instant::now());
        assert!(d.majority_full(1));
        d.heard(2, 0, false, Instant::now());
        assert!(!d.majority_full(1));
    }

    #[test]
    fn a_redirect_names_the_leader_but_never_this_node() {
        let d = three();
        d.set_client_address(2, "two:7100");
        d.set_client_address(1, "one:7100");
        d.set_leader(1, 5, 2);
        assert_eq!(d.leader_address(1), "two:7100");
        d.set_leader(1, 6, 1);
        assert_eq!(d.leader_address(1), "");
    }

    #[test]
    fn the_oldest_program_among_the_voters_counts_and_silence_is_old() {
        let d = three();
        d.set_own_state_machine(3);
        d.heard_state_machine(2, 3);
        assert_eq!(d.members_know(1), 1, "node 3 was not heard of");
        d.heard_state_machine(3, 2);
        d.heard_state_machine(9, 0);
        assert_eq!(d.members_know(1), 2);
        d.heard_state_machine(3, 3);
        assert_eq!(d.members_know(1), 3);
    }

    #[test]
    fn walls_are_the_others_and_run_on() {
        let d = three();
        let t0 = Instant::now();
        d.heard(2, 1_000, false, t0);
        d.heard(9, 5_000, false, t0);
        assert_eq!(
            d.walls(1, t0 + std::time::Duration::from_millis(20)),
            vec![1_020]
        );
    }
}
