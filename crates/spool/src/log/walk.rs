//! What lies in a segment, record by record, also where parts of it are damaged: for the collector and the scrubber.
//!
//! Recovery reads batches and believes only whole ones (`scan`); here each record stands for itself, because whoever
//! walks asks the state about each, and a reference to a record is what makes it count.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use mail::Digest;

use super::record::{BLOCK, HEADER, RecordHeader, RecordType};
use super::scan::Window;
use super::{DiskFile, Location, LogReader, ReadError, Relocated, Segments};

/// A place in a segment, kept between two steps of a walk.
#[derive(Debug)]
pub struct Walk {
    segment: u64,
    file: Arc<dyn DiskFile>,
    at: u64,
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
    /// Nothing that can be read from here up to the next record: damage, or the rest of a file that was never full.
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
        }))
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
        loop {
            let Some(header) = self.header(window, self.at)? else {
                return self.skip_gap(window);
            };
            let next = self.at + HEADER as u64 + u64::from(header.len);
            let payload = window.get(self.at + HEADER as u64, header.len as usize)?;
            let intact = payload.is_some_and(|p| crc32c::crc32c(p) == header.payload_crc);
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
        }
    }

    fn header(&self, window: &mut Window<'_>, at: u64) -> io::Result<Option<RecordHeader>> {
        let bytes = window.get(at, HEADER)?;
        let header = bytes.and_then(RecordHeader::decode);
        Ok(header.filter(|header| header.segment == self.segment as u32))
    }

    /// Batches begin at blocks, so the walk goes on at the next block where a record begins. Bytes of a body that look
    /// like a record do no harm: nothing refers to them.
    fn skip_gap(&mut self, window: &mut Window<'_>) -> io::Result<Found> {
        let size = self.file.size()?;
        if self.at >= size {
            return Ok(Found::End);
        }
        let mut at = (self.at + 1).next_multiple_of(BLOCK);
        while at < size {
            if self.header(window, at)?.is_some() {
                self.at = at;
                return Ok(Found::Gap);
            }
            at += BLOCK;
        }
        self.at = size;
        Ok(Found::End)
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
