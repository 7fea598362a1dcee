//! Full disks, as a group sees them.

use super::*;

fn room_with_full(full: &[u64]) -> Room {
    let mut room = Room::of_three();
    room.tick(12);
    assert_eq!(room.leader(), Some(0));
    for k in 0..3 {
        for &peer in full {
            room.handle(k, Input::PeerFull { peer, full: true });
        }
    }
    room
}

fn last_of(room: &Room, k: usize) -> u64 {
    room.groups[k].status().last
}

#[test]
fn one_full_follower_is_spared_and_two_are_not() {
    let mut room = room_with_full(&[3]);
    let before = last_of(&room, 2);
    for ticket in 1..=5 {
        room.handle(0, Input::Propose(vec![proposal(ticket, 10)]));
        room.tick(2);
    }
    assert_eq!(last_of(&room, 1), before + 5);
    assert_eq!(last_of(&room, 2), before, "the others can do without it");

    // Nobody can do without both: what frees space must get through.
    room.handle(
        0,
        Input::PeerFull {
            peer: 2,
            full: true,
        },
    );
    room.handle(0, Input::Propose(vec![proposal(6, 10)]));
    room.tick(10);
    assert_eq!(
        (last_of(&room, 1), last_of(&room, 2)),
        (before + 6, before + 6)
    );
    assert_eq!(room.groups[0].status().committed, before + 6);
}

#[test]
fn a_leader_with_a_full_disk_hands_over_to_one_with_room() {
    let mut room = room_with_full(&[1, 2]);
    room.tick(40);
    assert_eq!(
        room.leader(),
        Some(0),
        "with two full there is nobody who could do better"
    );
    for k in 0..3 {
        room.handle(
            k,
            Input::PeerFull {
                peer: 2,
                full: false,
            },
        );
        room.handle(
            k,
            Input::PeerFull {
                peer: 3,
                full: true,
            },
        );
        room.handle(
            k,
            Input::PeerFull {
                peer: 1,
                full: false,
            },
        );
        room.handle(
            k,
            Input::PeerFull {
                peer: 3,
                full: false,
            },
        );
        room.handle(
            k,
            Input::PeerFull {
                peer: 1,
                full: true,
            },
        );
    }
    room.tick(40);
    assert!(matches!(room.leader(), Some(1 | 2)), "{:?}", room.leader());
}

#[test]
fn a_full_disk_is_waited_for_and_then_is_as_new() {
    let mut room = room_with_full(&[2]);
    room.hung = Some(1);
    room.handle(
        0,
        Input::PeerFull {
            peer: 2,
            full: false,
        },
    );
    room.handle(0, Input::Propose(vec![proposal(1, 10)]));
    room.tick(700);
    let died = |event: &(usize, Action)| matches!(event, (1, Action::Abort { .. }));
    assert!(!room.events.iter().any(died), "it waits for room");
    room.handle(
        1,
        Input::PeerFull {
            peer: 2,
            full: false,
        },
    );
    room.tick(500);
    assert!(!room.events.iter().any(died), "it has its 30 s from now on");
    room.tick(200);
    assert!(room.events.iter().any(died));
}

#[test]
fn a_follower_that_is_full_and_stuck_does_not_stop_the_others_for_good() {
    let mut room = room_with_full(&[3]);
    for ticket in 1..=5 {
        room.handle(0, Input::Propose(vec![proposal(ticket, 10)]));
    }
    let truncate = |room: &mut Room| {
        let upto = room.groups[0].status().committed;
        for index in 1..=upto {
            room.handle(0, Input::Applied { index });
        }
        let over_budget = true;
        room.handle(0, Input::Truncate { upto, over_budget });
        room.groups[0].status().first > upto
    };
    assert!(!truncate(&mut room), "the log keeps what the third lacks");
    room.tick(300);
    assert!(!truncate(&mut room), "our disk has room, so it is kept on");
    // Ours is full too, the second's is not: the third goes on to be spared, and we cannot go on for its sake.
    room.handle(
        0,
        Input::PeerFull {
            peer: 1,
            full: true,
        },
    );
    room.deaf = Some(2);
    truncate(&mut room);
    room.tick(250);
    assert!(truncate(&mut room));
    let status = room.groups[0].status();
    let left = |peer| {
        status
            .peers
            .iter()
            .any(|p| p.peer == peer && p.needs_snapshot)
    };
    assert!(left(3) && !left(2));
}

/// A bounce is written in the entry of its settle, and so has data. Followers took it for mail: no reserved segment, and on
/// full disks the group stood still behind it.
#[test]
fn followers_see_that_a_settle_with_a_report_is_no_mail() {
    let config = |peer| GroupConfig {
        brings_mail: |context| context.first() == Some(&b'm'),
        ..config(peer, &[1, 2, 3])
    };
    let mut room = Room::new((1..=3).map(|peer| group(config(peer), 1 << 20)).collect());
    room.tick(12);
    let entry = |ticket, context: &'static [u8], urgent| Proposal {
        context: Bytes::from_static(context),
        urgent,
        ..proposal(ticket, 100)
    };
    for (context, urgent) in [(&b"mail"[..], false), (&b"settle"[..], true)] {
        room.written.clear();
        room.handle(0, Input::Propose(vec![entry(1, context, urgent)]));
        room.written.sort_unstable();
        room.written.dedup();
        assert_eq!(room.written, [(0, urgent), (1, urgent), (2, urgent)]);
    }
}

/// cockroach#90314, etcd#14624, nats#7233, tikv#12247: limits counted messages, and a follower with a slow disk ran out of
/// memory. All groups of a node share one budget, and what is not on disk yet cannot be evicted.
#[test]
fn trap_7_a_follower_whose_disk_stands_still_keeps_a_bounded_number_of_octets() {
    const LIMIT: usize = 1 << 20;
    const OCTETS: usize = 128 << 10;
    let budgets: Vec<_> = (0..3).map(|_| CacheBudget::new(LIMIT)).collect();
    let groups = (1..=3).zip(&budgets).map(|(peer, budget)| {
        let log = GroupLog::new(budget.clone());
        Group::new(config(peer, &[1, 2, 3]), log, HardState::default(), 0).unwrap()
    });
    let mut room = Room::new(groups.collect());
    room.tick(12);
    room.hung = Some(1);
    for ticket in 1..=200 {
        room.handle(0, Input::Propose(vec![proposal(ticket, OCTETS)]));
        room.tick(1);
        let used = budgets[1].used();
        assert!(
            used <= 2 * LIMIT + 2 * OCTETS,
            "{used} octets after {ticket}"
        );
    }
    assert!(room.committed(200), "the others go on");
    assert!(budgets[1].used() > LIMIT, "the bound was reached");
}
