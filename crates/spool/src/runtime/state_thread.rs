//! The state thread: applies committed entries, decides for the shards that this node leads, flushes the state.
//!
//! Deciding and applying share a thread on purpose: a decision reads applied rows, and so needs no lock and sees no
//! half of an entry. Raft and the disk have threads of their own and never wait for this one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use proto::v1::lease_request::What as LeaseRequest;
use queue::Effect;

use super::control::Control;
use super::recover::State;
use crate::config::{Config, Error};
use crate::decide::{BodyCache, Leader, LeaderConfig, Out, Policy, ShardRows, Streams};
use crate::directory::Directory;
use crate::event::{
    AppendCall, LeaseCall, LogEvent, Mailboxes, Question, RaftEvent, SettleCall, StateEvent,
    StreamId, Ticket,
};
use crate::log::EntryKind;
use crate::log::LogReader;
use crate::node::{Committed, Membership};
use crate::state::{Flushed, GroupState, Store, StoreError};

/// Events taken from the mailbox before leaders run: what one burst brings shares entries.
const BURST: usize = 4096;

/// The state is flushed this often, or when it holds [`FLUSH_BYTES`]: what a restart replays at most, and how long a
/// message must live before its rows reach the metadata store.
const FLUSH_EVERY: Duration = Duration::from_secs(2);

/// See [`FLUSH_EVERY`]; octets, estimated.
const FLUSH_BYTES: usize = 64 << 20;

/// Octets of bodies of young messages, for handouts and reports. They are the very octets that the Raft entry cache
/// holds, as far as it still does.
const BODY_CACHE_BYTES: usize = 48 << 20;

/// How often cluster time is published to clients.
const PUBLISH_EVERY: Duration = Duration::from_secs(5);

/// The longest sleep without events.
const IDLE: Duration = Duration::from_millis(500);

/// One shard on this node.
pub struct Shard {
    pub rows: GroupState,
    pub leader: Option<Leader>,
    /// Tickets whose entries are committed and not yet applied, by index.
    pub tickets: BTreeMap<u64, Ticket>,
    /// Changes of membership that came with an entry not yet applied.
    pub conf: BTreeMap<u64, Membership>,
}

impl Shard {
    /// A shard as its rows were recovered.
    pub fn new(rows: GroupState) -> Shard {
        Shard {
            rows,
            leader: None,
            tickets: BTreeMap::new(),
            conf: BTreeMap::new(),
        }
    }
}

/// What the state thread holds.
pub struct StateThread {
    pub store: Store,
    pub shards: BTreeMap<u32, Shard>,
    pub control: Control,
    pub shard_count: u32,
    pub streams: Streams,
    pub bodies: BodyCache,
    pub mail: Receiver<StateEvent>,
    pub to: Mailboxes,
    pub log: Sender<LogEvent>,
    pub reader: LogReader,
    pub headers: Sender<super::questions::HeaderRead>,
    pub directory: Directory,
    pub health: super::Health,
    pub policy: Policy,
    pub seed: u64,
    pub tickets: Arc<AtomicU64>,
    pub flushing: bool,
    pub next_flush: Instant,
    pub next_publish: Instant,
}

impl StateThread {
    /// A state thread over what was recovered.
    ///
    /// # Errors
    /// [`Error::Recovered`]: the control group's row is damaged.
    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of a node meet here, once"
    )]
    pub fn new(
        state: State,
        config: &Config,
        mail: Receiver<StateEvent>,
        to: Mailboxes,
        log: Sender<LogEvent>,
        reader: LogReader,
        headers: Sender<super::questions::HeaderRead>,
        directory: Directory,
        health: super::Health,
        introduced: super::Introduced,
    ) -> Result<StateThread, Error> {
        let tickets = Arc::new(AtomicU64::new(1));
        let cluster = queue::control::Cluster {
            id: config.cluster_id.0,
            shards: config.shards,
            replication_factor: config.replication_factor,
        };
        let initial = config.initial_cluster.keys().copied().collect();
        let control = Control::new(
            state.control,
            config.node,
            cluster,
            initial,
            introduced,
            tickets.clone(),
        )
        .map_err(|e| Error::Recovered(format!("the control group's state is damaged: {e}")))?;
        control.publish(&directory);
        let now = Instant::now();
        Ok(StateThread {
            store: state.store,
            shards: state
                .shards
                .into_iter()
                .map(|(id, rows)| (id, Shard::new(rows)))
                .collect(),
            control,
            shard_count: config.shards,
            streams: Streams::default(),
            bodies: BodyCache::new(BODY_CACHE_BYTES),
            mail,
            to,
            log,
            reader,
            headers,
            directory,
            health,
            policy: Policy {
                retry: config.retry,
                reporting_mta: config.hostname.as_str().into(),
            },
            seed: rand::random(),
            tickets,
            flushing: false,
            next_flush: now + FLUSH_EVERY,
            next_publish: now,
        })
    }

    /// Runs until told to stop.
    pub fn run(mut self) {
        loop {
            let now = Instant::now();
            let wake = self.next_wake(now);
            let mut more = match self.mail.recv_timeout(wake.saturating_duration_since(now)) {
                Ok(event) => self.take(event),
                Err(RecvTimeoutError::Timeout) => true,
                Err(RecvTimeoutError::Disconnected) => false,
            };
            for _ in 0..BURST {
                let Ok(event) = self.mail.try_recv() else {
                    break;
                };
                more &= self.take(event);
            }
            if !more {
                return self.finish();
            }
            self.run_leaders();
            self.flush_if_due();
            if let Some(error) = self.shards.values().find_map(|s| s.rows.error()) {
                self.health
                    .stop_for_good(&format!("the metadata store failed: {error}"));
                let _ = self.to.raft.send(RaftEvent::Stop);
                return;
            }
        }
    }

    fn next_wake(&mut self, now: Instant) -> Instant {
        let mut wake = now + IDLE;
        if !self.flushing {
            wake = wake.min(self.next_flush);
        }
        for shard in self.shards.values_mut() {
            if let Some(leader) = &mut shard.leader {
                wake = wake.min(leader.next_wake(&self.streams, now));
            }
        }
        wake
    }

    /// Takes an event; `false` ends the thread.
    fn take(&mut self, event: StateEvent) -> bool {
        match event {
            StateEvent::Committed {
                group,
                tickets,
                entries,
            } => self.committed(group, tickets, entries),
            StateEvent::Failed { group, ticket, why } => {
                let address = self.directory.leader_address(group);
                if group == crate::CONTROL_GROUP {
                    self.control.failed(ticket);
                } else if let Some(leader) =
                    self.shards.get_mut(&group).and_then(|s| s.leader.as_mut())
                {
                    leader.failed(ticket, why, &address);
                }
            }
            StateEvent::Role {
                group,
                leader,
                term,
            } => self.role(group, leader, term),
            StateEvent::ConfChanged {
                group,
                index,
                members,
            } => {
                if let Some(shard) = self.shards.get_mut(&group) {
                    shard.conf.insert(index, members);
                }
            }
            StateEvent::Appends(calls) => self.appends(calls),
            StateEvent::Settles(calls) => self.settles(calls),
            StateEvent::Lease(stream, call) => self.lease(stream, call),
            StateEvent::Ask(question) => self.ask(question),
            StateEvent::HeaderRead(pending, header) => {
                let group = pending.group(self.shard_count);
                self.with_leader(group, |leader, rows, _, _, now, out| {
                    leader.header_read(pending, &header, rows, now, out);
                });
            }
            StateEvent::Flushed(result) => return self.flushed(result),
            StateEvent::Stop => return false,
        }
        true
    }

    /// Applies entries in order, and tells whoever waited for them.
    fn committed(&mut self, group: u32, tickets: Vec<(u64, Ticket)>, entries: Vec<Committed>) {
        let Some(last) = entries.last().map(|e| e.index) else {
            if let Some(shard) = self.shards.get_mut(&group) {
                shard.tickets.extend(tickets);
            } else {
                self.control.tickets(tickets);
            }
            return;
        };
        if group == crate::CONTROL_GROUP {
            self.control.tickets(tickets);
            for entry in entries {
                let context = self.context(group, &entry);
                if self.health.stopped().is_some() {
                    return;
                }
                self.control
                    .apply(&entry, context, &self.directory, &self.health);
            }
        } else {
            let Some(mut shard) = self.shards.remove(&group) else {
                return;
            };
            shard.tickets.extend(tickets);
            for entry in entries {
                self.apply(group, &mut shard, &entry);
            }
            shard.tickets = shard.tickets.split_off(&(last + 1));
            self.shards.insert(group, shard);
        }
        let _ = self.to.raft.send(RaftEvent::Applied { group, index: last });
    }

    fn apply(&mut self, group: u32, shard: &mut Shard, entry: &Committed) {
        // An entry that could not be read or understood stopped this node: what follows it must not be applied, and
        // nothing is flushed any more.
        if entry.index <= shard.rows.applied().0 || self.health.stopped().is_some() {
            return;
        }
        let now = Instant::now();
        let mut effects = Vec::new();
        if entry.kind == EntryKind::Normal {
            let context = self.context(group, entry);
            if self.health.stopped().is_some() {
                return;
            }
            if !context.is_empty() {
                match crate::wire::log::decode(&context) {
                    Ok(facts) => effects = queue::apply(&mut shard.rows, entry.index, &facts),
                    Err(error) => {
                        let text = format!(
                            "entry {} of group {group} cannot be understood: {error}. This replica stops; start it with \
                             the program version that the rest of the cluster runs",
                            entry.index
                        );
                        self.health.stop_for_good(&text);
                        let _ = self.to.raft.send(RaftEvent::Stop);
                        return;
                    }
                }
            }
        }
        account(&mut shard.rows, entry, &effects);
        shard.rows.set_applied(entry.index, entry.term);
        if let Some(members) = shard.conf.remove(&entry.index) {
            shard
                .rows
                .set_conf_state(crate::wire::members::to_bytes(&members));
        }
        let ticket = shard.tickets.remove(&entry.index);
        let Some(leader) = &mut shard.leader else {
            return;
        };
        if entry.term == leader.term && !leader.is_ready() {
            leader.begin(&mut shard.rows, &mut self.streams, now);
        }
        leader.applied(
            ticket,
            &effects,
            &mut shard.rows,
            &mut self.streams,
            &mut self.bodies,
            now,
        );
    }

    /// The command of an entry: as handed over, or read from the log when the cache has let it go (after a restart).
    fn context(&self, group: u32, entry: &Committed) -> Bytes {
        if let Some(context) = &entry.context {
            return context.clone();
        }
        let read = match entry.location {
            Some(location) => self
                .reader
                .read_entry(location, group, entry.index)
                .map_err(|e| e.to_string()),
            None => Err("its place in the log is not known".to_owned()),
        };
        match read {
            Ok(entry) => entry.context,
            Err(error) => {
                let text = format!(
                    "entry {} of group {group} cannot be read back: {error}",
                    entry.index
                );
                self.health.stop_for_good(&text);
                let _ = self.to.raft.send(RaftEvent::Stop);
                Bytes::new()
            }
        }
    }

    fn role(&mut self, group: u32, leads: bool, term: u64) {
        let now = Instant::now();
        let own_ms = wall_ms();
        let others = self.directory.walls(group, now);
        if group == crate::CONTROL_GROUP {
            return self.control.role(leads, term, own_ms);
        }
        let Some(shard) = self.shards.get_mut(&group) else {
            return;
        };
        if shard
            .leader
            .as_ref()
            .is_some_and(|l| leads && l.term == term)
        {
            return;
        }
        if let Some(former) = shard.leader.take() {
            let address = self.directory.leader_address(group);
            former.ended(&mut self.streams, &address);
            self.streams.leader_changed(group - 1);
            shard.tickets.clear();
        }
        if leads {
            tracing::info!(group, term, "leads");
            let config = LeaderConfig {
                group,
                term,
                policy: self.policy.clone(),
                seed: self.seed,
                tickets: self.tickets.clone(),
            };
            let mut leader = Leader::elected(config, &mut shard.rows, own_ms, &others, now);
            if shard.rows.applied().1 == term {
                leader.begin(&mut shard.rows, &mut self.streams, now);
            }
            shard.leader = Some(leader);
        }
    }

    fn appends(&mut self, calls: Vec<AppendCall>) {
        let now = Instant::now();
        let mut out: BTreeMap<u32, Out> = BTreeMap::new();
        for call in calls {
            let group = call.shard + 1;
            let Some(shard) = self.shards.get_mut(&group) else {
                let text = format!("shard {} does not exist on this cluster", call.shard);
                call.reply
                    .send_with(proto::v1::AppendOutcome::Invalid, String::new(), text);
                continue;
            };
            let Some(leader) = &mut shard.leader else {
                let address = self.directory.leader_address(group);
                call.reply
                    .send_with(proto::v1::AppendOutcome::NotLeader, address, String::new());
                continue;
            };
            let full = self.directory.majority_full(group);
            let out = out.entry(group).or_default();
            let parts = (&mut shard.rows, &mut self.streams, &mut self.bodies);
            leader.append(
                call.what, call.reply, full, parts.0, parts.1, parts.2, now, out,
            );
        }
        for (group, out) in out {
            self.send(group, out);
        }
    }

    fn settles(&mut self, calls: Vec<SettleCall>) {
        for call in calls {
            let group = call.shard + 1;
            let leads = self.shards.get(&group).is_some_and(|s| s.leader.is_some());
            if !leads {
                let address = self.directory.leader_address(group);
                call.reply
                    .send(proto::v1::SettleOutcome::NotLeader, address);
                continue;
            }
            self.with_leader(group, |leader, rows, _, bodies, now, out| {
                leader.settle(call, rows, bodies, now, out)
            });
        }
    }

    fn lease(&mut self, id: StreamId, call: LeaseCall) {
        let request = match call {
            LeaseCall::Connected { hello, to } => return self.streams.connected(id, &hello, to),
            LeaseCall::Disconnected => {
                for (shard, session) in self.streams.disconnected(id) {
                    self.with_leader(shard + 1, |leader, _, _, _, _, _| leader.detached(session));
                }
                return;
            }
            LeaseCall::Request(request) => request,
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

    fn with_sessions(
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
            self.with_leader(shard + 1, |leader, _, _, _, now, _| f(leader, session, now));
        }
    }

    fn lease_of(&mut self, id: StreamId, shard: u32, what: LeaseRequest) {
        let group = shard.saturating_add(1);
        if self.shards.get(&group).is_none_or(|s| s.leader.is_none()) {
            let leader_address = self.directory.leader_address(group);
            if let Some(stream) = self.streams.get(id) {
                let not_leader = proto::v1::NotLeader { leader_address };
                stream.send(shard, proto::v1::lease_event::What::NotLeader(not_leader));
            }
            return;
        }
        self.with_leader(group, |leader, rows, streams, bodies, now, out| {
            leader.lease_request(id, what, rows, streams, bodies, now, out);
        });
    }

    fn ask(&mut self, question: Question) {
        let group = question.shard().saturating_add(1);
        let address = self.directory.leader_address(group);
        let Some(shard) = self.shards.get_mut(&group) else {
            return;
        };
        let Some(leader) = shard.leader.as_mut().filter(|l| l.is_ready()) else {
            return question.not_leader(address);
        };
        let now = Instant::now();
        let mut out = Out::default();
        match question {
            Question::Act(request, reply) => leader.act(&request, reply, now, &mut out),
            other => {
                let time = leader.time(now);
                super::questions::answer(other, &mut shard.rows, time);
            }
        }
        self.send(group, out);
    }

    fn with_leader(
        &mut self,
        group: u32,
        f: impl FnOnce(&mut Leader, &mut GroupState, &mut Streams, &mut BodyCache, Instant, &mut Out),
    ) {
        let Some(shard) = self.shards.get_mut(&group) else {
            return;
        };
        let Some(leader) = &mut shard.leader else {
            return;
        };
        let mut out = Out::default();
        f(
            leader,
            &mut shard.rows,
            &mut self.streams,
            &mut self.bodies,
            Instant::now(),
            &mut out,
        );
        self.send(group, out);
    }

    fn run_leaders(&mut self) {
        let now = Instant::now();
        let mut outs = Vec::new();
        for (group, shard) in &mut self.shards {
            let Some(leader) = &mut shard.leader else {
                continue;
            };
            let mut out = Out::default();
            leader.run(
                &mut shard.rows,
                &mut self.streams,
                &mut self.bodies,
                now,
                &mut out,
            );
            outs.push((*group, out));
            if now >= self.next_publish {
                self.directory.set_cluster_time(leader.time(now).0);
            }
        }
        for (group, out) in outs {
            self.send(group, out);
        }
        let proposals = self.control.run(now);
        if !proposals.is_empty() {
            let group = crate::CONTROL_GROUP;
            let _ = self.to.raft.send(RaftEvent::Propose {
                group,
                proposals,
                replies: Vec::new(),
            });
        }
        if now >= self.next_publish {
            self.next_publish = now + PUBLISH_EVERY;
            self.directory.publish();
        }
    }

    fn send(&mut self, group: u32, out: Out) {
        if !out.proposals.is_empty() {
            let (proposals, replies) = (out.proposals, out.replies);
            let _ = self.to.raft.send(RaftEvent::Propose {
                group,
                proposals,
                replies,
            });
        }
        for (pending, pieces) in out.reads {
            let _ = self.headers.send((group, pending, pieces));
        }
    }

    fn flush_if_due(&mut self) {
        let now = Instant::now();
        let bytes: usize = self.shards.values().map(|s| s.rows.overlay_bytes()).sum();
        if self.flushing
            || self.health.stopped().is_some()
            || (now < self.next_flush && bytes < FLUSH_BYTES)
        {
            return;
        }
        self.next_flush = now + FLUSH_EVERY;
        let Some(flush) = self.freeze() else {
            // Nothing changed since, but a follower may have caught up: the log may end later by now.
            return self.tell_what_is_durable();
        };
        self.flushing = true;
        let state = self.to.state.clone();
        // One flush at a time; the thread lives as long as the flush.
        let helper = std::thread::Builder::new().name("flush".to_owned());
        let spawned = helper.spawn(move || {
            let _ = state.send(StateEvent::Flushed(flush.run()));
        });
        if let Err(error) = spawned {
            // The frozen rows went with it: recovery replays them.
            self.health
                .reopen(&format!("no thread for the flush of the metadata: {error}"));
            let _ = self.to.raft.send(RaftEvent::Stop);
        }
    }

    fn freeze(&mut self) -> Option<crate::state::Flush> {
        let shards = self.shards.values_mut().map(|s| &mut s.rows);
        self.store.freeze(shards.chain([self.control.rows()]))
    }

    /// What the log may let go, by the last flush that is durable.
    fn tell_what_is_durable(&self) {
        // First what lives, then what may be truncated: the log thread releases a segment by both, and what was
        // truncated by this flush must not meet what lived at the flush before.
        let live = self.store.segments_live();
        let live = live.into_iter().map(|(s, l)| (s, l.count)).collect();
        let _ = self.log.send(LogEvent::Live(live));
        for group in self.shards.keys().copied().chain([crate::CONTROL_GROUP]) {
            let applied = self.store.durable_applied(group);
            let _ = self.to.raft.send(RaftEvent::Durable { group, applied });
        }
    }

    fn flushed(&mut self, result: Result<Flushed, StoreError>) -> bool {
        self.flushing = false;
        match result {
            Ok(flushed) => {
                let shards = self.shards.values_mut().map(|s| &mut s.rows);
                self.store
                    .flushed(flushed, shards.chain([self.control.rows()]));
                self.tell_what_is_durable();
                if let Ok(bytes) = self.store.disk_bytes() {
                    let _ = self.log.send(LogEvent::OtherBytes(bytes));
                }
                true
            }
            Err(error @ StoreError::NoSpace(_)) => {
                // The store refuses writes after a failed one: the replica node closes, and opens again in 5 s.
                self.health.reopen(&error.to_string());
                let _ = self.to.raft.send(RaftEvent::Stop);
                true
            }
            Err(error) => {
                self.health
                    .stop_for_good(&format!("the metadata store failed: {error}"));
                let _ = self.to.raft.send(RaftEvent::Stop);
                false
            }
        }
    }

    fn finish(mut self) {
        for (group, shard) in &mut self.shards {
            if let Some(leader) = shard.leader.take() {
                let address = self.directory.leader_address(*group);
                leader.ended(&mut self.streams, &address);
            }
        }
        if self.flushing || self.health.stopped().is_some() {
            return;
        }
        if let Some(flush) = self.freeze()
            && let Err(error) = flush.run()
        {
            tracing::warn!(%error, "the last flush failed; the log has everything, the next start replays it");
        }
    }
}

impl ShardRows for GroupState {
    fn locate(&self, index: u64) -> Option<crate::log::Location> {
        GroupState::locate(self, index)
    }
}

/// Which bodies live in which segment: local to this replica, so it is not the state machine's business.
fn account(rows: &mut GroupState, entry: &Committed, effects: &[Effect]) {
    for effect in effects {
        match effect {
            Effect::BodyKept(extent) if extent.index == entry.index => {
                if let Some(location) = entry.location {
                    rows.body_kept(*extent, location);
                }
            }
            Effect::BodyKept(extent) => {
                if let Some(location) = rows.locate(extent.index) {
                    rows.body_kept(*extent, location);
                }
            }
            Effect::BodyDropped(extent) => rows.body_dropped(*extent),
            _ => {}
        }
    }
}

/// The wall clock in milliseconds since the epoch; a clock before it counts as 0.
pub fn wall_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64)
}
