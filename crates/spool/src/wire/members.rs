//! The members of a Raft group as a row beside the applied index.

use bytes::Bytes;
use prost::Message as _;
use proto::v1;

use super::log::WireError;
use crate::node::Membership;

/// The row of a group's members.
pub fn to_bytes(members: &Membership) -> Bytes {
    to_row(members).encode_to_vec().into()
}

/// The same as a part of another message.
pub fn to_row(members: &Membership) -> v1::MembersRow {
    v1::MembersRow {
        voters: members.voters.clone(),
        learners: members.learners.clone(),
        voters_outgoing: members.voters_outgoing.clone(),
        learners_next: members.learners_next.clone(),
        auto_leave: members.auto_leave,
    }
}

/// The members of a group from their row.
///
/// # Errors
/// The row is damaged.
pub fn from_bytes(bytes: &[u8]) -> Result<Membership, WireError> {
    Ok(from_row(v1::MembersRow::decode(bytes)?))
}

/// The reverse of [`to_row`].
pub fn from_row(row: v1::MembersRow) -> Membership {
    Membership {
        voters: row.voters,
        learners: row.learners,
        voters_outgoing: row.voters_outgoing,
        learners_next: row.learners_next,
        auto_leave: row.auto_leave,
    }
}
