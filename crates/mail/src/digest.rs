//! The digest of a body: computed at the edge, checked by the queue and before delivery.

use std::fmt;

/// xxh3-128 of a body. It finds damage; it is no signature: nodes are authenticated by their certificates.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 16]);

impl Digest {
    /// The digest of a whole body.
    pub fn of(body: &[u8]) -> Digest {
        Digest(xxhash_rust::xxh3::xxh3_128(body).to_be_bytes())
    }

    /// From 16 octets as they travel; `None` for any other length.
    pub fn from_slice(bytes: &[u8]) -> Option<Digest> {
        bytes.try_into().ok().map(Digest)
    }
}

/// Builds a [`Digest`] from a body that comes in pieces.
#[derive(Clone, Default)]
pub struct Digester(xxhash_rust::xxh3::Xxh3);

impl Digester {
    /// Takes the next octets of the body.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all octets so far.
    pub fn finish(&self) -> Digest {
        Digest(self.0.digest128().to_be_bytes())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for b in self.0 {
            write!(f, "{b:02x}")?;
        }
        Ok(())
    }
}
