//! How fast something may go: octets a second, without bursts after a pause.

use std::time::Duration;

/// Says when the next step may begin.
#[derive(Debug, Default)]
pub struct Pace {
    free_at_us: u64,
}

impl Pace {
    /// `octets` were done at `now_us`, and `rate` octets a second are allowed.
    pub fn did(&mut self, octets: u64, rate: u64, now_us: u64) {
        let takes = octets.saturating_mul(1_000_000) / rate.max(1);
        self.free_at_us = self.free_at_us.max(now_us) + takes;
    }

    /// Nothing before so long after `now_us`.
    pub fn pause(&mut self, microseconds: u64, now_us: u64) {
        self.free_at_us = self.free_at_us.max(now_us + microseconds);
    }

    /// How long until the next step may begin.
    pub fn wait(&self, now_us: u64) -> Duration {
        Duration::from_micros(self.free_at_us.saturating_sub(now_us))
    }

    /// What was done counts no longer.
    pub fn forgive(&mut self) {
        self.free_at_us = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_holds_and_a_pause_earns_nothing() {
        let mut pace = Pace::default();
        assert_eq!(pace.wait(5), Duration::ZERO);
        pace.did(1_000, 1_000_000, 0);
        pace.did(1_000, 1_000_000, 0);
        assert_eq!(pace.wait(0), Duration::from_micros(2_000));
        pace.did(1_000, 1_000_000, 1_000_000);
        assert_eq!(pace.wait(1_000_000), Duration::from_micros(1_000));
    }
}
