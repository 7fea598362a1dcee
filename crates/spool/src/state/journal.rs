//! The journals of fjall: the active one after a power cut, damage in any of them, and what all of them take.
//!
//! fjall drops a batch that ends too early or whose entries do not parse, and whatever follows it, in any journal and
//! without a word. It refuses to open when the batch parses to its end but is not what was written (a lost page inside
//! a value). So [`check`] reads them first.
//!
//! A journal that is not the active one was synced whole when the next one began. In the active one a flush is one batch
//! that begins with its applied index, and syncs before anything is written behind it. Parts of snapshots and of sweeps are
//! not synced: of those, and of the last flush, a power cut leaves any pages. What is damaged was durable, and its damage is
//! a loss, when it is a flush and anything whole follows, or when a whole flush follows and anything whole follows that. Else
//! it may be torn: it is cut off, and Raft replays it.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use super::StoreError;
use super::store::FIXED_APPLIED;
use crate::log::{Disk as _, RealDisk};

/// Ends each batch in fjall's journal format 3.
const TRAILER: &[u8] = b"FJL\x03";

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;

/// What `stat` counts blocks in, octets, whatever the file system's own are (POSIX leaves it open; Linux says 512).
const BLOCK: u64 = 512;

/// Looks for damage of what was durable. The inner error says where; nothing is changed.
///
/// # Errors
/// The outer one: a file could not be read.
pub(super) fn check(dir: &Path) -> Result<Result<(), String>, StoreError> {
    let mut next = 0;
    let journals = journals(dir)?;
    for (number, path) in &journals {
        let bytes = fs::read(path).map_err(|error| StoreError::io("reading", path, &error))?;
        let active = journals.last_key_value().map(|(last, _)| last) == Some(number);
        if let Err(reason) = judge(&bytes, active, &mut next) {
            return Ok(Err(format!("{}: {reason}", path.display())));
        }
    }
    Ok(Ok(()))
}

/// One journal: what is wrong with it. `next` is the least sequence number that its first batch may have.
pub(super) fn judge(bytes: &[u8], active: bool, next: &mut u64) -> Result<(), String> {
    let mut at = 0;
    while let Some(tag) = bytes.get(at) {
        let rest = &bytes[at..];
        let length = match batch(rest) {
            Batch::Whole(length) if *tag == START => length,
            _ if rest.iter().all(|octet| *octet == 0) => return Ok(()),
            _ if active && may_be_torn(rest) => return Ok(()),
            _ => {
                return Err(format!(
                    "the batch at octet {at} is damaged, and was durable"
                ));
            }
        };
        // The checksum does not cover it. Each batch has a number of its own: with that of the one before it fjall would take it
        // for one that is in the tables already, if these end there, and leave it out.
        let own = rest.get(5..).and_then(<[u8]>::first_chunk);
        let own = own.map_or(0, |own| u64::from_le_bytes(*own));
        if own < *next {
            return Err(format!(
                "the batch at octet {at} has the sequence number {own}, and {next} was the least that could follow"
            ));
        }
        *next = own.saturating_add(1);
        at += length;
    }
    Ok(())
}

/// `bytes` begin with a batch that is not whole, in the active journal. See the module.
fn may_be_torn(bytes: &[u8]) -> bool {
    let mut synced = is_flush(bytes);
    let mut at = 1;
    while at < bytes.len() {
        // Most of a journal is the room that it will grow into.
        let found = (bytes[at] == START).then(|| batch(&bytes[at..]));
        match found {
            Some(Batch::Whole(_)) if synced => return false,
            Some(Batch::Whole(length)) => {
                synced = is_flush(&bytes[at..at + length]);
                at += length;
            }
            _ => at += 1,
        }
    }
    true
}

/// The batch begins with an applied index, as flushes and switches to snapshots do.
fn is_flush(batch: &[u8]) -> bool {
    let item = batch.get(START_LENGTH..).unwrap_or_default();
    let key = item.get(ITEM_LENGTH..ITEM_LENGTH + FIXED_KEY_LENGTH);
    let length = item.get(11..).and_then(<[u8]>::first_chunk);
    let fits =
        length.is_some_and(|length| usize::from(u16::from_le_bytes(*length)) == FIXED_KEY_LENGTH);
    item.first() == Some(&ITEM) && fits && key.is_some_and(|key| key[4] == FIXED_APPLIED)
}

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
    let Some((_, path)) = journals(dir)?.pop_last() else {
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

/// All of them, by number; the active one has the highest.
fn journals(dir: &Path) -> Result<BTreeMap<u64, PathBuf>, StoreError> {
    let failed = |error| StoreError::io("listing", dir, &error);
    let mut journals = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let number = path
            .file_stem()
            .and_then(|stem| stem.to_str()?.parse::<u64>().ok());
        if path.extension().is_some_and(|extension| extension == "jnl") {
            journals.extend(number.map(|number| (number, path)));
        }
    }
    Ok(journals)
}

/// How many octets from the start are whole batches, in a journal that [`check`] found nothing in. An error: all of it.
fn whole_batches(bytes: &[u8]) -> Result<usize, String> {
    let mut whole = 0;
    while bytes.get(whole) == Some(&START) {
        match batch(&bytes[whole..]) {
            Batch::Whole(length) => whole += length,
            Batch::Broken | Batch::Torn => return Ok(whole),
        }
    }
    Err("no batch in the active journal is torn".into())
}

/// Where whole batches begin.
#[cfg(test)]
pub(super) fn starts(bytes: &[u8]) -> Vec<usize> {
    let (mut starts, mut at) = (Vec::new(), 0);
    while let Some(Batch::Whole(length)) = bytes.get(at..).map(batch) {
        starts.push(at);
        at += length;
    }
    starts
}

enum Batch {
    /// Its length.
    Whole(usize),
    /// It has an end, but is not what was written.
    Broken,
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
                    Batch::Broken
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

/// A group's number and a tag.
const FIXED_KEY_LENGTH: usize = 4 + 1;

/// Tag, kind, compression, keyspace, length of the key, of the value, of the value as it lies here.
const ITEM_LENGTH: usize = 1 + 1 + 1 + 8 + 2 + 4 + 4;

/// And the key, and the value.
fn item_length(bytes: &[u8]) -> Option<usize> {
    let key = u16::from_le_bytes(*bytes.get(11..)?.first_chunk()?);
    let value = u32::from_le_bytes(*bytes.get(17..)?.first_chunk()?);
    Some(ITEM_LENGTH + usize::from(key) + usize::try_from(value).ok()?)
}
