//! The delay notice and the expiry of items that wait.

use crate::apply::Shard;
use crate::planted::{Mutation, planted};
use crate::{Ending, Item, ItemTimer, State, TimerKey};

impl Shard<'_> {
    /// A Leased item expires at its next settle, a Held one not at all; the leader may not have known yet.
    pub(crate) fn item_timer(&mut self, timer: &ItemTimer) {
        let id = timer.item;
        let Some((before, message)) = self.live(id) else {
            return;
        };
        let State::Waiting { .. } = before.state else {
            return;
        };
        if timer.expire {
            if self.now >= message.expires || planted(Mutation::ExpireEarly) {
                self.end_item(id, &before, &message, Ending::Failed);
                self.append_reports(&timer.reports, &message);
            }
            return;
        }
        if before.notice_sent || self.now < before.timer {
            return;
        }
        let item = Item {
            notice_sent: true,
            timer: message.expires,
            ..(*before).clone()
        };
        self.rows.timers().delete(&TimerKey {
            at: before.timer,
            item: id,
        });
        self.rows.timers().put(
            TimerKey {
                at: item.timer,
                item: id,
            },
            (),
        );
        self.rows.items().put(id, item);
        self.append_reports(&timer.reports, &message);
    }
}
