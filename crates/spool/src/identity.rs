//! Which store this is: the `IDENTITY` file, the lock on the data directory, and the decisions of a first start.

use std::fmt;
use std::str::FromStr;

/// The cluster's id, a UUID (RFC 9562).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterId(pub [u8; 16]);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a cluster id is a UUID, such as 6f1d2c3b-0a4e-4b8e-9d57-0e6f3c2b1a09")]
pub struct NotACluster;

impl FromStr for ClusterId {
    type Err = NotACluster;

    fn from_str(text: &str) -> Result<Self, NotACluster> {
        let dashes_stand_right = text.len() == 36
            && [8, 13, 18, 23]
                .iter()
                .all(|at| text.as_bytes()[*at] == b'-');
        let hex: String = text.chars().filter(|c| *c != '-').collect();
        if !dashes_stand_right || hex.len() != 32 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(NotACluster);
        }
        u128::from_str_radix(&hex, 16)
            .map(|id| Self(id.to_be_bytes()))
            .map_err(|_| NotACluster)
    }
}
