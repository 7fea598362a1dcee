//! The run of one seed: virtual time, faults, and the way of every action to where it takes effect.

use bytes::Bytes;
use mail::Ulid;
use queue::Facts;
use spool::node::{Committed, Input, Membership};

use crate::actions::context_of;
use crate::delivery::Delivery;
use crate::edge::Edge;
use crate::model::Model;
use crate::net::{Actor, Net, Packet};
use crate::replica::{Knobs, Replica};
use crate::rng::Rng;

/// Milliseconds of cluster time that a step stands for: a tick of Raft is three steps, so 50 ms.
pub const STEP_MS: u64 = 17;
/// When the runs take place.
pub const EPOCH_MS: u64 = 1_760_000_000_000;

/// Calm steps in which everything must come to its end, even with one entry a message and one message at a time.
const DRAIN_STEPS: u64 = 8000;

/// A planted bug: of the group, or of the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Planted {
    #[cfg(feature = "planted-bugs")]
    pub mutation: Option<spool::node::Mutation>,
    /// The disk loses a write that it reported.
    pub lose_flushed_write: bool,
}

impl Planted {
    pub fn lying_disk() -> Planted {
        let mut planted = Planted::default();
        planted.lose_flushed_write |= true;
        planted
    }
}

/// What a run came to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    pub acked: u64,
    pub committed: u64,
    pub grants: u64,
    pub duplicates: u64,
    /// Of every message and acknowledgement in order.
    pub hash: u64,
}

pub struct World {
    pub now: u64,
    pub rng: Rng,
    pub net: Net,
    pub replicas: Vec<Replica>,
    pub edges: Vec<Edge>,
    pub deliveries: Vec<Delivery>,
    pub model: Model,
    /// Every command by its number: an entry's context is the number.
    pub commands: Vec<Facts>,
    pub proposals: Vec<Vec<spool::node::Proposal>>,
    pub calm: bool,
    pub quiet: bool,
    members: Membership,
    knobs: Knobs,
    planted: Planted,
    hash: u64,
    ids: u64,
    trace: bool,
    /// What a leader's decision found wrong.
    pub failure: Option<String>,
}

impl World {
    pub fn new(seed: u64, planted: Planted, trace: bool) -> World {
        let mut rng = Rng::new(seed);
        let count: u64 = if seed % 4 == 3 { 5 } else { 3 };
        let knobs = Knobs::draw(&mut rng);
        let replicas = (1..=count)
            .map(|peer| Replica::new(peer, &mut rng))
            .collect();
        let deliveries = (0..2).map(|_| Delivery::new(rng.within(990, 1010)));
        World {
            now: 0,
            net: Net::default(),
            replicas,
            edges: (0..2).map(|_| Edge::default()).collect(),
            deliveries: deliveries.collect(),
            model: Model::default(),
            commands: Vec::new(),
            proposals: (0..count).map(|_| Vec::new()).collect(),
            calm: false,
            quiet: false,
            members: Membership {
                voters: (1..=count).collect(),
                ..Membership::default()
            },
            knobs,
            planted,
            hash: seed,
            ids: 0,
            trace,
            failure: None,
            rng,
        }
    }

    /// Chaos, heal, quiesce, settle.
    pub fn run(mut self, chaos: u64) -> Result<Outcome, String> {
        match self.phases(chaos) {
            Ok(()) => Ok(Outcome {
                acked: self.model.acked.len() as u64,
                committed: self.model.committed(),
                grants: self.model.grants,
                duplicates: self.model.duplicates,
                hash: self.hash,
            }),
            Err(error) => Err(format!("step {}: {error}", self.now)),
        }
    }

    fn phases(&mut self, chaos: u64) -> Result<(), String> {
        self.steps(chaos)?;
        self.note(|| "heal".into());
        self.calm = true;
        self.net.calm = true;
        self.net.cut.clear();
        let (committed, acked) = (self.model.committed(), self.model.acked.len());
        self.steps(600)?;
        if self.model.committed() == committed || self.model.acked.len() == acked {
            return Err("nothing is acknowledged after the network healed".into());
        }
        self.note(|| "quiesce".into());
        self.quiet = true;
        self.until(600, "edges still wait", |world| {
            world.edges.iter().all(|edge| edge.outgoing.is_empty())
        })?;
        self.note(|| "settle".into());
        self.until(DRAIN_STEPS, "the queue does not drain", |world| {
            world.model.undelivered() == 0
        })?;
        // Every replica comes to the same end.
        self.until(DRAIN_STEPS, "replicas stay behind", |world| {
            let end = world.model.applied();
            world.replicas.iter().all(|replica| replica.applied == end)
        })?;
        for replica in &self.replicas {
            if replica.rows != self.model.rows {
                return Err(format!("the rows of replica {} differ", replica.peer));
            }
        }
        self.model.account()
    }

    fn until(
        &mut self,
        most: u64,
        what: &str,
        done: impl Fn(&mut World) -> bool,
    ) -> Result<(), String> {
        for _ in 0..most / 20 {
            if done(self) {
                return Ok(());
            }
            self.steps(20)?;
        }
        let standings: Vec<_> = self
            .replicas
            .iter()
            .filter_map(|replica| replica.group.as_ref())
            .map(|group| format!("\n    {:?}", group.status()))
            .collect();
        Err(format!(
            "{what} after {most} calm steps{}",
            standings.concat()
        ))
    }

    fn steps(&mut self, count: u64) -> Result<(), String> {
        for _ in 0..count {
            self.now += 1;
            if !self.calm {
                self.disturb();
            }
            for k in 0..self.replicas.len() {
                self.step_replica(k)?;
            }
            self.edges_act();
            self.deliveries_act()?;
            while let Some(packet) = self.net.receive(self.now) {
                self.deliver(packet)?;
            }
            if let Some(failure) = self.failure.take() {
                return Err(failure);
            }
        }
        Ok(())
    }

    fn disturb(&mut self) {
        let count = self.replicas.len() as u64;
        if self.rng.one_in(150) {
            self.net.shake(&mut self.rng, count as usize);
        }
        if self.rng.one_in(120) {
            let all = self.rng.one_in(8);
            let victim = self.rng.below(count) as usize;
            for k in 0..count as usize {
                if all || k == victim {
                    let until = self.now + 1 + self.rng.below(60);
                    self.replicas[k].crash(until);
                    self.proposals[k].clear();
                    self.note(|| format!("replica {} crashes until {until}", k + 1));
                }
            }
        }
        if self.rng.one_in(200) {
            let k = self.rng.below(count) as usize;
            self.replicas[k].slow_until = self.now + 20 + self.rng.below(120);
        }
        if self.rng.one_in(400) {
            let (k, to) = (self.rng.below(count) as usize, 1 + self.rng.below(count));
            if let Some(group) = self.replicas[k].group.as_mut() {
                group.handle(Input::TransferLeader { to: Some(to) });
            }
        }
    }

    fn step_replica(&mut self, k: usize) -> Result<(), String> {
        let replica = &mut self.replicas[k];
        if replica.group.is_none() {
            if self.now < replica.down_until {
                return Ok(());
            }
            replica.start(&self.members, &self.knobs, &mut self.rng)?;
            #[cfg(feature = "planted-bugs")]
            if let Some(group) = replica.group.as_mut() {
                group.plant(self.planted.mutation);
            }
        }
        if self.replicas[k].next_tick <= self.now {
            self.replicas[k].next_tick = self.now + self.rng.within(2, 4);
            self.input(k, Input::Tick)?;
        }
        self.flush(k)?;
        self.read(k)?;
        self.apply(k)?;
        self.keep_state(k)?;
        self.lead(k);
        self.flush_proposals(k);
        self.pump(k)
    }

    fn flush(&mut self, k: usize) -> Result<(), String> {
        let slow = !self.calm && self.now < self.replicas[k].slow_until;
        if self.replicas[k].disk.queue.is_empty() || !self.rng.one_in(if slow { 30 } else { 3 }) {
            return Ok(());
        }
        for _ in 0..self.rng.within(1, 4) {
            let lie = self.planted.lose_flushed_write && self.rng.one_in(50);
            if let Some((number, locations)) = self.replicas[k].disk.flush_one(lie) {
                self.input(k, Input::Persisted { number, locations })?;
            }
        }
        Ok(())
    }

    /// Reads for lagging followers.
    fn read(&mut self, k: usize) -> Result<(), String> {
        if !self.rng.one_in(3) {
            return Ok(());
        }
        let Some((id, wanted)) = self.replicas[k].fetching.pop_front() else {
            return Ok(());
        };
        let fails = !self.calm && self.rng.one_in(10);
        let disk = &self.replicas[k].disk;
        let mut entries = Vec::new();
        for read in wanted.iter().take(if fails { 0 } else { usize::MAX }) {
            let stored = disk.read(read.index, read.location);
            entries.extend(
                stored.map(|stored| (read.index, stored.context.clone(), stored.data.clone())),
            );
        }
        self.input(k, Input::Fetched { id, entries })
    }

    fn apply(&mut self, k: usize) -> Result<(), String> {
        if self.replicas[k].to_apply.is_empty() || !self.rng.one_in(self.knobs.apply_pause) {
            return Ok(());
        }
        for _ in 0..self.rng.within(1, 24) {
            let Some(entry) = self.replicas[k].to_apply.pop_front() else {
                break;
            };
            self.apply_one(k, &entry)?;
        }
        let index = self.replicas[k].applied;
        self.input(k, Input::Applied { index })
    }

    fn apply_one(&mut self, k: usize, entry: &Committed) -> Result<(), String> {
        let replica = &mut self.replicas[k];
        if entry.index != replica.applied + 1 {
            return Err(format!(
                "replica {} applies {} after {}",
                k + 1,
                entry.index,
                replica.applied
            ));
        }
        replica.applied = entry.index;
        let context = context_of(replica, entry)?;
        let facts = command_of(&self.commands, &context);
        let effects = facts
            .map(|facts| queue::apply(&mut replica.rows, entry.index, facts))
            .unwrap_or_default();
        self.model.apply(entry.index, facts, &effects)?;
        if let Some(pending) = self.replicas[k].by_index.remove(&entry.index) {
            self.answer(k, pending, &effects);
        }
        self.hand_over(k, &effects);
        Ok(())
    }

    /// The state store writes itself down now and then, and tells the log what it needs no more.
    fn keep_state(&mut self, k: usize) -> Result<(), String> {
        if !self.rng.one_in(self.knobs.flush_state_pause) {
            return Ok(());
        }
        let replica = &mut self.replicas[k];
        replica.flushed = (replica.rows.clone(), replica.applied);
        if replica.applied == self.model.applied() && replica.rows != self.model.rows {
            return Err(format!(
                "the rows of replica {} differ at {}",
                k + 1,
                replica.applied
            ));
        }
        let upto = replica.applied;
        self.input(
            k,
            Input::Truncate {
                upto,
                over_budget: false,
            },
        )
    }

    pub fn input(&mut self, k: usize, input: Input) -> Result<(), String> {
        let Some(group) = self.replicas[k].group.as_mut() else {
            return Ok(());
        };
        group.handle(input);
        // Sometimes several inputs share a turn.
        if self.rng.one_in(4) {
            Ok(())
        } else {
            self.pump(k)
        }
    }

    fn deliver(&mut self, packet: Packet) -> Result<(), String> {
        match packet {
            Packet::Raft(message) => {
                let words = [
                    message.from << 40 | message.to << 32 | (message.msg_type as u64) << 24,
                    message.term << 32 | message.index,
                ];
                words.into_iter().for_each(|word| self.fold(word));
                let k = message.to as usize - 1;
                self.input(k, Input::Step(message))
            }
            Packet::Ask { from, to, ask } => {
                self.note(|| format!("{from:?} asks {}: {ask:?}", to + 1));
                self.ask(from, to, ask);
                Ok(())
            }
            Packet::Tell { to, tell } => {
                self.note(|| format!("{to:?} hears {tell:?}"));
                match to {
                    Actor::Edge(e) => self.edge_hears(e, tell),
                    Actor::Delivery(d) => self.delivery_hears(d, tell),
                }
                Ok(())
            }
        }
    }

    /// Takes a group's actions to where they go, until there are none.
    pub fn pump(&mut self, k: usize) -> Result<(), String> {
        loop {
            let Some(group) = self.replicas[k].group.as_mut() else {
                return Ok(());
            };
            let actions = group.drain();
            if actions.is_empty() {
                return Ok(());
            }
            for action in actions {
                self.act(k, action)?;
            }
        }
    }

    pub fn new_id(&mut self) -> Ulid {
        self.ids += 1;
        Ulid::from_parts(
            EPOCH_MS + self.now * STEP_MS,
            u128::from(self.ids) << 32 | u128::from(self.rng.below(1 << 32)),
        )
    }

    pub fn fold(&mut self, word: u64) {
        self.hash = (self.hash.rotate_left(5) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    pub fn note(&self, text: impl FnOnce() -> String) {
        if self.trace {
            println!("{:6} {}", self.now, text());
        }
    }
}

/// `None`: the empty entry of a new leader.
fn command_of<'a>(commands: &'a [Facts], context: &Bytes) -> Option<&'a Facts> {
    let number = <[u8; 8]>::try_from(&context[..]).ok()?;
    commands.get(u64::from_be_bytes(number) as usize)
}
