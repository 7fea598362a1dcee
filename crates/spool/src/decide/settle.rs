//! Settle: what an attempt's replies mean. Delivery nodes only send replies; here is decided when the rest is due
//! again, or that it failed, and the report is written into the same entry.

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use proto::v1::SettleOutcome;
use queue::{Command, Effect, Message, RecipientId, RecipientResult, SettleItem, State, Verdict};
use rand::RngExt;

use super::report::Reason;
use super::{BodyCache, Leader, Out, Pending, ShardRows, Waiter};
use crate::event::{SettleCall, SettleReply};

/// Items that one entry settles at most.
const ITEMS_PER_ENTRY_MAX: usize = 256;

/// Octets of reports in one entry: with them the entry stays below the 1 MiB that one Raft message carries.
const REPORT_BYTES_MAX: usize = 512 * 1024;

impl Leader {
    /// Decides on the results of one attempt.
    pub fn settle(
        &mut self,
        call: SettleCall,
        rows: &mut impl ShardRows,
        bodies: &BodyCache,
        now: Instant,
        out: &mut Out,
    ) {
        if !self.ready {
            return call.reply.send(SettleOutcome::Busy, String::new());
        }
        let SettleCall {
            mut item, reply, ..
        } = call;
        let Some(row) = rows.items().get(&item.item) else {
            return reply.send(SettleOutcome::AlreadyTerminal, String::new());
        };
        let success = item.results.iter().any(|r| r.verdict == Verdict::Delivered);
        if !super::lease::is_granted(&row.state, item.token) && !success {
            return reply.send(SettleOutcome::Fenced, String::new());
        }
        if item.release {
            return self.gather_settle(item, Bytes::new(), reply, now);
        }
        let Some(message) = rows.messages().get(&item.item.message) else {
            return reply.send(SettleOutcome::AlreadyTerminal, String::new());
        };
        self.decide_rest(&mut item, &row, &message, now);
        let wanted =
            !message.is_report && !message.return_path.is_empty() && self.fails(&item, &row.state);
        if !wanted {
            return self.gather_settle(item, Bytes::new(), reply, now);
        }
        let pending = Pending::Settle(Box::new(item), reply);
        self.with_header(pending, &message, rows, bodies, now, out);
    }

    /// When the recipients that are left are due again, or that they are given up.
    fn decide_rest(
        &mut self,
        item: &mut SettleItem,
        row: &queue::Item,
        message: &Message,
        now: Instant,
    ) {
        let deferred = item.results.iter().any(|r| r.verdict == Verdict::Deferred);
        let named = item
            .results
            .iter()
            .filter(|r| r.verdict != Verdict::Deferred)
            .count() as u32;
        // Recipients that the attempt said nothing of are open as before.
        let silent = row.recipients_left > named && !deferred;
        if !(deferred || silent) {
            return;
        }
        let reached = item.results.iter().any(|r| !r.never_reached);
        let history = queue::retry::History {
            attempts: row.attempts + u32::from(reached),
            unreached: if reached { 0 } else { row.unreached + 1 },
            ambiguous: item.results.iter().any(|r| r.ambiguous),
        };
        let time = self.time(now);
        let jitter = self.rng.random_range(-1.0..=1.0);
        match queue::retry::next(&self.policy.retry, history, time, message.expires, jitter) {
            queue::retry::Next::Retry(at) => item.retry = Some(at),
            queue::retry::Next::GiveUp => item.give_up = true,
        }
    }

    /// Whether this settle will turn a recipient to failed.
    fn fails(&self, item: &SettleItem, state: &State) -> bool {
        let current = super::lease::is_granted(state, item.token);
        current && (item.give_up || item.results.iter().any(|r| r.verdict == Verdict::Failed))
    }

    /// The header block is there: the report is composed, and the settle goes on.
    pub(super) fn settle_with_header(
        &mut self,
        mut item: SettleItem,
        reply: SettleReply,
        header: &Bytes,
        rows: &mut impl ShardRows,
        now: Instant,
    ) {
        let (Some(row), Some(message)) = (
            rows.items().get(&item.item),
            rows.messages().get(&item.item.message),
        ) else {
            return reply.send(SettleOutcome::AlreadyTerminal, String::new());
        };
        let failed = failures(&item, &row, rows);
        let report = self.compose(item.item, &message, &failed, Reason::Failed, header, now);
        let mut data = Bytes::new();
        if let Some((report, body)) = report {
            item.reports = vec![report];
            data = body;
        }
        self.gather_settle(item, data, reply, now);
    }

    fn gather_settle(&mut self, item: SettleItem, report: Bytes, reply: SettleReply, now: Instant) {
        self.settles.push((item, reply));
        self.settle_data.push(report);
        self.gather(now);
    }

    /// The settles of this window become entries.
    pub(super) fn run_settles(&mut self, now: Instant, out: &mut Out) {
        let due = self
            .window_since
            .is_some_and(|since| now >= since + super::WINDOW);
        if self.settles.is_empty() || (!due && self.settles.len() < ITEMS_PER_ENTRY_MAX) {
            return;
        }
        let mut items = Vec::new();
        let mut replies = Vec::new();
        let mut data = BytesMut::new();
        let gathered = std::mem::take(&mut self.settles)
            .into_iter()
            .zip(std::mem::take(&mut self.settle_data));
        for ((mut item, reply), report) in gathered {
            for r in &mut item.reports {
                r.offset += data.len() as u64;
            }
            data.extend_from_slice(&report);
            items.push(item);
            replies.push(reply);
            if items.len() == ITEMS_PER_ENTRY_MAX || data.len() >= REPORT_BYTES_MAX {
                self.propose_settles(&mut items, &mut replies, &mut data, now, out);
            }
        }
        self.propose_settles(&mut items, &mut replies, &mut data, now, out);
    }

    fn propose_settles(
        &mut self,
        items: &mut Vec<SettleItem>,
        replies: &mut Vec<SettleReply>,
        data: &mut BytesMut,
        now: Instant,
        out: &mut Out,
    ) {
        if items.is_empty() {
            return;
        }
        let command = Command::Settle(std::mem::take(items));
        let waiter = Waiter::Settle(std::mem::take(replies));
        self.propose(
            command,
            std::mem::take(data).freeze(),
            true,
            waiter,
            now,
            out,
        );
    }
}

/// The recipients that this settle fails: those that a reply refused, and when it is given up those still open too.
fn failures(
    item: &SettleItem,
    row: &queue::Item,
    rows: &mut impl ShardRows,
) -> Vec<(String, Option<RecipientResult>)> {
    let from = RecipientId {
        item: item.item,
        number: 0,
    };
    let recipients = rows
        .recipients()
        .range(Some(&from), row.recipients as usize);
    let mut failed = Vec::new();
    for (id, recipient) in recipients {
        if id.item != item.item {
            break;
        }
        let before = recipient.result.as_ref().map(|r| r.verdict);
        if matches!(before, Some(Verdict::Delivered | Verdict::Failed)) {
            continue;
        }
        let result = item.results.iter().find(|r| r.recipient == id.number);
        match result.map(|r| r.verdict) {
            Some(Verdict::Failed) => failed.push((recipient.address.to_string(), result.cloned())),
            Some(Verdict::Delivered) => {}
            _ if item.give_up => {
                let last = result.cloned().or_else(|| recipient.result.clone());
                failed.push((recipient.address.to_string(), last));
            }
            _ => {}
        }
    }
    failed
}

/// The answers of an applied Settle entry, in the order of its items.
pub(super) fn answer(replies: Vec<SettleReply>, effects: &[Effect]) {
    let outcomes = effects.iter().filter_map(|e| match e {
        Effect::Settled { outcome, .. } => Some(match outcome {
            queue::SettleOutcome::Applied => SettleOutcome::Applied,
            queue::SettleOutcome::AlreadyTerminal => SettleOutcome::AlreadyTerminal,
            queue::SettleOutcome::Fenced => SettleOutcome::Fenced,
        }),
        _ => None,
    });
    let mut outcomes = outcomes.chain(std::iter::repeat(SettleOutcome::Unknown));
    for reply in replies {
        reply.send(
            outcomes.next().unwrap_or(SettleOutcome::Unknown),
            String::new(),
        );
    }
}
