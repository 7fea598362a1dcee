//! Transparency (RFC 5321 section 4.5.2), both ways and streaming: only `CRLF.CRLF` ends content.
//!
//! Searching is left to memchr: one search a line and one count of carriage returns over the whole piece, so content
//! costs little more than its passage through the cache. Pieces of content are slices of what came in.

use bytes::{Buf, Bytes};
use memchr::{memchr, memchr_iter};

use crate::line::LineError;

/// What the last octets of the former pieces mean for the next one. Octets that may belong to the end of content were
/// not given out, and never need to be: a dot at the start of a line is dropped in any case.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Tail {
    #[default]
    LineStart,
    /// A dot at the start of a line.
    Dot,
    /// That, and a carriage return.
    DotCr,
    Text,
    /// A carriage return within text.
    Cr,
}

/// Takes content off the wire.
#[derive(Clone, Debug, Default)]
pub struct Decoder {
    tail: Tail,
    line_bytes: usize,
    longest_line: usize,
}

impl Decoder {
    /// Takes content off `input` and gives it to `sink` in slices; true when the end of content was taken off too. After
    /// an error nothing of the input means anything any more.
    pub fn run(
        &mut self,
        input: &mut Bytes,
        mut sink: impl FnMut(Bytes),
    ) -> Result<bool, LineError> {
        if input.is_empty() {
            return Ok(false);
        }
        // What a former piece left open is settled by the first octet.
        let mut crs_before = 0;
        match (self.tail, input[0]) {
            (Tail::DotCr, b'\n') => {
                input.advance(1);
                return Ok(true);
            }
            (Tail::DotCr, _) => return Err(LineError::BareCr),
            (Tail::Cr, b'\n') => crs_before = 1,
            (Tail::Cr, _) => return Err(LineError::BareCr),
            (Tail::Dot, b'\r') => return self.dot_cr(input),
            (Tail::Dot, b'\n') => return Err(LineError::BareLf),
            _ => {}
        }
        self.scan(input, crs_before, &mut sink)
    }

    /// Octets of the longest line so far, without its CRLF and without a stuffed dot (RFC 5321 section 4.5.3.1.6).
    pub fn longest_line(&self) -> usize {
        self.longest_line
    }

    /// A dot ended the former piece, and a carriage return begins this one.
    fn dot_cr(&mut self, input: &mut Bytes) -> Result<bool, LineError> {
        self.tail = Tail::DotCr;
        input.advance(1);
        match input.first() {
            None => Ok(false),
            Some(b'\n') => {
                input.advance(1);
                Ok(true)
            }
            Some(_) => Err(LineError::BareCr),
        }
    }

    fn scan(
        &mut self,
        input: &mut Bytes,
        crs_before: usize,
        sink: &mut impl FnMut(Bytes),
    ) -> Result<bool, LineError> {
        let bytes = &input[..];
        // Where the slice that is to be given out begins, where to search on, and how many CRLF pairs were seen.
        let (mut start, mut at, mut pairs) = (0, 0, 0);
        let mut line_start = self.tail == Tail::LineStart;
        let mut slices = |from: usize, to: usize| {
            if from < to {
                sink(input.slice(from..to));
            }
        };
        loop {
            if line_start && bytes.get(at) == Some(&b'.') {
                slices(start, at);
                match (bytes.get(at + 1), bytes.get(at + 2)) {
                    (None, _) => {
                        self.tail = Tail::Dot;
                        return Self::check_crs(bytes, pairs, crs_before)
                            .map(|()| self.taken(input));
                    }
                    (Some(b'\r'), None) => {
                        self.tail = Tail::DotCr;
                        return Self::check_crs(bytes, pairs + 1, crs_before)
                            .map(|()| self.taken(input));
                    }
                    (Some(b'\r'), Some(b'\n')) => {
                        Self::check_crs(&bytes[..at], pairs, crs_before)?;
                        input.advance(at + 3);
                        return Ok(true);
                    }
                    (Some(b'\r'), Some(_)) => return Err(LineError::BareCr),
                    // What the line has of its own begins here; so it does where the dot ended a piece.
                    (Some(_), _) => (start, at) = (at + 1, at + 1),
                }
            }
            let Some(lf) = memchr(b'\n', &bytes[at..]).map(|found| at + found) else {
                break;
            };
            let after_cr = if lf == 0 {
                crs_before == 1
            } else {
                bytes[lf - 1] == b'\r'
            };
            if !after_cr {
                return Err(LineError::BareLf);
            }
            pairs += 1;
            self.longest_line = self
                .longest_line
                .max((self.line_bytes + lf - at).saturating_sub(1));
            self.line_bytes = 0;
            line_start = true;
            at = lf + 1;
        }
        slices(start, bytes.len());
        self.line_bytes += bytes.len() - at;
        self.longest_line = self.longest_line.max(self.line_bytes.saturating_sub(1));
        let open_cr = usize::from(bytes.last() == Some(&b'\r'));
        self.tail = match (open_cr, at == bytes.len()) {
            (1, _) => Tail::Cr,
            (_, true) => Tail::LineStart,
            (_, false) => Tail::Text,
        };
        Self::check_crs(bytes, pairs + open_cr, crs_before).map(|()| self.taken(input))
    }

    /// Every carriage return is half of a pair, or stands at the end and waits for its line feed.
    fn check_crs(bytes: &[u8], expected: usize, crs_before: usize) -> Result<(), LineError> {
        match memchr_iter(b'\r', bytes).count() + crs_before == expected {
            true => Ok(()),
            false => Err(LineError::BareCr),
        }
    }

    fn taken(&self, input: &mut Bytes) -> bool {
        input.clear();
        false
    }
}

/// Puts content on the wire.
#[derive(Clone, Debug)]
pub struct Encoder {
    line_start: bool,
    after_cr: bool,
}

impl Default for Encoder {
    fn default() -> Encoder {
        Encoder {
            line_start: true,
            after_cr: false,
        }
    }
}

impl Encoder {
    /// Whether this next piece goes out as it is.
    pub fn is_plain(&self, piece: &[u8]) -> bool {
        !(self.line_start && piece.first() == Some(&b'.'))
            && memchr::memmem::find(piece, b"\n.").is_none()
    }

    /// Notes that the next piece went out as it is.
    pub fn pass(&mut self, piece: &[u8]) {
        if let Some(last) = piece.last() {
            self.line_start = *last == b'\n';
            self.after_cr = *last == b'\r';
        }
    }

    /// Writes the next piece. A dot after any line feed is stuffed: whoever takes a bare line feed for a line end must
    /// not find an end of content that we did not write.
    pub fn write(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        out.reserve(piece.len() + 16);
        let mut from = 0;
        if self.line_start && piece.first() == Some(&b'.') {
            out.push(b'.');
        }
        for at in memchr::memmem::find_iter(piece, b"\n.") {
            out.extend_from_slice(&piece[from..=at]);
            out.push(b'.');
            from = at + 1;
        }
        out.extend_from_slice(&piece[from..]);
        self.pass(piece);
    }

    /// Ends the last line if the content did not; the final dot is not written here.
    pub fn finish_line(&mut self, out: &mut Vec<u8>) {
        if !self.line_start {
            out.extend_from_slice(if self.after_cr { b"\n" } else { b"\r\n" });
            *self = Encoder::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Content and what is left of the input, or the error; fed in pieces of the given length.
    fn decode(wire: &[u8], piece: usize) -> Result<(Vec<u8>, bool, usize), LineError> {
        let mut decoder = Decoder::default();
        let (mut content, mut rest) = (Vec::new(), wire.len());
        for chunk in wire.chunks(piece) {
            let mut input = Bytes::copy_from_slice(chunk);
            let ended = decoder.run(&mut input, |slice| content.extend_from_slice(&slice))?;
            rest -= chunk.len() - input.len();
            if ended {
                return Ok((content, true, rest));
            }
        }
        Ok((content, false, rest))
    }

    fn both(wire: &str) -> Result<(String, bool, usize), LineError> {
        let whole = decode(wire.as_bytes(), wire.len());
        for piece in 1..wire.len() {
            assert_eq!(
                decode(wire.as_bytes(), piece),
                whole,
                "{wire:?} in pieces of {piece}"
            );
        }
        whole.map(|(content, ended, rest)| (String::from_utf8(content).unwrap(), ended, rest))
    }

    #[test]
    fn only_crlf_dot_crlf_ends_content() {
        assert_eq!(both(".\r\n"), Ok((String::new(), true, 0)));
        assert_eq!(both("a\r\n.\r\nQUIT\r\n"), Ok(("a\r\n".into(), true, 6)));
        assert_eq!(
            both("..\r\n...x\r\n.y\r\n.\r\n"),
            Ok((".\r\n..x\r\ny\r\n".into(), true, 0))
        );
        assert_eq!(both("a.\r\n"), Ok(("a.\r\n".into(), false, 0)));
    }

    #[test]
    fn bare_line_ends_have_names() {
        for wire in ["a\n", "\n", "a\r\n.\nb", "a\r\n\n.\r\n", "a\r\n.\n"] {
            assert_eq!(both(wire).unwrap_err(), LineError::BareLf, "{wire:?}");
        }
        for wire in [
            "a\rb\r\n.\r\n",
            ".\rb\r\n",
            "\r\r\n.\r\n",
            "a\r\n.\r.\r\n",
            "\r.\r\n.\r\n",
            "a\r\n.\r\r\n",
        ] {
            assert_eq!(both(wire).unwrap_err(), LineError::BareCr, "{wire:?}");
        }
    }

    #[test]
    fn the_longest_line_is_known() {
        for piece in 1..20 {
            let mut decoder = Decoder::default();
            // Not counting the dot that transparency put there.
            for chunk in b"abc\r\n.abcdef\r\n..bcdefg\r\nab\r\n.".chunks(piece) {
                decoder
                    .run(&mut Bytes::copy_from_slice(chunk), |_| ())
                    .unwrap();
            }
            assert_eq!(decoder.longest_line(), 7, "in pieces of {piece}");
        }
    }

    proptest! {
        #[test]
        fn content_survives_in_any_pieces(words in proptest::collection::vec("[.a]{0,3}(\r\n)?", 0..40), out in 1..9usize, back in 1..9usize) {
            let content = words.concat().into_bytes();
            let (mut encoder, mut wire) = (Encoder::default(), Vec::new());
            for piece in content.chunks(out) {
                encoder.write(piece, &mut wire);
            }
            encoder.finish_line(&mut wire);
            let mut expected = content.clone();
            if !content.is_empty() && !content.ends_with(b"\r\n") {
                expected.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b".\r\nrest");
            let rest = match decode(&wire, back) {
                Ok((content, true, rest)) if content == expected => rest,
                other => return Err(TestCaseError::fail(format!("{other:?}"))),
            };
            prop_assert_eq!(rest, 4);
        }

        #[test]
        fn pieces_change_neither_content_nor_verdict(words in proptest::collection::vec("[.a\r\n]{0,3}", 0..12), piece in 1..9usize) {
            let wire = words.concat().into_bytes();
            let whole = decode(&wire, wire.len().max(1));
            let pieces = decode(&wire, piece);
            // Which of two errors is seen first may differ; that there is one may not, once its line is complete.
            match (whole, pieces) {
                (Ok(a), Ok(b)) => prop_assert_eq!(a, b),
                (a, b) => prop_assert_eq!(a.is_err(), b.is_err()),
            }
        }
    }
}
