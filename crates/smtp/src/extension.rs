//! Extensions: what our server offers in its reply to EHLO, and what a client finds there (RFC 5321 section 4.1.1.1).

use mail::{Host, Reply};

/// The reply to EHLO. RFC 2034 section 4: no enhanced codes here.
pub(crate) fn offer(host: &Host, helo: &str, message_bytes_max: u64, starttls: bool) -> Reply {
    let starttls = if starttls { "STARTTLS\n" } else { "" };
    let text = format!(
        "{host} greets {helo}\nPIPELINING\nSIZE {message_bytes_max}\n8BITMIME\nSMTPUTF8\nENHANCEDSTATUSCODES\n{starttls}HELP"
    );
    Reply::new(250, None, text)
}

/// What a server offered.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Extensions {
    /// PIPELINING (RFC 2920).
    pub pipelining: bool,
    /// SIZE (RFC 1870).
    pub size: bool,
    /// Octets of a message with SIZE; `None`: no fixed limit.
    pub size_max: Option<u64>,
    /// 8BITMIME (RFC 6152).
    pub eight_bit: bool,
    /// SMTPUTF8 (RFC 6531).
    pub smtputf8: bool,
    /// ENHANCEDSTATUSCODES (RFC 2034).
    pub enhanced_codes: bool,
    /// STARTTLS (RFC 3207).
    pub starttls: bool,
    /// DSN (RFC 3461).
    pub dsn: bool,
    /// CHUNKING (RFC 3030).
    pub chunking: bool,
    /// Mechanisms of AUTH (RFC 4954), upper case, with a space between.
    pub auth: String,
}

impl Extensions {
    /// Reads a reply to EHLO; its first line is a greeting.
    pub fn parse(reply: &Reply) -> Extensions {
        let mut found = Extensions::default();
        for line in reply.lines().skip(1) {
            let mut words = line.split_ascii_whitespace();
            let keyword = words.next().unwrap_or_default().to_ascii_uppercase();
            match keyword.as_str() {
                "PIPELINING" => found.pipelining = true,
                "SIZE" => {
                    found.size = true;
                    // RFC 1870 section 4: zero says that there is no fixed limit.
                    found.size_max = words.next().and_then(|n| n.parse().ok()).filter(|n| *n > 0);
                }
                "8BITMIME" => found.eight_bit = true,
                "SMTPUTF8" => found.smtputf8 = true,
                "ENHANCEDSTATUSCODES" => found.enhanced_codes = true,
                "STARTTLS" => found.starttls = true,
                "DSN" => found.dsn = true,
                "CHUNKING" => found.chunking = true,
                "AUTH" => found.auth = words.collect::<Vec<_>>().join(" ").to_ascii_uppercase(),
                _ => {}
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_offer_is_what_we_find() {
        let host = Host::parse("mx.example.org").unwrap();
        let found = Extensions::parse(&offer(&host, "c.example", 1000, false));
        assert!(
            found.pipelining
                && found.size
                && found.eight_bit
                && found.smtputf8
                && found.enhanced_codes
        );
        assert_eq!((found.size_max, found.starttls), (Some(1000), false));
        let found = Extensions::parse(&offer(&host, "c.example", 1000, true));
        assert!(found.starttls && found.enhanced_codes);
        let found = Extensions::parse(&Reply::new(250, None, "x\nsize 0\nAuth plain Login\nX-FOO"));
        assert_eq!(
            (found.size, found.size_max, &*found.auth),
            (true, None, "PLAIN LOGIN")
        );
    }
}
