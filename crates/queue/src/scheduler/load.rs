//! Reads `due` into memory: one cursor over what is due soon, and lanes that go on where they had no room.

use mail::{Destination, Ulid};

use super::lane::LaneId;
use super::{Limits, READ_AHEAD_MS, Scheduler};
use crate::apply::after;
use crate::{DueKey, ItemId, LeaseSessionId, Rows, Timestamp};

/// Rows that one call of [`Scheduler::load`] reads, about: a few milliseconds.
pub const LOAD_ROWS_MAX: usize = 4096;

/// Rows of one read.
const PAGE_ROWS: usize = 128;

impl Scheduler {
    /// A new leader's scheduler: it knows the lease sessions and what they hold, and nothing that waits yet.
    /// `rows` are as old as the last effect that it will not see.
    pub fn start(rows: &mut impl Rows, limits: Limits) -> Scheduler {
        let mut scheduler = Scheduler {
            now: rows.shard().time,
            ..Scheduler::default()
        };
        scheduler.lanes.limits = limits;
        let mut from = None;
        loop {
            let page = rows.sessions().range(from.as_ref(), PAGE_ROWS);
            scheduler.consumers.extend(
                page.iter()
                    .map(|(session, _)| (*session, Default::default())),
            );
            match page.last() {
                Some((last, _)) if page.len() == PAGE_ROWS => {
                    from = Some(LeaseSessionId(last.0.saturating_add(1)))
                }
                _ => break,
            }
        }
        let mut from = None;
        loop {
            let page = rows.inflight().range(from.as_ref(), PAGE_ROWS);
            for ((session, item), _) in &page {
                let Some(row) = rows.items().get(item) else {
                    continue;
                };
                scheduler
                    .consumers
                    .entry(*session)
                    .or_default()
                    .add_unsettled(&row.destination, *item, 0);
            }
            match page.last() {
                Some(((session, item), _)) if page.len() == PAGE_ROWS => {
                    from = Some((*session, item.next()))
                }
                _ => return scheduler,
            }
        }
    }

    /// Reads ahead; true: there is more to read at once. To be called at the start, and whenever
    /// [`Scheduler::wants_load`]. `rows` must be as new as the last observed effect, or newer.
    pub fn load(&mut self, rows: &mut impl Rows, now: Timestamp) -> bool {
        self.advance(now);
        if self.full.is_some() && self.may_scan() {
            self.full = None;
        }
        let mut budget = LOAD_ROWS_MAX;
        while budget > 0 {
            let Some(lane) = self.lanes.first_hungry() else {
                break;
            };
            self.load_lane(rows, lane, &mut budget);
        }
        while budget > 0 && self.may_scan() {
            self.scan(rows, &mut budget);
        }
        self.wants_load()
    }

    /// Whether [`Scheduler::load`] has something to do.
    pub fn wants_load(&self) -> bool {
        self.lanes.first_hungry().is_some() || self.may_scan()
    }

    fn may_scan(&self) -> bool {
        let room = match self.full {
            None => true,
            Some(due) => {
                self.lanes.has_room_again() || (due <= self.now && !self.lanes.no_room(due))
            }
        };
        room && self
            .cursor
            .as_ref()
            .is_none_or(|cursor| cursor.minute <= self.horizon())
    }

    /// The last minute that is read.
    fn horizon(&self) -> u64 {
        self.now.plus(READ_AHEAD_MS).0 / 60_000
    }

    /// One page at the cursor.
    fn scan(&mut self, rows: &mut impl Rows, budget: &mut usize) {
        let horizon = self.horizon();
        let end = minute_start(horizon.saturating_add(1));
        let page = rows.due().range(self.cursor.as_ref(), PAGE_ROWS);
        *budget = budget.saturating_sub(page.len() + 1);
        let whole = page.len() == PAGE_ROWS;
        for (key, _) in page {
            if key.minute > horizon {
                self.cursor = Some(end);
                return;
            }
            if let Some(lane) = self
                .lanes
                .find(&key.class, &key.destination)
                .filter(|lane| self.lanes.is_full(*lane))
            {
                // The rest of this minute is passed over in one seek, however much it is.
                let behind = group_end(&key);
                if !self.lanes.holds(&key.item) {
                    self.lanes.remember_behind(lane, key);
                } else {
                    self.lanes.remember_behind(lane, next_key(key));
                }
                self.cursor = Some(behind);
                return;
            }
            self.cursor = Some(next_key(key.clone()));
            if !self.picked.contains_key(&key.item) {
                self.take_in(key);
            }
            if self.full.is_some() {
                return;
            }
        }
        if !whole {
            self.cursor = Some(end);
        }
    }

    fn load_lane(&mut self, rows: &mut impl Rows, id: LaneId, budget: &mut usize) {
        let Some(from) = self.lanes.take_resume(id) else {
            return;
        };
        let resume = self.read_lane(rows, id, from, budget);
        self.lanes.read_on(id, resume);
    }

    /// Reads a lane from `resume` on, minute by minute, seeking over what is not its own; how far it came.
    fn read_lane(
        &mut self,
        rows: &mut impl Rows,
        id: LaneId,
        mut resume: DueKey,
        budget: &mut usize,
    ) -> Option<DueKey> {
        let lane = self.lanes.get(id)?;
        let (class, destination) = (lane.class.clone(), lane.destination.clone());
        let group = |minute| DueKey {
            class: class.clone(),
            destination: destination.clone(),
            ..minute_start(minute)
        };
        while *budget > 0 {
            // Behind the cursor it is the cursor's business.
            if self.cursor.as_ref().is_none_or(|cursor| resume >= *cursor) {
                return None;
            }
            let page = rows.due().range(Some(&resume), PAGE_ROWS);
            *budget = budget.saturating_sub(page.len() + 1);
            if page.is_empty() {
                return None;
            }
            for (key, _) in page {
                if (&key.class, &key.destination) != (&class, &destination) {
                    let here = group(key.minute);
                    resume = if key < here {
                        here
                    } else {
                        minute_start(key.minute.saturating_add(1))
                    };
                    break;
                }
                if self.cursor.as_ref().is_none_or(|cursor| key >= *cursor) {
                    return None;
                }
                let ripe = key.due <= self.now && !self.lanes.is_ready(id);
                if self.lanes.no_room(key.due) || (self.lanes.is_full(id) && !ripe) {
                    return Some(key);
                }
                resume = next_key(key.clone());
                if !self.picked.contains_key(&key.item) {
                    self.take_in(key);
                }
            }
        }
        Some(resume)
    }
}

impl ItemId {
    /// Before all others.
    pub(crate) const FIRST: ItemId = ItemId {
        message: Ulid::nil(),
        number: 0,
    };

    /// The id right after this one; the last one is its own successor.
    pub(crate) fn next(self) -> ItemId {
        match self.number.checked_add(1) {
            Some(number) => ItemId { number, ..self },
            None => ItemId {
                message: after(self.message),
                number: 0,
            },
        }
    }
}

fn next_key(key: DueKey) -> DueKey {
    DueKey {
        item: key.item.next(),
        ..key
    }
}

fn minute_start(minute: u64) -> DueKey {
    DueKey {
        minute,
        class: "".into(),
        destination: Destination::from_canonical(""),
        rank: i8::MIN,
        due: Timestamp(0),
        item: ItemId::FIRST,
    }
}

/// Behind all of a destination's items of this minute and class.
fn group_end(key: &DueKey) -> DueKey {
    let item = ItemId {
        message: Ulid::max(),
        number: u32::MAX,
    };
    DueKey {
        rank: i8::MAX,
        due: Timestamp(u64::MAX),
        item,
        ..key.clone()
    }
}
