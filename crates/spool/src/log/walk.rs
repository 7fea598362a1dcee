//! What lies in a segment, record by record, also where parts of it are damaged: for the collector and the scrubber.
//!
//! Recovery reads batches and believes only whole ones (`scan`); here each record stands for itself, because whoever
//! walks asks the state about each, and a reference to a record is what makes it count.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use mail::Digest;

use super::record::{BLOCK, HEADER, HeaderRead, RecordHeader, RecordType, SegmentHeader};
use super::scan::Window;
use super::{DiskFile, Location, LogReader, ReadError, Relocated, Segments};

/// Octets of a gap in which the next record is looked for at once.
const SEARCHED_AT_ONCE: u64 = 1 << 20;

/// A place in a segment, kept between two steps of a walk.
#[derive(Debug)]
pub struct Walk {
    segment: u64,
    file: Arc<dyn DiskFile>,
    at: u64,
    /// Where the last batch ends, if that is known.
    end: Option<u64>,
    /// What was read last closed a batch, so that the segment may end there.
    closed: bool,
    /// The segment's own header is not what was written; said once.
    headless: bool,
}

/// What stands at a place of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The data of an entry, or a copy of it. Only its header was verified.
    Entry {
        /// Raft group.
        group: u32,
        /// Raft index.
        index: u64,
        /// Where it lies.
        location: Location,
        /// Its payload passes its checksum.
        intact: bool,
    },
    /// Damage: nothing can be read from here up to the next record, or a record of the log's own (a STATE, a HARDSTATE, a
    /// mark, the end of a batch) does not pass its checksum.
    Gap,
    /// The walk is at its end.
    End,
}

impl Walk {
    /// From the first record of a segment on; `None` when the segment was recycled.
    pub fn begin(segments: &Segments, segment: u64) -> io::Result<Option<Walk>> {
        let file = segments.0.file(segment)?;
        Ok(file.map(|file| Walk {
            segment,
            file,
            at: BLOCK,
            end: segments.0.end(segment),
            closed: true,
            headless: false,
        }))
    }

    /// The same, of what the device holds, and not of what the page cache remembers of it; with the segment's own header.
    ///
    /// # Errors
    /// The file cannot be opened, or its pages not be dropped.
    pub fn begin_on_device(segments: &Segments, segment: u64) -> io::Result<Option<Walk>> {
        let mut walk = Walk::begin(segments, segment)?;
        if let Some(walk) = &mut walk {
            walk.file.drop_cache()?;
            let mut block = vec![0; BLOCK as usize];
            let read = walk.file.read_at(&mut block, 0)?;
            let header = SegmentHeader::decode(&block[..read]);
            walk.headless = !matches!(header, HeaderRead::Valid(it) if it.segment == segment);
        }
        Ok(walk)
    }

    /// Offset of what comes next, octets.
    pub fn offset(&self) -> u64 {
        self.at
    }

    /// Looks at records until `each` wants no more (`false`), or to the end.
    pub fn go(&mut self, mut each: impl FnMut(Found) -> bool) -> io::Result<()> {
        let file = self.file.clone();
        let mut window = Window::new(file.as_ref())?;
        while each(self.next(&mut window)?) {}
        Ok(())
    }

    fn next(&mut self, window: &mut Window<'_>) -> io::Result<Found> {
        if std::mem::take(&mut self.headless) {
            return Ok(Found::Gap);
        }
        loop {
            if self.end.is_some_and(|end| self.at >= end) {
                return Ok(Found::End);
            }
            let Some(header) = self.header(window, self.at)? else {
                return self.skip_gap(window);
            };
            let next = self.at + HEADER as u64 + u64::from(header.len);
            let payload = window.get(self.at + HEADER as u64, header.len as usize)?;
            let intact = payload.is_some_and(|p| crc32c::crc32c(p) == header.payload_crc);
            self.closed = header.kind == RecordType::BatchEnd;
            match header.kind {
                RecordType::Entry | RecordType::RelocatedBody => {
                    let location = Location {
                        segment: self.segment,
                        offset: self.at as u32,
                        context_len: header.context_len,
                        data_len: header.len - header.context_len,
                    };
                    self.at = next;
                    let (group, index) = (header.group, header.index);
                    return Ok(Found::Entry {
                        group,
                        index,
                        location,
                        intact,
                    });
                }
                RecordType::BatchEnd => self.at = next.next_multiple_of(BLOCK),
                _ => self.at = next,
            }
            if !intact {
                return Ok(Found::Gap);
            }
        }
    }

    fn header(&self, window: &mut Window<'_>, at: u64) -> io::Result<Option<RecordHeader>> {
        let bytes = window.get(at, HEADER)?;
        let header = bytes.and_then(RecordHeader::decode);
        Ok(header.filter(|header| header.segment == self.segment as u32))
    }

    /// Goes on at the next record, wherever that begins: in the batch whose record is damaged others follow it. Bytes of a
    /// body that look like a record do no harm: nothing refers to them.
    fn skip_gap(&mut self, window: &mut Window<'_>) -> io::Result<Found> {
        let size = self.file.size()?;
        let limit = self.end.unwrap_or(size).min(size);
        if self.at >= limit {
            return Ok(Found::End);
        }
        let next = self.search(window, limit)?;
        // Where the end is not known, what follows a whole batch is the rest of a file that was never full, if nothing in it is
        // of this segment.
        let rest = self.end.is_none() && self.closed && next.is_none();
        self.at = next.unwrap_or(limit);
        self.closed = next.is_none();
        Ok(if rest { Found::End } else { Found::Gap })
    }

    fn search(&self, window: &mut Window<'_>, limit: u64) -> io::Result<Option<u64>> {
        let mark = (self.segment as u32).to_le_bytes();
        let mut at = self.at + 1;
        while at + HEADER as u64 <= limit {
            let len = (limit - at).min(SEARCHED_AT_ONCE) as usize;
            let Some(octets) = window.get(at, len)? else {
                return Ok(None);
            };
            // Cheap first: the segment's number stands in each header of it.
            let begins = |from: &usize| {
                let header = &octets[*from..*from + HEADER];
                header[8..12] == mark && RecordHeader::decode(header).is_some()
            };
            if let Some(from) = (0..=len - HEADER).find(begins) {
                return Ok(Some(at + from as u64));
            }
            at += (len - HEADER + 1) as u64;
        }
        Ok(None)
    }
}

impl LogReader {
    /// Reads an entry's data for a copy. A copy of a copy is compared with the digest that the first one took.
    ///
    /// # Errors
    /// As [`LogReader::read_entry`].
    pub fn read_body(
        &self,
        location: Location,
        group: u32,
        index: u64,
    ) -> Result<(Relocated, Bytes), ReadError> {
        let (header, context, data) = self.read_record(location, group, index)?;
        let digest = Digest::of(&data);
        let first = Digest::from_slice(&context);
        let copied = header.kind == RecordType::RelocatedBody && first.is_some();
        if copied && first != Some(digest) {
            return Err(self.bad(location, "the body is not what was collected"));
        }
        let term = header.term;
        let body = Relocated {
            group,
            index,
            term,
            digest,
            data,
        };
        let command = match header.kind {
            RecordType::Entry => context,
            _ => Bytes::new(),
        };
        Ok((body, command))
    }
}
