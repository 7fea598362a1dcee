//! Why the log could not be opened, written or read, in words for whoever must act on it.

use std::io;
use std::path::PathBuf;

use super::Written;

/// The log was not opened. Nothing was changed on disk.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The disk refused an operation.
    #[error("log {}: cannot {action} {name}: {source}", dir.display())]
    Io {
        /// The log's directory.
        dir: PathBuf,
        /// What was tried.
        action: &'static str,
        /// On which file.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// Bytes that were acknowledged as durable are not what was written.
    #[error(
        "log {}: {name} is damaged at offset {offset}: {what}. These bytes had been acknowledged, so this node must not \
         go on with what is left. Nothing was changed. Keep the directory for inspection, remove this node from the \
         cluster and add a new node id on an empty directory; the other replicas have the mail and keep serving. If this \
         was the only copy: postroad queue salvage",
        dir.display()
    )]
    Corrupt {
        /// The log's directory.
        dir: PathBuf,
        /// File of the segment.
        name: String,
        /// Segment number.
        segment: u64,
        /// Offset of the first invalid byte.
        offset: u64,
        /// What is wrong there, and how it is known that it was durable.
        what: String,
    },
    /// The segments belong to another store.
    #[error("log {}: {name} belongs to {found}, but this node is {expected}; check the data directory", dir.display())]
    Foreign {
        /// The log's directory.
        dir: PathBuf,
        /// File of the segment.
        name: String,
        /// Cluster and incarnation in the file.
        found: String,
        /// Cluster and incarnation of this node.
        expected: String,
    },
    /// The segments are of a version that this program does not know.
    #[error("log {}: {name} has format version {version}, this program reads up to {known}; start a newer program", dir.display())]
    Version {
        /// The log's directory.
        dir: PathBuf,
        /// File of the segment.
        name: String,
        /// Version in the file.
        version: u32,
        /// Highest version known.
        known: u32,
    },
}

impl OpenError {
    /// Octets that this node answers for are gone: they are not what was written, or the device does not give them back (EIO).
    /// Anything else may pass, or be set right, and the node starts with what it has.
    pub fn is_damage(&self) -> bool {
        match self {
            OpenError::Corrupt { .. } => true,
            OpenError::Io { source, .. } => is_unreadable(source),
            OpenError::Foreign { .. } | OpenError::Version { .. } => false,
        }
    }
}

/// The device itself refused to give octets back.
pub(super) fn is_unreadable(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// Tasks were not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// No room for some tasks. What is in `written` is durable; the others can be given again, in order, when space returned.
    #[error("the log has no room for {} of the tasks; it takes them when space returns", unwritten.len())]
    NoSpace {
        /// Tasks that are durable.
        written: Vec<Written>,
        /// Positions, in the slice given to `write`, of the tasks that are not.
        unwritten: Vec<usize>,
    },
    /// The disk failed. What is on it is unknown, so the replica node stops for good: no retry, no further message.
    #[error("the log's disk failed, this replica stops: {0}")]
    Fatal(#[source] io::Error),
}

/// An entry could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The segment was recycled since the location was looked up: look it up again.
    #[error("segment {segment} was recycled")]
    Recycled {
        /// The segment of the location.
        segment: u64,
    },
    /// The record is not what was written.
    #[error("segment {segment}, offset {offset}: {what}; the entry must come from another replica")]
    Corrupt {
        /// The segment.
        segment: u64,
        /// Offset of the record.
        offset: u32,
        /// What is wrong.
        what: &'static str,
    },
    /// The disk refused to read.
    #[error("segment {segment}, offset {offset}: {source}")]
    Io {
        /// The segment.
        segment: u64,
        /// Offset of the record.
        offset: u32,
        /// What the system said.
        source: io::Error,
    },
}
