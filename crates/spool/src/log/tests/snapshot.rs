//! A snapshot's part of the log: bodies that are written again, and a group's log that begins anew.

use bytes::Bytes;

use super::super::{LogWriter, SimDisk, WriteTask};
use super::{entry, open, task};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// An old log with a tail of another term than the snapshot's, then the snapshot at (7, 3), then what follows it.
fn install(writer: &mut LogWriter) -> Outcome {
    let old = (1..=9).map(|index| entry(index, 1, 900, 0)).collect();
    writer.write(&[task(1, 1, old), task(2, 1, vec![entry(1, 1, 100, 0)])])?;
    let bodies = [
        (3, Bytes::from(vec![3; 5_000])),
        (6, Bytes::from(vec![6; 9_000])),
    ];
    writer.write_bodies(1, &bodies)?;
    let reset = WriteTask {
        reset: Some((7, 3)),
        ..task(1, 2, vec![entry(8, 3, 700, 1)])
    };
    writer.write(&[reset])?;
    writer.write(&[task(1, 3, vec![entry(9, 3, 700, 1)])])?;
    Ok(())
}

#[test]
fn a_crash_leaves_the_old_log_or_the_one_that_follows_the_snapshot() -> Outcome {
    let mut seen = std::collections::BTreeSet::new();
    for crash in 0.. {
        let disk = SimDisk::new(4 << 20, crash);
        let (mut writer, ..) = open(&disk);
        disk.crash_after(crash);
        let whole = install(&mut writer).is_ok() && !disk.is_down();
        drop(writer);
        disk.restart();
        let (_, _, found) = open(&disk);
        let group = found.groups.get(&1).cloned().unwrap_or_default();
        let terms: Vec<u64> = group.entries.iter().map(|e| e.term).collect();
        let last = group.last_index();
        match group.truncated {
            (0, 0) => assert!(terms.iter().all(|t| *t == 1), "{terms:?}"),
            (7, 3) => assert!(terms.iter().all(|t| *t == 3) && last <= 9, "{terms:?}"),
            other => panic!("truncated at {other:?}"),
        }
        seen.insert((group.truncated.0, last));
        if whole {
            break;
        }
    }
    assert!(seen.contains(&(0, 9)) && seen.contains(&(7, 9)), "{seen:?}");
    Ok(())
}

#[test]
fn bodies_are_read_back_and_keep_their_segment_only_while_somebody_wants_it() -> Outcome {
    let disk = SimDisk::new(8 << 20, 1);
    let (mut writer, reader, _) = open(&disk);
    let segments = writer.segments();
    let body = Bytes::from(vec![9; 12_000]);
    let place = writer.write_bodies(5, &[(70, body.clone())])?[0];
    segments.pin(1, [place.segment]);
    let read = reader.read_entry(place, 5, 70)?;
    assert_eq!((read.context.len(), read.data), (0, body.clone()));
    assert!(reader.read_entry(place, 4, 70).is_err(), "another group's");
    // Nothing refers to it yet: all entries of its segment are gone, and it is released.
    let fill = (1..=30).map(|index| entry(index, 1, 8_000, 0)).collect();
    writer.write(&[task(1, 1, fill)])?;
    let release = || {
        segments.set_truncated(1, (30, 1));
        segments
            .truncatable()
            .iter()
            .for_each(|s| segments.release(*s));
    };
    release();
    writer.mark()?;
    writer.write(&[task(1, 2, vec![entry(31, 1, 8_000, 0)])])?;
    segments.maintain();
    assert_eq!(reader.read_entry(place, 5, 70)?.data, body, "pinned");
    segments.unpin(1);
    // What is pinned is not released; it is asked for again with every flush.
    release();
    writer.mark()?;
    segments.maintain();
    assert!(
        reader.read_entry(place, 5, 70).is_err(),
        "nobody wants it any more"
    );
    Ok(())
}

#[test]
fn a_restart_passes_by_bodies_that_nobody_refers_to() -> Outcome {
    let disk = SimDisk::new(4 << 20, 1);
    let (mut writer, ..) = open(&disk);
    let place = writer.write_bodies(1, &[(70, Bytes::from(vec![9; 100]))])?[0];
    drop(writer);
    disk.kill_process();
    let (_, reader, found) = open(&disk);
    assert!(found.groups.values().all(|group| group.entries.is_empty()));
    assert_eq!(reader.read_entry(place, 1, 70)?.data.len(), 100);
    Ok(())
}
