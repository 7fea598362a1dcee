//! Addresses (RFC 5321 section 4.1.2).

use std::fmt;
use std::sync::Arc;

/// Where one transaction can take a message: a recipient domain as lower-case A-label, or an address literal
/// with its brackets.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination(Arc<str>);

impl Destination {
    /// Takes text that was already brought into canonical form (see the parsers of this module, or the log).
    pub fn from_canonical(text: &str) -> Destination {
        Destination(text.into())
    }

    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
