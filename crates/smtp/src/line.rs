//! Lines of the conversation: CRLF ends a line and nothing else does (RFC 5321 section 2.3.8).

use bytes::{Buf, Bytes, BytesMut};
use memchr::memchr;

/// Why input is no line. All of them are the peer's doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LineError {
    /// A carriage return without a line feed: half of what smuggling needs.
    #[error("a carriage return stands alone")]
    BareCr,
    /// A line feed without a carriage return: the other half.
    #[error("a line feed stands alone")]
    BareLf,
    /// No end within the limit.
    #[error("the line is too long")]
    TooLong,
}

/// Takes the next line off `input`, without its CRLF; `None` while it is incomplete. `max` counts octets with CRLF.
pub fn take(input: &mut Bytes, max: usize) -> Result<Option<Bytes>, LineError> {
    let window = &input[..input.len().min(max)];
    let Some(lf) = memchr(b'\n', window) else {
        return if input.len() < max {
            Ok(None)
        } else {
            Err(LineError::TooLong)
        };
    };
    if lf == 0 || window[lf - 1] != b'\r' {
        return Err(LineError::BareLf);
    }
    if memchr(b'\r', &window[..lf - 1]).is_some() {
        return Err(LineError::BareCr);
    }
    let mut line = input.split_to(lf + 1);
    line.truncate(lf - 1);
    Ok(Some(line))
}

/// Takes the next line of a reply. Servers that end lines with a line feed alone exist, and nothing can be smuggled in a
/// reply, so that is taken; what is left of a carriage return becomes a space further on.
pub fn take_lenient(input: &mut BytesMut, max: usize) -> Result<Option<BytesMut>, LineError> {
    let window = &input[..input.len().min(max)];
    let Some(lf) = memchr(b'\n', window) else {
        return if input.len() < max {
            Ok(None)
        } else {
            Err(LineError::TooLong)
        };
    };
    let mut line = input.split_to(lf + 1);
    line.truncate(lf - usize::from(lf > 0 && line[lf - 1] == b'\r'));
    Ok(Some(line))
}

/// Throws away the rest of a line that was too long.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Skip {
    /// Octets thrown away.
    pub bytes: usize,
    after_cr: bool,
}

impl Skip {
    /// Throws away input up to the next CRLF; true once that was found.
    pub fn run(&mut self, input: &mut Bytes) -> bool {
        while let Some(lf) = memchr(b'\n', input) {
            let ends = if lf == 0 {
                self.after_cr
            } else {
                input[lf - 1] == b'\r'
            };
            self.advance(input, lf + 1);
            if ends {
                return true;
            }
        }
        self.advance(input, input.len());
        false
    }

    fn advance(&mut self, input: &mut Bytes, count: usize) {
        if count > 0 {
            self.after_cr = input[count - 1] == b'\r';
            self.bytes += count;
            input.advance(count);
        }
    }
}

/// Puts `more` behind what is left of `input`.
pub(crate) fn append(input: &mut Bytes, more: Bytes) {
    if input.is_empty() {
        *input = more;
    } else if !more.is_empty() {
        *input = [&input[..], &more[..]].concat().into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_crlf_ends_a_line() {
        let mut input = Bytes::from_static(b"NOOP\r\nQUIT");
        assert_eq!(take(&mut input, 100), Ok(Some(Bytes::from_static(b"NOOP"))));
        assert_eq!(
            (take(&mut input, 100), &input[..]),
            (Ok(None), b"QUIT".as_slice())
        );
        assert_eq!(
            take(&mut Bytes::from_static(b"a\n"), 100),
            Err(LineError::BareLf)
        );
        assert_eq!(
            take(&mut Bytes::from_static(b"a\rb\r\n"), 100),
            Err(LineError::BareCr)
        );
        assert_eq!(
            take(&mut Bytes::from_static(b"a\r\r\n"), 100),
            Err(LineError::BareCr)
        );
        assert_eq!(
            take(&mut Bytes::from_static(b"abc\r\n"), 5),
            Ok(Some(Bytes::from_static(b"abc")))
        );
        assert_eq!(
            take(&mut Bytes::from_static(b"abcd\r\n"), 5),
            Err(LineError::TooLong)
        );
    }

    #[test]
    fn a_long_line_is_skipped_to_its_real_end() {
        for pieces in [&["xx\nyy\r\nNOOP"][..], &["xx\n", "yy\r", "\nNOOP"]] {
            let mut skip = Skip::default();
            let done = pieces
                .iter()
                .map(|p| Bytes::from_static(p.as_bytes()))
                .any(|mut p| {
                    let done = skip.run(&mut p);
                    assert_eq!(done, p == "NOOP");
                    done
                });
            assert!(done);
        }
    }
}
