//! The run of one seed: its phases, and what must be true at the end of each.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use mail::Ulid;
use queue::{Facts, Rows};
use spool::node::Membership;

use crate::sim::churn::{self, Churn};
use crate::sim::delivery::Delivery;
use crate::sim::edge::Edge;
use crate::sim::model::Model;
use crate::sim::net::Net;
use crate::sim::planted::Planted;
use crate::sim::profile::{Faults, Profile};
use crate::sim::replica::{Knobs, Replica};
use crate::sim::rng::Rng;
use crate::sim::trace::Trace;

/// Milliseconds of cluster time that a step stands for: a tick of Raft is three steps, so 50 ms.
pub const STEP_MS: u64 = 17;
/// When the runs take place.
pub const EPOCH_MS: u64 = 1_760_000_000_000;

/// Calm steps in which there must be a leader, and something acknowledged: 200 ticks.
const HEAL_STEPS: u64 = 600;
/// Calm steps, on the average, in which an entry is read, sent, written and answered where messages carry one entry each.
const ENTRY_STEPS: u64 = 12;
/// Calm steps in which everything must come to its end, even with one entry a message and one message at a time.
const DRAIN_STEPS: u64 = 8000;
/// Calm steps for which the first item that is due may wait for a grant: many keepalives, each of which tells of room.
const HEAD_WAITS_MAX: u64 = 1200;
/// What passes at the end in one leap: longer than finished ids and uploads are remembered.
const LEAP: Duration = Duration::from_secs(45 * 60);
/// Calm steps after it in which what is outdated goes.
const SWEEP_STEPS: u64 = 3000;
/// How far cluster time may be from true time: the tolerance of a leader, the usual offset of a wall clock, and some
/// drift of a monotonic one.
const TIME_OFF_MAX: u64 = 60_000 + 3_000 + 5_000;

/// What a run came to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// Messages that an edge sent something of.
    pub attempted: u64,
    /// Messages that were answered with 250.
    pub acked: u64,
    /// Entries.
    pub committed: u64,
    /// Grants.
    pub grants: u64,
    /// Messages whose time ran out.
    pub expired: u64,
    /// Second deliveries by cause: died past the final dot, lost its journal, its lease session ran out.
    pub duplicates: [u64; 3],
    /// Segments of real logs that were given back.
    pub recycled: u64,
    /// Octets that collectors copied.
    pub copied: u64,
    /// Replicas that stopped for good.
    pub dead: u64,
    /// Replicas that began with an older program.
    pub mixed: u64,
    /// Version of the state machine at the end.
    pub version: u32,
    /// Entries at which rows were compared.
    pub digests: u64,
    /// Times that the group was placed anew.
    pub moves: u64,
    /// Snapshots that were installed.
    pub snapshots: u64,
    /// Of everything that happened, in order.
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
    pub faults: Faults,
    pub knobs: Knobs,
    pub planted: Planted,
    pub trace: Trace,
    /// Where monotonic clocks began; only differences matter.
    pub origin: Instant,
    /// Time that passed in leaps, steps.
    pub leapt: u64,
    /// Replicas whose disk fails, or whose clock lies: few enough that a majority is sound.
    pub condemned: BTreeSet<usize>,
    pub liar: Option<usize>,
    pub attempted: u64,
    /// Chance of upgrades, apart from that of everything else.
    pub upgrades: Rng,
    mixed: u64,
    pub churn: Option<Churn>,
    /// Snapshots that were installed.
    pub snapshots: u64,
    ids: u64,
    /// The first item that is due, and since when it is.
    head: Option<(queue::ItemId, u64)>,
    /// What a leader's decision found wrong.
    pub failure: Option<String>,
}

impl World {
    pub fn new(seed: u64, profile: Profile, planted: Planted, trace: bool) -> World {
        let mut rng = Rng::new(seed ^ (profile as u64) << 48);
        let faults = Faults::of(profile, &mut rng);
        let origin = Instant::now();
        let churn = (faults.churn > 0).then(|| Churn::new(seed, origin));
        let members = match &churn {
            Some(_) => Churn::first(),
            None => Membership {
                voters: (1..=if seed % 4 == 3 { 5 } else { 3 }).collect(),
                ..Membership::default()
            },
        };
        let mut peers = members.voters.clone();
        if churn.is_some() {
            // Nodes that may be added, without a replica.
            peers.resize(churn::NODES as usize, 0);
        }
        let count = peers.len();
        let knobs = Knobs::draw(&mut rng, &faults);
        let replicas = peers.into_iter();
        let mut replicas: Vec<_> = replicas
            .map(|peer| Replica::new(peer, &members, &faults, &mut rng))
            .collect();
        let mut upgrades = Rng::new(seed ^ 0x7665_7273_696F_6E73);
        // In two of three seeds some begin with an older program.
        let mut mixed = 0;
        for replica in &mut replicas {
            if faults.versions && !seed.is_multiple_of(3) && upgrades.one_in(2) {
                replica.knows = 1;
                mixed += 1;
            }
        }
        let rate = |rng: &mut Rng| rng.within(1000 - faults.drift, 1000 + faults.drift);
        let deliveries = (0..2).map(|_| Delivery::new(rate(&mut rng))).collect();
        planted.plant();
        World {
            now: 0,
            net: Net::new(faults.clone()),
            replicas,
            edges: (0..2).map(|_| Edge::default()).collect(),
            deliveries,
            model: Model::default(),
            commands: Vec::new(),
            proposals: (0..count).map(|_| Vec::new()).collect(),
            calm: false,
            quiet: false,
            faults,
            churn,
            snapshots: 0,
            knobs,
            planted,
            trace: Trace::new(seed, trace),
            origin,
            leapt: 0,
            condemned: BTreeSet::new(),
            liar: None,
            attempted: 0,
            upgrades,
            mixed,
            ids: 0,
            head: None,
            failure: None,
            rng,
        }
    }

    /// Chaos, heal, quiesce, settle, and a leap of time.
    pub fn run(mut self, chaos: u64) -> Result<Outcome, String> {
        let outcome = self.phases(chaos);
        self.planted.clear();
        match outcome {
            Ok(()) => Ok(self.outcome()),
            Err(error) => Err(format!("step {}: {error}", self.now)),
        }
    }

    fn outcome(&self) -> Outcome {
        use crate::sim::duplicates::Window::*;
        let of = |window| {
            let duplicates = &self.model.deliveries.duplicates;
            duplicates.get(&window).copied().unwrap_or(0)
        };
        let recycled = |replica: &Replica| replica.disk.real.as_ref().map_or(0, |log| log.recycled);
        let copied = |replica: &Replica| replica.disk.real.as_ref().map_or(0, |log| log.copied());
        Outcome {
            attempted: self.attempted,
            acked: self.model.acked.len() as u64,
            committed: self.model.committed(),
            grants: self.model.grants,
            expired: self.model.expired,
            duplicates: [of(DiedPastDot), of(LostJournal), of(SessionRanOut)],
            copied: self.replicas.iter().map(copied).sum(),
            recycled: self.replicas.iter().map(recycled).sum(),
            dead: self.replicas.iter().filter(|replica| replica.dead).count() as u64,
            mixed: self.mixed,
            version: self.model.rows.shard().version_in_force(),
            digests: self.model.digests.len() as u64,
            moves: self.churn.as_ref().map_or(0, |churn| churn.moves),
            snapshots: self.snapshots,
            hash: self.trace.hash(),
        }
    }

    fn phases(&mut self, chaos: u64) -> Result<(), String> {
        self.steps(chaos)?;
        self.note(|| "heal".into());
        self.heal();
        let (committed, acked) = (self.model.committed(), self.model.acked.len());
        let behind = self.behind();
        let takes_mail =
            |world: &World| world.model.committed() > committed && world.model.acked.len() > acked;
        self.steps(HEAL_STEPS)?;
        for _ in 0..self.entry_steps(behind) / 20 {
            if !takes_mail(self) {
                self.steps(20)?;
            }
        }
        if !takes_mail(self) {
            return Err(format!(
                "nothing is acknowledged after the network healed{}",
                self.standings()
            ));
        }
        self.note(|| "quiesce".into());
        self.quiet = true;
        self.until(3 * HEAL_STEPS, "edges still wait", |world| {
            world.edges.iter().all(Edge::is_idle)
        })?;
        self.note(|| "settle".into());
        self.until(DRAIN_STEPS, "the queue does not drain", |world| {
            // An append may be acknowledged and not applied: its item is not seen yet.
            world.model.applied() == world.model.committed() && world.model.undelivered() == 0
        })?;
        // A learner whose log is no faster than the mail gets there only when there is no more of it.
        self.converge()?;
        self.come_to_one_end()?;
        self.note(|| "leap".into());
        self.leap();
        self.until(SWEEP_STEPS, "something outlasts its time", |world| {
            world.model.left_behind(world.deliveries.len()).is_none()
        })
        .map_err(|error| format!("{error}: {:?}", self.model.left_behind(2)))?;
        self.come_to_one_end()?;
        self.fold_rows();
        self.model.account()
    }

    /// All faults end; disks that failed stay dead.
    fn heal(&mut self) {
        self.calm = true;
        self.net.heal();
        for k in 0..self.replicas.len() {
            self.unfill(k);
            let replica = &mut self.replicas[k];
            (replica.hung_until, replica.slow_until) = (0, 0);
            replica.paused_until = replica.paused_until.min(self.now);
            replica.down_until = replica.down_until.min(self.now + 60);
            // The rolling upgrade comes to its end.
            replica.knows = queue::version::NEWEST;
        }
        for delivery in &mut self.deliveries {
            delivery.calm_down(self.now);
        }
    }

    /// All clocks go on at once, as if nobody had asked anything for a long time.
    fn leap(&mut self) {
        self.leapt += LEAP.as_millis() as u64 / STEP_MS;
        for replica in &mut self.replicas {
            replica.leapt = self.leapt;
        }
        for delivery in &mut self.deliveries {
            delivery.leapt = self.leapt;
        }
    }

    /// Every replica that lives comes to the same rows.
    fn come_to_one_end(&mut self) -> Result<(), String> {
        self.until(DRAIN_STEPS, "replicas stay behind", |world| {
            let end = world.model.applied();
            let replicas = world.replicas.iter();
            let mut alive = replicas.filter(|it| !it.dead && it.hosted.is_some());
            alive.all(|replica| replica.applied == end)
        })?;
        for k in 0..self.replicas.len() {
            if self.replicas[k].dead || self.replicas[k].hosted.is_none() {
                continue;
            }
            if self.replicas[k].rows != self.model.rows && !self.planted.drift {
                return Err(format!("the rows of replica {} differ", k + 1));
            }
            self.bodies_are_whole(k, usize::MAX)?;
        }
        Ok(())
    }

    pub(super) fn until(
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
            self.head_moves()?;
        }
        Err(format!(
            "{what} after {most} calm steps{}",
            self.standings()
        ))
    }

    /// Entries that a voter lacks which another has: a new leader commits nothing of its own before a majority has them.
    fn behind(&self) -> u64 {
        let voters = self.model.latest_voters();
        let votes = |it: &&Replica| self.churn.is_none() || voters.contains(&it.peer);
        let voters = self.replicas.iter().filter(votes);
        let lasts = || {
            voters
                .clone()
                .filter(|it| !it.dead)
                .map(|it| it.disk.last())
        };
        lasts().max().unwrap_or(0) - lasts().min().unwrap_or(0)
    }

    /// Calm steps that so many entries take more than others, where messages carry one entry each.
    pub(super) fn entry_steps(&self, entries: u64) -> u64 {
        match self.knobs.limits.message_bytes {
            0 => ENTRY_STEPS * entries,
            _ => 0,
        }
    }

    /// Where each replica stands, a line each, and how much at once they may send.
    fn standings(&self) -> String {
        let groups = self
            .replicas
            .iter()
            .filter_map(|replica| replica.group.as_ref());
        let lines: String = groups
            .map(|group| format!("\n    {:?}", group.status()))
            .collect();
        format!("{lines}\n    {:?}", self.knobs.limits)
    }

    /// What is due is granted within a bound, once nothing goes wrong.
    fn head_moves(&mut self) -> Result<(), String> {
        let time = self.model.rows.shard().time;
        let first = self.model.rows.due().range(None, 1).pop();
        let first = first.filter(|(key, _)| key.due <= time);
        let Some((key, _)) = first else {
            self.head = None;
            return Ok(());
        };
        match self.head {
            Some((item, since)) if item == key.item => {
                if self.now - since > HEAD_WAITS_MAX {
                    return Err(format!(
                        "{item:?} is due, and not granted for {HEAD_WAITS_MAX} calm steps"
                    ));
                }
            }
            _ => self.head = Some((key.item, self.now)),
        }
        Ok(())
    }

    pub fn steps(&mut self, count: u64) -> Result<(), String> {
        for _ in 0..count {
            self.now += 1;
            let true_ms = EPOCH_MS + (self.now + self.leapt) * STEP_MS;
            self.model.latest_clock = true_ms + TIME_OFF_MAX + self.leapt * STEP_MS / 40;
            if !self.calm {
                self.disturb();
            }
            self.churn()?;
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

    pub fn new_id(&mut self) -> Ulid {
        self.ids += 1;
        Ulid::from_parts(
            EPOCH_MS + (self.now + self.leapt) * STEP_MS,
            u128::from(self.ids) << 32 | u128::from(self.rng.below(1 << 32)),
        )
    }

    pub fn note(&self, text: impl FnOnce() -> String) {
        self.trace.note(self.now, text);
    }

    /// The end of a run is a part of it.
    fn fold_rows(&mut self) {
        let state = self.model.rows.shard();
        let words = [
            state.time.0,
            state.messages,
            state.bytes,
            state.held,
            self.model.committed(),
        ];
        self.trace.fold_all(&words);
    }
}
