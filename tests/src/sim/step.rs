//! A step of one replica: its clock, its disk, its log, its rows.

use std::collections::BTreeSet;

use bytes::Bytes;
use queue::{Facts, Rows};
use spool::node::{Committed, Input};

use crate::sim::actions::context_of;
use crate::sim::bodies::count_bodies;
use crate::sim::churn::slot_of;
use crate::sim::disk::Trouble;
use crate::sim::message::whole;
use crate::sim::net::{Actor, Packet};
use crate::sim::real_log::RealLog;
use crate::sim::replica::Place;
use crate::sim::world::{STEP_MS, World};

impl World {
    pub fn step_replica(&mut self, k: usize) -> Result<(), String> {
        let replica = &mut self.replicas[k];
        if self.now < replica.paused_until {
            return Ok(());
        }
        if replica.group.is_none() {
            if self.now < replica.down_until || replica.dead || replica.hosted.is_none() {
                return Ok(());
            }
            self.start(k)?;
            if self.replicas[k].group.is_none() {
                return Ok(());
            }
        }
        if self.replicas[k].next_tick <= self.now {
            self.replicas[k].next_tick = self.now + self.rng.within(2, 4);
            self.input(k, Input::Tick)?;
        }
        self.flush(k)?;
        self.keep_house(k)?;
        self.read(k)?;
        self.apply(k)?;
        self.install(k)?;
        self.collect(k)?;
        self.keep_state(k)?;
        self.lead(k);
        self.flush_proposals(k);
        self.pump(k)
    }

    /// A process begins on what its disk holds.
    pub fn start(&mut self, k: usize) -> Result<(), String> {
        let started = self.replicas[k].start(&self.knobs, &self.planted, &mut self.rng);
        if let Err(trouble) = started {
            return self.suffer(k, trouble);
        }
        self.upgrade(k);
        #[cfg(feature = "planted-bugs")]
        if let Some(group) = self.replicas[k].group.as_mut() {
            group.plant(self.planted.group);
        }
        Ok(())
    }

    fn flush(&mut self, k: usize) -> Result<(), String> {
        let replica = &self.replicas[k];
        if replica.disk.queue.is_empty() || replica.hung_until > self.now {
            return Ok(());
        }
        let slow = !self.calm && self.now < replica.slow_until;
        let pause = if slow { replica.slow_by } else { 3 };
        if !self.rng.one_in(pause) {
            return Ok(());
        }
        let most = self.rng.within(1, 4) as usize;
        let lies = self.planted.lose_flushed_write;
        for _ in 0..if lies { most } else { 1 } {
            let lie = lies && self.rng.one_in(50);
            let most = if lies { 1 } else { most };
            let durable = match self.replicas[k].disk.flush(most, lie) {
                Ok(durable) => durable,
                Err(trouble) => return self.suffer(k, trouble),
            };
            for (number, locations) in durable {
                self.trace
                    .fold_all(&[k as u64, number, locations.len() as u64]);
                self.input(k, Input::Persisted { number, locations })?;
            }
        }
        self.lose_patience(k);
        Ok(())
    }

    /// The disk failed a replica.
    pub fn suffer(&mut self, k: usize, trouble: Trouble) -> Result<(), String> {
        match trouble {
            Trouble::Wrong(error) => Err(format!("replica {}: {error}", k + 1)),
            Trouble::Power => {
                self.kill(k, self.now + 10, true, false);
                Ok(())
            }
            Trouble::NoRoom => {
                self.kill(k, self.now + 10, false, false);
                Ok(())
            }
            Trouble::Failed(error) if self.condemned.contains(&k) => {
                self.note(|| format!("replica {} stops for good: {error}", k + 1));
                self.kill(k, u64::MAX, false, false);
                self.replicas[k].dead = true;
                Ok(())
            }
            Trouble::Failed(error) => Err(format!("replica {} stops: {error}", k + 1)),
        }
    }

    /// Now and then an idle log does its housework, and a replica tells of its room.
    fn keep_house(&mut self, k: usize) -> Result<(), String> {
        if self.replicas[k].disk.real.is_none() || !self.rng.one_in(15) {
            return Ok(());
        }
        let replica = &mut self.replicas[k];
        if replica.hung_until <= self.now {
            let places = replica.flushed.live.values();
            let mut live: BTreeSet<u64> = places.map(|place| place.at.segment).collect();
            if self.planted.release_living {
                live.pop_first();
            }
            if let Err(trouble) = replica.disk.tidy_up(&live) {
                return self.suffer(k, trouble);
            }
        }
        let replica = &mut self.replicas[k];
        let full = replica.disk.real.as_ref().is_some_and(RealLog::is_full);
        let changed = std::mem::replace(&mut replica.told_full, full) != full;
        if changed {
            self.note(|| format!("the disk of replica {} is full: {full}", k + 1));
        }
        let peer = self.replicas[k].peer;
        self.input(k, Input::PeerFull { peer, full })?;
        // Said again and again: a word can be lost.
        if changed || self.rng.one_in(3) {
            for to in (0..self.replicas.len()).filter(|&to| to != k) {
                let packet = Packet::Full { from: k, to, full };
                self.net.send(self.now, &mut self.rng, packet);
            }
        }
        Ok(())
    }

    /// A step of the collector now and then; and the hand that applies moves the rows, to copies of what still lives.
    fn collect(&mut self, k: usize) -> Result<(), String> {
        let replica = &mut self.replicas[k];
        let hung = replica.hung_until > self.now;
        let now_ms = replica.clock(self.now) * STEP_MS;
        let Some(real) = replica.disk.real.as_mut().filter(|_| !hung) else {
            return Ok(());
        };
        if self.rng.one_in(6)
            && let Err(trouble) = real.collect(now_ms)
        {
            return self.suffer(k, trouble);
        }
        if !self.rng.one_in(4) {
            return Ok(());
        }
        for it in real.moves() {
            let place = replica.live.get_mut(&it.index);
            match place.filter(|place| place.at == it.from) {
                Some(place) => place.at = it.to,
                // It died while it was copied.
                None if self.planted.move_blindly => {
                    let octets = 1;
                    replica.live.insert(it.index, Place { octets, at: it.to });
                }
                None => {}
            }
        }
        Ok(())
    }

    /// A majority of the voters' disks takes no mail.
    pub fn majority_full(&self) -> bool {
        let hosting = || {
            let replicas = self.replicas.iter();
            replicas.filter(|replica| replica.hosted.is_some() && !replica.dead)
        };
        let count = match self.churn {
            Some(_) => hosting().count(),
            None => self.replicas.len(),
        };
        hosting().filter(|replica| replica.told_full).count() * 2 > count
    }

    /// Reads for lagging followers.
    fn read(&mut self, k: usize) -> Result<(), String> {
        if !self.rng.one_in(3) {
            return Ok(());
        }
        let Some((id, wanted)) = self.replicas[k].fetching.pop_front() else {
            return Ok(());
        };
        let fails = !self.calm && self.rng.chance(self.faults.fetch_fails);
        let disk = &self.replicas[k].disk;
        let mut entries = Vec::new();
        for read in wanted.iter().take(if fails { 0 } else { usize::MAX }) {
            let stored = disk.read(read.index, read.location);
            entries.extend(stored.map(|stored| (read.index, stored.context, stored.data)));
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
        if let Some(facts) = facts {
            self.check_known(k, entry.index, facts)?;
        }
        let replica = &mut self.replicas[k];
        let effects = facts
            .map(|facts| queue::apply(&mut replica.rows, entry.index, facts))
            .unwrap_or_default();
        count_bodies(replica, entry, &effects)?;
        self.model.apply(entry.index, facts, &effects)?;
        if let Some(members) = self.replicas[k].conf.remove(&entry.index) {
            self.replicas[k].members = members;
        }
        self.drift(k, entry.index);
        self.verify(k, entry.index, &effects)?;
        self.trace
            .fold_all(&[k as u64, entry.index, effects.len() as u64]);
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
        let rows_stay = self.planted.applied_apart && self.rng.one_in(2);
        replica.flushed.applied = replica.applied;
        if !rows_stay {
            replica.flushed.rows = replica.rows.clone();
            replica.flushed.live = replica.live.clone();
        }
        if !self.planted.members_apart {
            replica.flushed.members = replica.members.clone();
        }
        let same = replica.rows == self.model.rows || self.planted.drift;
        if replica.applied == self.model.applied() && !same {
            return Err(format!(
                "the rows of replica {} differ at {}",
                k + 1,
                replica.applied
            ));
        }
        let now_ms = replica.clock(self.now) * STEP_MS;
        if let Some(real) = replica.disk.real.as_mut() {
            real.flushed(&replica.flushed.live, now_ms);
        }
        self.bodies_are_whole(k, 2)?;
        self.bounds_hold(k)?;
        let upto = self.replicas[k].applied;
        let short = self.churn.is_some() && !self.calm && self.rng.one_in(3);
        let over_budget = self.replicas[k].told_full || short;
        self.input(k, Input::Truncate { upto, over_budget })
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

    pub fn deliver(&mut self, packet: Packet) -> Result<(), String> {
        if let Some(until) = self.stands_still(&packet) {
            self.net.put(until, packet);
            return Ok(());
        }
        match packet {
            Packet::Raft(message) => {
                self.trace.fold_message(&message);
                let (from, k) = (slot_of(message.from), slot_of(message.to));
                if self.replicas[k].peer != message.to {
                    // For a replica that the node has not, or not any more.
                    return Ok(());
                }
                let wall = self.replicas[from].wall(self.now);
                let replica = &mut self.replicas[k];
                let clock = replica.clock(self.now);
                replica.walls.insert(message.from, (wall, clock));
                self.input(k, Input::Step(message))
            }
            Packet::Full { from, to, full } => {
                let peer = self.replicas[from].peer;
                self.input(to, Input::PeerFull { peer, full })
            }
            Packet::Order { to, order } => self.take_order(to, order),
            Packet::Report { node, term, report } => {
                self.hear_report(node, term, report);
                Ok(())
            }
            Packet::Snapshot(parcel) => self.take_snapshot(parcel),
            Packet::SnapshotSent {
                from,
                to,
                id,
                staged,
            } => self.hear_sent(from, to, id, staged),
            Packet::Ask { from, to, ask } => {
                self.note(|| format!("{from:?} asks {}: {ask:?}", to + 1));
                self.trace.fold_ask(from, &ask);
                self.ask(from, to, ask);
                Ok(())
            }
            Packet::Tell { to, tell } => {
                self.note(|| format!("{to:?} hears {tell:?}"));
                self.trace.fold_tell(to, &tell);
                match to {
                    Actor::Edge(e) => self.edge_hears(e, tell),
                    Actor::Delivery(d) => self.delivery_hears(d, tell),
                }
                Ok(())
            }
        }
    }

    /// Whoever stands still hears nothing before he goes on; then all of it.
    fn stands_still(&self, packet: &Packet) -> Option<u64> {
        let until = match packet {
            Packet::Raft(message) => self.replicas[slot_of(message.to)].paused_until,
            Packet::Order { to, .. } => self.replicas[*to].paused_until,
            Packet::Snapshot(parcel) => self.replicas[parcel.slot()].paused_until,
            Packet::SnapshotSent { from, .. } => self.replicas[slot_of(*from)].paused_until,
            Packet::Report { .. } => 0,
            Packet::Full { to, .. } | Packet::Ask { to, .. } => self.replicas[*to].paused_until,
            Packet::Tell {
                to: Actor::Delivery(d),
                ..
            } => self.deliveries[*d].paused_until,
            Packet::Tell { .. } => 0,
        };
        (until > self.now).then_some(until)
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

    /// Every body that is referred to is where the replica knows it to be: at most `most` messages are looked at.
    pub fn bodies_are_whole(&mut self, k: usize, most: usize) -> Result<(), String> {
        let replica = &mut self.replicas[k];
        if replica.group.is_none() {
            return Ok(());
        }
        let state = replica.rows.shard();
        let referred: u64 = replica.live.values().map(|place| place.octets).sum();
        if referred != state.bytes + state.upload_bytes {
            return Err(format!(
                "replica {} keeps {referred} octets of bodies, and {} live",
                k + 1,
                state.bytes + state.upload_bytes
            ));
        }
        let messages = replica.rows.messages().range(None, most);
        for (id, row) in messages {
            let mut body = Vec::new();
            for extent in &row.body {
                let place = replica.live.get(&extent.index);
                let stored = place.and_then(|place| replica.disk.read(extent.index, place.at));
                let from = extent.offset as usize;
                let to = from + extent.length as usize;
                let octets = stored.as_ref().and_then(|stored| stored.data.get(from..to));
                body.extend_from_slice(octets.ok_or_else(|| {
                    format!(
                        "replica {} has not the body of {id} in entry {} ({place:?})",
                        k + 1,
                        extent.index
                    )
                })?);
            }
            if body.len() as u64 != row.size || mail::Digest::of(&body) != row.digest {
                return Err(format!("replica {} has another body for {id}", k + 1));
            }
            // Chunks tell of themselves whose they are, as whole bodies do.
            let chunks = if row.body.len() > 1 {
                row.body.len() as u32
            } else {
                0
            };
            if chunks == 0 && body.len() < 300 && body != whole(id, 0) {
                return Err(format!("replica {} has somebody's body for {id}", k + 1));
            }
        }
        Ok(())
    }

    /// What a peer can make grow stays within its bound.
    fn bounds_hold(&mut self, k: usize) -> Result<(), String> {
        let replica = &self.replicas[k];
        let Some(group) = replica.group.as_ref() else {
            return Ok(());
        };
        let limits = &self.knobs.limits;
        let status = group.status();
        // What the disk held at the start is handed out at once, as places on the disk and not as octets in memory.
        if status.applied < replica.replays_to {
            return Ok(());
        }
        // What was in the log before the limit was reached is handed out all the same.
        let most = limits.unapplied_bytes
            + limits.uncommitted_bytes
            + limits.committed_bytes_per_ready
            + (limits.message_bytes + ENTRY_MAX) * (limits.inflight_messages as u64 + 1);
        if status.unapplied_bytes > most {
            return Err(format!(
                "replica {} has {} octets handed out and not applied, and may have {most}",
                k + 1,
                status.unapplied_bytes
            ));
        }
        Ok(())
    }
}

/// The largest entry of a simulation, octets.
const ENTRY_MAX: u64 = 6000;

/// `None`: the empty entry of a new leader.
fn command_of<'a>(commands: &'a [Facts], context: &Bytes) -> Option<&'a Facts> {
    let number = <[u8; 8]>::try_from(&context[..]).ok()?;
    commands.get(u64::from_be_bytes(number) as usize)
}
