//! Who is taken, who is let go, and where groups are put.

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
    let row = row(disk);
    state
        .apply(&ControlCommand::AnnounceNode { node, row })
        .remove(0)
}

fn add(state: &mut ControlState, node: u64) -> ControlEffect {
    let command = ControlCommand::AddNode {
        node,
        peer_address: "n:7000".into(),
        client_address: "".into(),
        zone: "z".into(),
    };
    state.apply(&command).remove(0)
}

fn remove(state: &mut ControlState, node: u64) -> ControlEffect {
    state.apply(&ControlCommand::RemoveNode { node }).remove(0)
}

fn copies(state: &mut ControlState, factor: u32) -> ControlEffect {
    let command = ControlCommand::SetReplicationFactor { factor };
    state.apply(&command).remove(0)
}

fn place(state: &mut ControlState, group: u32, voters: &[u64]) -> Vec<ControlEffect> {
    place_from(state, group, voters, true)
}

fn place_from(
    state: &mut ControlState,
    group: u32,
    voters: &[u64],
    settled: bool,
) -> Vec<ControlEffect> {
    let command = ControlCommand::Place {
        group,
        version: state.groups[&group].version,
        voters: voters.iter().copied().collect(),
        leader: voters[0],
        settled,
    };
    state.apply(&command)
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

fn three() -> ControlState {
    let mut state = created(&[1, 2, 3]);
    for node in [3, 1, 2] {
        let announced = ControlEffect::Announced { node };
        assert_eq!(announce(&mut state, node, node as u8), announced);
    }
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
fn a_wiped_disk_an_unknown_lower_id_and_one_that_nobody_added_are_refused() {
    let mut state = three();
    let refused = |node, why| ControlEffect::Refused { node, why };
    let (node, highest) = (3, 3);
    assert_eq!(
        announce(&mut state, 3, 3),
        ControlEffect::Announced { node }
    );
    let other = Refusal::OtherDisk { node, highest };
    assert_eq!(announce(&mut state, 3, 2), refused(3, other));
    let unknown = Refusal::NotAdded { node: 4 };
    assert_eq!(announce(&mut state, 4, 2), refused(4, unknown));
    add(&mut state, 9);
    let reused = Refusal::Reused {
        node: 4,
        highest: 9,
    };
    assert_eq!(announce(&mut state, 4, 2), refused(4, reused));
    assert_eq!(add(&mut state, 4), refused(4, reused));
    let why = Refusal::OutOfRange { node: 0 };
    assert_eq!(announce(&mut state, 0, 0), refused(0, why));
}

#[test]
fn nobody_announces_himself_before_the_cluster_exists() {
    let why = Refusal::NoCluster { node: 1 };
    assert_eq!(
        announce(&mut ControlState::default(), 1, 1),
        ControlEffect::Refused { node: 1, why }
    );
}

#[test]
fn a_node_joins_when_it_was_added_and_has_spoken() {
    let mut state = three();
    let added = ControlEffect::Added { node: 4 };
    assert_eq!(add(&mut state, 4), added);
    assert!(!state.map().nodes[&4].hosts, "nobody has heard of it yet");
    assert_eq!(
        announce(&mut state, 4, 4),
        ControlEffect::Announced { node: 4 }
    );
    assert!(state.map().nodes[&4].hosts);
    assert_eq!(&*state.nodes[&4].zone, "z", "what was said for it stays");
    assert_eq!(add(&mut state, 4), added, "it may be said twice");
    assert_eq!(&*state.nodes[&4].peer_address, "n:7000");
}

#[test]
fn never_fewer_nodes_than_copies() {
    let mut state = three();
    let ControlEffect::Refused { why, .. } = remove(&mut state, 2) else {
        panic!("three copies need three nodes");
    };
    assert!(
        why.to_string()
            .contains("2 node(s) for the 3 copies of the control group"),
        "{why}"
    );
    add(&mut state, 4);
    assert!(
        matches!(remove(&mut state, 2), ControlEffect::Refused { .. }),
        "4 has not spoken yet"
    );
    announce(&mut state, 4, 4);
    assert_eq!(remove(&mut state, 2), ControlEffect::Leaving { node: 2 });
    assert_eq!(
        remove(&mut state, 2),
        ControlEffect::Leaving { node: 2 },
        "said twice"
    );
    let map = state.map();
    assert_eq!((map.nodes[&2].hosts, map.nodes[&2].leads), (false, false));
    assert!(matches!(
        remove(&mut state, 3),
        ControlEffect::Refused { .. }
    ));
    // It holds nothing yet, but the copies of 2 are to go there.
    let ControlEffect::Refused { why, .. } = remove(&mut state, 4) else {
        panic!("2 could never leave");
    };
    assert!(
        why.to_string()
            .contains("2 node(s) for the 3 copies of the control group"),
        "{why}"
    );
    let why = Refusal::Leaving {
        node: 2,
        highest: 4,
    };
    assert_eq!(add(&mut state, 2), ControlEffect::Refused { node: 2, why });
}

#[test]
fn a_node_is_gone_when_its_last_replica_is_and_its_id_never_comes_back() {
    let mut state = three();
    add(&mut state, 4);
    announce(&mut state, 4, 4);
    remove(&mut state, 2);
    let forget = ControlCommand::ForgetNode { node: 2 };
    assert_eq!(state.apply(&forget), [], "it still holds something");
    for group in 0..=4 {
        place(&mut state, group, &[1, 3, 4]);
    }
    assert_eq!(state.apply(&forget), [ControlEffect::Gone { node: 2 }]);
    assert_eq!(state.apply(&forget), []);
    assert_eq!(remove(&mut state, 2), ControlEffect::Gone { node: 2 });
    let why = Refusal::Reused {
        node: 2,
        highest: 4,
    };
    assert_eq!(add(&mut state, 2), ControlEffect::Refused { node: 2, why });
    assert!(matches!(
        remove(&mut state, 7),
        ControlEffect::Refused { .. }
    ));
}

#[test]
fn a_replica_that_comes_back_is_a_new_peer() {
    let mut state = three();
    let old = state.groups[&1].peer_on(2);
    place(&mut state, 1, &[1, 3]);
    place(&mut state, 1, &[1, 2, 3]);
    let new = state.groups[&1].peer_on(2);
    assert_eq!((old, new), (Some(peer_id(2, 0)), Some(peer_id(2, 1))));
    assert_eq!(
        state.groups[&1].peer_on(1),
        Some(peer_id(1, 0)),
        "who stays is who he was"
    );
}

/// The new node died on the way: the old replica is still a member, and a second one beside it would never be.
#[test]
fn a_replica_that_was_to_leave_and_stays_is_who_it_was() {
    let mut state = three();
    add(&mut state, 4);
    announce(&mut state, 4, 4);
    place(&mut state, 1, &[1, 2, 4]);
    place_from(&mut state, 1, &[1, 2, 3], false);
    assert_eq!(state.groups[&1].peer_on(3), Some(peer_id(3, 0)));
    place(&mut state, 1, &[1, 2, 4]);
    assert_eq!(
        state.groups[&1].peer_on(4),
        Some(peer_id(4, 1)),
        "that one was let go"
    );
}

#[test]
fn of_two_decisions_that_saw_the_same_the_first_holds() {
    let mut state = three();
    let late = ControlCommand::Place {
        group: 1,
        version: state.groups[&1].version,
        voters: [1].into(),
        leader: 1,
        settled: true,
    };
    assert_eq!(
        place(&mut state, 1, &[1, 2]),
        [ControlEffect::Placed { group: 1 }]
    );
    assert_eq!(state.apply(&late), []);
    assert_eq!(state.groups[&1].nodes(), [1, 2].into());
}

#[test]
fn who_rests_does_not_lead() {
    let mut state = three();
    let rest = Rest {
        process: 7,
        until_ms: 9,
    };
    state.apply(&ControlCommand::Rest { node: 1, rest });
    assert!(state.map().leaders().values().all(|leader| *leader != 1));
    state.apply(&ControlCommand::EndRest { node: 1 });
    assert!(state.map().leaders().values().any(|leader| *leader == 1));
}

#[test]
fn a_new_replica_hears_of_the_members_that_its_groups_log_began_with_whatever_the_copies_are_now() {
    let mut state = three();
    let first = state.first_groups();
    assert_eq!(first, state.groups);
    for node in [4, 5] {
        add(&mut state, node);
        announce(&mut state, node, node as u8);
    }
    assert_eq!(copies(&mut state, 5), ControlEffect::Copies { factor: 5 });
    assert_eq!(state.first_groups(), first);
    assert_eq!(copies(&mut state, 1), ControlEffect::Copies { factor: 1 });
    assert_eq!(state.first_groups(), first);
}

#[test]
fn the_number_of_copies_changes_while_there_are_nodes_for_them_and_the_planner_follows() {
    let mut state = three();
    let refused = |why| ControlEffect::Refused { node: 0, why };
    for factor in [0, 2, 4, 7] {
        assert_eq!(
            copies(&mut state, factor),
            refused(Refusal::BadFactor { factor })
        );
    }
    let few = Refusal::TooFewForCopies {
        factor: 5,
        nodes: 3,
    };
    assert_eq!(copies(&mut state, 5), refused(few));
    assert!(few.to_string().contains("need 5 nodes, and 3 can have one"));
    for node in [4, 5] {
        add(&mut state, node);
        announce(&mut state, node, node as u8);
    }
    for factor in [5, 1, 3] {
        assert_eq!(copies(&mut state, factor), ControlEffect::Copies { factor });
        // One replica of one group at a time.
        while let Some((id, change)) = state.map().next(&BTreeSet::new()) {
            let mut map = state.map();
            let before = map.groups[&id].voters.clone();
            map.apply(id, change);
            let after: Vec<u64> = map.groups[&id].voters.iter().copied().collect();
            let changed = before.iter().filter(|node| !after.contains(node)).count();
            assert!(changed <= 1 && after.len().abs_diff(before.len()) <= 1);
            assert!(!place(&mut state, id, &after).is_empty());
        }
        assert!(
            state
                .groups
                .values()
                .all(|group| group.voters.len() == factor as usize)
        );
    }
    assert_eq!(remove(&mut state, 5), ControlEffect::Leaving { node: 5 });
}
