//! A disk that is full: what frees space still passes, and room comes back.

use super::super::{SimDisk, WriteError, WriteTask};
use super::{entry, open, task};

#[test]
fn a_full_disk_takes_settles_and_recovers_when_segments_die()
-> Result<(), Box<dyn std::error::Error>> {
    let disk = SimDisk::new(1 << 20, 1);
    let (mut writer, reader, _) = open(&disk);
    let segments = writer.segments();
    assert!(!segments.disk().full);
    let mut next = 1;
    let unwritten = loop {
        match writer.write(&[task(1, next, vec![entry(next, 1, 8_000, 0)])]) {
            Ok(_) => next += 1,
            Err(WriteError::NoSpace { unwritten, .. }) => break unwritten,
            Err(error) => return Err(error.into()),
        }
    };
    assert_eq!(unwritten, [0]);
    assert!(segments.disk().full, "{:?}", segments.disk());

    // Settles of another group pass, for two segments long.
    let mut settled = 0;
    loop {
        let settle = WriteTask {
            urgent: true,
            ..task(2, settled, vec![entry(settled + 1, 1, 4_000, 0)])
        };
        match writer.write(&[task(1, 900, vec![entry(next, 1, 8_000, 0)]), settle]) {
            Err(WriteError::NoSpace { written, unwritten }) if written.len() == 1 => {
                assert_eq!((written[0].group, unwritten), (2, vec![0]));
                settled += 1;
            }
            Err(WriteError::NoSpace { .. }) => break,
            other => return Err(format!("{other:?}").into()),
        }
    }
    assert!(settled > 10, "{settled}");

    // A restart needs no allocation.
    drop((writer, reader));
    disk.kill_process();
    let (mut writer, reader, recovered) = open(&disk);
    assert_eq!(recovered.groups[&2].last_index(), settled);

    // Delivery drained the queue: its segments are released, and mail is taken again.
    let segments = writer.segments();
    segments.set_truncated(1, (next - 1, 1));
    segments.set_truncated(2, (settled, 1));
    segments
        .truncatable()
        .iter()
        .for_each(|segment| segments.release(*segment));
    // All is full, so the log waits for one segment that something else gives back.
    let written = writer.write(&[task(1, next, vec![entry(next, 1, 8_000, 0)])]);
    assert!(
        written.is_ok() || {
            writer.mark()?;
            segments.maintain();
            true
        }
    );
    let location = match written {
        Ok(written) => written[0].locations[0].1,
        Err(_) => writer.write(&[task(1, next, vec![entry(next, 1, 8_000, 0)])])?[0].locations[0].1,
    };
    assert_eq!(
        reader.read_entry(location, 1, next)?,
        entry(next, 1, 8_000, 0)
    );
    assert!(!segments.disk().full, "{:?}", segments.disk());
    Ok(())
}

#[test]
fn a_disk_filled_by_something_else_leaves_the_reserve_and_comes_back()
-> Result<(), Box<dyn std::error::Error>> {
    let disk = SimDisk::new(4 << 20, 1);
    let (mut writer, _, _) = open(&disk);
    let segments = writer.segments();
    disk.set_foreign_bytes(4 << 20);
    let mut next = 1;
    while writer
        .write(&[task(1, next, vec![entry(next, 1, 8_000, 0)])])
        .is_ok()
    {
        next += 1;
    }
    assert!(next > 1 && segments.disk().full);
    let urgent = WriteTask {
        urgent: true,
        ..task(2, 1, vec![entry(1, 1, 4_000, 0)])
    };
    writer.write(&[urgent])?;
    disk.set_foreign_bytes(0);
    writer.write(&[task(1, next, vec![entry(next, 1, 8_000, 0)])])?;
    assert!(!segments.disk().full);
    Ok(())
}

/// The suffix 4 to 6 was cut by an entry whose segment is recycled; its bytes are still in the first segment.
#[test]
fn a_cut_suffix_stays_cut_when_the_segment_that_cut_it_is_recycled()
-> Result<(), Box<dyn std::error::Error>> {
    let disk = SimDisk::new(4 << 20, 1);
    let (mut writer, _, _) = open(&disk);
    let segments = writer.segments();
    let begin_segment = |writer: &mut super::LogWriter, id: u64, filler: &mut u64| {
        while segments.list().last().is_none_or(|last| last.id < id) {
            *filler += 1;
            writer.write(&[task(9, *filler, vec![entry(*filler, 1, 8_000, 0)])])?;
        }
        Ok::<(), WriteError>(())
    };
    let mut filler = 0;
    writer.write(&[task(
        1,
        1,
        (1..=6).map(|index| entry(index, 1, 100, 0)).collect(),
    )])?;
    begin_segment(&mut writer, 2, &mut filler)?;
    writer.write(&[task(1, 2, vec![entry(4, 2, 100, 0)])])?;
    begin_segment(&mut writer, 3, &mut filler)?;
    segments.set_truncated(1, (4, 2));
    segments.set_truncated(9, (filler, 1));
    segments.release(2);
    writer.mark()?;
    segments.maintain();
    assert_eq!(
        segments
            .list()
            .iter()
            .map(|segment| segment.id)
            .collect::<Vec<_>>(),
        [1, 3]
    );
    disk.kill_process();
    let (_, _, recovered) = open(&disk);
    assert_eq!(
        (
            recovered.groups[&1].truncated,
            recovered.groups[&1].last_index()
        ),
        ((4, 2), 4)
    );
    Ok(())
}

/// A follower is silent, and mail is parked now and then: of each segment a little lives. All the rest is kept for the
/// follower alone, and the budget must see it, or the log is truncated never again and the disk of everybody fills.
#[test]
fn parked_mail_does_not_hide_what_is_kept_for_a_silent_follower() {
    let disk = SimDisk::new(4 << 20, 1);
    let (mut writer, ..) = open(&disk);
    let segments = writer.segments();
    let mut live = std::collections::BTreeMap::<u64, u64>::new();
    for index in 1..=60 {
        let written = writer
            .write(&[task(1, index, vec![entry(index, 1, 8_000, 0)])])
            .unwrap();
        if index % 5 == 0 {
            *live.entry(written[0].locations[0].1.segment).or_default() += 8_000;
        }
    }
    let sealed = segments.list().iter().filter(|it| it.sealed).count() as u64;
    assert!(sealed >= 6, "{sealed}");
    let parked = segments.list().into_iter().filter(|it| it.sealed);
    assert!(
        parked.clone().all(|it| live.contains_key(&it.id)),
        "something lives in each"
    );
    let lives: u64 = parked.map(|it| live[&it.id]).sum();
    let kept = |applied: &[(u32, u64)]| {
        let applied = applied.iter().copied().collect();
        segments.kept_for_followers(&applied, |id| live.get(&id).copied().unwrap_or(0))
    };
    assert_eq!(kept(&[]), 0, "this replica itself needs it");
    assert_eq!(kept(&[(1, 60)]), sealed * segments.segment_bytes() - lives);
    assert!(kept(&[(1, 30)]) < kept(&[(1, 60)]) / 2 + segments.segment_bytes());
    // The follower is left behind: nothing is kept for it any more, and what lives is not counted as if it were.
    segments.set_truncated(1, (60, 1));
    assert_eq!(kept(&[(1, 60)]), 0);
}

/// A snapshot pins what it sends; that is no reason to leave one more follower behind.
#[test]
fn neither_pins_nor_replicas_that_are_gone_count_as_kept_for_followers() {
    let disk = SimDisk::new(4 << 20, 1);
    let (mut writer, ..) = open(&disk);
    let segments = writer.segments();
    for index in 1..=30 {
        let tasks = [
            task(1, index, vec![entry(index, 1, 4_000, 0)]),
            task(2, index, vec![entry(index, 1, 4_000, 0)]),
        ];
        writer.write(&tasks).unwrap();
    }
    segments.pin(7, segments.list().into_iter().map(|it| it.id));
    let kept = |applied: &[(u32, u64)]| {
        let applied = applied.iter().copied().collect();
        segments.kept_for_followers(&applied, |_| 0)
    };
    assert!(kept(&[(1, 30), (2, 30)]) > 0);
    segments.set_truncated(1, (30, 1));
    segments.set_truncated(2, super::super::GONE);
    assert_eq!(kept(&[(1, 30)]), 0);
}
