//! Replies (RFC 5321 section 4.2) and enhanced status codes (RFC 2034, RFC 3463): parse and print.

use std::borrow::Cow;
use std::fmt;
use std::io::Write;

use crate::limits::REPLY_LINE_BYTES_MAX;

/// `class.subject.detail` (RFC 3463 section 2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EnhancedCode {
    /// 2 success, 4 for now, 5 for good.
    pub class: u8,
    /// What it is about.
    pub subject: u16,
    /// What exactly.
    pub detail: u16,
}

impl EnhancedCode {
    /// Three numbers; the class is 2, 4 or 5.
    pub const fn new(class: u8, subject: u16, detail: u16) -> EnhancedCode {
        EnhancedCode {
            class,
            subject,
            detail,
        }
    }

    /// Parses exactly one code; `None` where the text is anything else.
    pub fn parse(text: &str) -> Option<EnhancedCode> {
        let mut parts = text.split('.');
        let class = match parts.next()? {
            "2" => 2,
            "4" => 4,
            "5" => 5,
            _ => return None,
        };
        // RFC 3463 section 2: one to three digits.
        let mut number = || {
            parts
                .next()
                .filter(|p| p.len() <= 3 && p.bytes().all(|b| b.is_ascii_digit()))?
                .parse()
                .ok()
        };
        let code = EnhancedCode {
            class,
            subject: number()?,
            detail: number()?,
        };
        parts.next().is_none().then_some(code)
    }
}

impl fmt::Display for EnhancedCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.class, self.subject, self.detail)
    }
}

impl fmt::Debug for EnhancedCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One reply. Made from the table in [`crate::code`], or parsed from a peer's lines.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reply {
    /// Three digits, the first 2 to 5.
    pub code: u16,
    /// The enhanced status code, where the peer or the table gives one.
    pub enhanced: Option<EnhancedCode>,
    /// Without codes; a line feed stands between lines.
    pub text: Cow<'static, str>,
}

impl Reply {
    /// Any reply; prefer the table in [`crate::code`].
    pub fn new(
        code: u16,
        enhanced: Option<EnhancedCode>,
        text: impl Into<Cow<'static, str>>,
    ) -> Reply {
        Reply {
            code,
            enhanced,
            text: text.into(),
        }
    }

    /// The text, line by line; at least one.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.text.split('\n')
    }

    /// 2yz.
    pub fn is_success(&self) -> bool {
        self.code / 100 == 2
    }

    /// 3yz: go on.
    pub fn is_intermediate(&self) -> bool {
        self.code / 100 == 3
    }

    /// 4yz: for now.
    pub fn is_transient(&self) -> bool {
        self.code / 100 == 4
    }

    /// 5yz: for good.
    pub fn is_permanent(&self) -> bool {
        self.code / 100 == 5
    }

    /// Whether the sender of this reply closes the connection after it (RFC 5321 3.8).
    pub fn closes(&self) -> bool {
        self.code == 421
    }

    /// The reply as it goes over the wire. A line that would be too long is cut (RFC 5321 4.5.3.1.5).
    pub fn write_to(&self, out: &mut Vec<u8>) {
        let mut lines = self.lines().peekable();
        while let Some(line) = lines.next() {
            let start = out.len();
            out.extend([100, 10, 1].map(|n| b'0' + (self.code / n % 10) as u8));
            out.push(if lines.peek().is_some() { b'-' } else { b' ' });
            if let Some(enhanced) = self.enhanced {
                let _ = write!(out, "{enhanced} ");
            }
            let text = cut(line, REPLY_LINE_BYTES_MAX - (out.len() - start));
            // What came from elsewhere must not begin a line of its own.
            out.extend(text.bytes().map(|b| if b == b'\r' { b' ' } else { b }));
            out.extend_from_slice(b"\r\n");
        }
    }

    /// The reply as it goes over the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.text.len() + 16);
        self.write_to(&mut out);
        out
    }
}

/// On one line, for logs and reports.
impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:03}", self.code)?;
        if let Some(enhanced) = self.enhanced {
            write!(f, " {enhanced}")?;
        }
        self.lines().try_for_each(|line| write!(f, " {line}"))
    }
}

/// At most `max` octets of `text`, never half a character.
pub(crate) fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

/// A line of a reply, before its CRLF was taken away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplyLine<'a> {
    /// Three digits.
    pub code: u16,
    /// No hyphen follows the code.
    pub last: bool,
    /// What follows the code and its separator.
    pub text: &'a [u8],
}

impl ReplyLine<'_> {
    /// Parses one line without its end; `None` where it is no reply (RFC 5321 4.2). The second digit may be any: real
    /// servers answer 571.
    pub fn parse(line: &[u8]) -> Option<ReplyLine<'_>> {
        let (digits, rest) = line.split_at_checked(3)?;
        if !digits.iter().all(u8::is_ascii_digit) || !(b'2'..=b'5').contains(&digits[0]) {
            return None;
        }
        let code = digits.iter().fold(0, |n, d| n * 10 + u16::from(d - b'0'));
        match rest.split_first() {
            // RFC 5321 4.2: a receiver takes the code alone.
            None => Some(ReplyLine {
                code,
                last: true,
                text: rest,
            }),
            Some((b' ', text)) => Some(ReplyLine {
                code,
                last: true,
                text,
            }),
            Some((b'-', text)) => Some(ReplyLine {
                code,
                last: false,
                text,
            }),
            Some(_) => None,
        }
    }
}

/// Gathers the lines of one reply.
#[derive(Debug, Default)]
pub struct ReplyParser {
    first: Option<(u16, Option<EnhancedCode>)>,
    text: String,
}

/// What [`ReplyParser::push`] refuses: the peer no longer speaks SMTP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReplyError {
    /// No code, or nothing sensible after it.
    #[error("a line is no SMTP reply")]
    Malformed,
    /// Lines of one reply differ in their code (RFC 5321 4.2.1).
    #[error("the lines of one reply have different codes")]
    CodeChanged,
}

impl ReplyParser {
    /// Takes a line without its end; gives the reply with its last line. Octets that are not printable become spaces.
    pub fn push(&mut self, line: &[u8]) -> Result<Option<Reply>, ReplyError> {
        let line = ReplyLine::parse(line).ok_or(ReplyError::Malformed)?;
        let text = String::from_utf8_lossy(line.text);
        let (head, tail) = text.split_once(' ').unwrap_or((&text, ""));
        // RFC 2034 section 4: the class is that of the reply code.
        let enhanced = EnhancedCode::parse(head).filter(|e| u16::from(e.class) == line.code / 100);
        match self.first {
            None => self.first = Some((line.code, enhanced)),
            Some((code, _)) if code != line.code => return Err(ReplyError::CodeChanged),
            Some(_) => self.text.push('\n'),
        }
        let text = if enhanced.is_some() { tail } else { &text };
        self.text
            .extend(text.chars().map(|c| if c.is_control() { ' ' } else { c }));
        if !line.last {
            return Ok(None);
        }
        let text = std::mem::take(&mut self.text);
        Ok(self
            .first
            .take()
            .map(|(code, enhanced)| Reply::new(code, enhanced, text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(lines: &[&str]) -> Result<Option<Reply>, ReplyError> {
        let mut parser = ReplyParser::default();
        let (last, first) = lines.split_last().unwrap();
        for line in first {
            assert_eq!(parser.push(line.as_bytes())?, None);
        }
        parser.push(last.as_bytes())
    }

    #[test]
    fn a_reply_survives_print_and_parse() {
        let reply = Reply::new(
            452,
            Some(EnhancedCode::new(4, 5, 3)),
            "too many\nrecipients",
        );
        let bytes = reply.to_bytes();
        assert_eq!(bytes, b"452-4.5.3 too many\r\n452 4.5.3 recipients\r\n");
        assert_eq!(
            parse(&["452-4.5.3 too many", "452 4.5.3 recipients"]),
            Ok(Some(reply))
        );
    }

    #[test]
    fn codes_of_the_wrong_class_are_text() {
        let reply = parse(&["550 2.1.5 odd"]).unwrap().unwrap();
        assert_eq!((reply.enhanced, &*reply.text), (None, "2.1.5 odd"));
        assert_eq!(EnhancedCode::parse("5.1.1234"), None);
        assert_eq!(EnhancedCode::parse("5.1"), None);
        assert_eq!(EnhancedCode::parse("5.1.1.1"), None);
    }

    #[test]
    fn what_is_no_reply_is_refused() {
        for line in ["", "25", "25x hi", "650 hi", "150 hi", "250_hi", "hello"] {
            assert_eq!(parse(&[line]), Err(ReplyError::Malformed), "{line}");
        }
        assert_eq!(parse(&["250-a", "550 b"]), Err(ReplyError::CodeChanged));
        assert_eq!(parse(&["250"]).unwrap().unwrap().to_string(), "250 ");
    }

    #[test]
    fn text_from_elsewhere_cannot_smuggle_lines_and_is_cut() {
        let reply = Reply::new(550, None, "a\rb".to_string());
        assert_eq!(reply.to_bytes(), b"550 a b\r\n");
        let reply = Reply::new(550, None, "ü".repeat(400));
        assert_eq!(reply.to_bytes().len(), 512);
    }
}
