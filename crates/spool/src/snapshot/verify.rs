//! A staged snapshot's bodies against the digests that edges took of them, before anything is installed: what rotted, or was
//! mixed up, where its checksum was still taken passes every other check.
//!
//! Memory does not grow with the snapshot: of the bodies one place in a mebibyte is remembered while they come, and messages,
//! which lie in the order of their ids, want them in about the order in which they lie.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use bytes::Bytes;

use super::Record;
use super::record::{HEADER, parse};
use crate::state::{MESSAGES, Sworn};

/// Octets of bodies between two places that are remembered.
const STRIDE: u64 = 1 << 20;

/// Where things lie in a snapshot that comes in.
#[derive(Debug, Default)]
pub struct Places {
    /// From the first row of a message to the end of the last.
    messages: Option<(u64, u64)>,
    /// Entry and offset of some bodies, rising.
    bodies: Vec<(u64, u64)>,
    last: Option<u64>,
    end: u64,
    disorder: bool,
}

/// Why a snapshot's bodies are not believed.
#[derive(Debug, thiserror::Error)]
pub enum NotSworn {
    /// The staged file.
    #[error("what is staged cannot be read: {0}")]
    Staged(#[from] io::Error),
    /// A row, or the order of bodies.
    #[error("{0}")]
    Malformed(&'static str),
    /// A body.
    #[error(
        "the body of message {message}, from entry {index} on, is not the one that its edge took: it is damaged where this snapshot was made"
    )]
    Body {
        /// Which message.
        message: mail::Ulid,
        /// Its first entry.
        index: u64,
    },
    /// It was stopped.
    #[error("this node ends")]
    Ends,
    /// A body that a message refers to did not come.
    #[error("the snapshot has no body for entry {index} of message {message}")]
    Missing {
        /// Which message.
        message: mail::Ulid,
        /// Which entry.
        index: u64,
    },
}

impl Places {
    /// The next record, which ends at this offset.
    pub fn add(&mut self, record: &Record, end: u64) {
        let begin = std::mem::replace(&mut self.end, end);
        match record {
            Record::Row {
                table: MESSAGES, ..
            } => {
                let first = self.messages.map_or(begin, |(first, _)| first);
                self.messages = Some((first, end));
            }
            Record::Body { index, .. } => {
                self.disorder |= self.last.is_some_and(|last| *index <= last);
                self.last = Some(*index);
                let due = |(_, at): &(u64, u64)| begin - at >= STRIDE;
                if self.bodies.last().is_none_or(due) {
                    self.bodies.push((*index, begin));
                }
            }
            Record::Row { .. } | Record::End => {}
        }
    }

    /// Compares every message of the staged file at `path`, whose records were checked as they came.
    ///
    /// # Errors
    /// [`NotSworn`]: nothing of this snapshot may be used, or `must_end` said that there is no time for it.
    pub fn verify(&self, path: &Path, must_end: impl Fn() -> bool) -> Result<(), NotSworn> {
        if self.disorder {
            return Err(NotSworn::Malformed("its bodies are not in order"));
        }
        let Some((from, to)) = self.messages else {
            return Ok(());
        };
        let mut rows = Reader::open(path, from)?;
        let mut bodies = Bodies {
            places: self,
            file: Reader::open(path, from)?,
            stretch: usize::MAX,
            held: Vec::new(),
        };
        while rows.at < to {
            if must_end() {
                return Err(NotSworn::Ends);
            }
            let Record::Row { table, key, value } = rows.next()? else {
                continue;
            };
            if table != MESSAGES {
                continue;
            }
            let sworn = Sworn::of_row(&key, &value);
            let sworn = sworn.ok_or(NotSworn::Malformed("a message's row cannot be read"))?;
            let message = sworn.message;
            let holds = sworn.holds(|index| {
                let body = bodies.get(index)?;
                body.ok_or(NotSworn::Missing { message, index })
            })?;
            if !holds {
                let index = sworn.extents.first().map_or(0, |extent| extent.index);
                return Err(NotSworn::Body { message, index });
            }
        }
        Ok(())
    }
}

struct Reader {
    file: BufReader<File>,
    at: u64,
}

impl Reader {
    fn open(path: &Path, at: u64) -> io::Result<Reader> {
        let mut file = BufReader::with_capacity(256 << 10, File::open(path)?);
        file.seek(SeekFrom::Start(at))?;
        Ok(Reader { file, at })
    }

    fn seek(&mut self, at: u64) -> io::Result<()> {
        let by = at.wrapping_sub(self.at) as i64;
        self.file.seek_relative(by)?;
        self.at = at;
        Ok(())
    }

    fn next(&mut self) -> Result<Record, NotSworn> {
        let mut header = [0; HEADER];
        self.file.read_exact(&mut header)?;
        let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize;
        let mut payload = vec![0; length];
        self.file.read_exact(&mut payload)?;
        self.at += (HEADER + length) as u64;
        parse(header[0], Bytes::from(payload)).ok_or(NotSworn::Malformed("a record is none"))
    }
}

/// Bodies by entry, a stretch of them at a time.
struct Bodies<'a> {
    places: &'a Places,
    file: Reader,
    stretch: usize,
    held: Vec<(u64, Bytes)>,
}

impl Bodies<'_> {
    fn get(&mut self, index: u64) -> Result<Option<Bytes>, NotSworn> {
        let places = &self.places.bodies;
        let Some(stretch) = places
            .partition_point(|(first, _)| *first <= index)
            .checked_sub(1)
        else {
            return Ok(None);
        };
        if stretch != self.stretch {
            self.held.clear();
            self.stretch = stretch;
            self.file.seek(places[stretch].1)?;
            let end = places.get(stretch + 1).map_or(u64::MAX, |next| next.1);
            while self.file.at < end {
                match self.file.next()? {
                    Record::Body { index, data, .. } => self.held.push((index, data)),
                    Record::Row { .. } => {}
                    Record::End => break,
                }
            }
        }
        let at = self.held.binary_search_by_key(&index, |(index, _)| *index);
        Ok(at.ok().map(|at| self.held[at].1.clone()))
    }
}
