//! Delivery nodes: a lease session, grants, the final dot, a reply, a settle; crashes and power cuts at any point.

use std::collections::{BTreeMap, BTreeSet};

use queue::{ItemId, LeaseSessionId, Token, Verdict};

use crate::sim::duplicates::Window;
use crate::sim::net::{Actor, Ask, Packet, Tell};
use crate::sim::world::World;

/// Steps after the *sending* of the last answered keepalive at which a node sends no more final dots.
pub const FENCE_STEPS: u64 = 200;
const KEEPALIVE_STEPS: u64 = 40;
const PATIENCE: u64 = 60;
const SLOTS: usize = 4;
/// What a node that lies says it has room for.
const LIE: usize = 40;
/// Old settles that a node may send again.
const OLD_SETTLES: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// On the way to the final dot.
    Sending { dot_at: u64 },
    /// The final dot is sent; the reply comes.
    PastDot { reply_at: u64 },
    /// The reply is in the journal; the settle is not answered.
    Settling { verdict: Verdict, again_at: u64 },
}

#[derive(Clone, Copy)]
pub struct Held {
    pub session: LeaseSessionId,
    pub stage: Stage,
}

#[derive(Default)]
pub struct Delivery {
    incarnation: u64,
    boot: u64,
    session: Option<LeaseSessionId>,
    /// Own clock when the last answered keepalive was sent.
    answered: u64,
    next_keepalive: u64,
    open_again_at: u64,
    /// When the last OpenSession was sent. An answer to an earlier one is void: the later one, wherever it is, will end
    /// that lease session, and nothing would tell the node in time.
    asked: u64,
    pub held: BTreeMap<(ItemId, Token), Held>,
    /// Answered settles: a grant that is sent again late must not be worked on again.
    settled: BTreeSet<(ItemId, Token)>,
    /// To be handed back with the next lease session.
    handing_back: BTreeSet<ItemId>,
    /// Settles of before: (item, token, session, verdict).
    old: Vec<(ItemId, Token, LeaseSessionId, Verdict)>,
    guess: usize,
    pub down_until: u64,
    pub paused_until: u64,
    /// It settles nothing until then.
    mute_until: u64,
    /// 1/1000 step.
    clock_rate: u64,
    /// Time that passed in leaps, steps.
    pub leapt: u64,
}

impl Delivery {
    pub fn new(clock_rate: u64) -> Delivery {
        Delivery {
            clock_rate,
            ..Delivery::default()
        }
    }

    fn clock(&self, now: u64) -> u64 {
        (now + self.leapt) * self.clock_rate / 1000
    }

    /// Nothing goes wrong any more.
    pub fn calm_down(&mut self, now: u64) {
        self.mute_until = 0;
        self.paused_until = self.paused_until.min(now);
        self.old.clear();
    }
}

impl World {
    pub fn deliveries_act(&mut self) -> Result<(), String> {
        for d in 0..self.deliveries.len() {
            if !self.calm {
                self.delivery_suffers(d)?;
            }
            let node = &self.deliveries[d];
            if node.down_until.max(node.paused_until) > self.now {
                continue;
            }
            self.fence(d);
            self.keep_alive(d);
            self.work(d)?;
        }
        Ok(())
    }

    fn delivery_suffers(&mut self, d: usize) -> Result<(), String> {
        let now = self.now;
        if self.rng.chance(self.faults.delivery_death) {
            self.delivery_dies(d)?;
        }
        if self.rng.chance(self.faults.delivery_pause) {
            self.deliveries[d].paused_until = now + self.rng.within(20, 900);
            self.note(|| format!("delivery node {d} stands still"));
        }
        if self.rng.chance(self.faults.mute) {
            self.deliveries[d].mute_until = now + self.rng.within(50, 900);
        }
        if self.rng.chance(self.faults.stale_settle) && !self.deliveries[d].old.is_empty() {
            let of = self.deliveries[d].old.len() as u64;
            let (item, token, session, verdict) =
                self.deliveries[d].old[self.rng.below(of) as usize];
            self.ask_leader(
                d,
                Ask::Settle {
                    item,
                    token,
                    session,
                    verdict,
                },
            );
        }
        Ok(())
    }

    /// A process dies: its journal holds the replies and the final dots, and a same kernel proves that it is dead. After
    /// a power cut, neither. A final dot without a reply may have been taken.
    fn delivery_dies(&mut self, d: usize) -> Result<(), String> {
        let power = self.rng.one_in(4);
        let until = self.now + 5 + self.rng.below(200);
        self.trace.fold_all(&[d as u64, until, power.into()]);
        self.note(|| {
            let what = if power { "loses power" } else { "dies" };
            format!("delivery node {d} {what} until {until}")
        });
        let held = std::mem::take(&mut self.deliveries[d].held);
        for (&(item, token), held) in &held {
            match held.stage {
                Stage::PastDot { .. } if self.rng.one_in(2) => {
                    let (session, excuse) = (held.session, Some(Window::DiedPastDot));
                    let deliveries = &mut self.model.deliveries;
                    deliveries.accepted(item, session, token, excuse)?;
                }
                Stage::Settling { .. } if power => self.model.deliveries.journal_lost(item, token),
                _ => {}
            }
        }
        let node = &mut self.deliveries[d];
        node.incarnation += 1;
        node.session = None;
        node.open_again_at = 0;
        (node.down_until, node.paused_until) = (until, 0);
        if power {
            node.boot += 1;
        } else {
            let kept = held.into_iter();
            node.held = kept
                .filter(|(_, held)| matches!(held.stage, Stage::Settling { .. }))
                .collect();
        }
        node.settled.clear();
        node.handing_back.clear();
        Ok(())
    }

    /// A lease session that was not answered for in time is dead for good.
    fn fence(&mut self, d: usize) {
        let node = &mut self.deliveries[d];
        let late = node.clock(self.now).saturating_sub(node.answered) > FENCE_STEPS;
        if node.session.is_some() && late && !self.planted.no_fence {
            node.session = None;
            node.open_again_at = 0;
        }
    }

    fn keep_alive(&mut self, d: usize) {
        let now = self.now;
        if self.rng.one_in(50) {
            self.deliveries[d].guess = self.rng.below(self.replicas.len() as u64) as usize;
        }
        let node = &mut self.deliveries[d];
        let Some(session) = node.session else {
            if node.open_again_at <= now {
                self.open(d);
            }
            return;
        };
        if node.next_keepalive <= now {
            node.next_keepalive = now + KEEPALIVE_STEPS;
            let holding: Vec<_> = node.held.keys().copied().collect();
            let lies = !self.calm && self.rng.chance(self.faults.lying_credit);
            let room = if lies { LIE } else { SLOTS };
            let node = &mut self.deliveries[d];
            let credit = room.saturating_sub(holding.len());
            let sent = node.clock(now);
            self.ask_leader(
                d,
                Ask::Keepalive {
                    session,
                    sent,
                    holding,
                    credit,
                },
            );
        }
    }

    fn open(&mut self, d: usize) {
        let node = &mut self.deliveries[d];
        node.open_again_at = self.now + PATIENCE;
        node.asked = node.clock(self.now);
        // What was not past the final dot is handed back before the question, so that it is not sent meanwhile.
        let staged = |wanted: fn(Stage) -> bool| {
            let held = node.held.iter().filter(|(_, held)| wanted(held.stage));
            held.map(|((item, _), _)| *item).collect::<Vec<_>>()
        };
        let past_dot = staged(|stage| !matches!(stage, Stage::Sending { .. }));
        let handed_back = staged(|stage| matches!(stage, Stage::Sending { .. }));
        node.handing_back.extend(handed_back);
        let handed_back = node.handing_back.iter().copied().collect();
        node.held
            .retain(|_, held| !matches!(held.stage, Stage::Sending { .. }));
        let (incarnation, boot, sent) = (node.incarnation, node.boot, node.clock(self.now));
        self.ask_leader(
            d,
            Ask::Open {
                incarnation,
                boot,
                sent,
                past_dot,
                handed_back,
            },
        );
    }

    fn ask_leader(&mut self, d: usize, ask: Ask) {
        let to = self.deliveries[d].guess;
        self.net.send(
            self.now,
            &mut self.rng,
            Packet::Ask {
                from: Actor::Delivery(d),
                to,
                ask,
            },
        );
    }

    fn work(&mut self, d: usize) -> Result<(), String> {
        let now = self.now;
        let mute = self.deliveries[d].mute_until > now;
        let held: Vec<_> = self.deliveries[d]
            .held
            .iter()
            .map(|(key, held)| (*key, *held))
            .collect();
        for ((item, token), mut held) in held {
            let live = self.deliveries[d].session == Some(held.session);
            match held.stage {
                Stage::Sending { dot_at } if dot_at <= now && live => {
                    self.model.final_dot(item, held.session, token)?;
                    held.stage = Stage::PastDot {
                        reply_at: now + 1 + self.rng.below(20),
                    };
                }
                Stage::PastDot { reply_at } if reply_at <= now => {
                    let defers = !self.calm && self.rng.chance(self.faults.defer);
                    let verdict = match self.rng.below(if self.calm { 1 } else { 10 }) {
                        _ if defers => Verdict::Deferred,
                        8 => Verdict::Deferred,
                        9 => Verdict::Failed,
                        _ => Verdict::Delivered,
                    };
                    if verdict == Verdict::Delivered {
                        let deliveries = &mut self.model.deliveries;
                        deliveries.accepted(item, held.session, token, None)?;
                    }
                    held.stage = Stage::Settling {
                        verdict,
                        again_at: now,
                    };
                }
                Stage::Settling { verdict, again_at } if again_at <= now && !mute => {
                    self.settle(d, item, token, held.session, verdict);
                    held.stage = Stage::Settling {
                        verdict,
                        again_at: now + PATIENCE,
                    };
                }
                _ => continue,
            }
            self.deliveries[d].held.insert((item, token), held);
        }
        Ok(())
    }

    fn settle(
        &mut self,
        d: usize,
        item: ItemId,
        token: Token,
        session: LeaseSessionId,
        verdict: Verdict,
    ) {
        let old = &mut self.deliveries[d].old;
        if old.len() >= OLD_SETTLES {
            old.remove(0);
        }
        old.push((item, token, session, verdict));
        let twice = !self.calm && self.rng.chance(self.faults.settle_twice);
        for _ in 0..if twice { 2 } else { 1 } {
            self.ask_leader(
                d,
                Ask::Settle {
                    item,
                    token,
                    session,
                    verdict,
                },
            );
        }
    }

    pub fn delivery_hears(&mut self, d: usize, tell: Tell) {
        let now = self.now;
        let someone = self.rng.below(self.replicas.len() as u64) as usize;
        let dot_at = now + 2 + self.rng.below(30);
        let node = &mut self.deliveries[d];
        if node.down_until > now {
            return;
        }
        match tell {
            Tell::NotLeader { leader } => {
                node.guess = leader.unwrap_or(someone);
                node.next_keepalive = node.next_keepalive.min(now + 4);
            }
            Tell::Opened {
                incarnation,
                sent,
                session,
                kept,
            } => {
                let last = sent == node.asked || self.planted.any_open;
                if incarnation != node.incarnation || !last || node.session.is_some() {
                    return;
                }
                node.session = Some(session);
                node.answered = sent;
                node.handing_back.clear();
                node.next_keepalive = now;
                for kept in kept {
                    let before = node.held.iter().find(|((item, _), _)| *item == kept.item);
                    if let Some((&key, &held)) = before {
                        node.held.remove(&key);
                        node.held
                            .insert((kept.item, kept.token), Held { session, ..held });
                    }
                }
            }
            Tell::Kept { session, sent } if node.session == Some(session) => {
                node.answered = node.answered.max(sent);
            }
            Tell::Gone { session } if node.session == Some(session) => {
                node.session = None;
                node.open_again_at = now;
            }
            Tell::Grant {
                session,
                item,
                token,
            } if node.session == Some(session) => {
                let done = node.settled.contains(&(item, token));
                if !done && !node.held.keys().any(|(held, _)| *held == item) {
                    let stage = Stage::Sending { dot_at };
                    node.held.insert((item, token), Held { session, stage });
                }
            }
            Tell::Revoke { session, item } => {
                node.held.retain(|(of, _), held| {
                    *of != item
                        || held.session != session
                        || !matches!(held.stage, Stage::Sending { .. })
                });
            }
            Tell::Settled { item, token } => {
                node.held.remove(&(item, token));
                if !self.planted.forgets_grants {
                    node.settled.insert((item, token));
                }
            }
            _ => {}
        }
    }
}
