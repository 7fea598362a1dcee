//! A snapshot's manifest: what Raft carries of a snapshot, while its rows and bodies take another way.

use prost::Message as _;
use proto::v1;
use raft::eraftpb::{ConfState, Snapshot};

use super::log::WireError;
use super::members;
use crate::node::Made;

/// The format of the records that this program writes and reads. Another one is refused by the receiver: a replica that
/// is filled must run a version that knows it.
pub const FORMAT: u32 = 1;

/// The manifest of a snapshot that was made.
pub fn manifest(made: &Made) -> v1::SnapshotManifest {
    v1::SnapshotManifest {
        format: FORMAT,
        id: made.id,
        index: made.index,
        term: made.term,
        members: Some(members::to_row(&made.members)),
        body_bytes: made.body_bytes,
    }
}

/// As Raft's snapshot, whose data is the manifest.
pub fn to_raft(manifest: &v1::SnapshotManifest) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let of = members::from_row(manifest.members.clone().unwrap_or_default());
    let metadata = snapshot.mut_metadata();
    metadata.index = manifest.index;
    metadata.term = manifest.term;
    metadata.set_conf_state(ConfState::from(&of));
    snapshot.data = manifest.encode_to_vec().into();
    snapshot
}

/// What a snapshot of Raft's says of itself.
///
/// # Errors
/// Its data is no manifest, or one of a format that this program does not know.
pub fn from_raft(snapshot: &Snapshot) -> Result<Made, WireError> {
    from_manifest(v1::SnapshotManifest::decode(snapshot.get_data())?)
}

/// What a manifest says.
///
/// # Errors
/// Another format.
pub fn from_manifest(manifest: v1::SnapshotManifest) -> Result<Made, WireError> {
    if manifest.format != FORMAT {
        return Err(WireError::Field {
            field: "snapshot.format",
            problem: format!(
                "{} is not known, this program knows {FORMAT}: run the version of postroad that the other replicas run",
                manifest.format
            ),
        });
    }
    Ok(Made {
        id: manifest.id,
        index: manifest.index,
        term: manifest.term,
        members: members::from_row(manifest.members.unwrap_or_default()),
        body_bytes: manifest.body_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::Membership;

    #[test]
    fn a_manifest_survives_raft_and_the_wire() {
        let made = Made {
            id: 7,
            index: 41,
            term: 3,
            members: Membership {
                voters: vec![1, 2],
                learners: vec![3],
                ..Membership::default()
            },
            body_bytes: 1 << 40,
        };
        let raft = to_raft(&manifest(&made));
        assert_eq!(raft.get_metadata().get_conf_state().get_learners(), [3]);
        assert_eq!(from_raft(&raft).expect("it is one"), made);
        let other = v1::SnapshotManifest {
            format: 99,
            ..manifest(&made)
        };
        assert!(from_manifest(other).is_err());
    }
}
