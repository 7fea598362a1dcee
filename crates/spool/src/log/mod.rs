//! The segmented log of a node: all Raft groups share one stream of batches, one `pwrite` and one `fdatasync` a batch.
//!
//! Bodies live here and nowhere else. A batch counts only with its closing record; a segment whose entries are all
//! applied, truncated and without a living body is recycled whole. queue.md 4.2 and 4.3 have the format.

mod error;
mod types;

pub use error::{OpenError, ReadError, WriteError};
pub use types::{
    DiskUse, Entry, EntryKind, HardState, Location, LogConfig, Recovered, RecoveredEntry,
    RecoveredGroup, SegmentInfo, WriteTask, Written,
};

mod disk;
mod reader;
mod segments;
mod writer;

use std::path::Path;
use std::sync::Arc;

pub use disk::{Disk, DiskFile, RealDisk};
pub use reader::LogReader;
pub use segments::Segments;
pub use writer::LogWriter;

/// Opening a log.
#[derive(Debug)]
pub struct Log;

impl Log {
    /// Opens the log in `dir` (usually `<data directory>/log`) and recovers what it holds; an empty directory is an
    /// empty log.
    pub fn open(
        dir: &Path,
        config: LogConfig,
    ) -> Result<(LogWriter, LogReader, Recovered), OpenError> {
        Self::open_on(Arc::new(RealDisk), dir, config)
    }

    /// The same on any disk.
    pub fn open_on(
        disk: Arc<dyn Disk>,
        dir: &Path,
        config: LogConfig,
    ) -> Result<(LogWriter, LogReader, Recovered), OpenError> {
        let _ = (disk, config);
        let source = std::io::ErrorKind::Unsupported.into();
        Err(OpenError::Io {
            dir: dir.to_owned(),
            action: "open",
            name: "the log".into(),
            source,
        })
    }
}
