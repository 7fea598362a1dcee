//! Limits and times of the conversation (RFC 5321 section 4.5.3), each with its unit and reason.

use std::time::Duration;

/// Octets of a command line with its CRLF. RFC 5321 4.5.3.1.4 says 512; SIZE, BODY, SMTPUTF8 and the DSN parameters add
/// some 650 (RFC 1870, 6152, 6531, 3461), paths with SMTPUTF8 a little more.
pub const COMMAND_LINE_BYTES_MAX: usize = 2048;

/// Octets of a command line that was too long and is thrown away before the connection is closed.
pub const SKIPPED_LINE_BYTES_MAX: usize = 64 * 1024;

/// Octets of a text line of a message without its CRLF. RFC 5321 4.5.3.1.6 lets us refuse above 998, but mail with
/// longer lines is common: to refuse it loses mail, to split it breaks signatures, so only absurd lines are refused.
pub const TEXT_LINE_BYTES_MAX: usize = 64 * 1024;

/// Octets of input that are kept while a question is open: what a client may pipeline.
pub const INPUT_BYTES_MAX: usize = 64 * 1024;

/// Octets of input beyond which a driver that does not heed `wants_read` loses its session.
pub const INPUT_BYTES_ABSURD: usize = 8 * INPUT_BYTES_MAX;

/// Octets of replies that are gathered before they go out.
pub const OUTPUT_BYTES_BATCH: usize = 4096;

/// Octets of a message, unless configured otherwise: what the large providers take.
pub const MESSAGE_BYTES_MAX: u64 = 50 * 1024 * 1024;

/// Octets of a refused message that are read and thrown away so that its client hears the reply; then we close.
pub const DISCARDED_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Errors of one session before it is closed (RFC 5321 7.8 allows it).
pub const ERRORS_MAX: u32 = 20;

/// Commands that carry no mail (NOOP, RSET, VRFY, HELP ...) between two messages before they count as errors.
pub const IDLE_COMMANDS_MAX: u32 = 100;

/// Transactions of one session: a bound for everything, far above what a load generator sends over one connection.
pub const TRANSACTIONS_MAX: u64 = 1_000_000;

/// How long the server waits for a command, or for the next piece of content (RFC 5321 4.5.3.2.7).
pub const SERVER_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// How long the content of a message may come slowly before its rate counts.
pub const CONTENT_GRACE: Duration = Duration::from_secs(5 * 60);

/// Octets a second that content must have over its whole time, beyond [`CONTENT_GRACE`]. Slower is not a slow link but
/// a client that holds connections.
pub const CONTENT_RATE_MIN: u64 = 512;

/// Octets of a reply line, with room: RFC 5321 4.5.3.1.5 says 512, real servers write more.
pub const REPLY_LINE_BYTES_MAX: usize = 4096;

/// Octets of replies that are kept until the driver drains, while it still writes the commands of a pipeline: the replies to
/// 128 of them at their full length. What is beyond is judged at once, so that all but a line of it is gone.
pub const REPLY_INPUT_BYTES_MAX: usize = 64 * 1024;

/// Lines of one reply; an EHLO reply has a line an extension, and no server has a hundred.
pub const REPLY_LINES_MAX: usize = 128;

/// Octets up to which content is gathered with what else is to be written: a copy costs less than a system call.
pub const GATHERED_CONTENT_BYTES_MAX: usize = 32 * 1024;

/// Client: until the greeting (RFC 5321 4.5.3.2.1).
pub const GREETING_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// Client: until the reply to EHLO, HELO and RSET (no clause; as MAIL).
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// Client: until the reply to MAIL (RFC 5321 4.5.3.2.2).
pub const MAIL_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// Client: until the reply to RCPT (RFC 5321 4.5.3.2.3).
pub const RCPT_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// Client: until the reply to DATA (RFC 5321 4.5.3.2.4).
pub const DATA_TIMEOUT: Duration = Duration::from_secs(2 * 60);
/// Client: for each piece of content to leave (RFC 5321 4.5.3.2.5).
pub const BLOCK_TIMEOUT: Duration = Duration::from_secs(3 * 60);
/// Client: until the reply to the final dot (RFC 5321 4.5.3.2.6: at least 10 minutes, or mail is sent twice).
pub const FINAL_DOT_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// Client: until the reply to QUIT; nothing depends on it.
pub const QUIT_TIMEOUT: Duration = Duration::from_secs(10);

const _: () = assert!(COMMAND_LINE_BYTES_MAX <= INPUT_BYTES_MAX);
const _: () = assert!(REPLY_LINE_BYTES_MAX <= REPLY_INPUT_BYTES_MAX);
const _: () = assert!(FINAL_DOT_TIMEOUT.as_secs() >= 600);
