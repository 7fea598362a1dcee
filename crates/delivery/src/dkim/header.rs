//! Header blocks: the fields that are signed, in their relaxed form, and the domain of From.

use bytes::{Bytes, BytesMut};
use mail::limits::HEADER_BYTES_MAX;
use mail_parser::{Address, MessageParser};

/// Fields that are signed with one more instance than there is (RFC 6376 section 8.15): whoever adds one later breaks the
/// signature, and no reader can be shown another From or Subject than was signed.
const OVERSIGNED: [&str; 10] = [
    "From",
    "To",
    "Cc",
    "Subject",
    "Reply-To",
    "In-Reply-To",
    "References",
    "MIME-Version",
    "Content-Type",
    "Content-Transfer-Encoding",
];
/// Fields that are oversigned when they are there. A relay that finds none adds them (RFC 6409 section 8, and Postfix does so
/// to mail that it takes from others): signed as absent, they would break the signature of mail that nobody changed.
const OVERSIGNED_IF_THERE: [&str; 2] = ["Date", "Message-ID"];
/// Fields that are signed as often as they are there: mailing lists add them, and may (RFC 6376 section 5.4.1; RFC 8058
/// section 4 wants the last two signed).
const SIGNED: [&str; 9] = [
    "Sender",
    "List-Id",
    "List-Help",
    "List-Subscribe",
    "List-Owner",
    "List-Archive",
    "List-Post",
    "List-Unsubscribe",
    "List-Unsubscribe-Post",
];
/// Instances of one field that are signed: a message with more is no mail that a person wrote, and goes unsigned.
const INSTANCES_MAX: usize = 32;

/// The block is no header block that a verifier would read as we do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// A header block without its empty line.
#[derive(Debug)]
pub(super) struct Header {
    block: Bytes,
    /// Name, and value with its line ends: positions in `block`.
    fields: Vec<(std::ops::Range<usize>, std::ops::Range<usize>)>,
}

/// Finds the end of the header block in pieces of a message.
#[derive(Debug, Default)]
pub(super) struct Scan {
    gathered: BytesMut,
    looked: usize,
}

impl Scan {
    /// Takes the next piece; the header block, and what came of the body.
    pub(super) fn push(&mut self, piece: Bytes) -> Option<Result<(Header, Bytes), Malformed>> {
        // The common case: all of it in the first piece, which need not be copied.
        if self.gathered.is_empty()
            && let Some(at) = memchr::memmem::find(&piece, b"\r\n\r\n")
        {
            return Some(split(piece, at + 2));
        }
        self.gathered.extend_from_slice(&piece);
        let from = self.looked.saturating_sub(3);
        let found = memchr::memmem::find(&self.gathered[from..], b"\r\n\r\n");
        let Some(at) = found.map(|at| from + at + 2) else {
            self.looked = self.gathered.len();
            // The edge lets no larger one in, but the trace field is its own.
            return (self.looked > 2 * HEADER_BYTES_MAX).then_some(Err(Malformed));
        };
        Some(split(std::mem::take(&mut self.gathered).freeze(), at))
    }
}

/// The header block ends at `at`, where its empty line begins.
fn split(mut message: Bytes, at: usize) -> Result<(Header, Bytes), Malformed> {
    let rest = message.split_off(at).slice(2..);
    Header::parse(message).map(|header| (header, rest))
}

impl Header {
    pub(super) fn parse(block: Bytes) -> Result<Header, Malformed> {
        let mut fields = Vec::new();
        let mut start = 0;
        while start < block.len() {
            let end = field_end(&block, start);
            let colon = memchr::memchr(b':', &block[start..end]).ok_or(Malformed)?;
            let name = block[start..start + colon].trim_ascii_end();
            // RFC 5322 section 2.2: printable ASCII without a colon.
            if name.is_empty() || !name.iter().all(u8::is_ascii_graphic) {
                return Err(Malformed);
            }
            fields.push((start..start + name.len(), start + colon + 1..end));
            start = end;
        }
        Ok(Header { block, fields })
    }

    fn name(&self, field: usize) -> &[u8] {
        &self.block[self.fields[field].0.clone()]
    }

    fn value(&self, field: usize) -> &[u8] {
        &self.block[self.fields[field].1.clone()]
    }

    /// Positions of the fields of a name, from the last one up, as signatures count them (RFC 6376 section 5.4.2).
    fn instances(&self, name: &str) -> Vec<usize> {
        let all = (0..self.fields.len()).rev();
        all.filter(|at| self.name(*at).eq_ignore_ascii_case(name.as_bytes()))
            .collect()
    }

    /// The domain of the one From with addresses of one domain, as A-labels; `None`: nobody answers for the message.
    pub(super) fn author_domain(&self) -> Option<String> {
        let [field] = self.instances("From")[..] else {
            return None;
        };
        let mut text = b"From:".to_vec();
        text.extend_from_slice(self.value(field));
        text.extend_from_slice(b"\r\n");
        let message = MessageParser::new()
            .with_address_headers()
            .parse_headers(&text)?;
        let Some(Address::List(list)) = message.from() else {
            return None;
        };
        let mut domains = list.iter().map(|one| {
            let (_, domain) = one.address.as_deref()?.rsplit_once('@')?;
            let domain = mail::Domain::parse(domain).ok()?;
            Some(domain.as_str().to_owned())
        });
        let first = domains.next()??;
        domains
            .all(|domain| domain.as_ref() == Some(&first))
            .then_some(first)
    }

    /// What `h=` lists, and the fields in that order, in their relaxed form (RFC 6376 section 3.4.2). `None`: too many.
    pub(super) fn signed(&self) -> Option<(Vec<String>, Vec<u8>)> {
        let (mut names, mut text) = (Vec::new(), Vec::new());
        let always = OVERSIGNED.iter().map(|name| (name, Some(1)));
        let if_there = OVERSIGNED_IF_THERE.iter().map(|name| (name, None));
        let never = SIGNED.iter().map(|name| (name, Some(0)));
        for (name, over) in always.chain(if_there).chain(never) {
            let instances = self.instances(name);
            if instances.len() > INSTANCES_MAX {
                return None;
            }
            let over = over.unwrap_or(usize::from(!instances.is_empty()));
            let count = instances.len() + over;
            names.extend(std::iter::repeat_n((*name).to_owned(), count));
            for field in instances {
                relax(name, self.value(field), &mut text);
            }
        }
        Some((names, text))
    }
}

/// Behind the line end that no white space follows.
fn field_end(block: &[u8], start: usize) -> usize {
    for at in memchr::memchr_iter(b'\n', &block[start..]) {
        let next = start + at + 1;
        if !matches!(block.get(next), Some(b' ' | b'\t')) {
            return next;
        }
    }
    block.len()
}

/// Unfolded, with single spaces, and with nothing at the ends.
fn relax(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.extend(name.bytes().map(|byte| byte.to_ascii_lowercase()));
    out.push(b':');
    let start = out.len();
    let mut space = false;
    for byte in value {
        match byte {
            b' ' | b'\t' => space = true,
            b'\r' | b'\n' => {}
            byte => {
                if std::mem::take(&mut space) && out.len() > start {
                    out.push(b' ');
                }
                out.push(*byte);
            }
        }
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(text: &str) -> Header {
        Header::parse(Bytes::copy_from_slice(text.as_bytes())).unwrap()
    }

    #[test]
    fn the_domain_of_from_is_that_of_all_its_addresses() {
        for (from, expected) in [
            ("From: a@shop.example\r\n", Some("shop.example")),
            (
                "From: \"b@evil.test\" <a@Shop.Example>\r\n",
                Some("shop.example"),
            ),
            (
                "From: =?utf-8?q?b=40evil.test?= (c@evil.test)\r\n <a@shop.example>\r\n",
                Some("shop.example"),
            ),
            (
                "From: a@b\u{fc}cher.example\r\n",
                Some("xn--bcher-kva.example"),
            ),
            (
                "From: a@shop.example, b@shop.example\r\n",
                Some("shop.example"),
            ),
            ("From: a@shop.example, b@else.example\r\n", None),
            ("From: group: a@shop.example;\r\n", None),
            ("From: a@shop.example\r\nFrom: a@shop.example\r\n", None),
            ("From: nobody\r\n", None),
            ("To: a@shop.example\r\n", None),
        ] {
            assert_eq!(header(from).author_domain().as_deref(), expected, "{from}");
        }
    }

    #[test]
    fn fields_are_counted_from_below_and_once_more() {
        let header = header(
            "Received: x\r\nTo: one\r\nFROM : a@b.example\r\nto:\r\n two\t three \r\nList-Id: l\r\nX: y\r\n",
        );
        let (names, text) = header.signed().unwrap();
        let count = |name: &str| names.iter().filter(|n| *n == name).count();
        assert_eq!((count("From"), count("To"), count("Cc")), (2, 3, 1));
        assert_eq!((count("List-Id"), count("Sender"), count("X")), (1, 0, 0));
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "from:a@b.example\r\nto:two three\r\nto:one\r\nlist-id:l\r\n"
        );
    }

    /// Postfix adds both to mail without them, and the signature must still hold there.
    #[test]
    fn a_date_and_a_message_id_that_a_relay_may_add_are_not_signed_as_absent() {
        let count = |text: &str, name: &str| {
            let (names, _) = header(text).signed().unwrap();
            names.iter().filter(|n| *n == name).count()
        };
        let without = "From: a@b.example\r\n";
        let with = "From: a@b.example\r\nDate: now\r\nMessage-ID: <1@b>\r\n";
        for name in ["Date", "Message-ID"] {
            assert_eq!((count(without, name), count(with, name)), (0, 2), "{name}");
        }
    }

    #[test]
    fn what_is_no_header_block_is_not_signed() {
        for text in ["no colon\r\n", ": x\r\n", "a b: x\r\n", " folded: x\r\n"] {
            let parsed = Header::parse(Bytes::copy_from_slice(text.as_bytes()));
            assert_eq!(parsed.err(), Some(Malformed), "{text}");
        }
        let many = "To: x\r\n".repeat(INSTANCES_MAX + 1);
        assert!(header(&many).signed().is_none());
    }

    #[test]
    fn the_end_of_the_block_is_found_in_any_pieces() {
        let text = b"A: b\r\nC: d\r\n\r\nbody\r\n\r\n";
        for piece in 1..text.len() {
            let mut scan = Scan::default();
            let mut found = None;
            let mut rest = Vec::new();
            for part in text.chunks(piece) {
                match found {
                    Some(_) => rest.extend_from_slice(part),
                    None => {
                        if let Some(Ok((header, more))) = scan.push(Bytes::copy_from_slice(part)) {
                            rest.extend_from_slice(&more);
                            found = Some(header);
                        }
                    }
                }
            }
            assert_eq!(&found.unwrap().block[..], b"A: b\r\nC: d\r\n", "{piece}");
            assert_eq!(rest, b"body\r\n\r\n", "{piece}");
        }
    }
}
