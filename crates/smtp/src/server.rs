//! The server side.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

mod types;

pub use types::{Answer, Commit, Config, MailFacts, Output, Question};

/// One SMTP session with a client.
#[derive(Debug)]
pub struct Session {
    config: Arc<Config>,
    now: Instant,
}

impl Session {
    /// A client connected.
    pub fn new(config: Arc<Config>, now: Instant) -> Session {
        Session { config, now }
    }

    /// What arrived, and when.
    pub fn feed(&mut self, _bytes: Bytes, now: Instant) {
        self.now = now;
    }

    /// What the outside decided.
    pub fn answer(&mut self, _answer: Answer, now: Instant) {
        self.now = now;
    }

    /// What time it is.
    pub fn tick(&mut self, now: Instant) {
        self.now = now;
    }

    /// What is to be done next.
    pub fn drain(&mut self) -> Output {
        Output::Wait(self.now + self.config.timeout)
    }

    /// Whether the driver should read from the connection now.
    pub fn wants_read(&self) -> bool {
        false
    }

    /// What the client called itself in EHLO or HELO; `None` before.
    pub fn helo(&self) -> Option<&str> {
        None
    }

    /// The protocol for the `Received` field, with what the present transaction declared.
    pub fn protocol(&self) -> mail::trace::Protocol {
        mail::trace::Protocol::default()
    }
}
