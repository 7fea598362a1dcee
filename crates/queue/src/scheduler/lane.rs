//! Lanes: the Waiting items of one destination and class that are in memory, ready or about to be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mail::Destination;

use super::Limits;
use crate::{DueKey, ItemId, Timestamp};

/// Each so many picks of a lane take the oldest of the least urgent: urgency is no licence to starve the rest.
pub const AGE_EVERY: u32 = 8;

/// A slot of [`Lanes`]; used again when its lane is gone.
pub(super) type LaneId = u32;

/// A Waiting item in memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Head {
    pub(super) rank: i8,
    pub(super) due: Timestamp,
    pub(super) item: ItemId,
}

impl Head {
    pub(super) fn key(&self, class: &Arc<str>, destination: &Destination) -> DueKey {
        DueKey {
            minute: self.due.0 / 60_000,
            class: class.clone(),
            destination: destination.clone(),
            rank: self.rank,
            due: self.due,
            item: self.item,
        }
    }
}

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) class: Arc<str>,
    pub(super) destination: Destination,
    /// May go out, the most urgent first.
    ready: BTreeSet<Head>,
    /// Due later, the soonest first.
    future: BTreeSet<(Timestamp, Head)>,
    /// From this key on there may be rows of the lane that are not here.
    pub(super) resume: Option<DueKey>,
    takes: u32,
}

impl Lane {
    pub(super) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    fn len(&self) -> usize {
        self.ready.len() + self.future.len()
    }

    fn next(&mut self) -> Option<Head> {
        self.takes = self.takes.wrapping_add(1);
        let last = *self.ready.last()?;
        if self.takes.is_multiple_of(AGE_EVERY) {
            return self
                .ready
                .range(
                    Head {
                        due: Timestamp(0),
                        item: ItemId::FIRST,
                        ..last
                    }..,
                )
                .next()
                .copied();
        }
        self.ready.first().copied()
    }

    fn remember_behind(&mut self, key: DueKey) {
        self.resume = Some(match self.resume.take() {
            Some(resume) => resume.min(key),
            None => key,
        });
    }
}

/// What became of a row.
pub(super) enum Inserted {
    /// Its lane has something ready now and had not before.
    Ready(LaneId),
    /// In memory, or noted in its lane as to be read later.
    Kept,
    /// Memory is full and it has no lane.
    NoRoom,
}

#[derive(Debug, Default)]
pub(super) struct Lanes {
    pub(super) limits: Limits,
    slots: Vec<Option<Lane>>,
    free: Vec<LaneId>,
    by_destination: BTreeMap<Destination, Vec<LaneId>>,
    heads: BTreeMap<ItemId, (LaneId, Head)>,
    /// When the first of a lane's future comes due.
    wakes: BTreeSet<(Timestamp, LaneId)>,
    /// Lanes with room and something on disk.
    hungry: BTreeSet<LaneId>,
    /// When full lanes without anything ready are to be looked at again, for what they have on disk.
    later: BTreeSet<(Timestamp, LaneId)>,
    now: Timestamp,
}

impl Lanes {
    pub(super) fn heads(&self) -> usize {
        self.heads.len()
    }

    pub(super) fn holds(&self, item: &ItemId) -> bool {
        self.heads.contains_key(item)
    }

    pub(super) fn get(&self, id: LaneId) -> Option<&Lane> {
        self.slots.get(id as usize)?.as_ref()
    }

    fn get_mut(&mut self, id: LaneId) -> Option<&mut Lane> {
        self.slots.get_mut(id as usize)?.as_mut()
    }

    pub(super) fn of(&self, destination: &Destination) -> impl Iterator<Item = (LaneId, &Lane)> {
        let ids = self
            .by_destination
            .get(destination)
            .map_or(&[][..], Vec::as_slice);
        ids.iter().filter_map(|id| Some((*id, self.get(*id)?)))
    }

    pub(super) fn ready(&self) -> impl Iterator<Item = (LaneId, &Lane)> {
        let lanes = (0u32..)
            .zip(&self.slots)
            .filter_map(|(id, lane)| Some((id, lane.as_ref()?)));
        lanes.filter(|(_, lane)| lane.is_ready())
    }

    pub(super) fn find(&self, class: &str, destination: &Destination) -> Option<LaneId> {
        self.of(destination)
            .find(|(_, lane)| *lane.class == *class)
            .map(|(id, _)| id)
    }

    /// Nothing of it is ready, here or on disk.
    pub(super) fn is_idle(&self, class: &str, destination: &Destination) -> bool {
        let lane = self.find(class, destination).and_then(|id| self.get(id));
        lane.is_none_or(|lane| !lane.is_ready() && lane.resume.is_none())
    }

    pub(super) fn next_due(&self) -> Option<Timestamp> {
        let first = [self.wakes.first(), self.later.first()];
        first.into_iter().flatten().map(|(due, _)| *due).min()
    }

    /// Heads that a lane may have. When memory gets short, few long lanes must not keep all others out.
    fn cap(&self) -> usize {
        let Limits {
            per_destination,
            per_shard,
        } = self.limits;
        let cap = match self.heads.len() {
            n if n < per_shard / 2 => per_destination,
            n if n < per_shard / 10 * 9 => per_destination / 10,
            _ => per_destination / 100,
        };
        cap.max(2)
    }

    /// Memory has no room for a head that is due then. What is only read ahead takes half of it at most, so that it
    /// never keeps out what could go now.
    pub(super) fn no_room(&self, due: Timestamp) -> bool {
        let max = self.limits.per_shard;
        self.heads.len() >= if due > self.now { max / 2 } else { max }
    }

    /// Reading goes on: well below the half, so that not each pick begins a read.
    pub(super) fn has_room_again(&self) -> bool {
        self.heads.len() < self.limits.per_shard / 8 * 3
    }

    pub(super) fn is_ready(&self, id: LaneId) -> bool {
        self.get(id).is_some_and(Lane::is_ready)
    }

    pub(super) fn is_full(&self, id: LaneId) -> bool {
        self.get(id).is_some_and(|lane| lane.len() >= self.cap())
    }

    /// A lane that is to be read on from its `resume`.
    pub(super) fn first_hungry(&self) -> Option<LaneId> {
        if self.no_room(self.now) {
            None
        } else {
            self.hungry.first().copied()
        }
    }

    /// Where to read a lane on; whoever takes it says by [`Lanes::read_on`] how far he came.
    pub(super) fn take_resume(&mut self, id: LaneId) -> Option<DueKey> {
        self.hungry.remove(&id);
        self.get_mut(id)?.resume.take()
    }

    /// A lane was read as far as `resume`; `None`: there is nothing more.
    pub(super) fn read_on(&mut self, id: LaneId, resume: Option<DueKey>) {
        match resume {
            Some(resume) => self.remember_behind(id, resume),
            None => self.tidy(id),
        }
    }

    /// There is more of the lane on disk, from `key` on.
    pub(super) fn remember_behind(&mut self, id: LaneId, key: DueKey) {
        if let Some(lane) = self.get_mut(id) {
            lane.remember_behind(key);
        }
        self.tidy(id);
    }

    pub(super) fn insert(&mut self, key: &DueKey) -> Inserted {
        if self.heads.contains_key(&key.item) {
            return Inserted::Kept;
        }
        let full = self.no_room(key.due);
        let id = match self.find(&key.class, &key.destination) {
            Some(id) => id,
            None if full => return Inserted::NoRoom,
            None => self.open(&key.class, &key.destination),
        };
        let head = Head {
            rank: key.rank,
            due: key.due,
            item: key.item,
        };
        if (full || self.is_full(id)) && !self.make_room(id, head) {
            self.remember_behind(id, key.clone());
            return Inserted::Kept;
        }
        self.heads.insert(head.item, (id, head));
        let time = self.now;
        let Some(lane) = self.get_mut(id) else {
            return Inserted::Kept;
        };
        if head.due > time {
            let first = lane.future.first().map(|(due, _)| *due);
            lane.future.insert((head.due, head));
            self.rewake(id, first);
            return Inserted::Kept;
        }
        let was_ready = lane.is_ready();
        lane.ready.insert(head);
        if was_ready {
            Inserted::Kept
        } else {
            Inserted::Ready(id)
        }
    }

    /// Puts the last of a full lane back to disk, if `head` goes before it.
    fn make_room(&mut self, id: LaneId, head: Head) -> bool {
        let Some(lane) = self.get(id) else {
            return false;
        };
        let last = match (lane.future.last(), lane.ready.last()) {
            (Some((due, last)), _) if head.due <= self.now || head.due < *due => *last,
            (None, Some(last)) if head.due <= self.now && head < *last => *last,
            _ => return false,
        };
        let key = last.key(&lane.class, &lane.destination);
        self.detach(last.item);
        if let Some(lane) = self.get_mut(id) {
            lane.remember_behind(key);
        }
        true
    }

    pub(super) fn take(&mut self, id: LaneId) -> Option<Head> {
        let head = self.get_mut(id)?.next()?;
        self.remove(head.item);
        Some(head)
    }

    pub(super) fn remove(&mut self, item: ItemId) {
        if let Some(id) = self.detach(item) {
            self.tidy(id);
        }
    }

    fn detach(&mut self, item: ItemId) -> Option<LaneId> {
        let (id, head) = self.heads.remove(&item)?;
        let lane = self.get_mut(id)?;
        if !lane.ready.remove(&head) {
            let first = lane.future.first().map(|(due, _)| *due);
            lane.future.remove(&(head.due, head));
            self.rewake(id, first);
        }
        Some(id)
    }

    /// What is due becomes ready; the lanes that have something ready now and had not before.
    pub(super) fn ripen(&mut self, now: Timestamp) -> Vec<LaneId> {
        self.now = now;
        while let Some((due, id)) = self.later.first().copied() {
            if due > now {
                break;
            }
            self.later.pop_first();
            self.tidy(id);
        }
        let mut ripe = Vec::new();
        while let Some((due, id)) = self.wakes.first().copied() {
            if due > now {
                break;
            }
            self.wakes.pop_first();
            let Some(lane) = self.get_mut(id) else {
                continue;
            };
            let was_ready = lane.is_ready();
            while lane.future.first().is_some_and(|(due, _)| *due <= now) {
                lane.ready
                    .extend(lane.future.pop_first().map(|(_, head)| head));
            }
            if !was_ready {
                ripe.push(id);
            }
            self.rewake(id, None);
        }
        ripe
    }

    /// `before`: what `wakes` has for the lane.
    fn rewake(&mut self, id: LaneId, before: Option<Timestamp>) {
        let first = self
            .get(id)
            .and_then(|lane| lane.future.first())
            .map(|(due, _)| *due);
        if let Some(before) = before.filter(|before| Some(*before) != first) {
            self.wakes.remove(&(before, id));
        }
        if let Some(first) = first {
            self.wakes.insert((first, id));
        }
    }

    fn open(&mut self, class: &Arc<str>, destination: &Destination) -> LaneId {
        let lane = Lane {
            class: class.clone(),
            destination: destination.clone(),
            ready: BTreeSet::new(),
            future: BTreeSet::new(),
            resume: None,
            takes: 0,
        };
        let id = match self.free.pop() {
            Some(id) => {
                self.slots[id as usize] = Some(lane);
                id
            }
            None => {
                self.slots.push(Some(lane));
                (self.slots.len() - 1) as LaneId
            }
        };
        self.by_destination
            .entry(destination.clone())
            .or_default()
            .push(id);
        id
    }

    /// A lane below half of its cap with more on disk is hungry, and one that has nothing ready while something on disk
    /// may be; an empty one with nothing there goes.
    fn tidy(&mut self, id: LaneId) {
        let Some(lane) = self.get(id) else { return };
        if let Some(resume) = &lane.resume {
            let due = Timestamp(resume.minute.saturating_mul(60_000)).max(resume.due);
            let small = lane.len() < self.cap() / 2;
            let room = due <= self.now || (small && !self.no_room(due));
            if room && (small || !lane.is_ready()) {
                self.hungry.insert(id);
            } else if small || !lane.is_ready() {
                self.later.insert((due, id));
            }
            return;
        }
        if lane.len() > 0 {
            return;
        }
        let destination = lane.destination.clone();
        self.slots[id as usize] = None;
        self.free.push(id);
        self.hungry.remove(&id);
        if let Some(ids) = self.by_destination.get_mut(&destination) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_destination.remove(&destination);
            }
        }
    }
}
