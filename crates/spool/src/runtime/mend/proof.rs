//! Whether octets that came from another replica are those that edges took: by the digest in the rows of the messages that
//! refer to them. The other replica's own digest only says that they came over whole.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use bytes::Bytes;

use crate::state::Sworn;

/// What one message says of an entry.
#[derive(Debug)]
pub struct Proof {
    sworn: Sworn,
    index: u64,
    /// The data of its other entries, when it came in several.
    others: BTreeMap<u64, Bytes>,
}

impl Proof {
    /// By a message that refers to entry `index`, and the data of its [`Proof::others`].
    pub fn new(sworn: &Sworn, index: u64, others: BTreeMap<u64, Bytes>) -> Proof {
        Proof {
            sworn: sworn.clone(),
            index,
            others,
        }
    }

    /// The other entries that a message consists of.
    pub fn others(sworn: &Sworn, index: u64) -> BTreeSet<u64> {
        let entries = sworn.extents.iter().map(|extent| extent.index);
        entries.filter(|entry| *entry != index).collect()
    }

    /// Whether the message is whole with this data of the entry.
    pub fn holds(&self, data: &Bytes) -> bool {
        let of = |index| {
            let other = self.others.get(&index).cloned();
            Ok::<_, Infallible>(match index == self.index {
                true => data.clone(),
                // All of them were gathered.
                false => other.unwrap_or_default(),
            })
        };
        let Ok(holds) = self.sworn.holds(of);
        holds
    }
}

#[cfg(test)]
mod tests {
    use mail::{Digest, Ulid};
    use queue::Extent;

    use super::*;

    fn sworn(body: &[u8], extents: &[(u64, u64, u64)]) -> Sworn {
        let extent = |&(index, offset, length): &(u64, u64, u64)| Extent {
            index,
            offset,
            length,
        };
        Sworn {
            message: Ulid::from_bytes([1; 16]),
            digest: Digest::of(body),
            extents: extents.iter().map(extent).collect(),
        }
    }

    /// Another replica's body may be rotten too, under a checksum that it took of what it has.
    #[test]
    fn a_body_is_what_its_edge_took_or_it_is_not_taken() {
        let whole = sworn(b"body", &[(7, 0, 4)]);
        assert!(Proof::others(&whole, 7).is_empty());
        let proof = Proof::new(&whole, 7, BTreeMap::new());
        assert!(proof.holds(&Bytes::from_static(b"body")));
        assert!(!proof.holds(&Bytes::from_static(b"bodx")));
        assert!(!proof.holds(&Bytes::from_static(b"bo")), "cut short");
    }

    #[test]
    fn a_part_of_a_big_body_is_proved_with_the_other_parts() {
        let chain = sworn(b"one two three", &[(5, 0, 4), (7, 0, 4), (9, 2, 5)]);
        assert_eq!(Proof::others(&chain, 7), BTreeSet::from([5, 9]));
        let others = [(5, &b"one "[..]), (9, b"xxthree")];
        let others = others.map(|(index, data)| (index, Bytes::from_static(data)));
        let proof = Proof::new(&chain, 7, others.into());
        assert!(proof.holds(&Bytes::from_static(b"two ")));
        assert!(!proof.holds(&Bytes::from_static(b"tow ")));
    }
}
