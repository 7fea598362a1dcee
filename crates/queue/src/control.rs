//! The state machine of the control group (group 0): which cluster this is, how many shards it has, which nodes there
//! are, and which of them hold which group. Small, so it is kept in memory whole and persisted as one row.

mod command;
pub mod place;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use command::ControlCommand;
pub use words::{ControlEffect, GroupName, Refusal};

/// Nodes that the control group keeps. Far above any cluster; it bounds the row.
pub const NODES_MAX: usize = 1024;

/// Highest id of a node: peer ids of the Raft groups are built from it in 64 bits.
pub const NODE_MAX: u64 = u32::MAX as u64;

/// A node id is the upper part of a Raft peer id; the lower part counts how often the group was placed there before, so
/// that a replica which left and comes back is a new peer with nothing to remember.
pub const PLACEMENTS_BITS: u32 = 20;

/// How often a group may be placed on one node. The log and the metadata keep this number in 15 bits; a node that
/// reached it is replaced by another, which takes centuries of moving to and fro.
pub const PLACEMENTS_MAX: u32 = (1 << 15) - 1;

/// The Raft peer id of a node's replica of a group that was placed there `before` times.
pub fn peer_id(node: u64, before: u32) -> u64 {
    (node << PLACEMENTS_BITS) | u64::from(before)
}

/// The node of a Raft peer id.
pub fn node_of(peer: u64) -> u64 {
    peer >> PLACEMENTS_BITS
}

/// How long a node does not lead: until its process starts anew, or until a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rest {
    /// Random, of the process that was asked to rest; another one may lead at once.
    pub process: u64,
    /// By the leader's wall clock, milliseconds since 1970.
    pub until_ms: u64,
}

/// Where a group shall be.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Placement {
    /// Rises with every change of any group's placement: of two orders, the higher one is the newer one.
    pub version: u64,
    /// Raft peer ids.
    pub voters: BTreeSet<u64>,
    /// The node that should lead.
    pub leader: u64,
    /// Peers of earlier placements that may still be members: the way to this one did not begin at a settled one.
    pub before: BTreeSet<u64>,
}

impl Placement {
    /// The nodes of the voters.
    pub fn nodes(&self) -> BTreeSet<u64> {
        self.voters.iter().map(|peer| node_of(*peer)).collect()
    }

    /// The peer of a node.
    pub fn peer_on(&self, node: u64) -> Option<u64> {
        self.voters
            .iter()
            .copied()
            .find(|peer| node_of(*peer) == node)
    }
}

/// What a cluster is made with; only the number of copies may change.
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
    /// Added, and not heard of yet.
    pub joining: BTreeSet<u64>,
    /// Removed, and not gone yet.
    pub leaving: BTreeSet<u64>,
    /// Who should not lead.
    pub resting: BTreeMap<u64, Rest>,
    /// Where the groups are, or are on their way to. Empty until the cluster was created.
    pub groups: BTreeMap<u32, Placement>,
    /// How often a group was placed on a node until now, by (group, node).
    pub placed: BTreeMap<(u32, u64), u32>,
    /// The last [`Placement::version`].
    pub version: u64,
    /// The nodes that every group's log began with.
    pub first_nodes: Vec<u64>,
    /// The copies that every group's log began with, whatever their number is now; 0: not known, so as many as now.
    pub first_factor: u32,
    /// Version of the state machine in force; 0 stands for the first.
    pub state_machine: u32,
}

/// The members that every group's log begins with, by node: what the first nodes agree on without a word.
pub fn first_peers(nodes: &[u64], cluster: &Cluster) -> BTreeMap<u32, Placement> {
    let map = place::first_map(
        nodes,
        cluster.shards + 1,
        cluster.replication_factor as usize,
    );
    let groups = map.groups.into_iter();
    groups
        .map(|(id, group)| {
            let placement = Placement {
                version: 0,
                voters: group.voters.iter().map(|node| peer_id(*node, 0)).collect(),
                leader: group.leader,
                before: BTreeSet::new(),
            };
            (id, placement)
        })
        .collect()
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
            ControlCommand::AddNode {
                node,
                peer_address,
                client_address,
                zone,
            } => vec![match self.add(*node, peer_address, client_address, zone) {
                Ok(()) => ControlEffect::Added { node: *node },
                Err(why) => ControlEffect::Refused { node: *node, why },
            }],
            ControlCommand::RemoveNode { node } => vec![match self.remove(*node) {
                Ok(effect) => effect,
                Err(why) => ControlEffect::Refused { node: *node, why },
            }],
            ControlCommand::ForgetNode { node } => self.forget(*node),
            ControlCommand::Place {
                group,
                version,
                voters,
                leader,
                settled,
            } => self.place(*group, *version, voters, *leader, *settled),
            ControlCommand::Rest { node, rest } => match self.nodes.contains_key(node) {
                true => {
                    self.resting.insert(*node, *rest);
                    vec![ControlEffect::Rested { node: *node }]
                }
                false => {
                    let why = Refusal::Unknown { node: *node };
                    vec![ControlEffect::Refused { node: *node, why }]
                }
            },
            ControlCommand::EndRest { node } => {
                self.resting.remove(node);
                vec![ControlEffect::Rested { node: *node }]
            }
            ControlCommand::SetReplicationFactor { factor } => vec![self.set_factor(*factor)],
            ControlCommand::SetVersion { version } => {
                // A leader that did not know of a later one may still have proposed it.
                self.state_machine = self.version_in_force().max(*version);
                Vec::new()
            }
            // What is declared is no part of this: see `config::Configuration`.
            ControlCommand::PutConfig(_)
            | ControlCommand::VerifyDigest { .. }
            | ControlCommand::Note { .. } => Vec::new(),
        }
    }

    /// The members that every group's log began with: those of which a replica that holds nothing yet believes that they vote.
    /// With as many copies as there are now it could be one of them itself, and vote.
    pub fn first_groups(&self) -> BTreeMap<u32, Placement> {
        let Some(mut cluster) = self.cluster else {
            return BTreeMap::new();
        };
        if self.first_factor > 0 {
            cluster.replication_factor = self.first_factor;
        }
        first_peers(&self.first_nodes, &cluster)
    }

    /// The version of the state machine in force.
    pub fn version_in_force(&self) -> u32 {
        self.state_machine.max(1)
    }

    fn create(&mut self, cluster: Cluster, initial_nodes: &[u64]) -> ControlEffect {
        match self.cluster {
            Some(first) => ControlEffect::AlreadyCreated(first),
            None => {
                self.cluster = Some(cluster);
                self.expected = initial_nodes.iter().copied().take(NODES_MAX).collect();
                self.first_nodes = self.expected.iter().copied().collect();
                self.first_factor = cluster.replication_factor;
                self.groups = first_peers(&self.first_nodes, &cluster);
                for (id, group) in &self.groups {
                    let placed = group.nodes().into_iter().map(|node| ((*id, node), 1));
                    self.placed.extend(placed);
                }
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
            Some(_) if self.joining.contains(&node) => {}
            Some(known) if known.incarnation != row.incarnation => {
                return Err(Refusal::OtherDisk { node, highest });
            }
            Some(_) => {}
            None if self.expected.contains(&node) => {}
            None if node <= highest => return Err(Refusal::Reused { node, highest }),
            None => return Err(Refusal::NotAdded { node }),
        }
        self.expected.remove(&node);
        self.joining.remove(&node);
        self.nodes.insert(node, self.announced(node, row));
        self.highest_node = highest.max(node);
        Ok(())
    }

    /// What a node's announcement makes of its row: it need not say again what was said for it.
    pub fn announced(&self, node: u64, row: &NodeRow) -> NodeRow {
        let mut row = row.clone();
        if let Some(known) = self.nodes.get(&node)
            && row.zone.is_empty()
        {
            row.zone = known.zone.clone();
        }
        row
    }

    fn add(
        &mut self,
        node: u64,
        peer_address: &Arc<str>,
        client_address: &Arc<str>,
        zone: &Arc<str>,
    ) -> Result<(), Refusal> {
        let highest = self.highest_node;
        if node == 0 || node > NODE_MAX {
            return Err(Refusal::OutOfRange { node });
        }
        if self.cluster.is_none() {
            return Err(Refusal::NoCluster { node });
        }
        if self.leaving.contains(&node) {
            return Err(Refusal::Leaving { node, highest });
        }
        if let Some(known) = self.nodes.get_mut(&node) {
            known.peer_address = peer_address.clone();
            if !client_address.is_empty() {
                known.client_address = client_address.clone();
            }
            if !zone.is_empty() {
                known.zone = zone.clone();
            }
            return Ok(());
        }
        if node <= highest {
            return Err(Refusal::Reused { node, highest });
        }
        if self.nodes.len() >= NODES_MAX {
            return Err(Refusal::TooMany { node });
        }
        let row = NodeRow {
            incarnation: [0; 16],
            peer_address: peer_address.clone(),
            client_address: client_address.clone(),
            zone: zone.clone(),
        };
        self.nodes.insert(node, row);
        self.joining.insert(node);
        self.highest_node = node;
        Ok(())
    }

    fn remove(&mut self, node: u64) -> Result<ControlEffect, Refusal> {
        if self.leaving.contains(&node) {
            return Ok(ControlEffect::Leaving { node });
        }
        if !self.nodes.contains_key(&node) {
            return match node > 0 && node <= self.highest_node {
                true => Ok(ControlEffect::Gone { node }),
                false => Err(Refusal::Unknown { node }),
            };
        }
        self.may_leave(node)?;
        self.leaving.insert(node);
        self.joining.remove(&node);
        Ok(ControlEffect::Leaving { node })
    }

    /// Whether enough nodes are left for the copies when this one goes.
    ///
    /// # Errors
    /// [`Refusal::TooFewNodes`] names the first group that would lack one.
    pub fn may_leave(&self, node: u64) -> Result<(), Refusal> {
        let factor = self.cluster.map_or(0, |cluster| cluster.replication_factor);
        let left = self.hosts().filter(|id| *id != node).count();
        let counts = self.hosts().any(|id| id == node);
        if !counts || left >= factor as usize {
            return Ok(());
        }
        // One that holds nothing yet may be where another that leaves is to put its copies.
        let on = |wanted: &dyn Fn(u64) -> bool| {
            let mut groups = self.groups.iter();
            let found = groups.find(|(_, group)| group.nodes().into_iter().any(wanted));
            found.map(|(id, _)| *id)
        };
        let group = on(&|id| id == node).or_else(|| on(&|id| self.leaving.contains(&id)));
        Err(Refusal::TooFewNodes {
            node,
            group: group.unwrap_or(0),
            left,
            factor,
        })
    }

    /// The planner brings every group to the new number, one replica at a time.
    fn set_factor(&mut self, factor: u32) -> ControlEffect {
        let refused = |why| ControlEffect::Refused { node: 0, why };
        let nodes = self.hosts().count();
        match &mut self.cluster {
            None => refused(Refusal::NoCluster { node: 0 }),
            Some(_) if !matches!(factor, 1 | 3 | 5) => refused(Refusal::BadFactor { factor }),
            // What there is already needs no more nodes than there are.
            Some(cluster) if nodes < factor as usize && factor > cluster.replication_factor => {
                refused(Refusal::TooFewForCopies { factor, nodes })
            }
            Some(cluster) => {
                cluster.replication_factor = factor;
                ControlEffect::Copies { factor }
            }
        }
    }

    /// Nodes that may be given replicas.
    fn hosts(&self) -> impl Iterator<Item = u64> {
        let nodes = self.nodes.keys().copied();
        nodes.filter(|id| !self.joining.contains(id) && !self.leaving.contains(id))
    }

    fn forget(&mut self, node: u64) -> Vec<ControlEffect> {
        let held = self
            .groups
            .values()
            .any(|group| group.peer_on(node).is_some());
        if held || !self.leaving.remove(&node) {
            return Vec::new();
        }
        self.nodes.remove(&node);
        self.resting.remove(&node);
        // Its id never comes back, so nobody will ask how often it was used.
        self.placed.retain(|(_, of), _| *of != node);
        vec![ControlEffect::Gone { node }]
    }

    fn place(
        &mut self,
        id: u32,
        seen: u64,
        voters: &BTreeSet<u64>,
        leader: u64,
        settled: bool,
    ) -> Vec<ControlEffect> {
        let Some(group) = self
            .groups
            .get_mut(&id)
            .filter(|group| group.version == seen)
        else {
            return Vec::new();
        };
        if settled {
            group.before.clear();
        }
        let mut peers = BTreeSet::new();
        for &node in voters {
            let before = group
                .before
                .iter()
                .copied()
                .find(|peer| node_of(*peer) == node);
            let peer = group.peer_on(node).or(before).unwrap_or_else(|| {
                let before = self.placed.entry((id, node)).or_default();
                let peer = peer_id(node, *before);
                *before += 1;
                peer
            });
            peers.insert(peer);
        }
        if peers.is_empty() {
            return Vec::new();
        }
        self.version += 1;
        let mut before = std::mem::take(&mut group.before);
        before.extend(group.voters.iter().copied());
        before.retain(|peer| !peers.contains(peer));
        *group = Placement {
            before,
            version: self.version,
            voters: peers,
            leader,
        };
        vec![ControlEffect::Placed { group: id }]
    }
}

#[cfg(test)]
#[path = "control/tests.rs"]
mod tests;
