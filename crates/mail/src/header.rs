//! Header scanning while the content streams: the block's length, `Received` fields, a few values. No MIME tree.

use memchr::memchr;

use crate::limits::{FIELD_BYTES_MAX, HEADER_BYTES_MAX, MESSAGE_ID_BYTES_MAX};
use crate::reply::cut;

/// What a header block says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HeaderFacts {
    /// Octets of the block with its empty line.
    pub size: usize,
    /// `Received` fields.
    pub received: u32,
    /// Value of the first Message-ID, at most [`MESSAGE_ID_BYTES_MAX`] octets.
    pub message_id: Option<String>,
    /// Value of the first From, unfolded.
    pub from: Option<String>,
    /// Value of the first Subject, unfolded.
    pub subject: Option<String>,
    /// There is a Date.
    pub has_date: bool,
    /// Octets above 127 stand in it.
    pub eight_bit: bool,
}

/// Above so many octets without an end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the header block is longer than {0} octets")]
pub struct HeaderTooLarge(pub usize);

/// Takes content in pieces and looks at its header block only.
#[derive(Clone, Debug)]
pub struct HeaderScanner {
    /// Octets that the block may have.
    bytes_max: usize,
    facts: HeaderFacts,
    /// The present line as far as it came, cut at [`FIELD_BYTES_MAX`].
    line: Vec<u8>,
    /// Octets of the present line, uncut.
    line_bytes: usize,
    /// Octets above 127 stand in the present line, wherever.
    line_eight_bit: bool,
    /// The value that continuation lines belong to.
    open: Option<Field>,
    done: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Field {
    MessageId,
    From,
    Subject,
}

impl Default for HeaderScanner {
    fn default() -> HeaderScanner {
        HeaderScanner::new(HEADER_BYTES_MAX)
    }
}

impl HeaderScanner {
    /// For a block of at most `bytes_max` octets.
    pub fn new(bytes_max: usize) -> HeaderScanner {
        HeaderScanner {
            bytes_max,
            facts: HeaderFacts::default(),
            line: Vec::new(),
            line_bytes: 0,
            line_eight_bit: false,
            open: None,
            done: false,
        }
    }

    /// Takes the next piece of content. After an error nothing more is to be pushed.
    pub fn push(&mut self, mut piece: &[u8]) -> Result<(), HeaderTooLarge> {
        while !self.done && !piece.is_empty() {
            let end = memchr(b'\n', piece).map(|at| at + 1);
            let part = &piece[..end.unwrap_or(piece.len())];
            // Before it is cut: what it says where nobody reads on counts too.
            self.line_eight_bit |= !part.is_ascii();
            if end.is_some() && self.line_bytes == 0 {
                self.line_bytes = part.len();
                self.finish_line(&part[..part.len().min(FIELD_BYTES_MAX)]);
            } else {
                let room = FIELD_BYTES_MAX - self.line.len().min(FIELD_BYTES_MAX);
                self.line.extend_from_slice(&part[..part.len().min(room)]);
                self.line_bytes += part.len();
                if end.is_some() {
                    let line = std::mem::take(&mut self.line);
                    self.finish_line(&line);
                }
            }
            let too_large = self.facts.size + self.line_bytes > self.bytes_max;
            if too_large && !self.done && self.is_of_the_block() {
                return Err(HeaderTooLarge(self.bytes_max));
            }
            piece = &piece[part.len()..];
        }
        Ok(())
    }

    /// `Received` fields so far.
    pub fn received(&self) -> u32 {
        self.facts.received
    }

    /// What was found; the block ends with the content if it did not end before.
    pub fn finish(mut self) -> HeaderFacts {
        if !self.done && self.line_bytes > 0 {
            let line = std::mem::take(&mut self.line);
            self.finish_line(&line);
        }
        let facts = &mut self.facts;
        for text in [&mut facts.message_id, &mut facts.from, &mut facts.subject]
            .into_iter()
            .flatten()
        {
            // They go into the queue's rows, into logs and on terminals.
            *text = text
                .trim()
                .replace(|c: char| c.is_control() && c != '\t', "?");
        }
        if let Some(id) = &mut self.facts.message_id {
            id.truncate(cut(id, MESSAGE_ID_BYTES_MAX).len());
        }
        self.facts
    }

    /// Whether the present line, if there is one, is the block's, however it goes on. One that is no field ends the block, and
    /// no octet of it counts: were it counted while it is incomplete, the packets would decide.
    fn is_of_the_block(&self) -> bool {
        self.line_bytes == 0 || self.is_folded(&self.line) || field_name(&self.line).is_some()
    }

    fn is_folded(&self, line: &[u8]) -> bool {
        matches!(line.first(), Some(b' ' | b'\t')) && self.facts.size > 0
    }

    /// A whole line, with its end, perhaps cut.
    fn finish_line(&mut self, line: &[u8]) {
        let bytes = std::mem::take(&mut self.line_bytes);
        let eight_bit = std::mem::take(&mut self.line_eight_bit);
        let text = line.trim_ascii_end();
        let blank = text.is_empty() && bytes <= 2;
        let folded = self.is_folded(line);
        let name = field_name(text);
        if !blank && !folded && name.is_none() {
            // Content without an empty line before it: the block ends here.
            self.done = true;
            return;
        }
        self.facts.size += bytes;
        self.facts.eight_bit |= eight_bit;
        self.done = blank;
        if folded {
            self.fold(text);
        } else if let Some(name) = name {
            self.begin(name, &text[name.len()..]);
        }
    }

    fn begin(&mut self, name: &[u8], rest: &[u8]) {
        self.open = None;
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        if is("received") {
            self.facts.received += 1;
        } else if is("date") {
            self.facts.has_date = true;
        } else if is("message-id") {
            self.open(Field::MessageId, rest);
        } else if is("from") {
            self.open(Field::From, rest);
        } else if is("subject") {
            self.open(Field::Subject, rest);
        }
    }

    /// Only the first of a name counts.
    fn open(&mut self, field: Field, rest: &[u8]) {
        let value = self.value(field);
        if value.is_none() {
            let text = String::from_utf8_lossy(rest);
            let text = text.trim_start();
            *value = Some(text.strip_prefix(':').unwrap_or(text).to_owned());
            self.open = Some(field);
        }
    }

    fn fold(&mut self, text: &[u8]) {
        let Some(field) = self.open else { return };
        if let Some(value) = self.value(field)
            && value.len() < FIELD_BYTES_MAX
        {
            value.push(' ');
            value.push_str(String::from_utf8_lossy(text).trim());
        }
    }

    fn value(&mut self, field: Field) -> &mut Option<String> {
        match field {
            Field::MessageId => &mut self.facts.message_id,
            Field::From => &mut self.facts.from,
            Field::Subject => &mut self.facts.subject,
        }
    }
}

/// RFC 5322 3.6.8: printable ASCII before a colon; white space before the colon is obsolete but seen (4.5).
fn field_name(line: &[u8]) -> Option<&[u8]> {
    let name = line[..memchr(b':', line)?].trim_ascii_end();
    (!name.is_empty() && name.iter().all(u8::is_ascii_graphic)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(text: &str) -> HeaderFacts {
        let mut scanner = HeaderScanner::default();
        scanner.push(text.as_bytes()).unwrap();
        let whole = scanner.finish();
        let mut scanner = HeaderScanner::default();
        text.bytes().for_each(|b| scanner.push(&[b]).unwrap());
        assert_eq!(scanner.finish(), whole, "octet by octet");
        whole
    }

    #[test]
    fn values_are_unfolded_and_the_first_of_a_name_counts() {
        let header = "RECEIVED: a\r\nreceived : b\r\n c\r\nMessage-ID:\r\n <1@x>\r\nmessage-id: <2@x>\r\n more\r\n\
                      From: A\r\n\t<a@b>\r\nDate: now\r\nSubject: hi\r\n\r\n";
        let facts = scan(&format!("{header}Received: no\r\n"));
        assert_eq!(
            (facts.size, facts.received, facts.has_date),
            (header.len(), 2, true)
        );
        assert_eq!(facts.message_id.as_deref(), Some("<1@x>"));
        assert_eq!(facts.from.as_deref(), Some("A <a@b>"));
        assert_eq!(facts.subject.as_deref(), Some("hi"));
    }

    /// The queue refuses texts with NUL, so mail with one in its Message-ID got 451 for ever.
    #[test]
    fn values_hold_no_control_characters() {
        let facts = scan("Message-ID: <a\0b\x1b[2J@x>\r\nFrom: A\t<a@b>\r\n\r\n");
        assert_eq!(facts.message_id.as_deref(), Some("<a?b?[2J@x>"));
        assert_eq!(facts.from.as_deref(), Some("A\t<a@b>"));
    }

    #[test]
    fn a_block_ends_at_the_first_line_that_is_no_field() {
        assert_eq!(scan("a: b\r\nno field\r\nc: d\r\n").size, 6);
        assert_eq!(scan("\r\nbody: x\r\n").size, 2);
        assert_eq!(scan("").size, 0);
        assert_eq!(scan(" folded: first\r\n").size, 0, "nothing to continue");
        assert_eq!(scan("a: b\r\n").size, 6);
        assert_eq!(
            scan("a: b\r\n \r\nc: d\r\n\r\n").size,
            17,
            "a line of white space is a fold"
        );
    }

    /// It was refused when it came in many packets, and taken when it came in one.
    #[test]
    fn a_long_line_that_ends_the_block_is_no_part_of_it_in_whatever_pieces() {
        let field = format!("x: {}\r\n", "y".repeat(995));
        let header = field.repeat(210);
        let not = format!("{}\r\n", "y".repeat(60 * 1024));
        let folded = format!(" {not}");
        for (line, fits) in [(&not, true), (&folded, false)] {
            let text = format!("{header}{line}");
            for piece in [text.len(), 1448, 7] {
                let mut scanner = HeaderScanner::default();
                let mut pieces = text.as_bytes().chunks(piece);
                let refused = pieces.any(|piece| scanner.push(piece).is_err());
                assert_eq!(refused, !fits, "in pieces of {piece}");
                assert!(!fits || scanner.finish().size == header.len());
            }
        }
    }

    #[test]
    fn long_values_are_cut_and_long_blocks_refused() {
        let facts = scan(&format!("Message-ID: <{}>\r\n\r\n", "é".repeat(2000)));
        let id = facts.message_id.unwrap();
        assert!(id.len() <= MESSAGE_ID_BYTES_MAX && id.starts_with("<é"));
        let mut scanner = HeaderScanner::default();
        let line = [b"x: ".as_slice(), &[b'y'; 1000]].concat();
        let late = format!("To: {}é\r\n\r\nx\r\n", "y".repeat(FIELD_BYTES_MAX));
        assert!(scan(&late).eight_bit, "behind where the line is cut");
        assert!(!scan("To: y\r\n\r\né\r\n").eight_bit, "in the content");
        let refused = (0..HEADER_BYTES_MAX / 1000 + 1).find(|_| scanner.push(&line).is_err());
        assert!(refused.is_some() && scanner.line.len() <= FIELD_BYTES_MAX);
    }
}
