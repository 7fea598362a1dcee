//! The gate of a leader whose own vote is not durable. With three voters it never shows: a candidate's vote is durable
//! before anybody else's counts. One voter and a learner show it: the voter leads by its own vote alone.

use spool::log::HardState;
use spool::node::{Action, Group, GroupConfig, Input, Membership};
use spool::storage::{CacheBudget, GroupLog};

fn single_voter() -> Group {
    let members = Membership {
        voters: vec![1],
        learners: vec![2],
        ..Membership::default()
    };
    let config = GroupConfig {
        election_ticks: 10..11,
        ..GroupConfig::new(1, 1, members)
    };
    let log = GroupLog::new(CacheBudget::new(1 << 20));
    Group::new(config, log, HardState::default(), 0).expect("an empty disk is a good start")
}

/// What leaves before the first write is durable, and what after.
fn election(group: &mut Group) -> (usize, usize) {
    let mut numbers = Vec::new();
    let mut count = |actions: Vec<Action>| {
        let mut sent = 0;
        for action in actions {
            match action {
                Action::Write(task) => numbers.push((task.number, task.entries.len())),
                Action::Send(messages) => sent += messages.len(),
                _ => {}
            }
        }
        sent
    };
    let mut before = 0;
    for _ in 0..15 {
        group.handle(Input::Tick);
        before += count(group.drain());
    }
    let &(number, _) = numbers.last().expect("a new term and vote are written");
    group.handle(Input::Persisted {
        number,
        locations: Vec::new(),
    });
    let after = group.drain().into_iter().map(|action| match action {
        Action::Send(messages) => messages.len(),
        _ => 0,
    });
    (before, after.sum())
}

#[test]
fn a_leader_says_nothing_before_its_own_vote_is_durable() {
    let (before, after) = election(&mut single_voter());
    assert_eq!(
        before, 0,
        "the learner hears of a term that a crash would undo"
    );
    assert!(after > 0, "what was held must leave");
}

#[cfg(feature = "planted-bugs")]
#[test]
fn without_the_gate_the_learner_hears_of_a_term_that_is_not_durable() {
    let mut group = single_voter();
    group.plant(Some(spool::node::Mutation::NoGate));
    assert!(
        election(&mut group).0 > 0,
        "the bug does not show: the scenario proves nothing"
    );
}
