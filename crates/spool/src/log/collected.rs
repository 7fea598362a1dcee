//! Segments of the collector: copies of what lives on of segments that are given back (queue.md 4.3).
//!
//! They stand beside the Raft log and are no part of it: recovery does not replay them, nothing in them is acknowledged
//! to anybody, and what the durable state does not refer to is garbage. So a torn end needs no care: a copy counts once
//! the state says so, and the state is told only after the copy's fdatasync.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::batch::Batch;
use super::error::is_unreadable;
use super::place::Rank;
use super::record::{BLOCK, HeaderRead, SegmentHeader, collected_id, collected_name};
use super::segments::{Segment, Table};
use super::spare::is_no_space;
use super::{Disk, DiskFile, Location, LogConfig, Relocated, Segments};

/// Numbers of collected segments begin here, so that they never stand between those of the Raft log, whose order is
/// their age. Below 2^32, because a record says the lower half of its segment's number.
const FIRST: u64 = 1 << 31;

/// Pins of copies are numbered from here, beyond those of snapshots and repairs.
const FIRST_PIN: u64 = 3 << 61;

/// Writes the collector's segments, one open for each generation. One thread owns it.
#[derive(Debug)]
pub struct CollectedWriter {
    segments: Segments,
    config: LogConfig,
    open: BTreeMap<u32, Open>,
    batch: Batch,
    next_batch: u64,
    next_pin: u64,
}

/// The segment of a generation that is written into.
#[derive(Debug)]
struct Open {
    id: u64,
    file: Arc<dyn DiskFile>,
    /// Offset of the next batch; 0: the header is yet to be written.
    tail: u64,
}

/// Copies that are durable. Their segments are pinned, because nothing seems to live there, until the durable state
/// refers to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copies {
    /// Where each lies, in the order given; shorter when there was no room for the rest.
    pub locations: Vec<Location>,
    /// Who pins their segments: for [`Segments::unpin`].
    pub pin: u64,
}

impl CollectedWriter {
    pub(super) fn new(segments: &Segments, config: &LogConfig) -> Self {
        Self {
            segments: segments.clone(),
            config: config.clone(),
            open: BTreeMap::new(),
            batch: Batch::default(),
            next_batch: 1,
            next_pin: FIRST_PIN,
        }
    }

    /// Makes copies durable in segments of `generation` (from 1), as many as there is room for.
    ///
    /// # Errors
    /// The disk failed: the replica node stops for good.
    pub fn write(&mut self, generation: u32, bodies: &[Relocated]) -> io::Result<Copies> {
        let pin = self.next_pin;
        self.next_pin += 1;
        let mut copies = Copies {
            locations: Vec::with_capacity(bodies.len()),
            pin,
        };
        let mut buffered = Vec::new();
        for body in bodies {
            let payload = body.digest.0.len() + body.data.len();
            let long = self.batch.len_with(payload) > self.config.batch_bytes as u64;
            if !buffered.is_empty() && (long || !self.fits(generation, payload)) {
                self.flush(generation, &mut buffered, &mut copies)?;
            }
            if buffered.is_empty() && !self.begin(generation, payload)? {
                return Ok(copies);
            }
            buffered.push(self.batch.copied(body));
        }
        self.flush(generation, &mut buffered, &mut copies)?;
        Ok(copies)
    }

    /// Octets that still go into the open segment of a generation.
    pub fn room(&self, generation: u32) -> u64 {
        let capacity = self.segments.0.capacity;
        self.open
            .get(&generation)
            .map_or(0, |open| capacity - open.tail)
    }

    fn fits(&self, generation: u32, payload: usize) -> bool {
        let needed = self.batch.len_with(payload).next_multiple_of(BLOCK);
        let open = self.open.get(&generation);
        open.is_some_and(|open| open.tail + needed <= self.segments.0.capacity)
    }

    /// Begins a batch where `payload` has room. False: there is none.
    fn begin(&mut self, generation: u32, payload: usize) -> io::Result<bool> {
        self.begin_batch(generation);
        if self.fits(generation, payload) {
            return Ok(true);
        }
        if let Some(full) = self.open.remove(&generation) {
            let mut table = self.segments.0.lock();
            if let Some(segment) = table.segments.get_mut(&full.id) {
                segment.open = false;
            }
        }
        let Some(open) = self.begin_segment(generation)? else {
            return Ok(false);
        };
        self.open.insert(generation, open);
        self.begin_batch(generation);
        Ok(self.fits(generation, payload))
    }

    fn begin_batch(&mut self, generation: u32) {
        let Some(open) = self.open.get(&generation) else {
            return self.batch.begin(0, 0, self.next_batch);
        };
        self.batch.begin(open.id, open.tail, self.next_batch);
        if open.tail == 0 {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            self.batch.lead(&SegmentHeader {
                segment: open.id,
                generation,
                created_ms: now.unwrap_or_default().as_millis() as u64,
                cluster: self.config.cluster_id,
                incarnation: self.config.incarnation,
                capacity: self.segments.0.capacity,
                durable: (0, 0),
            });
        }
    }

    fn begin_segment(&self, generation: u32) -> io::Result<Option<Open>> {
        let shared = &self.segments.0;
        let Some((spare, _)) = shared.take_spare(Rank::Collection)? else {
            return Ok(None);
        };
        let mut table = shared.lock();
        table.last_collected = table.last_collected.max(FIRST) + 1;
        let id = table.last_collected;
        drop(table);
        let to = shared.path(&collected_name(id, generation));
        if let Err(error) = shared.disk.rename(&shared.path(&spare.name), &to) {
            shared.lock().spares.ready.push(spare);
            return if is_no_space(&error) {
                Ok(None)
            } else {
                Err(error)
            };
        }
        // Before the first byte: the state will refer to the file by its new name.
        shared.disk.sync_dir(&shared.dir)?;
        let segment = Segment {
            file: Some(spare.file.clone()),
            generation,
            open: true,
            ..Segment::default()
        };
        shared.lock().segments.insert(id, segment);
        Ok(Some(Open {
            id,
            file: spare.file,
            tail: 0,
        }))
    }

    /// One `pwrite`, one `fdatasync`. What finds no room is not in `copies`.
    fn flush(
        &mut self,
        generation: u32,
        buffered: &mut Vec<Location>,
        copies: &mut Copies,
    ) -> io::Result<()> {
        let Some(open) = self
            .open
            .get_mut(&generation)
            .filter(|_| !buffered.is_empty())
        else {
            return Ok(());
        };
        let (bytes, start) = self.batch.finish((0, 0));
        if let Err(error) = open.file.write_at(bytes, start) {
            // Nothing refers to it, and the next batch goes to the same place.
            buffered.clear();
            return if is_no_space(&error) {
                Ok(())
            } else {
                Err(error)
            };
        }
        // Before the sync: whoever looks for what may be released must never see the copies without their pin.
        self.segments.pin(copies.pin, [open.id]);
        open.file.sync_data()?;
        open.tail = start + bytes.len() as u64;
        if let Some(segment) = self.segments.0.lock().segments.get_mut(&open.id) {
            segment.end = Some(open.tail);
        }
        self.next_batch += 1;
        self.segments.0.count_flushed(bytes.len() as u64);
        copies.locations.append(buffered);
        Ok(())
    }
}

/// The collected segments that a log's directory holds. They are not read: each reference to them is verified when it is
/// used, and what nothing refers to is given back as soon as the state says so. None of them is written into again.
pub(super) fn find(
    disk: &dyn Disk,
    dir: &Path,
    config: &LogConfig,
    table: &mut Table,
) -> io::Result<()> {
    for name in disk.list(dir)? {
        let Some((id, generation)) = collected_id(&name) else {
            continue;
        };
        let file = disk.open(&dir.join(&name))?;
        // As for the log's own segments: only what the device holds is believed.
        file.sync_data()?;
        file.drop_cache()?;
        let mut block = vec![0; BLOCK as usize];
        // One that the device does not give back says nothing; what is referred to in it is looked at when it is used.
        let read = match file.read_at(&mut block, 0) {
            Err(error) if is_unreadable(&error) => 0,
            read => read?,
        };
        if let HeaderRead::Valid(header) = SegmentHeader::decode(&block[..read])
            && (header.cluster, header.incarnation) != (config.cluster_id, config.incarnation)
        {
            let text = format!("{name} belongs to cluster {}", header.cluster);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        table.last_collected = table.last_collected.max(id);
        let segment = Segment {
            generation,
            ..Segment::default()
        };
        table.segments.insert(id, segment);
    }
    Ok(())
}
