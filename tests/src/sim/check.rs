//! What one entry may do to the rows: held against the rows before it.

use std::sync::Arc;

use mail::Ulid;
use queue::{
    Command, Effect, Facts, Item, ItemId, Rows, SettleItem, SettleOutcome, State, Timestamp, Token,
    Verdict,
};

use crate::sim::model::Model;

/// The rows that an entry is about, before it.
pub struct Before {
    /// Cluster time of the entry, as the rows will have it.
    time: Timestamp,
    items: Vec<(ItemId, Option<Arc<Item>>)>,
    /// A message that does not exist yet.
    creates: Option<Ulid>,
    /// When what is left of a message fails.
    expires: Option<Timestamp>,
}

impl Model {
    /// Looks at the rows before an entry is applied.
    pub(in crate::sim) fn foresee(&mut self, facts: &Facts) -> Result<Before, String> {
        if facts.time.0 > self.latest_clock {
            return Err(format!(
                "an entry has cluster time {}, and no clock is past {}",
                facts.time.0, self.latest_clock
            ));
        }
        let time = self.rows.shard().time.max(facts.time);
        let (mut ids, mut expires, mut creates) = (Vec::new(), None, None);
        match &facts.command {
            Command::Append(append) => {
                let id = append.facts.message;
                creates = Some(id).filter(|id| !self.created.contains(id));
            }
            Command::Window(window) => ids.extend(
                window
                    .grants
                    .iter()
                    .flat_map(|batch| batch.items.iter().map(|item| item.0)),
            ),
            Command::Settle(items) => ids.extend(items.iter().map(|settle| settle.item)),
            Command::ItemTimer(timer) => {
                ids.push(timer.item);
                let message = self.rows.messages().get(&timer.item.message);
                expires = message.map(|message| message.expires);
            }
            _ => {}
        }
        let items = ids
            .into_iter()
            .map(|id| (id, self.rows.items().get(&id)))
            .collect();
        Ok(Before {
            time,
            items,
            creates,
            expires,
        })
    }

    /// Holds what an entry did against the rules.
    pub(in crate::sim) fn hold(
        &mut self,
        index: u64,
        facts: &Facts,
        effects: &[Effect],
        before: &Before,
    ) -> Result<(), String> {
        for effect in effects {
            if let Effect::Granted { item, token, .. } = effect {
                self.hold_grant(index, *item, *token, before)?;
            }
        }
        match &facts.command {
            Command::Settle(items) => items
                .iter()
                .try_for_each(|settle| self.hold_settle(settle, effects, before)),
            Command::ItemTimer(timer) if timer.expire => {
                let ended = effects.contains(&Effect::Finished {
                    message: timer.item.message,
                });
                match before.expires {
                    Some(expires) if ended && before.time < expires => Err(format!(
                        "{:?} expires at {}, before its time {}",
                        timer.item, before.time.0, expires.0
                    )),
                    _ => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// At most one valid grant an item, never before it is due, under a number that is higher than any before.
    fn hold_grant(
        &mut self,
        index: u64,
        item: ItemId,
        token: Token,
        before: &Before,
    ) -> Result<(), String> {
        let row = before.items.iter().find(|(id, _)| *id == item);
        match row.map(|(_, row)| row.as_ref().map(|row| row.state.clone())) {
            // By the express lane: in the entry that creates it.
            None if before.creates == Some(item.message) => {}
            Some(Some(State::Waiting { due })) if due <= before.time => {}
            Some(Some(State::Waiting { due })) => {
                return Err(format!(
                    "{item:?} is granted at {}, before it is due at {}",
                    before.time.0, due.0
                ));
            }
            other => return Err(format!("{item:?} is granted, and was {other:?}")),
        }
        let last = self.tokens.insert(item, token);
        if last.is_some_and(|last| last >= token) || token.0 != index {
            return Err(format!("{item:?} got token {token:?} after {last:?}"));
        }
        Ok(())
    }

    /// A result without a success counts only under the grant that holds, and changes nothing otherwise.
    fn hold_settle(
        &mut self,
        settle: &SettleItem,
        effects: &[Effect],
        before: &Before,
    ) -> Result<(), String> {
        let row = before.items.iter().find(|(id, _)| *id == settle.item);
        let Some(row) = row.and_then(|(_, row)| row.clone()) else {
            return match self.rows.items().get(&settle.item) {
                None => Ok(()),
                Some(_) => Err(format!("{:?} is settled and exists again", settle.item)),
            };
        };
        let holds = matches!(row.state, State::Leased { session, token, .. }
            if (session, token) == (settle.session, settle.token));
        let applied = effects.iter().any(|effect| {
            matches!(effect, Effect::Settled { item, outcome: SettleOutcome::Applied, .. }
                if *item == settle.item)
        });
        let success = settle
            .results
            .iter()
            .any(|result| result.verdict == Verdict::Delivered);
        if holds || success {
            return match applied {
                true => Ok(()),
                false => Err(format!(
                    "{:?} is settled in vain by {:?}",
                    settle.item, settle
                )),
            };
        }
        if applied || self.rows.items().get(&settle.item).as_deref() != Some(&*row) {
            return Err(format!(
                "{:?} is settled by {:?} of {:?}, but the log says {:?}",
                settle.item, settle.token, settle.session, row.state
            ));
        }
        Ok(())
    }
}
