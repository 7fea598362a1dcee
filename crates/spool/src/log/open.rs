//! Opening a log: recover, then drop what was never acknowledged, then be ready to write without any allocation.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use super::batch::{Batch, GroupState};
use super::place::{Active, HEAD_ROOM};
use super::record::{BLOCK, HEADER, segment_name};
use super::recover::{Found, Read, Recovery};
use super::segments::{Segment, Shared, Table};
use super::spare::{self, Spare};
use super::{
    Disk, GONE, LogConfig, LogReader, LogWriter, OpenError, RealDisk, Recovered, RecoveredGroup,
    Segments,
};

/// Offsets in a segment are 32 bits wide.
const LARGEST_SEGMENT: u64 = 2 << 30;

/// Opening a log.
#[derive(Debug)]
pub struct Log;

impl Log {
    /// Opens the log in `dir` (usually `<data directory>/log`) and recovers what it holds; an empty directory is an
    /// empty log. A member whose log is empty lost its disk: the caller refuses to go on with it (see
    /// [`LogWriter::begin`]).
    pub fn open(
        dir: &Path,
        config: LogConfig,
    ) -> Result<(LogWriter, LogReader, Recovered), OpenError> {
        Self::open_on(Arc::new(RealDisk), dir, config)
    }

    /// The same on any disk.
    pub fn open_on(
        disk: Arc<dyn Disk>,
        dir: &Path,
        config: LogConfig,
    ) -> Result<(LogWriter, LogReader, Recovered), OpenError> {
        let least = u64::from(config.max_entry_bytes) + HEADER as u64 + HEAD_ROOM;
        let capacity = config
            .segment_bytes
            .clamp(least, LARGEST_SEGMENT)
            .next_multiple_of(BLOCK);
        let recovery = Recovery {
            disk: disk.as_ref(),
            dir,
            config: &config,
            capacity,
        };
        disk.create_dir(dir)
            .map_err(recovery.io("make", "the directory"))?;
        let mut found = recovery.read()?;
        let groups = finish_replays(&recovery, &mut found)?;
        let damaged = recovery.judge_damage(std::mem::take(&mut found.damaged), &groups)?;
        let recovered = Recovered {
            damaged,
            torn_bytes: found.torn_bytes,
            segments: found.segments.len(),
            groups,
        };

        let mut table = Table::default();
        drop_unacknowledged(disk.as_ref(), dir, &found, &mut table)
            .map_err(recovery.io("drop the torn end of", "the log"))?;
        collect_spares(disk.as_ref(), dir, capacity, &mut table)
            .map_err(recovery.io("collect", "spare segments"))?;
        super::collected::find(disk.as_ref(), dir, &config, &mut table)
            .map_err(recovery.io("look at", "the collected segments"))?;
        let writer = build(disk, dir, config, capacity, found, table, &recovered);
        let reader = LogReader {
            segments: writer.segments(),
        };
        Ok((writer, reader, recovered))
    }
}

fn finish_replays(
    recovery: &Recovery<'_>,
    found: &mut Found,
) -> Result<BTreeMap<u32, RecoveredGroup>, OpenError> {
    let mut groups = BTreeMap::new();
    for (group, replay) in std::mem::take(&mut found.replays) {
        let replicas = recovery.config.replicas.as_ref();
        if replicas.is_some_and(|replicas| !replicas.contains(&group)) {
            // Some of its segments may be recycled, so it need not fit together any more.
            found.gone.push(group);
            continue;
        }
        let done = replay.finish().map_err(|missing| {
            let (segment, offset) = found.tail.unwrap_or_default();
            recovery.corrupt(segment, offset, format!("group {group}: {missing}"))
        })?;
        groups.insert(group, done);
    }
    Ok(groups)
}

/// What a crash left of a batch that nobody was told of must not be taken for one later.
fn drop_unacknowledged(
    disk: &dyn Disk,
    dir: &Path,
    found: &Found,
    table: &mut Table,
) -> io::Result<()> {
    let zeros = vec![0; 2 * BLOCK as usize];
    if let Some((id, offset)) = found.tail
        && let Some(Read { file, .. }) = found.segments.get(&id)
        && offset.max(BLOCK) < file.size()?
    {
        file.write_at(&zeros[..BLOCK as usize], offset.max(BLOCK))?;
        file.sync_data()?;
    }
    for (id, file) in &found.unused {
        file.write_at(&zeros, 0)?;
        file.sync_data()?;
        table.spares.next_name = table.spares.next_name.max(*id);
        disk.rename(
            &dir.join(segment_name(*id)),
            &dir.join(table.spares.name(false)),
        )?;
    }
    if !found.unused.is_empty() {
        disk.sync_dir(dir)?;
    }
    Ok(())
}

fn collect_spares(disk: &dyn Disk, dir: &Path, capacity: u64, table: &mut Table) -> io::Result<()> {
    for name in disk.list(dir)? {
        let Some((number, filled)) = spare::parse_name(&name) else {
            continue;
        };
        table.spares.next_name = table.spares.next_name.max(number);
        let file = disk.open(&dir.join(&name))?;
        if file.size()? == capacity {
            table.spares.ready.push(Spare { name, file, filled });
        } else {
            disk.unlink(&dir.join(&name))?;
        }
    }
    Ok(())
}

fn build(
    disk: Arc<dyn Disk>,
    dir: &Path,
    config: LogConfig,
    capacity: u64,
    found: Found,
    mut table: Table,
    recovered: &Recovered,
) -> LogWriter {
    let mut groups = BTreeMap::new();
    for (id, group) in &recovered.groups {
        let (hard_state, truncated) = (group.hard_state, group.truncated);
        groups.insert(
            *id,
            GroupState {
                hard_state,
                last: group.last_index(),
                truncated,
            },
        );
        table.wanted.insert(*id, truncated);
        table.durable.insert(*id, truncated);
    }
    for group in &found.gone {
        groups.entry(*group).or_default().adopt(GONE);
        table.wanted.insert(*group, GONE);
    }
    let active = found
        .tail
        .filter(|_| !found.other_size)
        .and_then(|(id, tail)| {
            let read = found.segments.get(&id)?;
            Some(Active {
                id,
                file: read.file.clone(),
                tail,
                reserved: false,
                fresh: tail == 0,
            })
        });
    table.active = active.as_ref().map(|active| active.id);
    table.active_durable = active.as_ref().is_some_and(|active| !active.fresh);
    for (id, Read { file, last, end }) in found.segments {
        table.segments.insert(
            id,
            Segment {
                last,
                file: Some(file),
                end: Some(end),
                ..Segment::default()
            },
        );
    }
    let (wake, woken) = match config.background {
        true => Some(mpsc::sync_channel(1)).unzip(),
        false => (None, None),
    };
    let shared = Arc::new(Shared {
        disk,
        dir: dir.to_owned(),
        capacity,
        disk_bytes: config.disk_bytes,
        table: Mutex::new(table),
        returned: Condvar::new(),
        wake,
        flushed: AtomicU64::new(0),
    });
    shared.maintain();
    if let Some(woken) = woken {
        let weak = Arc::downgrade(&shared);
        let spawned = std::thread::Builder::new()
            .name("log-spares".into())
            .spawn(move || spare::prepare(weak, woken));
        if let Err(error) = spawned {
            // The writer makes its spares itself, more slowly.
            tracing::warn!(%error, "no thread to prepare log segments");
        }
    }
    LogWriter {
        segments: Segments(shared),
        config,
        active,
        groups,
        next_segment: found.last_segment + 1,
        next_batch: found.last_batch + 1,
        durable: found.durable.unwrap_or_default(),
        unmarked: found.tail.is_some(),
        batch: Batch::default(),
        last_flush: Instant::now(),
        dead: false,
    }
}
