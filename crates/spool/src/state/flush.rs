//! A flush: what the groups changed in one window, in one batch.

use std::collections::BTreeMap;
use std::sync::Arc;

use fjall::{Database, Keyspace, OwnedWriteBatch, PersistMode};

use super::StoreError;
use super::bodies::SegmentLive;
use super::codec;
use super::group::Fixed;
use super::key;
use super::store::{self, Keyspaces};
use super::table::Frozen;

/// What one group changed.
pub(super) struct FrozenGroup {
    pub(super) group: u32,
    /// The first octets of its rows' keys.
    pub(super) slot: u32,
    pub(super) fixed: Fixed,
    pub(super) layers: Vec<(Keyspace, Arc<dyn Frozen>)>,
    pub(super) changed_segments: Vec<(u64, Option<SegmentLive>)>,
    /// All, for [`super::Store::segments_live`].
    pub(super) segments: BTreeMap<u64, SegmentLive>,
}

/// Frozen overlays, ready to be written by a helper thread. Dropped without [`Flush::run`] it is lost: close the store
/// then, as after an error.
#[must_use]
pub struct Flush {
    pub(super) database: Database,
    pub(super) keyspaces: Keyspaces,
    pub(super) groups: Vec<FrozenGroup>,
}

/// A flush that is durable; hand it to [`super::Store::flushed`].
#[must_use]
#[derive(Debug)]
pub struct Flushed {
    pub(super) groups: Vec<(u32, u64, BTreeMap<u64, SegmentLive>)>,
    /// Rows written and deleted.
    pub rows: usize,
}

impl Flush {
    /// Encodes, writes and syncs; takes milliseconds, or longer when fjall stalls. Nothing is visible before it is
    /// durable.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] or [`StoreError::Fatal`]; either way the store is of no use any more (fjall refuses
    /// writes after a failed one) and must be closed.
    pub fn run(self) -> Result<Flushed, StoreError> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncAll));
        let mut rows = 0;
        // The applied index first: by that a start knows a flush (see `journal`).
        for frozen in &self.groups {
            rows += frozen.encode_rest(&self.keyspaces, &mut batch);
            for (keyspace, layer) in &frozen.layers {
                rows += layer.encode(frozen.slot, keyspace, &mut batch);
            }
        }
        batch.commit().map_err(StoreError::of)?;
        let groups = self
            .groups
            .into_iter()
            .map(|it| (it.group, it.fixed.applied.0, it.segments))
            .collect();
        Ok(Flushed { groups, rows })
    }
}

impl FrozenGroup {
    fn encode_rest(&self, keyspaces: &Keyspaces, batch: &mut OwnedWriteBatch) -> usize {
        let fixed = store::encode_fixed(self.group, &self.fixed, &keyspaces.fixed, batch);
        for (segment, live) in &self.changed_segments {
            let key = key::prefixed(self.slot, segment);
            match live {
                Some(live) => batch.insert(&keyspaces.segments, key, codec::encode(live)),
                None => batch.remove(&keyspaces.segments, key),
            }
        }
        self.changed_segments.len() + fixed
    }
}
