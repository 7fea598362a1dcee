//! Body write amplification of three workloads, beside that of a model of the same: `cargo test --release -p spool --
//! --ignored --nocapture amplification`.
//!
//! The real log, collector and planner run on a simulated disk under a virtual clock: eight hours, twenty messages a
//! second, segments of 256 messages, sixty seconds before a segment may be collected, a flush of the state every two
//! seconds. The model beside it knows only segments, lifetimes and the threshold; it has no batches, flushes, pins,
//! reserve, step or order of copying. Scale is one factor: a message here is 1 KiB where the model means 1 MB.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use super::super::CollectConfig;
use super::world::{Chance, World};
use crate::identity::ClusterId;
use crate::log::{LogConfig, SimDisk};

const HOUR: f64 = 3_600.0;
const SECONDS: u64 = 8 * 3_600;
const RATE: u64 = 20;
const SEGMENT: usize = 256;
const DELAY: u64 = 60;
/// So that header, context or digest and data make one KiB.
const DATA: usize = 1_024 - 64;

/// What share of lifetimes: 95 % leave in about 2 s, 4 % in about half an hour, 1 % within five days.
fn normal(chance: &mut Chance, _now: f64) -> f64 {
    let kind = chance.share();
    let exponential = |chance: &mut Chance, mean: f64| -mean * (1.0 - chance.share()).ln();
    if kind < 0.95 {
        exponential(chance, 2.0)
    } else if kind < 0.99 {
        exponential(chance, 1_800.0)
    } else {
        HOUR + chance.share() * (120.0 * HOUR - HOUR)
    }
}

/// 30 % of what comes in two hours is parked until they are over.
fn outage(chance: &mut Chance, now: f64) -> f64 {
    if now > 2.0 * HOUR && now < 4.0 * HOUR && chance.share() < 0.3 {
        return 4.0 * HOUR - now - 1_200.0 * (1.0 - chance.share()).ln();
    }
    normal(chance, now)
}

/// 40 % waits for a throttled site, up to two hours.
fn throttled(chance: &mut Chance, now: f64) -> f64 {
    if chance.share() < 0.4 {
        return chance.share() * 2.0 * HOUR;
    }
    normal(chance, now)
}

type Workload = fn(&mut Chance, f64) -> f64;

/// With what the model of the design gave at thresholds of 25 and 50 %: written in Python by other hands, with the same
/// parameters (20 units a second, 8 h, 256 units a segment, 60 s, no sorting by exit time, its seed 1). The model below must
/// come to the same, or it is this file's opinion of itself.
const WORKLOADS: [(&str, Workload, [f64; 2]); 3] = [
    ("95% 2 s, 4% 30 min, 1% to 5 days", normal, [1.058, 1.081]),
    ("30% parked in a 2 h outage", outage, [1.121, 1.219]),
    ("40% throttled, 0 to 2 h", throttled, [1.275, 1.753]),
];

/// Percent by which two runs of one model with different random numbers may differ.
const MODELS_DIFFER: f64 = 3.0;

/// Messages written, first and again, for each message.
fn real(workload: Workload, threshold: u8) -> Result<f64, Box<dyn std::error::Error>> {
    let log = LogConfig {
        // Header, STATE records and the blocks that batches end in are beside what counts.
        segment_bytes: SEGMENT as u64 * 1_024 + 16 * 1_024,
        max_entry_bytes: 64 << 10,
        batch_bytes: 256 << 10,
        background: false,
        ..LogConfig::new(ClusterId([7; 16]), 42)
    };
    let config = CollectConfig {
        threshold: Some(threshold),
        min_age_ms: DELAY * 1_000,
        step_bytes: 64 << 10,
        ..CollectConfig::default()
    };
    let mut world = World::new(SimDisk::new(8 << 30, 1), log, config);
    let mut chance = Chance(1);
    let mut deaths = BinaryHeap::new();
    for second in 0..SECONDS {
        world.now_ms = second * 1_000;
        while deaths.peek().is_some_and(|Reverse((at, _))| *at <= second) {
            if let Some(Reverse((_, id))) = deaths.pop() {
                world.settle(id);
            }
        }
        for id in world.append_many(1, DATA, RATE as usize)? {
            let life = workload(&mut chance, second as f64);
            deaths.push(Reverse(((second as f64 + life).ceil() as u64, id)));
        }
        if second % 2 == 0 {
            world.flush();
        }
        while world.collect()? {}
        world.take_moves();
    }
    world.check()?;
    Ok(1.0 + world.moved as f64 / world.appended as f64)
}

/// The model: segments of 256 units, looked at when sixty seconds old and then every sixty.
fn model(workload: Workload, threshold: f64) -> f64 {
    #[derive(Default)]
    struct Segment {
        units: usize,
        live: BTreeMap<u64, ()>,
        generation: u32,
        sealed: bool,
    }
    #[derive(Default)]
    struct Model {
        segments: BTreeMap<u64, Segment>,
        open: BTreeMap<u32, u64>,
        place: BTreeMap<u64, u64>,
        looks: BinaryHeap<Reverse<(u64, u64)>>,
        next: u64,
        written: u64,
    }
    impl Model {
        fn put(&mut self, unit: u64, generation: u32, now: u64) {
            let open = self.open.get(&generation).copied();
            let full = open.is_none_or(|id| self.segments[&id].units >= SEGMENT);
            let id = if full {
                if let Some(full) = open {
                    if let Some(segment) = self.segments.get_mut(&full) {
                        segment.sealed = true;
                    }
                    self.looks.push(Reverse((now + DELAY, full)));
                }
                self.next += 1;
                self.open.insert(generation, self.next);
                self.next
            } else {
                open.unwrap_or_default()
            };
            let segment = self.segments.entry(id).or_default();
            segment.generation = generation;
            segment.units += 1;
            segment.live.insert(unit, ());
            self.place.insert(unit, id);
            self.written += 1;
        }
    }
    let (mut it, mut chance) = (Model::default(), Chance(1));
    let mut deaths = BinaryHeap::new();
    let mut units = 0;
    for second in 0..SECONDS {
        while deaths.peek().is_some_and(|Reverse((at, _))| *at <= second) {
            if let Some(Reverse((_, unit))) = deaths.pop()
                && let Some(id) = it.place.remove(&unit)
                && let Some(segment) = it.segments.get_mut(&id)
            {
                segment.live.remove(&unit);
                if segment.sealed && segment.live.is_empty() {
                    it.segments.remove(&id);
                }
            }
        }
        for _ in 0..RATE {
            units += 1;
            let life = workload(&mut chance, second as f64);
            it.put(units, 0, second);
            deaths.push(Reverse(((second as f64 + life).ceil() as u64, units)));
        }
        while it
            .looks
            .peek()
            .is_some_and(|Reverse((at, _))| *at <= second)
        {
            let Some(Reverse((_, id))) = it.looks.pop() else {
                break;
            };
            let Some(segment) = it.segments.get(&id) else {
                continue;
            };
            if (segment.live.len() as f64) < threshold * segment.units as f64 {
                let generation = segment.generation + 1;
                let live: Vec<u64> = segment.live.keys().copied().collect();
                live.into_iter()
                    .for_each(|unit| it.put(unit, generation, second));
                it.segments.remove(&id);
            } else {
                it.looks.push(Reverse((second + DELAY, id)));
            }
        }
    }
    it.written as f64 / units as f64
}

#[test]
#[ignore = "a measurement: minutes, and only worth its time with --release"]
fn amplification_of_three_workloads_beside_the_model() -> Result<(), Box<dyn std::error::Error>> {
    println!(
        "{:34} {:>9} {:>6} {:>6} {:>6}",
        "workload", "threshold", "real", "design", "diff"
    );
    let mut worst: f64 = 0.0;
    for (name, workload, published) in WORKLOADS {
        for (threshold, published) in [25, 50].into_iter().zip(published) {
            let real = real(workload, threshold)?;
            let diff = (real / published - 1.0) * 100.0;
            println!("{name:34} {threshold:>8}% {real:>6.3} {published:>6.3} {diff:>5.1}%");
            worst = worst.max(diff.abs());
        }
    }
    assert!(worst < 15.0, "{worst:.1} % off the model of the design");
    Ok(())
}

/// Some seconds with --release; without, as long as the measurement.
#[test]
#[ignore = "it belongs to the measurement above"]
fn amplification_by_the_model_here_is_that_of_the_design() {
    for (name, workload, published) in WORKLOADS {
        for (threshold, published) in [25.0, 50.0].into_iter().zip(published) {
            let here = model(workload, threshold / 100.0);
            let diff = (here / published - 1.0) * 100.0;
            println!("{name:34} {threshold:>8}% {here:>6.3} {published:>6.3} {diff:>5.1}%");
            assert!(diff.abs() < MODELS_DIFFER, "{name}: {diff:.1} %");
        }
    }
}
