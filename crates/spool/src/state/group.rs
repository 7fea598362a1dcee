//! One group's rows, as `apply` and the driver see them.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use mail::{Destination, Ulid};
use queue::{
    DestinationCounts, DueKey, Extent, Finished, ForgetKey, InFlight, Item, ItemId, LeaseSession,
    LeaseSessionId, Message, Recipient, RecipientId, Rows, ShardState, Table, TimerKey, Upload,
};

use super::StoreError;
use super::bodies::{Bodies, SegmentLive};
use super::config::{ConfigKey, Part};
use super::flush::FrozenGroup;
use super::store::Keyspaces;
use super::table::{Kinship, OverlayTable, Shared};
use crate::log::Location;

/// The small values of a group, kept in memory whole.
#[derive(Clone, Default, Debug)]
pub(super) struct Fixed {
    pub(super) applied: (u64, u64),
    pub(super) conf_state: Bytes,
    pub(super) blob: Bytes,
    /// `blob` differs from what was frozen last; it may be long, so only then it is written.
    pub(super) blob_changed: bool,
    pub(super) shard: ShardState,
}

/// The rows of one replica. Owned by the one thread that applies the group's entries; `Send`, not `Sync`.
pub struct GroupState {
    group: u32,
    /// The first octets of its keys: its number, until a snapshot brings other rows.
    slot: u32,
    shared: Arc<Shared>,
    fixed: Fixed,
    /// `fixed` differs from what was frozen last.
    changed: bool,
    /// A flush of this group is under way.
    flushing: bool,
    messages: OverlayTable<Ulid, Message>,
    items: OverlayTable<ItemId, Item>,
    recipients: OverlayTable<RecipientId, Recipient>,
    due: OverlayTable<DueKey, ()>,
    inflight: OverlayTable<(LeaseSessionId, ItemId), InFlight>,
    held: OverlayTable<ItemId, ()>,
    destinations: OverlayTable<Destination, DestinationCounts>,
    finished: OverlayTable<Ulid, Finished>,
    forgets: OverlayTable<ForgetKey, ()>,
    uploads: OverlayTable<Ulid, Upload>,
    sessions: OverlayTable<LeaseSessionId, LeaseSession>,
    timers: OverlayTable<TimerKey, ()>,
    /// Of the control group only.
    pub(super) config: OverlayTable<ConfigKey, Part>,
    bodies: Bodies,
}

impl GroupState {
    pub(super) fn new(
        (group, slot): (u32, u32),
        keyspaces: &Keyspaces,
        fixed: Fixed,
        segments: BTreeMap<u64, SegmentLive>,
    ) -> GroupState {
        let shared = Arc::new(Shared::default());
        /// One table; a macro, as each has types of its own.
        macro_rules! table {
            ($keyspace:ident, $kinship:ident) => {
                OverlayTable::new(
                    slot,
                    keyspaces.$keyspace.clone(),
                    Kinship::$kinship,
                    fixed.applied.0,
                    shared.clone(),
                )
            };
        }
        GroupState {
            messages: table!(messages, Message),
            items: table!(items, OfMessage),
            recipients: table!(recipients, OfMessage),
            due: table!(due, OfMessage),
            inflight: table!(inflight, OfMessage),
            held: table!(held, OfMessage),
            destinations: table!(destinations, None),
            finished: table!(finished, None),
            forgets: table!(forgets, None),
            uploads: table!(uploads, None),
            sessions: table!(sessions, None),
            timers: table!(timers, OfMessage),
            config: table!(config, None),
            bodies: Bodies::new(table!(kept, Indexed), segments),
            group,
            slot,
            shared,
            fixed,
            changed: false,
            flushing: false,
        }
    }

    /// Its number: 0 is the control group, shard s is s + 1.
    pub fn group(&self) -> u32 {
        self.group
    }

    /// Index and term of the last entry that these rows contain.
    pub fn applied(&self) -> (u64, u64) {
        self.fixed.applied
    }

    /// To be called after each applied entry, also an empty one, and before the next [`super::Store::freeze`].
    pub fn set_applied(&mut self, index: u64, term: u64) {
        debug_assert!(
            index >= self.fixed.applied.0,
            "entries are applied in order"
        );
        self.fixed.applied = (index, term);
        self.changed = true;
    }

    /// Raft's ConfState as the driver encoded it; empty: none yet.
    pub fn conf_state(&self) -> Bytes {
        self.fixed.conf_state.clone()
    }

    /// Writes it, with the entry that changed it: call [`GroupState::set_applied`] before the next freeze.
    pub fn set_conf_state(&mut self, conf_state: Bytes) {
        self.fixed.conf_state = conf_state;
        self.changed = true;
    }

    /// The control group's state as its core encoded it; empty: none yet.
    pub fn blob(&self) -> Bytes {
        self.fixed.blob.clone()
    }

    /// Writes it. It is written whole at each flush in which it changed: meant for some hundred KiB at the most.
    pub fn set_blob(&mut self, blob: Bytes) {
        self.fixed.blob = blob;
        self.fixed.blob_changed = true;
        self.changed = true;
    }

    /// Where the entry at `index` lies, while an extent of its data is kept.
    pub fn locate(&self, index: u64) -> Option<Location> {
        self.bodies.kept.get(&index).map(|kept| kept.location)
    }

    /// `Effect::BodyKept`: the entry at `extent.index` lies at `location`.
    pub fn body_kept(&mut self, extent: Extent, location: Location) {
        self.bodies.keep(extent, location);
    }

    /// `Effect::BodyDropped`.
    pub fn body_dropped(&mut self, extent: Extent) {
        self.bodies.drop(extent);
    }

    /// GC copied a body. False: it is gone or elsewhere meanwhile, and the copy is garbage.
    pub fn relocate(&mut self, index: u64, from: Location, to: Location) -> bool {
        self.changed = true;
        self.bodies.relocate(index, from, to)
    }

    /// At most `limit` entries with kept bodies, from `index` on: what GC looks through.
    pub fn kept_from(&self, index: u64, limit: usize) -> Vec<(u64, Location)> {
        let rows = self.bodies.kept.range(Some(&index), limit);
        rows.into_iter()
            .map(|(index, kept)| (index, kept.location))
            .collect()
    }

    /// What this group needs of each segment, as of the last applied entry (not durable yet: see
    /// [`super::Store::segments_live`]).
    pub fn segments(&self) -> &BTreeMap<u64, SegmentLive> {
        &self.bodies.segments
    }

    /// The first error of a read. Once there is one, what this group read since is not to be believed: stop the
    /// replica node, answer nobody. A flush leaves the group out.
    pub fn error(&self) -> Option<StoreError> {
        self.shared.error()
    }

    /// Estimate of the overlay's memory, bytes (compare the sum over the groups with [`super::FLUSH_BYTES`]).
    pub fn overlay_bytes(&self) -> usize {
        self.messages.bytes()
            + self.items.bytes()
            + self.recipients.bytes()
            + self.due.bytes()
            + self.inflight.bytes()
            + self.held.bytes()
            + self.destinations.bytes()
            + self.finished.bytes()
            + self.forgets.bytes()
            + self.uploads.bytes()
            + self.sessions.bytes()
            + self.timers.bytes()
            + self.config.bytes()
            + self.bodies.kept.bytes()
    }

    /// Whether a flush of this group is under way.
    pub(super) fn is_flushing(&self) -> bool {
        self.flushing
    }

    /// The overlay for the flush; `None`: nothing changed, or the group has failed.
    pub(super) fn freeze(&mut self) -> Option<FrozenGroup> {
        if self.shared.error().is_some() {
            return None;
        }
        if !self.changed {
            self.shed();
            return None;
        }
        let applied = self.fixed.applied.0;
        let layers = [
            self.messages.freeze(applied),
            self.items.freeze(applied),
            self.recipients.freeze(applied),
            self.due.freeze(applied),
            self.inflight.freeze(applied),
            self.held.freeze(applied),
            self.destinations.freeze(applied),
            self.finished.freeze(applied),
            self.forgets.freeze(applied),
            self.uploads.freeze(applied),
            self.sessions.freeze(applied),
            self.timers.freeze(applied),
            self.config.freeze(applied),
            self.bodies.kept.freeze(applied),
        ];
        self.shared.forget_born();
        (self.changed, self.flushing) = (false, true);
        let fixed = self.fixed.clone();
        self.fixed.blob_changed = false;
        Some(FrozenGroup {
            group: self.group,
            slot: self.slot,
            fixed,
            layers: layers.into_iter().flatten().collect(),
            changed_segments: self.bodies.take_changed(),
            segments: self.bodies.segments.clone(),
        })
    }

    fn shed(&mut self) {
        self.shared.forget_born();
        self.messages.shed();
        self.items.shed();
        self.recipients.shed();
        self.due.shed();
        self.inflight.shed();
        self.held.shed();
        self.destinations.shed();
        self.finished.shed();
        self.forgets.shed();
        self.uploads.shed();
        self.sessions.shed();
        self.timers.shed();
        self.config.shed();
        self.bodies.kept.shed();
    }

    /// What was frozen is durable.
    pub(super) fn thaw(&mut self) {
        self.flushing = false;
        self.messages.thaw();
        self.items.thaw();
        self.recipients.thaw();
        self.due.thaw();
        self.inflight.thaw();
        self.held.thaw();
        self.destinations.thaw();
        self.finished.thaw();
        self.forgets.thaw();
        self.uploads.thaw();
        self.sessions.thaw();
        self.timers.thaw();
        self.config.thaw();
        self.bodies.kept.thaw();
    }
}

impl Rows for GroupState {
    fn shard(&self) -> ShardState {
        self.fixed.shard
    }
    fn set_shard(&mut self, state: ShardState) {
        self.fixed.shard = state;
        self.changed = true;
    }
    fn messages(&mut self) -> &mut dyn Table<Ulid, Message> {
        &mut self.messages
    }
    fn items(&mut self) -> &mut dyn Table<ItemId, Item> {
        &mut self.items
    }
    fn recipients(&mut self) -> &mut dyn Table<RecipientId, Recipient> {
        &mut self.recipients
    }
    fn due(&mut self) -> &mut dyn Table<DueKey, ()> {
        &mut self.due
    }
    fn inflight(&mut self) -> &mut dyn Table<(LeaseSessionId, ItemId), InFlight> {
        &mut self.inflight
    }
    fn held(&mut self) -> &mut dyn Table<ItemId, ()> {
        &mut self.held
    }
    fn destinations(&mut self) -> &mut dyn Table<Destination, DestinationCounts> {
        &mut self.destinations
    }
    fn finished(&mut self) -> &mut dyn Table<Ulid, Finished> {
        &mut self.finished
    }
    fn forgets(&mut self) -> &mut dyn Table<ForgetKey, ()> {
        &mut self.forgets
    }
    fn uploads(&mut self) -> &mut dyn Table<Ulid, Upload> {
        &mut self.uploads
    }
    fn sessions(&mut self) -> &mut dyn Table<LeaseSessionId, LeaseSession> {
        &mut self.sessions
    }
    fn timers(&mut self) -> &mut dyn Table<TimerKey, ()> {
        &mut self.timers
    }
}
