//! Room: what is parked pins nothing, and a full disk does not block what frees it.

use super::super::CollectConfig;
use super::world::{World, eager, small};
use crate::log::SimDisk;

type Outcome = Result<(), Box<dyn std::error::Error>>;

const DISK: u64 = 2 << 20;

/// rabbit#15473, #12141, #13113, tikv#14700: one old unacknowledged message pinned the log, and the disk filled up.
#[test]
fn one_parked_message_of_many_pins_neither_log_nor_disk() -> Outcome {
    let mut world = World::new(SimDisk::new(DISK, 1), small(), eager());
    let mut most = 0;
    let mut first = 0;
    // About thirty times the disk.
    for at in 0..20_000_u64 {
        world.now_ms += 1;
        let id = world.append(1, 3_000)?.ok_or("full")?;
        if !at.is_multiple_of(200) {
            world.settle(id);
        }
        if at.is_multiple_of(20) {
            world.flush();
            while world.collect()? {}
            world.take_moves();
            most = most.max(world.segments.disk().used);
            let oldest = world
                .segments
                .list()
                .into_iter()
                .find(|it| it.generation == 0);
            let oldest = oldest.map_or(0, |it| it.id);
            assert!(oldest >= first);
            first = oldest;
        }
        if at.is_multiple_of(1_000) {
            world.check()?;
        }
    }
    world.collect_all()?;
    world.check()?;
    let parked = world.rows.len() as u64 * 3_000;
    assert_eq!(world.rows.len(), 100);
    println!("parked {parked}, most used {most} of {DISK}, first segment {first}");
    assert!(most < DISK * 9 / 10, "{most}");
    // The first segments are long gone, although what was parked in them is not.
    assert!(first > 800, "{first}");
    Ok(())
}

/// raft-engine#344, BK#571, BK#3205, ra#578, tikv#15846: the collection that frees a full disk had no room itself.
#[test]
fn a_full_disk_does_not_block_the_collection_that_frees_it() -> Outcome {
    // With the usual wait: a full disk does not wait for mail to leave by itself.
    let config = CollectConfig {
        step_bytes: 8 << 10,
        ..CollectConfig::default()
    };
    let mut world = World::new(SimDisk::new(DISK, 1), small(), config);
    let mut all = Vec::new();
    while let Some(id) = world.append(1, 3_000)? {
        all.push(id);
        if all.len().is_multiple_of(50) {
            world.flush();
            while world.collect()? {}
            world.take_moves();
        }
    }
    world.flush();
    assert!(world.segments.disk().full);
    assert_eq!(world.rows.len(), all.len());
    while world.collect()? {}
    world.take_moves();
    assert_eq!(world.append(1, 3_000)?, None, "all of it lives");

    // Three of four leave, so that no segment dies by itself.
    for id in all.iter().filter(|id| !id.1.is_multiple_of(4)) {
        world.settle(*id);
    }
    let mut more = 0;
    for _ in 0..400 {
        world.flush();
        while world.collect()? {}
        world.take_moves();
        if let Some(id) = world.append(1, 3_000)? {
            world.settle(id);
            more += 1;
        }
        world.check()?;
    }
    println!(
        "{} of {} live, {more} more of 400",
        world.rows.len(),
        all.len()
    );
    assert!(more > 380, "{more}");
    assert!(!world.segments.disk().full, "{:?}", world.segments.disk());

    // So it stays over a restart without an operation that needs room.
    world.disk.kill_process();
    world.reopen()?;
    world.check()?;
    Ok(())
}

/// Something else took the disk: nothing can be copied, nothing breaks, and it goes on when there is room.
#[test]
fn a_disk_taken_by_something_else_postpones_the_collection() -> Outcome {
    let mut world = World::new(SimDisk::new(DISK, 1), small(), eager());
    let mut at = 0;
    while let Some(id) = world.append(1, 3_000)? {
        at += 1;
        if at % 4 != 0 {
            world.settle(id);
        }
        if at == 200 {
            world.disk.set_foreign_bytes(DISK);
        }
    }
    world.flush();
    for _ in 0..50 {
        world.now_ms += 2_000;
        world.flush();
        while world.collect()? {}
        world.take_moves();
        world.check()?;
    }
    world.disk.set_foreign_bytes(0);
    world.now_ms += 2_000;
    world.collect_all()?;
    world.check()?;
    assert!(!world.segments.disk().full);
    assert!(world.append(1, 3_000)?.is_some());
    Ok(())
}
