//! A snapshot as octets: the records that travel and are staged, and the directory in which they are.

mod record;
mod staging;
#[cfg(test)]
mod tests;
mod verify;

pub use record::{Checker, Damage, Encoder, Record};
pub use staging::{Staged, Staging};
pub use verify::{NotSworn, Places};

/// Octets of records in one chunk on the wire, about; a body more at the most.
pub const CHUNK_BYTES: usize = 1 << 20;
