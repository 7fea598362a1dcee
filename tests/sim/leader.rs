//! What a leader decides, much reduced: which appends are known, who gets what, when a lease session ends. The real
//! decisions are spool's; here they only have to keep the rules of queue.md 5.3.

use bytes::Bytes;
use mail::{Destination, Digest, Ulid};
use queue::{
    Append, Command, Facts, GrantBatch, ItemFacts, ItemId, LeaseSessionId, MessageFacts,
    OpenSession, Origin, RecipientResult, Report, Rows, SettleItem, Timestamp, Token, Verdict,
    Window,
};
use spool::node::{Ack, Input, Proposal, Role};

use crate::net::{Actor, Ask, Packet, Tell};
use crate::replica::{Lead, Pending};
use crate::world::World;

/// Steps after the last applied keepalive at which the leader ends a lease session. A node fences itself at
/// [`crate::delivery::FENCE_STEPS`].
const SESSION_STEPS: u64 = 300;
/// Steps between windows.
const WINDOW_STEPS: u64 = 5;
const CREDIT: usize = 4;
const DEADLINE_MS: u64 = 10 * 60 * 1000;
const EXPIRY_MS: u64 = 5 * 24 * 3600 * 1000;

/// The node's name carries its number.
fn delivery_of(name: &str) -> Option<usize> {
    name.strip_prefix("delivery-")?.parse().ok()
}

pub fn facts(id: Ulid, return_path: &str, body: &[u8]) -> MessageFacts {
    let item = ItemFacts {
        destination: Destination::from_canonical("example.net"),
        recipients: vec!["user@example.net".into()],
    };
    MessageFacts {
        message: id,
        tenant: "default".into(),
        class: "default".into(),
        priority: 0,
        return_path: return_path.into(),
        items: vec![item],
        size: body.len() as u64,
        digest: Digest::of(body),
        header_size: 0,
        eight_bit: false,
        smtputf8: false,
        chunks: 0,
        origin: Origin::default().into(),
        trace_context: "".into(),
        arrived: Timestamp(0),
    }
}

/// Every message has a body of its own.
pub fn body(id: Ulid) -> Bytes {
    let octets = id.to_bytes();
    let length = 16 + usize::from(octets[15]);
    octets.iter().copied().cycle().take(length).collect()
}

pub fn result(verdict: Verdict) -> RecipientResult {
    RecipientResult {
        recipient: 0,
        verdict,
        code: match verdict {
            Verdict::Delivered => 250,
            Verdict::Deferred => 451,
            Verdict::Failed => 550,
        },
        enhanced: "".into(),
        text: "".into(),
        remote_host: "mx.example.net".into(),
        remote_address: "".into(),
        tls: "".into(),
        connect_ms: 0,
        total_ms: 0,
        dkim_selectors: Vec::new(),
        never_reached: false,
        ambiguous: false,
    }
}

impl World {
    pub fn begin_to_lead(&mut self, k: usize, noop: u64) {
        let now = self.now;
        let replica = &mut self.replicas[k];
        let clock = replica.clock(now);
        let wall = replica.wall(now).max(replica.rows.shard().time.0);
        // Timers start anew: late is safe, early is not.
        let sessions = replica.rows.sessions().range(None, usize::MAX);
        replica.lead = Some(Lead {
            noop,
            base: (wall, clock),
            time: wall,
            heard: sessions.into_iter().map(|(id, _)| (id, clock)).collect(),
            keepalives: Default::default(),
            credit: Default::default(),
            granting: Default::default(),
            expiring: Default::default(),
            appending: Default::default(),
        });
    }

    /// The leader that has applied its own first entry.
    fn leading(&self, k: usize) -> bool {
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

    fn cluster_time(&mut self, k: usize) -> Timestamp {
        let clock = self.replicas[k].clock(self.now);
        let state = self.replicas[k].rows.shard().time.0;
        let Some(lead) = self.replicas[k].lead.as_mut() else {
            return Timestamp(state);
        };
        let elapsed = (clock - lead.base.1) * crate::world::STEP_MS;
        lead.time = lead.time.max(lead.base.0 + elapsed).max(state);
        Timestamp(lead.time)
    }

    fn propose(&mut self, k: usize, command: Command, data: Bytes, ack: Ack, pending: Pending) {
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
            return;
        };
        if !self.leading(k) {
            let leader = group
                .leader()
                .map(|peer| peer as usize - 1)
                .filter(|&leader| leader != k);
            let tell = match ask {
                Ask::Append { id } => Tell::Again { id, leader },
                _ => Tell::NotLeader { leader },
            };
            return self.tell(from, tell);
        }
        match ask {
            Ask::Append { id } => self.ask_append(from, k, id),
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

    fn ask_append(&mut self, edge: Actor, k: usize, id: Ulid) {
        let rows = &mut self.replicas[k].rows;
        let known = rows.messages().get(&id).is_some() || rows.finished().get(&id).is_some();
        if known {
            return self.acknowledge_known(edge, id);
        }
        let Some(lead) = self.replicas[k].lead.as_mut() else {
            return;
        };
        if !lead.appending.insert(id) {
            return self.tell(edge, Tell::Again { id, leader: None });
        }
        let body = body(id);
        let expires = Timestamp(self.cluster_time(k).0 + EXPIRY_MS);
        let facts = facts(id, "sender@example.org", &body);
        let append = Command::Append(Box::new(Append {
            facts,
            expires,
            notice: None,
            grant_to: Vec::new(),
        }));
        self.propose(k, append, body, Ack::Commit, Pending::Append { edge, id });
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
        let mut reports = Vec::new();
        let mut data = Bytes::new();
        if verdict == Verdict::Failed
            && self.replicas[k]
                .rows
                .messages()
                .get(&item.message)
                .is_some_and(|row| !row.is_report)
        {
            let id = self.new_id();
            data = body(id);
            let expires = Timestamp(now.0 + EXPIRY_MS);
            reports.push(Report {
                facts: facts(id, "", &data),
                offset: 0,
                expires,
            });
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

    /// What a leader does by itself.
    pub fn lead(&mut self, k: usize) {
        if !self.leading(k) || self.replicas[k].next_window > self.now {
            return;
        }
        self.replicas[k].next_window = self.now + WINDOW_STEPS;
        let now = self.cluster_time(k);
        self.expire_sessions(k, now);
        let grants = self.choose_grants(k, now);
        let Some(lead) = self.replicas[k].lead.as_mut() else {
            return;
        };
        let keepalives: Vec<_> = std::mem::take(&mut lead.keepalives)
            .into_iter()
            .map(|(id, (node, sent))| (id, node, sent))
            .collect();
        if keepalives.is_empty() && grants.is_empty() {
            return;
        }
        let granted: Vec<ItemId> = grants
            .iter()
            .flat_map(|batch| batch.items.iter().map(|item| item.0))
            .collect();
        lead.granting.extend(granted.iter().copied());
        let window = Command::Window(Window {
            keepalives: keepalives.iter().map(|keepalive| keepalive.0).collect(),
            grants,
            extends: Vec::new(),
        });
        self.propose(
            k,
            window,
            Bytes::new(),
            Ack::Apply,
            Pending::Window {
                keepalives,
                grants: granted,
            },
        );
    }

    fn expire_sessions(&mut self, k: usize, now: Timestamp) {
        let clock = self.replicas[k].clock(self.now);
        let replica = &mut self.replicas[k];
        let sessions = replica.rows.sessions().range(None, usize::MAX);
        let Some(lead) = replica.lead.as_mut() else {
            return;
        };
        let mut expired = Vec::new();
        for (session, _) in sessions {
            let heard = *lead.heard.entry(session).or_insert(clock);
            if clock - heard > SESSION_STEPS && lead.expiring.insert(session) {
                expired.push(session);
            }
        }
        for session in expired {
            let retry = Timestamp(now.0 + 2000);
            let expire = Command::ExpireSession { session, retry };
            self.propose(
                k,
                expire,
                Bytes::new(),
                Ack::Apply,
                Pending::Expire { session },
            );
        }
    }

    fn choose_grants(&mut self, k: usize, now: Timestamp) -> Vec<GrantBatch> {
        let replica = &mut self.replicas[k];
        let due = replica.rows.due().range(None, 64);
        let sessions = replica.rows.sessions().range(None, usize::MAX);
        let Some(lead) = replica.lead.as_mut() else {
            return Vec::new();
        };
        let deadline = Timestamp(now.0 + DEADLINE_MS);
        let mut ready = due
            .into_iter()
            .map(|(key, _)| key)
            .filter(|key| key.due <= now)
            .map(|key| key.item);
        let mut batches = Vec::new();
        for (session, _) in sessions {
            let credit = lead.credit.entry(session).or_insert(CREDIT);
            let granting = &lead.granting;
            let items: Vec<_> = ready
                .by_ref()
                .filter(|item| !granting.contains(item))
                .take(*credit)
                .map(|item| (item, deadline))
                .collect();
            *credit -= items.len();
            if !items.is_empty() {
                batches.push(GrantBatch { session, items });
            }
        }
        batches
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
