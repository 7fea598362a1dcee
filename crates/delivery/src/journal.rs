//! What this node said to whom: the file that keeps a restart from sending again what a next hop already took.
//!
//! Two facts of an item are written as they happen: that its final dot is about to be sent, and the results that came
//! back. A plain `write` is enough: the page cache survives the process, and only a power loss takes it, which the
//! design allows (a duplicate, never a loss). Only a rewritten file is fsynced, before it takes the old one's name: what a power
//! loss leaves is a journal, if not the last one.
//!
//! The file is a run of records, each with its length and CRC; whatever follows the first damaged record is a write that
//! the end of the process tore, and is dropped. One process uses a directory: an `flock` says so.
//!
//! # Diagnostics
//! [`Error::Locked`] is an operator's mistake; [`Error::Io`] from a disk that is full or broken ends deliveries that
//! have not reached their final dot (they are deferred), because a dot that is not written down first could be sent twice.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use mail::Ulid;
use prost::Message as _;
use proto::v1;
use rustix::fs::FlockOperation;

use crate::item::ItemId;

/// The first octets of a journal: its name and version.
const MAGIC: &[u8; 16] = b"postroad-sent\x00\x00\x01";
/// Length and CRC32C of the payload, little endian.
const HEADER: usize = 8;
/// A record's payload: one item's results with 100 recipients of 512 octets of text each fit in a tenth of it.
const RECORD_BYTES_MAX: usize = 1024 * 1024;
/// A file below this is not worth rewriting.
const COMPACT_BYTES_MIN: u64 = 4 * 1024 * 1024;
/// The file is rewritten when less than one in this many octets is still needed.
const COMPACT_SHARE: u64 = 4;
/// `settled` records wait in memory up to here for the next write: losing one only settles an item twice.
const PENDING_BYTES_MAX: usize = 16 * 1024;

const SENT_DOT: u8 = 1;
const GOT: u8 = 2;
const SETTLED: u8 = 3;

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process holds the directory.
    #[error("{0} is in use by another delivery node; give each node a data directory of its own")]
    Locked(PathBuf),
    /// The file is no journal, or of a later version.
    #[error(
        "{0} is not a journal that this version can read; use the version that wrote it, or move the file away once its mail is settled"
    )]
    Foreign(PathBuf),
    /// The disk refused.
    #[error("the journal {path}: {error}; check the disk of the data directory")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// What a restart finds.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Replay {
    /// Results that came back and may not have reached the queue: settle them first.
    pub(crate) got: Vec<v1::SettleRequest>,
    /// Items whose final dot went out (or was about to) and whose reply is unknown: the results to settle when the
    /// queue still holds them for us, each an ambiguous deferral.
    pub(crate) past_dot: Vec<v1::SettleRequest>,
}

/// The open journal.
#[derive(Debug)]
pub(crate) struct Journal {
    directory: PathBuf,
    file: File,
    /// Held for its `flock`.
    _lock: File,
    length: u64,
    /// The last record of each unsettled item, whole, so that a rewrite needs no read.
    live: HashMap<ItemId, Vec<u8>>,
    live_bytes: u64,
    pending: Vec<u8>,
}

impl Journal {
    /// Opens or makes the journal of `directory` and reads what an earlier process left.
    ///
    /// # Errors
    /// See [`Error`].
    pub(crate) fn open(directory: &Path) -> Result<(Journal, Replay), Error> {
        let at = |path: &Path| {
            let path = path.to_path_buf();
            move |error| Error::Io { path, error }
        };
        std::fs::create_dir_all(directory).map_err(at(directory))?;
        let lock = File::open(directory).map_err(at(directory))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(Error::Locked(directory.to_path_buf()));
            }
            Err(errno) => return Err(at(directory)(errno.into())),
        }
        let path = directory.join("journal");
        let mut bytes = Vec::new();
        match File::open(&path) {
            Ok(mut file) => file.read_to_end(&mut bytes).map(drop).map_err(at(&path))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(at(&path)(error)),
        }
        if !bytes.is_empty() && bytes.iter().all(|octet| *octet == 0) {
            tracing::warn!(
                path = %path.display(),
                octets = bytes.len(),
                "the journal is nothing but zeros, as a power loss leaves a file that was not on the disk yet: it is taken as \
                 empty, so mail that was sent just before may be sent again"
            );
            bytes.clear();
        }
        if !MAGIC.starts_with(&bytes[..bytes.len().min(MAGIC.len())]) {
            return Err(Error::Foreign(path));
        }
        let live = read(bytes.get(MAGIC.len()..).unwrap_or_default());
        let replay = replay_of(&live);
        // Started from a fresh file: the torn tail goes, and so does everything settled.
        let (file, length) = rewrite(directory, &live).map_err(at(&path))?;
        sync_directory(directory).map_err(at(directory))?;
        let live_bytes = length - MAGIC.len() as u64;
        let journal = Journal {
            directory: directory.to_path_buf(),
            file,
            _lock: lock,
            length,
            live,
            live_bytes,
            pending: Vec::new(),
        };
        Ok((journal, replay))
    }

    /// Writes down that the final dot of an item is about to be sent; `if_lost` are the results to settle if this process
    /// ends before the reply is known.
    ///
    /// # Errors
    /// [`Error::Io`]: the dot must then not be sent.
    pub(crate) fn sent_dot(&mut self, if_lost: &v1::SettleRequest) -> Result<(), Error> {
        self.put(SENT_DOT, if_lost)
    }

    /// The journal says that the item's final dot may have gone out.
    pub(crate) fn knows(&self, item: ItemId) -> bool {
        self.live.contains_key(&item)
    }

    /// What a restart would settle of an item: its results, or what holds while the reply to its final dot is not known.
    pub(crate) fn kept(&self, item: ItemId) -> Option<v1::SettleRequest> {
        let (payload, _) = unframe(self.live.get(&item)?)?;
        v1::SettleRequest::decode(payload.get(1..)?).ok()
    }

    /// Writes down an item's results.
    ///
    /// # Errors
    /// [`Error::Io`]: the results still go to the queue; only their safety from this process's death is gone.
    pub(crate) fn got(&mut self, results: &v1::SettleRequest) -> Result<(), Error> {
        self.put(GOT, results)
    }

    /// Notes that the queue has the results of an item.
    ///
    /// # Errors
    /// [`Error::Io`]: after a restart the item is settled once more, which the queue answers with `AlreadyTerminal`.
    pub(crate) fn settled(&mut self, item: ItemId) -> Result<(), Error> {
        let Some(old) = self.live.remove(&item) else {
            return Ok(());
        };
        self.live_bytes -= old.len() as u64;
        let mut payload = [0u8; 21];
        payload[0] = SETTLED;
        payload[1..17].copy_from_slice(&item.message.to_bytes());
        payload[17..].copy_from_slice(&item.number.to_le_bytes());
        frame(&payload, &mut self.pending);
        if self.length > COMPACT_BYTES_MIN && self.live_bytes * COMPACT_SHARE < self.length {
            let (file, length) =
                rewrite(&self.directory, &self.live).map_err(|error| self.failed(error))?;
            // First this: whatever becomes of the directory, the next record goes to the file that has the name now.
            (self.file, self.length) = (file, length);
            self.pending.clear();
            sync_directory(&self.directory).map_err(|error| self.failed(error))?;
        } else if self.pending.len() > PENDING_BYTES_MAX {
            self.flush()?;
        }
        Ok(())
    }

    fn put(&mut self, kind: u8, request: &v1::SettleRequest) -> Result<(), Error> {
        let Some(item) = ItemId::from_wire(request.item.as_ref()) else {
            return Ok(());
        };
        let mut payload = Vec::with_capacity(1 + request.encoded_len());
        payload.push(kind);
        request.encode_raw(&mut payload);
        let start = self.pending.len();
        frame(&payload, &mut self.pending);
        let record = self.pending[start..].to_vec();
        self.flush()?;
        self.live_bytes += record.len() as u64;
        if let Some(old) = self.live.insert(item, record) {
            self.live_bytes -= old.len() as u64;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        if let Err(error) = self.file.write_all(&self.pending) {
            // A torn record must not stand before good ones: cut back to the last whole one.
            self.pending.clear();
            let _ = self.file.set_len(self.length);
            return Err(self.failed(error));
        }
        self.length += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::Io {
            path: self.directory.join("journal"),
            error,
        }
    }
}

/// Puts a record around a payload.
fn frame(payload: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    out.extend_from_slice(payload);
}

/// Takes the first record off `bytes`: its payload and the rest. `None` at the end and at a damaged record.
fn unframe(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let crc = u32::from_le_bytes(bytes.get(4..HEADER)?.try_into().ok()?);
    if length == 0 || length > RECORD_BYTES_MAX {
        return None;
    }
    let payload = bytes.get(HEADER..HEADER + length)?;
    (crc32c::crc32c(payload) == crc).then(|| (payload, &bytes[HEADER + length..]))
}

/// The last record of each unsettled item.
fn read(mut bytes: &[u8]) -> HashMap<ItemId, Vec<u8>> {
    let mut live = HashMap::new();
    while let Some((payload, rest)) = unframe(bytes) {
        let record = &bytes[..bytes.len() - rest.len()];
        match payload {
            [SETTLED, id @ ..] => {
                if let Some(item) = settled_item(id) {
                    live.remove(&item);
                }
            }
            [_, request @ ..] => {
                let request = v1::SettleRequest::decode(request).ok();
                if let Some(item) =
                    request.and_then(|request| ItemId::from_wire(request.item.as_ref()))
                {
                    live.insert(item, record.to_vec());
                }
            }
            [] => {}
        }
        bytes = rest;
    }
    live
}

fn settled_item(id: &[u8]) -> Option<ItemId> {
    let message = Ulid::from_bytes(id.get(..16)?.try_into().ok()?);
    Some(ItemId {
        message,
        number: u32::from_le_bytes(id.get(16..20)?.try_into().ok()?),
    })
}

fn replay_of(live: &HashMap<ItemId, Vec<u8>>) -> Replay {
    let mut replay = Replay::default();
    for record in live.values() {
        let Some(([kind, request @ ..], _)) = unframe(record) else {
            continue;
        };
        let Ok(request) = v1::SettleRequest::decode(request) else {
            continue;
        };
        match *kind {
            GOT => replay.got.push(request),
            _ => replay.past_dot.push(request),
        }
    }
    replay
}

/// Writes the live records to a new file and puts it in the old one's place. The name must not lead to octets that are not on
/// the disk: after a power loss they would be zeros, and that is no journal.
fn rewrite(directory: &Path, live: &HashMap<ItemId, Vec<u8>>) -> io::Result<(File, u64)> {
    let new = directory.join("journal.new");
    let mut bytes = MAGIC.to_vec();
    for record in live.values() {
        bytes.extend_from_slice(record);
    }
    let mut file = File::create(&new)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    let file = OpenOptions::new().append(true).open(&new)?;
    std::fs::rename(&new, directory.join("journal"))?;
    Ok((file, bytes.len() as u64))
}

/// Makes the names in it durable.
fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests;
