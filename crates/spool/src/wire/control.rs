//! The control group's entries and state, and their protobuf.

use bytes::Bytes;
use prost::Message as _;
use proto::v1;
use proto::v1::log_entry::Command;
use queue::control::{Cluster, ControlCommand, ControlState, NodeRow, Placement, Rest};

use super::log::WireError;

/// The context of an entry of the control group.
pub fn encode(command: &ControlCommand, cluster_time_ms: u64) -> Bytes {
    let version = command.since();
    let command = match command {
        ControlCommand::CreateCluster {
            cluster,
            initial_nodes,
        } => Command::CreateCluster(cluster_to_wire(cluster, initial_nodes.clone())),
        ControlCommand::AnnounceNode { node, row } => {
            Command::AnnounceNode(node_to_wire(*node, row))
        }
        ControlCommand::Note { actor, text } => Command::Note(v1::NoteCommand {
            actor: actor.to_string(),
            text: text.to_string(),
        }),
        ControlCommand::AddNode {
            node,
            peer_address,
            client_address,
            zone,
        } => Command::AddNode(v1::AddNodeCommand {
            node: *node,
            peer_address: peer_address.to_string(),
            client_address: client_address.to_string(),
            zone: zone.to_string(),
        }),
        ControlCommand::RemoveNode { node } => {
            Command::RemoveNode(v1::RemoveNodeCommand { node: *node })
        }
        ControlCommand::ForgetNode { node } => {
            Command::ForgetNode(v1::ForgetNodeCommand { node: *node })
        }
        ControlCommand::Place {
            group,
            version,
            voters,
            leader,
            settled,
        } => Command::Place(v1::PlaceCommand {
            settled: *settled,
            group: *group,
            version: *version,
            voters: voters.iter().copied().collect(),
            leader: *leader,
        }),
        ControlCommand::Rest { node, rest } => Command::Rest(rest_to_wire(*node, rest)),
        ControlCommand::EndRest { node } => Command::EndRest(v1::EndRestCommand { node: *node }),
        ControlCommand::SetVersion { version } => {
            Command::SetVersion(v1::SetVersionCommand { version: *version })
        }
        ControlCommand::VerifyDigest { from, rows } => {
            Command::VerifyDigest(v1::VerifyDigestCommand {
                from: Bytes::copy_from_slice(from),
                rows: *rows,
            })
        }
        ControlCommand::PutConfig(put) => Command::PutConfig(super::config::put_to_wire(put)),
        ControlCommand::SetReplicationFactor { factor } => {
            Command::SetReplicationFactor(v1::SetReplicationFactorCommand { factor: *factor })
        }
    };
    let entry = v1::LogEntry {
        version,
        cluster_time_ms,
        command: Some(command),
    };
    entry.encode_to_vec().into()
}

/// The command of an entry of the control group. `known`: the newest version of the state machine that this program claims
/// to know.
///
/// # Errors
/// As [`super::log::decode`]: the replica cannot go on past this entry.
pub fn decode(context: &[u8], known: u32) -> Result<ControlCommand, WireError> {
    let entry = v1::LogEntry::decode(context)?;
    super::log::check_version(entry.version, known)?;
    match entry.command.ok_or(WireError::UnknownCommand)? {
        Command::CreateCluster(c) => {
            let initial_nodes = c.initial_nodes.clone();
            Ok(ControlCommand::CreateCluster {
                cluster: cluster_from_wire(&c)?,
                initial_nodes,
            })
        }
        Command::AnnounceNode(n) => {
            let (node, row) = node_from_wire(n)?;
            Ok(ControlCommand::AnnounceNode { node, row })
        }
        Command::Note(n) => Ok(ControlCommand::Note {
            actor: n.actor.into(),
            text: n.text.into(),
        }),
        Command::AddNode(n) => Ok(ControlCommand::AddNode {
            node: n.node,
            peer_address: n.peer_address.into(),
            client_address: n.client_address.into(),
            zone: n.zone.into(),
        }),
        Command::RemoveNode(n) => Ok(ControlCommand::RemoveNode { node: n.node }),
        Command::ForgetNode(n) => Ok(ControlCommand::ForgetNode { node: n.node }),
        Command::Place(p) => Ok(ControlCommand::Place {
            group: p.group,
            version: p.version,
            voters: p.voters.into_iter().collect(),
            leader: p.leader,
            settled: p.settled,
        }),
        Command::Rest(r) => {
            let (node, rest) = rest_from_wire(&r);
            Ok(ControlCommand::Rest { node, rest })
        }
        Command::EndRest(r) => Ok(ControlCommand::EndRest { node: r.node }),
        Command::SetVersion(s) => Ok(ControlCommand::SetVersion { version: s.version }),
        Command::VerifyDigest(v) => Ok(ControlCommand::VerifyDigest {
            from: v.from.as_ref().into(),
            rows: v.rows,
        }),
        Command::PutConfig(p) => {
            let put = super::config::put_from_wire(p)?;
            Ok(ControlCommand::PutConfig(put.into()))
        }
        Command::SetReplicationFactor(s) => {
            Ok(ControlCommand::SetReplicationFactor { factor: s.factor })
        }
        _ => Err(WireError::WrongGroup { belongs: "shard" }),
    }
}

/// The state as one row.
pub fn state_to_bytes(state: &ControlState) -> Bytes {
    let expected = || state.expected.iter().copied().collect();
    let row = v1::ControlStateRow {
        cluster: state
            .cluster
            .as_ref()
            .map(|c| cluster_to_wire(c, expected())),
        nodes: state
            .nodes
            .iter()
            .map(|(id, row)| node_to_wire(*id, row))
            .collect(),
        highest_node: state.highest_node,
        joining: state.joining.iter().copied().collect(),
        leaving: state.leaving.iter().copied().collect(),
        resting: state
            .resting
            .iter()
            .map(|(id, r)| rest_to_wire(*id, r))
            .collect(),
        groups: state
            .groups
            .iter()
            .map(|(id, p)| placement_to_wire(*id, p))
            .collect(),
        placed: state.placed.iter().map(placed_to_wire).collect(),
        placement_version: state.version,
        first_nodes: state.first_nodes.clone(),
        state_machine: state.state_machine,
        first_factor: state.first_factor,
    };
    row.encode_to_vec().into()
}

/// The state from its row; an empty one is the state before the first entry.
///
/// # Errors
/// The row is damaged.
pub fn state_from_bytes(bytes: &[u8]) -> Result<ControlState, WireError> {
    let row = v1::ControlStateRow::decode(bytes)?;
    let mut state = ControlState {
        highest_node: row.highest_node,
        joining: row.joining.into_iter().collect(),
        leaving: row.leaving.into_iter().collect(),
        resting: row.resting.iter().map(rest_from_wire).collect(),
        groups: row.groups.into_iter().map(placement_from_wire).collect(),
        placed: row
            .placed
            .iter()
            .map(|p| ((p.group, p.node), p.count))
            .collect(),
        version: row.placement_version,
        first_nodes: row.first_nodes,
        state_machine: row.state_machine,
        first_factor: row.first_factor,
        ..ControlState::default()
    };
    if let Some(cluster) = &row.cluster {
        state.cluster = Some(cluster_from_wire(cluster)?);
        state.expected = cluster.initial_nodes.iter().copied().collect();
    }
    for node in row.nodes {
        let (id, row) = node_from_wire(node)?;
        state.nodes.insert(id, row);
    }
    Ok(state)
}

fn cluster_to_wire(cluster: &Cluster, initial_nodes: Vec<u64>) -> v1::CreateClusterCommand {
    v1::CreateClusterCommand {
        cluster_id: Bytes::copy_from_slice(&cluster.id),
        shards: cluster.shards,
        replication_factor: cluster.replication_factor,
        initial_nodes,
    }
}

fn cluster_from_wire(wire: &v1::CreateClusterCommand) -> Result<Cluster, WireError> {
    Ok(Cluster {
        id: sixteen("cluster_id", &wire.cluster_id)?,
        shards: wire.shards,
        replication_factor: wire.replication_factor,
    })
}

fn rest_to_wire(node: u64, rest: &Rest) -> v1::RestCommand {
    v1::RestCommand {
        node,
        process: rest.process,
        until_ms: rest.until_ms,
    }
}

fn rest_from_wire(wire: &v1::RestCommand) -> (u64, Rest) {
    let rest = Rest {
        process: wire.process,
        until_ms: wire.until_ms,
    };
    (wire.node, rest)
}

fn placement_to_wire(group: u32, placement: &Placement) -> v1::PlacementRow {
    v1::PlacementRow {
        group,
        version: placement.version,
        voters: placement.voters.iter().copied().collect(),
        leader: placement.leader,
        before: placement.before.iter().copied().collect(),
    }
}

fn placement_from_wire(wire: v1::PlacementRow) -> (u32, Placement) {
    let placement = Placement {
        version: wire.version,
        voters: wire.voters.into_iter().collect(),
        leader: wire.leader,
        before: wire.before.into_iter().collect(),
    };
    (wire.group, placement)
}

fn placed_to_wire(((group, node), count): (&(u32, u64), &u32)) -> v1::PlacedRow {
    v1::PlacedRow {
        group: *group,
        node: *node,
        count: *count,
    }
}

/// A node and its row, as commands, the state and peers carry it.
pub fn node_to_wire(node: u64, row: &NodeRow) -> v1::AnnounceNodeCommand {
    v1::AnnounceNodeCommand {
        node,
        incarnation: Bytes::copy_from_slice(&row.incarnation),
        peer_address: row.peer_address.to_string(),
        client_address: row.client_address.to_string(),
        zone: row.zone.to_string(),
    }
}

/// The reverse of [`node_to_wire`].
///
/// # Errors
/// The incarnation has not 16 octets.
pub fn node_from_wire(wire: v1::AnnounceNodeCommand) -> Result<(u64, NodeRow), WireError> {
    let row = NodeRow {
        incarnation: sixteen("incarnation", &wire.incarnation)?,
        peer_address: wire.peer_address.into(),
        client_address: wire.client_address.into(),
        zone: wire.zone.into(),
    };
    Ok((wire.node, row))
}

fn sixteen(field: &'static str, bytes: &[u8]) -> Result<[u8; 16], WireError> {
    let problem = || WireError::Field {
        field,
        problem: format!("has {} octets, 16 are needed", bytes.len()),
    };
    bytes.try_into().map_err(|_| problem())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_state_survive_their_bytes() {
        let cluster = Cluster {
            id: [7; 16],
            shards: 4,
            replication_factor: 3,
        };
        let row = NodeRow {
            incarnation: [9; 16],
            peer_address: "a:7101".into(),
            client_address: "a:7100".into(),
            zone: "z".into(),
        };
        let commands = [
            ControlCommand::CreateCluster {
                cluster,
                initial_nodes: vec![1, 2],
            },
            ControlCommand::AnnounceNode { node: 2, row },
            ControlCommand::AddNode {
                node: 5,
                peer_address: "e:7101".into(),
                client_address: "e:7100".into(),
                zone: "z".into(),
            },
            ControlCommand::Place {
                group: 1,
                version: 0,
                voters: [1, 5].into(),
                leader: 5,
                settled: true,
            },
            ControlCommand::Rest {
                node: 2,
                rest: Rest {
                    process: 3,
                    until_ms: 4,
                },
            },
            ControlCommand::EndRest { node: 1 },
            ControlCommand::RemoveNode { node: 5 },
            ControlCommand::ForgetNode { node: 6 },
            ControlCommand::SetVersion { version: 3 },
            ControlCommand::SetReplicationFactor { factor: 1 },
            ControlCommand::VerifyDigest {
                from: b"Kind/a/b".as_slice().into(),
                rows: 7,
            },
        ];
        let mut state = ControlState::default();
        for command in &commands {
            assert_eq!(&decode(&encode(command, 5), 3).unwrap(), command);
            state.apply(command);
        }
        assert_eq!(state_from_bytes(&state_to_bytes(&state)).unwrap(), state);
        assert_eq!(state_from_bytes(&[]).unwrap(), ControlState::default());
    }

    #[test]
    fn a_program_that_does_not_know_documents_halts_at_the_first() {
        let raise = encode(&ControlCommand::SetVersion { version: 3 }, 1);
        assert!(matches!(
            decode(&raise, 2),
            Err(WireError::Version { found: 3, known: 2 })
        ));
        let rest = encode(&ControlCommand::EndRest { node: 1 }, 1);
        assert!(
            decode(&rest, 1).is_ok(),
            "what was there before is readable by whoever was there before"
        );
    }

    #[test]
    fn a_shards_entry_in_the_control_group_is_an_error() {
        let expire = v1::ExpireUploadCommand::default();
        let entry = v1::LogEntry {
            version: 1,
            cluster_time_ms: 1,
            command: Some(Command::ExpireUpload(expire)),
        };
        assert!(matches!(
            decode(&entry.encode_to_vec(), 3),
            Err(WireError::WrongGroup { .. })
        ));
    }
}
