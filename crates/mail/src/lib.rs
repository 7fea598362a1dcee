//! What a message is: addresses, envelope, replies and codes, header scanning, trace headers, delivery reports.
//!
//! Every constructor parses, so a value in hand is valid. Deliberately absent: a MIME tree (nothing here needs one, and
//! what is relayed is relayed byte for byte), clocks, random sources, serialisation.
//!
//! The two types to know are [`Envelope`] (who sends to whom) and [`Reply`] (what one side tells the other).

pub use ulid::Ulid;

mod address;
pub mod code;
mod digest;
mod domain;
pub mod dsn;
mod envelope;
pub mod header;
pub mod limits;
mod reply;
pub mod time;
pub mod trace;

pub use address::{AddressError, Mailbox, ReversePath};
pub use digest::{Digest, Digester};
pub use domain::{Destination, Domain, Host};
pub use envelope::Envelope;
pub use reply::{EnhancedCode, Reply, ReplyError, ReplyLine, ReplyParser};

/// The shard of a message: the low byte of its id, modulo the count of shards, a power of two of at most 256.
pub fn shard(message: Ulid, shards: u32) -> u32 {
    (message.0 & 0xff) as u32 % shards.max(1)
}

/// `id` with the low byte of `like`: a report lives in the shard of the message that it tells of.
pub fn in_shard_of(id: Ulid, like: Ulid) -> Ulid {
    Ulid((id.0 & !0xff) | (like.0 & 0xff))
}
