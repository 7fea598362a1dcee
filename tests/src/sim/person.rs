//! What a person does to the nodes: adds them, removes them, loses them, and asks for another number of copies.

use std::time::Instant;

use queue::control::{ControlCommand, NodeRow, Rest};
use spool::oversee::Overseer;

use crate::sim::churn::{Churn, GROUP, NODES, row};
use crate::sim::world::World;

/// Most nodes that take part at once.
const AT_ONCE: usize = 6;
/// One in so many troubles changes the number of copies instead.
const COPIES: u64 = 8;

impl World {
    /// A person adds nodes, removes them, loses them.
    pub(super) fn change_nodes(&mut self, churn: &mut Churn, now: Instant) {
        if churn.rng.one_in(500) {
            churn.overseer = Overseer::new(now);
            churn.term += 1;
            self.note(|| format!("the control group has a leader of term {}", churn.term));
        }
        if !churn.rng.chance(self.faults.churn) {
            return;
        }
        let state = &churn.state;
        let staying: Vec<u64> = state
            .nodes
            .keys()
            .copied()
            .filter(|node| !state.leaving.contains(node))
            .collect();
        if churn.copies.one_in(COPIES) {
            self.change_copies(churn);
            return;
        }
        let of = churn.rng.below(staying.len() as u64) as usize;
        match churn.rng.below(6) {
            0..=2 if staying.len() < AT_ONCE && state.highest_node < NODES => {
                let node = state.highest_node + 1;
                self.note(|| format!("node {node} is added"));
                let NodeRow {
                    peer_address,
                    client_address,
                    zone,
                    ..
                } = row(node);
                churn.state.apply(&ControlCommand::AddNode {
                    node,
                    peer_address,
                    client_address,
                    zone,
                });
                let row = row(node);
                churn
                    .state
                    .apply(&ControlCommand::AnnounceNode { node, row });
            }
            3 => self.lose_node(churn, staying[of], now),
            4 => {
                let rest = Rest {
                    process: self.replicas[staying[of] as usize - 1].process,
                    until_ms: self.wall_of_all() + 3_000,
                };
                let node = staying[of];
                churn.state.apply(&ControlCommand::Rest { node, rest });
            }
            _ => self.remove_node(churn, staying[of], now),
        }
    }

    /// There shall be another number of copies. One alone only while no disk is lost: nobody could promise anything of it.
    fn change_copies(&mut self, churn: &mut Churn) {
        let factor = [1, 3, 5][churn.copies.below(3) as usize];
        if factor == 1 && self.has_lost(churn) {
            return;
        }
        let effects = churn
            .state
            .apply(&ControlCommand::SetReplicationFactor { factor });
        self.note(|| format!("{factor} copies are asked for: {effects:?}"));
        churn.fewest = churn.fewest.min(churn.factor());
    }

    /// A node whose disk is lost is not gone yet.
    fn has_lost(&self, churn: &Churn) -> bool {
        let lost = |node: &u64| self.replicas[*node as usize - 1].dead;
        churn.state.nodes.keys().any(lost)
    }

    fn remove_node(&mut self, churn: &mut Churn, node: u64, now: Instant) {
        // As the real door: not while a group has no leader.
        if churn.overseer.leader_of(GROUP, now).is_none() {
            return;
        }
        let effects = churn.state.apply(&ControlCommand::RemoveNode { node });
        self.note(|| format!("node {node} is to be removed: {effects:?}"));
    }

    /// A disk is lost for good, and the node is removed. One copy at a time, and not while it may be the only one: of two lost
    /// ones nobody could promise anything.
    fn lose_node(&mut self, churn: &mut Churn, node: u64, now: Instant) {
        let k = node as usize - 1;
        let alone = churn.fewest == 1;
        if alone || self.has_lost(churn) || churn.state.may_leave(node).is_err() {
            return;
        }
        self.remove_node(churn, node, now);
        if churn.state.leaving.contains(&node) {
            self.note(|| format!("the disk of node {node} is lost"));
            self.kill(k, u64::MAX, true, false);
            self.replicas[k].dead = true;
        }
    }
}
