//! What the client session is told, asks, and gives.

use std::time::{Duration, Instant};

use bytes::Bytes;
use mail::{EnhancedCode, Envelope, Host, Reply};

use crate::limits;

/// What is the same for all messages of a connection.
#[derive(Clone, Debug)]
pub struct Config {
    /// What we call ourselves in EHLO.
    pub host: Host,
    /// LMTP (RFC 2033): LHLO, and a reply per recipient after the final dot.
    pub lmtp: bool,
    /// Send eight-bit content also where 8BITMIME is not offered.
    pub eight_bit_pass_through: bool,
    /// Whether STARTTLS is used.
    pub tls: Tls,
    /// How long each step may take.
    pub timeouts: Timeouts,
}

/// Whether STARTTLS (RFC 3207) is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Tls {
    /// Never.
    #[default]
    Off,
    /// Where it is offered. A next hop that takes it back after that is spoken to in clear.
    Opportunistic,
    /// Nothing is sent without it.
    Required,
}

impl Config {
    /// SMTP with the times of RFC 5321.
    pub fn new(host: Host) -> Config {
        Config {
            host,
            lmtp: false,
            eight_bit_pass_through: false,
            tls: Tls::Off,
            timeouts: Timeouts::default(),
        }
    }
}

/// How long each step may take (RFC 5321 4.5.3.2); the defaults are the minima that it asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// Until the greeting.
    pub greeting: Duration,
    /// Until the reply to EHLO, HELO, RSET.
    pub hello: Duration,
    /// Until the reply to MAIL.
    pub mail: Duration,
    /// Until the reply to each RCPT.
    pub rcpt: Duration,
    /// Until the reply to DATA.
    pub data: Duration,
    /// For each piece of content, from the answer that brought it to the next question.
    pub block: Duration,
    /// Until the reply to the final dot.
    pub final_dot: Duration,
    /// Until the reply to QUIT.
    pub quit: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            greeting: limits::GREETING_TIMEOUT,
            hello: limits::HELLO_TIMEOUT,
            mail: limits::MAIL_TIMEOUT,
            rcpt: limits::RCPT_TIMEOUT,
            data: limits::DATA_TIMEOUT,
            block: limits::BLOCK_TIMEOUT,
            final_dot: limits::FINAL_DOT_TIMEOUT,
            quit: limits::QUIT_TIMEOUT,
        }
    }
}

/// A message to be sent.
#[derive(Clone, PartialEq, Debug)]
pub struct Transaction {
    /// Who sends to whom; `eight_bit` and `smtputf8` say what the message needs. At least one recipient.
    pub envelope: Envelope,
    /// Octets of content, before dot-stuffing: declared with SIZE where offered.
    pub size: u64,
}

/// What the session wants next. The driver calls `drain` until it gets [`Output::Wait`] or [`Output::Close`].
#[derive(Clone, PartialEq, Debug)]
pub enum Output {
    /// Put on the wire.
    Write(Bytes),
    /// Answer with [`super::Session::answer`], at any later time.
    Ask(Question),
    /// What became of the transaction. [`Question::Next`] or [`Output::Close`] follows.
    Done(Outcome),
    /// The session ended while no transaction was on its way: what was to be sent over it was not tried.
    Broken(Failure),
    /// Start the TLS handshake, then tell with [`Answer::Secured`], or with [`super::Session::lost`] that it failed. What the
    /// driver itself holds of the next hop's octets came in clear: it throws that away, as the session does.
    StartTls,
    /// Nothing more until input, an answer, or this moment.
    Wait(Instant),
    /// Close the connection.
    Close,
}

/// What only the driver has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Question {
    /// The session is ready for a transaction: [`Answer::Send`] or [`Answer::Quit`]. It may stay open for as long as
    /// the driver keeps the connection; the peer may end it meanwhile.
    Next,
    /// The next piece of content: [`Answer::Body`] or [`Answer::Abort`].
    Body,
    /// All content but the end is written. After [`Answer::Proceed`] the final dot leaves, and from then on the message
    /// may be the next hop's: write that down first. [`Answer::Abort`] closes without the dot.
    PastDot,
}

/// What the driver brings.
#[derive(Clone, PartialEq, Debug)]
pub enum Answer {
    /// To [`Question::Next`].
    Send(Box<Transaction>),
    /// To [`Question::Next`]: QUIT, then close.
    Quit,
    /// To [`Question::Body`].
    Body {
        /// Content with CRLF line ends, not dot-stuffed; pieces may end anywhere.
        bytes: Bytes,
        /// Nothing follows.
        last: bool,
    },
    /// To [`Question::PastDot`].
    Proceed,
    /// To [`Question::Body`] and [`Question::PastDot`]: close the connection without the final dot, so that nothing is
    /// delivered (RFC 5321 4.1.1.10 bids the server to drop what is incomplete).
    Abort,
    /// To [`Output::StartTls`]: the handshake is done.
    Secured,
}

/// What became of a transaction.
#[derive(Clone, PartialEq, Debug)]
pub struct Outcome {
    /// One a recipient, in the order of the envelope.
    pub recipients: Vec<RecipientOutcome>,
}

/// What became of one recipient in one transaction.
#[derive(Clone, PartialEq, Debug)]
pub struct RecipientOutcome {
    /// What it means.
    pub verdict: Verdict,
    /// What the next hop said; `None`: it said nothing, or we did not ask.
    pub reply: Option<Reply>,
    /// The next hop's code, or ours where it gave none.
    pub enhanced: EnhancedCode,
    /// For people: the next hop's text, or what happened.
    pub text: String,
    /// Where it was decided.
    pub stage: Stage,
    /// The connection was lost after the final dot: the next hop may have taken the message.
    pub ambiguous: bool,
}

/// What a result means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The next hop took it.
    Delivered,
    /// To be tried again.
    Deferred,
    /// For good.
    Failed,
}

/// Steps of the conversation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stage {
    /// Before the greeting, or by it.
    Greeting,
    /// EHLO, HELO, LHLO.
    Hello,
    /// STARTTLS and the handshake, or that it must be and cannot.
    StartTls,
    /// The connection stood idle.
    Idle,
    /// MAIL, or what must hold before it (SIZE, 8BITMIME, SMTPUTF8).
    Mail,
    /// RCPT.
    Rcpt,
    /// DATA, until its 354.
    Data,
    /// Content.
    Body,
    /// After the final dot.
    FinalDot,
    /// QUIT.
    Quit,
}

/// Why a session ended.
#[derive(Clone, PartialEq, Debug)]
pub struct Failure {
    /// Where.
    pub stage: Stage,
    /// By code: [`Verdict::Failed`] after 5yz, which another host of the same destination may still contradict; else
    /// [`Verdict::Deferred`].
    pub verdict: Verdict,
    /// What the next hop said.
    pub reply: Option<Reply>,
    /// Its code, or ours where it gave none.
    pub enhanced: EnhancedCode,
    /// For people: its text, or what happened.
    pub text: String,
}
