//! Members that change: each step, and a leader that dies between any two of them.

use super::super::tests::{Room, config, group};
use super::super::*;
use super::*;

fn members(voters: &[u64], learners: &[u64], outgoing: &[u64]) -> Membership {
    Membership {
        voters: voters.to_vec(),
        learners: learners.to_vec(),
        voters_outgoing: outgoing.to_vec(),
        ..Membership::default()
    }
}

fn plan(voters: &[u64]) -> Plan {
    Plan {
        version: 1,
        voters: voters.iter().copied().collect(),
        leader: 0,
    }
}

fn step(own: u64, members: &Membership, plan: &Plan) -> Option<Step> {
    let sight = Sight {
        own,
        ready: &|_| true,
        alive: &|_| true,
    };
    next_step(members, Some(plan), &sight)
}

#[test]
fn a_copy_moves_by_learner_swap_leave_and_drop() {
    let wanted = plan(&[1, 2, 4]);
    let ask = |members: &Membership| step(1, members, &wanted);
    assert_eq!(
        ask(&members(&[1, 2, 3], &[], &[])),
        Some(Step::AddLearner(4))
    );
    let swap = Step::Swap {
        promote: vec![4],
        demote: vec![3],
    };
    assert_eq!(ask(&members(&[1, 2, 3], &[4], &[])), Some(swap));
    let joint = members(&[1, 2, 4], &[], &[1, 2, 3]);
    assert_eq!(ask(&joint), Some(Step::LeaveJoint));
    assert_eq!(ask(&members(&[1, 2, 4], &[3], &[])), Some(Step::Drop(3)));
    assert_eq!(ask(&members(&[1, 2, 4], &[], &[])), None);
}

#[test]
fn a_leader_that_goes_hands_over_when_the_new_one_is_whole_and_never_removes_itself() {
    let wanted = plan(&[2, 3, 4]);
    let ask = |own, members: &Membership| step(own, members, &wanted);
    assert_eq!(
        ask(1, &members(&[1, 2, 3], &[], &[])),
        Some(Step::AddLearner(4))
    );
    assert_eq!(ask(1, &members(&[1, 2, 3], &[4], &[])), Some(Step::Lead(2)));
    // Elected in the joint configuration that another began.
    assert_eq!(
        ask(1, &members(&[2, 3, 4], &[], &[1, 2, 3])),
        Some(Step::Lead(2))
    );
}

/// Two copies moved at once, and the disk of the only one that was to stay was lost: the leader, which was to go, waited for it
/// for ever. Found by the simulation (churn).
#[test]
fn a_leader_that_goes_does_not_wait_for_an_heir_that_is_lost() {
    let wanted = plan(&[2, 5, 7]);
    let ask = |own, members: &Membership| {
        let sight = Sight {
            own,
            ready: &|_| true,
            alive: &|peer| peer != 2,
        };
        next_step(members, Some(&wanted), &sight)
    };
    let swap = |promote: &[u64], demote: &[u64]| {
        let (promote, demote) = (promote.to_vec(), demote.to_vec());
        Some(Step::Swap { promote, demote })
    };
    let now = members(&[1, 2, 3], &[5, 7], &[]);
    assert_eq!(ask(3, &now), swap(&[5, 7], &[]));
    let all = members(&[1, 2, 3, 5, 7], &[], &[]);
    assert_eq!(ask(3, &all), Some(Step::Lead(5)));
    assert_eq!(ask(5, &all), swap(&[], &[1, 3]));
    // Without anybody to promote there is nothing to do but to wait.
    let sight = Sight {
        own: 1,
        ready: &|_| true,
        alive: &|peer| peer == 1,
    };
    let last = members(&[1, 2], &[], &[]);
    assert_eq!(next_step(&last, Some(&plan(&[2])), &sight), None);
}

#[test]
fn one_copy_moves_too() {
    let wanted = plan(&[2]);
    let swap = |promote: &[u64], demote: &[u64]| {
        let (promote, demote) = (promote.to_vec(), demote.to_vec());
        Some(Step::Swap { promote, demote })
    };
    assert_eq!(step(1, &members(&[1], &[2], &[]), &wanted), swap(&[2], &[]));
    assert_eq!(
        step(1, &members(&[1, 2], &[], &[]), &wanted),
        Some(Step::Lead(2))
    );
    assert_eq!(
        step(2, &members(&[1, 2], &[], &[]), &wanted),
        swap(&[], &[1])
    );
}

#[test]
fn nothing_is_swapped_for_a_learner_that_lags_or_towards_a_majority_that_is_silent() {
    let now = members(&[1, 2, 3], &[4], &[]);
    let ask = |ready: bool, alive: &dyn Fn(u64) -> bool| {
        let ready = move |_| ready;
        let sight = Sight {
            own: 1,
            ready: &ready,
            alive,
        };
        next_step(&now, Some(&plan(&[1, 3, 4])), &sight)
    };
    assert_eq!(ask(false, &|_| true), None);
    assert!(
        ask(true, &|peer| peer != 2).is_some(),
        "2 is the one that is lost"
    );
    assert_eq!(ask(true, &|peer| peer == 1 || peer == 2), None);
}

/// Peers 1 to `count`, of which the first three are the group.
fn room(count: u64) -> Room {
    Room::new(
        (1..=count)
            .map(|peer| group(config(peer, &[1, 2, 3]), 1 << 20))
            .collect(),
    )
}

fn tell(room: &mut Room, plan: &Plan) {
    for k in 0..room.groups.len() {
        room.handle(k, Input::Plan(plan.clone()));
    }
}

fn arrived(room: &Room, voters: &[u64]) -> bool {
    let leader = room.leader().map(|k| &room.groups[k]);
    leader.is_some_and(|leader| {
        let mut now = leader.members().clone();
        now.voters.sort_unstable();
        now == members(voters, &[], &[])
    })
}

#[test]
fn three_become_others_one_after_another_and_what_was_committed_stays() {
    let mut room = room(6);
    room.tick(12);
    room.handle(
        0,
        Input::Propose(vec![super::super::tests::proposal(7, 10)]),
    );
    for (version, voters) in [(1, [2, 3, 4]), (2, [3, 4, 5]), (3, [4, 5, 6])] {
        let plan = Plan {
            version,
            ..plan(&voters)
        };
        tell(&mut room, &plan);
        room.tick(150);
        assert!(
            arrived(&room, &voters),
            "{version}: {:?}",
            room.leader().map(|k| room.groups[k].members())
        );
    }
    let leader = room.leader().expect("somebody leads");
    assert!(leader >= 3, "one of the new ones leads");
    assert!(room.committed(7));
    assert!(room.groups[5].status().applied >= 2, "the new ones have it");
}

#[test]
fn an_older_plan_is_not_listened_to() {
    let mut room = room(4);
    room.tick(12);
    let newer = Plan {
        version: 2,
        ..plan(&[1, 2, 4])
    };
    tell(&mut room, &newer);
    tell(&mut room, &plan(&[1, 2, 3]));
    room.tick(120);
    assert!(arrived(&room, &[1, 2, 4]));
}

/// The control group's leader, cut off, says that the members were settled without a replica; a leader with an older plan
/// has taken it back since. Destroyed, it would leave what only it and one other have on one disk.
#[test]
fn a_replica_that_a_leader_counts_on_is_needed_and_one_that_left_is_not() {
    let mut room = room(4);
    room.tick(12);
    let there = Plan {
        version: 2,
        ..plan(&[1, 2, 4])
    };
    tell(&mut room, &there);
    room.tick(150);
    assert!(arrived(&room, &[1, 2, 4]));
    let needed = |room: &Room| -> Vec<bool> { room.groups.iter().map(Group::is_needed).collect() };
    assert_eq!(needed(&room), [true, true, false, true]);
    let back = Plan {
        version: 3,
        ..plan(&[1, 2, 3])
    };
    tell(&mut room, &back);
    room.tick(150);
    assert!(arrived(&room, &[1, 2, 3]));
    assert_eq!(needed(&room), [true, true, true, false]);
}

/// etcd#12136, redpanda#6798: stuck in a joint configuration when its leader died there.
#[test]
fn whoever_leads_next_finishes_what_a_leader_began_wherever_it_died() {
    for died_after in 0..120 {
        let mut room = room(4);
        room.tick(12);
        tell(&mut room, &plan(&[1, 2, 4]));
        room.tick(died_after);
        let Some(leader) = room.leader() else {
            continue;
        };
        // It hears nothing and says nothing any more.
        room.dead = Some(leader);
        room.tick(200);
        let living = (0..4).filter(|k| *k != leader);
        let leads = living
            .clone()
            .find(|k| room.groups[*k].role() == Role::Leader);
        let leads =
            leads.unwrap_or_else(|| panic!("nobody leads when {leader} died after {died_after}"));
        let now = room.groups[leads].members().clone();
        assert!(now.voters_outgoing.is_empty(), "{died_after}: {now:?}");
        assert!(
            now.voters.contains(&4) && !now.voters.contains(&3),
            "{died_after}: {now:?}"
        );
    }
}

#[test]
fn the_one_that_should_lead_does_after_a_while() {
    let mut room = room(3);
    room.tick(12);
    assert_eq!(room.leader(), Some(0));
    let preferred = Plan {
        leader: 3,
        ..plan(&[1, 2, 3])
    };
    tell(&mut room, &preferred);
    room.tick(50);
    assert_eq!(room.leader(), Some(0), "not at once");
    room.tick(80);
    assert_eq!(room.leader(), Some(2));
    room.handle(
        2,
        Input::PeerFull {
            peer: 3,
            full: true,
        },
    );
    room.tick(60);
    assert_ne!(
        room.leader(),
        Some(2),
        "a full disk does not lead while others can"
    );
    room.tick(300);
    assert_ne!(room.leader(), Some(2));
}
