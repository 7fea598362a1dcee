//! The relaxed form of a body (RFC 6376 section 3.4.4), from pieces that end anywhere.

/// Octets of the relaxed form that are gathered before they are given on: hashing small runs costs more than copying them.
const GATHER_BYTES: usize = 16 * 1024;

/// Brings a body into its relaxed form.
#[derive(Debug)]
pub(super) struct Relaxed {
    out: Vec<u8>,
    /// Line ends that count only when something follows.
    line_ends: u64,
    /// White space that counts only when something follows within its line.
    space: bool,
    /// A carriage return, of which it is not known whether it ends the line.
    cr: bool,
    /// Anything was given on or waits in `out`.
    any: bool,
}

impl Default for Relaxed {
    fn default() -> Relaxed {
        Relaxed {
            out: Vec::with_capacity(GATHER_BYTES + 1),
            line_ends: 0,
            space: false,
            cr: false,
            any: false,
        }
    }
}

impl Relaxed {
    /// Takes the next piece; `give` gets what is certain.
    pub(super) fn push(&mut self, mut piece: &[u8], mut give: impl FnMut(&[u8])) {
        while let Some((&first, rest)) = piece.split_first() {
            if std::mem::take(&mut self.cr) {
                if first == b'\n' {
                    self.line_ends += 1;
                    // White space at the end of a line is nothing.
                    self.space = false;
                    piece = rest;
                    continue;
                }
                self.data(b"\r", &mut give);
            }
            match first {
                b' ' | b'\t' => self.space = true,
                b'\r' => self.cr = true,
                _ => {
                    let end = piece.iter().position(|b| matches!(b, b' ' | b'\t' | b'\r'));
                    let (run, after) = piece.split_at(end.unwrap_or(piece.len()));
                    self.data(run, &mut give);
                    piece = after;
                    continue;
                }
            }
            piece = rest;
        }
    }

    /// The body ends here.
    pub(super) fn finish(mut self, mut give: impl FnMut(&[u8])) {
        if std::mem::take(&mut self.cr) {
            self.data(b"\r", &mut give);
        }
        // Empty lines at the end are nothing, the end of the last line is, and a body of nothing is empty.
        if self.any {
            self.out.extend_from_slice(b"\r\n");
        }
        give(&self.out);
    }

    fn data(&mut self, run: &[u8], give: &mut impl FnMut(&[u8])) {
        while self.line_ends > 0 {
            self.line_ends -= 1;
            self.out.extend_from_slice(b"\r\n");
            self.spill(give);
        }
        if std::mem::take(&mut self.space) {
            self.out.push(b' ');
        }
        self.any = true;
        if run.len() < GATHER_BYTES {
            self.out.extend_from_slice(run);
            self.spill(give);
        } else {
            give(&self.out);
            self.out.clear();
            give(run);
        }
    }

    fn spill(&mut self, give: &mut impl FnMut(&[u8])) {
        if self.out.len() >= GATHER_BYTES {
            give(&self.out);
            self.out.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn relaxed(body: &[u8], piece: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let mut state = Relaxed::default();
        for part in body.chunks(piece.max(1)) {
            state.push(part, |bytes| out.extend_from_slice(bytes));
        }
        state.finish(|bytes| out.extend_from_slice(bytes));
        out
    }

    /// The rules as they stand in the RFC, over whole lines.
    fn by_the_book(body: &str) -> String {
        let mut lines: Vec<String> = body
            .split("\r\n")
            .map(|line| {
                let words: Vec<&str> = line.split([' ', '\t']).filter(|w| !w.is_empty()).collect();
                let lead = if line.starts_with([' ', '\t']) && !words.is_empty() {
                    " "
                } else {
                    ""
                };
                format!("{lead}{}", words.join(" "))
            })
            .collect();
        while lines.last().is_some_and(String::is_empty) {
            lines.pop();
        }
        lines.iter().map(|line| format!("{line}\r\n")).collect()
    }

    #[test]
    fn the_example_of_the_rfc() {
        // RFC 6376 section 3.4.5.
        let body = b" C \r\nD \t E\r\n\r\n\r\n";
        assert_eq!(relaxed(body, 100), b" C\r\nD E\r\n");
        assert_eq!(relaxed(b"", 1), b"");
        assert_eq!(relaxed(b"\r\n \r\n\t\r\n", 1), b"");
        assert_eq!(relaxed(b"x\r\n \r\n\t\r\n", 1), b"x\r\n");
        assert_eq!(relaxed(b"no end", 3), b"no end\r\n");
        assert_eq!(relaxed(b"a\rb\r", 1), b"a\rb\r\r\n");
    }

    proptest! {
        #[test]
        fn any_body_in_any_pieces_is_as_the_rules_say(
            parts in proptest::collection::vec(prop_oneof![
                Just("\r\n".to_owned()), Just(" ".to_owned()), Just("\t".to_owned()),
                Just("word".to_owned()), Just("x".repeat(20_000)), Just("\r\n".repeat(9_000)), "[a-z]{1,3}",
            ], 0..40),
            piece in 1_usize..50_000,
        ) {
            let body = parts.concat();
            prop_assert_eq!(relaxed(body.as_bytes(), piece), by_the_book(&body).into_bytes());
        }
    }
}
