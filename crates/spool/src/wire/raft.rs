//! Raft messages in our own types, field by field. No byte from the network is parsed by rust-protobuf
//! (RUSTSEC-2024-0437), and bodies move without a copy.

use prost::Message as _;
use proto::v1;
use raft::eraftpb::{Entry, EntryType, Message, MessageType};

use super::log::WireError;

/// The message types that may come from the network, with their numbers on the wire. The others are for a node's own
/// use: a `MsgPropose` from outside would be forwarded and could carry a membership change, a `MsgHup` or
/// `MsgUnreachable` would let a peer steer us.
const TYPES: [(u32, MessageType); 11] = [
    (3, MessageType::MsgAppend),
    (4, MessageType::MsgAppendResponse),
    (5, MessageType::MsgRequestVote),
    (6, MessageType::MsgRequestVoteResponse),
    (7, MessageType::MsgSnapshot),
    (8, MessageType::MsgHeartbeat),
    (9, MessageType::MsgHeartbeatResponse),
    (13, MessageType::MsgTransferLeader),
    (14, MessageType::MsgTimeoutNow),
    (17, MessageType::MsgRequestPreVote),
    (18, MessageType::MsgRequestPreVoteResponse),
];

/// To the wire. `None` for a message that never leaves a node.
pub fn to_wire(group: u32, mut message: Message) -> Option<v1::RaftMessage> {
    let (number, _) = TYPES.iter().find(|(_, t)| *t == message.msg_type)?;
    let snapshot = message
        .has_snapshot()
        .then(|| v1::SnapshotManifest::decode(message.get_snapshot().get_data()));
    let entries = message
        .take_entries()
        .into_iter()
        .map(entry_to_wire)
        .collect();
    Some(v1::RaftMessage {
        group,
        r#type: *number,
        to: message.to,
        from: message.from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries,
        commit: message.commit,
        commit_term: message.commit_term,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.take_context(),
        priority: message.priority,
        request_snapshot: message.request_snapshot,
        snapshot: snapshot.and_then(Result::ok),
    })
}

/// From the wire: the group and the message.
///
/// # Errors
/// The sender's: a type that no peer may send, or an unknown type of entry.
pub fn from_wire(wire: v1::RaftMessage) -> Result<(u32, Message), WireError> {
    let kind = TYPES
        .iter()
        .find(|(n, _)| *n == wire.r#type)
        .map(|(_, t)| *t);
    let Some(kind) = kind else {
        let problem = format!("{} does not travel between nodes", wire.r#type);
        return Err(WireError::Field {
            field: "type",
            problem,
        });
    };
    let mut message = Message::default();
    message.set_msg_type(kind);
    message.to = wire.to;
    message.from = wire.from;
    message.term = wire.term;
    message.log_term = wire.log_term;
    message.index = wire.index;
    message.commit = wire.commit;
    message.commit_term = wire.commit_term;
    message.reject = wire.reject;
    message.reject_hint = wire.reject_hint;
    message.context = wire.context;
    message.priority = wire.priority;
    message.request_snapshot = wire.request_snapshot;
    if let Some(manifest) = wire.snapshot {
        message.set_snapshot(super::snapshot::to_raft(&manifest));
    }
    let entries = wire
        .entries
        .into_iter()
        .map(entry_from_wire)
        .collect::<Result<Vec<_>, _>>()?;
    message.set_entries(entries.into());
    Ok((wire.group, message))
}

fn entry_to_wire(mut entry: Entry) -> v1::RaftEntry {
    v1::RaftEntry {
        r#type: entry.entry_type as u32,
        term: entry.term,
        index: entry.index,
        context: entry.take_context(),
        data: entry.take_data(),
    }
}

fn entry_from_wire(wire: v1::RaftEntry) -> Result<Entry, WireError> {
    let mut entry = Entry::default();
    entry.set_entry_type(match wire.r#type {
        0 => EntryType::EntryNormal,
        1 => EntryType::EntryConfChange,
        2 => EntryType::EntryConfChangeV2,
        other => {
            let problem = format!("entry {} has the unknown type {other}", wire.index);
            return Err(WireError::Field {
                field: "entries",
                problem,
            });
        }
    });
    entry.term = wire.term;
    entry.index = wire.index;
    entry.context = wire.context;
    entry.data = wire.data;
    Ok(entry)
}

/// Octets that a message takes on the wire, roughly: what the transport's limits count.
pub fn wire_size(message: &v1::RaftMessage) -> usize {
    const HEADER: usize = 64;
    HEADER
        + message
            .entries
            .iter()
            .map(|e| e.context.len() + e.data.len() + HEADER)
            .sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append() -> Message {
        let mut m = Message::default();
        m.set_msg_type(MessageType::MsgAppend);
        m.to = 1 << 20;
        m.from = 2 << 20;
        m.term = 7;
        m.log_term = 6;
        m.index = 41;
        m.commit = 40;
        let e = Entry {
            term: 7,
            index: 42,
            context: bytes::Bytes::from_static(b"command"),
            data: bytes::Bytes::from_static(b"body"),
            ..Entry::default()
        };
        m.set_entries(vec![e].into());
        m
    }

    #[test]
    fn a_message_survives_the_wire_field_by_field() {
        let sent = append();
        let (group, got) = from_wire(to_wire(5, sent.clone()).unwrap()).unwrap();
        assert_eq!((group, got), (5, sent));
    }

    #[test]
    fn what_no_peer_may_send_is_refused() {
        for kind in [0, 1, 2, 10, 11, 12, 15, 16, 99] {
            let wire = v1::RaftMessage {
                r#type: kind,
                ..Default::default()
            };
            assert!(from_wire(wire).is_err(), "type {kind}");
        }
        let mut propose = Message::default();
        propose.set_msg_type(MessageType::MsgPropose);
        assert!(to_wire(0, propose).is_none());
    }
}
