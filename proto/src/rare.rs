//! Log lines that others can cause as often as they like: one in a while is written, with how many there were since.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets one of many pass.
#[derive(Debug)]
pub struct Rare {
    every: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    last: Option<Instant>,
    withheld: u64,
}

impl Rare {
    /// One in `every`.
    pub const fn new(every: Duration) -> Rare {
        let state = State {
            last: None,
            withheld: 0,
        };
        Rare {
            every,
            state: Mutex::new(state),
        }
    }

    /// Whether to write now, and how many were withheld since the last one that was written.
    pub fn pass(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state
            .last
            .is_some_and(|last| now.saturating_duration_since(last) < self.every)
        {
            state.withheld += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.withheld))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_a_while_passes_and_says_how_many_did_not() {
        let rare = Rare::new(Duration::from_secs(10));
        let t0 = Instant::now();
        let at = |seconds| rare.pass(t0 + Duration::from_secs(seconds));
        assert_eq!(at(0), Some(0));
        assert_eq!((at(1), at(9)), (None, None));
        assert_eq!(at(10), Some(2));
        assert_eq!(at(11), None);
        assert_eq!(at(30), Some(1));
    }
}
