//! The segmented log of a node: all Raft groups share one stream of batches, one `pwrite` and one `fdatasync` a batch.
//!
//! Bodies live here and nowhere else. A batch counts only with its closing record; a segment whose entries are all
//! applied, truncated and without a living body is recycled whole. In the order of reading:
//!
//! * `types`, `error`: the words; `record`: the format on disk
//! * `batch`, `place`, `writer`: tasks become batches; `spare`, `segments`: where they go, and how much room is left
//! * `scan`, `replay`, `recover`, `open`: what a start finds; `reader`: entries back
//! * bodies that a snapshot brought are records of their own in the same stream; `collected`: segments that the collector
//!   fills with what lives on; `walk`: what lies in a segment, damaged or not
//! * `survey`: what can be read of a log that does not open
//! * `disk`, `sim`: the disk, and one that crashes on purpose

mod batch;
mod collected;
mod disk;
mod error;
mod open;
mod place;
mod planted;
mod reader;
mod record;
mod recover;
mod replay;
mod scan;
mod segments;
mod sim;
mod spare;
mod survey;
#[cfg(test)]
mod tests;
mod types;
mod walk;
mod writer;

pub use collected::{CollectedWriter, Copies};
pub use disk::{Disk, DiskFile, RealDisk};
pub use error::{OpenError, ReadError, WriteError};
pub use open::Log;
#[cfg(feature = "planted-bugs")]
pub use planted::{Mutation, plant};
pub use reader::LogReader;
pub use segments::Segments;
pub use sim::SimDisk;
pub use survey::{Survey, Surveyed};
pub use types::GONE;
pub use types::{
    Damaged, DiskUse, Entry, EntryKind, HardState, Location, LogConfig, Recovered, RecoveredEntry,
    RecoveredGroup, Relocated, SegmentInfo, WriteTask, Written,
};
pub use walk::{Found, Walk};
pub use writer::LogWriter;
