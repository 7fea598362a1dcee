//! A whole shard in one thread and virtual time: real Raft groups and the real state machine over simulated disks,
//! network, edges and delivery nodes. One seed is one run; a failing one is replayed with
//! `SEED=n cargo test -p tests --test sim -- --nocapture`. See tests/README.md.

mod actions;
mod delivery;
mod disk;
mod edge;
mod gate;
mod leader;
mod model;
#[cfg(feature = "planted-bugs")]
mod mutations;
mod net;
mod replica;
mod rng;
mod world;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once};

use world::{Outcome, Planted, World};

/// Seeds of a usual run: below a hundred, a vote that is not waited for stays unnoticed.
const SEEDS: u64 = 256;
/// Steps of chaos; healing, quiescing and settling come on top.
const CHAOS_STEPS: u64 = 2400;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// One seed; a panic of raft-rs is a failure like any other.
fn run(seed: u64, planted: Planted, trace: bool) -> Result<Outcome, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                usual(info);
            }
        }));
    });
    QUIET.set(!trace);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        World::new(seed, planted, trace).run(CHAOS_STEPS)
    }));
    QUIET.set(false);
    outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
        Err(format!("panic: {}", text.unwrap_or_default()))
    })
}

fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} must be a number, not {text:?}")),
    )
}

/// Runs seeds 1 to `seeds` on all cores; the failures, or all outcomes.
fn run_all(seeds: u64, planted: Planted) -> (Vec<Outcome>, BTreeMap<u64, String>) {
    let next = AtomicU64::new(1);
    let outcomes = Mutex::new(Vec::new());
    let failures = Mutex::new(BTreeMap::new());
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > seeds {
                        return;
                    }
                    match run(seed, planted, false) {
                        Ok(outcome) => outcomes.lock().expect("no thread panics").push(outcome),
                        Err(error) => {
                            failures
                                .lock()
                                .expect("no thread panics")
                                .insert(seed, error);
                        }
                    }
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().expect("no thread panics");
    (outcomes, failures.into_inner().expect("no thread panics"))
}

#[test]
fn no_acknowledged_message_is_lost() {
    if let Some(seed) = number_from("SEED") {
        let outcome = run(seed, Planted::default(), true);
        println!("seed {seed}: {outcome:?}");
        outcome.expect("this seed fails");
        return;
    }
    let seeds = number_from("SEEDS").unwrap_or(SEEDS);
    let (outcomes, failures) = run_all(seeds, Planted::default());
    let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
    println!(
        "{seeds} seeds: {} messages acknowledged, {} entries, {} grants, {} second deliveries",
        sum(|outcome| outcome.acked),
        sum(|outcome| outcome.committed),
        sum(|outcome| outcome.grants),
        sum(|outcome| outcome.duplicates),
    );
    for (seed, error) in failures.iter().take(10) {
        println!(
            "seed {seed}: {error}\n  SEED={seed} cargo test -p tests --test sim -- --nocapture no_ack"
        );
    }
    assert!(
        failures.is_empty(),
        "{} of {seeds} seeds fail",
        failures.len()
    );
    assert!(
        sum(|outcome| outcome.acked) > seeds * 20,
        "hardly anything was acknowledged: the run proves nothing"
    );
}

#[test]
fn the_same_seed_twice_is_the_same_run() {
    for seed in [3, 7, 10] {
        let once = run(seed, Planted::default(), false);
        assert_eq!(
            once,
            run(seed, Planted::default(), false),
            "seed {seed} differs from itself"
        );
    }
}

#[test]
fn a_disk_that_loses_a_flushed_write_is_noticed() {
    let planted = Planted::lying_disk();
    let found = (1..=20).find_map(|seed| Some((seed, run(seed, planted, false).err()?)));
    let (seed, error) = found.expect("the simulator misses a lying disk");
    println!("LoseFlushedWrite: seed {seed}: {error}");
}
