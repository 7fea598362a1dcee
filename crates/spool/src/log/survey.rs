//! What can still be read of a log that does not open: for `postroad queue salvage`. Reads only; believes single records,
//! where recovery believes whole batches.
//!
//! Behind damage the next record is looked for octet by octet, also inside what may be the body of a message. Whoever wrote
//! that body could have put a record there that looks like ours; a person decides what to do with what is salvaged.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::error::is_unreadable;
use super::record::{BLOCK, HEADER, RecordHeader, RecordType};
use super::scan::Window;
use super::{Disk, DiskFile, EntryKind, Location};

/// What a device refuses to give back at once, octets: disks have sectors of this many or more.
const SECTOR: u64 = 512;

/// The records of a log by what they say.
#[derive(Debug, Default)]
pub struct Survey {
    /// For each group its entries by index; the last that was written counts.
    pub groups: BTreeMap<u32, BTreeMap<u64, Surveyed>>,
    /// What could not be read between what could, for people.
    pub gaps: Vec<String>,
    files: BTreeMap<u64, (PathBuf, Arc<dyn DiskFile>)>,
}

/// An entry whose header is right.
#[derive(Clone, Copy, Debug)]
pub struct Surveyed {
    /// Raft term.
    pub term: u64,
    /// What it is for.
    pub kind: EntryKind,
    /// Where it lies.
    pub location: Location,
}

impl Survey {
    /// Looks through all segments in `dir`, of any generation.
    ///
    /// # Errors
    /// The directory cannot be listed, or a segment not be opened or read.
    pub fn of(disk: &dyn Disk, dir: &Path) -> io::Result<Survey> {
        let mut survey = Survey::default();
        for name in disk.list(dir)? {
            if let Some(id) = segment_number(&name) {
                let path = dir.join(name);
                let file = disk.open_to_read(&path)?;
                survey.files.insert(id, (path, file));
            }
        }
        let files = survey.files.clone();
        for (id, (path, file)) in &files {
            survey.segment(*id, path, file.as_ref())?;
        }
        Ok(survey)
    }

    fn segment(&mut self, id: u64, path: &Path, file: &dyn DiskFile) -> io::Result<()> {
        let mut window = Window::new(file)?;
        let size = file.size()?;
        let (mut at, mut gap) = (BLOCK, None);
        while at + HEADER as u64 <= size {
            let header = match header(&mut window, id, at) {
                Ok(Some(header)) => header,
                Ok(None) => {
                    gap.get_or_insert(at);
                    at += 1;
                    continue;
                }
                // Not one octet of the sector is to be had.
                Err(error) if is_unreadable(&error) => {
                    gap.get_or_insert(at);
                    at = (at / SECTOR + 1) * SECTOR;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if let Some(from) = gap.take() {
                self.note_gap(path, from, at, &mut window)?;
            }
            self.record(id, at, &header);
            at += HEADER as u64 + u64::from(header.len);
            if header.kind == RecordType::BatchEnd {
                at = at.next_multiple_of(BLOCK);
            }
        }
        Ok(())
    }

    /// Zeros are no gap: a file is made of them.
    fn note_gap(
        &mut self,
        path: &Path,
        from: u64,
        to: u64,
        window: &mut Window<'_>,
    ) -> io::Result<()> {
        let mut at = from;
        while at < to {
            let len = (to - at).min(BLOCK) as usize;
            let is_gap = match window.get(at, len) {
                Ok(octets) => octets.is_none_or(|octets| octets.iter().any(|o| *o != 0)),
                Err(error) if is_unreadable(&error) => true,
                Err(error) => return Err(error),
            };
            if is_gap {
                self.gaps.push(format!(
                    "{}, octets {from} to {to}: no record can be read",
                    path.display()
                ));
                return Ok(());
            }
            at += len as u64;
        }
        Ok(())
    }

    fn record(&mut self, segment: u64, at: u64, header: &RecordHeader) {
        let Some(kind) = header
            .entry_kind()
            .filter(|_| header.kind == RecordType::Entry)
        else {
            return;
        };
        let location = Location {
            segment,
            offset: at as u32,
            context_len: header.context_len,
            data_len: header.len - header.context_len,
        };
        let entries = self.groups.entry(header.group).or_default();
        // A later leader's entry cuts what followed.
        if entries
            .get(&header.index)
            .is_some_and(|before| before.term < header.term)
        {
            entries.split_off(&header.index);
        }
        let term = header.term;
        entries.insert(
            header.index,
            Surveyed {
                term,
                kind,
                location,
            },
        );
    }

    /// Context and data of the record at `location`, verified.
    ///
    /// # Errors
    /// A text that names file, offset, group and index.
    pub fn read(
        &self,
        location: Location,
        group: u32,
        index: u64,
    ) -> Result<(Bytes, Bytes), String> {
        let Some((path, file)) = self.files.get(&location.segment) else {
            return Err(format!(
                "entry {index} of group {group}: segment {} is not there",
                location.segment
            ));
        };
        let place = format!(
            "entry {index} of group {group}, {}, offset {}",
            path.display(),
            location.offset
        );
        let payload = location.context_len as usize + location.data_len as usize;
        let mut bytes = vec![0; HEADER + payload];
        match file.read_at(&mut bytes, u64::from(location.offset)) {
            Ok(read) if read == bytes.len() => {}
            Ok(_) => return Err(format!("{place}: the file ends there")),
            Err(error) => return Err(format!("{place}: {error}")),
        }
        let right = RecordHeader::decode(&bytes).filter(|header| {
            header.segment == location.segment as u32
                && (header.group, header.index) == (group, index)
                && header.len as usize == payload
                && header.context_len == location.context_len
        });
        let Some(header) = right else {
            return Err(format!("{place}: the record's header is damaged"));
        };
        if crc32c::crc32c(&bytes[HEADER..]) != header.payload_crc {
            return Err(format!("{place}: its octets are damaged"));
        }
        let mut payload = Bytes::from(bytes).slice(HEADER..);
        let context = payload.split_to(location.context_len as usize);
        Ok((context, payload))
    }
}

/// A valid header of this segment.
fn header(window: &mut Window<'_>, segment: u64, at: u64) -> io::Result<Option<RecordHeader>> {
    let bytes = window.get(at, HEADER)?;
    // Cheap first: this is asked of every octet of a gap.
    let bytes = bytes.filter(|bytes| bytes[8..12] == (segment as u32).to_le_bytes());
    Ok(bytes.and_then(RecordHeader::decode))
}

/// `seg-<id>.g<generation>`.
fn segment_number(name: &str) -> Option<u64> {
    let (digits, _) = name.strip_prefix("seg-")?.split_once(".g")?;
    digits.parse().ok()
}
