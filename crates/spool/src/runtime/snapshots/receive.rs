//! Receiving a snapshot: checked as it comes, staged, fsynced, then handed to Raft. Whatever is wrong, nothing that this
//! replica had is touched (nats#7556).

use bytes::Bytes;
use proto::v1;
use proto::v1::snapshot_chunk::What;
use raft::eraftpb::{Message, MessageType};
use tokio::sync::mpsc;
use tonic::Streaming;

use super::{INCOMING_MAX, Incoming, Snapshots};
use crate::log::DiskUse;
use crate::node::{Made, SnapshotInput};
use crate::snapshot::{Checker, Places, Staged};

/// Chunks between the network and the disk.
const CHUNKS_AHEAD: usize = 2;

/// How long the sender may be silent.
const SILENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// Free octets of the disk that a snapshot leaves beside what it needs.
const SPARE_BYTES: u64 = 1 << 20;

/// Takes a group's place among those that are received; gives it back if nothing came of it.
struct Place {
    hub: Snapshots,
    group: u32,
    id: u64,
    keep: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.keep {
            metrics::counter!("postroad_snapshots_total", "outcome" => "refused").increment(1);
            self.hub.discard(self.group, self.id);
        }
    }
}

impl Snapshots {
    /// Receives the snapshot that `frame` announces; its sender was checked.
    ///
    /// # Errors
    /// A refusal for the sender: what is wrong, with which group.
    pub async fn receive(
        &self,
        frame: v1::PeerFrame,
        mut chunks: Streaming<v1::SnapshotChunk>,
    ) -> Result<(), String> {
        let (group, message, made) = announced(frame)?;
        let refused = |text: String| format!("group {group}: {text}");
        let mut place = self.place(group, &made).map_err(refused)?;
        let staged = self.0.staging.begin(group, made.id);
        let staged = staged.map_err(|e| refused(format!("nothing can be staged: {e}")))?;
        let (to, octets) = mpsc::channel(CHUNKS_AHEAD);
        let (hub, id) = (self.clone(), made.id);
        let writing = tokio::task::spawn_blocking(move || hub.stage(group, id, staged, octets));
        loop {
            let next = tokio::time::timeout(SILENCE, chunks.message()).await;
            let next = next.map_err(|_| refused("the sender fell silent".to_owned()))?;
            let chunk = next.map_err(|status| refused(status.message().to_owned()))?;
            let Some(chunk) = chunk else { break };
            let Some(What::Records(records)) = chunk.what else {
                return Err(refused("a chunk without records".to_owned()));
            };
            if to.send(records).await.is_err() {
                // It says why below.
                break;
            }
        }
        drop(to);
        let written = writing.await.map_err(|e| refused(e.to_string()))?;
        let octets = written.map_err(refused)?;
        tracing::info!(group, index = made.index, octets, "a snapshot is staged");
        metrics::counter!("postroad_snapshots_total", "outcome" => "received").increment(1);
        place.keep = true;
        self.tell(group, SnapshotInput::Staged(message));
        Ok(())
    }

    fn place(&self, group: u32, made: &Made) -> Result<Place, String> {
        // Staged, and then in the log.
        let needed = made.body_bytes.saturating_mul(2) + SPARE_BYTES;
        let mut incoming = self.incoming();
        if let Some(other) = incoming.get(&group) {
            return Err(format!(
                "snapshot {:016x} is being received or installed already",
                other.id
            ));
        }
        if incoming.len() >= INCOMING_MAX {
            return Err(format!("{INCOMING_MAX} other snapshots come in already"));
        }
        let others = incoming
            .values()
            .map(|it| it.needed.saturating_sub(it.octets))
            .sum();
        has_room(&self.0.health.disk(), needed, others)?;
        let id = made.id;
        let octets = 0;
        incoming.insert(group, Incoming { id, octets, needed });
        Ok(Place {
            hub: self.clone(),
            group,
            id,
            keep: false,
        })
    }

    /// Checks and writes, in a thread.
    fn stage(
        &self,
        group: u32,
        id: u64,
        mut staged: Staged,
        mut octets: mpsc::Receiver<Bytes>,
    ) -> Result<u64, String> {
        let helper = self.helper();
        let mut checker = Checker::new(id);
        let mut places = Places::default();
        while let Some(chunk) = octets.blocking_recv() {
            if helper.must_end() {
                return Err("this node ends".to_owned());
            }
            let mut rest = chunk.clone();
            loop {
                match checker.next(&mut rest) {
                    Ok(Some(record)) => {
                        let read = (chunk.len() - rest.len()) as u64;
                        places.add(&record, staged.octets + read);
                    }
                    Ok(None) => break,
                    Err(damage) => return Err(format!("the snapshot is damaged: {damage}")),
                }
            }
            let written = staged.write(&chunk);
            written.map_err(|e| format!("it cannot be staged: {e}"))?;
            metrics::counter!("postroad_snapshot_bytes_total", "direction" => "received")
                .increment(chunk.len() as u64);
            if let Some(it) = self.incoming().get_mut(&group) {
                it.octets = staged.octets;
            }
        }
        let whole = checker.finish();
        whole.map_err(|damage| format!("the snapshot is damaged: {damage}"))?;
        let (octets, path) = (staged.octets, staged.path.clone());
        let durable = staged.finish();
        durable.map_err(|e| format!("it cannot be made durable: {e}"))?;
        let sworn = places.verify(&path, || helper.must_end());
        sworn.map_err(|e| e.to_string())?;
        Ok(octets)
    }
}

/// Whether a snapshot of `needed` octets can be staged and installed beside others, which will take `others` more.
fn has_room(disk: &DiskUse, needed: u64, others: u64) -> Result<(), String> {
    // Nothing was measured yet.
    if disk.limit == 0 {
        return Ok(());
    }
    let needed = needed.saturating_add(disk.reserved).saturating_add(others);
    let free = disk.limit.saturating_sub(disk.used);
    if free >= needed {
        return Ok(());
    }
    Err(format!(
        "no room for its snapshot: {} MiB are needed ({} MiB of them for what frees space, {} MiB for other snapshots), \
         {} MiB free; make room on this node's disk",
        needed >> 20,
        disk.reserved >> 20,
        others >> 20,
        free >> 20
    ))
}

/// The group, the message for Raft, and what it says of the snapshot.
fn announced(frame: v1::PeerFrame) -> Result<(u32, Message, Made), String> {
    let from = frame.from_node;
    let mut messages = frame.messages.into_iter();
    let (Some(wire), None) = (messages.next(), messages.next()) else {
        return Err("a snapshot begins with one message".to_owned());
    };
    let (group, message) = crate::wire::raft::from_wire(wire).map_err(|e| e.to_string())?;
    if message.get_msg_type() != MessageType::MsgSnapshot || !message.has_snapshot() {
        return Err(format!(
            "group {group}: a snapshot begins with a MsgSnapshot"
        ));
    }
    if crate::directory::node_of(message.from) != from {
        return Err("a Raft message names another node than its frame".to_owned());
    }
    let made = crate::wire::snapshot::from_raft(message.get_snapshot());
    let made = made.map_err(|e| format!("group {group}: {e}"))?;
    Ok((group, message, made))
}

#[cfg(test)]
mod tests {
    use super::{DiskUse, has_room};

    const MIB: u64 = 1 << 20;

    /// Without the reserve, a snapshot was staged whole, found no segment when it was installed, and the node closed and opened again
    /// to try the same.
    #[test]
    fn room_for_a_snapshot_is_beside_the_reserved_segments_and_other_snapshots() {
        let disk = DiskUse {
            limit: 2048 * MIB,
            used: 1024 * MIB,
            reserved: 256 * MIB,
            ..DiskUse::default()
        };
        assert_eq!(has_room(&disk, 768 * MIB, 0), Ok(()));
        let refused = has_room(&disk, 769 * MIB, 0).unwrap_err();
        assert!(
            refused.starts_with("no room for its snapshot: 1025 MiB are needed (256 MiB"),
            "{refused}"
        );
        assert_eq!(has_room(&disk, 468 * MIB, 300 * MIB), Ok(()));
        assert!(has_room(&disk, 468 * MIB, 301 * MIB).is_err());
        assert!(has_room(&disk, u64::MAX, u64::MAX).is_err());
    }

    #[test]
    fn a_disk_that_was_not_measured_yet_refuses_nothing() {
        assert_eq!(has_room(&DiskUse::default(), u64::MAX, 0), Ok(()));
    }
}
