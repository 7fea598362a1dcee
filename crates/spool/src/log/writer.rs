//! The one writer of a device: tasks of all groups into batches, one `pwrite` and one `fdatasync` each.

use super::{Segments, WriteError, WriteTask, Written};

/// Writes the log. One thread owns it.
#[derive(Debug)]
pub struct LogWriter {
    segments: Segments,
}

impl LogWriter {
    /// Makes all tasks durable, in the order given.
    pub fn write(&mut self, _tasks: &[WriteTask]) -> Result<Vec<Written>, WriteError> {
        Err(WriteError::Fatal(std::io::ErrorKind::Unsupported.into()))
    }

    /// When the last flush was at least 50 ms ago and nothing says yet that it was durable, says so.
    pub fn mark_if_idle(&mut self) -> Result<(), WriteError> {
        Ok(())
    }

    /// The last index and term of `group` that is logically gone.
    pub fn set_group_state(&mut self, group: u32, truncated: (u64, u64)) {
        self.segments.set_truncated(group, truncated);
    }

    /// The segments, to share with whoever counts what lives in them.
    pub fn segments(&self) -> Segments {
        self.segments.clone()
    }
}
