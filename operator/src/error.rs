//! Why an object could not be brought to what is declared, and when to try again.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server did not answer, or refused.
    #[error("the API server: {0}")]
    Api(#[from] kube::Error),
    /// A certificate could not be made.
    #[error("{0}")]
    Pki(#[from] proto::pki::PkiError),
    /// What is in the Secret of a CA is none.
    #[error(
        "the Secret {0} holds no CA: restore it from a backup, or delete it to get a new CA, which all nodes take up by themselves \
         within a minute or two; until then those that have it and those that do not yet open no new connections to one another"
    )]
    BadCa(String),
    /// The queue did not answer, or refused.
    #[error("the queue: {0}")]
    Queue(String),
    /// The DNS cannot be asked.
    #[error("the DNS: {0}")]
    Dns(String),
    /// It is not done, and trying again changes nothing.
    #[error("{0}")]
    Refused(String),
    /// Another controller has to do something first.
    #[error("{0}")]
    NotYet(String),
    /// A bug of this program.
    #[error("{0}; this is a bug in the operator")]
    Internal(String),
    /// An object that this program made is none, by its own types.
    #[error("an object could not be written: {0}; this is a bug in the operator")]
    Object(#[from] serde_json::Error),
}

/// The first pause after an error.
const FIRST: Duration = Duration::from_secs(1);
/// The longest one.
const LONGEST: Duration = Duration::from_secs(60);

/// How often each object failed in a row: pauses double.
#[derive(Debug, Default)]
pub struct Backoff(Mutex<HashMap<String, u32>>);

impl Backoff {
    /// It failed: how long to wait. `chance`, from 0 to 1, spreads those that failed together.
    pub fn failed(&self, object: &str, chance: f64) -> Duration {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(object.to_owned()).or_default();
        let pause = FIRST.saturating_mul(1 << (*count).min(6)).min(LONGEST);
        *count = count.saturating_add(1);
        pause.mul_f64(0.75 + chance / 2.0)
    }

    /// It worked.
    pub fn worked(&self, object: &str) {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failures.remove(object);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute_and_begin_anew_after_a_success() {
        let backoff = Backoff::default();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            pauses.push(backoff.failed("a", 0.5).as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        backoff.worked("a");
        assert_eq!(backoff.failed("a", 0.5), FIRST);
        assert!(backoff.failed("b", 1.0) > backoff.failed("c", 0.0));
    }
}
