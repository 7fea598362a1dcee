//! Where this replica's bodies lie, and what of each segment of the log is still needed. Local: replicas may keep the
//! same body in different segments.

use std::collections::{BTreeMap, BTreeSet};

use queue::{Extent, Table};

use super::codec::{Reader, Row, put_number};
use super::table::OverlayTable;
use crate::log::Location;

/// What a segment holds that is referred to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SegmentLive {
    /// Octets of the data of these entries: of reports that came in one entry, all as long as one lives, because the
    /// entry is copied whole.
    pub bytes: u64,
    /// Entries with a live extent.
    pub count: u64,
}

impl SegmentLive {
    fn is_empty(&self) -> bool {
        *self == SegmentLive::default()
    }
}

impl Row for SegmentLive {
    fn write(&self, out: &mut Vec<u8>) {
        put_number(out, self.bytes);
        put_number(out, self.count);
    }

    fn read(from: &mut Reader<'_>) -> Option<SegmentLive> {
        Some(SegmentLive {
            bytes: from.number()?,
            count: from.number()?,
        })
    }
}

/// An entry whose data is still referred to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Kept {
    pub(super) location: Location,
    /// Live extents: the reports of one Settle are several.
    pub(super) extents: u32,
    /// Their octets.
    pub(super) bytes: u64,
}

impl Row for Kept {
    fn write(&self, out: &mut Vec<u8>) {
        let Location {
            segment,
            offset,
            context_len,
            data_len,
        } = self.location;
        put_number(out, segment);
        for n in [offset, context_len, data_len, self.extents] {
            put_number(out, u64::from(n));
        }
        put_number(out, self.bytes);
    }

    fn read(from: &mut Reader<'_>) -> Option<Kept> {
        let segment = from.number()?;
        let location = Location {
            segment,
            offset: from.small()?,
            context_len: from.small()?,
            data_len: from.small()?,
        };
        Some(Kept {
            location,
            extents: from.small()?,
            bytes: from.number()?,
        })
    }
}

/// The tables `loc` and `seg` of one group.
pub(super) struct Bodies {
    pub(super) kept: OverlayTable<u64, Kept>,
    /// One a segment of the log that holds something: a few hundred at the most for a full disk.
    pub(super) segments: BTreeMap<u64, SegmentLive>,
    changed: BTreeSet<u64>,
}

impl Bodies {
    pub(super) fn new(
        kept: OverlayTable<u64, Kept>,
        segments: BTreeMap<u64, SegmentLive>,
    ) -> Bodies {
        Bodies {
            kept,
            segments,
            changed: BTreeSet::new(),
        }
    }

    /// The segments whose counts changed since the last call; `None`: nothing is needed of it any more.
    pub(super) fn take_changed(&mut self) -> Vec<(u64, Option<SegmentLive>)> {
        let changed = std::mem::take(&mut self.changed);
        changed
            .into_iter()
            .map(|segment| (segment, self.segments.get(&segment).copied()))
            .collect()
    }

    fn uncount(&mut self, location: Location) {
        self.count(location, |live| {
            live.count = live.count.saturating_sub(1);
            live.bytes = live.bytes.saturating_sub(u64::from(location.data_len));
        });
    }

    fn count(&mut self, location: Location, change: impl FnOnce(&mut SegmentLive)) {
        let segment = location.segment;
        let live = self.segments.entry(segment).or_default();
        change(live);
        if live.is_empty() {
            self.segments.remove(&segment);
        }
        self.changed.insert(segment);
    }

    pub(super) fn keep(&mut self, extent: Extent, location: Location) {
        let before = self.kept.get(&extent.index).map(|kept| *kept);
        // An entry that GC has moved meanwhile stays where it is now.
        let mut kept = before.unwrap_or(Kept {
            location,
            extents: 0,
            bytes: 0,
        });
        kept.extents += 1;
        kept.bytes += extent.length;
        if before.is_none() {
            self.count(kept.location, |live| {
                live.count += 1;
                live.bytes += u64::from(kept.location.data_len);
            });
        }
        self.kept.put(extent.index, kept);
    }

    pub(super) fn drop(&mut self, extent: Extent) {
        let Some(mut kept) = self.kept.get(&extent.index).map(|kept| *kept) else {
            return;
        };
        kept.extents = kept.extents.saturating_sub(1);
        kept.bytes = kept.bytes.saturating_sub(extent.length);
        if kept.extents == 0 {
            self.uncount(kept.location);
        }
        match kept.extents {
            0 => self.kept.delete(&extent.index),
            _ => self.kept.put(extent.index, kept),
        }
    }

    pub(super) fn relocate(&mut self, index: u64, from: Location, to: Location) -> bool {
        let Some(kept) = self.kept.get(&index).filter(|kept| kept.location == from) else {
            return false;
        };
        self.uncount(from);
        self.count(to, |live| {
            live.count += 1;
            live.bytes += u64::from(to.data_len);
        });
        self.kept.put(
            index,
            Kept {
                location: to,
                ..*kept
            },
        );
        true
    }
}
