//! What the queue says of itself, as the planner sees it.

use proto::v1::{GroupStatus, MemberGroup, NodeAddress, ReplicaProgress};

use super::*;

fn group(group: u32, role: &str, matched: u64) -> GroupStatus {
    let copy = |node: u64, matched: u64| ReplicaProgress {
        node,
        matched,
        recent_active: true,
        ..ReplicaProgress::default()
    };
    GroupStatus {
        group,
        role: role.into(),
        last_index: 50_000,
        progress: match role {
            "Leader" => vec![copy(1, 50_000), copy(2, matched)],
            _ => Vec::new(),
        },
        ..GroupStatus::default()
    }
}

fn status(node: u64, groups: Vec<GroupStatus>) -> NodeStatus {
    let nodes = [1, 2, 3].map(|node| NodeAddress {
        node,
        ..NodeAddress::default()
    });
    NodeStatus {
        node,
        groups,
        nodes: nodes.to_vec(),
        ..NodeStatus::default()
    }
}

#[test]
fn silent_nodes_groups_without_leader_and_copies_that_lag_are_seen() {
    let first = status(
        1,
        vec![
            group(0, "Leader", 49_999),
            group(1, "Leader", 3),
            group(2, "Follower", 0),
        ],
    );
    let second = status(
        2,
        vec![
            group(0, "Follower", 0),
            group(1, "Follower", 0),
            group(2, "Follower", 0),
        ],
    );
    let answer = put_together(&[first, second]);
    assert_eq!((answer.groups, answer.led, answer.in_step), (3, 2, 1));
    assert_eq!(answer.nodes.len(), 3);
    assert_eq!(
        (answer.nodes[&1].leads, answer.nodes[&3].stage),
        (2, Stage::Silent)
    );
    assert_eq!(answer.overview, None, "single nodes are no overview");
}

#[test]
fn a_group_is_in_step_when_it_is_where_it_should_be_and_all_who_hold_it_speak() {
    let node = |node: u64, state: &str| MemberNode {
        node,
        state: state.into(),
        ..MemberNode::default()
    };
    let group = |voters: &[u64], placed: &[u64], lag: u64| MemberGroup {
        leader_node: 1,
        voters: voters.to_vec(),
        placed: placed.to_vec(),
        lag,
        ..MemberGroup::default()
    };
    let members = MembersResponse {
        nodes: vec![
            node(1, "Ready"),
            node(2, "Leaving"),
            node(3, "Ready"),
            node(4, "Silent"),
        ],
        groups: vec![
            group(&[1, 2, 3], &[1, 2, 3], 20),
            group(&[1, 2, 3], &[1, 2, 3], 20_000),
            group(&[1, 2, 3], &[1, 3, 4], 0),
            group(&[1, 3, 4], &[1, 3, 4], 0),
            MemberGroup::default(),
        ],
        highest_node: 7,
        replication_factor: 3,
        moves_left: 1,
        ..MembersResponse::default()
    };
    let answer = whole(&members);
    assert_eq!((answer.groups, answer.led, answer.in_step), (5, 4, 1));
    assert_eq!(answer.nodes[&2].stage, Stage::Leaving);
    let overview = answer.overview.expect("its leader answered");
    assert_eq!((overview.highest_node, overview.moves_left), (7, 1));
    assert_eq!(overview.replication_factor, 3);
}
