//! Queue nodes that come and go. The control group's leader is the real one (`spool::oversee` over the real
//! `ControlState`), without its own Raft: what it decides is committed at once, what it says comes late, twice, from a
//! leader of yesterday, or never. What nodes make of it is the real code as well.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::v1;
use queue::control::{
    Cluster, ControlCommand, ControlEffect, ControlState, NodeRow, Placement, node_of, peer_id,
};
use spool::event::GroupOrder;
use spool::node::{GroupStatus, Input, Membership, Plan, Role};
use spool::oversee::{Deed, Hosted, Overseer, deed, log_group};

use crate::sim::net::Packet;
use crate::sim::replica::Flushed;
use crate::sim::rng::Rng;
use crate::sim::world::{STEP_MS, World};

/// The group that is simulated: the first shard. The control group is placed beside it, and always as it shall be.
pub const GROUP: u32 = 1;
/// Nodes in the whole run: an id is never used again.
pub const NODES: u64 = 9;
/// Copies at first.
const FACTOR: u32 = 3;
/// As many as there may be.
pub const FACTOR_MAX: u32 = 5;
/// Steps between two looks of the control group's leader: 200 ms.
const LOOK_STEPS: u64 = 12;
/// Steps between two rounds in which it tells everybody: 500 ms.
const ROUND_STEPS: u64 = 30;
/// Rounds that a leader of yesterday may still repeat.
const REMEMBERED: usize = 24;

/// The peer id by its slot: the first ones of a run without churn are called 1, 2, 3.
pub fn slot_of(peer: u64) -> usize {
    match node_of(peer) {
        0 => peer as usize - 1,
        node => node as usize - 1,
    }
}

/// An order on its way.
#[derive(Clone)]
pub struct Order {
    pub request: Arc<v1::SteerRequest>,
    /// Whom it was sent to: nothing reaches a process that began later.
    pub process: u64,
}

pub struct Churn {
    pub state: ControlState,
    pub(super) overseer: Overseer,
    /// Of the control group.
    pub(super) term: u64,
    /// What was said lately.
    said: Vec<Arc<v1::SteerRequest>>,
    /// Chance of all this, apart from that of everything else.
    pub(super) rng: Rng,
    /// Chance of another number of copies, apart from it, so that runs without one stay what they were.
    pub(super) copies: Rng,
    /// Fewest copies that were asked for since nothing was left to do.
    pub(super) fewest: u32,
    /// Moves that were placed.
    pub moves: u64,
}

impl Churn {
    pub fn new(seed: u64, now: Instant) -> Churn {
        let mut state = ControlState::default();
        let cluster = Cluster {
            id: [7; 16],
            shards: 1,
            replication_factor: FACTOR,
        };
        state.apply(&ControlCommand::CreateCluster {
            cluster,
            initial_nodes: vec![1, 2, 3],
        });
        for node in 1..=3 {
            let row = row(node);
            state.apply(&ControlCommand::AnnounceNode { node, row });
        }
        Churn {
            state,
            overseer: Overseer::new(now),
            term: 1,
            said: Vec::new(),
            rng: Rng::new(seed ^ 0x6368_7572_6E00_0000),
            copies: Rng::new(seed ^ 0x636F_7069_6573_0000),
            fewest: FACTOR,
            moves: 0,
        }
    }

    /// The peers that the group's log began with.
    pub fn first() -> Membership {
        Membership {
            voters: (1..=3).map(|node| peer_id(node, 0)).collect(),
            ..Membership::default()
        }
    }

    pub fn placement(&self) -> &Placement {
        &self.state.groups[&GROUP]
    }

    /// Votes that the group may have at least.
    pub fn fewest(&self) -> usize {
        self.fewest as usize
    }

    /// How many copies there shall be.
    pub(super) fn factor(&self) -> u32 {
        self.state
            .cluster
            .map_or(FACTOR, |cluster| cluster.replication_factor)
    }

    /// Nothing is left to do: by the plan, and by what the group's leader says.
    pub fn is_settled(&self) -> bool {
        let groups = self.state.groups.iter();
        let mut settled = groups.map(|(id, placement)| self.overseer.is_settled(*id, placement));
        let (_, steps) = self.state.map().desired();
        settled.all(|settled| settled) && steps == 0 && self.state.leaving.is_empty()
    }
}

pub(super) fn row(node: u64) -> NodeRow {
    NodeRow {
        incarnation: u128::from(node).to_be_bytes(),
        peer_address: format!("node-{node}:7101").into(),
        client_address: format!("node-{node}:7100").into(),
        zone: "".into(),
    }
}

impl World {
    /// What the control group's leader does in a step.
    pub fn churn(&mut self) -> Result<(), String> {
        let Some(mut churn) = self.churn.take() else {
            return Ok(());
        };
        let now = self.instant_of_all();
        if !self.calm {
            self.change_nodes(&mut churn, now);
        }
        if self.now.is_multiple_of(LOOK_STEPS) {
            self.look(&mut churn, now);
        }
        if self.now.is_multiple_of(ROUND_STEPS) {
            self.tell_all(&mut churn, now);
        }
        self.churn = Some(churn);
        Ok(())
    }

    fn instant_of_all(&self) -> Instant {
        self.origin + Duration::from_millis(self.now * STEP_MS)
    }

    pub(super) fn wall_of_all(&self) -> u64 {
        crate::sim::world::EPOCH_MS + self.now * STEP_MS
    }

    /// The leader looks, and what it decides is committed.
    fn look(&mut self, churn: &mut Churn, now: Instant) {
        churn.overseer.look(&churn.state, now);
        if churn.is_settled() {
            churn.fewest = churn.factor();
        }
        let wall_ms = self.wall_of_all();
        let moves = churn.overseer.moves(&churn.state, &|_| false, now, wall_ms);
        for (_, command) in moves {
            if self.planted.reuse_peers {
                churn.state.placed.clear();
            }
            let effects = churn.state.apply(&command);
            if effects.contains(&ControlEffect::Placed { group: GROUP }) {
                churn.moves += 1;
                self.note(|| format!("placed: {:?}", churn.placement()));
            }
        }
    }

    fn tell_all(&mut self, churn: &mut Churn, now: Instant) {
        let Some((request, addresses)) = churn.overseer.orders(&churn.state, churn.term, now)
        else {
            return;
        };
        let request = Arc::new(request);
        for node in addresses.keys() {
            self.send_order(*node, request.clone(), 0);
            // Late, or a leader of yesterday speaks.
            if !self.calm && churn.rng.one_in(8) && !churn.said.is_empty() {
                let of = churn.rng.below(churn.said.len() as u64) as usize;
                let late = churn.rng.below(60);
                self.send_order(*node, churn.said[of].clone(), late);
            }
        }
        churn.said.push(request);
        if churn.said.len() > REMEMBERED {
            churn.said.remove(0);
        }
    }

    fn send_order(&mut self, node: u64, request: Arc<v1::SteerRequest>, late: u64) {
        let to = node as usize - 1;
        let process = self.replicas[to].process;
        let order = Order { request, process };
        let packet = Packet::Order { to, order };
        match late {
            0 => self.net.send(self.now, &mut self.rng, packet),
            late => self.net.put(self.now + late, packet),
        }
    }

    /// A node hears what it is told.
    pub fn take_order(&mut self, k: usize, order: Order) -> Result<(), String> {
        let replica = &mut self.replicas[k];
        let request = &order.request;
        let down = replica.dead || self.now < replica.down_until;
        if down || replica.process != order.process || request.term < replica.steer_term {
            return Ok(());
        }
        replica.steer_term = request.term;
        let own = k as u64 + 1;
        if !request.nodes.iter().any(|row| row.node == own) {
            if own <= request.highest_node {
                // Removed: the process ends, and nobody starts it again.
                self.note(|| format!("node {own} hears that it is gone"));
                self.kill(k, u64::MAX, false, false);
                self.replicas[k].dead = true;
            }
            return Ok(());
        }
        for wire in &request.groups {
            if wire.group == GROUP {
                self.take_group_order(k, wire)?;
            }
        }
        let report = self.steer_report(k, request);
        let term = request.term;
        let packet = Packet::Report {
            node: own,
            term,
            report: Box::new(report),
        };
        self.net.send(self.now, &mut self.rng, packet);
        Ok(())
    }

    fn take_group_order(&mut self, k: usize, wire: &v1::GroupOrder) -> Result<(), String> {
        let order = GroupOrder {
            group: wire.group,
            placement: Placement {
                version: wire.version,
                voters: wire.voters.iter().copied().collect(),
                leader: wire.leader,
                before: BTreeSet::new(),
            },
            settled: wire.settled || self.planted.destroy_early,
            first: wire.first.clone(),
        };
        let replica = &self.replicas[k];
        let own = k as u64 + 1;
        let nothing = BTreeSet::new();
        let gone = match self.planted.reuse_peers {
            true => &nothing,
            false => &replica.gone,
        };
        let what = deed(own, &order, replica.hosted, gone);
        self.trace
            .fold_all(&[own, order.placement.version, order.settled.into()]);
        match what {
            Some(Deed::Create(peer)) => self.create(k, peer, &order)?,
            Some(Deed::Destroy(peer)) => self.destroy(k, peer)?,
            None => {}
        }
        let leader = order.placement.peer_on(wire.leader).unwrap_or(0);
        let plan = Plan {
            version: wire.version,
            voters: order.placement.voters,
            leader,
        };
        self.input(k, Input::Plan(plan))
    }

    fn create(&mut self, k: usize, peer: u64, order: &GroupOrder) -> Result<(), String> {
        self.note(|| format!("node {} is given replica {peer}", k + 1));
        let replica = &mut self.replicas[k];
        replica.peer = peer;
        replica.hosted = Some(Hosted {
            peer,
            made_at: order.placement.version,
            leaving: false,
        });
        replica.disk.host(log_group(GROUP, peer));
        replica.flushed = Flushed {
            members: Membership {
                voters: order.first.clone(),
                ..Membership::default()
            },
            ..Flushed::default()
        };
        self.start(k)
    }

    /// A replica goes. Its vote must not be needed any more.
    fn destroy(&mut self, k: usize, peer: u64) -> Result<(), String> {
        self.note(|| format!("node {} gives up replica {peer}", k + 1));
        if self.model.latest_voters().contains(&peer) {
            return Err(format!(
                "node {} destroys peer {peer}, which is a voter: {:?}",
                k + 1,
                self.model.latest_voters()
            ));
        }
        self.input(k, Input::Stop)?;
        self.pump(k)?;
        self.replicas[k].disk.part();
        let process = self.replicas[k].process;
        let until = self.replicas[k].down_until;
        self.replicas[k].crash(until, &mut self.rng, false, false);
        self.proposals[k].clear();
        let replica = &mut self.replicas[k];
        replica.process = process;
        replica.hosted = None;
        replica.gone.insert(log_group(GROUP, peer));
        replica.flushed = Flushed::default();
        replica.applied = 0;
        Ok(())
    }

    fn steer_report(&self, k: usize, request: &v1::SteerRequest) -> v1::SteerReport {
        let own = k as u64 + 1;
        let replica = &self.replicas[k];
        let mut replicas = Vec::new();
        let control = request.groups.iter().find(|wire| wire.group == 0);
        if let Some(control) = control
            && control.voters.iter().any(|peer| node_of(*peer) == own)
        {
            replicas.push(v1::ReplicaReport {
                group: 0,
                peer: peer_id(own, 0),
                leads: self.leads_control(control) == own,
                term: request.term,
                members: Some(v1::MembersRow {
                    voters: control.voters.clone(),
                    ..v1::MembersRow::default()
                }),
                ..v1::ReplicaReport::default()
            });
        }
        if let Some(group) = &replica.group {
            replicas.push(report(&group.status()));
        }
        v1::SteerReport {
            process: replica.process,
            replicas,
            ..v1::SteerReport::default()
        }
    }

    /// The node that leads the control group: the one that should, or the first of the others once that one's disk is lost.
    /// An election without the simulated Raft, which the control group has none of.
    fn leads_control(&self, control: &v1::GroupOrder) -> u64 {
        let lives = |node: &u64| !self.replicas[*node as usize - 1].dead;
        let mut nodes = control.voters.iter().map(|peer| node_of(*peer));
        match lives(&control.leader) {
            true => control.leader,
            false => nodes.find(lives).unwrap_or(0),
        }
    }

    /// The control group's leader hears a node; one of yesterday does not count.
    pub fn hear_report(&mut self, node: u64, term: u64, report: Box<v1::SteerReport>) {
        let now = self.instant_of_all();
        if let Some(churn) = self.churn.as_mut().filter(|churn| churn.term == term) {
            churn.overseer.hear(node, Ok(report), now);
        }
    }
}

fn report(s: &GroupStatus) -> v1::ReplicaReport {
    v1::ReplicaReport {
        group: s.group,
        peer: s.peer,
        leads: s.role == Role::Leader,
        term: s.term,
        committed: s.committed,
        applied: s.applied,
        members: Some(v1::MembersRow {
            voters: s.members.voters.clone(),
            learners: s.members.learners.clone(),
            voters_outgoing: s.members.voters_outgoing.clone(),
            learners_next: s.members.learners_next.clone(),
            auto_leave: s.members.auto_leave,
        }),
        peers: Vec::new(),
    }
}
