//! The server side: input, answers, output, deadlines. The verb table is in `verbs`, content in `content`.
//!
//! ```text
//! Connecting ──► Command ◄──────────────────────────────────────────────┐
//!     │            │ MAIL, RCPT, DATA: a question                       │
//!     │            ├──────────────────────► Asking ── refused, accepted ┤
//!     │            │                          │ DATA accepted: 354      │
//!     │            │                          ▼                         │
//!     │            │                        Content ── refused ─────────┤
//!     │            │                          │ CRLF.CRLF               │
//!     ▼            │                          ▼                         │
//!  Rejected ───────┴────► Closed ◄───────── Committing ── answered ─────┘
//! ```
//!
//! STARTTLS (RFC 3207) leads from Command to Securing, and the end of the handshake back. What the client sent in clear after
//! the command is thrown away: were it kept, an attacker on the way could put commands in front of the client's own
//! (CVE-2011-0411). Everything that was said in clear is forgotten too, EHLO with it (RFC 3207 section 4.2).
//!
//! # Diagnostics
//! All replies come from the table in `mail::code` or from the driver's answers. Nothing that a peer sends ends more than
//! its own session.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mail::trace::Protocol;
use mail::{Envelope, Mailbox, Reply};

use crate::limits;
use crate::line::{self, LineError, Skip};

mod content;
mod types;
mod verbs;

use content::Content;
pub use types::{Answer, Commit, Config, MailFacts, Output, Question, StartTls};

/// One SMTP session with a client.
#[derive(Debug)]
pub struct Session {
    config: Arc<Config>,
    state: State,
    /// The latest instant that was told.
    now: Instant,
    /// Since when a command is waited for.
    waiting_since: Instant,
    input: Bytes,
    skip: Option<Skip>,
    /// Replies that go out together.
    replies: Vec<u8>,
    pending: VecDeque<Output>,
    hello: Option<Hello>,
    /// Between an accepted MAIL and the end of its transaction.
    envelope: Option<Envelope>,
    counts: Counts,
    /// The connection is secured by TLS.
    tls: bool,
    shutting_down: bool,
}

#[derive(Debug)]
enum State {
    /// The greeting is being decided.
    Connecting,
    /// The greeting was a refusal: the client may only quit (RFC 5321 3.1).
    Rejected,
    /// A command is waited for.
    Command,
    /// A question on a command is open.
    Asking(Asked),
    /// Content comes in.
    Content(Box<Content>),
    /// The message is being committed.
    Committing,
    /// The TLS handshake is under way. What arrives meanwhile is no SMTP.
    Securing,
    /// Nothing is read or said any more.
    Closed,
}

#[derive(Debug)]
enum Asked {
    Mail(MailFacts),
    Rcpt(Mailbox),
    Data,
}

#[derive(Debug)]
struct Hello {
    name: String,
    extended: bool,
}

#[derive(Debug, Default)]
struct Counts {
    errors: u32,
    idle_commands: u32,
    transactions: u64,
}

impl Session {
    /// A client connected. The first thing that `drain` gives is [`Question::Connect`].
    pub fn new(config: Arc<Config>, now: Instant) -> Session {
        Session {
            config,
            state: State::Connecting,
            now,
            waiting_since: now,
            input: Bytes::new(),
            skip: None,
            replies: Vec::new(),
            pending: VecDeque::from([Output::Ask(Question::Connect)]),
            hello: None,
            envelope: None,
            counts: Counts::default(),
            tls: false,
            shutting_down: false,
        }
    }

    /// The same over a connection whose TLS handshake is done: implicit TLS (RFC 8314 section 3).
    pub fn over_tls(config: Arc<Config>, now: Instant) -> Session {
        Session {
            tls: true,
            ..Session::new(config, now)
        }
    }

    /// What arrived, and when.
    pub fn feed(&mut self, bytes: Bytes, now: Instant) {
        self.now = now;
        match &mut self.state {
            State::Closed | State::Securing => return,
            State::Content(content) => content.heard(now),
            _ => {}
        }
        line::append(&mut self.input, bytes);
        if self.input.len() > limits::INPUT_BYTES_ABSURD && self.is_asking() {
            self.say_and_close(Reply::too_many_commands());
        }
    }

    /// What the outside decided. An answer to no open question changes nothing.
    pub fn answer(&mut self, answer: Answer, now: Instant) {
        self.now = now;
        if answer == Answer::ShuttingDown {
            self.shutting_down = true;
            return;
        }
        if !self.is_asking() {
            return;
        }
        if answer == Answer::CloseSilently {
            self.replies.clear();
            if let State::Committing = self.state {
                // Whether it was committed is not known: there is nothing to forget.
                self.envelope = None;
            }
            return self.close();
        }
        self.waiting_since = now;
        match std::mem::replace(&mut self.state, State::Command) {
            State::Connecting => self.greet(answer),
            State::Asking(asked) => self.decided(asked, answer),
            State::Committing => self.commit_answered(answer),
            State::Securing => self.secured(answer),
            other => self.state = other,
        }
    }

    /// What time it is. A deadline that has passed ends the session.
    pub fn tick(&mut self, now: Instant) {
        self.now = now;
        let reply = match &self.state {
            State::Command | State::Rejected if now >= self.waiting_since + self.config.timeout => {
                Reply::timeout()
            }
            State::Content(content) => match content.overdue(now, &self.config) {
                Some(reply) => reply,
                None => return,
            },
            _ => return,
        };
        self.say_and_close(reply);
    }

    /// What is to be done next.
    pub fn drain(&mut self) -> Output {
        loop {
            if let Some(output) = self.pending.pop_front() {
                return output;
            }
            if self.replies.len() >= limits::OUTPUT_BYTES_BATCH {
                self.flush();
            } else if !self.step() {
                break;
            }
        }
        self.flush();
        match (self.pending.pop_front(), &self.state) {
            (Some(output), _) => output,
            (None, State::Closed) => Output::Close,
            (None, _) => Output::Wait(self.deadline()),
        }
    }

    /// Whether the driver should read from the connection now.
    pub fn wants_read(&self) -> bool {
        match self.state {
            State::Command | State::Rejected | State::Content(_) => true,
            // To catch early talkers one octet is enough.
            State::Connecting => self.config.refuse_early_talkers && self.input.is_empty(),
            State::Asking(_) | State::Committing | State::Securing | State::Closed => false,
        }
    }

    /// What the client called itself in EHLO or HELO; `None` before.
    pub fn helo(&self) -> Option<&str> {
        self.hello.as_ref().map(|hello| hello.name.as_str())
    }

    /// The protocol for the `Received` field of the present transaction.
    pub fn protocol(&self) -> Protocol {
        Protocol {
            extended: self.hello.as_ref().is_some_and(|hello| hello.extended),
            tls: self.tls,
            utf8: self
                .envelope
                .as_ref()
                .is_some_and(|envelope| envelope.smtputf8),
            ..Protocol::default()
        }
    }

    fn is_asking(&self) -> bool {
        matches!(
            self.state,
            State::Connecting | State::Asking(_) | State::Committing | State::Securing
        )
    }

    /// One command, or what there is of content. False: nothing can be done before input or an answer.
    fn step(&mut self) -> bool {
        match &mut self.state {
            State::Command | State::Rejected => {
                if self.shutting_down {
                    self.say_and_close(Reply::shutting_down());
                    return true;
                }
                self.step_command()
            }
            State::Content(_) => !self.input.is_empty() && self.step_content(),
            _ => false,
        }
    }

    fn step_command(&mut self) -> bool {
        if let Some(skip) = &mut self.skip {
            if !skip.run(&mut self.input) {
                let absurd = skip.bytes > limits::SKIPPED_LINE_BYTES_MAX;
                if absurd {
                    self.say_and_close(Reply::too_many_errors());
                }
                return absurd;
            }
            self.skip = None;
            self.waiting_since = self.now;
            self.refuse(Reply::line_too_long());
            return true;
        }
        match line::take(&mut self.input, limits::COMMAND_LINE_BYTES_MAX) {
            Ok(None) => return false,
            Ok(Some(line)) => {
                self.waiting_since = self.now;
                self.command(&line);
            }
            Err(LineError::TooLong) => self.skip = Some(Skip::default()),
            Err(LineError::BareCr | LineError::BareLf) => {
                self.say_and_close(Reply::bare_line_ending())
            }
        }
        true
    }

    fn greet(&mut self, answer: Answer) {
        let early = !self.input.is_empty() && self.config.refuse_early_talkers;
        match answer {
            Answer::Refuse(reply) if reply.closes() => self.say_and_close(reply),
            Answer::Refuse(reply) => {
                self.say(&reply);
                self.state = State::Rejected;
            }
            _ if early => self.say_and_close(Reply::early_talker()),
            // Nobody is greeted only to be sent away.
            _ if self.shutting_down => {}
            Answer::Accept => self.say(&Reply::new(
                220,
                None,
                format!("{} ESMTP", self.config.host),
            )),
            _ => self.say_and_close(Reply::shutting_down()),
        }
    }

    fn say(&mut self, reply: &Reply) {
        reply.write_to(&mut self.replies);
    }

    /// A refusal. One for good counts as the client's error; too many of them end the session.
    fn refuse(&mut self, reply: Reply) {
        if reply.closes() {
            return self.say_and_close(reply);
        }
        self.say(&reply);
        if reply.is_permanent() {
            self.count_error();
        }
    }

    fn count_error(&mut self) {
        self.counts.errors += 1;
        if self.counts.errors > self.config.errors_max {
            self.say_and_close(Reply::too_many_errors());
        }
    }

    fn say_and_close(&mut self, reply: Reply) {
        self.say(&reply);
        self.close();
    }

    fn close(&mut self) {
        self.forget();
        self.input.clear();
        self.state = State::Closed;
    }

    /// Ends the transaction without a commit, if there is one.
    fn forget(&mut self) {
        if self.envelope.take().is_some() {
            self.pending.push_back(Output::Forget);
        }
    }

    fn flush(&mut self) {
        if !self.replies.is_empty() {
            let replies = std::mem::take(&mut self.replies);
            self.pending.push_back(Output::Write(Bytes::from(replies)));
        }
    }

    fn deadline(&self) -> Instant {
        match &self.state {
            State::Content(content) => content.deadline(&self.config),
            State::Command | State::Rejected => self.waiting_since + self.config.timeout,
            // The driver bounds its own decisions; this only keeps it from spinning.
            _ => self.now + QUESTION_WAIT,
        }
    }
}

/// Between two ticks while a question is open: nothing falls due in that time.
const QUESTION_WAIT: Duration = Duration::from_secs(60);
