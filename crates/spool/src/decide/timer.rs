//! Notices and expiries of items that no delivery node holds. A Leased item expires at its next settle; a Held one
//! does not expire.

use bytes::Bytes;
use queue::{Command, ItemId, ItemTimer, RecipientId, State, Verdict};

use super::report::Reason;
use super::waiter::Waiter;
use super::{Leader, Pending, ShardRows, Turn};

/// Timers that one scan looks at: those that are worked on, and the next.
const TIMERS_SCANNED: usize = 2 * TIMERS_AT_ONCE;

/// Timers that are worked on at once: each may need a header block and an entry.
const TIMERS_AT_ONCE: usize = 64;

/// So few of them left, and the next are begun: a million notices that are due at once take as long as their entries do,
/// not 64 a second.
const TIMERS_REFILL: usize = TIMERS_AT_ONCE / 2;

impl Leader {
    pub(super) fn run_timers(&mut self, turn: &mut Turn<'_, impl ShardRows>) {
        let time = self.time(turn.now);
        self.timers_left = false;
        for (key, _) in turn.rows.timers().range(None, TIMERS_SCANNED) {
            if key.at > time {
                break;
            }
            if self.timers_busy.len() >= TIMERS_AT_ONCE {
                self.timers_left = true;
                break;
            }
            if self.timers_busy.contains(&key.item) {
                continue;
            }
            let Some(row) = turn.rows.items().get(&key.item) else {
                continue;
            };
            let Some(message) = turn.rows.messages().get(&key.item.message) else {
                continue;
            };
            if !matches!(row.state, State::Waiting { .. }) {
                continue;
            }
            let expire = time >= message.expires;
            self.timers_busy.insert(key.item);
            if message.is_report || message.return_path.is_empty() {
                self.propose_timer(key.item, expire, Vec::new(), Bytes::new(), turn);
            } else {
                self.with_header(Pending::Timer(key.item, expire), &message, turn);
            }
        }
    }

    /// Whether more are due than are worked on, and it is time for them.
    pub(super) fn wants_timers(&self) -> bool {
        self.timers_left && self.timers_busy.len() <= TIMERS_REFILL
    }

    /// The header block is there.
    pub(super) fn timer_with_header(
        &mut self,
        item: ItemId,
        expire: bool,
        header: &Bytes,
        turn: &mut Turn<'_, impl ShardRows>,
    ) {
        let (rows, now) = (&mut *turn.rows, turn.now);
        let (Some(row), Some(message)) =
            (rows.items().get(&item), rows.messages().get(&item.message))
        else {
            self.timers_busy.remove(&item);
            return;
        };
        let from = RecipientId { item, number: 0 };
        let recipients = rows
            .recipients()
            .range(Some(&from), row.recipients as usize);
        let terminal = |v: Option<Verdict>| matches!(v, Some(Verdict::Delivered | Verdict::Failed));
        let open = recipients
            .into_iter()
            .filter(|(id, r)| id.item == item && !terminal(r.result.as_ref().map(|r| r.verdict)));
        let open: Vec<_> = open
            .map(|(_, r)| (r.address.to_string(), r.result.clone()))
            .collect();
        let reason = if expire {
            Reason::Expired
        } else {
            Reason::Delayed
        };
        match self.compose(item, &message, &open, reason, header, now) {
            Some((report, data)) => self.propose_timer(item, expire, vec![report], data, turn),
            None => self.propose_timer(item, expire, Vec::new(), Bytes::new(), turn),
        }
    }

    fn propose_timer<R>(
        &mut self,
        item: ItemId,
        expire: bool,
        reports: Vec<queue::Report>,
        data: Bytes,
        turn: &mut Turn<'_, R>,
    ) {
        let command = Command::ItemTimer(ItemTimer {
            item,
            expire,
            reports,
        });
        self.propose(command, data, Waiter::Timer(item), turn);
    }
}
