//! Cluster time: what due times are compared with. Decided by a leader, carried in each entry, never read from a wall
//! clock by the state machine.
//!
//! Within a term it follows the leader's monotonic clock. At an election the new leader starts from its own wall clock
//! when that agrees with the other voters', else from their median: one node with a lying clock cannot move the due
//! times of the cluster, and a quiet shard's mail still comes due, since gaps are not clamped.

use std::time::{Duration, Instant};

use queue::Timestamp;

/// How far a wall clock may be from the others', or from cluster time, before it is ignored and an alarm is raised.
pub const WALL_TOLERANCE: Duration = Duration::from_secs(60);

/// The clock of one leader's term.
#[derive(Debug, Clone)]
pub struct ClusterClock {
    base: u64,
    since: Instant,
    highest: u64,
    /// The wall clock is ignored.
    alarm: bool,
}

/// A wall clock that is ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WallIgnored {
    /// This node's wall clock, milliseconds since the epoch.
    pub own_ms: u64,
    /// What is used in its place.
    pub used_ms: u64,
}

impl ClusterClock {
    /// The clock of a new leader. `previous`: the highest cluster time applied; `others`: the other voters' wall
    /// clocks, in milliseconds since the epoch, as far as they are known.
    pub fn elected(
        previous: Timestamp,
        own_ms: u64,
        others: &[u64],
        now: Instant,
    ) -> (Self, Option<WallIgnored>) {
        let mut all: Vec<u64> = others.iter().copied().chain([own_ms]).collect();
        all.sort_unstable();
        // Of an even count the lower one: a clock that runs ahead would expire mail, and time never goes back.
        let median = all[(all.len() - 1) / 2];
        let tolerance = WALL_TOLERANCE.as_millis() as u64;
        let (wall, ignored) = if own_ms.abs_diff(median) <= tolerance {
            (own_ms, None)
        } else {
            (
                median,
                Some(WallIgnored {
                    own_ms,
                    used_ms: median,
                }),
            )
        };
        let base = wall.max(previous.0);
        (
            ClusterClock {
                base,
                since: now,
                highest: base,
                alarm: ignored.is_some(),
            },
            ignored,
        )
    }

    /// Cluster time now. Never goes back.
    pub fn now(&mut self, now: Instant) -> Timestamp {
        let elapsed = now.saturating_duration_since(self.since).as_millis() as u64;
        self.highest = self.highest.max(self.base + elapsed);
        Timestamp(self.highest)
    }
}

impl ClusterClock {
    /// Compares the wall clock with cluster time, which does not follow it within a term. `None`: nothing changed since
    /// the last call; `Some(None)`: they agree again.
    pub fn check(&mut self, own_ms: u64, now: Instant) -> Option<Option<WallIgnored>> {
        let used_ms = self.now(now).0;
        let off = own_ms.abs_diff(used_ms) > WALL_TOLERANCE.as_millis() as u64;
        if off == self.alarm {
            return None;
        }
        self.alarm = off;
        Some(off.then_some(WallIgnored { own_ms, used_ms }))
    }
}

/// Tells people that the wall clock is ignored, or that it is right again; once for each change.
pub(super) fn say(group: u32, ignored: Option<&WallIgnored>) {
    let gauge = metrics::gauge!("postroad_clock_ignored", "group" => group.to_string());
    gauge.set(f64::from(u8::from(ignored.is_some())));
    if let Some(ignored) = ignored {
        tracing::error!(
            group,
            own_ms = ignored.own_ms,
            used_ms = ignored.used_ms,
            "the wall clock of this node is more than a minute from cluster time and is ignored; set it right (NTP)"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    #[test]
    fn follows_the_monotonic_clock_from_the_own_wall() {
        let t0 = Instant::now();
        let (mut clock, ignored) =
            ClusterClock::elected(Timestamp(0), 10 * HOUR, &[10 * HOUR + 50], t0);
        assert_eq!(ignored, None);
        assert_eq!(
            clock.now(t0 + Duration::from_secs(3)),
            Timestamp(10 * HOUR + 3_000)
        );
        assert_eq!(
            clock.now(t0),
            Timestamp(10 * HOUR + 3_000),
            "it never goes back"
        );
    }

    #[test]
    fn a_lying_wall_clock_is_outvoted() {
        let t0 = Instant::now();
        let (mut clock, ignored) =
            ClusterClock::elected(Timestamp(0), 99 * HOUR, &[10 * HOUR, 10 * HOUR + 7], t0);
        assert_eq!(
            ignored,
            Some(WallIgnored {
                own_ms: 99 * HOUR,
                used_ms: 10 * HOUR + 7
            })
        );
        assert_eq!(clock.now(t0), Timestamp(10 * HOUR + 7));
    }

    #[test]
    fn of_two_clocks_the_one_that_runs_ahead_does_not_win() {
        let t0 = Instant::now();
        let six_days_ahead = 10 * HOUR + 144 * HOUR;
        let (mut clock, ignored) =
            ClusterClock::elected(Timestamp(0), six_days_ahead, &[10 * HOUR], t0);
        assert!(ignored.is_some());
        assert_eq!(clock.now(t0), Timestamp(10 * HOUR));
    }

    #[test]
    fn time_that_was_applied_is_never_undercut() {
        let t0 = Instant::now();
        let (mut clock, _) = ClusterClock::elected(Timestamp(11 * HOUR), 10 * HOUR, &[], t0);
        assert_eq!(clock.now(t0), Timestamp(11 * HOUR));
    }

    #[test]
    fn a_quiet_shard_comes_due_after_any_gap() {
        let t0 = Instant::now();
        let (mut clock, _) = ClusterClock::elected(Timestamp(HOUR), 200 * HOUR, &[], t0);
        assert_eq!(clock.now(t0), Timestamp(200 * HOUR));
    }

    #[test]
    fn a_wall_clock_that_jumps_within_a_term_raises_one_alarm_and_moves_nothing() {
        let t0 = Instant::now();
        let (mut clock, _) = ClusterClock::elected(Timestamp(0), 10 * HOUR, &[], t0);
        let after = |s| t0 + Duration::from_secs(s);
        assert_eq!(clock.check(10 * HOUR + 59_000, t0), None, "within a minute");
        let jumped = WallIgnored {
            own_ms: 12 * HOUR,
            used_ms: 10 * HOUR + 1_000,
        };
        assert_eq!(clock.check(12 * HOUR, after(1)), Some(Some(jumped)));
        assert_eq!(clock.check(12 * HOUR, after(2)), None, "it is said once");
        assert_eq!(clock.now(after(3)), Timestamp(10 * HOUR + 3_000));
        assert_eq!(clock.check(10 * HOUR, after(4)), Some(None), "right again");
    }
}
