//! What a person or the operator asks of the control group's leader: nodes in, nodes out, leaders elsewhere.

use std::time::Instant;

use proto::v1;
use queue::control::{ControlCommand, ControlEffect, GroupName, Rest, node_of};
use tokio::sync::oneshot;

use super::Control;
use crate::event::MembersCall;
use crate::node::Proposal;
use crate::oversee::SILENT;

/// A node that was asked to does not lead for this long, milliseconds, unless its process starts anew: ten minutes, which is
/// enough to drain a machine.
const REST_MS: u64 = 10 * 60 * 1000;

type Answer = oneshot::Sender<v1::ChangeMembersResponse>;

impl Control {
    /// Answers, or proposes what is asked; then the answer comes with the entry. `leader`: the address to go to instead.
    pub fn call(&mut self, call: MembersCall, leader: &str, now: Instant) -> Option<Proposal> {
        // A new leader has heard of nobody yet: it would take everybody for silent, and a rest without the process that
        // rests would end with that very process's first report. Whoever asks comes again in a moment.
        let guesses = !matches!(call, MembersCall::List(_) | MembersCall::Add(..))
            && !self.overseer.has_looked(now);
        if !self.ready || self.leads.is_none() || self.state.cluster.is_none() || guesses {
            not_leader(call, leader);
            return None;
        }
        let (command, answer) = match call {
            MembersCall::List(answer) => {
                let _ = answer.send(self.list(now));
                return None;
            }
            MembersCall::Add(add, answer) => {
                let command = ControlCommand::AddNode {
                    node: add.node,
                    peer_address: add.peer_address.into(),
                    client_address: add.client_address.into(),
                    zone: add.zone.into(),
                };
                (command, answer)
            }
            MembersCall::Remove(node, answer) => {
                if let Err(refusal) = self.may_remove(node, now) {
                    refuse(answer, refusal);
                    return None;
                }
                (ControlCommand::RemoveNode { node }, answer)
            }
            MembersCall::MoveLeaders(node, answer) => {
                let heard = self.overseer.heard.get(&node);
                let rest = Rest {
                    // A node that is down leads nothing; whichever process it starts may.
                    process: heard.map_or(0, |heard| heard.report.process),
                    until_ms: self.wall_ms + REST_MS,
                };
                (ControlCommand::Rest { node, rest }, answer)
            }
            MembersCall::SetFactor(factor, answer) => {
                let command = ControlCommand::SetReplicationFactor { factor };
                // Members whose program is older would halt at the entry.
                if self.state.version_in_force() < command.since() {
                    let text = "an older program takes part in the control group: bring all queue nodes to one version first";
                    refuse(answer, text.to_owned());
                    return None;
                }
                (command, answer)
            }
        };
        let proposal = self.proposal(&command);
        self.waiting.insert(proposal.ticket, answer);
        Some(proposal)
    }

    /// A group that has no majority now could not let anybody go, and may be about to lose mail: a person must look first.
    fn may_remove(&self, node: u64, now: Instant) -> Result<(), String> {
        if self.state.leaving.contains(&node) {
            return Ok(());
        }
        for (id, placement) in &self.state.groups {
            if placement.peer_on(node).is_some() && self.overseer.leader_of(*id, now).is_none() {
                let voters: Vec<String> = placement
                    .voters
                    .iter()
                    .map(|peer| node_of(*peer).to_string())
                    .collect();
                let silent: Vec<String> = placement
                    .voters
                    .iter()
                    .map(|peer| node_of(*peer))
                    .filter(|node| {
                        self.overseer
                            .silence(*node, now)
                            .is_none_or(|s| s >= SILENT)
                    })
                    .map(|node| node.to_string())
                    .collect();
                let silent = match silent.is_empty() {
                    true => "all of them answer, so an election is under way; try again in a few seconds".to_owned(),
                    false => format!("start node {} again first", silent.join(" or node ")),
                };
                return Err(format!(
                    "{} has no leader now and would lose its quorum for good; it is on nodes {}: {silent}",
                    GroupName(*id),
                    voters.join(", ")
                ));
            }
        }
        Ok(())
    }

    /// Tells whoever waited for an entry what it did.
    pub(super) fn answer(&mut self, index: u64, effects: &[ControlEffect]) {
        let later = self.by_index.split_off(&(index + 1));
        let reached = std::mem::replace(&mut self.by_index, later);
        let answer = reached
            .get(&index)
            .and_then(|ticket| self.waiting.remove(ticket));
        let (Some(answer), Some(effect)) = (answer, effects.first()) else {
            return;
        };
        let done = match effect {
            ControlEffect::Refused { why, .. } => return refuse(answer, why.to_string()),
            ControlEffect::Added { node } if self.state.joining.contains(node) => format!(
                "node {node} may join: start it with --initial-cluster-state existing; it gets its replicas by itself"
            ),
            ControlEffect::Added { node } => {
                format!("node {node} is a member; its address is changed")
            }
            ControlEffect::Leaving { node } => format!(
                "node {node} leaves: its replicas move to other nodes first; it is gone when `postroad members list` does not \
                 show it any more"
            ),
            ControlEffect::Gone { node } => format!("node {node} is gone already"),
            ControlEffect::Rested { node } => format!(
                "node {node} hands over what it leads, and does not lead until its process starts anew, or for 10 minutes"
            ),
            ControlEffect::Copies { factor } => format!(
                "every group is to have {factor} copies: they come and go one by one, see `postroad members list`"
            ),
            ControlEffect::Created(_)
            | ControlEffect::AlreadyCreated(_)
            | ControlEffect::Announced { .. }
            | ControlEffect::Placed { .. } => String::new(),
        };
        let _ = answer.send(v1::ChangeMembersResponse {
            done,
            ..Default::default()
        });
    }
}

fn refuse(answer: Answer, refusal: String) {
    let _ = answer.send(v1::ChangeMembersResponse {
        refusal,
        ..Default::default()
    });
}

/// Sends whoever asks to the leader.
pub fn not_leader(call: MembersCall, leader: &str) {
    let not_leader = Some(v1::NotLeader {
        leader_address: leader.to_owned(),
    });
    match call {
        MembersCall::List(answer) => {
            let _ = answer.send(v1::MembersResponse {
                not_leader,
                ..Default::default()
            });
        }
        MembersCall::Add(_, answer)
        | MembersCall::Remove(_, answer)
        | MembersCall::MoveLeaders(_, answer)
        | MembersCall::SetFactor(_, answer) => {
            let _ = answer.send(v1::ChangeMembersResponse {
                not_leader,
                ..Default::default()
            });
        }
    }
}
