//! What clients ask of the shards that this node leads: append, lease, settle, look.

use std::collections::BTreeMap;
use std::time::Instant;

use proto::v1::lease_request::What as LeaseRequest;

use super::StateThread;
use crate::decide::{Leader, Out, Turn};
use crate::event::{AppendCall, LeaseCall, Question, SettleCall, StreamId};
use crate::runtime::questions;
use crate::state::GroupState;

impl StateThread {
    pub(super) fn appends(&mut self, calls: Vec<AppendCall>) {
        let now = Instant::now();
        let mut out: BTreeMap<u32, Out> = BTreeMap::new();
        for call in calls {
            let group = call.shard + 1;
            if call.shard >= self.shard_count {
                let text = format!("shard {} does not exist on this cluster", call.shard);
                call.reply
                    .send_with(proto::v1::AppendOutcome::Invalid, String::new(), text);
                continue;
            }
            let shard = self.shards.get_mut(&group);
            let led = shard.and_then(|shard| Some((shard.leader.as_mut()?, &mut shard.rows)));
            let Some((leader, rows)) = led else {
                let address = self.directory.leader_address(group);
                call.reply
                    .send_with(proto::v1::AppendOutcome::NotLeader, address, String::new());
                continue;
            };
            let full = self.directory.majority_full(group);
            let out = out.entry(group).or_default();
            let mut turn = Turn {
                rows,
                streams: &mut self.streams,
                bodies: &mut self.bodies,
                now,
                out,
            };
            leader.append(call.what, call.reply, full, &mut turn);
        }
        for (group, out) in out {
            self.send(group, out);
        }
    }

    pub(super) fn settles(&mut self, calls: Vec<SettleCall>) {
        for call in calls {
            let group = call.shard + 1;
            let leads = self.shards.get(&group).is_some_and(|s| s.leader.is_some());
            if !leads {
                let address = self.directory.leader_address(group);
                call.reply
                    .send(proto::v1::SettleOutcome::NotLeader, address);
                continue;
            }
            self.with_leader(group, |leader, turn| leader.settle(call, turn));
        }
    }

    pub(super) fn lease(&mut self, id: StreamId, call: LeaseCall) {
        let request = match call {
            LeaseCall::Connected { hello, to } => return self.streams.connected(id, &hello, to),
            LeaseCall::Disconnected => {
                for (shard, session) in self.streams.disconnected(id) {
                    self.with_leader(shard + 1, |leader, _| leader.detached(session));
                }
                return;
            }
            LeaseCall::Request(request, _permit) => request,
        };
        let Some(what) = request.what else { return };
        match &what {
            LeaseRequest::Credit(credit) => {
                if self.streams.credit(id, credit) {
                    let classes = self
                        .streams
                        .get(id)
                        .map(|s| s.classes.clone())
                        .unwrap_or_default();
                    self.with_sessions(id, |leader, session, _| leader.classes(session, &classes));
                }
            }
            LeaseRequest::Window(w) => {
                let destination = mail::Destination::from_canonical(&w.destination);
                self.streams.window(id, &destination, w.items);
                self.with_sessions(id, |leader, session, _| {
                    leader.window(session, &destination, w.items)
                });
            }
            LeaseRequest::Busy(busy) => {
                let destination = mail::Destination::from_canonical(&busy.destination);
                self.with_sessions(id, |leader, session, now| {
                    leader.busy(session, &destination, busy.for_ms, now)
                });
            }
            LeaseRequest::Open(v) => self.lease_of(id, v.shard, what),
            LeaseRequest::Reattach(v) => self.lease_of(id, v.shard, what),
            LeaseRequest::Keepalive(v) => self.lease_of(id, v.shard, what),
            LeaseRequest::Extend(v) => self.lease_of(id, v.shard, what),
            LeaseRequest::Hello(_) => {}
        }
    }

    pub(super) fn with_sessions(
        &mut self,
        id: StreamId,
        mut f: impl FnMut(&mut Leader, queue::LeaseSessionId, Instant),
    ) {
        let sessions = self
            .streams
            .get(id)
            .map(|s| s.sessions.clone())
            .unwrap_or_default();
        for (shard, session) in sessions {
            self.with_leader(shard + 1, |leader, turn| f(leader, session, turn.now));
        }
    }

    pub(super) fn lease_of(&mut self, id: StreamId, shard: u32, what: LeaseRequest) {
        let group = shard.saturating_add(1);
        if self.shards.get(&group).is_none_or(|s| s.leader.is_none()) {
            let leader_address = self.directory.leader_address(group);
            if let Some(stream) = self.streams.get(id) {
                let not_leader = proto::v1::NotLeader { leader_address };
                stream.send(shard, proto::v1::lease_event::What::NotLeader(not_leader));
            }
            return;
        }
        self.with_leader(group, |leader, turn| leader.lease_request(id, what, turn));
    }

    pub(super) fn ask(&mut self, question: Question) {
        let group = question.shard().saturating_add(1);
        let address = self.directory.leader_address(group);
        let shard = self.shards.get_mut(&group);
        let led =
            shard.and_then(|s| Some((s.leader.as_mut().filter(|l| l.is_ready())?, &mut s.rows)));
        let Some((leader, rows)) = led else {
            return question.not_leader(address);
        };
        match question {
            Question::Act(request, reply) => {
                self.with_leader(group, |leader, turn| leader.act(&request, reply, turn));
            }
            other => {
                let time = leader.time(Instant::now());
                questions::answer(other, rows, time);
            }
        }
    }

    /// One turn of a shard's leader, when there is one, and what it wants done.
    pub(super) fn with_leader(
        &mut self,
        group: u32,
        f: impl FnOnce(&mut Leader, &mut Turn<'_, GroupState>),
    ) {
        let Some(shard) = self.shards.get_mut(&group) else {
            return;
        };
        let Some(leader) = &mut shard.leader else {
            return;
        };
        let mut out = Out::default();
        let mut turn = Turn {
            rows: &mut shard.rows,
            streams: &mut self.streams,
            bodies: &mut self.bodies,
            now: Instant::now(),
            out: &mut out,
        };
        f(leader, &mut turn);
        self.send(group, out);
    }
}
