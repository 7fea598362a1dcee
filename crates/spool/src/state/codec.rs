//! The words of a row on disk: numbers as LEB128, texts with their length before them.

use std::sync::Arc;

/// First octet of each row: how it is written.
const ROW_VERSION: u8 = 1;

/// A value that a table can hold.
pub(super) trait Row: Sized + Send + Sync {
    /// Appends its octets.
    fn write(&self, out: &mut Vec<u8>);
    /// The reverse; `None` for anything else.
    fn read(from: &mut Reader<'_>) -> Option<Self>;
    /// About how much memory it takes beyond its own struct, bytes.
    fn weight(&self) -> usize {
        0
    }
}

/// A whole row, with its version.
pub(super) fn encode(row: &impl Row) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    out.push(ROW_VERSION);
    row.write(&mut out);
    debug_assert!(out.len() <= super::ROW_MAX, "a row of {} octets", out.len());
    out
}

/// The reverse of [`encode`]. Octets that are left over are refused: they would be of a version that is not known.
pub(super) fn decode<R: Row>(bytes: &[u8]) -> Option<R> {
    let mut from = Reader(bytes);
    if from.byte()? != ROW_VERSION {
        return None;
    }
    let row = R::read(&mut from)?;
    from.0.is_empty().then_some(row)
}

impl Row for () {
    fn write(&self, _: &mut Vec<u8>) {}

    fn read(_: &mut Reader<'_>) -> Option<()> {
        Some(())
    }
}

pub(super) fn put_number(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_number(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// What is left to read.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    pub(super) fn fixed<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        self.fixed::<1>().map(|[byte]| byte)
    }

    pub(super) fn flag(&mut self) -> Option<bool> {
        match self.byte()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    pub(super) fn number(&mut self) -> Option<u64> {
        let mut n = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            n |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(n);
            }
        }
        None
    }

    pub(super) fn small(&mut self) -> Option<u32> {
        self.number()?.try_into().ok()
    }

    pub(super) fn str(&mut self) -> Option<&'a str> {
        let length = usize::try_from(self.number()?).ok()?;
        std::str::from_utf8(self.bytes(length)?).ok()
    }

    pub(super) fn text(&mut self) -> Option<Arc<str>> {
        self.str().map(Arc::from)
    }

    /// Text up to the NUL that ends it within a key.
    pub(super) fn until_nul(&mut self) -> Option<&'a str> {
        let end = self.0.iter().position(|b| *b == 0)?;
        let text = std::str::from_utf8(self.bytes(end)?).ok()?;
        self.byte()?;
        Some(text)
    }

    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}
