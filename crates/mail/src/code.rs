//! The one table of the replies that our server gives, each with its enhanced code and the RFC section it comes from.

use crate::reply::{EnhancedCode, Reply};

macro_rules! table {
    ($($(#[$doc:meta])* $name:ident = $code:literal ($class:literal, $subject:literal, $detail:literal) $text:literal;)*) => {
        impl Reply {
            $($(#[$doc])* pub fn $name() -> Reply {
                Reply::new($code, Some(EnhancedCode::new($class, $subject, $detail)), $text)
            })*
        }

        #[cfg(test)]
        const TABLE: &[(&str, fn() -> Reply)] = &[$((stringify!($name), Reply::$name)),*];
    };
}

table! {
    /// QUIT (RFC 5321 4.1.1.10).
    bye = 221 (2, 0, 0) "closing connection";
    /// NOOP, RSET (RFC 5321 4.1.1.5, 4.1.1.9).
    ok = 250 (2, 0, 0) "ok";
    /// MAIL (RFC 5321 4.1.1.2; X.1.0 as RFC 3463 3.2).
    sender_ok = 250 (2, 1, 0) "sender ok";
    /// RCPT (RFC 5321 4.1.1.3; X.1.5 as RFC 3463 3.2).
    recipient_ok = 250 (2, 1, 5) "recipient ok";
    /// VRFY (RFC 5321 3.5.3, 7.3).
    cannot_verify = 252 (2, 5, 0) "cannot verify, but will take mail and try to deliver it";
    /// HELP (RFC 5321 4.1.1.8).
    help = 214 (2, 0, 0) "HELO EHLO MAIL RCPT DATA RSET NOOP VRFY HELP QUIT STARTTLS: see RFC 5321";
    /// DATA (RFC 5321 4.1.1.4); 354 has no enhanced code (RFC 2034 section 4), see [`Reply::start_mail_input`].
    committed = 250 (2, 0, 0) "queued";
    /// No configuration yet, or draining (RFC 5321 3.8, 4.2.2).
    shutting_down = 421 (4, 3, 2) "not taking mail now, try again";
    /// Too many sessions, in all or from one source.
    too_many_sessions = 421 (4, 7, 0) "too many sessions, try again later";
    /// Errors beyond the limit of a session (RFC 5321 4.3.2).
    too_many_errors = 421 (4, 7, 0) "too many errors";
    /// Transactions or idle commands beyond the limit of a session.
    too_many_commands = 421 (4, 7, 0) "too many commands, connect again";
    /// No command within its time (RFC 5321 4.5.3.2.7).
    timeout = 421 (4, 4, 2) "no input for too long";
    /// Message content slower than the minimum rate.
    too_slow = 421 (4, 4, 2) "message content comes too slowly";
    /// Input before our greeting (RFC 5321 3.1).
    early_talker = 554 (5, 5, 0) "input came before the greeting";
    /// A verb nobody knows (RFC 5321 4.2.4).
    unknown_command = 500 (5, 5, 1) "command not recognized";
    /// Above the limit of a command line (RFC 5321 4.5.3.1.4).
    line_too_long = 500 (5, 5, 2) "line too long";
    /// Arguments that do not parse (RFC 5321 4.2.2).
    bad_arguments = 501 (5, 5, 4) "syntax error in arguments";
    /// HELO or EHLO without a name (RFC 5321 4.1.1.1).
    bad_hello = 501 (5, 5, 4) "HELO and EHLO need a host name or address literal";
    /// MAIL with a path that is no address (RFC 3463 3.2, X.1.7).
    bad_sender = 501 (5, 1, 7) "bad sender address syntax";
    /// RCPT with a path that is no address (RFC 3463 3.2, X.1.3).
    bad_recipient = 501 (5, 1, 3) "bad recipient address syntax";
    /// Known, but not here (RFC 5321 4.2.4).
    not_implemented = 502 (5, 5, 1) "command not implemented";
    /// A command out of order (RFC 5321 4.1.4).
    bad_sequence = 503 (5, 5, 1) "bad sequence of commands";
    /// DATA without a recipient that was taken (RFC 5321 3.3; RFC 2920 3.1).
    no_recipients = 554 (5, 5, 1) "no valid recipients";
    /// MAIL or RCPT with a parameter that we do not offer (RFC 5321 4.1.1.11).
    unknown_parameter = 555 (5, 5, 4) "parameter not recognized or not implemented";
    /// SMTPUTF8 is needed for this address (RFC 6531 3.5).
    smtputf8_needed = 553 (5, 6, 7) "a non-ASCII address needs SMTPUTF8";
    /// The relay decision said no (RFC 3463 3.8).
    relay_denied = 550 (5, 7, 1) "relaying denied";
    /// A sender domain that this client may not use.
    sender_denied = 550 (5, 7, 1) "this client may not use this sender address";
    /// The domain is ours, the mailbox is not known (RFC 3463 3.2).
    unknown_recipient = 550 (5, 1, 1) "no such recipient";
    /// Beyond the recipients of one transaction (RFC 5321 4.5.3.1.10).
    too_many_recipients = 452 (4, 5, 3) "too many recipients, send the rest in another transaction";
    /// Another tenant or class would admit this recipient: it comes again in a transaction of its own.
    other_tenant = 452 (4, 5, 3) "send this recipient in another transaction";
    /// AUTH or STARTTLS must come first (RFC 4954 section 6, RFC 3207 section 4).
    authentication_required = 530 (5, 7, 0) "authentication required";
    /// STARTTLS must come first (RFC 3207 section 4).
    starttls_required = 530 (5, 7, 0) "must issue STARTTLS first";
    /// STARTTLS: the handshake is next (RFC 3207 section 4).
    ready_for_tls = 220 (2, 0, 0) "ready to start TLS";
    /// Wrong credentials (RFC 4954 section 6).
    authentication_failed = 535 (5, 7, 8) "authentication credentials invalid";
    /// Credentials cannot be checked now (RFC 4954 section 6).
    authentication_unavailable = 454 (4, 7, 0) "temporary authentication failure";
    /// Above the SIZE limit, at MAIL or while reading (RFC 1870 section 6).
    too_large = 552 (5, 3, 4) "message too large";
    /// The header block alone is beyond reason.
    header_too_large = 552 (5, 3, 4) "header block too large";
    /// A text line beyond the limit (RFC 5321 4.5.3.1.6).
    text_line_too_long = 554 (5, 6, 0) "text line too long";
    /// A carriage return or line feed that stands alone (RFC 5321 2.3.8).
    bare_line_ending = 554 (5, 5, 2) "a bare CR or LF: lines end with CRLF only";
    /// More `Received` fields than a real path has (RFC 5321 6.3).
    too_many_hops = 554 (5, 4, 6) "too many hops, this looks like a loop";
    /// Disks or memory of the queue are full (RFC 3463 3.4).
    queue_full = 452 (4, 3, 1) "queue full, try again later";
    /// The queue cannot be reached, and nothing was written for sure.
    queue_unreachable = 451 (4, 3, 0) "queue not reachable, try again later";
    /// The decision could not be made now.
    try_again = 451 (4, 3, 0) "cannot decide now, try again later";
}

impl Reply {
    /// DATA, before the content (RFC 5321 4.1.1.4). RFC 2034 section 4: no enhanced code with 3yz.
    pub fn start_mail_input() -> Reply {
        Reply::new(354, None, "end data with <CRLF>.<CRLF>")
    }

    /// After the final dot: the message is queued under this name.
    pub fn queued_as(id: &str) -> Reply {
        Reply {
            text: format!("queued as {id}").into(),
            ..Reply::committed()
        }
    }

    /// The same reply with another text.
    pub fn with_text(self, text: impl Into<std::borrow::Cow<'static, str>>) -> Reply {
        Reply {
            text: text.into(),
            ..self
        }
    }
}

/// Enhanced codes that only reports give: no reply of ours carries them.
pub mod report {
    use crate::reply::EnhancedCode;

    /// The domain says that it takes no mail (RFC 7505 section 3).
    pub const NULL_MX: EnhancedCode = EnhancedCode::new(5, 1, 10);
    /// The domain does not exist (RFC 3463 3.2).
    pub const NO_SUCH_DOMAIN: EnhancedCode = EnhancedCode::new(5, 1, 2);
    /// The next hop does not offer SMTPUTF8 (RFC 6531 3.5).
    pub const SMTPUTF8_NOT_OFFERED: EnhancedCode = EnhancedCode::new(5, 6, 7);
    /// The next hop does not offer 8BITMIME, and we do not convert (RFC 6152 section 3).
    pub const EIGHT_BIT_NOT_OFFERED: EnhancedCode = EnhancedCode::new(5, 6, 3);
    /// The next hop offers a SIZE below the message's (RFC 1870 section 5).
    pub const TOO_LARGE: EnhancedCode = EnhancedCode::new(5, 3, 4);
    /// Its time is over (RFC 3463 3.5).
    pub const EXPIRED: EnhancedCode = EnhancedCode::new(4, 4, 7);
    /// Nobody answers at the host (RFC 3463 3.5).
    pub const NO_ANSWER: EnhancedCode = EnhancedCode::new(4, 4, 1);
    /// The connection broke (RFC 3463 3.5).
    pub const BAD_CONNECTION: EnhancedCode = EnhancedCode::new(4, 4, 2);
    /// The name could not be looked up now (RFC 3463 3.5).
    pub const DIRECTORY_FAILED: EnhancedCode = EnhancedCode::new(4, 4, 3);
    /// TLS is required and the next hop does not offer it (RFC 3463 3.8, X.7.4).
    pub const NO_TLS: EnhancedCode = EnhancedCode::new(4, 7, 4);
    /// The TLS handshake failed, or the certificate is not the next hop's (RFC 3463 3.8, X.7.5).
    pub const TLS_FAILED: EnhancedCode = EnhancedCode::new(4, 7, 5);
    /// The host takes no mail now (RFC 3463 3.4).
    pub const NOT_ACCEPTING: EnhancedCode = EnhancedCode::new(4, 3, 2);
    /// What came back was not SMTP (RFC 3463 3.6).
    pub const PROTOCOL: EnhancedCode = EnhancedCode::new(4, 5, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reply_has_one_class_and_short_lines() {
        for (name, reply) in TABLE {
            let reply = reply();
            let enhanced = reply.enhanced.unwrap();
            assert_eq!(u16::from(enhanced.class), reply.code / 100, "{name}");
            assert!(
                reply.text.is_ascii() && reply.to_bytes().len() < 100,
                "{name}"
            );
        }
    }
}
