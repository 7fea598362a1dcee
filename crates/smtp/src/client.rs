//! The client side.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

mod types;

pub use types::{
    Answer, Config, Failure, Outcome, Output, Question, RecipientOutcome, Stage, Timeouts,
    Transaction, Verdict,
};

/// One SMTP session with a next hop.
#[derive(Debug)]
pub struct Session {
    config: Arc<Config>,
    now: Instant,
}

impl Session {
    /// We are connected.
    pub fn new(config: Arc<Config>, now: Instant) -> Session {
        Session { config, now }
    }

    /// What arrived, and when.
    pub fn feed(&mut self, _bytes: Bytes, now: Instant) {
        self.now = now;
    }

    /// The connection ended, by the peer or by an error: `reason` is for people.
    pub fn lost(&mut self, _reason: &str, now: Instant) {
        self.now = now;
    }

    /// What the driver brings.
    pub fn answer(&mut self, _answer: Answer, now: Instant) {
        self.now = now;
    }

    /// What time it is.
    pub fn tick(&mut self, now: Instant) {
        self.now = now;
    }

    /// What is to be done next.
    pub fn drain(&mut self) -> Output {
        Output::Wait(self.now + self.config.timeouts.greeting)
    }
}
