//! What can go wrong, by what is to be done.

use std::io;
use std::path::{Path, PathBuf};

/// Why the metadata store cannot go on.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system is full.
    #[error(
        "the metadata store has no space left ({0}): it is closed and opened again until there is some; free space"
    )]
    NoSpace(String),
    /// A write or sync failed. Nothing may be tried again: a page that failed to sync counts as clean.
    #[error(
        "the metadata store failed ({0}): this replica node stops; look at the disk, then start it again. When it stops \
         at the same place again, remove this node and add a new node id on an empty directory"
    )]
    Fatal(String),
    /// Another process has it.
    #[error("{0} is in use by another process: stop that one, or use another data directory")]
    InUse(PathBuf),
    /// What was durable cannot be read any more.
    #[error(
        "the metadata in {dir} is lost ({reason}): keep the directory for inspection, remove this node from its \
         groups and start it with an empty data directory under a new node id"
    )]
    Lost {
        /// Where.
        dir: PathBuf,
        /// What was found.
        reason: String,
    },
}

impl StoreError {
    /// The error of an operation on an open database.
    pub(super) fn of(error: fjall::Error) -> StoreError {
        match io_error(&error) {
            Some(io) if is_full(io) => StoreError::NoSpace(error.to_string()),
            _ => StoreError::Fatal(error.to_string()),
        }
    }

    /// The error of opening the database at `dir`.
    pub(super) fn opening(dir: &Path, error: fjall::Error) -> StoreError {
        match (&error, io_error(&error)) {
            (fjall::Error::Locked, _) => StoreError::InUse(dir.to_owned()),
            (_, Some(io)) if is_full(io) => StoreError::NoSpace(error.to_string()),
            // A file that is missing, too short or not what was written is a part of the database that is gone; other I/O
            // errors may pass.
            (_, Some(io)) if !is_loss(io) => StoreError::Fatal(error.to_string()),
            _ => StoreError::Lost {
                dir: dir.to_owned(),
                reason: error.to_string(),
            },
        }
    }

    /// A row that this program cannot read.
    pub(super) fn unreadable(table: &str, group: u32, key: &[u8]) -> StoreError {
        let key: String = key.iter().map(|b| format!("{b:02x}")).collect();
        StoreError::Fatal(format!(
            "row {key} of table {table}, group {group}, cannot be read: it is damaged or of a newer version of postroad"
        ))
    }

    pub(super) fn io(doing: &str, path: &Path, error: &io::Error) -> StoreError {
        let text = format!("{doing} {}: {error}", path.display());
        match is_full(error) {
            true => StoreError::NoSpace(text),
            false => StoreError::Fatal(text),
        }
    }
}

fn io_error(error: &fjall::Error) -> Option<&io::Error> {
    match error {
        fjall::Error::Io(io) | fjall::Error::Storage(fjall::LsmError::Io(io)) => Some(io),
        _ => None,
    }
}

fn is_loss(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
    matches!(error.kind(), InvalidData | NotFound | UnexpectedEof)
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
