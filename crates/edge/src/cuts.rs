//! How small the chunks of one message may be. Pure.

use crate::append::CHUNK_BYTES_MAX;

/// Chunks of a message that the queue takes (its `CHUNKS_MAX`: the message's row names each of them).
pub const CHUNKS_MAX: u32 = 256;
/// Chunks that may have any size: most messages never need more, and for them memory is given back as soon as it is short.
const FREE_CUTS: u32 = 64;
/// Chunks that are left for what comes unforeseen: the rest at the final dot, and a cut because of time.
const SPARE_CUTS: u32 = 8;

/// The chunks of a message on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cuts {
    /// Octets that may still come.
    left: u64,
    cut: u32,
}

impl Cuts {
    /// None yet; `octets_max`: of the whole message.
    pub fn new(octets_max: u64) -> Cuts {
        Cuts {
            left: octets_max,
            cut: 0,
        }
    }

    /// A chunk went to the queue.
    pub fn cut(&mut self, octets: usize) {
        self.left = self.left.saturating_sub(octets as u64);
        self.cut += 1;
    }

    /// Octets that the next chunk must have, unless it is the last: with smaller ones a message of the largest size would
    /// need more chunks than there are.
    pub fn least(&self) -> usize {
        if self.cut < FREE_CUTS {
            return 0;
        }
        let chunks = CHUNKS_MAX.saturating_sub(self.cut + SPARE_CUTS).max(1);
        let least = self.left.div_ceil(u64::from(chunks));
        usize::try_from(least).map_or(CHUNK_BYTES_MAX, |least| least.min(CHUNK_BYTES_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_chunks_that_are_allowed_are_enough_for_the_largest_message() {
        for octets_max in [1, 100_000, 50 << 20, 183 << 20] {
            let mut cuts = Cuts::new(octets_max);
            while cuts.left > 0 {
                let octets = (cuts.left as usize).min(cuts.least().max(1));
                cuts.cut(octets);
            }
            assert!(cuts.cut <= CHUNKS_MAX, "{octets_max}: {}", cuts.cut);
        }
    }
}
