//! What a person asks of a shard and does to its items.

use bytes::Bytes;
use proto::v1;
use queue::{Admin, AdminAction, AdminOutcome, Command, Effect};
use tokio::sync::oneshot;

use super::waiter::Waiter;
use super::{Leader, ShardRows, Turn};

/// Items of one Act request: an entry's context stays far below 256 KiB.
pub const ACT_ITEMS_MAX: usize = 1_000;

impl Leader {
    /// A person's decision becomes an entry.
    pub fn act(
        &mut self,
        request: &v1::ActRequest,
        reply: oneshot::Sender<v1::ActResponse>,
        turn: &mut Turn<'_, impl ShardRows>,
    ) {
        let action = match request.action() {
            v1::AdminAction::Hold => AdminAction::Hold,
            v1::AdminAction::Release => AdminAction::Release,
            v1::AdminAction::Retry => AdminAction::Retry,
            v1::AdminAction::Drop => AdminAction::Drop,
            v1::AdminAction::Unspecified => {
                let _ = reply.send(v1::ActResponse::default());
                return;
            }
        };
        let items = request
            .items
            .iter()
            .take(ACT_ITEMS_MAX)
            .filter_map(super::lease::item_id)
            .collect();
        let command = Command::Admin(Admin {
            action,
            items,
            actor: request.actor.as_str().into(),
            reason: request.reason.as_str().into(),
        });
        self.propose(command, Bytes::new(), Waiter::Admin(reply), turn);
    }
}

/// The answer to an applied Admin entry.
pub(super) fn outcome(effects: &[Effect]) -> v1::ActResponse {
    let mut response = v1::ActResponse::default();
    for effect in effects {
        let Effect::Administered { done, .. } = effect else {
            continue;
        };
        match done {
            AdminOutcome::Done => response.done += 1,
            AdminOutcome::Marked => response.marked += 1,
            AdminOutcome::Missing => response.missing += 1,
        }
    }
    response
}
