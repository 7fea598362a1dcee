//! What a leader answers, much reduced: which appends are known, what a settle comes to. The real decisions are spool's;
//! here they only have to keep the same rules. `lead` has what it does by itself.

use std::time::{Duration, Instant};

use bytes::Bytes;
use mail::Ulid;
use queue::version::NEWEST;
use queue::{
    Append, Command, ExpressGrant, Facts, ItemId, LeaseSessionId, OpenSession, Report, Rows,
    SettleItem, Timestamp, Token, Verdict,
};
use spool::decide::ClusterClock;
use spool::node::{Ack, Input, Proposal, Role};

use crate::sim::churn::slot_of;
use crate::sim::message::{chunk, facts, result, whole};
use crate::sim::net::{Actor, Ask, Packet, Tell};
use crate::sim::replica::{Lead, Pending};
use crate::sim::world::{STEP_MS, World};

/// A grant is asked about after this time, ms.
pub const DEADLINE_MS: u64 = 10 * 60 * 1000;
/// A ULID this far from cluster time, and unknown, is refused: as a real leader does.
const STALE_MS: u64 = 15 * 60 * 1000;

/// The node's name carries its number.
fn delivery_of(name: &str) -> Option<usize> {
    name.strip_prefix("delivery-")?.parse().ok()
}

impl World {
    pub fn begin_to_lead(&mut self, k: usize, noop: u64) {
        let now = self.now;
        let instant = self.instant(k);
        let replica = &mut self.replicas[k];
        let clock = replica.clock(now);
        let previous = replica.rows.shard().time;
        let others = replica.other_walls(now);
        let (time, _) = ClusterClock::elected(previous, replica.wall(now), &others, instant);
        // Timers start anew: late is safe, early is not.
        let sessions = replica.rows.sessions().range(None, usize::MAX);
        replica.lead = Some(Lead {
            noop,
            time,
            heard: sessions.into_iter().map(|(id, _)| (id, clock)).collect(),
            keepalives: Default::default(),
            credit: Default::default(),
            granting: Default::default(),
            expiring: Default::default(),
            appending: Default::default(),
            timing: Default::default(),
            expiring_uploads: false,
            next_upkeep: now + 40,
            digest_from: Vec::new(),
        });
    }

    /// The leader that has applied its own first entry.
    pub fn leading(&self, k: usize) -> bool {
        let replica = &self.replicas[k];
        let leads = replica
            .group
            .as_ref()
            .is_some_and(|group| group.role() == Role::Leader);
        leads
            && replica
                .lead
                .as_ref()
                .is_some_and(|lead| replica.applied >= lead.noop)
    }

    /// A replica's monotonic clock.
    fn instant(&self, k: usize) -> Instant {
        self.origin + Duration::from_millis(self.replicas[k].clock(self.now) * STEP_MS)
    }

    pub fn cluster_time(&mut self, k: usize) -> Timestamp {
        let instant = self.instant(k);
        match self.replicas[k].lead.as_mut() {
            Some(lead) => lead.time.now(instant),
            None => self.replicas[k].rows.shard().time,
        }
    }

    pub fn propose(&mut self, k: usize, command: Command, data: Bytes, ack: Ack, pending: Pending) {
        let facts = Facts {
            time: self.cluster_time(k),
            command,
        };
        let number = self.commands.len() as u64;
        self.commands.push(facts);
        let replica = &mut self.replicas[k];
        let ticket = replica.next_ticket;
        replica.next_ticket += 1;
        let urgent = data.is_empty();
        let context = Bytes::copy_from_slice(&number.to_be_bytes());
        replica.tickets.insert(ticket, (context.clone(), pending));
        let proposal = Proposal {
            ticket,
            context,
            data,
            ack,
            urgent,
        };
        self.proposals[k].push(proposal);
    }

    /// Hands the proposals of this step over in one batch.
    pub fn flush_proposals(&mut self, k: usize) {
        let batch = std::mem::take(&mut self.proposals[k]);
        if let Some(group) = self.replicas[k].group.as_mut()
            && !batch.is_empty()
        {
            group.handle(Input::Propose(batch));
        }
    }

    pub fn ask(&mut self, from: Actor, k: usize, ask: Ask) {
        let Some(group) = self.replicas[k].group.as_ref() else {
            if self.replicas[k].hosted.is_none() {
                let leader = self.told_leader();
                self.redirect(from, &ask, leader);
            }
            return;
        };
        if !self.leading(k) {
            let leader = group.leader().map(slot_of).filter(|&leader| leader != k);
            return self.redirect(from, &ask, leader);
        }
        match ask {
            Ask::Append { id, chunks } => self.ask_append(from, k, id, chunks),
            Ask::Chunk { id, seq } => self.ask_chunk(from, k, id, seq),
            Ask::Open {
                incarnation,
                boot,
                sent,
                past_dot,
                handed_back,
            } => {
                let Actor::Delivery(number) = from else {
                    return;
                };
                // Under the first version requests have no order: one that came late would end the lease session of a
                // later one, and so it would where that one was opened under the first version.
                if self.replicas[k].rows.shard().version_in_force() < NEWEST {
                    return;
                }
                let retry = Timestamp(self.cluster_time(k).0 + 2000);
                let open = Command::OpenSession(OpenSession {
                    node: format!("delivery-{number}").into(),
                    incarnation: u128::from(incarnation).to_be_bytes(),
                    sequence: sent,
                    boot_id: boot.to_string().into(),
                    past_dot,
                    handed_back,
                    retry,
                });
                self.propose(
                    k,
                    open,
                    Bytes::new(),
                    Ack::Apply,
                    Pending::Open {
                        node: from,
                        incarnation,
                        sent,
                    },
                );
            }
            Ask::Keepalive {
                session,
                sent,
                holding,
                credit,
            } => {
                self.ask_keepalive(from, k, session, sent, &holding, credit);
            }
            Ask::Settle {
                item,
                token,
                session,
                verdict,
            } => {
                self.ask_settle(from, k, item, token, session, verdict);
            }
        }
    }

    /// The leader of whom a node without a replica knows: nodes tell one another what they lead. While things go wrong it knows
    /// of none, which is the harder case; afterwards of the one that leads.
    fn told_leader(&self) -> Option<usize> {
        let term = |&k: &usize| Some(self.replicas[k].group.as_ref()?.status().term);
        let leaders = (0..self.replicas.len()).filter(|&k| self.calm && self.leading(k));
        leaders.max_by_key(term)
    }

    fn redirect(&mut self, from: Actor, ask: &Ask, leader: Option<usize>) {
        let tell = match *ask {
            Ask::Append { id, .. } | Ask::Chunk { id, .. } => Tell::Again { id, leader },
            _ => Tell::NotLeader { leader },
        };
        self.tell(from, tell);
    }

    fn ask_append(&mut self, edge: Actor, k: usize, id: Ulid, chunks: u32) {
        let rows = &mut self.replicas[k].rows;
        let known = rows.messages().get(&id).is_some() || rows.finished().get(&id).is_some();
        let upload = rows
            .uploads()
            .get(&id)
            .map_or(0, |upload| upload.chunks.len());
        if known {
            return self.acknowledge_known(edge, id);
        }
        if self.majority_full() {
            return self.tell(edge, Tell::Again { id, leader: None });
        }
        let time = self.cluster_time(k);
        let old = id.timestamp_ms().abs_diff(time.0) > STALE_MS;
        if upload != chunks as usize || (chunks == 0 && old) {
            return self.tell(edge, Tell::Stale { id });
        }
        let Some(lead) = self.replicas[k].lead.as_mut() else {
            return;
        };
        if !lead.appending.insert(id) {
            return self.tell(edge, Tell::Again { id, leader: None });
        }
        let body = whole(id, chunks);
        let append = Command::Append(Box::new(Append {
            facts: facts(id, "sender@example.org", &body, chunks),
            expires: time.plus(self.knobs.expiry_ms),
            notice: None,
            grant_to: self.express(k, time),
        }));
        // Whether the chunks are still there, only apply can tell.
        let (data, ack) = match chunks {
            0 => (body, Ack::Commit),
            _ => (Bytes::new(), Ack::Apply),
        };
        self.propose(k, append, data, ack, Pending::Append { edge, id });
    }

    /// Room at a delivery node: the message is granted in the entry that creates it.
    fn express(&mut self, k: usize, time: Timestamp) -> Vec<ExpressGrant> {
        if !self.rng.one_in(2) {
            return Vec::new();
        }
        let lead = self.replicas[k].lead.as_mut();
        let room = lead.and_then(|lead| lead.credit.iter_mut().find(|(_, credit)| **credit > 0));
        room.map(|(&session, credit)| {
            *credit -= 1;
            ExpressGrant {
                number: 0,
                session,
                deadline: time.plus(DEADLINE_MS),
            }
        })
        .into_iter()
        .collect()
    }

    fn ask_chunk(&mut self, edge: Actor, k: usize, id: Ulid, seq: u32) {
        let rows = &mut self.replicas[k].rows;
        let known = rows.messages().get(&id).is_some() || rows.finished().get(&id).is_some();
        if known {
            return self.tell(edge, Tell::Stored { id, seq });
        }
        if self.majority_full() {
            return self.tell(edge, Tell::Again { id, leader: None });
        }
        let data = chunk(id, seq);
        let size = data.len() as u32;
        let command = Command::BodyChunk {
            message: id,
            seq,
            size,
        };
        self.propose(
            k,
            command,
            data,
            Ack::Apply,
            Pending::Chunk { edge, id, seq },
        );
    }

    fn ask_keepalive(
        &mut self,
        node: Actor,
        k: usize,
        session: LeaseSessionId,
        sent: u64,
        holding: &[(ItemId, Token)],
        credit: usize,
    ) {
        let replica = &mut self.replicas[k];
        if replica.rows.sessions().get(&session).is_none() {
            return self.tell(node, Tell::Gone { session });
        }
        let Some(lead) = replica.lead.as_mut() else {
            return;
        };
        lead.keepalives.insert(session, (node, sent));
        lead.credit.insert(session, credit);
        // Reopening in small: whatever the node does not name is sent again.
        let in_flight = replica.rows.inflight().range(None, usize::MAX);
        for ((of, item), row) in in_flight {
            if of == session && !holding.contains(&(item, row.token)) {
                self.tell(
                    node,
                    Tell::Grant {
                        session,
                        item,
                        token: row.token,
                    },
                );
            }
        }
    }

    fn ask_settle(
        &mut self,
        node: Actor,
        k: usize,
        item: ItemId,
        token: Token,
        session: LeaseSessionId,
        verdict: Verdict,
    ) {
        let now = self.cluster_time(k);
        let (mut reports, mut data) = (Vec::new(), Bytes::new());
        if verdict == Verdict::Failed {
            (reports, data) = self.report(k, item, now);
        }
        let retry =
            (verdict == Verdict::Deferred).then(|| Timestamp(now.0 + 500 + self.rng.below(8000)));
        let settle = SettleItem {
            item,
            token,
            session,
            release: false,
            results: vec![result(verdict)],
            retry,
            give_up: false,
            reports,
        };
        let pending = Pending::Settle { node, item, token };
        self.propose(k, Command::Settle(vec![settle]), data, Ack::Apply, pending);
    }

    /// What the sender is told of a failure.
    pub fn report(&mut self, k: usize, item: ItemId, now: Timestamp) -> (Vec<Report>, Bytes) {
        let about = self.replicas[k].rows.messages().get(&item.message);
        if about.is_none_or(|row| row.is_report) {
            return (Vec::new(), Bytes::new());
        }
        let id = self.new_id();
        let data = whole(id, 0);
        let report = Report {
            facts: facts(id, "", &data, 0),
            offset: 0,
            expires: now.plus(self.knobs.expiry_ms),
        };
        (vec![report], data)
    }

    pub fn delivery_of(&mut self, k: usize, session: LeaseSessionId) -> Option<Actor> {
        let row = self.replicas[k].rows.sessions().get(&session)?;
        delivery_of(&row.node).map(Actor::Delivery)
    }

    pub fn tell(&mut self, to: Actor, tell: Tell) {
        self.net
            .send(self.now, &mut self.rng, Packet::Tell { to, tell });
    }
}
