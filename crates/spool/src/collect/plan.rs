//! Which segment is collected next, if any: by what lives in it, its age, and how full the disk is. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::CollectConfig;
use crate::log::{DiskUse, SegmentInfo};
use crate::state::SegmentLive;

/// What is copied comes to the next generation, at most this one: each has an open segment of its own, and three sort
/// mail into minutes, hours and days.
pub const GENERATION_MAX: u32 = 3;

/// Octets that a copy costs beside the data: the record's header and the digest.
pub const COPY_OVERHEAD: u64 = 64;

/// Above this, percent, the disk is pressed.
pub const PRESSED_PERCENT: u8 = 80;

/// Above this, percent, the threshold is [`THRESHOLDS`]' second.
const HALF_PERCENT: u8 = 60;

/// Percent of a segment that may live: below [`HALF_PERCENT`], above, above [`PRESSED_PERCENT`].
const THRESHOLDS: [u8; 3] = [25, 50, 75];

/// A pressed disk lets a segment rest for this part of the usual time: most mail leaves within two seconds.
const PRESSED_AGE_PART: u64 = 30;

/// Sources of which the moves are not durable: copying does not wait for each flush of the state.
const AHEAD_MAX: usize = 8;

/// After this a segment with a damaged body, or one that found no room, is tried again, milliseconds.
const AGAIN_MS: u64 = 3_600_000;

/// See [`AGAIN_MS`]: room comes back sooner.
const NO_ROOM_MS: u64 = 1_000;

/// Why a sealed segment stays; see [`Planner::pinned`].
pub const REASONS: [&str; 6] = [
    "collecting",
    "damaged",
    "no room",
    "follower or state",
    "young",
    "live",
];

/// A segment to collect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// From here,
    pub source: u64,
    /// to the open segment of this generation.
    pub generation: u32,
}

/// Chooses.
#[derive(Debug)]
pub struct Planner {
    config: CollectConfig,
    capacity: u64,
    /// When each sealed segment was first seen, milliseconds.
    sealed: BTreeMap<u64, u64>,
    busy: BTreeSet<u64>,
    /// Not before these instants.
    later: BTreeMap<u64, u64>,
    damaged: BTreeSet<u64>,
}

impl Planner {
    /// For segments of `capacity` octets.
    pub fn new(config: CollectConfig, capacity: u64) -> Planner {
        Planner {
            config,
            capacity,
            sealed: BTreeMap::new(),
            busy: BTreeSet::new(),
            later: BTreeMap::new(),
            damaged: BTreeSet::new(),
        }
    }

    /// The emptiest segment that may be collected now.
    pub fn next(
        &mut self,
        now_ms: u64,
        segments: &[SegmentInfo],
        live: &BTreeMap<u64, SegmentLive>,
        disk: &DiskUse,
    ) -> Option<Choice> {
        self.look(now_ms, segments);
        let ahead = if disk.full { 1 } else { AHEAD_MAX };
        if self.busy.len() >= ahead {
            return None;
        }
        let threshold = u64::from(self.threshold(disk));
        let cost = |segment: &SegmentInfo| copy_bytes(live.get(&segment.id).copied());
        segments
            .iter()
            .filter(|segment| self.reason(now_ms, segment, disk).is_none())
            .filter(|segment| cost(segment) > 0 && cost(segment) * 100 < threshold * self.capacity)
            .min_by_key(|segment| cost(segment))
            .map(|segment| Choice {
                source: segment.id,
                generation: (segment.generation + 1).min(GENERATION_MAX),
            })
    }

    /// Notes which segments are sealed and since when.
    fn look(&mut self, now_ms: u64, segments: &[SegmentInfo]) {
        let known: BTreeSet<u64> = segments.iter().map(|segment| segment.id).collect();
        for segment in segments.iter().filter(|segment| segment.sealed) {
            self.sealed.entry(segment.id).or_insert(now_ms);
        }
        self.sealed.retain(|id, _| known.contains(id));
        self.busy.retain(|id| known.contains(id));
        self.damaged.retain(|id| known.contains(id));
        self.later
            .retain(|id, until| known.contains(id) && *until > now_ms);
    }

    /// Why a segment is not to be collected, whatever lives in it.
    fn reason(&self, now_ms: u64, segment: &SegmentInfo, disk: &DiskUse) -> Option<&'static str> {
        let age = self
            .sealed
            .get(&segment.id)
            .map_or(0, |since| now_ms.saturating_sub(*since));
        if !segment.sealed {
            Some("open")
        } else if self.busy.contains(&segment.id) {
            Some("collecting")
        } else if self.later.contains_key(&segment.id) {
            Some(match self.damaged.contains(&segment.id) {
                true => "damaged",
                false => "no room",
            })
        } else if !segment.truncated {
            Some("follower or state")
        } else if age < self.min_age(disk) {
            Some("young")
        } else {
            None
        }
    }

    /// Percent of a segment that may live.
    pub fn threshold(&self, disk: &DiskUse) -> u8 {
        let [usual, half, pressed] = THRESHOLDS;
        self.config.threshold.unwrap_or(match disk.percent {
            percent if percent > PRESSED_PERCENT || disk.full => pressed,
            percent if percent >= HALF_PERCENT => half,
            _ => usual,
        })
    }

    /// Waiting for mail to leave by itself saves copies, but room is worth more when it is short.
    fn min_age(&self, disk: &DiskUse) -> u64 {
        match disk.percent {
            _ if disk.full => 0,
            percent if percent > PRESSED_PERCENT => self.config.min_age_ms / PRESSED_AGE_PART,
            _ => self.config.min_age_ms,
        }
    }

    /// The choice was taken.
    pub fn begun(&mut self, source: u64) {
        self.busy.insert(source);
    }

    /// Is it being collected?
    pub fn is_busy(&self, source: u64) -> bool {
        self.busy.contains(&source)
    }

    /// Its moves are durable, or it was given up.
    pub fn ended(&mut self, source: u64) {
        self.busy.remove(&source);
    }

    /// Something in it cannot be read.
    pub fn damaged(&mut self, source: u64, now_ms: u64) {
        self.damaged.insert(source);
        self.later.insert(source, now_ms + AGAIN_MS);
    }

    /// There was no room for what lives in it.
    pub fn no_room(&mut self, source: u64, now_ms: u64) {
        self.later.insert(source, now_ms + NO_ROOM_MS);
    }

    /// Segments with damage.
    pub fn damaged_segments(&self) -> usize {
        self.damaged.len()
    }

    /// Of the sealed segments that stay, the oldest's age by the reason, milliseconds.
    pub fn pinned(
        &self,
        now_ms: u64,
        segments: &[SegmentInfo],
        disk: &DiskUse,
    ) -> BTreeMap<&'static str, u64> {
        let mut oldest = BTreeMap::new();
        for segment in segments.iter().filter(|segment| segment.sealed) {
            let reason = self.reason(now_ms, segment, disk).unwrap_or("live");
            let age = self
                .sealed
                .get(&segment.id)
                .map_or(0, |at| now_ms.saturating_sub(*at));
            let entry = oldest.entry(reason).or_insert(0);
            *entry = age.max(*entry);
        }
        oldest
    }
}

/// Octets that copies of what lives would take.
pub fn copy_bytes(live: Option<SegmentLive>) -> u64 {
    live.map_or(0, |live| live.bytes + live.count * COPY_OVERHEAD)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: u64 = 1000 * COPY_OVERHEAD;

    fn segment(id: u64, generation: u32) -> SegmentInfo {
        SegmentInfo {
            id,
            generation,
            sealed: true,
            truncated: true,
            last: BTreeMap::new(),
        }
    }

    fn percent_lives(percent: u64) -> SegmentLive {
        SegmentLive {
            bytes: CAPACITY * percent / 100 - COPY_OVERHEAD,
            count: 1,
        }
    }

    fn disk(percent: u8) -> DiskUse {
        DiskUse {
            percent,
            full: percent > 95,
            ..DiskUse::default()
        }
    }

    fn chosen(percent: u8, lives: u64, age: u64) -> Option<u64> {
        let mut planner = Planner::new(CollectConfig::default(), CAPACITY);
        let segments = [segment(7, 0)];
        let live = [(7, percent_lives(lives))].into();
        planner.next(0, &segments, &live, &disk(percent));
        let choice = planner.next(age, &segments, &live, &disk(percent));
        choice.map(|choice| choice.source)
    }

    #[test]
    fn the_threshold_rises_with_the_disk_and_the_young_are_left_alone() {
        assert_eq!(chosen(10, 24, 60_000), Some(7));
        assert_eq!(chosen(10, 26, 60_000), None);
        assert_eq!(chosen(10, 24, 59_999), None, "young");
        assert_eq!(chosen(60, 49, 60_000), Some(7));
        assert_eq!(chosen(80, 51, 60_000), None);
        assert_eq!(chosen(81, 74, 2_000), Some(7), "a pressed disk waits less");
        assert_eq!(chosen(81, 76, 90_000), None);
        assert_eq!(chosen(96, 74, 0), Some(7), "a full one does not wait");
    }

    #[test]
    fn the_emptiest_goes_first_and_none_that_the_log_still_needs() {
        let mut planner = Planner::new(CollectConfig::default(), CAPACITY);
        let mut segments: Vec<_> = (1..=5).map(|id| segment(id, 0)).collect();
        segments[0].truncated = false;
        segments[1].sealed = false;
        segments[4].generation = 2;
        let live = [(1, 1), (2, 1), (3, 20), (4, 10), (5, 15)];
        let live = live
            .map(|(id, percent)| (id, percent_lives(percent)))
            .into();
        let next = |planner: &mut Planner, now| planner.next(now, &segments, &live, &disk(0));
        assert_eq!(next(&mut planner, 0), None);
        let mut order = Vec::new();
        while let Some(choice) = next(&mut planner, 60_000) {
            planner.begun(choice.source);
            order.push((choice.source, choice.generation));
        }
        assert_eq!(order, [(4, 1), (5, 3), (3, 1)]);
    }

    #[test]
    fn damage_in_one_segment_stops_nobody_else() {
        let mut planner = Planner::new(CollectConfig::default(), CAPACITY);
        let segments = [segment(1, 0), segment(2, 0)];
        let live = [(1, percent_lives(1)), (2, percent_lives(2))].into();
        let next = |planner: &mut Planner, now| {
            let choice = planner.next(now, &segments, &live, &disk(0));
            choice.map(|choice| choice.source)
        };
        next(&mut planner, 0);
        assert_eq!(next(&mut planner, 60_000), Some(1));
        planner.damaged(1, 60_000);
        assert_eq!(next(&mut planner, 60_001), Some(2));
        let pinned = planner.pinned(60_001, &segments, &disk(0));
        assert_eq!(pinned["damaged"], 60_001);
        assert_eq!(
            next(&mut planner, 60_000 + AGAIN_MS),
            Some(1),
            "tried again"
        );
    }
}
