//! Big bodies that come in as chunks before their Append.

use mail::Ulid;

use crate::apply::Shard;
use crate::planted::{Mutation, planted};
use crate::{Effect, Extent, Upload};

/// An upload whose last chunk is this long ago is dropped, ms of cluster time. An edge sends a chunk at least every
/// two minutes.
pub const UPLOAD_IDLE_MS: u64 = 10 * 60 * 1000;

/// Chunks of one message: 50 MiB in chunks of 1 MiB, and as many short ones of a slow client. The row of the message
/// names each of them.
pub const CHUNKS_MAX: usize = 256;

impl Shard<'_> {
    pub(crate) fn body_chunk(&mut self, message: Ulid, seq: u32, size: u32) {
        let stored = Effect::ChunkStored { message, seq };
        // The edge did not hear of its Append and begins again: let it come to the answer, keep nothing.
        if self.known(message).is_some() {
            return self.emit(stored);
        }
        let row = self.rows.uploads().get(&message);
        let have = row.as_ref().map_or(0, |row| row.chunks.len());
        if (seq as usize) < have {
            return self.emit(stored);
        }
        if seq as usize > have || have >= CHUNKS_MAX {
            return self.emit(Effect::UploadGone { message });
        }
        let mut row = match row {
            Some(row) => (*row).clone(),
            None => Upload {
                chunks: Vec::new(),
                bytes: 0,
                last: self.now,
            },
        };
        let extent = Extent {
            index: self.index,
            offset: 0,
            length: size.into(),
        };
        row.chunks.push(extent);
        row.bytes = row.bytes.saturating_add(extent.length);
        row.last = self.now;
        self.rows.uploads().put(message, row);
        self.state.upload_bytes = self.state.upload_bytes.saturating_add(extent.length);
        self.emit(Effect::BodyKept(extent));
        self.emit(stored);
    }

    pub(crate) fn expire_uploads(&mut self, messages: &[Ulid]) {
        for message in messages {
            let Some(row) = self.rows.uploads().get(message) else {
                continue;
            };
            // A chunk may have come in since the leader decided.
            if row.last.plus(UPLOAD_IDLE_MS) <= self.now && !planted(Mutation::UploadsStay) {
                self.drop_upload(*message);
            }
        }
    }

    /// The chunks become a body; `None`, and nothing is left of them, when they are not what the Append says.
    pub(crate) fn take_upload(
        &mut self,
        message: Ulid,
        chunks: u32,
        size: u64,
    ) -> Option<Vec<Extent>> {
        let row = self.rows.uploads().get(&message)?;
        if row.chunks.len() != chunks as usize || row.bytes != size {
            self.drop_upload(message);
            return None;
        }
        self.rows.uploads().delete(&message);
        self.state.upload_bytes = self.state.upload_bytes.saturating_sub(row.bytes);
        Some(row.chunks.clone())
    }

    pub(crate) fn drop_upload(&mut self, message: Ulid) {
        let Some(row) = self.rows.uploads().get(&message) else {
            return;
        };
        self.rows.uploads().delete(&message);
        self.state.upload_bytes = self.state.upload_bytes.saturating_sub(row.bytes);
        for extent in &row.chunks {
            self.emit(Effect::BodyDropped(*extent));
        }
    }
}
