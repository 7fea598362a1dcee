//! The simulator is worth what it finds: each of these bugs was made by some system in earnest.

use spool::node::Mutation;

use crate::world::Planted;
use crate::{number_from, run};

/// Seeds that a planted bug may survive.
const SEEDS: u64 = 600;

#[test]
fn every_planted_bug_is_found() {
    let mutations = [
        Mutation::FollowerEarly,
        Mutation::AckLocal,
        Mutation::Fifo,
        Mutation::EmptyEarly,
        Mutation::NoTermCheck,
        Mutation::TermVoteNotWaited,
    ];
    let mut missed = Vec::new();
    std::thread::scope(|scope| {
        let hunts: Vec<_> = mutations
            .map(|mutation| (mutation, scope.spawn(move || hunt(mutation))))
            .into();
        for (mutation, hunt) in hunts {
            match hunt.join().expect("a run does not panic") {
                Some((seed, error)) => println!("{mutation:?}: seed {seed}: {error}"),
                None => missed.push(mutation),
            }
        }
    });
    assert!(missed.is_empty(), "the simulator misses {missed:?}");
}

fn hunt(mutation: Mutation) -> Option<(u64, String)> {
    let planted = Planted {
        mutation: Some(mutation),
        ..Planted::default()
    };
    let seeds = number_from("SEEDS").unwrap_or(SEEDS);
    (1..=seeds).find_map(|seed| Some((seed, run(seed, planted, false).err()?)))
}
