//! Mailboxes and the null path (RFC 5321 section 4.1.2, RFC 6531 section 3.3): parse and print.

use std::fmt;
use std::sync::Arc;

use crate::domain::{Destination, Host};
use crate::limits::MAILBOX_BYTES_MAX;

/// Why a text is no address. All of them are the peer's doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AddressError {
    /// Nothing stands right of the `@`, or there is none.
    #[error("the address has no domain")]
    NoDomain,
    /// Nothing stands left of the `@`.
    #[error("the address has no local part")]
    NoLocalPart,
    /// Neither a dot-string nor a quoted string.
    #[error("the local part is malformed")]
    BadLocalPart,
    /// Not made of letters, digits, hyphens and dots, or U-labels that mean nothing.
    #[error("the domain is malformed")]
    BadDomain,
    /// Neither IPv4 nor `IPv6:` and an address.
    #[error("the address literal is malformed")]
    BadLiteral,
    /// Above [`crate::limits::DOMAIN_BYTES_MAX`].
    #[error("the domain is longer than 255 octets")]
    DomainTooLong,
    /// Above [`MAILBOX_BYTES_MAX`].
    #[error("the address is longer than 254 octets")]
    TooLong,
    /// Octets above 127 where SMTPUTF8 was not asked for.
    #[error("the address is not ASCII and SMTPUTF8 was not asked for")]
    NotAscii,
}

/// An address: local part in canonical form (quoted only where it must be) and host.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mailbox {
    local: Arc<str>,
    host: Host,
}

impl Mailbox {
    /// Parses `local@host` without angle brackets. With `utf8`, RFC 6531 holds; the domain becomes A-labels always.
    pub fn parse(text: &str, utf8: bool) -> Result<Mailbox, AddressError> {
        if !utf8 && !text.is_ascii() {
            return Err(AddressError::NotAscii);
        }
        if text.len() > MAILBOX_BYTES_MAX {
            return Err(AddressError::TooLong);
        }
        let split = end_of_local(text)?;
        let (local, rest) = text.split_at(split);
        let host = rest.strip_prefix('@').ok_or(match rest.is_empty() {
            true => AddressError::NoDomain,
            false => AddressError::BadLocalPart,
        })?;
        if local.is_empty() {
            return Err(AddressError::NoLocalPart);
        }
        let mailbox = Mailbox {
            local: canonical_local(local)?,
            host: Host::parse(host)?,
        };
        // U-labels grow when they become A-labels.
        match mailbox.local.len() + 1 + mailbox.host.to_string().len() > MAILBOX_BYTES_MAX {
            true => Err(AddressError::TooLong),
            false => Ok(mailbox),
        }
    }

    /// What RCPT may name: a mailbox, or `Postmaster` alone, which is ours (RFC 5321 4.1.1.3, 4.5.1).
    pub fn parse_recipient(text: &str, utf8: bool, ours: &Host) -> Result<Mailbox, AddressError> {
        match text.eq_ignore_ascii_case("postmaster") {
            true => Ok(Mailbox {
                local: "postmaster".into(),
                host: ours.clone(),
            }),
            false => Mailbox::parse(text, utf8),
        }
    }

    /// The local part as it stands in a command.
    pub fn local(&self) -> &str {
        &self.local
    }

    /// What stands right of the `@`.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Where mail for this address goes.
    pub fn destination(&self) -> Destination {
        self.host.destination()
    }

    /// Whether it can be named without SMTPUTF8.
    pub fn is_ascii(&self) -> bool {
        self.local.is_ascii()
    }
}

impl fmt::Display for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.local, self.host)
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where reports go.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum ReversePath {
    /// `<>`: nobody is told (RFC 5321 4.5.5).
    Null,
    /// The sender.
    Mailbox(Mailbox),
}

impl ReversePath {
    /// Parses what stands between the angle brackets; empty is the null path.
    pub fn parse(text: &str, utf8: bool) -> Result<ReversePath, AddressError> {
        match text.is_empty() {
            true => Ok(ReversePath::Null),
            false => Mailbox::parse(text, utf8).map(ReversePath::Mailbox),
        }
    }

    /// The mailbox, if there is one.
    pub fn mailbox(&self) -> Option<&Mailbox> {
        match self {
            ReversePath::Null => None,
            ReversePath::Mailbox(mailbox) => Some(mailbox),
        }
    }

    /// Whether it can be named without SMTPUTF8.
    pub fn is_ascii(&self) -> bool {
        self.mailbox().is_none_or(Mailbox::is_ascii)
    }
}

/// Without angle brackets; the null path is empty.
impl fmt::Display for ReversePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReversePath::Null => Ok(()),
            ReversePath::Mailbox(mailbox) => mailbox.fmt(f),
        }
    }
}

/// The position right after the local part.
fn end_of_local(text: &str) -> Result<usize, AddressError> {
    if !text.starts_with('"') {
        return Ok(text.find('@').unwrap_or(text.len()));
    }
    let bytes = text.as_bytes();
    let mut at = 1;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => return Ok(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    Err(AddressError::BadLocalPart)
}

fn canonical_local(text: &str) -> Result<Arc<str>, AddressError> {
    if !text.starts_with('"') {
        return match is_dot_string(text) {
            true => Ok(text.into()),
            false => Err(AddressError::BadLocalPart),
        };
    }
    let plain = unquote(&text[1..text.len() - 1])?;
    match is_dot_string(&plain) {
        true => Ok(plain.into()),
        false => Ok(quote(&plain).into()),
    }
}

/// RFC 5321 4.1.2 `QcontentSMTP`: any printable character, `\` before any of them.
fn unquote(text: &str) -> Result<String, AddressError> {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(mut char) = chars.next() {
        if char == '\\' {
            // RFC 6531 3.3 extends qtext but not the pair: `\` goes only before ASCII.
            char = chars
                .next()
                .filter(char::is_ascii)
                .ok_or(AddressError::BadLocalPart)?;
        }
        if char.is_control() {
            return Err(AddressError::BadLocalPart);
        }
        plain.push(char);
    }
    Ok(plain)
}

fn quote(plain: &str) -> String {
    let mut text = String::with_capacity(plain.len() + 2);
    text.push('"');
    for char in plain.chars() {
        if matches!(char, '"' | '\\') {
            text.push('\\');
        }
        text.push(char);
    }
    text.push('"');
    text
}

/// RFC 5321 4.1.2 `Dot-string`.
fn is_dot_string(text: &str) -> bool {
    text.split('.')
        .all(|atom| !atom.is_empty() && atom.chars().all(is_atext))
}

/// RFC 5322 3.2.3, with RFC 6531 3.3; C1 controls are text to no one and are left out.
fn is_atext(char: char) -> bool {
    char.is_ascii_alphanumeric()
        || "!#$%&'*+-/=?^_`{|}~".contains(char)
        || (!char.is_ascii() && !char.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(text: &str) -> String {
        match Mailbox::parse(text, true) {
            Ok(mailbox) => mailbox.to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn quoted_local_parts_lose_quotes_that_they_do_not_need() {
        assert_eq!(printed("\"a.b\"@Example.ORG"), "a.b@example.org");
        assert_eq!(printed("\"a b\"@example.org"), "\"a b\"@example.org");
        assert_eq!(printed("\"\\a\\\"\"@example.org"), "\"a\\\"\"@example.org");
        assert_eq!(printed("\"@\"@example.org"), "\"@\"@example.org");
        assert_eq!(printed("\"\"@example.org"), "\"\"@example.org");
        assert_eq!(
            printed("\"a\\\"@example.org"),
            "the local part is malformed"
        );
    }

    #[test]
    fn domains_become_lower_case_a_labels() {
        assert_eq!(printed("a@Bücher.example"), "a@xn--bcher-kva.example");
        assert_eq!(printed("ü@example.org"), "ü@example.org");
        assert_eq!(printed("a@example.org."), "the domain is malformed");
        assert_eq!(printed("a@-x.org"), "the domain is malformed");
        assert_eq!(
            Mailbox::parse("ü@example.org", false),
            Err(AddressError::NotAscii)
        );
    }

    #[test]
    fn literals_name_destinations_with_their_brackets() {
        assert_eq!(printed("a@[192.0.2.1]"), "a@[192.0.2.1]");
        assert_eq!(printed("a@[ipv6:2001:DB8:0::1]"), "a@[IPv6:2001:db8::1]");
        assert_eq!(
            printed("a@[2001:db8::1]"),
            "the address literal is malformed"
        );
        let destination = Mailbox::parse("a@[IPv6:::1]", false).unwrap().destination();
        assert_eq!(destination.as_str(), "[IPv6:::1]");
        assert_eq!(destination.host().unwrap().destination(), destination);
    }

    #[test]
    fn postmaster_alone_is_ours_and_only_in_rcpt() {
        let ours = Host::parse("mx.example.org").unwrap();
        let mailbox = Mailbox::parse_recipient("PostMaster", false, &ours).unwrap();
        assert_eq!(mailbox.to_string(), "postmaster@mx.example.org");
        assert_eq!(
            Mailbox::parse("postmaster", false),
            Err(AddressError::NoDomain)
        );
    }

    #[test]
    fn limits_hold_at_the_octet() {
        let local = |n: usize| format!("{}@example.org", "a".repeat(n));
        // Return paths that hold the recipient are longer than the 64 that RFC 5321 4.5.3.1.1 makes everybody take.
        assert!(Mailbox::parse(&local(254 - 12), false).is_ok());
        assert_eq!(
            Mailbox::parse(&local(254 - 11), false),
            Err(AddressError::TooLong)
        );
        let label = "b".repeat(61);
        let long = format!("{}@{label}.{label}.{label}.cc", "a".repeat(64));
        assert_eq!(long.len(), 253);
        assert!(Mailbox::parse(&long, false).is_ok());
        assert_eq!(
            Mailbox::parse(&format!("{long}cc"), false),
            Err(AddressError::TooLong)
        );
    }
}
