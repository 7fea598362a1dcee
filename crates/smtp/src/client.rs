//! The client side: input, answers, output, deadlines. Replies are judged in `replies`, a transaction's content and results
//! are in `transaction`.
//!
//! ```text
//! Talking ──► Idle ── Send ──► Talking ── 354 ──► Content ── last ──► AtDot ── Proceed ──► Talking
//!    ▲         │ Quit                              │ Abort              │ Abort              │ Done
//!    │         ▼                                   ▼                    ▼                    ▼
//!    └─────► Closed ◄──────────────────────────────┴────────────────────┘                  Idle
//! ```
//!
//! Before the first Idle may come STARTTLS (RFC 3207): Securing until the handshake is done, then EHLO again, for nothing of what
//! was said in clear counts (section 4.2), least of all what came behind the reply to the command (CVE-2011-0411).
//!
//! Commands wait in one queue, replies that are on their way in another; with PIPELINING (RFC 2920) the whole queue of
//! commands goes out at once, without it one by one. That is the only difference.
//!
//! # Diagnostics
//! What a peer does wrong ends in an [`Outcome`] or a [`Failure`]; nothing it sends ends more than its own session.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use mail::code::report;
use mail::{EnhancedCode, ReplyParser};

use crate::extension::Extensions;
use crate::limits;
use crate::line;

mod outcome;
mod replies;
mod transaction;
mod types;

use transaction::Current;
pub use types::{
    Answer, Config, Failure, Outcome, Output, Question, RecipientOutcome, Stage, Timeouts, Tls,
    Transaction, Verdict,
};

/// One SMTP session with a next hop.
#[derive(Debug)]
pub struct Session {
    config: Arc<Config>,
    state: State,
    /// The latest instant that was told.
    now: Instant,
    deadline: Instant,
    input: BytesMut,
    parser: ReplyParser,
    reply_lines: usize,
    /// Commands that are still to be sent.
    commands: VecDeque<Step>,
    /// What the replies on their way answer.
    expected: VecDeque<Step>,
    output: Vec<u8>,
    pending: VecDeque<Output>,
    extensions: Extensions,
    /// The connection is secured by TLS.
    tls: bool,
    current: Option<Current>,
    /// The next hop still holds a transaction that we gave up.
    wants_reset: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// A reply is waited for.
    Talking,
    /// [`Question::Next`] is open.
    Idle,
    /// [`Question::Body`] is open.
    Content,
    /// [`Question::PastDot`] is open; what is in `output` leaves together with the dot.
    AtDot,
    /// The TLS handshake is under way. What arrives meanwhile is no SMTP.
    Securing,
    /// Nothing is read or said any more.
    Closed,
}

/// What a reply answers. RCPT and, in LMTP, the end of content carry the recipient's position.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Greeting,
    Ehlo,
    Helo,
    StartTls,
    Reset,
    Mail,
    Rcpt(usize),
    Data,
    FinalDot,
    FinalDotFor(usize),
    /// The end of content that has no recipients (RFC 2920 3.1).
    LoneDot,
    Quit,
}

impl Session {
    /// We are connected, and wait for the greeting.
    pub fn new(config: Arc<Config>, now: Instant) -> Session {
        Session {
            state: State::Talking,
            now,
            deadline: now + config.timeouts.greeting,
            config,
            input: BytesMut::new(),
            parser: ReplyParser::default(),
            reply_lines: 0,
            commands: VecDeque::new(),
            expected: VecDeque::from([Step::Greeting]),
            output: Vec::new(),
            pending: VecDeque::new(),
            extensions: Extensions::default(),
            tls: false,
            current: None,
            wants_reset: false,
        }
    }

    /// The same over a connection whose TLS handshake is done: implicit TLS (RFC 8314 section 3).
    pub fn over_tls(config: Arc<Config>, now: Instant) -> Session {
        Session {
            tls: true,
            ..Session::new(config, now)
        }
    }

    /// What arrived, and when. A driver that cannot drain yet, because it still writes, may feed on: what is kept has a bound.
    pub fn feed(&mut self, bytes: Bytes, now: Instant) {
        self.now = now;
        if matches!(self.state, State::Closed | State::Securing) {
            return;
        }
        self.input.extend_from_slice(&bytes);
        // Replies to what was asked leave it here, however many they are; what answers nothing ends the session.
        if self.input.len() > limits::REPLY_INPUT_BYTES_MAX {
            while self.step() {}
        }
    }

    /// The connection ended, by the peer or by an error: `reason` is for people. What was fed before counts.
    pub fn lost(&mut self, reason: &str, now: Instant) {
        self.now = now;
        while self.step() {}
        self.broken(
            report::BAD_CONNECTION,
            format!("connection lost {}: {reason}", self.stage().during()),
        );
    }

    /// What the driver brings. An answer to no open question changes nothing.
    pub fn answer(&mut self, answer: Answer, now: Instant) {
        self.now = now;
        // What the next hop said while the question was open goes first: a refusal in the middle of content ends it there.
        while matches!(self.state, State::Content | State::AtDot) && self.step() {}
        match (self.state, answer) {
            (State::Idle, Answer::Send(transaction)) => self.begin(*transaction),
            (State::Idle, Answer::Quit) => {
                self.commands.push_back(Step::Quit);
                self.state = State::Talking;
                self.send_commands();
            }
            (State::Content, Answer::Body { bytes, last }) => self.content(bytes, last),
            (State::AtDot, Answer::Proceed) => self.final_dot(),
            (State::Securing, Answer::Secured) => self.secured(),
            (State::Content | State::AtDot, Answer::Abort) => {
                self.output.clear();
                self.broken(
                    report::BAD_CONNECTION,
                    "given up before the end of content".into(),
                );
            }
            _ => {}
        }
    }

    /// What time it is. A deadline that has passed ends the session.
    pub fn tick(&mut self, now: Instant) {
        self.now = now;
        if now >= self.deadline && !matches!(self.state, State::Idle | State::Closed) {
            self.output.clear();
            self.broken(
                report::BAD_CONNECTION,
                format!("timed out {}", self.stage().during()),
            );
        }
    }

    /// What is to be done next.
    pub fn drain(&mut self) -> Output {
        loop {
            if let Some(output) = self.pending.pop_front() {
                return output;
            }
            if !self.step() {
                break;
            }
        }
        if self.state != State::AtDot {
            self.flush();
        }
        match (self.pending.pop_front(), self.state) {
            (Some(output), _) => output,
            (None, State::Closed) => Output::Close,
            (None, State::Idle) => Output::Wait(self.now + IDLE_WAIT),
            (None, _) => Output::Wait(self.deadline),
        }
    }

    /// What the next hop offered in its reply to EHLO.
    pub fn extensions(&self) -> &Extensions {
        &self.extensions
    }

    /// Whether the connection is secured by TLS.
    pub fn is_secured(&self) -> bool {
        self.tls
    }

    /// Whether the session waits for a transaction.
    pub fn is_idle(&self) -> bool {
        self.state == State::Idle
    }

    /// Whether the session has ended, so that nothing more is read, and nobody waits for what is still to be written.
    pub fn is_over(&self) -> bool {
        self.state == State::Closed
    }

    /// One line of input. False: there is none.
    fn step(&mut self) -> bool {
        if self.state == State::Closed {
            return false;
        }
        let line = match line::take_lenient(&mut self.input, limits::REPLY_LINE_BYTES_MAX) {
            Ok(None) => return false,
            Ok(Some(line)) => line,
            Err(_) => {
                self.malformed("a reply line has no end");
                return true;
            }
        };
        self.reply_lines += 1;
        if self.reply_lines > limits::REPLY_LINES_MAX {
            self.malformed("a reply has no end");
            return true;
        }
        match self.parser.push(&line) {
            Ok(None) => {}
            Ok(Some(reply)) => {
                self.reply_lines = 0;
                self.reply(reply);
            }
            Err(error) => self.malformed(&error.to_string()),
        }
        true
    }

    fn malformed(&mut self, what: &str) {
        self.broken(
            report::PROTOCOL,
            format!("{what}, {}", self.stage().during()),
        );
    }

    /// Sends what may be sent now.
    fn send_commands(&mut self) {
        let at_once = if self.extensions.pipelining {
            self.commands.len()
        } else {
            1
        };
        if self.expected.is_empty() {
            for step in self
                .commands
                .drain(..at_once.min(self.commands.len()))
                .collect::<Vec<_>>()
            {
                self.command(step).write_to(&mut self.output);
                self.expected.push_back(step);
            }
            self.await_reply();
        }
    }

    /// The time for the next reply begins.
    fn await_reply(&mut self) {
        let timeouts = &self.config.timeouts;
        let time = match self.expected.front() {
            None => return,
            Some(Step::Greeting) => timeouts.greeting,
            Some(Step::Ehlo | Step::Helo | Step::StartTls | Step::Reset) => timeouts.hello,
            Some(Step::Mail) => timeouts.mail,
            Some(Step::Rcpt(_)) => timeouts.rcpt,
            Some(Step::Data) => timeouts.data,
            Some(Step::FinalDot | Step::FinalDotFor(_) | Step::LoneDot) => timeouts.final_dot,
            Some(Step::Quit) => timeouts.quit,
        };
        self.deadline = self.now + time;
    }

    /// Where the conversation stands.
    fn stage(&self) -> Stage {
        match (self.expected.front(), self.state) {
            (Some(Step::Greeting), _) => Stage::Greeting,
            (Some(Step::Ehlo | Step::Helo), _) => Stage::Hello,
            (Some(Step::StartTls), _) | (None, State::Securing) => Stage::StartTls,
            (Some(Step::Reset | Step::Mail), _) => Stage::Mail,
            (Some(Step::Rcpt(_)), _) => Stage::Rcpt,
            (Some(Step::Data), _) => Stage::Data,
            (Some(Step::FinalDot | Step::FinalDotFor(_) | Step::LoneDot), _) => Stage::FinalDot,
            (Some(Step::Quit), _) => Stage::Quit,
            (None, State::Content | State::AtDot) => Stage::Body,
            (None, _) => Stage::Idle,
        }
    }

    /// The session cannot go on, by nobody's reply.
    fn broken(&mut self, enhanced: EnhancedCode, text: String) {
        if self.state == State::Closed {
            return;
        }
        let stage = self.stage();
        self.end(Failure {
            stage,
            verdict: Verdict::Deferred,
            reply: None,
            enhanced,
            text,
        });
    }

    /// Ends the session: the failure is that of the transaction on its way, or of the session itself.
    fn end(&mut self, failure: Failure) {
        if let Some(current) = self.current.take() {
            self.pending
                .push_back(Output::Done(current.cut_short(&failure)));
        } else if failure.stage != Stage::Quit {
            self.pending.push_back(Output::Broken(failure));
        }
        self.close();
    }

    fn close(&mut self) {
        self.commands.clear();
        self.expected.clear();
        self.input.clear();
        // Whoever answered would wait for an outcome that nothing brings.
        self.pending
            .retain(|output| !matches!(output, Output::Ask(_)));
        self.state = State::Closed;
    }

    fn flush(&mut self) {
        if !self.output.is_empty() {
            let output = std::mem::take(&mut self.output);
            self.pending.push_back(Output::Write(Bytes::from(output)));
        }
    }
}

/// Between two ticks while nothing is due; how long a connection is kept is the driver's choice.
const IDLE_WAIT: Duration = Duration::from_secs(300);
