//! The scheduler: a property over everything that can happen to it (`property`), and what must not, by name.

mod leader;
mod property;

use std::collections::BTreeSet;

use leader::{Leader, SIZE};
use mail::Ulid;
use queue::ItemId;
use queue::scheduler::{Credit, HEADS_PER_DESTINATION_MAX, Limits, OCTETS_SHARE, WINDOW_ITEMS};

use crate::common::{START_MS, destination, ulid};

#[test]
fn a_destination_with_much_mail_neither_fills_memory_nor_delays_the_others() {
    let mut leader = Leader::new(Limits::default());
    let session = leader.open("node", &[]);
    for _ in 0..5_000 {
        leader.append("big.example", "default", 0);
    }
    let small: BTreeSet<ItemId> = (0..50)
        .map(|n| leader.append(&format!("s{n}.example"), "default", 0))
        .collect();
    leader.load();
    assert!(leader.scheduler.heads() <= HEADS_PER_DESTINATION_MAX + small.len());
    // One turn of the ring serves every destination.
    let picked: BTreeSet<ItemId> = leader.pick(session, small.len() + 1).into_iter().collect();
    assert!(small.is_subset(&picked));
    // All of the big one goes out in time, in windows.
    let mut delivered = 0;
    for _ in 0..1_000 {
        leader.commit();
        let leased = leader.leased();
        assert!(leased.len() <= WINDOW_ITEMS as usize + small.len());
        delivered += leased.len();
        leased
            .into_iter()
            .for_each(|grant| leader.settle(grant, None));
        leader.load();
        leader.pick(session, 100);
    }
    assert_eq!(delivered, 5_050);
    assert_eq!(leader.scheduler.heads(), 0);
}

/// A host that does not answer, and large mail for it in every shard: the node's octets must not all become its own.
#[test]
fn large_mail_for_a_silent_host_leaves_octets_of_credit_to_the_others() {
    const TOTAL: u64 = SIZE * 20;
    let mut leader = Leader::new(Limits::default());
    let session = leader.open("node", &[]);
    leader.load();
    for _ in 0..15 {
        leader.append("silent.example", "default", 0);
    }
    let credit = |held: usize| Credit {
        items: 100,
        bytes: TOTAL - held as u64 * SIZE,
    };
    let mut held = leader.pick_within(session, credit(0)).len();
    assert!(held as u64 * SIZE <= TOTAL / OCTETS_SHARE, "{held} held");
    assert!(held > 1);
    assert_eq!(leader.pick_within(session, credit(held)), []);
    // The others go on; what they took of the credit comes back, and changes nothing for the silent one.
    for _ in 0..50 {
        let other = leader.append("other.example", "default", 0);
        assert_eq!(leader.pick_within(session, credit(held)), [other]);
        while !leader.proposed.is_empty() {
            leader.commit();
        }
        let grant = leader.leased().into_iter().find(|g| g.0 == other).unwrap();
        leader.settle(grant, None);
    }
    // Once it answers, its mail goes too.
    for _ in 0..100 {
        let Some(grant) = leader.leased().pop() else {
            break;
        };
        leader.settle(grant, None);
        held = held - 1 + leader.pick_within(session, credit(held - 1)).len();
        leader.commit();
    }
    assert_eq!((held, leader.scheduler.heads()), (0, 0));
}

/// Nothing waits for it, and yet the next message for it does not go out with its Append.
#[test]
fn large_mail_that_arrives_for_a_silent_host_waits_too() {
    let mut leader = Leader::new(Limits::default());
    let session = leader.open("node", &[]);
    leader.load();
    let to = destination("silent.example");
    let mut left = SIZE * 20;
    for held in 0..5 {
        let now = leader.now();
        assert!(
            leader.scheduler.express(session, &to, "default", now, left),
            "{held}"
        );
        let item = ItemId {
            message: ulid(START_MS, held + 1),
            number: 0,
        };
        leader.scheduler.reserve(session, item, &to, SIZE);
        left -= SIZE;
    }
    let now = leader.now();
    assert!(!leader.scheduler.express(session, &to, "default", now, left));
    let other = destination("other.example");
    assert!(
        leader
            .scheduler
            .express(session, &other, "default", now, left)
    );
    assert!(
        leader
            .scheduler
            .express(session, &to, "default", now, SIZE * 20)
    );
}

#[test]
fn the_urgent_go_first_and_the_others_still_go() {
    let mut leader = Leader::new(Limits::default());
    let session = leader.open("node", &[]);
    leader.load();
    let low = leader.append("a.example", "default", -5);
    for _ in 0..15 {
        leader.append("a.example", "default", 5);
    }
    let picked = leader.pick(session, 20);
    assert_ne!(picked[0], low);
    assert!(
        picked[..8].contains(&low),
        "the eighth takes the oldest of the least urgent"
    );
}

#[test]
fn a_busy_destination_leaves_the_ring_until_its_time() {
    let mut leader = Leader::new(Limits::default());
    let session = leader.open("node", &[]);
    leader.load();
    let item = leader.append("a.example", "default", 0);
    let until = leader.now().plus(5_000);
    leader
        .scheduler
        .busy(session, &destination("a.example"), until);
    assert_eq!(leader.pick(session, 9), []);
    assert_eq!(leader.scheduler.next_wake(), Some(until));
    leader.world.now += 5_000;
    assert_eq!(leader.pick(session, 9), [item]);
}

#[test]
fn a_deferred_item_is_picked_when_it_is_due_and_not_before() {
    let mut leader = Leader::new(Limits::default());
    let session = leader.open("node", &[]);
    let item = leader.append("a.example", "default", 0);
    leader.load();
    leader.pick(session, 1);
    leader.commit();
    let due = leader.now().plus(3_600_000);
    let grant = leader.leased()[0];
    leader.settle(grant, Some(due));
    // In an otherwise idle shard nothing but its own wake-ups brings it out.
    let mut wakes = 0;
    while leader.pick(session, 1).is_empty() {
        assert!(leader.world.now < due.0, "due, and not picked");
        leader.load();
        let wake = leader.scheduler.next_wake().expect("it waits");
        leader.world.now = leader.world.now.max(wake.0);
        wakes += 1;
    }
    assert_eq!((leader.world.now, leader.proposed[0].1[0]), (due.0, item));
    assert!(wakes < 70, "once a minute at most");
    assert_ne!(item.message, Ulid::nil());
}
