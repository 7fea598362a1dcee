//! Where a group's actions take effect, and who is told.

use bytes::Bytes;
use mail::Ulid;
use queue::Effect;
use raft::eraftpb::MessageType;
use spool::node::{
    AbortReason, Ack, Action, Committed, Input, Membership, Message, Role, SnapshotAction,
    SnapshotInput,
};

use crate::sim::churn::slot_of;
use crate::sim::net::{Actor, Packet, Tell};
use crate::sim::replica::{Pending, Replica};
use crate::sim::world::World;

impl World {
    pub fn act(&mut self, k: usize, action: Action) -> Result<(), String> {
        match action {
            Action::Send(messages) => {
                for message in messages {
                    if let Some((term, candidate)) = vote_in(&message) {
                        self.model.vote(message.from, term, candidate)?;
                    }
                    self.net
                        .send(self.now, &mut self.rng, Packet::Raft(message));
                }
            }
            Action::Write(task) => self.replicas[k].disk.queue.push_back(task),
            Action::Apply(entries) => {
                for entry in entries {
                    let context = context_of(&self.replicas[k], &entry)?;
                    self.model.hand_out(entry.index, entry.term, &context)?;
                    self.trace
                        .fold_all(&[k as u64, entry.index, entry.term, context.len() as u64]);
                    self.replicas[k].to_apply.push_back(entry);
                }
            }
            Action::Committed { ticket, index, ack } => {
                let Some((context, pending)) = self.replicas[k].tickets.remove(&ticket) else {
                    return Err(format!("ticket {ticket} is answered twice"));
                };
                self.durable(k, index, &context)?;
                match ack {
                    Ack::Commit => self.answer(k, pending, &[]),
                    Ack::Apply => drop(self.replicas[k].by_index.insert(index, pending)),
                }
            }
            Action::Unknown { ticket } | Action::Refused { ticket, .. } => self.give_up(k, ticket),
            Action::Role {
                role, term, noop, ..
            } => {
                self.note(|| format!("replica {} is {role:?} in term {term}", k + 1));
                self.trace.fold_all(&[k as u64, role as u64, term]);
                self.replicas[k].lead = None;
                if role == Role::Leader {
                    let peer = self.replicas[k].peer;
                    self.model.leader(term, peer)?;
                    let group = self.replicas[k].group.as_ref();
                    let last = group.map_or(0, |group| group.status().last);
                    self.model.complete(peer, term, last)?;
                    self.begin_to_lead(k, noop.unwrap_or(u64::MAX));
                }
            }
            Action::Fetch { id, entries } => self.replicas[k].fetching.push_back((id, entries)),
            Action::ConfChanged { index, members } => self.members_changed(k, index, &members)?,
            // Only worlds that keep no log for followers need them.
            Action::Snapshot(SnapshotAction::Make { to }) if self.churn.is_none() => {
                let input = SnapshotInput::Made { to, made: None };
                self.input(k, Input::Snapshot(input))?;
            }
            Action::Snapshot(action) => self.snapshot(k, action)?,
            Action::Truncated { first } => self.truncated(k, first)?,
            // The process ends, and Kubernetes starts it again.
            Action::Abort {
                reason: AbortReason::DiskHung { .. },
            } if self.faults.hang_disk > 0 => {
                let until = self.replicas[k].hung_until.max(self.now) + 1;
                self.kill(k, until, false, false);
            }
            Action::Abort { reason } => return Err(format!("replica {} stops: {reason}", k + 1)),
        }
        Ok(())
    }

    /// An acknowledged entry is on a majority of disks at the moment of the acknowledgement: this finds in fifty
    /// steps what a check for lost messages finds in thousands.
    fn durable(&self, k: usize, index: u64, context: &Bytes) -> Result<(), String> {
        let holds = |peer: &&u64| {
            let replica = &self.replicas[slot_of(**peer)];
            let stored = replica.disk.get(index);
            let has = stored.map_or(replica.disk.covers(index), |stored| {
                stored.context == *context
            });
            replica.peer == **peer && has
        };
        let Some(group) = self.replicas[k].group.as_ref() else {
            return Ok(());
        };
        let few = |members: &Membership| {
            let mut halves = [&members.voters, &members.voters_outgoing].into_iter();
            halves.find_map(|voters| {
                let copies = voters.iter().filter(holds).count();
                (!voters.is_empty() && copies * 2 <= voters.len()).then(|| {
                    format!("entry {index} is acknowledged with {copies} durable copies among {voters:?}")
                })
            })
        };
        let Some(error) = few(group.members()) else {
            return Ok(());
        };
        // It may have been committed just before a change of members that the group has handed out, and nobody took yet.
        let replica = &self.replicas[k];
        match few(replica.now.as_ref().unwrap_or(&replica.members)) {
            None => Ok(()),
            Some(_) => Err(error),
        }
    }

    pub fn answer(&mut self, k: usize, pending: Pending, effects: &[Effect]) {
        let clock = self.replicas[k].clock(self.now);
        match pending {
            Pending::Append { edge, id } => {
                if let Some(lead) = self.replicas[k].lead.as_mut() {
                    lead.appending.remove(&id);
                }
                let gone = Effect::UploadGone { message: id };
                match effects.contains(&gone) {
                    true => self.tell(edge, Tell::Stale { id }),
                    false => self.acknowledge(edge, id),
                }
            }
            Pending::Chunk { edge, id, seq } => {
                let stored = Effect::ChunkStored { message: id, seq };
                let tell = match effects.contains(&stored) {
                    true => Tell::Stored { id, seq },
                    false => Tell::Stale { id },
                };
                self.tell(edge, tell);
            }
            Pending::Timer { item } => {
                if let Some(lead) = self.replicas[k].lead.as_mut() {
                    lead.timing.remove(&item);
                }
            }
            Pending::Uploads => {
                if let Some(lead) = self.replicas[k].lead.as_mut() {
                    lead.expiring_uploads = false;
                }
            }
            Pending::Nobody => {}
            Pending::Open {
                node,
                incarnation,
                sent,
            } => {
                for effect in effects {
                    if let Effect::SessionOpened { session, kept, .. } = effect {
                        let (session, kept) = (*session, kept.clone());
                        self.tell(
                            node,
                            Tell::Opened {
                                incarnation,
                                sent,
                                session,
                                kept,
                            },
                        );
                    }
                }
            }
            Pending::Window { keepalives, grants } => {
                if let Some(lead) = self.replicas[k].lead.as_mut() {
                    lead.granting.retain(|item| !grants.contains(item));
                }
                for (session, node, sent) in keepalives {
                    let kept = effects.contains(&Effect::KeptAlive { session });
                    if let Some(lead) = self.replicas[k].lead.as_mut().filter(|_| kept) {
                        lead.heard.insert(session, clock);
                    }
                    self.tell(
                        node,
                        if kept {
                            Tell::Kept { session, sent }
                        } else {
                            Tell::Gone { session }
                        },
                    );
                }
            }
            Pending::Expire { session } => {
                if let Some(lead) = self.replicas[k].lead.as_mut() {
                    lead.expiring.remove(&session);
                }
            }
            Pending::Settle { node, item, token } => self.tell(node, Tell::Settled { item, token }),
        }
    }

    /// A proposal came to nothing, or nobody knows.
    fn give_up(&mut self, k: usize, ticket: u64) {
        let Some((_, pending)) = self.replicas[k].tickets.remove(&ticket) else {
            return;
        };
        let lead = self.replicas[k].lead.as_mut();
        match pending {
            Pending::Append { edge, id } => {
                lead.map(|lead| lead.appending.remove(&id));
                self.tell(edge, Tell::Again { id, leader: None });
            }
            Pending::Window { grants, .. } => {
                if let Some(lead) = lead {
                    lead.granting.retain(|item| !grants.contains(item));
                }
            }
            Pending::Chunk { edge, id, .. } => self.tell(edge, Tell::Again { id, leader: None }),
            Pending::Timer { item } => drop(lead.map(|lead| lead.timing.remove(&item))),
            Pending::Uploads => drop(lead.map(|lead| lead.expiring_uploads = false)),
            Pending::Expire { session } => drop(lead.map(|lead| lead.expiring.remove(&session))),
            // Whoever asked asks again.
            Pending::Open { .. } | Pending::Settle { .. } | Pending::Nobody => {}
        }
    }

    /// What apply gives out, a leader hands on.
    pub fn hand_over(&mut self, k: usize, effects: &[Effect]) {
        if self.replicas[k].lead.is_none() {
            return;
        }
        for effect in effects {
            match *effect {
                Effect::Granted {
                    item,
                    session,
                    token,
                    ..
                } => {
                    if let Some(node) = self.delivery_of(k, session) {
                        self.tell(
                            node,
                            Tell::Grant {
                                session,
                                item,
                                token,
                            },
                        );
                    }
                }
                Effect::Revoke { item, session } => {
                    if let Some(node) = self.delivery_of(k, session) {
                        self.tell(node, Tell::Revoke { session, item });
                    }
                }
                _ => {}
            }
        }
    }

    /// 250.
    fn acknowledge(&mut self, edge: Actor, id: Ulid) {
        self.trace.fold_bytes(&id.to_bytes());
        self.model.acked.insert(id);
        self.tell(edge, Tell::Appended { id });
    }

    /// 250 for a message that is there already.
    pub fn acknowledge_known(&mut self, edge: Actor, id: Ulid) {
        if !self.model.exists(id) {
            self.failure = Some(format!(
                "{id} is known to a leader, but never began to exist"
            ));
        }
        self.acknowledge(edge, id);
    }
}

/// The command of an entry, from the cache or from where it lies.
pub fn context_of(replica: &Replica, entry: &Committed) -> Result<Bytes, String> {
    if let Some(context) = &entry.context {
        return Ok(context.clone());
    }
    let read = entry
        .location
        .and_then(|at| replica.disk.read(entry.index, at));
    let stored = read.ok_or_else(|| {
        format!(
            "entry {} is neither cached nor where it should lie",
            entry.index
        )
    })?;
    Ok(stored.context)
}

/// The vote that a message gives: (term, candidate). Pre-votes promise nothing.
fn vote_in(message: &Message) -> Option<(u64, u64)> {
    use MessageType::{MsgRequestVote, MsgRequestVoteResponse};
    match message.get_msg_type() {
        MsgRequestVote => Some((message.term, message.from)),
        MsgRequestVoteResponse if !message.reject => Some((message.term, message.to)),
        _ => None,
    }
}
