//! One group's records in the order they were written: the last writer wins.

use super::{HardState, RecoveredEntry, RecoveredGroup};

/// A group while its records are replayed.
#[derive(Debug, Default)]
pub(super) struct Replay {
    pub hard_state: HardState,
    truncated: (u64, u64),
    last: u64,
    entries: Vec<RecoveredEntry>,
}

impl Replay {
    /// An entry; one at or below the last truncates what followed.
    pub fn entry(&mut self, entry: RecoveredEntry) {
        self.cut_after(entry.index - 1);
        // After a gap (its segment is recycled) all before it is truncated, which `finish` verifies.
        if self
            .entries
            .last()
            .is_some_and(|last| last.index + 1 != entry.index)
        {
            self.entries.clear();
        }
        self.last = entry.index;
        self.entries.push(entry);
    }

    /// A STATE record. Its `last` cuts a suffix whose truncating entry is in a recycled segment.
    pub fn state(&mut self, hard_state: HardState, truncated: (u64, u64), last: u64) {
        self.hard_state = hard_state;
        self.truncated = self.truncated.max(truncated);
        self.cut_after(last);
        self.last = last;
        let gone = self
            .entries
            .partition_point(|entry| entry.index <= self.truncated.0);
        self.entries.drain(..gone);
    }

    /// The group, or a text that says what is missing.
    pub fn finish(mut self) -> Result<RecoveredGroup, String> {
        let gone = self
            .entries
            .partition_point(|entry| entry.index <= self.truncated.0);
        self.entries.drain(..gone);
        let first = self
            .entries
            .first()
            .map_or(self.last + 1, |entry| entry.index);
        if first > self.truncated.0 + 1 {
            return Err(format!(
                "its entries {} to {} are missing",
                self.truncated.0 + 1,
                first - 1
            ));
        }
        let group = RecoveredGroup {
            hard_state: self.hard_state,
            truncated: self.truncated,
            entries: self.entries,
        };
        let last = group.last_index();
        let known = self.last.max(group.hard_state.commit);
        if known > last {
            return Err(format!("its entries {} to {known} are missing", last + 1));
        }
        Ok(group)
    }

    fn cut_after(&mut self, index: u64) {
        let keep = self.entries.partition_point(|entry| entry.index <= index);
        self.entries.truncate(keep);
    }
}
