//! What the control group's leader decides from what it hears, and what a node makes of an order.

use super::*;
use crate::directory::peer_id;

fn order(version: u64, voters: &[u64], settled: bool) -> GroupOrder {
    GroupOrder {
        group: 7,
        placement: Placement {
            version,
            voters: voters.iter().copied().collect(),
            ..Placement::default()
        },
        settled,
        first: Vec::new(),
    }
}

fn hosted(peer: u64, made_at: u64) -> Option<Hosted> {
    Some(Hosted {
        peer,
        made_at,
        leaving: false,
    })
}

#[test]
fn a_new_leader_counts_silence_from_when_it_began_to_look() {
    let began = Instant::now();
    let mut overseer = Overseer::new(began);
    let later = |seconds| began + Duration::from_secs(seconds);
    assert_eq!(overseer.silence(3, later(20)), None);
    assert_eq!(overseer.silent_for(3, later(20)), Duration::from_secs(20));
    overseer.hear(3, Ok(Box::default()), later(21));
    assert_eq!(overseer.silent_for(3, later(25)), Duration::from_secs(4));
}

#[test]
fn a_replica_goes_when_the_members_are_settled_without_it_and_never_by_an_order_from_before_it() {
    let (first, second) = (peer_id(4, 0), peer_id(4, 1));
    let others = [peer_id(1, 0), peer_id(2, 0), peer_id(3, 0)];
    let with = [peer_id(1, 0), peer_id(2, 0), first];
    let none = BTreeSet::new();
    let created = deed(4, &order(6, &with, false), None, &none);
    assert_eq!(created, Some(Deed::Create(first)));
    let old = deed(4, &order(5, &others, true), hosted(first, 6), &none);
    assert_eq!(old, None, "from before it was placed here");
    let unsettled = deed(4, &order(7, &others, false), hosted(first, 6), &none);
    assert_eq!(unsettled, None, "it may still have to vote");
    let settled = deed(4, &order(7, &others, true), hosted(first, 6), &none);
    assert_eq!(settled, Some(Deed::Destroy(first)));
    let gone = [log_group(7, first)].into();
    let late = deed(4, &order(6, &with, false), None, &gone);
    assert_eq!(late, None, "it does not rise again");
    let again = [peer_id(1, 0), peer_id(2, 0), second];
    let back = order(8, &again, false);
    assert_eq!(deed(4, &back, None, &gone), Some(Deed::Create(second)));
    let before_it_went = deed(4, &back, hosted(first, 6), &none);
    assert_eq!(before_it_went, Some(Deed::Destroy(first)));
}

/// Five nodes that hold four shards and the control group, three copies each, and a sixth that was added.
fn state() -> ControlState {
    let mut state = ControlState::default();
    let cluster = queue::control::Cluster {
        id: [7; 16],
        shards: 4,
        replication_factor: 3,
    };
    state.apply(&ControlCommand::CreateCluster {
        cluster,
        initial_nodes: (1..=5).collect(),
    });
    let address = |node: u64| format!("10.0.0.{node}:7101").into();
    state.apply(&ControlCommand::AddNode {
        node: 6,
        peer_address: address(6),
        client_address: "".into(),
        zone: "".into(),
    });
    for node in 1..=6 {
        let row = NodeRow {
            incarnation: [node as u8; 16],
            peer_address: address(node),
            client_address: "".into(),
            zone: "".into(),
        };
        state.apply(&ControlCommand::AnnounceNode { node, row });
    }
    state
}

/// Each group is led by the node that should, with the members of the placement.
fn report(state: &ControlState, node: u64) -> Box<v1::SteerReport> {
    let led = state.groups.iter().filter(|(_, p)| p.leader == node);
    let replicas = led.map(|(id, placement)| v1::ReplicaReport {
        group: *id,
        leads: true,
        term: 1,
        members: Some(v1::MembersRow {
            voters: placement.voters.iter().copied().collect(),
            ..Default::default()
        }),
        ..Default::default()
    });
    Box::new(v1::SteerReport {
        replicas: replicas.collect(),
        ..Default::default()
    })
}

/// Listens to `speaking` for so long, and says what is moved where then: (group, nodes).
fn moves(
    overseer: &mut Overseer,
    state: &ControlState,
    speaking: &[u64],
    since: Instant,
    seconds: u64,
) -> BTreeMap<u32, BTreeSet<u64>> {
    let mut commands = Vec::new();
    for half in 0..=2 * seconds {
        let now = since + Duration::from_millis(500 * half);
        for node in speaking {
            overseer.hear(*node, Ok(report(state, *node)), now);
        }
        overseer.look(state, now);
        commands = overseer.moves(state, &|_| false, now, 0);
    }
    let places = commands
        .into_iter()
        .filter_map(|(_, command)| match command {
            ControlCommand::Place { group, voters, .. } => Some((group, voters)),
            _ => None,
        });
    places.collect()
}

/// The emptiest node was down: every group waited for it, and a node that was to leave never could.
#[test]
fn a_silent_node_is_passed_over_and_the_others_take_what_a_leaving_one_holds() {
    let mut state = state();
    state.apply(&ControlCommand::RemoveNode { node: 5 });
    let since = Instant::now();
    let mut overseer = Overseer::new(since);
    let moved = moves(&mut overseer, &state, &[1, 2, 3, 4, 5], since, 4);
    assert!(!moved.is_empty());
    for (group, voters) in &moved {
        assert!(!voters.contains(&6), "group {group}: {voters:?}");
        assert_eq!(voters.len(), 3);
    }
}

#[test]
fn a_node_without_room_is_given_nothing() {
    let state = state();
    let since = Instant::now();
    let mut overseer = Overseer::new(since);
    let full = |overseer: &mut Overseer, at| {
        let mut report = report(&state, 6);
        report.full = true;
        overseer.hear(6, Ok(report), at);
    };
    full(&mut overseer, since);
    for half in 0..8 {
        let now = since + Duration::from_millis(500 * half);
        for node in 1..=5 {
            overseer.hear(node, Ok(report(&state, node)), now);
        }
        full(&mut overseer, now);
        overseer.look(&state, now);
        for (what, command) in overseer.moves(&state, &|_| false, now, 0) {
            let ControlCommand::Place { voters, .. } = &command else {
                continue;
            };
            assert!(!voters.contains(&6), "{what:?}: {command:?}");
        }
    }
}

/// Four groups without a leader, or on their way to a dead node, kept all other repairs waiting.
#[test]
fn a_move_whose_target_died_turns_round_and_groups_without_a_leader_hold_up_nobody() {
    let mut state = state();
    let since = Instant::now();
    let mut overseer = Overseer::new(since);
    let all = [1, 2, 3, 4, 5, 6];
    for (group, voters) in moves(&mut overseer, &state, &all, since, 4) {
        let seen = &state.groups[&group];
        let (version, leader) = (seen.version, seen.leader);
        state.apply(&ControlCommand::Place {
            group,
            version,
            voters,
            leader,
            settled: true,
        });
    }
    let on_six = |state: &ControlState| {
        let groups = state.groups.iter();
        let on = groups.filter(|(_, placement)| placement.peer_on(6).is_some());
        on.map(|(id, _)| *id).collect::<Vec<_>>()
    };
    let under_way = on_six(&state);
    assert!(!under_way.is_empty(), "the new node is given some");
    // It dies before it has any; the leaders go on saying that their members are the former ones.
    let former = self::state();
    let later = since + Duration::from_secs(5);
    let mut turned = BTreeSet::new();
    for half in 0..=2 * 70 {
        let now = later + Duration::from_millis(500 * half);
        for node in 1..=5 {
            overseer.hear(node, Ok(report(&former, node)), now);
        }
        overseer.look(&state, now);
        for (_, command) in overseer.moves(&state, &|_| false, now, 0) {
            if let ControlCommand::Place { group, voters, .. } = command {
                assert!(!voters.contains(&6) || !under_way.contains(&group));
                turned.insert(group);
            }
        }
    }
    assert!(
        under_way.iter().all(|group| turned.contains(group)),
        "{turned:?} of {under_way:?}"
    );
}
