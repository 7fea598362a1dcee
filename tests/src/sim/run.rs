//! Runs of many seeds on all cores, and the words about them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::sim::planted::{Bug, Planted};
use crate::sim::profile::Profile;
use crate::sim::world::{Outcome, World};

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// One seed; a panic of raft-rs is a failure like any other.
pub fn run(seed: u64, profile: Profile, planted: Planted, trace: bool) -> Result<Outcome, String> {
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
        World::new(seed, profile, planted, trace).run(profile.chaos_steps())
    }));
    QUIET.set(false);
    planted.clear();
    outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
        Err(format!("panic: {}", text.unwrap_or_default()))
    })
}

/// A number from the environment; no number there is a mistake of whoever set it.
pub fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} must be a number, not {text:?}")),
    )
}

/// What many seeds of a profile came to.
pub struct Batch {
    /// Which.
    pub profile: Profile,
    /// How many, from the first on.
    pub seeds: u64,
    /// Those that passed.
    pub outcomes: Vec<Outcome>,
    /// Those that failed, and why.
    pub failures: BTreeMap<u64, String>,
}

impl Batch {
    /// A count over all seeds that passed.
    pub fn sum(&self, of: fn(&Outcome) -> u64) -> u64 {
        self.outcomes.iter().map(of).sum()
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.profile.name();
        let [died, lost, ran_out] = [0, 1, 2].map(|at| {
            let of = |outcome: &Outcome| outcome.duplicates[at];
            self.outcomes.iter().map(of).sum::<u64>()
        });
        writeln!(
            f,
            "{name}: {} seeds: {} messages tried, {} acknowledged, {} expired; {} entries, {} grants; second deliveries: \
             {died} died past the dot, {lost} lost the journal, {ran_out} lost the lease session; {} segments recycled, {} octets of \
             bodies copied, \
             {} replicas stopped for good, {} placements, {} snapshots",
            self.seeds,
            self.sum(|outcome| outcome.attempted),
            self.sum(|outcome| outcome.acked),
            self.sum(|outcome| outcome.expired),
            self.sum(|outcome| outcome.committed),
            self.sum(|outcome| outcome.grants),
            self.sum(|outcome| outcome.recycled),
            self.sum(|outcome| outcome.copied),
            self.sum(|outcome| outcome.dead),
            self.sum(|outcome| outcome.moves),
            self.sum(|outcome| outcome.snapshots),
        )?;
        for (seed, error) in self.failures.iter().take(10) {
            writeln!(
                f,
                "seed {seed}: {error}\n  to replay: SEED={seed} cargo test -p tests --test sim -- --nocapture {name}"
            )?;
        }
        Ok(())
    }
}

/// Runs `seeds` seeds from `first` on, on all cores.
pub fn run_all(profile: Profile, first: u64, seeds: u64) -> Batch {
    let next = AtomicU64::new(first);
    let outcomes = Mutex::new(Vec::new());
    let failures = Mutex::new(BTreeMap::new());
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
                        return;
                    }
                    match run(seed, profile, Planted::default(), false) {
                        Ok(outcome) => {
                            let mut outcomes =
                                outcomes.lock().unwrap_or_else(PoisonError::into_inner);
                            outcomes.push(outcome);
                        }
                        Err(error) => {
                            let mut failures =
                                failures.lock().unwrap_or_else(PoisonError::into_inner);
                            failures.insert(seed, error);
                        }
                    }
                }
            });
        }
    });
    Batch {
        profile,
        seeds,
        outcomes: outcomes
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner),
        failures: failures
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner),
    }
}

/// The first of `seeds` seeds that shows a bug, and how it shows.
pub fn hunt(bug: &Bug, seeds: u64) -> Option<(u64, String)> {
    (1..=seeds).find_map(|seed| Some((seed, run(seed, bug.profile, bug.planted, false).err()?)))
}
