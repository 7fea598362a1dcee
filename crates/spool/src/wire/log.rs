//! The log entry (`proto/postroad/v1/log.proto`) and the queue's own types.
//!
//! [`encode`] is what a leader does before it proposes, [`decode`] what every replica does before it applies, and
//! [`facts_from_append`] is the door: what an edge sends is checked there, once, so that a row made of it stays
//! below the size that the metadata store wants (see `state`) and a context below [`CONTEXT_MAX`].
//!
//! `decode` is strict: an entry of another version or with a command that this program does not know cannot be
//! skipped (the replicas would differ from then on), so its error tells the person to upgrade and the caller halts
//! the replica.

use bytes::Bytes;
use mail::Ulid;
use prost::Message as _;
use proto::v1;
use queue::{Facts, Timestamp};

mod door;
mod from_wire;
pub(crate) mod intern;
mod to_wire;

#[cfg(test)]
mod tests;

pub use door::*;

/// Versions of the state machine up to this one are known to this program. `Config` can lower it: then the program
/// behaves as an older one, which is how a cluster of two versions is tried.
pub const STATE_MACHINE_VERSION: u32 = queue::version::NEWEST;

/// Longest context of an entry, octets. The edge answers 452 4.5.3 to the RCPT that would exceed 240 KiB, so that
/// what the leader adds still fits.
pub const CONTEXT_MAX: usize = 256 * 1024;

/// Why an entry or a request cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Not protobuf, or not this schema.
    #[error("the record is damaged or no log entry: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// Written by another version of the program.
    #[error(
        "the entry was written for state machine version {found}, this program knows those up to {known}: \
         run the version of postroad that the other replicas run"
    )]
    Version {
        /// In the entry.
        found: u32,
        /// [`STATE_MACHINE_VERSION`], or what stands in its place.
        known: u32,
    },
    /// A newer program wrote it.
    #[error(
        "the entry holds a command that this program does not know: run the version of postroad that the other \
         replicas run"
    )]
    UnknownCommand,
    /// An entry of the control group in a shard, or the other way round.
    #[error(
        "the entry's command belongs to the {belongs} group, not to this one: the log is mixed up, do not start"
    )]
    WrongGroup {
        /// Where it belongs.
        belongs: &'static str,
    },
    /// A field breaks a rule.
    #[error("{field}: {problem}")]
    Field {
        /// Its name in the schema.
        field: &'static str,
        /// What is wrong.
        problem: String,
    },
}

/// The context of an entry. Its length is not checked here: see [`CONTEXT_MAX`].
pub fn encode(facts: &Facts) -> Bytes {
    to_wire::entry(facts).encode_to_vec().into()
}

/// Facts of a shard's entry. `known`: the newest version of the state machine that this program claims to know.
///
/// # Errors
/// Any [`WireError`]: the replica cannot go on past this entry.
pub fn decode(context: &[u8], known: u32) -> Result<Facts, WireError> {
    let entry = v1::LogEntry::decode(context)?;
    check_version(entry.version, known)?;
    let command = entry.command.ok_or(WireError::UnknownCommand)?;
    Ok(Facts {
        time: Timestamp(entry.cluster_time_ms),
        command: from_wire::command(command)?,
    })
}

/// Whether an entry with this context brings mail: an append, or a part of a large one. Only the tags are read, as every
/// follower asks this of every entry with data; what cannot be read counts as mail, and is judged when it is applied.
pub fn brings_mail(context: &[u8]) -> bool {
    use prost::encoding::{DecodeContext, decode_key, skip_field};
    let mut rest = context;
    while !rest.is_empty() {
        match decode_key(&mut rest) {
            Ok((10 | 11, _)) => return true,
            Ok((12.., _)) => return false,
            Ok((tag, wire_type)) => {
                if skip_field(wire_type, tag, &mut rest, DecodeContext::default()).is_err() {
                    return true;
                }
            }
            Err(_) => return true,
        }
    }
    true
}

pub(super) fn check_version(found: u32, known: u32) -> Result<(), WireError> {
    if found == 0 || found > known {
        return Err(WireError::Version { found, known });
    }
    Ok(())
}

/// An item as Settle, Lease and Admin requests name it.
///
/// # Errors
/// [`WireError::Field`] where the message id has not 16 octets or the reference is missing.
pub fn item_ref(item: Option<v1::ItemRef>) -> Result<queue::ItemId, WireError> {
    from_wire::item(item)
}

/// The reverse of [`item_ref`].
pub fn to_item_ref(item: queue::ItemId) -> v1::ItemRef {
    to_wire::item(&item)
}

/// A recipient's result as a Settle request brings it.
///
/// # Errors
/// [`WireError::Field`] for an unknown verdict or a reply code of more than three digits.
pub fn result_from_wire(result: v1::RecipientResult) -> Result<queue::RecipientResult, WireError> {
    from_wire::result(result)
}

/// A recipient's result, for people and programs that ask.
pub fn result_to_wire(result: &queue::RecipientResult) -> v1::RecipientResult {
    to_wire::result(result)
}

/// Who brought a message, for people and programs that ask.
pub fn origin_to_wire(origin: &queue::Origin) -> v1::Origin {
    to_wire::origin(origin)
}

/// A message id of 16 octets.
///
/// # Errors
/// [`WireError::Field`] for any other length.
pub fn message_id(bytes: &[u8]) -> Result<Ulid, WireError> {
    from_wire::ulid(bytes)
}
