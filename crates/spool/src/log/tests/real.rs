//! On the machine's own file system.

use super::super::{HardState, Log, LogConfig, OpenError, ReadError};
use super::{entry, small, task, voted};
use crate::identity::ClusterId;

#[test]
fn what_was_written_is_there_after_a_restart() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let (mut writer, reader, recovered) = Log::open(dir.path(), small())?;
    assert!(recovered.groups.is_empty());
    let first = entry(1, 1, 10_000, 0);
    let second = entry(2, 1, 300, 0);
    let written = writer.write(&[
        voted(0, 1, 1, 3),
        task(5, 1, vec![first.clone(), second.clone()]),
    ])?;
    let locations = &written[1].locations;
    assert_eq!(reader.read_entry(locations[0].1, 5, 1)?, first);
    assert_eq!(
        reader.read_data(locations[1].1, 5, 2, 10, 20)?,
        second.data.slice(10..30)
    );
    assert!(matches!(
        reader.read_entry(locations[1].1, 5, 1),
        Err(ReadError::Corrupt { .. })
    ));
    drop((writer, reader));

    let (_writer, reader, recovered) = Log::open(dir.path(), small())?;
    assert_eq!(
        recovered.groups[&0].hard_state,
        HardState {
            term: 1,
            vote: 3,
            commit: 0
        }
    );
    let entries = &recovered.groups[&5].entries;
    assert_eq!(
        entries.iter().map(|entry| entry.index).collect::<Vec<_>>(),
        [1, 2]
    );
    assert_eq!(reader.read_entry(entries[1].location, 5, 2)?, second);
    Ok(())
}

#[test]
fn entries_over_many_segments_come_back_and_dead_segments_are_recycled()
-> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let config = LogConfig {
        background: true,
        ..small()
    };
    let (mut writer, reader, _) = Log::open(dir.path(), config.clone())?;
    let mut first = None;
    for index in 1..=60 {
        let written = writer.write(&[task(1, index, vec![entry(index, 1, 8_000, 0)])])?;
        first.get_or_insert(written[0].locations[0].1);
    }
    writer.set_group_state(1, (40, 1));
    let segments = writer.segments();
    let dead = segments.truncatable();
    assert!(dead.len() > 3, "{:?}", segments.list());
    dead.iter().for_each(|segment| segments.release(*segment));
    std::thread::sleep(std::time::Duration::from_millis(60));
    writer.mark_if_idle()?;
    for _ in 0..500 {
        if segments
            .list()
            .iter()
            .all(|segment| !dead.contains(&segment.id))
        {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let Some(first) = first else {
        return Err("nothing written".into());
    };
    assert!(matches!(
        reader.read_entry(first, 1, 1),
        Err(ReadError::Recycled { .. })
    ));
    drop((writer, reader, segments));

    let (_writer, reader, recovered) = Log::open(dir.path(), config)?;
    let group = &recovered.groups[&1];
    assert_eq!((group.truncated, group.last_index()), ((40, 1), 60));
    for found in &group.entries {
        assert_eq!(
            reader.read_entry(found.location, 1, found.index)?,
            entry(found.index, 1, 8_000, 0)
        );
    }
    Ok(())
}

#[test]
fn the_log_of_another_cluster_is_refused() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let (mut writer, _, _) = Log::open(dir.path(), small())?;
    writer.write(&[voted(0, 1, 1, 1)])?;
    let other = LogConfig {
        cluster_id: ClusterId([8; 16]),
        ..small()
    };
    let refused = Log::open(dir.path(), other);
    assert!(
        matches!(refused, Err(OpenError::Foreign { .. })),
        "{refused:?}"
    );
    Ok(())
}
