//! Recovery: what the segments say, read in order; and the difference between a torn tail and damage (queue.md 4.7).

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::error::is_unreadable;
use super::planted::{Mutation, planted};
use super::record::{
    BLOCK, HeaderRead, Position, RecordType, STATE_PAYLOAD, SegmentHeader, VERSION, segment_id,
    segment_name, u64_at,
};
use super::replay::Replay;
use super::scan::{Flaw, Scan, ScannedBatch, ScannedRecord, Window};
use super::{
    Damaged, Disk, DiskFile, EntryKind, HardState, Location, LogConfig, OpenError, RecoveredEntry,
    RecoveredGroup,
};

/// What the directory holds, before anything in it is changed.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub replays: BTreeMap<u32, Replay>,
    /// Segments that count.
    pub segments: BTreeMap<u64, Read>,
    /// Begun, but nothing in them was ever acknowledged.
    pub unused: Vec<(u64, Arc<dyn DiskFile>)>,
    /// Where the last segment goes on; the offset is 0 when not even its head counts.
    pub tail: Option<Position>,
    /// Where the last batch ends: before it all is durable. Not the head of a segment that holds no batch: that would vouch for
    /// whatever a crash left behind the end of the one before.
    pub durable: Option<Position>,
    /// The last segment was made with another size and is not continued.
    pub other_size: bool,
    pub last_segment: u64,
    pub last_batch: u64,
    /// Replicas that this node does not have any more.
    pub gone: Vec<u32>,
    pub torn_bytes: u64,
    /// Entries whose payload is damaged in batches that were durable.
    pub damaged: Vec<Damaged>,
}

/// A segment that counts.
#[derive(Debug)]
pub(super) struct Read {
    pub file: Arc<dyn DiskFile>,
    /// Highest index of each group in it.
    pub last: BTreeMap<u32, u64>,
    /// Where its last batch ends.
    pub end: u64,
}

/// One segment file and its header.
struct Candidate {
    id: u64,
    file: Arc<dyn DiskFile>,
    header: Option<SegmentHeader>,
    /// Why there is no header.
    flaw: &'static str,
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
                self.refuse_if_durable(&candidates[at..], 0, &candidate.flaw)?;
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
            // When the segment that named this one's end is recycled, only what is in this one can vouch for it: what is
            // missing beyond shows as a gap in a group's log.
            let witnesses = match next {
                Some(_) => &candidates[at..=at],
                None => &candidates[at..],
            };
            let (reached, flaw) = self.read_segment(candidate, end, witnesses, &mut found)?;
            match (end, flaw) {
                (Some(end), Some(flaw)) if reached < end => {
                    let what =
                        format!("{flaw}; the next segment says that this one reaches to {end}");
                    return Err(self.corrupt(candidate.id, reached, what));
                }
                (Some(_), _) | (None, None) => {}
                (None, Some(flaw)) => self.refuse_if_durable(witnesses, reached, &flaw)?,
            }
            found.other_size = header.capacity != self.capacity;
            found.tail = Some((candidate.id, if reached == BLOCK { 0 } else { reached }));
            if reached > BLOCK {
                found.durable = found.tail;
            }
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
            let mut flaw = "the segment's header fails its checksum";
            let read = match file.read_at(&mut block, 0) {
                Err(error) if is_unreadable(&error) => {
                    flaw = "the device refuses to read the segment's header (EIO)";
                    0
                }
                read => read.map_err(self.io("read", &name))?,
            };
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
            candidates.push(Candidate {
                id,
                file,
                header,
                flaw,
            });
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

    /// Replays the batches of a segment up to `end`, or to the first that does not count; returns where that is, and why
    /// it does not. `witnesses` are the segments, from this one on, that may vouch for what stands in it.
    fn read_segment(
        &self,
        candidate: &Candidate,
        end: Option<u64>,
        witnesses: &[Candidate],
        found: &mut Found,
    ) -> Result<(u64, Option<Flaw>), OpenError> {
        let name = segment_name(candidate.id);
        let mut last = BTreeMap::new();
        let mut window = Window::new(candidate.file.as_ref()).map_err(self.io("read", &name))?;
        let mut at = BLOCK;
        let mut flaw = None;
        while end.is_none_or(|end| at < end) {
            match window
                .batch(candidate.id, at)
                .map_err(self.io("read", &name))?
            {
                Scan::Batch(batch) => {
                    // A payload that did not reach the disk before the power failed looks like one that rotted there. Only
                    // what was written later tells.
                    if let Some(torn) = batch.damaged_at()
                        && end.is_none()
                        && !planted(Mutation::TornTaken)
                        && self.durable_claim(witnesses, at)?.is_none()
                    {
                        found.torn_bytes = torn - at;
                        flaw = Some(Flaw::torn_payload());
                        break;
                    }
                    self.replay_batch(candidate.id, &batch, found, &mut last)?;
                    found.last_batch = batch.end.batch;
                    at = batch.next;
                }
                Scan::Invalid {
                    valid_until,
                    flaw: found_flaw,
                } => {
                    found.torn_bytes = valid_until - at;
                    flaw = Some(found_flaw);
                    break;
                }
            }
        }
        let file = candidate.file.clone();
        let read = Read {
            file,
            last,
            end: at,
        };
        found.segments.insert(candidate.id, read);
        Ok((at, flaw))
    }

    /// The first invalid record stands at `offset` of the first candidate. When anything written later says that it was
    /// durable, it is damage and never a torn tail.
    fn refuse_if_durable(
        &self,
        candidates: &[Candidate],
        offset: u64,
        flaw: &dyn std::fmt::Display,
    ) -> Result<(), OpenError> {
        let Some((witness, (segment, end))) = self.durable_claim(candidates, offset)? else {
            return Ok(());
        };
        let first = candidates.first().map_or(segment, |first| first.id);
        let what = format!(
            "{flaw}; a later batch in {} says that all before segment {segment}, offset {end} was durable",
            segment_name(witness)
        );
        Err(self.corrupt(first, offset, what))
    }

    /// Who says, behind `offset` of the first candidate, that what stands there was durable: the segment of the witness,
    /// and how far it vouches.
    fn durable_claim(
        &self,
        candidates: &[Candidate],
        offset: u64,
    ) -> Result<Option<(u64, Position)>, OpenError> {
        let Some(first) = candidates.first() else {
            return Ok(None);
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
            if let Some(claim) = claim.filter(|claim| *claim > (first.id, offset)) {
                return Ok(Some((candidate.id, claim)));
            }
        }
        Ok(None)
    }

    /// Takes a batch that counts. Damaged payloads that will be applied again are more than can be mended.
    fn replay_batch(
        &self,
        segment: u64,
        batch: &ScannedBatch,
        found: &mut Found,
        last: &mut BTreeMap<u32, u64>,
    ) -> Result<(), OpenError> {
        for record in &batch.records {
            let header = &record.header;
            if record.damaged {
                found.damaged.push(Damaged {
                    group: header.group,
                    index: header.index,
                    term: header.term,
                    location: location(segment, record),
                    copy: header.kind == RecordType::RelocatedBody,
                });
            }
            let replay = found.replays.entry(header.group);
            match header.kind {
                RecordType::Entry => {
                    let Some(kind) = header.entry_kind() else {
                        continue;
                    };
                    let highest = last.entry(header.group).or_default();
                    *highest = (*highest).max(header.index);
                    let entry = RecoveredEntry {
                        index: header.index,
                        term: header.term,
                        kind,
                        location: location(segment, record),
                    };
                    replay.or_default().entry(entry);
                }
                RecordType::HardState if record.payload.len() >= STATE_PAYLOAD - 8 => {
                    replay.or_default().hard_state = hard_state(&record.payload);
                }
                RecordType::State if record.payload.len() >= STATE_PAYLOAD => {
                    let last = u64_at(&record.payload, 24);
                    let truncated = (header.index, header.term);
                    replay
                        .or_default()
                        .state(hard_state(&record.payload), truncated, last);
                }
                // Shorter than any version wrote them, under a valid checksum: not ours.
                RecordType::HardState | RecordType::State => {
                    return Err(self.corrupt(segment, record.offset, header.kind.flaw().into()));
                }
                RecordType::RelocatedBody | RecordType::DurableMark | RecordType::BatchEnd => {}
            }
        }
        Ok(())
    }

    /// Sorts the damage: what no group's log holds any more and what can be mended is kept for whoever needs the body; an
    /// entry that is to be applied again, or a change of membership, is more than that.
    pub fn judge_damage(
        &self,
        damaged: Vec<Damaged>,
        groups: &BTreeMap<u32, RecoveredGroup>,
    ) -> Result<Vec<Damaged>, OpenError> {
        let mut mendable = Vec::new();
        for it in damaged {
            let Some(group) = groups.get(&it.group) else {
                continue;
            };
            if it.copy {
                mendable.push(it);
                continue;
            }
            let gone = it.index <= group.truncated.0;
            let at = it.index.wrapping_sub(group.truncated.0 + 1) as usize;
            let entry = group.entries.get(at).filter(|_| !gone);
            if !gone && entry.is_none_or(|entry| entry.location != it.location) {
                // Overwritten by a later leader: nobody will ask for it.
                continue;
            }
            let applied = self.config.applied.get(&it.group).copied().unwrap_or(0);
            let needed = entry.is_some_and(|entry| entry.kind != EntryKind::Normal);
            if it.index > applied || needed {
                let why = if needed {
                    "it changes the group's members".to_owned()
                } else {
                    format!(
                        "the metadata reaches to entry {applied} only, so it would have to be applied"
                    )
                };
                let what = format!(
                    "the payload of entry {} of group {} fails its checksum or cannot be read, and {why}",
                    it.index, it.group
                );
                return Err(self.corrupt(it.location.segment, it.location.offset.into(), what));
            }
            mendable.push(it);
        }
        Ok(mendable)
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

fn location(segment: u64, record: &ScannedRecord) -> Location {
    let context_len = record.header.context_len;
    Location {
        segment,
        offset: record.offset as u32,
        context_len,
        data_len: record.header.len - context_len,
    }
}

fn hard_state(payload: &[u8]) -> HardState {
    HardState {
        term: u64_at(payload, 0),
        vote: u64_at(payload, 8),
        commit: u64_at(payload, 16),
    }
}
