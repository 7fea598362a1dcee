//! When a deferred item is tried again, or given up. Pure; run by the leader, never by `apply`, so that a policy can
//! change while a cluster runs and replicas of two versions still agree.
//!
//! RFC 5321 4.5.4.1: "the sender MUST delay retrying a particular destination after one attempt has failed", at least
//! 30 minutes in general; "the give-up time generally needs to be at least 4-5 days". The first retries come sooner here,
//! because most deferrals of today are greylisting (RFC 6647), which the same clause allows by "more sophisticated and
//! variable strategies".

use crate::Timestamp;

const MINUTE_MS: u64 = 60 * 1000;
const HOUR_MS: u64 = 60 * MINUTE_MS;

/// Longest lifetime that a policy may give, ms: 30 days.
pub const LIFETIME_MS_MAX: u64 = 30 * 24 * HOUR_MS;

/// Shortest delay that a policy may give, ms: what hammers a host harder gets blocked by it.
pub const DELAY_MS_MIN: u64 = 1000;

/// How often and how long an item is tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Delay after the first attempt that reached a host, ms.
    pub first_ms: u64,
    /// Each delay is twice the one before, up to this, ms.
    pub max_ms: u64,
    /// Delay after the first attempt that reached no host, ms: it costs nobody anything, and the network may be back.
    pub unreached_first_ms: u64,
    /// As `max_ms`, for attempts that reached no host.
    pub unreached_max_ms: u64,
    /// Least delay after an attempt that may have been taken (the connection was lost after the final dot), ms. Each retry
    /// of it can deliver twice.
    pub ambiguous_ms: u64,
    /// Delays differ from the schedule by up to this, per cent, so that what failed together does not come back together.
    pub jitter_percent: u8,
    /// Cluster time from Append to giving up, ms.
    pub lifetime_ms: u64,
    /// Cluster time from Append to the notice of delay, ms; `None`: no notice.
    pub notice_ms: Option<u64>,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            first_ms: 5 * MINUTE_MS,
            max_ms: 4 * HOUR_MS,
            unreached_first_ms: MINUTE_MS,
            unreached_max_ms: HOUR_MS,
            ambiguous_ms: 30 * MINUTE_MS,
            jitter_percent: 10,
            // RFC 5321 4.5.4.1: at least 4 to 5 days.
            lifetime_ms: 120 * HOUR_MS,
            notice_ms: Some(4 * HOUR_MS),
        }
    }
}

/// A policy that cannot be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PolicyError {
    /// A first delay is too short.
    #[error("the first delay of a retry is {0} ms; give at least {DELAY_MS_MIN} ms")]
    DelayTooShort(u64),
    /// A longest delay is below its first.
    #[error("the longest delay of a retry ({max} ms) is below the first ({first} ms); raise it")]
    MaxBelowFirst {
        /// First delay, ms.
        first: u64,
        /// Longest delay, ms.
        max: u64,
    },
    /// Jitter that could make a delay nothing.
    #[error("a jitter of {0} % is too much; give at most 50 %")]
    Jitter(u8),
    /// Lifetime out of bounds.
    #[error(
        "a lifetime of {0} ms is out of bounds; give more than the first delay and at most {LIFETIME_MS_MAX} ms"
    )]
    Lifetime(u64),
}

impl Policy {
    /// Finds what cannot be meant.
    ///
    /// # Errors
    /// The first field that is out of bounds.
    pub fn validate(&self) -> Result<(), PolicyError> {
        for (first, max) in [
            (self.first_ms, self.max_ms),
            (self.unreached_first_ms, self.unreached_max_ms),
        ] {
            if first < DELAY_MS_MIN {
                return Err(PolicyError::DelayTooShort(first));
            }
            if max < first {
                return Err(PolicyError::MaxBelowFirst { first, max });
            }
        }
        if self.jitter_percent > 50 {
            return Err(PolicyError::Jitter(self.jitter_percent));
        }
        if self.lifetime_ms <= self.first_ms || self.lifetime_ms > LIFETIME_MS_MAX {
            return Err(PolicyError::Lifetime(self.lifetime_ms));
        }
        Ok(())
    }

    /// When a message that is appended now expires.
    pub fn expires(&self, now: Timestamp) -> Timestamp {
        now.plus(self.lifetime_ms)
    }

    /// When the sender of a message that is appended now is told of a delay.
    pub fn notice(&self, now: Timestamp) -> Option<Timestamp> {
        self.notice_ms
            .map(|ms| now.plus(ms))
            .filter(|notice| *notice < self.expires(now))
    }

    /// The retry time for a lease session's lost items after the first loss (see [`crate::Command::ExpireSession`]).
    pub fn lost(&self, now: Timestamp, jitter: f64) -> Timestamp {
        now.plus(self.spread(self.first_ms, jitter))
    }

    /// What lies at least between an attempt like this one and a retry that is drawn back to expiry: the first delay of its
    /// schedule. No more than half the lifetime, so that a first delay of nearly all of it leaves a second attempt.
    fn least_ms(&self, history: History) -> u64 {
        let first = match history.unreached {
            0 => self.first_ms,
            _ => self.unreached_first_ms,
        };
        let least = match history.ambiguous {
            true => first.max(self.ambiguous_ms),
            false => first,
        };
        least.min(self.lifetime_ms / 2)
    }

    fn spread(&self, delay_ms: u64, jitter: f64) -> u64 {
        let jitter = if jitter.is_finite() {
            jitter.clamp(-1.0, 1.0)
        } else {
            0.0
        };
        let part = delay_ms as f64 * f64::from(self.jitter_percent.min(100)) / 100.0;
        // Below 2^53 for any valid policy, so the conversions lose nothing that matters; casts saturate.
        (delay_ms as f64 + part * jitter) as u64
    }
}

/// What was tried, the attempt that just ended included.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct History {
    /// Attempts that reached a host.
    pub attempts: u32,
    /// Attempts in a row that reached none; 0 after one that did.
    pub unreached: u32,
    /// The attempt that just ended lost its connection after the final dot.
    pub ambiguous: bool,
}

/// The decision.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Due again then.
    Retry(Timestamp),
    /// The rest fails now.
    GiveUp,
}

/// Decides what becomes of an item's open recipients. `jitter`, drawn by the caller, is in -1.0 ..= 1.0.
///
/// The last attempt is made when the item expires, not before: a retry that would come later is drawn back to
/// `expires`, unless that is less than the first delay away. Then the attempt that just ended was the last: another one so
/// soon would only find what it found.
pub fn next(
    policy: &Policy,
    history: History,
    now: Timestamp,
    expires: Timestamp,
    jitter: f64,
) -> Next {
    if now >= expires {
        return Next::GiveUp;
    }
    let delay = if history.unreached > 0 {
        doubled(
            policy.unreached_first_ms,
            history.unreached,
            policy.unreached_max_ms,
        )
    } else {
        doubled(policy.first_ms, history.attempts, policy.max_ms)
    };
    let delay = if history.ambiguous {
        delay.max(policy.ambiguous_ms)
    } else {
        delay
    };
    let at = now.plus(policy.spread(delay, jitter).max(1));
    if at <= expires {
        Next::Retry(at)
    } else if now.plus(policy.least_ms(history)) <= expires {
        Next::Retry(expires)
    } else {
        Next::GiveUp
    }
}

/// The delay after the `nth` attempt.
fn doubled(first_ms: u64, nth: u32, max_ms: u64) -> u64 {
    let doublings = nth.saturating_sub(1).min(32);
    first_ms.saturating_mul(1 << doublings).min(max_ms)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn delays(policy: &Policy, history: impl Fn(u32) -> History) -> Vec<u64> {
        let far = Timestamp(u64::MAX);
        (1..9)
            .map(|n| match next(policy, history(n), Timestamp(0), far, 0.0) {
                Next::Retry(at) => at.0 / MINUTE_MS,
                Next::GiveUp => 0,
            })
            .collect()
    }

    #[test]
    fn delays_double_from_five_minutes_to_four_hours() {
        let reached = |attempts| History {
            attempts,
            ..History::default()
        };
        assert_eq!(
            delays(&Policy::default(), reached),
            [5, 10, 20, 40, 80, 160, 240, 240]
        );
    }

    #[test]
    fn hosts_that_are_not_reached_are_tried_sooner_on_a_schedule_of_their_own() {
        let unreached = |unreached| History {
            attempts: 7,
            unreached,
            ambiguous: false,
        };
        assert_eq!(
            delays(&Policy::default(), unreached),
            [1, 2, 4, 8, 16, 32, 60, 60]
        );
    }

    #[test]
    fn an_ambiguous_end_waits_longer() {
        let ambiguous = |attempts| History {
            attempts,
            unreached: 0,
            ambiguous: true,
        };
        assert_eq!(
            delays(&Policy::default(), ambiguous),
            [30, 30, 30, 40, 80, 160, 240, 240]
        );
    }

    #[test]
    fn the_last_attempt_is_at_expiry_and_then_it_gives_up() {
        let policy = Policy::default();
        let history = History {
            attempts: 30,
            ..History::default()
        };
        let expires = Timestamp(policy.lifetime_ms);
        let near = Timestamp(policy.lifetime_ms - HOUR_MS);
        assert_eq!(
            next(&policy, history, near, expires, 0.5),
            Next::Retry(expires)
        );
        assert_eq!(next(&policy, history, expires, expires, 0.5), Next::GiveUp);
    }

    /// An attempt 1 ms before expiry was repeated 1 ms later.
    #[test]
    fn a_retry_is_not_drawn_back_to_an_expiry_that_is_nearer_than_the_first_delay() {
        let policy = Policy::default();
        let reached = History {
            attempts: 30,
            ..History::default()
        };
        let unreached = History {
            unreached: 9,
            ..reached
        };
        let ambiguous = History {
            ambiguous: true,
            ..reached
        };
        let expires = Timestamp(policy.lifetime_ms);
        for (history, least_ms) in [
            (reached, policy.first_ms),
            (unreached, policy.unreached_first_ms),
            (ambiguous, policy.ambiguous_ms),
        ] {
            let at = |left_ms: u64| {
                let now = Timestamp(policy.lifetime_ms - left_ms);
                next(&policy, history, now, expires, 0.0)
            };
            assert_eq!(at(least_ms), Next::Retry(expires), "{history:?}");
            assert_eq!(at(least_ms - 1), Next::GiveUp, "{history:?}");
            assert_eq!(at(1), Next::GiveUp, "{history:?}");
        }
    }

    #[test]
    fn a_first_delay_as_long_as_the_lifetime_leaves_a_second_attempt() {
        let policy = Policy {
            first_ms: HOUR_MS,
            lifetime_ms: HOUR_MS,
            ..Policy::default()
        };
        let first = History {
            attempts: 1,
            ..History::default()
        };
        let (now, expires) = (Timestamp(MINUTE_MS), Timestamp(HOUR_MS));
        assert_eq!(
            next(&policy, first, now, expires, 0.0),
            Next::Retry(expires)
        );
    }

    #[test]
    fn the_defaults_are_valid_and_nonsense_is_told() {
        let policy = Policy::default();
        assert_eq!(policy.validate(), Ok(()));
        assert_eq!(
            Policy {
                first_ms: 5,
                ..policy
            }
            .validate(),
            Err(PolicyError::DelayTooShort(5))
        );
        assert_eq!(
            Policy {
                jitter_percent: 90,
                ..policy
            }
            .validate(),
            Err(PolicyError::Jitter(90))
        );
        assert_eq!(
            Policy {
                lifetime_ms: 0,
                ..policy
            }
            .validate(),
            Err(PolicyError::Lifetime(0))
        );
        let crossed = Policy {
            max_ms: MINUTE_MS,
            ..policy
        };
        assert_eq!(
            crossed.validate(),
            Err(PolicyError::MaxBelowFirst {
                first: policy.first_ms,
                max: MINUTE_MS
            })
        );
    }

    proptest! {
        #[test]
        fn a_retry_is_later_than_now_and_within_its_jitter(
            attempts: u32, unreached in 0u32..9, ambiguous: bool, now in 0u64..1 << 50,
            left in prop_oneof![1..HOUR_MS, 1u64..1 << 40], jitter: f64,
        ) {
            let policy = Policy::default();
            let history = History { attempts, unreached, ambiguous };
            let least = policy.least_ms(history);
            let (now, expires) = (Timestamp(now), Timestamp(now + left));
            match next(&policy, history, now, expires, jitter) {
                Next::Retry(at) => {
                    prop_assert!(at <= expires);
                    // 1 ms, because part of one is cut off.
                    prop_assert!(at.0 - now.0 >= least - least / 10 - 1);
                    prop_assert!(at.0 - now.0 <= policy.max_ms + policy.max_ms / 10);
                }
                Next::GiveUp => prop_assert!(left < least, "gave up before expiry"),
            }
        }
    }
}
