//! The trace field that a hop puts before a message (RFC 5321 section 4.4).

use std::fmt::Write;
use std::net::IpAddr;

use crate::address::Mailbox;
use crate::time::date;

/// The value of `with` (RFC 3848, RFC 6531 4.3, RFC 5321 4.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Protocol {
    /// EHLO, not HELO.
    pub extended: bool,
    /// Over TLS.
    pub tls: bool,
    /// After AUTH.
    pub authenticated: bool,
    /// SMTPUTF8 was declared for this message.
    pub utf8: bool,
}

impl Protocol {
    /// The registered word.
    pub fn as_str(self) -> &'static str {
        match (self.extended, self.utf8, self.tls, self.authenticated) {
            (false, ..) => "SMTP",
            (true, false, false, false) => "ESMTP",
            (true, false, true, false) => "ESMTPS",
            (true, false, false, true) => "ESMTPA",
            (true, false, true, true) => "ESMTPSA",
            (true, true, false, false) => "UTF8SMTP",
            (true, true, true, false) => "UTF8SMTPS",
            (true, true, false, true) => "UTF8SMTPA",
            (true, true, true, true) => "UTF8SMTPSA",
        }
    }
}

/// What a `Received` field says.
#[derive(Clone, Debug)]
pub struct Received<'a> {
    /// What the client called itself; already parsed, so it holds no white space or parentheses.
    pub helo: &'a str,
    /// Its address.
    pub client: IpAddr,
    /// Name of that address, if it was looked up and confirmed.
    pub client_name: Option<&'a str>,
    /// Our name.
    pub by: &'a str,
    /// How it came.
    pub protocol: Protocol,
    /// TLS version and cipher suite, for people: `TLSv1.3 TLS13_AES_256_GCM_SHA384`.
    pub tls: Option<&'a str>,
    /// The message's id.
    pub id: &'a str,
    /// All recipients of the transaction. Named only if there is one: `for` must not tell one of another (RFC 5321 7.2).
    pub recipients: &'a [Mailbox],
    /// When, in milliseconds since the Unix epoch.
    pub unix_millis: u64,
}

impl Received<'_> {
    /// The field with its CRLF, folded so that each clause group has its own line.
    pub fn compose(&self) -> Vec<u8> {
        let mut text = String::with_capacity(256);
        let address = match self.client {
            IpAddr::V4(address) => format!("[{address}]"),
            IpAddr::V6(address) => format!("[IPv6:{address}]"),
        };
        let _ = write!(text, "Received: from {}", self.helo);
        let _ = match self.client_name {
            Some(name) => write!(text, " ({name} {address})"),
            None => write!(text, " ({address})"),
        };
        if let Some(tls) = self.tls {
            let _ = write!(
                text,
                "\r\n\t({})",
                tls.replace(['(', ')', '\\', '\r', '\n'], " ")
            );
        }
        let _ = write!(
            text,
            "\r\n\tby {} with {} id {}",
            self.by,
            self.protocol.as_str(),
            self.id
        );
        if let [recipient] = self.recipients {
            // RFC 6531 3.7.3: an address that is not ASCII stands here only in a message that asked for SMTPUTF8.
            if recipient.is_ascii() || self.protocol.utf8 {
                let _ = write!(text, "\r\n\tfor <{recipient}>");
            }
        }
        let _ = write!(text, ";\r\n\t{}\r\n", date(self.unix_millis));
        text.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hop_leaves_its_line_and_names_a_recipient_only_if_it_is_the_only_one() {
        let one = [Mailbox::parse("a@example.org", false).unwrap()];
        let two = [
            one[0].clone(),
            Mailbox::parse("b@example.org", false).unwrap(),
        ];
        let mut received = Received {
            helo: "client.example",
            client: "192.0.2.7".parse().unwrap(),
            client_name: None,
            by: "mx.example.org",
            protocol: Protocol {
                extended: true,
                ..Protocol::default()
            },
            tls: None,
            id: "01ARZ3NDEKTSV4RRFFQ69G5FAV",
            recipients: &one,
            unix_millis: 1_700_000_000_000,
        };
        let text = String::from_utf8(received.compose()).unwrap();
        assert_eq!(
            text,
            "Received: from client.example ([192.0.2.7])\r\n\tby mx.example.org with ESMTP id \
             01ARZ3NDEKTSV4RRFFQ69G5FAV\r\n\tfor <a@example.org>;\r\n\tTue, 14 Nov 2023 22:13:20 +0000\r\n"
        );
        received.recipients = &two;
        received.tls = Some("TLSv1.3 (x)");
        received.client = "2001:db8::1".parse().unwrap();
        received.client_name = Some("c.example");
        let text = String::from_utf8(received.compose()).unwrap();
        assert!(
            !text.contains("for <")
                && text.contains("(c.example [IPv6:2001:db8::1])\r\n\t(TLSv1.3  x )")
        );
    }
}
