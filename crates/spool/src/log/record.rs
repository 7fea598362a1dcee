//! Records and segment headers as bytes: the format on disk. Little endian; additive changes only, with a new version.

use super::EntryKind;
use crate::identity::ClusterId;

/// Batches begin at multiples of this, bytes: what a disk writes as one.
pub(super) const BLOCK: u64 = 4096;
/// Length of a record's header, bytes.
pub(super) const HEADER: usize = 48;
/// Length of the payload of a batch's last record, bytes.
pub(super) const END_PAYLOAD: usize = 40;
/// Length of the payload of a STATE record, bytes.
pub(super) const STATE_PAYLOAD: usize = 32;
/// Length of the payload of a HARDSTATE record, bytes.
pub(super) const HARD_STATE_PAYLOAD: usize = 24;
/// What closes a batch, bytes.
pub(super) const END_RECORD: usize = HEADER + END_PAYLOAD;
/// Version of records and segment headers that this program writes.
pub(super) const VERSION: u16 = 1;

/// First bytes of every segment file.
const MAGIC: [u8; 8] = *b"postroad";
/// Where the segment header's checksum stands. Between the fields and here is room for a wrapped key and its id.
const SEGMENT_CRC_AT: usize = BLOCK as usize - 4;

/// What a record is; the numbers are those on disk. 4 and 5 are kept for suffix truncation and
/// snapshots; a snapshot that replaced a group's log shows as a STATE whose truncation is also its last entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordType {
    /// A Raft entry: context, then data.
    Entry = 1,
    /// Term, vote and commit of a group.
    HardState = 2,
    /// All that must be known of a group besides its entries; `index` and `term` are the truncation.
    State = 3,
    /// The data of a committed entry, written again: by a snapshot that brought it, or copied by the collector, which
    /// puts the digest of the data (16 bytes) where an entry has its context. Replay passes it by; only the metadata
    /// refer to it, and while none do it is garbage.
    RelocatedBody = 6,
    /// Nothing but the closing record's `durable_upto` matters.
    DurableMark = 7,
    /// Closes a batch.
    BatchEnd = 9,
}

impl RecordType {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Entry,
            2 => Self::HardState,
            3 => Self::State,
            6 => Self::RelocatedBody,
            7 => Self::DurableMark,
            9 => Self::BatchEnd,
            _ => return None,
        })
    }

    /// Says that a record's payload fails its checksum.
    pub fn flaw(self) -> &'static str {
        match self {
            Self::Entry => "the payload of an entry fails its checksum",
            Self::HardState => "the payload of a HARDSTATE fails its checksum",
            Self::State => "the payload of a STATE fails its checksum",
            Self::RelocatedBody => "a body that was written again fails its checksum",
            Self::DurableMark => "the payload of a DURABLE_MARK fails its checksum",
            Self::BatchEnd => "the payload of a BATCH_END fails its checksum",
        }
    }
}

impl EntryKind {
    fn from_flags(flags: u8) -> Option<Self> {
        match flags {
            0 => Some(Self::Normal),
            1 => Some(Self::ConfChange),
            2 => Some(Self::ConfChangeV2),
            _ => None,
        }
    }
}

/// A record's header. `segment` and `batch` make stale bytes of a recycled segment or of a torn batch invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub len: u32,
    pub kind: RecordType,
    pub flags: u8,
    pub segment: u32,
    pub group: u32,
    pub batch: u32,
    pub index: u64,
    pub term: u64,
    pub payload_crc: u32,
    pub context_len: u32,
}

impl RecordHeader {
    /// The 48 bytes, the last four being their checksum.
    pub fn encode(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[0..4].copy_from_slice(&self.len.to_le_bytes());
        out[4] = self.kind as u8;
        out[5] = self.flags;
        out[6..8].copy_from_slice(&VERSION.to_le_bytes());
        out[8..12].copy_from_slice(&self.segment.to_le_bytes());
        out[12..16].copy_from_slice(&self.group.to_le_bytes());
        out[16..20].copy_from_slice(&self.batch.to_le_bytes());
        out[20..28].copy_from_slice(&self.index.to_le_bytes());
        out[28..36].copy_from_slice(&self.term.to_le_bytes());
        out[36..40].copy_from_slice(&self.payload_crc.to_le_bytes());
        out[40..44].copy_from_slice(&self.context_len.to_le_bytes());
        let crc = crc32c::crc32c(&out[..44]);
        out[44..48].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// None when the bytes are not a header that this version wrote.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < HEADER || crc32c::crc32c(&bytes[..44]) != u32_at(bytes, 44) {
            return None;
        }
        let header = Self {
            len: u32_at(bytes, 0),
            kind: RecordType::from_byte(bytes[4])?,
            flags: bytes[5],
            segment: u32_at(bytes, 8),
            group: u32_at(bytes, 12),
            batch: u32_at(bytes, 16),
            index: u64_at(bytes, 20),
            term: u64_at(bytes, 28),
            payload_crc: u32_at(bytes, 36),
            context_len: u32_at(bytes, 40),
        };
        (u16::from_le_bytes([bytes[6], bytes[7]]) == VERSION && header.context_len <= header.len)
            .then_some(header)
    }

    /// What kind of entry it is.
    pub fn entry_kind(&self) -> Option<EntryKind> {
        EntryKind::from_flags(self.flags)
    }
}

/// A position in the log: segment, then offset in it. Everything before it is meant.
pub(super) type Position = (u64, u64);

/// The payload of a batch's last record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BatchEnd {
    pub batch: u64,
    pub records: u32,
    pub bytes: u32,
    pub chain_crc: u32,
    pub durable: Position,
}

impl BatchEnd {
    pub fn encode(&self) -> [u8; END_PAYLOAD] {
        let mut out = [0; END_PAYLOAD];
        out[0..8].copy_from_slice(&self.batch.to_le_bytes());
        out[8..12].copy_from_slice(&self.records.to_le_bytes());
        out[12..16].copy_from_slice(&self.bytes.to_le_bytes());
        out[16..20].copy_from_slice(&self.chain_crc.to_le_bytes());
        out[24..32].copy_from_slice(&self.durable.0.to_le_bytes());
        out[32..40].copy_from_slice(&self.durable.1.to_le_bytes());
        out
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        (bytes.len() == END_PAYLOAD).then(|| Self {
            batch: u64_at(bytes, 0),
            records: u32_at(bytes, 8),
            bytes: u32_at(bytes, 12),
            chain_crc: u32_at(bytes, 16),
            durable: (u64_at(bytes, 24), u64_at(bytes, 32)),
        })
    }
}

/// The payload of STATE (four numbers) and of HARDSTATE (the first three).
pub(super) fn encode_numbers<const N: usize>(numbers: &[u64]) -> [u8; N] {
    let mut out = [0; N];
    for (chunk, number) in out.chunks_exact_mut(8).zip(numbers) {
        chunk.copy_from_slice(&number.to_le_bytes());
    }
    out
}

/// What stands in the first block of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub segment: u64,
    /// 0 = written by the Raft log, above by the collector.
    pub generation: u32,
    pub created_ms: u64,
    pub cluster: ClusterId,
    pub incarnation: u128,
    pub capacity: u64,
    /// End of the log when the segment was begun; all before it is durable.
    pub durable: Position,
}

/// The first block of a segment, read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeaderRead {
    Valid(SegmentHeader),
    Invalid,
    Version(u32),
}

impl SegmentHeader {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; BLOCK as usize];
        out[0..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&u32::from(VERSION).to_le_bytes());
        out[12..16].copy_from_slice(&self.generation.to_le_bytes());
        out[16..24].copy_from_slice(&self.segment.to_le_bytes());
        out[24..32].copy_from_slice(&self.created_ms.to_le_bytes());
        out[32..48].copy_from_slice(&self.cluster.0);
        out[48..64].copy_from_slice(&self.incarnation.to_le_bytes());
        out[64..72].copy_from_slice(&self.capacity.to_le_bytes());
        out[72..80].copy_from_slice(&self.durable.0.to_le_bytes());
        out[80..88].copy_from_slice(&self.durable.1.to_le_bytes());
        let crc = crc32c::crc32c(&out[..SEGMENT_CRC_AT]);
        out[SEGMENT_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub fn decode(bytes: &[u8]) -> HeaderRead {
        let whole = bytes.len() == BLOCK as usize
            && bytes[0..8] == MAGIC
            && crc32c::crc32c(&bytes[..SEGMENT_CRC_AT]) == u32_at(bytes, SEGMENT_CRC_AT);
        if !whole {
            return HeaderRead::Invalid;
        }
        let version = u32_at(bytes, 8);
        if version != u32::from(VERSION) {
            return HeaderRead::Version(version);
        }
        let mut cluster = [0; 16];
        cluster.copy_from_slice(&bytes[32..48]);
        HeaderRead::Valid(Self {
            segment: u64_at(bytes, 16),
            generation: u32_at(bytes, 12),
            created_ms: u64_at(bytes, 24),
            cluster: ClusterId(cluster),
            incarnation: u128::from(u64_at(bytes, 48)) | u128::from(u64_at(bytes, 56)) << 64,
            capacity: u64_at(bytes, 64),
            durable: (u64_at(bytes, 72), u64_at(bytes, 80)),
        })
    }
}

/// `seg-<id>.g0`: a segment of the Raft log.
pub(super) fn segment_name(id: u64) -> String {
    collected_name(id, 0)
}

/// `seg-<id>.g<generation>`.
pub(super) fn collected_name(id: u64, generation: u32) -> String {
    format!("seg-{id:016}.g{generation}")
}

/// Number and generation in a collected segment's name.
pub(super) fn collected_id(name: &str) -> Option<(u64, u32)> {
    let (digits, generation) = name.strip_prefix("seg-")?.split_once(".g")?;
    let generation = generation
        .parse()
        .ok()
        .filter(|generation| *generation > 0)?;
    Some((digits.parse().ok()?, generation))
}

/// The number in a segment's name.
pub(super) fn segment_id(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("seg-")?.strip_suffix(".g0")?;
    (digits.bytes().all(|b| b.is_ascii_digit()))
        .then(|| digits.parse().ok())
        .flatten()
}

/// Reads a little-endian number; the caller has checked the length.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Reads a little-endian number; the caller has checked the length.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
