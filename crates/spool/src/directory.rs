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

use queue::control::PLACEMENTS_MAX;
pub use queue::control::{node_of, peer_id};

/// Bits of a group's number in what the log and the metadata call it; above them is how often it was placed here before.
const GROUP_BITS: u32 = 16;

// The count of placements fits between that number and the bit by which the metadata mark rows of snapshots.
const _: () = assert!(PLACEMENTS_MAX == 0x7fff);
/// What the log and the metadata call a replica: another number for each replica that a node ever had of a group, so that
/// nothing of an earlier one is ever read as the later one's. A first replica has the group's own number.
pub fn log_group(group: u32, peer: u64) -> u32 {
    let before = peer as u32 & PLACEMENTS_MAX;
    (before << GROUP_BITS) | group
}

/// The group of what the log and the metadata call a replica.
pub fn group_of(log_group: u32) -> u32 {
    log_group & u32::from(u16::MAX)
}

/// The Raft peer id of a replica of `node` that the log calls so.
pub fn peer_of(node: u64, log_group: u32) -> u64 {
    peer_id(node, log_group >> GROUP_BITS)
}

/// Shared by all threads of a node.
#[derive(Clone)]
pub struct Directory {
    inner: Arc<RwLock<Inner>>,
    topology: Arc<watch::Sender<v1::Topology>>,
    leads: Arc<watch::Sender<Vec<v1::GroupLead>>>,
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

impl Inner {
    fn addresses(&self) -> BTreeMap<u64, String> {
        let nodes = self.nodes.iter();
        nodes
            .map(|(id, node)| (*id, node.client_address.clone()))
            .collect()
    }
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
            leads: Arc::new(watch::channel(Vec::new()).0),
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

    /// Who leads a group, as this node's own replica knows; `node` 0: nobody known. An older term than one that was
    /// heard of is old news.
    pub fn set_leader(&self, group: u32, term: u64, node: u64) {
        let new = Leader { term, node };
        let changed = self.write(|i| {
            let known = i.leaders.entry(group).or_default();
            let changed = term >= known.term && *known != new;
            if changed {
                *known = new;
            }
            changed
        });
        if changed {
            self.publish_leads();
            self.publish();
        }
    }

    /// What another node says that it leads: the way in which a node hears of groups that it holds no replica of.
    pub fn hear_leads(&self, node: u64, leads: &[v1::GroupLead]) {
        let changed = self.write(|i| {
            let mut changed = false;
            for lead in leads {
                let new = Leader {
                    term: lead.term,
                    node,
                };
                let known = i.leaders.entry(lead.group).or_default();
                if lead.term > known.term || (lead.term == known.term && known.node == 0) {
                    *known = new;
                    changed = true;
                }
            }
            changed
        });
        if changed {
            self.publish_leads();
            self.publish();
        }
    }

    /// This node has no replica of the group any more.
    pub fn forget_group(&self, group: u32) {
        self.write(|i| {
            i.voters.remove(&group);
            i.digests.forget(group);
            let own = i.own;
            if let Some(leader) = i.leaders.get_mut(&group)
                && leader.node == own
            {
                leader.node = 0;
            }
        });
        self.publish_leads();
    }

    /// All nodes of the cluster with their client addresses; who is not named is gone.
    pub fn set_nodes(&self, nodes: &BTreeMap<u64, String>) {
        let changed = self.write(|i| {
            let before: BTreeMap<u64, String> = i.addresses();
            let own = i.own;
            i.nodes.retain(|id, _| nodes.contains_key(id) || *id == own);
            for (id, address) in nodes.iter().filter(|(_, address)| !address.is_empty()) {
                i.nodes.entry(*id).or_default().client_address = address.clone();
            }
            before != i.addresses()
        });
        if changed {
            self.publish();
        }
    }

    /// The groups that this node leads, as it changes: what it tells every other node.
    pub fn watch_leads(&self) -> watch::Receiver<Vec<v1::GroupLead>> {
        self.leads.subscribe()
    }

    fn publish_leads(&self) {
        let leads: Vec<v1::GroupLead> = self.read(|i| {
            let led = i.leaders.iter().filter(|(_, leader)| leader.node == i.own);
            led.map(|(group, leader)| v1::GroupLead {
                group: *group,
                term: leader.term,
            })
            .collect()
        });
        self.leads.send_if_modified(|before| {
            let changed = *before != leads;
            *before = leads;
            changed
        });
    }

    /// Who leads a group, by node id; 0: nobody known.
    #[cfg(test)]
    pub fn leader_of(&self, group: u32) -> u64 {
        self.read(|i| i.leaders.get(&group).map_or(0, |leader| leader.node))
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
            let Some(voters) = i.voters.get(&group) else {
                return Judgement::Fine; // This node has no replica of it to compare.
            };
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
    fn what_another_node_leads_is_heard_unless_it_is_old_news() {
        let d = three();
        let lead = |term| [v1::GroupLead { group: 3, term }];
        d.hear_leads(2, &lead(5));
        assert_eq!(d.leader_of(3), 2);
        d.hear_leads(1, &lead(4));
        d.set_leader(3, 4, 1);
        assert_eq!(d.leader_of(3), 2);
        d.set_leader(3, 6, 1);
        assert_eq!(
            d.watch_leads().borrow().as_slice(),
            [v1::GroupLead { group: 3, term: 6 }]
        );
        d.hear_leads(3, &lead(7));
        assert!(d.watch_leads().borrow().is_empty());
    }

    #[test]
    fn a_replica_that_comes_back_is_called_otherwise() {
        let names: Vec<u32> = (0..3)
            .map(|before| log_group(7, peer_id(9, before)))
            .collect();
        assert_eq!(names[0], 7);
        assert!(names.iter().all(|name| group_of(*name) == 7));
        assert_eq!(peer_of(9, names[2]), peer_id(9, 2));
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
