//! The records of a snapshot, format 1. Little endian.
//!
//! ```text
//! header 21: { kind u8, length u32, xxh3-128 of kind and payload }   payload
//! row        table u8, key length u16, key, value
//! body       index u64, extents u32, octets u64, data      the data of an entry, as the log has it
//! end        id u64, rows u64, bodies u64, xxh3-128 of all headers before
//! ```
//! Every record is checked by itself and their sequence by the end, which also binds them to the manifest by its id: a
//! snapshot that is damaged, cut short or mixed up with another is never installed.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use xxhash_rust::xxh3::Xxh3;

/// Octets of a record's header.
pub const HEADER: usize = 1 + 4 + 16;

/// The longest payload: the data of one entry of the log, and some.
const PAYLOAD_MAX: usize = 4 << 20;

const ROW: u8 = 1;
const BODY: u8 = 2;
const END: u8 = 3;

/// One record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    /// A replicated row.
    Row {
        /// Number of its table.
        table: u8,
        /// Without the group.
        key: Bytes,
        /// As it lies in the store.
        value: Bytes,
    },
    /// The data of an entry that is referred to.
    Body {
        /// Raft index.
        index: u64,
        /// Live extents.
        extents: u32,
        /// Their octets.
        octets: u64,
        /// All of the entry's data.
        data: Bytes,
    },
    /// There is no more.
    End,
}

/// What is wrong with a snapshot.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Damage {
    /// A record is not what was sent.
    #[error("record {at} fails its checksum")]
    Checksum {
        /// Position.
        at: u64,
    },
    /// A record is none.
    #[error("record {at} is none of this format")]
    Malformed {
        /// Position.
        at: u64,
    },
    /// It ends within a record, or without its end.
    #[error("it is cut short after {at} records")]
    Short {
        /// Records before.
        at: u64,
    },
    /// Records are missing, doubled or of another snapshot.
    #[error("its end does not fit its {at} records, or another snapshot's")]
    Mixed {
        /// Records before the end.
        at: u64,
    },
}

fn checksum(kind: u8, payload: &[u8]) -> u128 {
    let mut sum = Xxh3::new();
    sum.update(&[kind]);
    sum.update(payload);
    sum.digest128()
}

/// Writes records.
#[derive(Default)]
pub struct Encoder {
    out: BytesMut,
    root: Xxh3,
    rows: u64,
    bodies: u64,
}

impl Encoder {
    fn push(&mut self, kind: u8, payload: &[&[u8]]) {
        let length: usize = payload.iter().map(|part| part.len()).sum();
        let mut sum = Xxh3::new();
        sum.update(&[kind]);
        payload.iter().for_each(|part| sum.update(part));
        let at = self.out.len();
        self.out.reserve(HEADER + length);
        self.out.put_u8(kind);
        self.out.put_u32_le(length as u32);
        self.out.put_u128_le(sum.digest128());
        self.root.update(&self.out[at..]);
        payload.iter().for_each(|part| self.out.put_slice(part));
    }

    /// A row.
    pub fn row(&mut self, table: u8, key: &[u8], value: &[u8]) {
        self.rows += 1;
        let head = [&[table][..], &(key.len() as u16).to_le_bytes()].concat();
        self.push(ROW, &[&head, key, value]);
    }

    /// A body.
    pub fn body(&mut self, index: u64, extents: u32, octets: u64, data: &[u8]) {
        self.bodies += 1;
        let mut head = [0; 20];
        head[..8].copy_from_slice(&index.to_le_bytes());
        head[8..12].copy_from_slice(&extents.to_le_bytes());
        head[12..].copy_from_slice(&octets.to_le_bytes());
        self.push(BODY, &[&head, data]);
    }

    /// The end.
    pub fn end(&mut self, id: u64) {
        let root = self.root.digest128();
        let mut payload = Vec::with_capacity(40);
        for number in [id, self.rows, self.bodies] {
            payload.put_u64_le(number);
        }
        payload.put_u128_le(root);
        self.push(END, &[&payload]);
    }

    /// Octets since the last [`Encoder::take`].
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// Nothing since the last [`Encoder::take`].
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// Whole records.
    pub fn take(&mut self) -> Bytes {
        self.out.split().freeze()
    }
}

/// Reads records and checks them.
pub struct Checker {
    id: u64,
    root: Xxh3,
    rows: u64,
    bodies: u64,
    ended: bool,
}

impl Checker {
    /// Of the snapshot with this id.
    pub fn new(id: u64) -> Checker {
        Checker {
            id,
            root: Xxh3::new(),
            rows: 0,
            bodies: 0,
            ended: false,
        }
    }

    /// Records so far.
    fn at(&self) -> u64 {
        self.rows + self.bodies
    }

    /// Octets of the payload that follows a header.
    ///
    /// # Errors
    /// It is longer than any record.
    pub fn payload_len(&self, header: &[u8; HEADER]) -> Result<usize, Damage> {
        let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize;
        match length <= PAYLOAD_MAX && !self.ended {
            true => Ok(length),
            false => Err(Damage::Malformed { at: self.at() }),
        }
    }

    /// The next record of a chunk of whole ones; `None` at the chunk's end.
    ///
    /// # Errors
    /// [`Damage`]: nothing of this snapshot may be used.
    pub fn next(&mut self, chunk: &mut Bytes) -> Result<Option<Record>, Damage> {
        if chunk.is_empty() {
            return Ok(None);
        }
        let short = Damage::Short { at: self.at() };
        let Some(header) = chunk.first_chunk::<HEADER>().copied() else {
            return Err(short);
        };
        let length = self.payload_len(&header)?;
        if chunk.len() < HEADER + length {
            return Err(short);
        }
        chunk.advance(HEADER);
        let payload = chunk.split_to(length);
        self.record(&header, payload).map(Some)
    }

    /// A record whose header and payload were read.
    ///
    /// # Errors
    /// [`Damage`].
    pub fn record(&mut self, header: &[u8; HEADER], payload: Bytes) -> Result<Record, Damage> {
        let at = self.at();
        let sum = (&header[5..]).get_u128_le();
        if checksum(header[0], &payload) != sum {
            return Err(Damage::Checksum { at });
        }
        let record = parse(header[0], payload.clone()).ok_or(Damage::Malformed { at })?;
        match &record {
            Record::Row { .. } => self.rows += 1,
            Record::Body { .. } => self.bodies += 1,
            Record::End => self.check_end(payload, at)?,
        }
        self.root.update(header);
        Ok(record)
    }

    fn check_end(&mut self, mut payload: Bytes, at: u64) -> Result<(), Damage> {
        let said = [
            payload.get_u64_le(),
            payload.get_u64_le(),
            payload.get_u64_le(),
        ];
        let root = payload.get_u128_le();
        if said != [self.id, self.rows, self.bodies] || root != self.root.digest128() {
            return Err(Damage::Mixed { at });
        }
        self.ended = true;
        Ok(())
    }

    /// All of it has come.
    ///
    /// # Errors
    /// [`Damage::Short`].
    pub fn finish(&self) -> Result<(), Damage> {
        match self.ended {
            true => Ok(()),
            false => Err(Damage::Short { at: self.at() }),
        }
    }
}

pub(super) fn parse(kind: u8, mut payload: Bytes) -> Option<Record> {
    match kind {
        ROW => {
            let head = payload.first_chunk::<3>().copied()?;
            payload.advance(3);
            let length = usize::from(u16::from_le_bytes([head[1], head[2]]));
            if payload.len() < length {
                return None;
            }
            let key = payload.split_to(length);
            Some(Record::Row {
                table: head[0],
                key,
                value: payload,
            })
        }
        BODY if payload.len() >= 20 => Some(Record::Body {
            index: payload.get_u64_le(),
            extents: payload.get_u32_le(),
            octets: payload.get_u64_le(),
            data: payload,
        }),
        END if payload.len() == 40 => Some(Record::End),
        _ => None,
    }
}
