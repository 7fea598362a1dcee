//! What goes wrong, step by step.

use spool::node::Input;

use crate::sim::net::Actor;
use crate::sim::world::World;

/// An hour, ms.
const HOUR_MS: i64 = 3_600_000;
/// Steps for which a write may find no room before the process starts again, as a real one does.
const ROOM_PATIENCE: u64 = 500;

impl World {
    pub fn disturb(&mut self) {
        let faults = self.faults.clone();
        let count = self.replicas.len();
        if self.rng.chance(faults.cut) {
            self.net.shake(&mut self.rng, count);
        }
        if self.rng.chance(faults.slow_link) {
            self.net.slow_down(&mut self.rng, count);
        }
        if self.rng.chance(faults.isolate) {
            let client = match self.rng.below(3) {
                0 => Actor::Edge(self.one_of(self.edges.len())),
                _ => Actor::Delivery(self.one_of(self.deliveries.len())),
            };
            // Below and above what a lease session lives.
            let until = self.now + self.rng.within(30, 900);
            self.net.isolate(client, until);
            self.note(|| format!("{client:?} is cut off until {until}"));
        }
        if self.rng.chance(faults.crash) {
            let all = self.rng.chance(faults.crash_all);
            let power = self.rng.one_in(2);
            let victim = self.one_of(count);
            for k in (0..count).filter(|&k| all || k == victim) {
                let until = self.now + 1 + self.rng.below(60);
                let in_write = self.rng.chance(faults.crash_in_write);
                self.kill(k, until, power, in_write);
            }
        }
        if self.rng.chance(faults.transfer) {
            let (k, to) = (self.one_of(count), self.one_of(count));
            let to = self.replicas[to].peer;
            if let Some(group) = self.replicas[k].group.as_mut() {
                group.handle(Input::TransferLeader { to: Some(to) });
            }
        }
        self.disturb_disks(count);
        self.disturb_clocks(count);
    }

    fn disturb_disks(&mut self, count: usize) {
        let faults = self.faults.clone();
        if self.rng.chance(faults.slow_disk) {
            let k = self.one_of(count);
            let replica = &mut self.replicas[k];
            replica.slow_until = self.now + 20 + self.rng.below(120);
            replica.slow_by = if self.rng.one_in(4) { 300 } else { 30 };
        }
        if self.rng.chance(faults.hang_disk) {
            let k = self.one_of(count);
            // Up to a minute: below and above what a replica bears.
            self.replicas[k].hung_until = self.now + self.rng.within(30, 3500);
            self.note(|| format!("the disk of replica {} hangs", k + 1));
        }
        if self.rng.chance(faults.disk_error) && self.condemned.len() < (count - 1) / 2 {
            let k = self.one_of(count);
            if let Some(real) = &mut self.replicas[k].disk.real {
                real.break_down(&mut self.rng);
                self.condemned.insert(k);
                self.note(|| format!("the disk of replica {} is about to fail", k + 1));
            }
        }
        if self.rng.chance(faults.full_disk) {
            let k = self.one_of(count);
            let percent = self.rng.within(40, 100);
            if let Some(real) = &mut self.replicas[k].disk.real {
                real.fill(Some(percent));
                self.replicas[k].full_until = self.now + self.rng.within(20, 600);
                self.note(|| format!("{percent} % of the disk of replica {} are taken", k + 1));
            }
        }
        for k in 0..count {
            if self.replicas[k].full_until <= self.now {
                self.unfill(k);
            }
        }
    }

    fn disturb_clocks(&mut self, count: usize) {
        if self.rng.chance(self.faults.pause) {
            let k = self.one_of(count);
            // Around the time to live of a lease session: less, and several times as much.
            let until = self.now + self.rng.within(20, 900);
            self.replicas[k].paused_until = until;
            self.note(|| format!("replica {} stands still until {until}", k + 1));
        }
        // One clock at a time lies, and only when all know each other's: of two clocks nobody can tell the right one.
        let known = self
            .replicas
            .iter()
            .all(|replica| replica.walls.len() + 1 >= count);
        if known && self.rng.chance(self.faults.wall_jump) {
            let last = self.liar.take();
            if let Some(last) = last {
                self.replicas[last].wall_offset = self.rng.below(3000) as i64;
                // And the others hear of it: what they remember must not be a second lie.
                let (peer, wall) = (last as u64 + 1, self.replicas[last].wall(self.now));
                for replica in &mut self.replicas {
                    let clock = replica.clock(self.now);
                    replica.walls.insert(peer, (wall, clock));
                }
            }
            if last.is_none() || self.rng.one_in(2) {
                let k = self.one_of(count);
                let ahead = self.rng.one_in(2);
                self.replicas[k].wall_offset = if ahead { HOUR_MS } else { -HOUR_MS };
                self.liar = Some(k);
                self.note(|| format!("the wall clock of replica {} jumps", k + 1));
            }
        }
    }

    /// There is room again on a replica's disk.
    pub fn unfill(&mut self, k: usize) {
        if self.replicas[k].full_until == 0 {
            return;
        }
        self.replicas[k].full_until = 0;
        if let Some(real) = &mut self.replicas[k].disk.real {
            real.fill(None);
        }
    }

    /// A process dies; with `power` the machine does.
    pub fn kill(&mut self, k: usize, until: u64, power: bool, in_write: bool) {
        self.trace.fold_all(&[k as u64, until, power.into()]);
        self.note(|| {
            let what = if power { "loses power" } else { "crashes" };
            format!("replica {} {what} until {until}", k + 1)
        });
        self.replicas[k].crash(until, &mut self.rng, power, in_write);
        self.proposals[k].clear();
    }

    /// A write that finds no room for too long: the process starts again without it.
    pub fn lose_patience(&mut self, k: usize) {
        let replica = &mut self.replicas[k];
        if !replica.disk.no_room {
            replica.no_room_since = None;
            return;
        }
        let since = *replica.no_room_since.get_or_insert(self.now);
        if self.now - since > ROOM_PATIENCE {
            let until = self.now + 1;
            self.kill(k, until, false, false);
        }
    }

    fn one_of(&mut self, count: usize) -> usize {
        self.rng.below(count as u64) as usize
    }
}
