//! Settle: results of an attempt, and the rule of fencing.

use std::sync::Arc;

use crate::apply::Shard;
use crate::planted::{Mutation, opinion, planted};
use crate::{
    Effect, Ending, Item, ItemId, Mark, Message, Recipient, RecipientId, RecipientResult,
    SettleItem, SettleOutcome, State, Verdict,
};

/// When an item is due again that was settled without a word about it, ms: a leader always gives one.
const RETRY_UNSAID_MS: u64 = 5 * 60 * 1000;

/// What the results of one settle changed.
#[derive(Default)]
struct Merged {
    delivered: u32,
    failed: u32,
    /// The last text of a result that is no success.
    reason: Option<Arc<str>>,
}

impl Shard<'_> {
    pub(crate) fn settle(&mut self, items: &[SettleItem]) {
        for settle in items {
            let outcome = self.settle_item(settle);
            self.emit(Effect::Settled {
                item: settle.item,
                token: settle.token,
                outcome,
            });
        }
    }

    fn settle_item(&mut self, settle: &SettleItem) -> SettleOutcome {
        let Some((before, message)) = self.live(settle.item) else {
            return SettleOutcome::AlreadyTerminal;
        };
        match before.state {
            State::Leased { session, token, .. }
                if (session == settle.session && token == settle.token)
                    || planted(Mutation::StaleCounts) =>
            {
                self.settle_current(settle, &before, &message);
                SettleOutcome::Applied
            }
            _ => self.settle_stale(settle, &before, &message),
        }
    }

    /// Results of the present grant: all count.
    fn settle_current(&mut self, settle: &SettleItem, before: &Item, message: &Message) {
        let id = settle.item;
        let mut item = before.clone();
        let merged = self.merge(id, &mut item, &settle.results, |_| true);
        if settle.results.iter().any(|result| result.ambiguous) {
            self.emit(Effect::PossibleDuplicate {
                item: id,
                why: "ambiguous",
            });
        }
        if let Some(reason) = &merged.reason {
            item.reason = reason.clone();
        }
        if !settle.results.is_empty() {
            count_attempt(&mut item, &settle.results);
        }
        let dropped = item.mark == Some(Mark::Drop);
        let gives_up = settle.give_up && !settle.release && !dropped;
        // Only what turned to failed now is reported on: a settle that is sent again changes nothing and tells nothing.
        let failed_now = merged.failed > 0 || (gives_up && item.recipients_left > 0);
        if item.recipients_left == 0 || gives_up {
            let ending = if failed_now {
                Ending::Failed
            } else {
                Ending::Delivered
            };
            self.end_item(id, before, message, ending);
        } else {
            if failed_now {
                self.note_failure(id, message);
            }
            match (settle.release, settle.retry) {
                (true, Some(retry)) => self.lose_attempt(id, before, item, message, retry),
                (true, None) => self.wait_or_mark(id, before, item, message, self.now),
                (false, Some(retry)) => {
                    self.wait_or_mark(id, before, item, message, retry.plus(opinion()))
                }
                (false, None) => {
                    self.wait_or_mark(id, before, item, message, self.now.plus(RETRY_UNSAID_MS))
                }
            }
        }
        if failed_now && !dropped {
            self.append_reports(&settle.reports, message);
        }
    }

    /// Results of a grant that is over. A success is a fact, and to refuse it would deliver twice; a failure or
    /// deferral must not disturb the attempt that runs now.
    fn settle_stale(
        &mut self,
        settle: &SettleItem,
        before: &Item,
        message: &Message,
    ) -> SettleOutcome {
        let id = settle.item;
        let success = settle
            .results
            .iter()
            .any(|result| result.verdict == Verdict::Delivered);
        if !success || planted(Mutation::LateSuccessRefused) {
            return SettleOutcome::Fenced;
        }
        let mut item = before.clone();
        let merged = self.merge(id, &mut item, &settle.results, |verdict| {
            verdict == Verdict::Delivered
        });
        if merged.delivered == 0 {
            return SettleOutcome::AlreadyTerminal;
        }
        self.emit(Effect::PossibleDuplicate {
            item: id,
            why: "stale success",
        });
        if let State::Leased { session, .. } = before.state {
            self.emit(Effect::Revoke { item: id, session });
        }
        match item.recipients_left {
            0 => self.end_item(id, before, message, Ending::Delivered),
            _ => self.rows.items().put(id, item),
        }
        SettleOutcome::Applied
    }

    /// Writes results to the recipients that are not terminal yet. What is terminal stays as it is.
    fn merge(
        &mut self,
        id: ItemId,
        item: &mut Item,
        results: &[RecipientResult],
        counts: impl Fn(Verdict) -> bool,
    ) -> Merged {
        let mut merged = Merged::default();
        for result in results.iter().filter(|result| counts(result.verdict)) {
            // The rows of a single recipient that is terminal now are about to go.
            let last = item.recipients == 1 && result.verdict != Verdict::Deferred;
            if result.recipient >= item.recipients || item.recipients_left == 0 {
                continue;
            }
            if !last
                && !self.write_result(
                    RecipientId {
                        item: id,
                        number: result.recipient,
                    },
                    result,
                )
            {
                continue;
            }
            match result.verdict {
                Verdict::Delivered => merged.delivered += 1,
                Verdict::Failed => merged.failed += 1,
                Verdict::Deferred => {}
            }
            if result.verdict != Verdict::Deferred {
                item.recipients_left -= 1;
            }
            if result.verdict != Verdict::Delivered {
                merged.reason = Some(result.text.clone());
            }
        }
        merged
    }

    /// False where the recipient is terminal.
    fn write_result(&mut self, id: RecipientId, result: &RecipientResult) -> bool {
        let Some(row) = self.rows.recipients().get(&id) else {
            return false;
        };
        if row
            .result
            .as_ref()
            .is_some_and(|result| result.verdict != Verdict::Deferred)
        {
            return false;
        }
        let row = Recipient {
            address: row.address.clone(),
            result: Some(result.clone()),
        };
        self.rows.recipients().put(id, row);
        true
    }

    /// A recipient failed: so did the message, even if the last of its recipients is delivered.
    pub(crate) fn note_failure(&mut self, id: ItemId, message: &Message) {
        if message.ending < Ending::Failed {
            let Some(row) = self.rows.messages().get(&id.message) else {
                return;
            };
            self.rows.messages().put(
                id.message,
                Message {
                    ending: Ending::Failed,
                    ..(*row).clone()
                },
            );
        }
    }
}

/// RFC 5321 4.5.4.1: hosts that cannot be reached are retried on a schedule of their own (see [`crate::retry`]).
fn count_attempt(item: &mut Item, results: &[RecipientResult]) {
    item.lost = 0;
    if results.iter().all(|result| result.never_reached) {
        item.unreached = item.unreached.saturating_add(1);
    } else {
        item.attempts = item.attempts.saturating_add(1);
        item.unreached = 0;
    }
}
