//! Recovery: what the segments say, read in order; and the difference between a torn tail and damage (queue.md 4.7).

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::record::{
    BLOCK, HeaderRead, Position, RecordType, STATE_PAYLOAD, SegmentHeader, VERSION, segment_id,
    segment_name, u64_at,
};
use super::replay::Replay;
use super::scan::{Scan, ScannedBatch, Window};
use super::{Disk, DiskFile, HardState, Location, LogConfig, OpenError, RecoveredEntry};

/// What the directory holds, before anything in it is changed.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub replays: BTreeMap<u32, Replay>,
    /// Segments that count, with the highest index of each group.
    pub segments: BTreeMap<u64, Read>,
    /// Begun, but nothing in them was ever acknowledged.
    pub unused: Vec<(u64, Arc<dyn DiskFile>)>,
    /// Where the last segment goes on; the offset is 0 when not even its head counts.
    pub tail: Option<Position>,
    /// The last segment was made with another size and is not continued.
    pub other_size: bool,
    pub last_segment: u64,
    pub last_batch: u64,
    pub torn_bytes: u64,
}

/// A segment that counts, with the highest index of each group in it.
pub(super) type Read = (Arc<dyn DiskFile>, BTreeMap<u32, u64>);

/// One segment file and its header.
struct Candidate {
    id: u64,
    file: Arc<dyn DiskFile>,
    header: Option<SegmentHeader>,
}

/// Reads the segments of a log.
pub(super) struct Recovery<'a> {
    pub disk: &'a dyn Disk,
    pub dir: &'a Path,
    pub config: &'a LogConfig,
    pub capacity: u64,
}

impl Recovery<'_> {
    /// Reads everything; changes nothing.
    pub fn read(&self) -> Result<Found, OpenError> {
        let candidates = self.candidates()?;
        let mut found = Found {
            last_segment: candidates.last().map_or(0, |last| last.id),
            ..Found::default()
        };
        for (at, candidate) in candidates.iter().enumerate() {
            let Some(header) = &candidate.header else {
                self.refuse_if_durable(&candidates[at..], 0)?;
                found.unused = candidates[at..]
                    .iter()
                    .map(|unused| (unused.id, unused.file.clone()))
                    .collect();
                break;
            };
            let next = candidates.get(at + 1).and_then(|next| next.header);
            let end = next
                .map(|next| next.durable)
                .filter(|(id, _)| *id == candidate.id)
                .map(|(_, end)| end);
            let reached = self.read_segment(candidate, end, &mut found)?;
            match end {
                Some(end) if reached < end => {
                    return Err(self.corrupt(
                        candidate.id,
                        reached,
                        format!("the next segment says that it reaches to {end}"),
                    ));
                }
                Some(_) => {}
                // The segment that named this one's end is recycled: what is missing shows as a gap in a group's log.
                None if next.is_some() => self.refuse_if_durable(&candidates[at..=at], reached)?,
                None => self.refuse_if_durable(&candidates[at..], reached)?,
            }
            found.other_size = header.capacity != self.capacity;
            found.tail = Some((candidate.id, if reached == BLOCK { 0 } else { reached }));
        }
        Ok(found)
    }

    /// Opens all segments. What the page cache holds is made durable or dropped: only the device is believed.
    fn candidates(&self) -> Result<Vec<Candidate>, OpenError> {
        let names = self
            .disk
            .list(self.dir)
            .map_err(self.io("list", "the directory"))?;
        let mut ids: Vec<u64> = names.iter().filter_map(|name| segment_id(name)).collect();
        ids.sort_unstable();
        let mut candidates = Vec::with_capacity(ids.len());
        for id in ids {
            let name = segment_name(id);
            let file = self
                .disk
                .open(&self.dir.join(&name))
                .map_err(self.io("open", &name))?;
            file.sync_data().map_err(self.io("flush", &name))?;
            file.drop_cache()
                .map_err(self.io("drop cached pages of", &name))?;
            let mut block = vec![0; BLOCK as usize];
            let read = file
                .read_at(&mut block, 0)
                .map_err(self.io("read", &name))?;
            let header = match SegmentHeader::decode(&block[..read]) {
                HeaderRead::Valid(header) if header.segment == id => Some(header),
                HeaderRead::Valid(_) | HeaderRead::Invalid => None,
                HeaderRead::Version(version) => {
                    let dir = self.dir.to_owned();
                    return Err(OpenError::Version {
                        dir,
                        name,
                        version,
                        known: u32::from(VERSION),
                    });
                }
            };
            self.check_owner(&name, header.as_ref())?;
            candidates.push(Candidate { id, file, header });
        }
        self.disk
            .sync_dir(self.dir)
            .map_err(self.io("flush", "the directory"))?;
        Ok(candidates)
    }

    fn check_owner(&self, name: &str, header: Option<&SegmentHeader>) -> Result<(), OpenError> {
        let owner = (self.config.cluster_id, self.config.incarnation);
        match header {
            Some(header) if (header.cluster, header.incarnation) != owner => {
                Err(OpenError::Foreign {
                    dir: self.dir.to_owned(),
                    name: name.to_owned(),
                    found: format!(
                        "cluster {}, incarnation {:032x}",
                        header.cluster, header.incarnation
                    ),
                    expected: format!("cluster {}, incarnation {:032x}", owner.0, owner.1),
                })
            }
            _ => Ok(()),
        }
    }

    /// Replays the batches of a segment up to `end`, or to the first invalid one; returns where that is.
    fn read_segment(
        &self,
        candidate: &Candidate,
        end: Option<u64>,
        found: &mut Found,
    ) -> Result<u64, OpenError> {
        let name = segment_name(candidate.id);
        let mut last = BTreeMap::new();
        let mut window = Window::new(candidate.file.as_ref()).map_err(self.io("read", &name))?;
        let mut at = BLOCK;
        while end.is_none_or(|end| at < end) {
            match window
                .batch(candidate.id, at)
                .map_err(self.io("read", &name))?
            {
                Scan::Batch(batch) => {
                    replay_batch(candidate.id, &batch, &mut found.replays, &mut last);
                    found.last_batch = batch.end.batch;
                    at = batch.next;
                }
                Scan::Invalid { valid_until } => {
                    found.torn_bytes = valid_until - at;
                    break;
                }
            }
        }
        found
            .segments
            .insert(candidate.id, (candidate.file.clone(), last));
        Ok(at)
    }

    /// The first invalid record stands at `offset` of the first candidate. When anything written later says that it was
    /// durable, it is damage and never a torn tail.
    fn refuse_if_durable(&self, candidates: &[Candidate], offset: u64) -> Result<(), OpenError> {
        let Some(first) = candidates.first() else {
            return Ok(());
        };
        for candidate in candidates {
            let name = segment_name(candidate.id);
            let from = if candidate.id == first.id {
                offset + BLOCK
            } else {
                BLOCK
            };
            let mut window =
                Window::new(candidate.file.as_ref()).map_err(self.io("read", &name))?;
            let claim = window
                .durable_claims(candidate.id, from)
                .map_err(self.io("read", &name))?;
            let claim = claim.max(candidate.header.map(|header| header.durable));
            if let Some((segment, end)) = claim.filter(|claim| *claim > (first.id, offset)) {
                let what = format!(
                    "a later batch in {name} says that all before segment {segment}, offset {end} was durable"
                );
                return Err(self.corrupt(first.id, offset, what));
            }
        }
        Ok(())
    }

    /// The error for damage in a segment.
    pub fn corrupt(&self, segment: u64, offset: u64, what: String) -> OpenError {
        OpenError::Corrupt {
            dir: self.dir.to_owned(),
            name: segment_name(segment),
            segment,
            offset,
            what,
        }
    }

    /// The error for a failed operation.
    pub fn io(&self, action: &'static str, name: &str) -> impl FnOnce(io::Error) -> OpenError {
        let (dir, name) = (self.dir.to_owned(), name.to_owned());
        move |source| OpenError::Io {
            dir,
            action,
            name,
            source,
        }
    }
}

fn replay_batch(
    segment: u64,
    batch: &ScannedBatch,
    replays: &mut BTreeMap<u32, Replay>,
    last: &mut BTreeMap<u32, u64>,
) {
    for record in &batch.records {
        let header = &record.header;
        match header.kind {
            RecordType::Entry => {
                let Some(kind) = header.entry_kind() else {
                    continue;
                };
                let highest = last.entry(header.group).or_default();
                *highest = (*highest).max(header.index);
                let context_len = header.context_len;
                let data_len = header.len - context_len;
                let location = Location {
                    segment,
                    offset: record.offset as u32,
                    context_len,
                    data_len,
                };
                let entry = RecoveredEntry {
                    index: header.index,
                    term: header.term,
                    kind,
                    location,
                };
                replays.entry(header.group).or_default().entry(entry);
            }
            RecordType::HardState if record.payload.len() >= STATE_PAYLOAD - 8 => {
                replays.entry(header.group).or_default().hard_state = hard_state(&record.payload);
            }
            RecordType::State if record.payload.len() >= STATE_PAYLOAD => {
                let last = u64_at(&record.payload, 24);
                let truncated = (header.index, header.term);
                replays.entry(header.group).or_default().state(
                    hard_state(&record.payload),
                    truncated,
                    last,
                );
            }
            RecordType::HardState
            | RecordType::State
            | RecordType::RelocatedBody
            | RecordType::DurableMark
            | RecordType::BatchEnd => {}
        }
    }
}

fn hard_state(payload: &[u8]) -> HardState {
    HardState {
        term: u64_at(payload, 0),
        vote: u64_at(payload, 8),
        commit: u64_at(payload, 16),
    }
}
