//! The cluster as the control group's leader sees it, for people and for the operator.

use std::collections::BTreeMap;
use std::time::Instant;

use proto::v1;
use queue::control::{ControlState, NodeRow, Placement, node_of};

use super::Control;
use crate::oversee::SILENT;

impl Control {
    /// See `Admin.Members`.
    pub(super) fn list(&self, now: Instant) -> v1::MembersResponse {
        let cluster = self.state.cluster;
        let groups: Vec<v1::MemberGroup> = self
            .state
            .groups
            .iter()
            .map(|(id, placement)| self.group(*id, placement, now))
            .collect();
        let mut leads: BTreeMap<u64, u32> = BTreeMap::new();
        for group in &groups {
            *leads.entry(group.leader_node).or_default() += 1;
        }
        let nodes = self.state.nodes.iter();
        let nodes = nodes.map(|(id, row)| self.node(*id, row, &leads, now));
        let mut nodes: Vec<v1::MemberNode> = nodes.chain(expected(&self.state)).collect();
        nodes.sort_by_key(|node| node.node);
        let (_, steps) = self.state.map().desired();
        let under_way = self.state.groups.iter();
        let under_way = under_way
            .filter(|(id, placement)| !self.overseer.is_settled(**id, placement))
            .count();
        v1::MembersResponse {
            not_leader: None,
            shards: cluster.map_or(0, |cluster| cluster.shards),
            replication_factor: cluster.map_or(0, |cluster| cluster.replication_factor),
            nodes,
            groups,
            moves_left: u32::try_from(steps + under_way).unwrap_or(u32::MAX),
            highest_node: self.state.highest_node,
        }
    }

    fn node(
        &self,
        node: u64,
        row: &NodeRow,
        leads: &BTreeMap<u64, u32>,
        now: Instant,
    ) -> v1::MemberNode {
        let silence = self.overseer.silence(node, now);
        let report = self.overseer.heard.get(&node).map(|heard| &heard.report);
        let state = match silence {
            _ if self.state.leaving.contains(&node) => "Leaving",
            _ if self.state.joining.contains(&node) => "Joining",
            Some(silence) if silence < SILENT => "Ready",
            _ => "Silent",
        };
        let rest = self.state.resting.get(&node);
        let trouble = self.overseer.trouble.get(&node);
        v1::MemberNode {
            node,
            peer_address: row.peer_address.to_string(),
            client_address: row.client_address.to_string(),
            zone: row.zone.to_string(),
            state: state.to_owned(),
            version: report.map_or_else(String::new, |report| report.version.clone()),
            groups: report.map_or(0, |report| report.replicas.len() as u32),
            leads: leads.get(&node).copied().unwrap_or(0),
            // One that joins was never there: nobody can say that it has been away.
            silent_ms: match silence {
                None if self.state.joining.contains(&node) => 0,
                _ => self.overseer.silent_for(node, now).as_millis() as u64,
            },
            full: report.is_some_and(|report| report.full),
            rests_ms: rest.map_or(0, |rest| rest.until_ms.saturating_sub(self.wall_ms)),
            trouble: trouble.cloned().unwrap_or_default(),
        }
    }

    fn group(&self, id: u32, placement: &Placement, now: Instant) -> v1::MemberGroup {
        let nodes = |peers: &[u64]| {
            peers
                .iter()
                .map(|peer| node_of(*peer))
                .collect::<Vec<u64>>()
        };
        let mut group = v1::MemberGroup {
            group: id,
            placed: placement.nodes().into_iter().collect(),
            preferred_leader: placement.leader,
            ..Default::default()
        };
        let Some((leader, replica)) = self.overseer.leader_of(id, now) else {
            return group;
        };
        let members = replica.members.clone().unwrap_or_default();
        group.leader_node = leader;
        group.term = replica.term;
        group.voters = nodes(&members.voters);
        group.voters.sort_unstable();
        group.learners = nodes(&members.learners);
        group.outgoing = nodes(&members.voters_outgoing);
        let voters = replica
            .peers
            .iter()
            .filter(|peer| members.voters.contains(&peer.peer));
        let matched = voters.map(|peer| peer.matched).min();
        group.lag = matched.map_or(0, |matched| replica.committed.saturating_sub(matched));
        group
    }
}

/// First nodes that said nothing of themselves yet. Whoever did not find them here would take them for nodes that are gone:
/// others of them may have higher ids.
fn expected(state: &ControlState) -> impl Iterator<Item = v1::MemberNode> {
    let joins = |node: &u64| v1::MemberNode {
        node: *node,
        state: "Joining".to_owned(),
        ..Default::default()
    };
    state.expected.iter().map(joins)
}

#[cfg(test)]
mod tests {
    use queue::control::{Cluster, ControlCommand};

    use super::*;

    #[test]
    fn first_nodes_that_said_nothing_yet_join() {
        let mut state = ControlState::default();
        let cluster = Cluster {
            id: [7; 16],
            shards: 16,
            replication_factor: 3,
        };
        state.apply(&ControlCommand::CreateCluster {
            cluster,
            initial_nodes: vec![1, 2, 3],
        });
        for node in [1, 3] {
            let row = NodeRow {
                incarnation: [1; 16],
                peer_address: "here:7101".into(),
                client_address: "here:7100".into(),
                zone: "".into(),
            };
            state.apply(&ControlCommand::AnnounceNode { node, row });
        }
        assert_eq!(state.highest_node, 3);
        let listed: Vec<v1::MemberNode> = expected(&state).collect();
        assert_eq!(listed.len(), 1);
        assert_eq!((listed[0].node, listed[0].state.as_str()), (2, "Joining"));
    }
}
