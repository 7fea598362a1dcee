//! The journals of fjall: the active one after a power cut, and what all of them take.
//!
//! fjall drops a last batch that ends too early, or whose entries do not parse. It refuses to open when the batch
//! parses to its end but is not what was written (a lost page inside a value). Each flush is one batch and syncs
//! before the next begins, so only the very last batch can be torn: it is cut off here, and Raft replays it. If
//! anything follows the broken batch it was durable once, and its damage is a loss.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use super::StoreError;
use crate::log::{Disk as _, RealDisk};

/// Ends each batch in fjall's journal format 3.
const TRAILER: &[u8] = b"FJL\x03";

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;

/// What `stat` counts blocks in, octets, whatever the file system's own are (POSIX leaves it open; Linux says 512).
const BLOCK: u64 = 512;

/// What was cut off.
#[derive(Debug)]
pub(super) struct Cut {
    pub(super) path: PathBuf,
    pub(super) octets: u64,
}

/// Cuts the active journal after its last whole batch. The inner error says why that would not help.
///
/// # Errors
/// The outer one: the file could not be read or written.
pub(super) fn cut_torn_batch(dir: &Path) -> Result<Result<Cut, String>, StoreError> {
    let Some(path) = active_journal(dir)? else {
        return Ok(Err("there is no journal".into()));
    };
    let bytes = fs::read(&path).map_err(|error| StoreError::io("reading", &path, &error))?;
    let whole = match whole_batches(&bytes) {
        Ok(whole) => whole,
        Err(reason) => return Ok(Err(format!("{}: {reason}", path.display()))),
    };
    let file = OpenOptions::new().write(true).open(&path);
    let cut = file.and_then(|file| {
        file.set_len(whole as u64)?;
        file.sync_all()
    });
    cut.map_err(|error| StoreError::io("cutting", &path, &error))?;
    Ok(Ok(Cut {
        path,
        octets: (bytes.len() - whole) as u64,
    }))
}

/// Octets that the journals really take: they are made sparse, [`fs::Metadata::len`] says what they may come to.
///
/// # Errors
/// The directory could not be read.
pub(super) fn blocks(dir: &Path) -> Result<u64, StoreError> {
    let failed = |error| StoreError::io("listing", dir, &error);
    let mut blocks = 0;
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.path().extension().is_some_and(|e| e == "jnl") {
            // One that was deleted meanwhile takes nothing.
            blocks += entry.metadata().map_or(0, |m| m.blocks());
        }
    }
    Ok(blocks * BLOCK)
}

/// Makes what the page cache holds of the files under `dir` durable, or drops it: after a failed sync pages count as clean,
/// and a start would read what never reached the disk.
///
/// # Errors
/// A file could not be opened or synced.
pub(super) fn believe_only_the_device(dir: &Path) -> Result<(), StoreError> {
    let failed = |path: &Path, error| StoreError::io("reading afresh", path, &error);
    for entry in fs::read_dir(dir).map_err(|error| failed(dir, error))? {
        let entry = entry.map_err(|error| failed(dir, error))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(|error| failed(&path, error))?;
        if kind.is_dir() {
            believe_only_the_device(&path)?;
        } else if kind.is_file() {
            let file = RealDisk.open(&path);
            let dropped = file.and_then(|file| {
                file.sync_data()?;
                file.drop_cache()
            });
            dropped.map_err(|error| failed(&path, error))?;
        }
    }
    Ok(())
}

/// The one with the highest number.
fn active_journal(dir: &Path) -> Result<Option<PathBuf>, StoreError> {
    let failed = |error| StoreError::io("listing", dir, &error);
    let mut active = None;
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let number = path
            .file_stem()
            .and_then(|stem| stem.to_str()?.parse::<u64>().ok());
        if path.extension().is_some_and(|extension| extension == "jnl") {
            active = active.max(number.map(|number| (number, path)));
        }
    }
    Ok(active.map(|(_, path)| path))
}

/// How many octets from the start are whole batches. An error: what is broken is not the last batch.
fn whole_batches(bytes: &[u8]) -> Result<usize, String> {
    let mut whole = 0;
    while bytes.get(whole) == Some(&START) {
        match batch(&bytes[whole..]) {
            Batch::Whole(length) => whole += length,
            Batch::Broken(length) if bytes[whole..][length..].iter().all(|b| *b == 0) => {
                return Ok(whole);
            }
            Batch::Broken(_) => {
                return Err(format!(
                    "the batch at octet {whole} is damaged, and later ones follow"
                ));
            }
            Batch::Torn => return Ok(whole),
        }
    }
    Err("no batch in the active journal is torn".into())
}

enum Batch {
    /// Its length.
    Whole(usize),
    /// It has an end, but is not what was written.
    Broken(usize),
    /// It has no end.
    Torn,
}

/// Judges the batch that `bytes` begin with.
fn batch(bytes: &[u8]) -> Batch {
    walk(bytes).unwrap_or(Batch::Torn)
}

/// `None`: it breaks off.
fn walk(bytes: &[u8]) -> Option<Batch> {
    let count = u32::from_le_bytes(*bytes.get(1..)?.first_chunk()?);
    let (mut at, mut seen) = (START_LENGTH, 0_u32);
    loop {
        let rest = bytes.get(at..)?;
        match *rest.first()? {
            ITEM => at += item_length(rest)?,
            CLEAR => at += CLEAR_LENGTH,
            END => {
                let checksum = u64::from_le_bytes(*rest.get(1..)?.first_chunk()?);
                let length = at + 1 + 8 + TRAILER.len();
                let right = rest.get(9..)?.starts_with(TRAILER) && seen == count;
                let items = &bytes[START_LENGTH..at];
                let whole = right && xxh3_64(items) == checksum;
                return Some(if whole {
                    Batch::Whole(length)
                } else {
                    Batch::Broken(length)
                });
            }
            _ => return None,
        }
        seen += 1;
    }
}

/// Tag, count of entries, sequence number.
const START_LENGTH: usize = 1 + 4 + 8;

/// Tag, keyspace.
const CLEAR_LENGTH: usize = 1 + 8;

/// Tag, kind, compression, keyspace, length of the key, of the value, of the value as it lies here; key; value.
fn item_length(bytes: &[u8]) -> Option<usize> {
    let key = u16::from_le_bytes(*bytes.get(11..)?.first_chunk()?);
    let value = u32::from_le_bytes(*bytes.get(17..)?.first_chunk()?);
    Some(21 + usize::from(key) + usize::try_from(value).ok()?)
}
