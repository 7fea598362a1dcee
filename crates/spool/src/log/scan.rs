//! Batches back from a segment's bytes, with every checksum verified.

use std::fmt;
use std::io;

use super::DiskFile;
use super::error::is_unreadable;
use super::record::{BLOCK, BatchEnd, HEADER, RecordHeader, RecordType};

/// Read at once while scanning, bytes: sequential, and little beside the largest batch.
const WINDOW: usize = 1 << 20;

/// A sliding view of a file.
#[derive(Debug)]
pub(super) struct Window<'a> {
    file: &'a dyn DiskFile,
    size: u64,
    buffer: Vec<u8>,
    start: u64,
    /// The device refused a read: from now on no more is asked of it at once than is needed, or a sector that cannot be read
    /// would hide a mebibyte before it.
    cautious: bool,
}

/// What a view gives back.
enum Octets<'a> {
    Read(&'a [u8]),
    /// The file ends before.
    End,
    /// The device refuses to read them.
    Unreadable,
}

/// A record of a valid batch: its header, the offset of that, and the payload when it is small.
#[derive(Debug)]
pub(super) struct ScannedRecord {
    pub header: RecordHeader,
    pub offset: u64,
    /// Payload of STATE and HARDSTATE; empty for entries, whose bodies are not kept.
    pub payload: Vec<u8>,
    /// An entry whose payload fails its checksum, or cannot be read. Its header says still which entry it is, so that another
    /// replica can be asked for it.
    pub damaged: bool,
}

/// A batch that counts: all its headers and its end are right. Payloads of entries may be damaged.
#[derive(Debug)]
pub(super) struct ScannedBatch {
    pub records: Vec<ScannedRecord>,
    pub end: BatchEnd,
    /// Offset of the block after the batch.
    pub next: u64,
}

impl ScannedBatch {
    /// Offset of the first entry whose payload is damaged.
    pub fn damaged_at(&self) -> Option<u64> {
        let first = self.records.iter().find(|record| record.damaged);
        first.map(|record| record.offset)
    }
}

/// What stands at an offset.
#[derive(Debug)]
pub(super) enum Scan {
    /// A whole batch.
    Batch(ScannedBatch),
    /// Not a batch; `valid_until` is the offset of the first invalid record, equal to the start when nothing is valid.
    Invalid { valid_until: u64, flaw: Flaw },
}

/// What is wrong with bytes that should be a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flaw {
    what: &'static str,
    /// Group and index, where a valid header names them.
    of: Option<(u32, u64)>,
    /// Group and index of the last valid entry before it in its batch.
    after: Option<(u32, u64)>,
}

impl Flaw {
    /// The payload of an entry in an otherwise whole batch.
    pub fn torn_payload() -> Flaw {
        Flaw {
            what: RecordType::Entry.flaw(),
            of: None,
            after: None,
        }
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)?;
        if let Some((group, index)) = self.of {
            write!(f, ", group {group}, index {index}")?;
        }
        if let Some((group, index)) = self.after {
            write!(f, " (right after entry {index} of group {group})")?;
        }
        Ok(())
    }
}

impl<'a> Window<'a> {
    pub fn new(file: &'a dyn DiskFile) -> io::Result<Self> {
        Ok(Self {
            file,
            size: file.size()?,
            buffer: Vec::new(),
            start: 0,
            cautious: false,
        })
    }

    /// `len` bytes at `at`, or None when the file ends before.
    pub fn get(&mut self, at: u64, len: usize) -> io::Result<Option<&[u8]>> {
        if at.checked_add(len as u64).is_none_or(|end| end > self.size) {
            return Ok(None);
        }
        let held = self.start..=self.start + self.buffer.len() as u64;
        if !(held.contains(&at) && held.contains(&(at + len as u64))) {
            let mut read = match self.cautious {
                false => self.fill(at, len.max(WINDOW)),
                true => self.fill(at, len),
            };
            if read.as_ref().is_err_and(is_unreadable) && !self.cautious {
                self.cautious = true;
                read = self.fill(at, len);
            }
            if read? < len {
                return Ok(None);
            }
        }
        let from = (at - self.start) as usize;
        Ok(Some(&self.buffer[from..from + len]))
    }

    /// Reads up to `want` octets from `at` on; how many there were.
    fn fill(&mut self, at: u64, want: usize) -> io::Result<usize> {
        let want = (self.size - at).min(want as u64) as usize;
        self.start = at;
        self.buffer.resize(want, 0);
        let read = self.file.read_at(&mut self.buffer, at);
        self.buffer.truncate(*read.as_ref().unwrap_or(&0));
        read
    }

    /// The same, and what the device refuses to give is an answer and no error.
    fn octets(&mut self, at: u64, len: usize) -> io::Result<Octets<'_>> {
        match self.get(at, len) {
            Ok(Some(octets)) => Ok(Octets::Read(octets)),
            Ok(None) => Ok(Octets::End),
            Err(error) if is_unreadable(&error) => Ok(Octets::Unreadable),
            Err(error) => Err(error),
        }
    }

    /// Reads the batch at `start` of segment `segment`.
    pub fn batch(&mut self, segment: u64, start: u64) -> io::Result<Scan> {
        let mut records: Vec<ScannedRecord> = Vec::new();
        let mut chain_crc = 0;
        let mut at = start;
        loop {
            let (batch, after) = (records.first(), records.last());
            let batch = batch.map(|first| first.header.batch);
            let after = after
                .filter(|last| last.header.kind == RecordType::Entry)
                .map(|last| (last.header.group, last.header.index));
            let invalid = |what, of: Option<&RecordHeader>| {
                let of = of.map(|header| (header.group, header.index));
                Ok(Scan::Invalid {
                    valid_until: at,
                    flaw: Flaw { what, of, after },
                })
            };
            let bytes = match self.octets(at, HEADER)? {
                Octets::Read(bytes) => bytes,
                Octets::End => return invalid("the file ends inside a batch", None),
                Octets::Unreadable => {
                    return invalid("the device refuses to read a record's header (EIO)", None);
                }
            };
            let Some(header) = RecordHeader::decode(bytes) else {
                return invalid("a record's header fails its checksum", None);
            };
            let header_crc = [bytes[44], bytes[45], bytes[46], bytes[47]];
            let same_batch = batch.is_none_or(|first| first == header.batch);
            if header.segment != segment as u32 || !same_batch {
                return invalid("a record of another batch stands there", None);
            }
            let body = matches!(header.kind, RecordType::Entry | RecordType::RelocatedBody);
            let payload = match self.octets(at + HEADER as u64, header.len as usize)? {
                Octets::Read(payload) => payload,
                Octets::End => return invalid("the file ends inside a record", Some(&header)),
                Octets::Unreadable if body => &[],
                Octets::Unreadable => {
                    let what = "the device refuses to read a record of the log's own (EIO)";
                    return invalid(what, Some(&header));
                }
            };
            let whole = payload.len() == header.len as usize;
            let damaged = !whole || crc32c::crc32c(payload) != header.payload_crc;
            if damaged && !body {
                return invalid(header.kind.flaw(), Some(&header));
            }
            let next = at + HEADER as u64 + u64::from(header.len);
            if header.kind == RecordType::BatchEnd {
                let end = BatchEnd::decode(payload).filter(|end| {
                    end.records as usize == records.len()
                        && u64::from(end.bytes) == at - start
                        && end.chain_crc == chain_crc
                        && end.batch as u32 == header.batch
                });
                let Some(end) = end else {
                    return invalid("the end of a batch does not fit its records", None);
                };
                return Ok(Scan::Batch(ScannedBatch {
                    records,
                    end,
                    next: next.next_multiple_of(BLOCK),
                }));
            }
            let payload = if body { Vec::new() } else { payload.to_vec() };
            chain_crc = crc32c::crc32c_append(chain_crc, &header_crc);
            records.push(ScannedRecord {
                header,
                offset: at,
                payload,
                damaged,
            });
            at = next;
        }
    }

    /// The furthest `durable` that any valid batch at or after `from` claims.
    pub fn durable_claims(
        &mut self,
        segment: u64,
        from: u64,
    ) -> io::Result<Option<super::record::Position>> {
        let mut furthest = None;
        let mut at = from.next_multiple_of(BLOCK);
        while at < self.size {
            match self.batch(segment, at)? {
                Scan::Batch(batch) => {
                    furthest = furthest.max(Some(batch.end.durable));
                    at = batch.next;
                }
                Scan::Invalid { .. } => at += BLOCK,
            }
        }
        Ok(furthest)
    }
}
