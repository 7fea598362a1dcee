//! Commands (RFC 5321 section 4.1.1): parse and print.

use std::fmt;

use mail::{AddressError, Host, Mailbox, Reply, ReversePath};

/// One command. AUTH is known so that it can be refused by name; it carries nothing yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// HELO with what the client calls itself.
    Helo(String),
    /// EHLO with what the client calls itself.
    Ehlo(String),
    /// LHLO (RFC 2033), only printed.
    Lhlo(String),
    /// MAIL.
    Mail(ReversePath, MailParameters),
    /// RCPT; it has no parameters yet.
    Rcpt(Mailbox),
    /// DATA.
    Data,
    /// RSET.
    Rset,
    /// NOOP.
    Noop,
    /// VRFY.
    Vrfy,
    /// EXPN.
    Expn,
    /// HELP.
    Help,
    /// QUIT.
    Quit,
    /// STARTTLS (RFC 3207).
    StartTls,
    /// AUTH (RFC 4954).
    Auth,
}

/// Parameters of MAIL.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MailParameters {
    /// SIZE (RFC 1870), octets.
    pub size: Option<u64>,
    /// BODY=8BITMIME (RFC 6152); `BODY=7BIT` is the default.
    pub eight_bit: bool,
    /// SMTPUTF8 (RFC 6531).
    pub smtputf8: bool,
}

/// Why a line is no command. All of them are the peer's doing; [`CommandError::reply`] tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CommandError {
    /// A verb nobody knows.
    #[error("unknown command")]
    Unknown,
    /// A verb of another protocol: a browser or a proxy was made to talk to us.
    #[error("a command of another protocol")]
    Foreign,
    /// The arguments do not parse.
    #[error("bad arguments")]
    BadArguments,
    /// No host name after HELO or EHLO.
    #[error("bad host name")]
    BadHello,
    /// The path of MAIL.
    #[error("bad sender: {0}")]
    BadSender(AddressError),
    /// The path of RCPT.
    #[error("bad recipient: {0}")]
    BadRecipient(AddressError),
    /// A parameter that was not offered.
    #[error("unknown parameter")]
    UnknownParameter,
}

impl CommandError {
    /// What the peer is told.
    pub fn reply(self) -> Reply {
        match self {
            CommandError::Unknown | CommandError::Foreign => Reply::unknown_command(),
            CommandError::BadArguments => Reply::bad_arguments(),
            CommandError::BadHello => Reply::bad_hello(),
            CommandError::BadSender(AddressError::NotAscii) => Reply::smtputf8_needed(),
            CommandError::BadRecipient(AddressError::NotAscii) => Reply::smtputf8_needed(),
            CommandError::BadSender(error) => Reply::bad_sender().with_text(error.to_string()),
            CommandError::BadRecipient(error) => {
                Reply::bad_recipient().with_text(error.to_string())
            }
            CommandError::UnknownParameter => Reply::unknown_parameter(),
        }
    }
}

impl Command {
    /// Parses a line without its CRLF. `ours` completes `Postmaster`; `smtputf8` was declared for the transaction.
    pub fn parse(line: &[u8], ours: &Host, smtputf8: bool) -> Result<Command, CommandError> {
        let line = std::str::from_utf8(line)
            .map_err(|_| CommandError::BadArguments)?
            .trim_ascii_end();
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let mut upper = [0; 8];
        let Some(upper) = upper.get_mut(..verb.len()) else {
            return Err(CommandError::Unknown);
        };
        upper.copy_from_slice(verb.as_bytes());
        upper.make_ascii_uppercase();
        match &*upper {
            b"MAIL" => parse_mail(rest),
            b"RCPT" => parse_rcpt(rest, ours, smtputf8),
            b"DATA" => alone(rest, Command::Data),
            b"RSET" => alone(rest, Command::Rset),
            b"QUIT" => alone(rest, Command::Quit),
            b"EHLO" => parse_helo(rest).map(Command::Ehlo),
            b"HELO" => parse_helo(rest).map(Command::Helo),
            b"NOOP" => Ok(Command::Noop),
            b"VRFY" => Ok(Command::Vrfy),
            b"EXPN" => Ok(Command::Expn),
            b"HELP" => Ok(Command::Help),
            // RFC 3207 section 4: "STARTTLS, with no parameters".
            b"STARTTLS" => alone(rest, Command::StartTls),
            b"AUTH" => Ok(Command::Auth),
            b"GET" | b"POST" | b"PUT" | b"HEAD" | b"OPTIONS" | b"CONNECT" => {
                Err(CommandError::Foreign)
            }
            _ => Err(CommandError::Unknown),
        }
    }

    /// The command as it goes over the wire.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        use std::io::Write;
        // A Vec takes everything.
        let _ = write!(out, "{self}\r\n");
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::Helo(name) => write!(f, "HELO {name}"),
            Command::Ehlo(name) => write!(f, "EHLO {name}"),
            Command::Lhlo(name) => write!(f, "LHLO {name}"),
            Command::Mail(path, parameters) => write!(f, "MAIL FROM:<{path}>{parameters}"),
            Command::Rcpt(mailbox) => write!(f, "RCPT TO:<{mailbox}>"),
            Command::Data => f.write_str("DATA"),
            Command::Rset => f.write_str("RSET"),
            Command::Noop => f.write_str("NOOP"),
            Command::Vrfy => f.write_str("VRFY"),
            Command::Expn => f.write_str("EXPN"),
            Command::Help => f.write_str("HELP"),
            Command::Quit => f.write_str("QUIT"),
            Command::StartTls => f.write_str("STARTTLS"),
            Command::Auth => f.write_str("AUTH"),
        }
    }
}

/// Each with a space before it.
impl fmt::Display for MailParameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(size) = self.size {
            write!(f, " SIZE={size}")?;
        }
        if self.eight_bit {
            f.write_str(" BODY=8BITMIME")?;
        }
        if self.smtputf8 {
            f.write_str(" SMTPUTF8")?;
        }
        Ok(())
    }
}

fn alone(rest: &str, command: Command) -> Result<Command, CommandError> {
    match rest.is_empty() {
        true => Ok(command),
        false => Err(CommandError::BadArguments),
    }
}

/// RFC 5321 4.1.4: a name that does not resolve is no reason to refuse mail; neither is one with an underscore. It only
/// must be fit to stand in a trace field.
fn parse_helo(rest: &str) -> Result<String, CommandError> {
    let name = rest.trim_ascii();
    let fit = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
    match !name.is_empty() && name.len() <= mail::limits::DOMAIN_BYTES_MAX && name.bytes().all(fit)
    {
        true => Ok(name.to_owned()),
        false => Err(CommandError::BadHello),
    }
}

fn parse_mail(rest: &str) -> Result<Command, CommandError> {
    let (path, rest) = parse_path(rest, "FROM:")?;
    let parameters = MailParameters::parse(rest)?;
    let path = ReversePath::parse(path, parameters.smtputf8).map_err(CommandError::BadSender)?;
    Ok(Command::Mail(path, parameters))
}

fn parse_rcpt(rest: &str, ours: &Host, smtputf8: bool) -> Result<Command, CommandError> {
    let (path, rest) = parse_path(rest, "TO:")?;
    let mailbox =
        Mailbox::parse_recipient(path, smtputf8, ours).map_err(CommandError::BadRecipient)?;
    match rest.trim_ascii().is_empty() {
        true => Ok(Command::Rcpt(mailbox)),
        false => Err(CommandError::UnknownParameter),
    }
}

impl MailParameters {
    fn parse(text: &str) -> Result<MailParameters, CommandError> {
        let mut parameters = MailParameters::default();
        let mut seen = [false; 3];
        for word in text.split_ascii_whitespace() {
            let (keyword, value) = word
                .split_once('=')
                .map_or((word, None), |(k, v)| (k, Some(v)));
            let which = if keyword.eq_ignore_ascii_case("SIZE") {
                // RFC 1870 section 3: at most 20 digits.
                let digits = value.filter(|v| {
                    !v.is_empty() && v.len() <= 20 && v.bytes().all(|b| b.is_ascii_digit())
                });
                let size = digits.ok_or(CommandError::BadArguments)?.parse();
                parameters.size = Some(size.unwrap_or(u64::MAX));
                0
            } else if keyword.eq_ignore_ascii_case("BODY") {
                parameters.eight_bit = match value {
                    Some(v) if v.eq_ignore_ascii_case("8BITMIME") => true,
                    Some(v) if v.eq_ignore_ascii_case("7BIT") => false,
                    _ => return Err(CommandError::BadArguments),
                };
                1
            } else if keyword.eq_ignore_ascii_case("SMTPUTF8") {
                parameters.smtputf8 = value
                    .is_none()
                    .then_some(true)
                    .ok_or(CommandError::BadArguments)?;
                2
            } else {
                return Err(CommandError::UnknownParameter);
            };
            if std::mem::replace(&mut seen[which], true) {
                return Err(CommandError::BadArguments);
            }
        }
        Ok(parameters)
    }
}

/// What stands between the angle brackets, and what follows them. Spaces after the colon are wrong but common (RFC 5321
/// 3.3); a source route is taken and ignored (appendix C).
fn parse_path<'a>(rest: &'a str, keyword: &str) -> Result<(&'a str, &'a str), CommandError> {
    let head = rest
        .get(..keyword.len())
        .filter(|head| head.eq_ignore_ascii_case(keyword));
    let rest = &rest[head.ok_or(CommandError::BadArguments)?.len()..];
    let rest = rest
        .trim_ascii_start()
        .strip_prefix('<')
        .ok_or(CommandError::BadArguments)?;
    let end = end_of_path(rest).ok_or(CommandError::BadArguments)?;
    let (path, rest) = (&rest[..end], &rest[end + 1..]);
    if !rest.is_empty() && !rest.starts_with(' ') {
        return Err(CommandError::BadArguments);
    }
    let path = match path.strip_prefix('@') {
        Some(route) => route.split_once(':').ok_or(CommandError::BadArguments)?.1,
        None => path,
    };
    Ok((path, rest))
}

/// The closing bracket that does not stand within a quoted string.
fn end_of_path(text: &str) -> Option<usize> {
    let mut quoted = false;
    let mut escaped = false;
    text.bytes().position(|byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'>' if !quoted => return true,
            _ => {}
        }
        false
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<String, CommandError> {
        let ours = Host::parse("mx.example.org").unwrap();
        Command::parse(line.as_bytes(), &ours, false).map(|command| command.to_string())
    }

    #[test]
    fn commands_print_in_their_canonical_form() {
        for (line, printed) in [
            ("ehlo Client.example", "EHLO Client.example"),
            (
                "mail from:<A@Example.org> body=8bitmime size=10",
                "MAIL FROM:<A@example.org> SIZE=10 BODY=8BITMIME",
            ),
            ("MAIL FROM: <>", "MAIL FROM:<>"),
            (
                "MAIL FROM:<ü@example.org> SMTPUTF8",
                "MAIL FROM:<ü@example.org> SMTPUTF8",
            ),
            (
                "RCPT TO:<@a.example,@b.example:c@d.example>",
                "RCPT TO:<c@d.example>",
            ),
            ("rcpt to:<\"a>b\"@d.example>", "RCPT TO:<\"a>b\"@d.example>"),
            (
                "RCPT TO:<Postmaster>",
                "RCPT TO:<postmaster@mx.example.org>",
            ),
            ("NOOP whatever", "NOOP"),
            ("quit ", "QUIT"),
        ] {
            assert_eq!(parse(line).as_deref(), Ok(printed));
        }
    }

    #[test]
    fn what_does_not_parse_has_a_reason() {
        use CommandError::*;
        for (line, error) in [
            ("", Unknown),
            ("FOO", Unknown),
            ("MAILFROM:<a@b.example>", Unknown),
            ("GET / HTTP/1.1", Foreign),
            ("MAIL", BadArguments),
            ("MAIL FROM:a@b.example", BadArguments),
            ("MAIL FROM:<a@b.example", BadArguments),
            ("MAIL FROM:<a@b.example>SIZE=1", BadArguments),
            ("MAIL FROM:<a@b.example> SIZE=x", BadArguments),
            ("MAIL FROM:<a@b.example> SIZE=1 SIZE=1", BadArguments),
            ("MAIL FROM:<a@b.example> BODY=BINARYMIME", BadArguments),
            ("MAIL FROM:<a@b.example> RET=HDRS", UnknownParameter),
            ("MAIL FROM:<a@-b>", BadSender(AddressError::BadDomain)),
            ("MAIL FROM:<ü@b.example>", BadSender(AddressError::NotAscii)),
            ("RCPT TO:<>", BadRecipient(AddressError::NoDomain)),
            ("RCPT TO:<a@b.example> NOTIFY=NEVER", UnknownParameter),
            ("DATA now", BadArguments),
            ("EHLO", BadHello),
            ("EHLO a b", BadHello),
            ("HELO a(b)", BadHello),
        ] {
            assert_eq!(parse(line), Err(error), "{line}");
        }
    }
}
