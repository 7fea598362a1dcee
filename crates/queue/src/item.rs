//! An item's row, its one index row, its recipients and the counts move together, here and nowhere else.

use std::sync::Arc;

use mail::Ulid;

use crate::apply::Shard;
use crate::{
    DestinationCounts, DueKey, Effect, Ending, InFlight, Item, ItemId, Mark, Message, RecipientId,
    State, TimerKey, Timestamp,
};

/// Grants in a row that may end without a word before a person must look: such a message probably kills the node that
/// works on it.
pub const LOST_ATTEMPTS_MAX: u32 = 5;

impl Shard<'_> {
    /// An item and its message, while both live.
    pub(crate) fn live(&mut self, id: ItemId) -> Option<(Arc<Item>, Arc<Message>)> {
        let item = self.rows.items().get(&id)?;
        let message = self.rows.messages().get(&id.message)?;
        Some((item, message))
    }

    /// Moves an item from `before` (`None`: it is new) to `after` (`None`: it ends). Says that it left Waiting or its
    /// lease and that it waits; who grants says [`Effect::Granted`] himself.
    pub(crate) fn place(
        &mut self,
        id: ItemId,
        before: Option<&Item>,
        after: Option<Item>,
        message: &Message,
    ) {
        let to_lease = matches!(
            &after,
            Some(Item {
                state: State::Leased { .. },
                ..
            })
        );
        if let Some(item) = before {
            self.leave(id, item, message, to_lease);
        }
        self.count(before, after.as_ref());
        let Some(item) = after else {
            self.rows.items().delete(&id);
            return;
        };
        match &item.state {
            State::Waiting { due } => {
                let due = *due;
                self.rows.due().put(due_key(id, &item, message, due), ());
                self.rows.timers().put(
                    TimerKey {
                        at: item.timer,
                        item: id,
                    },
                    (),
                );
                self.announce(id, &item, message, due);
            }
            State::Leased {
                session,
                token,
                deadline,
            } => {
                self.rows.inflight().put(
                    (*session, id),
                    InFlight {
                        token: *token,
                        deadline: *deadline,
                    },
                );
            }
            State::Held { .. } => self.rows.held().put(id, ()),
        }
        self.rows.items().put(id, item);
    }

    /// Says that an item waits.
    pub(crate) fn announce(&mut self, id: ItemId, item: &Item, message: &Message, due: Timestamp) {
        self.emit(Effect::Waiting {
            item: id,
            destination: item.destination.clone(),
            class: message.class.clone(),
            priority: message.priority,
            due,
        });
    }

    fn leave(&mut self, id: ItemId, item: &Item, message: &Message, to_lease: bool) {
        let destination = item.destination.clone();
        match &item.state {
            State::Waiting { due } => {
                self.rows.due().delete(&due_key(id, item, message, *due));
                self.rows.timers().delete(&TimerKey {
                    at: item.timer,
                    item: id,
                });
                if !to_lease {
                    self.emit(Effect::LeftWaiting {
                        item: id,
                        destination,
                    });
                }
            }
            State::Leased { session, .. } => {
                self.rows.inflight().delete(&(*session, id));
                self.emit(Effect::Ungranted {
                    item: id,
                    session: *session,
                    destination,
                });
            }
            State::Held { .. } => self.rows.held().delete(&id),
        }
    }

    fn count(&mut self, before: Option<&Item>, after: Option<&Item>) {
        let kind = |item: &Item| std::mem::discriminant(&item.state);
        let Some(item) = after.or(before) else { return };
        if before.map(kind) == after.map(kind) {
            return;
        }
        let destination = item.destination.clone();
        let mut counts = self
            .rows
            .destinations()
            .get(&destination)
            .map_or_else(Default::default, |row| *row);
        if let Some(item) = before {
            let (count, total) = self.counters(&mut counts, &item.state);
            (*count, *total) = (count.saturating_sub(1), total.saturating_sub(1));
        }
        if let Some(item) = after {
            let (count, total) = self.counters(&mut counts, &item.state);
            (*count, *total) = (count.saturating_add(1), total.saturating_add(1));
        }
        if counts == DestinationCounts::default() {
            self.rows.destinations().delete(&destination);
        } else {
            self.rows.destinations().put(destination, counts);
        }
    }

    fn counters<'c>(
        &'c mut self,
        counts: &'c mut DestinationCounts,
        state: &State,
    ) -> (&'c mut u64, &'c mut u64) {
        match state {
            State::Waiting { .. } => (&mut counts.waiting, &mut self.state.waiting),
            State::Leased { .. } => (&mut counts.leased, &mut self.state.leased),
            State::Held { .. } => (&mut counts.held, &mut self.state.held),
        }
    }

    /// An item ends; with the last one its message does.
    pub(crate) fn end_item(&mut self, id: ItemId, item: &Item, message: &Message, ending: Ending) {
        self.place(id, Some(item), None, message);
        for number in 0..item.recipients {
            self.rows
                .recipients()
                .delete(&RecipientId { item: id, number });
        }
        // The row may be younger than `message`: another item of it can have ended in this entry.
        let Some(row) = self.rows.messages().get(&id.message) else {
            return;
        };
        let ending = row.ending.max(ending);
        if row.items_left <= 1 {
            return self.finish(id.message, &row, ending);
        }
        let mut row = (*row).clone();
        (row.items_left, row.ending) = (row.items_left - 1, ending);
        self.rows.messages().put(id.message, row);
    }

    /// The last item of a message ended.
    pub(crate) fn finish(&mut self, id: Ulid, message: &Message, ending: Ending) {
        self.rows.messages().delete(&id);
        self.state.messages = self.state.messages.saturating_sub(1);
        self.state.bytes = self.state.bytes.saturating_sub(message.size);
        for extent in &message.body {
            self.emit(Effect::BodyDropped(*extent));
        }
        self.remember(id, message, ending);
        self.emit(Effect::Finished { message: id });
    }

    /// A lease or a hold ends and something of the item is left: a mark acts now, else it waits until `due`.
    pub(crate) fn wait_or_mark(
        &mut self,
        id: ItemId,
        before: &Item,
        mut item: Item,
        message: &Message,
        due: Timestamp,
    ) {
        match item.mark.take() {
            Some(Mark::Drop) => self.end_item(id, before, message, Ending::Dropped),
            Some(Mark::Hold { reason }) => self.hold(id, before, item, message, reason),
            None => {
                // Nothing is due before now, and nothing waits past its expiry, where it would only be expired.
                let due = due.min(message.expires).max(self.now);
                item.state = State::Waiting { due };
                self.place(id, Some(before), Some(item), message);
            }
        }
    }

    pub(crate) fn hold(
        &mut self,
        id: ItemId,
        before: &Item,
        mut item: Item,
        message: &Message,
        reason: Arc<str>,
    ) {
        item.state = State::Held { reason };
        self.place(id, Some(before), Some(item), message);
    }

    /// A grant ended without a word: the node may have delivered it or not.
    pub(crate) fn lose_attempt(
        &mut self,
        id: ItemId,
        before: &Item,
        mut item: Item,
        message: &Message,
        retry: Timestamp,
    ) {
        self.emit(Effect::PossibleDuplicate {
            item: id,
            why: "lost attempt",
        });
        item.lost = item.lost.saturating_add(1);
        if item.mark.is_none() && item.lost >= LOST_ATTEMPTS_MAX {
            return self.hold(id, before, item, message, "lost attempts".into());
        }
        let due = if item.lost == 1 { self.now } else { retry };
        self.wait_or_mark(id, before, item, message, due);
    }
}

/// The key of a Waiting item in `due`.
fn due_key(id: ItemId, item: &Item, message: &Message, due: Timestamp) -> DueKey {
    DueKey::new(id, &message.class, &item.destination, message.priority, due)
}
