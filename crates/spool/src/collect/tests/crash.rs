//! Crashes: at every operation of one collection, and anywhere in long histories.

use super::super::{Move, Moves};
use super::world::{Chance, World, data, eager, small};
use crate::log::SimDisk;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// A world with segments of which a fifth lives, ready to be collected.
fn mostly_dead(seed: u64) -> Result<World, Box<dyn std::error::Error>> {
    let mut world = World::new(SimDisk::new(4 << 20, seed), small(), eager());
    for at in 0..150 {
        let id = world.append(1 + at % 2, 3_000)?.ok_or("full")?;
        if at % 5 != 0 {
            world.settle(id);
        }
    }
    world.flush();
    Ok(world)
}

/// cockroach#114411, #114191, #113135, ra#589: directories not fsynced; a file removed before what refers to it was
/// durably changed; an index file not fsynced.
#[test]
fn a_crash_at_every_operation_of_a_collection_loses_no_body() -> Outcome {
    let mut operations = 0;
    loop {
        let mut world = mostly_dead(operations)?;
        let before = world.rows.clone();
        assert!(before.len() == 30 && world.generation() == 0);
        world.disk.crash_after(operations);
        let collected = world.collect_all();
        let crashed = world.disk.is_down();
        if operations.is_multiple_of(3) && crashed {
            world.disk.kill_process();
        } else {
            world.disk.restart();
        }
        world.reopen()?;
        world
            .check()
            .map_err(|error| format!("crash at {operations}: {error}"))?;
        assert!(world.rows.keys().eq(before.keys()), "crash at {operations}");
        // And what was begun can be ended.
        world.collect_all()?;
        world.check()?;
        assert!(world.rows.keys().eq(before.keys()));
        let segments = world.segments.list();
        let used: std::collections::BTreeSet<u64> =
            world.rows.values().map(|at| at.segment).collect();
        let garbage = segments
            .iter()
            .filter(|it| it.generation > 0 && it.sealed && !used.contains(&it.id));
        assert_eq!(garbage.count(), 0, "crash at {operations}: {segments:?}");
        if !crashed {
            collected?;
            assert!(operations > 30, "{operations} operations");
            return Ok(());
        }
        operations += 1;
    }
}

/// Appends, settles, steps of the collector, late moves, flushes, crashes of process and power: in any order.
fn history(seed: u64) -> Result<(u64, u64), String> {
    let mut chance = Chance(seed);
    let mut world = World::new(SimDisk::new(2 << 20, seed), small(), eager());
    let mut crashes = 0;
    for _ in 0..1_500 {
        world.now_ms += 10;
        match chance.below(100) {
            0..=44 => {
                let (group, len) = (1 + chance.below(3) as u32, 500 + chance.below(5_000));
                if let Ok(Some(id)) = world.append(group, len as usize)
                    && chance.below(10) > 0
                {
                    world.settle(id);
                }
            }
            45..=49 => {
                let at = chance.below(world.rows.len().max(1) as u64) as usize;
                let id = world.rows.keys().nth(at).copied();
                id.into_iter().for_each(|id| world.settle(id));
            }
            50..=74 => {
                let _ = world.collect();
            }
            75..=84 => world.take_moves(),
            85..=94 => world.flush(),
            95 => {
                let (reader, _index) = world.bodies();
                for (id, at) in &world.rows {
                    let whole = reader.read_data(*at, id.0, id.1, 0, at.data_len);
                    if !world.disk.is_down() {
                        let whole = whole.map_err(|error| format!("{id:?}: {error}"))?;
                        assert_eq!(whole, data(*id, at.data_len as usize));
                    }
                }
            }
            96 | 97 => world.disk.crash_after(chance.below(40)),
            _ => {}
        }
        if world.disk.is_down() {
            crashes += 1;
            match chance.below(3) {
                0 => world.disk.kill_process(),
                _ => world.disk.restart(),
            }
            world.reopen()?;
            world.check()?;
        }
    }
    world.disk.kill_process();
    world.reopen()?;
    world.check()?;
    world.collect_all()?;
    world.check()?;
    Ok((crashes, world.moved))
}

#[test]
fn every_living_body_can_be_read_whatever_crashes() {
    let seeds = std::env::var("SEEDS").ok().and_then(|n| n.parse().ok());
    let (mut crashes, mut moved) = (0, 0);
    for seed in 0..seeds.unwrap_or(120) {
        match history(seed) {
            Ok((c, m)) => (crashes, moved) = (crashes + c, moved + m),
            Err(error) => panic!("seed {seed}: {error}"),
        }
    }
    println!("{crashes} crashes, {moved} bodies moved");
    assert!(
        crashes > 100 && moved > 1_000,
        "{crashes} crashes, {moved} bodies moved"
    );
}

/// A settle between copy and move: the row stays gone, and the counters do not count the copy.
#[test]
fn a_settle_while_its_body_is_copied_is_not_undone() -> Outcome {
    let mut world = mostly_dead(1)?;
    world.flush();
    while world.collect()? {}
    let settled: Vec<_> = world.rows.keys().copied().take(10).collect();
    settled.iter().for_each(|id| world.settle(*id));
    world.take_moves();
    assert!(settled.iter().all(|id| !world.rows.contains_key(id)));
    assert!(world.moved > 5 && world.moved <= world.rows.len() as u64);
    world.collect_all()?;
    world.check()?;
    Ok(())
}

/// The reader of a handout looked its place up before the segment was recycled and written over.
#[test]
fn a_body_that_moved_under_its_reader_is_found_at_its_new_place() -> Outcome {
    let mut world = mostly_dead(2)?;
    let before = world.rows.clone();
    world.collect_all()?;
    for _ in 0..400 {
        let id = world.append(1, 3_000)?.ok_or("full")?;
        world.settle(id);
        world.flush();
    }
    let held: Vec<u64> = world.segments.list().iter().map(|it| it.id).collect();
    assert!(before.values().any(|at| !held.contains(&at.segment)));
    let (reader, _index) = world.bodies();
    for (id, old) in &before {
        let read = reader.read_data(*old, id.0, id.1, 0, old.data_len)?;
        assert_eq!(read, data(*id, old.data_len as usize));
    }
    Ok(())
}

/// Until the durable state names its copies a segment is kept, although nothing seems to live in it.
#[test]
fn a_target_is_kept_until_the_state_that_names_it_is_durable() -> Outcome {
    let mut world = mostly_dead(3)?;
    world.flush();
    while world.collect()? {}
    let targets: Vec<u64> = world
        .segments
        .list()
        .iter()
        .filter(|it| it.generation > 0)
        .map(|it| it.id)
        .collect();
    assert!(!targets.is_empty());
    for target in &targets {
        assert!(!world.segments.truncatable().contains(target));
        world.segments.release(*target);
    }
    world.segments.maintain();
    world.take_moves();
    world.check()?;
    // Moves for bodies that are elsewhere by now change nothing.
    let (id, at) = world.rows.first_key_value().ok_or("rows")?;
    let (group, index, to) = (id.0, id.1, *at);
    let from = crate::log::Location { offset: 1, ..to };
    world.mail_moves(Moves {
        number: 99,
        moves: vec![Move {
            replica: group,
            index,
            from,
            to: from,
        }],
        pin: 0,
    });
    world.check()?;
    Ok(())
}

/// cockroach#37102, fsyncgate: a failed fsync of copies is never tried again, and no row was moved to them.
#[test]
fn a_failed_fsync_of_copies_stops_the_collection_and_moves_nothing() -> Outcome {
    let mut world = mostly_dead(4)?;
    world.flush();
    let before = world.rows.clone();
    world.disk.fail_next_sync();
    let failed = loop {
        match world.collect() {
            Ok(true) => {}
            Ok(false) => break None,
            Err(error) => break Some(error),
        }
    };
    assert!(failed.is_some_and(|error| error.contains("cannot write its copies")));
    world.take_moves();
    assert_eq!(world.rows, before);
    world.disk.restart();
    world.reopen()?;
    world.check()?;
    Ok(())
}
