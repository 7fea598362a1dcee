//! What the server session is told, asks, and gives.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mail::header::HeaderFacts;
use mail::{Envelope, Host, Mailbox, Reply, ReversePath};

use crate::limits;

/// What is the same for all sessions of a listener.
#[derive(Clone, Debug)]
pub struct Config {
    /// Our name: in the greeting, in the reply to EHLO, and for `RCPT TO:<Postmaster>`.
    pub host: Host,
    /// Octets of a message; offered with SIZE.
    pub message_bytes_max: u64,
    /// Recipients of a transaction.
    pub recipients_max: usize,
    /// Octets of a text line.
    pub text_line_bytes_max: usize,
    /// Octets of a message's header block.
    pub header_bytes_max: usize,
    /// `Received` fields of a message.
    pub received_max: u32,
    /// Errors of a session.
    pub errors_max: u32,
    /// Transactions of a session.
    pub transactions_max: u64,
    /// How long we wait for a command or the next piece of content.
    pub timeout: Duration,
    /// Octets a second that content must have over its whole time, beyond [`limits::CONTENT_GRACE`].
    pub content_rate_min: u64,
    /// Whether input before the greeting ends the session. A driver that wants to catch early talkers delays its
    /// answer to [`Question::Connect`] and feeds what comes meanwhile.
    pub refuse_early_talkers: bool,
    /// Whether STARTTLS is offered; over TLS it never is.
    pub starttls: StartTls,
}

/// What a listener does about STARTTLS (RFC 3207).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum StartTls {
    /// It is not offered: there is no certificate, or TLS began with the connection.
    #[default]
    Off,
    /// It is offered, and mail is taken without it too.
    Offered,
    /// Nothing is taken before it. Never on a public port 25 (RFC 3207 section 4).
    Required,
}

impl Config {
    /// All limits at their defaults.
    pub fn new(host: Host) -> Config {
        Config {
            host,
            message_bytes_max: limits::MESSAGE_BYTES_MAX,
            recipients_max: mail::limits::RECIPIENTS_MAX,
            text_line_bytes_max: limits::TEXT_LINE_BYTES_MAX,
            header_bytes_max: mail::limits::HEADER_BYTES_MAX,
            received_max: mail::limits::RECEIVED_MAX,
            errors_max: limits::ERRORS_MAX,
            transactions_max: limits::TRANSACTIONS_MAX,
            timeout: limits::SERVER_TIMEOUT,
            content_rate_min: limits::CONTENT_RATE_MIN,
            refuse_early_talkers: true,
            starttls: StartTls::Off,
        }
    }
}

/// What the session wants next. The driver calls `drain` until it gets [`Output::Wait`] or [`Output::Close`].
#[derive(Clone, PartialEq, Debug)]
pub enum Output {
    /// Put on the wire.
    Write(Bytes),
    /// Answer with [`super::Session::answer`].
    Ask(Question),
    /// Content of the message, in order, without dot-stuffing; the final line keeps its CRLF.
    Body(Bytes),
    /// The transaction ended without a commit: forget its content and what was decided for it.
    Forget,
    /// Start the TLS handshake, then tell with [`Answer::Secured`]. What the driver itself holds of the client's octets
    /// came in clear: it throws that away, as the session does. A handshake that fails ends the connection.
    StartTls,
    /// Nothing more until input, an answer, or this moment.
    Wait(Instant),
    /// Close the connection. What was to be said has been written.
    Close,
}

/// What only the outside can decide.
#[derive(Clone, PartialEq, Debug)]
pub enum Question {
    /// May this client talk to us? A refusal with 421 closes, any other lets it only quit (RFC 5321 3.1).
    Connect,
    /// May this sender?
    Mail(MailFacts),
    /// May this recipient?
    Rcpt(Mailbox),
    /// Content is next: 354, or a refusal. The envelope is complete.
    Data(Arc<Envelope>),
    /// All content was given: commit it, then answer with [`Answer::Committed`], [`Answer::Refuse`] or
    /// [`Answer::CloseSilently`].
    Commit(Commit),
}

/// MAIL, with its parameters.
#[derive(Clone, PartialEq, Debug)]
pub struct MailFacts {
    /// Where reports go.
    pub return_path: ReversePath,
    /// SIZE as declared, octets (RFC 1870); at most the limit.
    pub size: Option<u64>,
    /// BODY=8BITMIME (RFC 6152).
    pub eight_bit: bool,
    /// SMTPUTF8 (RFC 6531).
    pub smtputf8: bool,
}

/// A message whose content is complete.
#[derive(Clone, PartialEq, Debug)]
pub struct Commit {
    /// Who sends to whom.
    pub envelope: Arc<Envelope>,
    /// Octets of content given with [`Output::Body`].
    pub size: u64,
    /// Octets above 127 stand in it, whatever was declared.
    pub eight_bit: bool,
    /// What its header block says.
    pub header: HeaderFacts,
}

/// What the outside decided, or wants.
#[derive(Clone, PartialEq, Debug)]
pub enum Answer {
    /// Yes, to any question but [`Question::Commit`].
    Accept,
    /// No, with this reply; 421 closes the session after it.
    Refuse(Reply),
    /// The message is committed: this reply says so. Only to [`Question::Commit`].
    Committed(Reply),
    /// To say anything would be a lie: close without a reply.
    CloseSilently,
    /// The TLS handshake is done; what was read before it is forgotten (RFC 3207 4.2).
    Secured,
    /// We are leaving: 421 4.3.2 at the next command boundary, never within content or before the reply to it. May be
    /// given at any time, also while a question is open, which still wants its own answer.
    ShuttingDown,
}
