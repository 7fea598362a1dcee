//! Content: from the 354 to the answer after the final dot (RFC 5321 section 4.1.1.4).

use std::sync::Arc;
use std::time::{Duration, Instant};

use mail::Reply;
use mail::header::HeaderScanner;

use crate::dot::Decoder;
use crate::limits;
use crate::server::{Answer, Commit, Config, Output, Question, Session, State};

/// What is known while content comes in.
#[derive(Debug)]
pub(super) struct Content {
    decoder: Decoder,
    scanner: HeaderScanner,
    /// The header block is above its limit.
    header_too_large: bool,
    /// Octets above 127 came.
    eight_bit: bool,
    /// Octets without dot-stuffing, those that were thrown away too.
    size: u64,
    /// Why the message will be refused at its end; the rest is thrown away, but still measured: of two reasons that one is
    /// given which the whole message has, and not the one that its packets showed first.
    refused: Option<Reply>,
    discarded: u64,
    begun: Instant,
    heard: Instant,
}

impl Content {
    pub(super) fn new(now: Instant, config: &Config) -> Content {
        Content {
            decoder: Decoder::default(),
            scanner: HeaderScanner::new(config.header_bytes_max),
            header_too_large: false,
            eight_bit: false,
            size: 0,
            refused: None,
            discarded: 0,
            begun: now,
            heard: now,
        }
    }

    /// Input came.
    pub(super) fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    pub(super) fn deadline(&self, config: &Config) -> Instant {
        (self.heard + config.timeout).min(self.rate_deadline(config))
    }

    /// The reply that ends the session, if it is time for one.
    pub(super) fn overdue(&self, now: Instant, config: &Config) -> Option<Reply> {
        if now >= self.heard + config.timeout {
            Some(Reply::timeout())
        } else if now >= self.rate_deadline(config) {
            Some(Reply::too_slow())
        } else {
            None
        }
    }

    /// When so little content will be too slow.
    fn rate_deadline(&self, config: &Config) -> Instant {
        let earned = self.size / config.content_rate_min.max(1);
        self.begun + limits::CONTENT_GRACE + Duration::from_secs(earned)
    }

    /// Looks at all that was decoded; a reason to refuse the message. What was one stays one, for each measure only grows.
    fn check(&self, config: &Config) -> Option<Reply> {
        if self.header_too_large {
            Some(Reply::header_too_large())
        } else if self.size > config.message_bytes_max {
            // RFC 1870 6.3: also while reading, whatever was declared.
            Some(Reply::too_large())
        } else if self.scanner.received() > config.received_max {
            Some(Reply::too_many_hops())
        } else if self.decoder.longest_line() > config.text_line_bytes_max {
            Some(Reply::text_line_too_long())
        } else {
            None
        }
    }
}

impl Session {
    /// Takes what there is of content.
    pub(super) fn step_content(&mut self) -> bool {
        let State::Content(content) = &mut self.state else {
            return false;
        };
        let Content {
            decoder,
            scanner,
            header_too_large,
            eight_bit,
            size,
            refused,
            discarded,
            ..
        } = &mut **content;
        let pending = &mut self.pending;
        let before = pending.len();
        let ended = decoder.run(&mut self.input, |piece| {
            *size += piece.len() as u64;
            *header_too_large = *header_too_large || scanner.push(&piece).is_err();
            if refused.is_some() {
                *discarded += piece.len() as u64;
                return;
            }
            *eight_bit |= !piece.is_ascii();
            pending.push_back(Output::Body(piece));
        });
        let Ok(ended) = ended else {
            // Nothing that follows can be trusted to be a command.
            self.pending.truncate(before);
            self.say_and_close(Reply::bare_line_ending());
            return true;
        };
        let was_refused = content.refused.is_some();
        content.refused = content.check(&self.config);
        if content.refused.is_some() && !was_refused {
            self.pending.truncate(before);
            self.forget();
        }
        self.content_so_far(ended);
        true
    }

    fn content_so_far(&mut self, ended: bool) {
        let State::Content(content) = &mut self.state else {
            return;
        };
        let refused = content.refused.clone();
        match (refused, ended) {
            (Some(reply), true) => {
                self.state = State::Command;
                self.waiting_since = self.now;
                self.refuse(reply);
            }
            (Some(reply), false) if content.discarded > limits::DISCARDED_BYTES_MAX => {
                self.say_and_close(reply)
            }
            (None, true) => self.ask_commit(),
            (_, false) => {}
        }
    }

    fn ask_commit(&mut self) {
        let State::Content(content) = std::mem::replace(&mut self.state, State::Committing) else {
            return;
        };
        let Some(envelope) = self.envelope.clone() else {
            return;
        };
        self.flush();
        self.pending.push_back(Output::Ask(Question::Commit(Commit {
            envelope: Arc::new(envelope),
            size: content.size,
            eight_bit: content.eight_bit,
            header: content.scanner.finish(),
        })));
    }

    /// The answer to a commit; the state is Command again. The transaction is over in any case, and the driver knows.
    pub(super) fn commit_answered(&mut self, answer: Answer) {
        self.envelope = None;
        match answer {
            Answer::Committed(reply) => {
                self.counts.errors = 0;
                self.counts.idle_commands = 0;
                self.say(&reply);
            }
            Answer::Refuse(reply) => self.refuse(reply),
            // A 250 is said only for a commit.
            _ => self.refuse(Reply::try_again()),
        }
    }
}
