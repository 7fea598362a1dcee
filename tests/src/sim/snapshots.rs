//! Snapshots between replicas of the simulation: made of what the state store has written down, late, lost on the way, or
//! reported as lost though they arrived. The rows and bodies of one take the place of what a replica has in one step, as
//! the batch of a real store does; the log follows, or the next start does it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use queue::{MemoryRows, Rows, Table};
use spool::node::{Input, Made, Membership, Message, SnapshotAction, SnapshotInput};

use crate::sim::churn::slot_of;
use crate::sim::net::Packet;
use crate::sim::replica::Flushed;
use crate::sim::world::{STEP_MS, World};

/// Steps that one is on its way at most.
const TRAVELS_MAX: u64 = 120;

/// What one carries.
pub struct Content {
    flushed: Flushed,
    /// By the index of their entries.
    bodies: BTreeMap<u64, Bytes>,
}

/// One on its way.
#[derive(Clone)]
pub struct Parcel {
    /// Peer ids.
    from: u64,
    to: u64,
    id: u64,
    message: Box<Message>,
    content: Arc<Content>,
}

impl Parcel {
    /// The slot that it goes to.
    pub fn slot(&self) -> usize {
        slot_of(self.to)
    }
}

/// What a replica knows of snapshots.
#[derive(Default)]
pub struct Snapshots {
    made: BTreeMap<u64, Arc<Content>>,
    /// Made, and not known to have arrived or failed: the last entry of each, by its id.
    running: BTreeMap<u64, u64>,
    /// By their ids.
    staged: BTreeMap<u64, Arc<Content>>,
    install: Option<Made>,
}

impl World {
    pub fn snapshot(&mut self, k: usize, action: SnapshotAction) -> Result<(), String> {
        match action {
            SnapshotAction::Make { to } => {
                let made = self.make_snapshot(k, to)?;
                self.input(k, Input::Snapshot(SnapshotInput::Made { to, made }))
            }
            SnapshotAction::Send { to, id, message } => self.send_snapshot(k, to, id, message),
            SnapshotAction::Drop { id } => {
                let known = &mut self.replicas[k].snapshots;
                known.made.remove(&id);
                known.running.remove(&id);
                Ok(())
            }
            SnapshotAction::Install(made) => {
                self.replicas[k].snapshots.install = Some(made);
                Ok(())
            }
            SnapshotAction::Discard { id } => {
                self.replicas[k].snapshots.staged.remove(&id);
                Ok(())
            }
        }
    }

    /// Of what the state store has written down; not for one that was no member then.
    fn make_snapshot(&mut self, k: usize, to: u64) -> Result<Option<Made>, String> {
        let id = self.rng.next();
        let replica = &mut self.replicas[k];
        let flushed = replica.flushed.clone();
        let Membership {
            voters,
            learners,
            voters_outgoing,
            ..
        } = &flushed.members;
        let known = [voters, learners, voters_outgoing]
            .into_iter()
            .any(|peers| peers.contains(&to));
        if flushed.applied == 0 || !known {
            return Ok(None);
        }
        let mut bodies = BTreeMap::new();
        for (&index, place) in &flushed.live {
            let stored = replica.disk.read(index, place.at).ok_or_else(|| {
                format!("replica {} cannot read entry {index} for a snapshot", k + 1)
            })?;
            bodies.insert(index, stored.data);
        }
        let made = Made {
            id,
            index: flushed.applied,
            term: self.model.term_of(flushed.applied),
            members: flushed.members.clone(),
            body_bytes: 0,
        };
        let content = Arc::new(Content { flushed, bodies });
        replica.snapshots.made.insert(id, content);
        replica.snapshots.running.insert(id, made.index);
        self.note(|| format!("replica {} makes {made:?} for {to}", k + 1));
        Ok(Some(made))
    }

    fn send_snapshot(
        &mut self,
        k: usize,
        to: u64,
        id: u64,
        message: Box<Message>,
    ) -> Result<(), String> {
        let Some(content) = self.replicas[k].snapshots.made.remove(&id) else {
            return Err(format!(
                "replica {} sends a snapshot that it has not",
                k + 1
            ));
        };
        let from = self.replicas[k].peer;
        let at = self.now + self.rng.within(5, TRAVELS_MAX);
        let lost = !self.calm && self.rng.one_in(4);
        if lost {
            self.tell_sender(at, sent(from, to, id, false));
            return Ok(());
        }
        let parcel = Parcel {
            from,
            to,
            id,
            message,
            content,
        };
        self.net.put(at, Packet::Snapshot(parcel));
        Ok(())
    }

    /// The sender hears what became of it, always.
    fn tell_sender(&mut self, at: u64, sent: Packet) {
        if !self.planted.report_lost || self.rng.one_in(2) {
            self.net.put(at, sent);
        }
    }

    /// What became of a snapshot reaches its sender.
    pub fn hear_sent(&mut self, from: u64, to: u64, id: u64, staged: bool) -> Result<(), String> {
        let k = slot_of(from);
        if self.replicas[k].peer != from {
            return Ok(());
        }
        self.trace.fold_all(&[from, to, id, staged.into()]);
        self.replicas[k].snapshots.running.remove(&id);
        let input = SnapshotInput::Sent { to, id, staged };
        self.input(k, Input::Snapshot(input))
    }

    /// The log waits for a snapshot that is on its way: what follows it must be there when it has arrived, or it was for
    /// nothing, and so is the next one.
    pub fn truncated(&mut self, k: usize, first: u64) -> Result<(), String> {
        self.replicas[k].disk.truncate(first);
        let running = self.replicas[k].snapshots.running.values();
        match running.min() {
            Some(last) if last + 1 < first => Err(format!(
                "the log of replica {} begins with {first}, and a snapshot to {last} is on its way",
                k + 1
            )),
            _ => Ok(()),
        }
    }

    /// It arrives. The sender always hears how it went, and not always the truth.
    pub fn take_snapshot(&mut self, parcel: Parcel) -> Result<(), String> {
        let Parcel {
            from,
            to,
            id,
            message,
            content,
        } = parcel;
        let k = slot_of(to);
        self.trace.fold_all(&[from, to, id]);
        let replica = &mut self.replicas[k];
        let here = replica.group.is_some() && replica.peer == to;
        let busy = replica.snapshots.install.is_some();
        let staged = here && !busy;
        if staged {
            replica.snapshots.staged.insert(id, content);
            let message = *message;
            self.input(k, Input::Snapshot(SnapshotInput::Staged(message)))?;
        }
        let lies = !self.calm && self.rng.one_in(6);
        let at = self.now + self.rng.within(1, 10);
        self.tell_sender(at, sent(from, to, id, staged && !lies));
        Ok(())
    }

    /// Installs what Raft has taken, after all that was handed out before is applied.
    pub fn install(&mut self, k: usize) -> Result<(), String> {
        let replica = &self.replicas[k];
        if replica.snapshots.install.is_none()
            || !replica.to_apply.is_empty()
            || !self.rng.one_in(8)
        {
            return Ok(());
        }
        let snapshots = &mut self.replicas[k].snapshots;
        let Some(made) = snapshots.install.take() else {
            return Ok(());
        };
        let staged = snapshots.staged.remove(&made.id);
        let Some(content) = staged.filter(|content| content.flushed.applied == made.index) else {
            return Err(format!("replica {} has not staged {made:?}", k + 1));
        };
        let mut flushed = content.flushed.clone();
        let bodies: Vec<_> = content.bodies.clone().into_iter().collect();
        let kept = self.replicas[k].disk.keep_copies(made.id, &bodies);
        let kept = match kept {
            Ok(kept) => kept,
            // The state is the old one; the process opens again with it.
            Err(trouble) => return self.suffer(k, trouble),
        };
        for ((index, _), at) in bodies.iter().zip(kept) {
            let place = flushed.live.get_mut(index);
            if let Some(place) = place.filter(|_| !self.planted.places_of_sender) {
                place.at = at;
            }
        }
        let replica = &mut self.replicas[k];
        if self.planted.rows_merged {
            merge(&mut replica.rows, &mut flushed.rows);
        }
        flushed.installed = Some((made.index, made.term));
        flushed.members = made.members;
        replica.applied = made.index;
        replica.rows = flushed.rows.clone();
        replica.live = flushed.live.clone();
        replica.members = flushed.members.clone();
        replica.conf.retain(|of, _| *of > made.index);
        let now_ms = replica.clock(self.now) * STEP_MS;
        if let Some(real) = &mut replica.disk.real {
            real.installed(made.id, &flushed.live, now_ms);
        }
        replica.flushed = flushed;
        self.snapshots += 1;
        self.trace.fold_all(&[k as u64, made.id, made.index]);
        self.note(|| format!("replica {} is at entry {} by a snapshot", k + 1, made.index));
        let index = made.index;
        self.input(k, Input::Snapshot(SnapshotInput::Installed { index }))
    }
}

/// A planted bug: what the snapshot has not stays.
fn merge(old: &mut MemoryRows, new: &mut MemoryRows) {
    fn keep<K: Clone, V: Clone>(old: &dyn Table<K, V>, new: &mut dyn Table<K, V>) {
        for (key, row) in old.range(None, usize::MAX) {
            if new.get(&key).is_none() {
                new.put(key, V::clone(&row));
            }
        }
    }
    keep(old.messages(), new.messages());
    keep(old.items(), new.items());
    keep(old.finished(), new.finished());
    keep(old.sessions(), new.sessions());
}

fn sent(from: u64, to: u64, id: u64, staged: bool) -> Packet {
    Packet::SnapshotSent {
        from,
        to,
        id,
        staged,
    }
}
