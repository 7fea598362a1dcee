//! One entry, applied.

use crate::{Effect, Facts, Rows};

/// Applies the entry at `index`; `data` is its octets of body (their count only matters).
pub fn apply(_rows: &mut impl Rows, _index: u64, _facts: &Facts) -> Vec<Effect> {
    Vec::new()
}
