//! The members of a Raft group as a row beside the applied index.

use bytes::Bytes;
use prost::Message as _;
use proto::v1;

use super::log::WireError;
use crate::node::Membership;

/// The row of a group's members.
pub fn to_bytes(members: &Membership) -> Bytes {
    let row = v1::MembersRow {
        voters: members.voters.clone(),
        learners: members.learners.clone(),
        voters_outgoing: members.voters_outgoing.clone(),
        learners_next: members.learners_next.clone(),
        auto_leave: members.auto_leave,
    };
    row.encode_to_vec().into()
}

/// The members of a group from their row.
///
/// # Errors
/// The row is damaged.
pub fn from_bytes(bytes: &[u8]) -> Result<Membership, WireError> {
    let row = v1::MembersRow::decode(bytes)?;
    Ok(Membership {
        voters: row.voters,
        learners: row.learners,
        voters_outgoing: row.voters_outgoing,
        learners_next: row.learners_next,
        auto_leave: row.auto_leave,
    })
}
