//! The simulation of a shard (`tests::sim`): every profile over many seeds. A failing seed is replayed with
//! `SEED=n cargo test -p tests --test sim -- --nocapture PROFILE`. See tests/README.md.

mod gate;

use tests::sim::{Planted, Profile, hunt, number_from, own_bugs, run, run_all};

/// Seeds of a usual run: below a hundred, a vote that is not waited for stays unnoticed.
const SEEDS: u64 = 256;

/// `SEED=n`: one seed with its trace. `SEEDS=n`, `FROM=n`: so many. `PROFILE=name`: only that profile.
fn holds(profile: Profile) {
    let wanted = std::env::var("PROFILE").ok();
    if wanted.is_some_and(|wanted| wanted != profile.name()) {
        return;
    }
    if let Some(seed) = number_from("SEED") {
        let outcome = run(seed, profile, Planted::default(), true);
        println!("{} seed {seed}: {outcome:?}", profile.name());
        outcome.expect("this seed fails");
        return;
    }
    let seeds = number_from("SEEDS").unwrap_or(SEEDS);
    let batch = run_all(profile, number_from("FROM").unwrap_or(1), seeds);
    println!("{batch}");
    let failed = batch.failures.len();
    assert_eq!(failed, 0, "{failed} of {seeds} seeds fail");
    assert!(
        batch.sum(|outcome| outcome.acked) > seeds * 20,
        "hardly anything was acknowledged: the run proves nothing"
    );
    if profile == Profile::Calm {
        let twice = |outcome: &tests::sim::Outcome| outcome.duplicates.iter().sum();
        assert_eq!(batch.sum(twice), 0, "nothing forces a second delivery here");
    }
}

#[test]
fn mixed() {
    holds(Profile::Mixed);
}

#[test]
fn calm() {
    holds(Profile::Calm);
}

#[test]
fn crashes() {
    holds(Profile::Crashes);
}

#[test]
fn network() {
    holds(Profile::Network);
}

#[test]
fn disk() {
    holds(Profile::Disk);
}

#[test]
fn clocks() {
    holds(Profile::Clocks);
}

#[test]
fn collect() {
    holds(Profile::Collect);
}

#[test]
fn clients() {
    holds(Profile::Clients);
}

#[test]
fn versions() {
    holds(Profile::Versions);
}

#[test]
fn churn() {
    holds(Profile::Churn);
}

#[test]
fn the_same_seed_twice_is_the_same_run() {
    for profile in Profile::ALL {
        for seed in [3, 7, 10] {
            let once = run(seed, profile, Planted::default(), false);
            assert_eq!(
                once,
                run(seed, profile, Planted::default(), false),
                "{} seed {seed} differs from itself",
                profile.name()
            );
        }
    }
}

#[test]
fn bugs_outside_the_replica_are_found() {
    for bug in own_bugs() {
        let found = hunt(&bug, 600);
        let (seed, error) = found.unwrap_or_else(|| panic!("the simulator misses {}", bug.name));
        println!("{}: {} seed {seed}: {error}", bug.name, bug.profile.name());
    }
}

#[test]
fn replicas_of_two_versions_raise_the_version_together() {
    let none = Planted::default();
    let runs: Vec<_> = (1..=24)
        .map(|seed| run(seed, Profile::Versions, none, false).expect("a sound run"))
        .collect();
    let mixed = runs.iter().filter(|outcome| outcome.mixed > 0);
    assert!(mixed.count() > 8, "hardly any run began with two versions");
    for outcome in runs {
        assert_eq!(outcome.version, queue::version::NEWEST);
        assert!(outcome.digests > 5, "hardly any digests: {outcome:?}");
    }
}
