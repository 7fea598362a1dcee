//! The scrubber: reads all sealed segments, slowly, again and again, so that damage is found while other replicas still
//! have what it hit (queue.md 4.6).

use std::io;

use super::Pace;
use crate::log::{Found, Segments, Walk};

/// About 1 % of what a disk of a server reads, octets a second.
pub const RATE: u64 = 2 << 20;

/// A pass over everything shall take no longer, seconds; a store so large that [`RATE`] does not suffice is read faster.
const PASS_MAX_SECONDS: u64 = 14 * 86_400;

/// A small store is not read again and again all day: a pass takes at least this long, seconds.
const PASS_MIN_SECONDS: u64 = 86_400;

/// Octets that one step reads: a few milliseconds of a disk's time.
pub const STEP_BYTES: u64 = 256 << 10;

/// Pause when there is nothing to read, microseconds.
const IDLE_US: u64 = 1_000_000;

/// Where the scrubber is.
#[derive(Debug, Default)]
pub struct Scrub {
    walk: Option<(u64, Walk)>,
    /// The last segment that was begun.
    last: Option<u64>,
    /// Damage was met in the present segment.
    suspicious: bool,
    pace: Pace,
    /// Octets read since the start.
    pub read_bytes: u64,
    /// Passes ended since the start.
    pub passes: u64,
}

impl Scrub {
    /// Reads a little. Gives the segment in which something does not pass its checksum, or that the device does not give
    /// back, at that segment's end: what was hit is for [`super::Collector::suspect`] to find out.
    pub fn step(&mut self, segments: &Segments, segment_bytes: u64, now_us: u64) -> Option<u64> {
        let sealed: Vec<u64> = segments
            .list()
            .iter()
            .filter(|segment| segment.sealed)
            .map(|segment| segment.id)
            .collect();
        let total = (sealed.len() as u64 * segment_bytes).max(1);
        let rate = (total / PASS_MIN_SECONDS)
            .min(RATE)
            .max(total / PASS_MAX_SECONDS);
        let Some((id, mut walk)) = self.walk.take() else {
            let suspect = self.begin(segments, &sealed);
            if self.walk.is_none() {
                // The end of a pass, or nothing is sealed: without a pause this would be a loop that never sleeps.
                self.pace.pause(IDLE_US, now_us);
            }
            return suspect;
        };
        if !sealed.contains(&id) {
            // It was given back, and its file is another segment by now: a pass over a store takes a day.
            self.suspicious = false;
            return None;
        }
        let from = walk.offset();
        let mut ended = false;
        let mut left = STEP_BYTES;
        let suspicious = &mut self.suspicious;
        let gone = walk.go(|found| {
            match found {
                Found::End => ended = true,
                Found::Gap => *suspicious = true,
                Found::Entry {
                    location, intact, ..
                } => {
                    *suspicious |= !intact;
                    let len = u64::from(location.context_len) + u64::from(location.data_len);
                    left = left.saturating_sub(len);
                }
            }
            !ended && left > 0
        });
        // While it was read, too.
        let stands = segments.list().iter().any(|segment| segment.id == id);
        if let Err(error) = gone {
            // The rest of it is read by the rows that name it, one body at a time.
            unreadable(id, &error);
            (self.suspicious, ended) = (true, true);
        }
        let read = walk.offset().saturating_sub(from);
        self.read_bytes += read;
        self.pace.did(read, rate, now_us);
        if !ended {
            self.walk = Some((id, walk));
            return None;
        }
        let suspicious = std::mem::take(&mut self.suspicious);
        (suspicious && stands).then_some(id)
    }

    /// The next segment; one that cannot even be opened is suspect.
    fn begin(&mut self, segments: &Segments, sealed: &[u64]) -> Option<u64> {
        let next = sealed
            .iter()
            .find(|id| self.last.is_none_or(|last| **id > last));
        let Some(&next) = next else {
            self.passes += u64::from(self.last.is_some());
            self.last = None;
            return None;
        };
        self.last = Some(next);
        self.suspicious = false;
        match Walk::begin_on_device(segments, next) {
            Ok(walk) => {
                self.walk = walk.map(|walk| (next, walk));
                None
            }
            Err(error) => {
                unreadable(next, &error);
                Some(next)
            }
        }
    }

    /// How long until the next step.
    pub fn wait(&self, now_us: u64) -> std::time::Duration {
        self.pace.wait(now_us)
    }
}

fn unreadable(segment: u64, error: &io::Error) {
    tracing::error!(segment, %error, "the scrubber cannot read a segment of the log: look at the disk");
}
