//! What must be true, held against everything that happens.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mail::Ulid;
use queue::{
    Command, Effect, Facts, Item, ItemId, LeaseSessionId, MemoryRows, Rows, SettleOutcome, State,
    Token, Verdict,
};

/// The log that was chosen, its rows, and the world outside.
#[derive(Default)]
pub struct Model {
    /// (term, command) by index - 1.
    chosen: Vec<(u64, Bytes)>,
    /// Of each applied entry.
    effects: Vec<Vec<Effect>>,
    pub rows: MemoryRows,
    leaders: BTreeMap<u64, u64>,
    /// Where a message's first Append stands.
    appended: BTreeMap<Ulid, u64>,
    pub acked: BTreeSet<Ulid>,
    reported: BTreeSet<Ulid>,
    /// Remote servers' 250s.
    accepted: BTreeMap<ItemId, Vec<(LeaseSessionId, Token)>>,
    tokens: BTreeMap<ItemId, Token>,
    /// Second deliveries, all within the windows that SMTP and crashes open.
    pub duplicates: u64,
    pub grants: u64,
}

impl Model {
    pub fn committed(&self) -> u64 {
        self.chosen.len() as u64
    }

    pub fn applied(&self) -> u64 {
        self.effects.len() as u64
    }

    pub fn leader(&mut self, term: u64, peer: u64) -> Result<(), String> {
        match self.leaders.insert(term, peer) {
            Some(other) if other != peer => {
                Err(format!("two leaders in term {term}: {other} and {peer}"))
            }
            _ => Ok(()),
        }
    }

    /// State machine safety: every replica is handed the same entries.
    pub fn hand_out(&mut self, index: u64, term: u64, context: &Bytes) -> Result<(), String> {
        if index == self.committed() + 1 {
            self.chosen.push((term, context.clone()));
            return Ok(());
        }
        match self.chosen.get(index as usize - 1) {
            Some(chosen) if *chosen == (term, context.clone()) => Ok(()),
            Some(chosen) => Err(format!(
                "entry {index} is {chosen:?} on one replica and {:?} on another",
                (term, context)
            )),
            None => Err(format!(
                "entry {index} is handed out before {}",
                self.committed() + 1
            )),
        }
    }

    /// Holds the effects of one replica's apply against those of the first that applied it.
    pub fn apply(
        &mut self,
        index: u64,
        facts: Option<&Facts>,
        effects: &[Effect],
    ) -> Result<(), String> {
        if index <= self.applied() {
            return match self.effects[index as usize - 1] == effects {
                true => Ok(()),
                false => Err(format!(
                    "entry {index} has effects {effects:?} on one replica and {:?} on another",
                    self.effects[index as usize - 1]
                )),
            };
        }
        if let Some(facts) = facts {
            let ours = queue::apply(&mut self.rows, index, facts);
            if ours != effects {
                return Err(format!(
                    "entry {index} has effects {effects:?}, and in the model {ours:?}"
                ));
            }
            self.follow(index, facts, effects)?;
        }
        self.effects.push(effects.to_vec());
        Ok(())
    }

    fn follow(&mut self, index: u64, facts: &Facts, effects: &[Effect]) -> Result<(), String> {
        if let Command::Append(append) = &facts.command {
            self.appended.entry(append.facts.message).or_insert(index);
        }
        if let Command::Settle(items) = &facts.command {
            for settle in items {
                let failed = settle
                    .results
                    .iter()
                    .any(|result| result.verdict == Verdict::Failed);
                let done = effects.iter().any(|effect| {
                    matches!(effect, Effect::Settled { item, outcome: SettleOutcome::Applied, .. }
                        if *item == settle.item)
                });
                if failed && done {
                    self.follow_report(settle.item, &settle.reports, effects)?;
                }
            }
        }
        for effect in effects {
            match effect {
                Effect::Granted { item, token, .. } => {
                    self.grants += 1;
                    let before = self.tokens.insert(*item, *token);
                    if before.is_some_and(|before| before >= *token) {
                        return Err(format!("{item:?} got token {token:?} after {before:?}"));
                    }
                }
                Effect::Finished { message } => {
                    let item = ItemId {
                        message: *message,
                        number: 0,
                    };
                    if !self.accepted.contains_key(&item) && !self.reported.contains(message) {
                        return Err(format!(
                            "{message} is finished, neither delivered nor reported"
                        ));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn follow_report(
        &mut self,
        item: ItemId,
        reports: &[queue::Report],
        effects: &[Effect],
    ) -> Result<(), String> {
        let written = |id: &Ulid| {
            effects
                .iter()
                .any(|effect| matches!(effect, Effect::Created { message } if message == id))
        };
        if !reports.iter().all(|report| written(&report.facts.message)) {
            return Err(format!("{item:?} failed without its report"));
        }
        self.reported.insert(item.message);
        Ok(())
    }

    /// Where a message's Append stands; `None`: nowhere yet.
    pub fn appended(&self, id: Ulid) -> Option<u64> {
        self.appended.get(&id).copied()
    }

    fn item(&mut self, id: ItemId) -> Option<std::sync::Arc<Item>> {
        self.rows.items().get(&id)
    }

    /// A delivery node is about to send the final dot: its grant must be the one that holds.
    pub fn final_dot(
        &mut self,
        item: ItemId,
        session: LeaseSessionId,
        token: Token,
    ) -> Result<(), String> {
        let held = self.item(item).is_some_and(|row| {
            matches!(row.state, State::Leased { session: s, token: t, .. } if s == session && t == token)
        });
        match held {
            true => Ok(()),
            false => Err(format!(
                "{item:?} is sent under {session:?} with {token:?}, but the log says {:?}",
                self.item(item).map(|row| row.state.clone())
            )),
        }
    }

    /// A remote server took it.
    pub fn accepted(
        &mut self,
        item: ItemId,
        session: LeaseSessionId,
        token: Token,
    ) -> Result<(), String> {
        let before = self.accepted.entry(item).or_default().clone();
        for (other, of) in &before {
            self.duplicates += 1;
            // A crash or a lost lease session between the 250 and its settle excuses a second delivery; else the
            // first grant would still hold.
            if self.rows.sessions().get(other).is_some() && *of != token && *other != session {
                return Err(format!(
                    "{item:?} is delivered under {session:?} while {other:?} lives"
                ));
            }
        }
        self.accepted
            .entry(item)
            .or_default()
            .push((session, token));
        Ok(())
    }

    /// Every acknowledged message ended in exactly one way, or is queued.
    pub fn account(&mut self) -> Result<(), String> {
        for id in self.acked.clone() {
            let item = ItemId {
                message: id,
                number: 0,
            };
            let ended = self.accepted.contains_key(&item) || self.reported.contains(&id);
            let queued = self.rows.messages().get(&id).is_some();
            if !ended && !queued {
                return Err(format!("acknowledged message {id} is lost"));
            }
        }
        Ok(())
    }

    /// Items that still wait or are leased; Held ones wait for a person.
    pub fn undelivered(&mut self) -> usize {
        self.rows.due().range(None, usize::MAX).len()
            + self.rows.inflight().range(None, usize::MAX).len()
    }
}
