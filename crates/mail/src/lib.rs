//! What a message is: addresses, envelope, replies and codes, trace headers, delivery reports.

pub use ulid::Ulid;

mod address;
mod digest;

pub use address::Destination;
pub use digest::{Digest, Digester};
