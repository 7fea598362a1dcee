//! What must be true, held against everything that happens.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mail::Ulid;
use queue::{
    Command, Effect, Facts, Item, ItemId, LeaseSessionId, MemoryRows, Rows, SettleOutcome, State,
    Token, Verdict,
};

use spool::node::Membership;

use crate::sim::duplicates::Deliveries;
use crate::sim::members::Configurations;

/// The log that was chosen, its rows, and the world outside.
#[derive(Default)]
pub struct Model {
    /// (term, command) by index - 1.
    chosen: Vec<(u64, Bytes)>,
    /// Of each applied entry.
    effects: Vec<Vec<Effect>>,
    pub rows: MemoryRows,
    leaders: BTreeMap<u64, u64>,
    /// (peer, term) to whom it gave its vote.
    votes: BTreeMap<(u64, u64), u64>,
    pub acked: BTreeSet<Ulid>,
    /// Messages that began to exist: each once.
    pub(in crate::sim) created: BTreeSet<Ulid>,
    reported: BTreeSet<Ulid>,
    /// Reports, which may end without a word.
    reports: BTreeSet<Ulid>,
    /// Remote servers' 250s.
    pub deliveries: Deliveries,
    pub(in crate::sim) tokens: BTreeMap<ItemId, Token>,
    /// The highest that a wall clock of a replica, and what its monotonic one may add, ever was, ms.
    pub latest_clock: u64,
    pub grants: u64,
    pub expired: u64,
    /// The members, as entries changed them.
    configurations: Configurations,
    /// Of rows, by the entry that wanted it.
    pub digests: BTreeMap<u64, mail::Digest>,
}

impl Model {
    /// Who the members are with an entry, on one replica; true: nobody was handed it before.
    pub fn members(&mut self, index: u64, members: &Membership) -> Result<bool, String> {
        self.configurations.add(index, members)
    }

    /// Everybody with a vote.
    pub fn latest_voters(&self) -> BTreeSet<u64> {
        self.configurations.latest_voters()
    }

    /// Of a chosen entry.
    pub fn term_of(&self, index: u64) -> u64 {
        let chosen = self.chosen.get(index as usize - 1);
        chosen.map_or(0, |chosen| chosen.0)
    }

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

    /// Vote once a term, across crashes: `peer` said that `candidate` has its vote.
    pub fn vote(&mut self, peer: u64, term: u64, candidate: u64) -> Result<(), String> {
        match self.votes.insert((peer, term), candidate) {
            Some(other) if other != candidate => Err(format!(
                "peer {peer} votes for {other} and for {candidate} in term {term}"
            )),
            _ => Ok(()),
        }
    }

    /// Leader completeness: whoever leads in the term of the last chosen entry or later has them all.
    pub fn complete(&self, peer: u64, term: u64, last: u64) -> Result<(), String> {
        let chosen = self.chosen.last().map_or(0, |chosen| chosen.0);
        match term < chosen || last >= self.committed() {
            true => Ok(()),
            false => Err(format!(
                "peer {peer} leads in term {term} with entries to {last}, and {} are committed",
                self.committed()
            )),
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
            let before = self.foresee(facts)?;
            let ours = queue::apply(&mut self.rows, index, facts);
            if ours != effects {
                return Err(format!(
                    "entry {index} has effects {effects:?}, and in the model {ours:?}"
                ));
            }
            self.hold(index, facts, effects, &before)?;
            self.follow(facts, effects)?;
        }
        self.effects.push(effects.to_vec());
        Ok(())
    }

    fn follow(&mut self, facts: &Facts, effects: &[Effect]) -> Result<(), String> {
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
        if let Command::ItemTimer(timer) = &facts.command
            && effects.contains(&Effect::Finished {
                message: timer.item.message,
            })
        {
            self.expired += 1;
            self.follow_report(timer.item, &timer.reports, effects)?;
        }
        for effect in effects {
            match effect {
                Effect::Granted { .. } => self.grants += 1,
                Effect::Created { message } if !self.created.insert(*message) => {
                    return Err(format!("{message} is created a second time"));
                }
                Effect::Finished { message } => {
                    let item = ItemId {
                        message: *message,
                        number: 0,
                    };
                    let silent = self.reports.contains(message);
                    if !self.deliveries.has(item) && !self.reported.contains(message) && !silent {
                        return Err(format!(
                            "{message} is finished, neither delivered nor reported"
                        ));
                    }
                }
                Effect::SessionOpened { session, kept, .. } => {
                    for kept in kept {
                        let old = self.tokens.insert(kept.item, kept.token);
                        match old {
                            Some(old) if old < kept.token => {
                                self.deliveries.kept(kept.item, old, *session, kept.token);
                            }
                            _ => return Err(format!("{:?} is kept after {old:?}", kept.item)),
                        }
                    }
                }
                Effect::SessionEnded { session, .. } => {
                    let expired = matches!(facts.command, Command::ExpireSession { .. });
                    self.deliveries.session_ended(*session, expired);
                }
                Effect::Revoke { item, session } => self.deliveries.revoked(*item, *session),
                Effect::Settled { item, token, .. } => self.deliveries.settled(*item, *token),
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
        if reports.is_empty() && !self.reports.contains(&item.message) {
            return Err(format!("{item:?} failed, and nobody wrote a report"));
        }
        let ids = reports.iter().map(|report| report.facts.message);
        self.reports.extend(ids);
        self.reported.insert(item.message);
        Ok(())
    }

    /// Whether a message began to exist.
    pub fn exists(&self, id: Ulid) -> bool {
        self.created.contains(&id)
    }

    fn item(&mut self, id: ItemId) -> Option<std::sync::Arc<Item>> {
        self.rows.items().get(&id)
    }

    /// A delivery node is about to send the final dot: its grant must be the one that holds, or a late success of
    /// another node ended it and the word is on its way.
    pub fn final_dot(
        &mut self,
        item: ItemId,
        session: LeaseSessionId,
        token: Token,
    ) -> Result<(), String> {
        let held = self.item(item).is_some_and(|row| {
            matches!(row.state, State::Leased { session: s, token: t, .. } if s == session && t == token)
        });
        match held || self.deliveries.was_revoked(item, session) {
            true => Ok(()),
            false => Err(format!(
                "{item:?} is sent under {session:?} with {token:?}, but the log says {:?}",
                self.item(item).map(|row| row.state.clone())
            )),
        }
    }

    /// Every acknowledged message ended in exactly one way, or is queued.
    pub fn account(&mut self) -> Result<(), String> {
        for id in self.acked.clone() {
            let item = ItemId {
                message: id,
                number: 0,
            };
            let ended = self.deliveries.has(item) || self.reported.contains(&id);
            let queued = self.rows.messages().get(&id).is_some();
            if !ended && !queued {
                return Err(format!("acknowledged message {id} is lost"));
            }
        }
        Ok(())
    }

    /// What must not outlast its time: remembered ids, uploads, counts of destinations, lease sessions of the dead.
    pub fn left_behind(&mut self, sessions: usize) -> Option<String> {
        let state = self.rows.shard();
        let counts = [
            (
                "remembered ids",
                self.rows.finished().range(None, 9).len(),
                0,
            ),
            ("forget rows", self.rows.forgets().range(None, 9).len(), 0),
            ("uploads", self.rows.uploads().range(None, 9).len(), 0),
            ("octets of uploads", state.upload_bytes as usize, 0),
            ("timers", self.rows.timers().range(None, 9).len(), 0),
            ("waiting", state.waiting as usize, 0),
            ("leased", state.leased as usize, 0),
            (
                "sessions",
                self.rows.sessions().range(None, 9).len(),
                sessions,
            ),
        ];
        let over = counts.iter().find(|(_, count, most)| count > most)?;
        Some(format!("{}: {}", over.0, over.1))
    }

    /// Items that still wait or are leased; Held ones wait for a person.
    pub fn undelivered(&mut self) -> usize {
        self.rows.due().range(None, usize::MAX).len()
            + self.rows.inflight().range(None, usize::MAX).len()
    }
}
