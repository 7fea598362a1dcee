//! Settle: what an attempt's replies mean. Delivery nodes only send replies; here is decided when the rest is due
//! again, or that it failed, and the report is written into the same entry.

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use proto::v1::SettleOutcome;
use queue::{Command, Effect, Message, RecipientId, RecipientResult, SettleItem, State, Verdict};
use rand::RngExt;

use super::report::Reason;
use super::waiter::Waiter;
use super::{Leader, Pending, ShardRows, Turn};
use crate::event::{SettleCall, SettleReply};

/// Items that one entry settles at most.
const ITEMS_PER_ENTRY_MAX: usize = 256;

/// Octets of results in one entry, about: a settle has at most 100 of a kilobyte, so the entry's context stays below
/// the 256 KiB that it may have.
const RESULT_BYTES_MAX: usize = 64 * 1024;

/// Octets of reports in one entry: with them the entry stays below the 1 MiB that one Raft message carries.
const REPORT_BYTES_MAX: usize = 512 * 1024;

impl Leader {
    /// Decides on the results of one attempt.
    pub fn settle(&mut self, call: SettleCall, turn: &mut Turn<'_, impl ShardRows>) {
        if !self.ready {
            return call.reply.send(SettleOutcome::Busy, String::new());
        }
        let SettleCall {
            mut item, reply, ..
        } = call;
        let Some(row) = turn.rows.items().get(&item.item) else {
            return reply.send(SettleOutcome::AlreadyTerminal, String::new());
        };
        let success = item.results.iter().any(|r| r.verdict == Verdict::Delivered);
        if !super::lease::is_granted(&row.state, item.token) && !success {
            return reply.send(SettleOutcome::Fenced, String::new());
        }
        if item.release {
            return self.gather_settle(item, Bytes::new(), reply, turn.now);
        }
        let Some(message) = turn.rows.messages().get(&item.item.message) else {
            return reply.send(SettleOutcome::AlreadyTerminal, String::new());
        };
        self.decide_rest(&mut item, &row, &message, turn.now);
        let wanted =
            !message.is_report && !message.return_path.is_empty() && self.fails(&item, &row.state);
        if !wanted {
            return self.gather_settle(item, Bytes::new(), reply, turn.now);
        }
        let pending = Pending::Settle(Box::new(item), reply);
        self.with_header(pending, &message, turn);
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
        turn: &mut Turn<'_, impl ShardRows>,
    ) {
        let (rows, now) = (&mut *turn.rows, turn.now);
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
    pub(super) fn run_settles<R>(&mut self, turn: &mut Turn<'_, R>) {
        let due = self
            .window_since
            .is_some_and(|since| turn.now >= since + super::WINDOW);
        if self.settles.is_empty() || (!due && self.settles.len() < ITEMS_PER_ENTRY_MAX) {
            return;
        }
        let mut batch = Batch::default();
        let gathered = std::mem::take(&mut self.settles)
            .into_iter()
            .zip(std::mem::take(&mut self.settle_data));
        for ((item, reply), report) in gathered {
            batch.push(item, reply, &report);
            if batch.is_full() {
                self.propose_settles(std::mem::take(&mut batch), turn);
            }
        }
        if !batch.items.is_empty() {
            self.propose_settles(batch, turn);
        }
    }

    fn propose_settles<R>(&mut self, batch: Batch, turn: &mut Turn<'_, R>) {
        let command = Command::Settle(batch.items);
        let waiter = Waiter::Settle(batch.replies);
        self.propose(command, batch.data.freeze(), waiter, turn);
    }
}

/// The settles of one entry.
#[derive(Default)]
struct Batch {
    items: Vec<SettleItem>,
    replies: Vec<SettleReply>,
    /// Reports, one after another.
    data: BytesMut,
    /// Octets of the results, about.
    results: usize,
}

impl Batch {
    fn push(&mut self, mut item: SettleItem, reply: SettleReply, report: &Bytes) {
        for r in &mut item.reports {
            r.offset += self.data.len() as u64;
        }
        self.data.extend_from_slice(report);
        self.results += item.results.iter().map(result_bytes).sum::<usize>();
        self.items.push(item);
        self.replies.push(reply);
    }

    fn is_full(&self) -> bool {
        self.items.len() >= ITEMS_PER_ENTRY_MAX
            || self.data.len() >= REPORT_BYTES_MAX
            || self.results >= RESULT_BYTES_MAX
    }
}

/// Octets of a result in an entry, about.
fn result_bytes(result: &RecipientResult) -> usize {
    64 + result.text.len() + result.enhanced.len() + result.remote_host.len()
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
