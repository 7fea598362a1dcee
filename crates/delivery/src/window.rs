//! How many connections a site gets at once, learned from what happens to them. Pure.
//!
//! Postfix's idea: success opens the window slowly (a full window of successes adds one connection), a connection
//! failure closes it at once by one, and when a window's worth of failures in a row brought nothing, the site is dead for
//! a while. Replies to a transaction say nothing of the site's capacity and do not count: a 550 for a mailbox is a
//! success of the connection that brought it.

use std::time::Duration;

/// Connections that a new site may get at once.
pub(crate) const WINDOW_START: u32 = 20;
/// Failures in a row, whatever the window, after which a site is dead: one host's refusals, not one unlucky route.
const FAILURES_DEAD_MAX: u32 = 5;
/// How long a site is left alone after it died the first time; doubles each further time.
const BACKOFF_MIN: Duration = Duration::from_secs(15);
/// The longest that a site is left alone: it is found again within this time once it answers.
const BACKOFF_MAX: Duration = Duration::from_secs(600);
/// Successes are counted in parts of a connection, so that integers do.
const PART: u32 = 1 << 10;

/// One site's window.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    /// In [`PART`]s of a connection; never below one whole.
    size: u32,
    limit: u32,
    failures_in_a_row: u32,
    deaths_in_a_row: u32,
}

impl Window {
    /// A new site's window; `limit` is the most connections that settings allow (at least one is).
    pub(crate) fn new(limit: u32) -> Window {
        let limit = limit.clamp(1, u32::MAX / PART);
        Window {
            size: WINDOW_START.min(limit) * PART,
            limit,
            failures_in_a_row: 0,
            deaths_in_a_row: 0,
        }
    }

    /// Connections allowed now.
    pub(crate) fn connections(&self) -> u32 {
        self.size / PART
    }

    /// A transaction came to its end on a live connection.
    pub(crate) fn succeeded(&mut self) {
        self.failures_in_a_row = 0;
        self.deaths_in_a_row = 0;
        self.size = (self.size + PART / self.connections().max(1)).min(self.limit * PART);
    }

    /// No host of the site could be reached. `chance` (0 to 255) spreads the back-off over ±12 %. Says for how long
    /// the site is dead, when it is.
    pub(crate) fn failed(&mut self, chance: u8) -> Option<Duration> {
        let cohort = self.connections().min(FAILURES_DEAD_MAX);
        self.size = self.size.saturating_sub(PART).max(PART);
        self.failures_in_a_row += 1;
        if self.failures_in_a_row < cohort {
            return None;
        }
        self.failures_in_a_row = 0;
        // The first connection after the pause is a probe: one is enough to learn that the site is still dead.
        self.size = PART;
        let doubled = BACKOFF_MIN.saturating_mul(1 << self.deaths_in_a_row.min(16));
        self.deaths_in_a_row = self.deaths_in_a_row.saturating_add(1);
        let pause = doubled.min(BACKOFF_MAX);
        Some(pause * (256 - 32 + u32::from(chance) / 4) / 256)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_of_successes_adds_about_one_and_the_limit_holds() {
        let mut window = Window::new(30);
        assert_eq!(window.connections(), 20);
        for _ in 0..22 {
            window.succeeded();
        }
        assert_eq!(window.connections(), 21);
        for _ in 0..10_000 {
            window.succeeded();
        }
        assert_eq!(window.connections(), 30);
    }

    #[test]
    fn one_failure_undoes_a_window_of_successes() {
        let mut window = Window::new(100);
        assert_eq!(window.failed(128), None);
        assert_eq!(window.connections(), 19);
    }

    #[test]
    fn a_dead_site_is_left_alone_longer_each_time_and_comes_back_with_one_success() {
        let mut window = Window::new(20);
        let first = (0..FAILURES_DEAD_MAX)
            .find_map(|_| window.failed(128))
            .expect("dead after a cohort");
        assert_eq!(first, BACKOFF_MIN);
        assert_eq!(window.connections(), 1);
        // A single probe decides from now on.
        assert_eq!(window.failed(128), Some(BACKOFF_MIN * 2));
        for _ in 0..20 {
            assert!(window.failed(255).expect("still dead") <= BACKOFF_MAX * 9 / 8);
        }
        window.succeeded();
        assert_eq!(window.connections(), 2);
        assert_eq!(
            window.failed(128),
            None,
            "one failure after a success kills no site"
        );
    }
}
