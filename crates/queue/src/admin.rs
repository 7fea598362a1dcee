//! What a person decides: hold, release, retry, drop.

use std::sync::Arc;

use crate::apply::Shard;
use crate::{Admin, AdminAction, AdminOutcome, Effect, Ending, Item, ItemId, Mark, Message, State};

impl Shard<'_> {
    pub(crate) fn administer(&mut self, admin: &Admin) {
        for id in &admin.items {
            let done = match self.live(*id) {
                Some((item, message)) => self.administer_item(*id, &item, &message, admin),
                None => AdminOutcome::Missing,
            };
            self.emit(Effect::Administered { item: *id, done });
        }
    }

    fn administer_item(
        &mut self,
        id: ItemId,
        before: &Item,
        message: &Message,
        admin: &Admin,
    ) -> AdminOutcome {
        let item = before.clone();
        match (admin.action, &before.state) {
            (AdminAction::Hold, State::Waiting { .. }) => {
                self.hold(id, before, item, message, reason(admin))
            }
            (AdminAction::Hold, State::Leased { .. }) if before.mark != Some(Mark::Drop) => {
                return self.mark(
                    id,
                    item,
                    Some(Mark::Hold {
                        reason: reason(admin),
                    }),
                );
            }
            (AdminAction::Release, State::Held { .. }) => {
                self.wait_or_mark(id, before, Item { lost: 0, ..item }, message, self.now);
            }
            (AdminAction::Release, State::Leased { .. })
                if matches!(before.mark, Some(Mark::Hold { .. })) =>
            {
                self.mark(id, item, None);
            }
            (AdminAction::Retry, State::Waiting { due }) if *due > self.now => {
                self.wait_or_mark(id, before, item, message, self.now);
            }
            (AdminAction::Drop, State::Waiting { .. } | State::Held { .. }) => {
                self.end_item(id, before, message, Ending::Dropped);
            }
            (AdminAction::Drop, State::Leased { .. }) => {
                return self.mark(id, item, Some(Mark::Drop));
            }
            _ => return AdminOutcome::Missing,
        }
        AdminOutcome::Done
    }

    fn mark(&mut self, id: ItemId, item: Item, mark: Option<Mark>) -> AdminOutcome {
        self.rows.items().put(id, Item { mark, ..item });
        AdminOutcome::Marked
    }
}

fn reason(admin: &Admin) -> Arc<str> {
    if admin.reason.is_empty() {
        format!("held by {}", admin.actor).into()
    } else {
        admin.reason.clone()
    }
}
