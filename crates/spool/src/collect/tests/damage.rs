//! Bit flips in what is collected.

use super::super::{CollectConfig, Move, Moves, Scrub};
use super::world::{World, data, eager, small};
use crate::log::SimDisk;

type Outcome = Result<(), Box<dyn std::error::Error>>;

const MOSTLY_DEAD: u32 = 10;

fn world(config: CollectConfig) -> Result<World, Box<dyn std::error::Error>> {
    let mut world = World::new(SimDisk::new(8 << 20, 1), small(), config);
    for at in 0..200 {
        let id = world.append(1, 3_000)?.ok_or("full")?;
        if at % MOSTLY_DEAD != 0 {
            world.settle(id);
        }
    }
    world.flush();
    Ok(world)
}

/// A pass of the scrubber: what it suspects.
fn pass(world: &World, scrub: &mut Scrub) -> Vec<u64> {
    let (ended, mut suspects, mut now_us) = (scrub.passes + 1, Vec::new(), 0);
    while scrub.passes < ended {
        // It begins with a read, whatever the time; after that it says how long to wait.
        now_us += scrub.wait(now_us).as_micros() as u64;
        suspects.extend(scrub.step(&world.segments, 64 << 10, now_us));
    }
    suspects
}

fn path(segment: u64, generation: u32) -> std::path::PathBuf {
    format!("/log/seg-{segment:016}.g{generation}").into()
}

/// BK#4596: the collection stopped for ever at one corrupt file.
#[test]
fn one_corrupt_body_stops_the_collection_of_its_segment_only() -> Outcome {
    let mut world = world(eager())?;
    let (&id, &at) = world.rows.iter().nth(5).ok_or("rows")?;
    let offset = at.offset as usize + 100;
    assert!(world.disk.flip(&path(at.segment, 0), offset));
    world.collect_all()?;
    let said: Vec<_> = world
        .damages
        .iter()
        .map(|it| (it.replica, it.index))
        .collect();
    assert_eq!(said, [id], "told once");
    // All others are elsewhere, and the segment of the damaged one is still there.
    assert_eq!(world.rows[&id], at);
    let stay: Vec<_> = world
        .segments
        .list()
        .into_iter()
        .filter(|it| it.generation == 0 && it.sealed)
        .map(|it| it.id)
        .collect();
    assert_eq!(stay, [at.segment]);
    let look = world.collector.look(world.now_ms);
    assert_eq!(look.damaged_segments, 1);

    // Another replica has it: it is written anew, and the segment is given back.
    let body = data(id, at.data_len as usize);
    let written = world.writer.write_bodies(id.0, &[(id.1, body)])?;
    world.mail_moves(Moves {
        number: 0,
        moves: vec![Move {
            replica: id.0,
            index: id.1,
            from: at,
            to: written[0],
        }],
        pin: 0,
    });
    world.flush();
    world.check()?;
    assert!(world.segments.list().iter().all(|it| it.id != at.segment));
    Ok(())
}

/// The header of a record is hit: nothing behind it in its batch can be found by reading on.
#[test]
fn bodies_behind_a_corrupt_header_are_found_by_their_rows() -> Outcome {
    let mut world = World::new(SimDisk::new(8 << 20, 1), small(), eager());
    let mut ids = Vec::new();
    for _ in 0..60 {
        ids.push(world.append(1, 3_000)?.ok_or("full")?);
    }
    ids.iter()
        .skip(1)
        .filter(|id| id.1 % 8 != 0)
        .for_each(|id| world.settle(*id));
    let (&id, &at) = world.rows.first_key_value().ok_or("rows")?;
    assert!(
        world
            .disk
            .flip(&path(at.segment, 0), at.offset as usize + 9)
    );
    world.collect_all()?;
    assert_eq!(world.damages.len(), 1, "{:?}", world.damages);
    assert_eq!((world.damages[0].replica, world.damages[0].index), id);
    world.settle(id);
    world.collect_all()?;
    world.check()?;
    assert!(world.segments.list().iter().all(|it| it.id != at.segment));
    Ok(())
}

/// A copy of a copy is compared with the digest that the first one took: each flip is noticed, none is passed on.
#[test]
fn a_flip_in_a_copy_is_never_copied_on() -> Outcome {
    let mut world = world(eager())?;
    world.collect_all()?;
    let copied = world.rows.iter().find(|(_, at)| at.segment >= 1 << 31);
    let (&id, &at) = copied.ok_or("nothing was copied")?;
    for flipped in 0..48 + 16 + 64 {
        let at_byte = at.offset as usize + flipped;
        assert!(world.disk.flip(&path(at.segment, 1), at_byte));
        let read = world.reader.read_body(at, id.0, id.1);
        assert!(read.is_err(), "byte {flipped}");
        assert!(world.disk.flip(&path(at.segment, 1), at_byte));
    }
    assert!(world.reader.read_body(at, id.0, id.1).is_ok());
    Ok(())
}

/// Its thread sleeps for as long as it says: with a wait of nothing a node that has no mail takes a whole core.
#[test]
fn a_scrubber_with_nothing_to_read_rests() -> Outcome {
    let empty = World::new(SimDisk::new(8 << 20, 1), small(), eager());
    let full = world(eager())?;
    for world in [&empty, &full] {
        let mut scrub = Scrub::default();
        let (mut now_us, mut steps) = (0, 0);
        while now_us < 60_000_000 {
            now_us += scrub.wait(now_us).as_micros() as u64;
            scrub.step(&world.segments, 64 << 10, now_us);
            steps += 1;
            assert!(steps < 200, "{steps} steps in {now_us} us");
        }
    }
    Ok(())
}

#[test]
fn the_scrubber_finds_a_flip_in_a_living_body_and_none_elsewhere() -> Outcome {
    // Nothing is collected here: only what the scrubber suspects is looked at.
    let never = CollectConfig {
        min_age_ms: u64::MAX,
        ..eager()
    };
    let mut world = world(never)?;
    let mut scrub = Scrub::default();
    let mut now_us = 0;
    let mut pass = |world: &World, scrub: &mut Scrub| {
        let (ended, mut suspects) = (scrub.passes + 1, Vec::new());
        while scrub.passes < ended {
            now_us += scrub.wait(now_us).as_micros() as u64;
            suspects.extend(scrub.step(&world.segments, 64 << 10, now_us));
        }
        (suspects, now_us)
    };
    assert_eq!(pass(&world, &mut scrub).0, Vec::<u64>::new());
    let (&id, &at) = world.rows.iter().nth(7).ok_or("rows")?;
    world
        .disk
        .flip(&path(at.segment, 0), at.offset as usize + 2_000);
    let (suspects, now_us) = pass(&world, &mut scrub);
    assert_eq!(suspects, [at.segment]);
    assert!(
        now_us > 86_400_000_000,
        "a small store is not read all day long"
    );
    world.collector.suspect(at.segment);
    while world.collect()? {}
    let said: Vec<_> = world
        .damages
        .iter()
        .map(|it| (it.replica, it.index))
        .collect();
    assert_eq!(said, [id]);
    Ok(())
}

/// A pass takes a day, and the scrubber read on in a segment that was recycled meanwhile: an error for whoever is on call, and
/// nothing was damaged.
#[test]
fn a_segment_that_is_given_back_while_it_is_read_is_no_damage() -> Outcome {
    let mut world = world(eager())?;
    let mut scrub = Scrub::default();
    assert_eq!(scrub.step(&world.segments, 64 << 10, 0), None);
    let first = world.segments.list().iter().map(|it| it.id).min();
    let first = first.ok_or("no segment")?;
    world.collect_all()?;
    assert!(world.segments.list().iter().all(|it| it.id != first));
    // Whatever is written where it was: here a byte of its first record changes.
    for name in crate::log::Disk::list(&world.disk, std::path::Path::new("/log"))? {
        world
            .disk
            .flip(&std::path::Path::new("/log").join(name), 4_096 + 50);
    }
    assert_eq!(scrub.step(&world.segments, 64 << 10, 0), None);
    Ok(())
}

/// Not a living body was hit, but what only a start reads: it would refuse the whole log. So the segment is left and given
/// back, though most of it lives.
#[test]
fn a_segment_with_any_damage_is_left_before_a_start_meets_it() -> Outcome {
    let never = CollectConfig {
        min_age_ms: u64::MAX,
        ..eager()
    };
    let mut world = World::new(SimDisk::new(8 << 20, 1), small(), never);
    for at in 0..100 {
        let id = world.append(1, 3_000)?.ok_or("full")?;
        if at % MOSTLY_DEAD == 0 {
            world.settle(id);
        }
    }
    world.flush();
    let sealed: Vec<u64> = world
        .segments
        .list()
        .iter()
        .filter(|it| it.sealed)
        .map(|it| it.id)
        .collect();
    let hit = sealed[1];
    // The first record of a segment is a STATE.
    assert!(world.disk.rot(&path(hit, 0), 4_096 + 50, 1));
    assert_eq!(pass(&world, &mut Scrub::default()), [hit]);
    world.collector.suspect(hit);
    world.collect_all()?;
    assert_eq!(world.damages, [], "no body was hit");
    world.check()?;
    assert!(world.segments.list().iter().all(|it| it.id != hit));
    world.disk.restart();
    world.reopen()?;
    world.check()?;
    Ok(())
}

/// The device does not give a sector back: it was logged, and nothing more.
#[test]
fn what_the_device_does_not_give_back_is_found_by_the_scrubber() -> Outcome {
    let never = CollectConfig {
        min_age_ms: u64::MAX,
        ..eager()
    };
    let mut world = world(never)?;
    let (&id, &at) = world.rows.iter().nth(7).ok_or("rows")?;
    let from = u64::from(at.offset) + 1_000;
    assert!(world.disk.fail_read(&path(at.segment, 0), from..from + 512));
    assert_eq!(pass(&world, &mut Scrub::default()), [at.segment]);
    world.collector.suspect(at.segment);
    world.collect_all()?;
    let said: Vec<_> = world
        .damages
        .iter()
        .map(|it| (it.replica, it.index))
        .collect();
    assert_eq!(said, [id]);
    // All others are elsewhere.
    let there = world.rows.values().filter(|it| it.segment == at.segment);
    assert_eq!(there.count(), 1);
    Ok(())
}

/// A file is gone, and the rows name it: that is damage, and not a segment that was recycled.
#[test]
fn a_segment_that_somebody_deleted_is_damage_to_whoever_reads_or_looks() -> Outcome {
    use crate::collect::{BodyReader, Unread};
    use crate::log::{Disk as _, ReadError};
    let mut world = world(eager())?;
    world.collect_all()?;
    let copied = world.rows.iter().find(|(_, at)| at.segment >= 1 << 31);
    let (&id, &at) = copied.ok_or("nothing was copied")?;
    world.disk.unlink(&path(at.segment, 1))?;
    world.disk.sync_dir("/log".as_ref())?;
    world.disk.restart();
    world.reopen()?;
    let (bodies, _index) = world.bodies();
    let read = |bodies: &BodyReader| bodies.read_data(at, id.0, id.1, 0, 10);
    let Err(Unread { location, error }) = read(&bodies) else {
        return Err("it was read".into());
    };
    assert_eq!(location, at);
    assert!(matches!(error, ReadError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("missing"), "{error}");
    // A row by row look names all that lay there.
    world.collector.suspect(at.segment);
    while world.collect()? {}
    let lay_there = world.rows.values().filter(|it| it.segment == at.segment);
    assert_eq!(world.damages.len(), lay_there.count());
    assert!(world.damages.iter().all(|it| it.what.contains("missing")));
    Ok(())
}
