//! Delivery reports (RFC 3461 section 6, RFC 3462, RFC 3464, RFC 6533): a pure function of plain values.
//!
//! The report is 7-bit clean unless an address in it or the returned header block is not; then it takes the types of
//! RFC 6533 (`message/global-delivery-status`, `message/global-headers`) and wants SMTPUTF8 of its next hops, if an
//! address asks for it, or 8BITMIME.

use std::fmt::Write;

use crate::limits::{DIAGNOSTIC_BYTES_MAX, RETURNED_HEADER_BYTES_MAX};
use crate::reply::{EnhancedCode, cut};
use crate::time::date;

/// What is reported of all its recipients.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// They will not get it (RFC 3464 2.3.3).
    Failed,
    /// It is still being tried.
    Delayed,
}

/// One recipient.
#[derive(Clone, Debug)]
pub struct ReportedRecipient<'a> {
    /// As it stood in RCPT.
    pub address: &'a str,
    /// What happened, as a code. Of what failed, class 5 is the next hop's final word, and class 4 says that the time for trying
    /// was over (RFC 3463 section 2): who reads it must not take the address for a wrong one. Of what is delayed it is 4.
    pub status: EnhancedCode,
    /// Reply code and text of the next hop; `None`: it said nothing.
    pub reply: Option<(u16, &'a str)>,
    /// What happened, for people, where there is no reply.
    pub reason: &'a str,
    /// The host that was spoken to; `None`: none was reached.
    pub remote_host: Option<&'a str>,
    /// Last attempt, in milliseconds since the Unix epoch; `None`: there was none, or nobody knows when.
    pub last_attempt_millis: Option<u64>,
    /// For delayed: until when it is tried.
    pub will_retry_until_millis: Option<u64>,
}

/// What a report is made from.
#[derive(Clone, Debug)]
pub struct Report<'a> {
    /// What is reported.
    pub action: Action,
    /// The name of who reports: a domain.
    pub reporting_mta: &'a str,
    /// Makes the boundary and the Message-ID; the report's own ULID as text is right.
    pub id: &'a str,
    /// The instant of the report, in milliseconds since the Unix epoch.
    pub now_millis: u64,
    /// The return path of the message: never empty, for a report is never reported on.
    pub return_path: &'a str,
    /// The id under which the message was queued.
    pub queue_id: &'a str,
    /// When it came, in milliseconds since the Unix epoch.
    pub arrival_millis: u64,
    /// At least one.
    pub recipients: &'a [ReportedRecipient<'a>],
    /// The header block of the message, perhaps with its empty line; cut at [`RETURNED_HEADER_BYTES_MAX`].
    pub original_header: &'a [u8],
}

/// A composed report.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Composed {
    /// The whole message, with CRLF line ends.
    pub bytes: Vec<u8>,
    /// Octets of its header block with the empty line.
    pub header_size: usize,
    /// Header Message-ID with its angle brackets.
    pub message_id: String,
    /// It has octets above 127.
    pub eight_bit: bool,
    /// Its header or an address in it is not ASCII.
    pub smtputf8: bool,
}

impl Report<'_> {
    /// The whole message.
    pub fn compose(&self) -> Composed {
        let smtputf8 =
            !self.return_path.is_ascii() || self.recipients.iter().any(|r| !r.address.is_ascii());
        let header = self.returned_header();
        let eight_bit = smtputf8 || !header.is_ascii();
        let boundary = format!("=_{}", self.id);
        let message_id = format!("<{}@{}>", self.id, self.reporting_mta);
        let mut text = self.header(&boundary, &message_id, eight_bit);
        let header_size = text.len();
        self.explain(&mut text, &boundary, smtputf8);
        self.status(&mut text, &boundary, smtputf8);
        // RFC 6533 section 6.3 for headers with UTF-8 in them; ASCII ones have text/rfc822-headers.
        let kind = if header.is_ascii() {
            "text/rfc822-headers"
        } else {
            "message/global-headers"
        };
        let encoding = if header.is_ascii() { "7bit" } else { "8bit" };
        let _ = write!(
            text,
            "--{boundary}\r\nContent-Description: Message header\r\nContent-Type: {kind}\r\n\
             Content-Transfer-Encoding: {encoding}\r\n\r\n"
        );
        let mut bytes = text.into_bytes();
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
        Composed {
            bytes,
            header_size,
            message_id,
            eight_bit,
            smtputf8,
        }
    }

    fn header(&self, boundary: &str, message_id: &str, eight_bit: bool) -> String {
        // A multipart says of its parts what they hold at most; without a word it is 7bit (RFC 2045 section 6.4).
        let encoding = if eight_bit {
            "Content-Transfer-Encoding: 8bit\r\n"
        } else {
            ""
        };
        let subject = match self.action {
            Action::Failed => "Undelivered mail",
            Action::Delayed => "Mail is delayed (nothing is to be done yet)",
        };
        let mut text = String::with_capacity(4096 + self.original_header.len());
        let _ = write!(
            text,
            "From: Mail Delivery System <postmaster@{mta}>\r\nTo: <{to}>\r\nSubject: {subject}\r\nDate: {date}\r\n\
             Message-ID: {message_id}\r\nAuto-Submitted: auto-replied\r\nMIME-Version: 1.0\r\n\
             Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary=\"{boundary}\"\r\n{encoding}\r\n",
            mta = self.reporting_mta,
            to = one_line(self.return_path, usize::MAX),
            date = date(self.now_millis),
        );
        text
    }

    /// The part for people.
    fn explain(&self, text: &mut String, boundary: &str, utf8: bool) {
        let (charset, encoding) = if utf8 {
            ("utf-8", "8bit")
        } else {
            ("us-ascii", "7bit")
        };
        let _ = write!(
            text,
            "--{boundary}\r\nContent-Description: Notification\r\nContent-Type: text/plain; charset={charset}\r\n\
             Content-Transfer-Encoding: {encoding}\r\n\r\n"
        );
        let _ = write!(
            text,
            "This is the mail system at {}.\r\n\r\n",
            self.reporting_mta
        );
        text.push_str(match self.action {
            Action::Failed => "Your message could not be delivered to the recipients below.\r\nIt will not be tried again.\r\n",
            Action::Delayed => {
                "Your message could not be delivered yet to the recipients below.\r\nYou need not send it again: it is still \
                 being tried.\r\n"
            }
        });
        let _ = write!(
            text,
            "It was queued here as {} on\r\n{}.\r\n",
            self.queue_id,
            date(self.arrival_millis)
        );
        for recipient in self.recipients {
            let _ = write!(
                text,
                "\r\n<{}>:\r\n",
                one_line(recipient.address, usize::MAX)
            );
            let said = match recipient.reply {
                Some((code, said)) => format!("{code} {said}"),
                None => recipient.reason.to_owned(),
            };
            // Nobody is quoted who said nothing.
            if let (Some(host), Some(_)) = (recipient.remote_host, recipient.reply) {
                let _ = write!(text, "    {} said:\r\n", printable(host, utf8));
            }
            wrap(text, &printable(&said, utf8));
            if let Some(until) = recipient.will_retry_until_millis {
                let _ = write!(text, "    It is tried until {}.\r\n", date(until));
            }
        }
        text.push_str("\r\n");
    }

    /// The part for programs (RFC 3464 section 2).
    fn status(&self, text: &mut String, boundary: &str, utf8: bool) {
        let kind = if utf8 {
            "global-delivery-status"
        } else {
            "delivery-status"
        };
        let encoding = if utf8 { "8bit" } else { "7bit" };
        let _ = write!(
            text,
            "--{boundary}\r\nContent-Description: Delivery report\r\nContent-Type: message/{kind}\r\n\
             Content-Transfer-Encoding: {encoding}\r\n\r\nReporting-MTA: dns; {mta}\r\nX-Queue-ID: {id}\r\n\
             Arrival-Date: {arrival}\r\n",
            mta = self.reporting_mta,
            id = self.queue_id,
            arrival = date(self.arrival_millis),
        );
        for recipient in self.recipients {
            self.recipient_status(text, recipient, utf8);
        }
        text.push_str("\r\n");
    }

    /// RFC 3464 section 2.3.
    fn recipient_status(&self, text: &mut String, recipient: &ReportedRecipient<'_>, utf8: bool) {
        // RFC 6533 section 3: the address type `utf-8` for what rfc822 cannot say.
        let kind = if recipient.address.is_ascii() {
            "rfc822"
        } else {
            "utf-8"
        };
        let (action, class) = match self.action {
            Action::Failed => ("failed", recipient.status.class),
            Action::Delayed => ("delayed", 4),
        };
        let address = one_line(recipient.address, usize::MAX);
        let status = EnhancedCode {
            class,
            ..recipient.status
        };
        let _ = write!(
            text,
            "\r\nFinal-Recipient: {kind}; {address}\r\nAction: {action}\r\nStatus: {status}\r\n"
        );
        if let Some(host) = recipient.remote_host {
            let _ = write!(text, "Remote-MTA: dns; {}\r\n", printable(host, utf8));
        }
        // `smtp` only for what a next hop really said (RFC 3464 2.3.6).
        let _ = match recipient.reply {
            Some((code, said)) => write!(
                text,
                "Diagnostic-Code: smtp; {code} {}\r\n",
                printable(said, utf8)
            ),
            None => write!(
                text,
                "Diagnostic-Code: X-Postroad; {}\r\n",
                printable(recipient.reason, utf8)
            ),
        };
        if let Some(at) = recipient.last_attempt_millis {
            let _ = write!(text, "Last-Attempt-Date: {}\r\n", date(at));
        }
        if let (Some(until), Action::Delayed) = (recipient.will_retry_until_millis, self.action) {
            let _ = write!(text, "Will-Retry-Until: {}\r\n", date(until));
        }
    }

    /// The header block as it may stand in a part: whole lines, without the empty line, and never the boundary.
    fn returned_header(&self) -> Vec<u8> {
        let mut header = self.original_header;
        if header.len() > RETURNED_HEADER_BYTES_MAX {
            header = &header[..RETURNED_HEADER_BYTES_MAX];
            let end = memchr::memrchr(b'\n', header).map_or(0, |at| at + 1);
            header = &header[..end];
        }
        let header = header.trim_ascii_end();
        let mut out = header.to_vec();
        if !out.is_empty() {
            out.extend_from_slice(b"\r\n");
        }
        // RFC 6532 headers are UTF-8; anything else is no `message/global-headers` and is made readable.
        match String::from_utf8(out) {
            Ok(text) => text.into_bytes(),
            Err(error) => String::from_utf8_lossy(error.as_bytes())
                .into_owned()
                .into_bytes(),
        }
    }
}

/// Without characters that would begin a line or a field.
fn one_line(text: &str, max: usize) -> String {
    cut(text, max)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// One line, short enough for a header, and ASCII unless `utf8`.
fn printable(text: &str, utf8: bool) -> String {
    let line = one_line(text, DIAGNOSTIC_BYTES_MAX);
    let short = cut(&line, 900);
    short
        .chars()
        .map(|c| if utf8 || c.is_ascii() { c } else { '?' })
        .collect()
}

/// Indented lines of some 70 columns.
fn wrap(text: &mut String, said: &str) {
    let mut column = 0;
    for word in said.split_whitespace() {
        if column == 0 || column + word.len() > 70 {
            text.push_str(if column == 0 { "    " } else { "\r\n    " });
            column = 4;
        } else {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += word.len();
    }
    text.push_str("\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipient(address: &str) -> ReportedRecipient<'_> {
        ReportedRecipient {
            address,
            status: EnhancedCode::new(5, 1, 1),
            reply: Some((550, "no such\nuser")),
            reason: "",
            remote_host: Some("mx.example.net"),
            last_attempt_millis: Some(1_700_000_000_000),
            will_retry_until_millis: None,
        }
    }

    fn report<'a>(
        recipients: &'a [ReportedRecipient<'a>],
        original_header: &'a [u8],
    ) -> Report<'a> {
        Report {
            action: Action::Failed,
            reporting_mta: "mx.example.org",
            id: "01ARZ3NDEKTSV4RRFFQ69G5FAV",
            now_millis: 1_700_000_100_000,
            return_path: "sender@example.com",
            queue_id: "01ARZ3NDEKTSV4RRFFQ69G5FAW",
            arrival_millis: 1_700_000_000_000,
            recipients,
            original_header,
        }
    }

    #[test]
    fn a_failure_is_told_in_seven_bits_to_people_and_programs() {
        let recipients = [recipient("a@example.net")];
        let composed = report(&recipients, b"Subject: hi\r\n\r\n").compose();
        let text = String::from_utf8(composed.bytes).unwrap();
        assert!(!composed.eight_bit && !composed.smtputf8 && text.is_ascii());
        for line in [
            "To: <sender@example.com>",
            "Auto-Submitted: auto-replied",
            "Date: Tue, 14 Nov 2023 22:15:00 +0000",
            "    mx.example.net said:",
            "    550 no such user",
            "Reporting-MTA: dns; mx.example.org",
            "Final-Recipient: rfc822; a@example.net",
            "Action: failed",
            "Status: 5.1.1",
            "Diagnostic-Code: smtp; 550 no such user",
            "Content-Type: text/rfc822-headers",
            "Subject: hi",
            "--=_01ARZ3NDEKTSV4RRFFQ69G5FAV--",
        ] {
            assert!(
                text.split("\r\n").any(|l| l == line),
                "{line} is missing in\n{text}"
            );
        }
        assert!(
            text[..composed.header_size].ends_with("\r\n\r\n")
                && text[composed.header_size..].starts_with("--=_")
        );
        assert!(!text.replace("\r\n", "").contains(['\r', '\n']));
        assert!(!text[..composed.header_size].contains("Content-Transfer-Encoding"));
    }

    #[test]
    fn an_address_that_is_not_ascii_takes_the_types_of_rfc_6533() {
        let recipients = [recipient("ü@example.net")];
        let composed = report(&recipients, "Subject: ü\r\n".as_bytes()).compose();
        let text = String::from_utf8(composed.bytes).unwrap();
        assert!(composed.eight_bit && composed.smtputf8);
        assert!(
            text.contains("message/global-delivery-status")
                && text.contains("message/global-headers")
        );
        assert!(text.contains("Final-Recipient: utf-8; ü@example.net"));
        let header = &text[..composed.header_size];
        assert!(header.contains("\r\nContent-Transfer-Encoding: 8bit\r\n"));
    }

    #[test]
    fn a_delay_says_until_when_and_has_class_four() {
        let recipients = [ReportedRecipient {
            reply: None,
            reason: "no host answers",
            will_retry_until_millis: Some(1_700_400_000_000),
            last_attempt_millis: None,
            ..recipient("a@example.net")
        }];
        let composed = Report {
            action: Action::Delayed,
            ..report(&recipients, b"")
        }
        .compose();
        let text = String::from_utf8(composed.bytes).unwrap();
        assert!(text.contains("\r\nAction: delayed\r\nStatus: 4.1.1\r\n"));
        assert!(text.contains("\r\nDiagnostic-Code: X-Postroad; no host answers\r\n"));
        assert!(text.contains("\r\n<a@example.net>:\r\n    no host answers\r\n"));
        assert!(!text.contains("said:") && !text.contains("Last-Attempt-Date"));
        assert!(text.contains("\r\nWill-Retry-Until: Sun, 19 Nov 2023 13:20:00 +0000\r\n"));
    }

    #[test]
    fn a_long_header_block_is_cut_at_a_line() {
        let recipients = [recipient("a@example.net")];
        let header = "X-Long: 0123456789\r\n".repeat(5000);
        let composed = report(&recipients, header.as_bytes()).compose();
        let text = String::from_utf8(composed.bytes).unwrap();
        assert!(text.len() < RETURNED_HEADER_BYTES_MAX + 4096);
        assert!(text.contains("0123456789\r\n\r\n--=_"));
    }
}
