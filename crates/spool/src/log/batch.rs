//! A batch in the making: records one after another in a buffer, then the record that makes them count.

use std::collections::BTreeMap;

use super::record::{
    BLOCK, BatchEnd, END_PAYLOAD, END_RECORD, HARD_STATE_PAYLOAD, HEADER, Position, RecordHeader,
    RecordType, STATE_PAYLOAD, SegmentHeader, encode_numbers,
};
use super::{Entry, HardState, Location, Relocated};

/// A buffer that becomes one `pwrite`.
#[derive(Debug, Default)]
pub(super) struct Batch {
    buffer: Vec<u8>,
    segment: u64,
    number: u64,
    /// Offset in the file of the buffer's first byte.
    start: u64,
    /// Length of the segment header before the first record, 0 or a block.
    lead: usize,
    records: u32,
    chain_crc: u32,
    /// Highest index of each group in the batch.
    pub last: BTreeMap<u32, u64>,
    /// Truncations that become durable with the batch.
    pub truncated: BTreeMap<u32, (u64, u64)>,
    /// What the groups were before the batch.
    pub before: BTreeMap<u32, GroupState>,
}

/// What a group's STATE record says.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct GroupState {
    pub hard_state: HardState,
    pub last: u64,
    pub truncated: (u64, u64),
}

impl Batch {
    /// Empties the batch for the given place.
    pub fn begin(&mut self, segment: u64, start: u64, number: u64) {
        self.buffer.clear();
        self.segment = segment;
        self.start = start;
        self.number = number;
        self.lead = 0;
        self.records = 0;
        self.chain_crc = 0;
        self.last.clear();
        self.truncated.clear();
        self.before.clear();
    }

    /// The segment's header goes before the first record.
    pub fn lead(&mut self, header: &SegmentHeader) {
        self.buffer.extend_from_slice(&header.encode());
        self.lead = self.buffer.len();
    }

    /// No record yet?
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Bytes that the batch would have with a payload of `more` bytes and its end.
    pub fn len_with(&self, more: usize) -> u64 {
        (self.buffer.len() + HEADER + more + END_RECORD) as u64
    }

    /// Adds an entry.
    pub fn entry(&mut self, group: u32, entry: &Entry) -> Location {
        let offset = self.start + self.buffer.len() as u64;
        let context_len = entry.context.len() as u32;
        let data_len = entry.data.len() as u32;
        let payload_crc = crc32c::crc32c_append(crc32c::crc32c(&entry.context), &entry.data);
        let header = RecordHeader {
            len: context_len + data_len,
            flags: entry.kind as u8,
            index: entry.index,
            term: entry.term,
            payload_crc,
            context_len,
            ..self.header(RecordType::Entry, group)
        };
        self.push_header(&header);
        self.buffer.extend_from_slice(&entry.context);
        self.buffer.extend_from_slice(&entry.data);
        let last = self.last.entry(group).or_default();
        *last = (*last).max(entry.index);
        Location {
            segment: self.segment,
            offset: offset as u32,
            context_len,
            data_len,
        }
    }

    /// Adds the data of a committed entry again.
    pub fn relocated(&mut self, group: u32, index: u64, data: &[u8]) -> Location {
        let offset = self.start + self.buffer.len() as u64;
        let header = RecordHeader {
            index,
            ..self.header(RecordType::RelocatedBody, group)
        };
        self.push(header, data);
        Location {
            segment: self.segment,
            offset: offset as u32,
            context_len: 0,
            data_len: data.len() as u32,
        }
    }

    /// The same for the collector: the digest of the data stands where an entry has its context.
    pub fn copied(&mut self, body: &Relocated) -> Location {
        let offset = self.start + self.buffer.len() as u64;
        let (context_len, data_len) = (body.digest.0.len() as u32, body.data.len() as u32);
        let header = RecordHeader {
            len: context_len + data_len,
            index: body.index,
            term: body.term,
            payload_crc: crc32c::crc32c_append(crc32c::crc32c(&body.digest.0), &body.data),
            context_len,
            ..self.header(RecordType::RelocatedBody, body.group)
        };
        self.push_header(&header);
        self.buffer.extend_from_slice(&body.digest.0);
        self.buffer.extend_from_slice(&body.data);
        Location {
            segment: self.segment,
            offset: offset as u32,
            context_len,
            data_len,
        }
    }

    /// Adds a hard state.
    pub fn hard_state(&mut self, group: u32, state: HardState) {
        let payload = encode_numbers::<HARD_STATE_PAYLOAD>(&[state.term, state.vote, state.commit]);
        let header = self.header(RecordType::HardState, group);
        self.push(header, &payload);
    }

    /// Adds all that must be known of a group besides its entries.
    pub fn state(&mut self, group: u32, state: &GroupState) {
        let hard = state.hard_state;
        let payload =
            encode_numbers::<STATE_PAYLOAD>(&[hard.term, hard.vote, hard.commit, state.last]);
        let (index, term) = state.truncated;
        let header = RecordHeader {
            index,
            term,
            ..self.header(RecordType::State, group)
        };
        self.push(header, &payload);
        self.truncated.insert(group, state.truncated);
    }

    /// Adds a mark that carries nothing.
    pub fn mark(&mut self) {
        let header = self.header(RecordType::DurableMark, 0);
        self.push(header, &[]);
    }

    /// Closes the batch: the bytes for the disk, a multiple of a block, and the offset they belong to.
    pub fn finish(&mut self, durable: Position) -> (&[u8], u64) {
        let end = BatchEnd {
            batch: self.number,
            records: self.records,
            bytes: (self.buffer.len() - self.lead) as u32,
            chain_crc: self.chain_crc,
            durable,
        };
        let header = self.header(RecordType::BatchEnd, 0);
        self.push(header, &end.encode());
        self.buffer
            .resize(self.buffer.len().next_multiple_of(BLOCK as usize), 0);
        (&self.buffer, self.start)
    }

    fn header(&self, kind: RecordType, group: u32) -> RecordHeader {
        RecordHeader {
            len: 0,
            kind,
            flags: 0,
            segment: self.segment as u32,
            group,
            batch: self.number as u32,
            index: 0,
            term: 0,
            payload_crc: 0,
            context_len: 0,
        }
    }

    fn push(&mut self, header: RecordHeader, payload: &[u8]) {
        let header = RecordHeader {
            len: payload.len() as u32,
            payload_crc: crc32c::crc32c(payload),
            ..header
        };
        self.push_header(&header);
        self.buffer.extend_from_slice(payload);
    }

    fn push_header(&mut self, header: &RecordHeader) {
        let bytes = header.encode();
        self.records += 1;
        self.chain_crc = crc32c::crc32c_append(self.chain_crc, &bytes[HEADER - 4..]);
        self.buffer.extend_from_slice(&bytes);
    }
}

const _: () = assert!(END_RECORD == HEADER + END_PAYLOAD);
