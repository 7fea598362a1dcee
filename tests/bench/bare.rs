//! Raft and log alone: what the queue could do if nothing stood before and behind them.
//!
//! Three replicas in one process: raft-rs, the log writer of `spool`, and every message between them encoded and decoded
//! as on the network, but handed over in memory. No TLS, no gRPC, no state machine, no deciding, one group. The leader
//! makes the entries itself and keeps a fixed number in flight.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use prost::Message as _;
use proto::v1;
use raft::eraftpb::{Entry, Message, MessageType};
use raft::{Config, RawNode, StateRole};
use spool::identity::ClusterId;
use spool::log::{Log, LogConfig, LogWriter, WriteTask};
use spool::wire::raft::{from_wire, to_wire};

use crate::GoOn;
use memory::Memory;

mod memory;

/// Replicas, as everywhere in these measurements.
const REPLICAS: u64 = 3;
/// The one Raft group.
const GROUP: u32 = 1;
/// Raft's clock.
const TICK: Duration = Duration::from_millis(10);
/// Entries that stay in memory behind the applied one, for a follower that is a little late.
const KEPT: u64 = 8192;
/// A message of entries has at most this many octets.
const MESSAGE_BYTES: u64 = 1 << 20;
/// One write of the log has at most about this many octets.
const WRITE_BYTES: usize = 4 << 20;
/// Events taken before Raft's output is looked at.
const EVENTS: usize = 4096;

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Octets of an entry.
    pub octets: usize,
    /// Entries that are proposed and not yet committed.
    pub in_flight: usize,
    /// Not counted.
    pub warm_up: Duration,
    /// Counted.
    pub measured: Duration,
    /// Segments are recycled as soon as their entries are applied; else everything is kept, as by a queue whose mail
    /// waits.
    pub recycle: bool,
}

/// What came out.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Entries a second.
    pub per_second: f64,
    /// CPU time per entry, of all replicas, microseconds.
    pub cpu_us: f64,
}

enum Event {
    /// From another replica.
    Message(Bytes),
    /// The log has all up to this Ready.
    Persisted(u64),
}

struct Write {
    task: WriteTask,
    /// Sent when it is durable.
    after: Vec<Message>,
    /// Nothing up to this entry is needed any more.
    truncated: (u64, u64),
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    committed: AtomicU64,
}

/// Measures once, with logs under `dir`.
pub fn run(dir: &Path, load: Load, go_on: &GoOn) -> Result<Rate> {
    let shared = Arc::new(Shared::default());
    let (mails, peers): (Vec<_>, Vec<_>) = (1..=REPLICAS)
        .map(|_| channel())
        .map(|(to, mail)| (mail, to))
        .unzip();
    std::thread::scope(|scope| {
        let replicas: Vec<_> = (1..)
            .zip(mails)
            .map(|(id, mail)| {
                let (peers, shared) = (peers.clone(), shared.clone());
                let dir = dir.join(format!("bare-{id}"));
                scope.spawn(move || replica(id, &dir, load, mail, &peers, &shared))
            })
            .collect();
        let rate = watch(load, &shared, go_on);
        shared.stop.store(true, Ordering::Relaxed);
        for replica in replicas {
            let ended = replica.join();
            ended.map_err(|_| anyhow::anyhow!("a replica has panicked"))??;
        }
        rate
    })
}

fn watch(load: Load, shared: &Shared, go_on: &GoOn) -> Result<Rate> {
    let pause = |length: Duration| {
        let until = Instant::now() + length;
        while go_on.yes() && !shared.stop.load(Ordering::Relaxed) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        ensure!(go_on.yes(), "interrupted");
        Ok(())
    };
    pause(load.warm_up)?;
    let look = || {
        (
            shared.committed.load(Ordering::Relaxed),
            tests::child::own_cpu(),
        )
    };
    let ((before, cpu_before), begun) = (look(), Instant::now());
    pause(load.measured)?;
    let ((after, cpu_after), seconds) = (look(), begun.elapsed().as_secs_f64());
    let entries = (after - before) as f64;
    ensure!(entries > 0.0, "raft and log alone committed nothing");
    Ok(Rate {
        per_second: entries / seconds,
        cpu_us: (cpu_after - cpu_before).as_secs_f64() * 1e6 / entries,
    })
}

fn replica(
    id: u64,
    dir: &Path,
    load: Load,
    mail: Receiver<Event>,
    peers: &[Sender<Event>],
    shared: &Shared,
) -> Result<()> {
    let config = LogConfig::new(ClusterId([1; 16]), u128::from(id));
    let (writer, _reader, _) = Log::open(dir, config)?;
    let (writes, waiting) = channel();
    std::thread::scope(|scope| {
        let own = peers[id as usize - 1].clone();
        let log = scope.spawn(move || write(writer, &waiting, peers, &own, load.recycle));
        let raft = Replica::new(id, load, mail, peers, writes).and_then(|mut r| r.run(shared));
        // All of them end when one does.
        shared.stop.store(true, Ordering::Relaxed);
        let log = log
            .join()
            .map_err(|_| anyhow::anyhow!("a writer has panicked"))?;
        log.and(raft)
    })
}

/// The log thread: all that waits becomes one write and one flush.
fn write(
    mut writer: LogWriter,
    waiting: &Receiver<Write>,
    peers: &[Sender<Event>],
    own: &Sender<Event>,
    recycle: bool,
) -> Result<()> {
    let segments = writer.segments();
    while let Ok(first) = waiting.recv() {
        let mut bytes = octets(&first.task);
        let mut batch = vec![first];
        while bytes < WRITE_BYTES
            && let Ok(next) = waiting.try_recv()
        {
            bytes += octets(&next.task);
            batch.push(next);
        }
        let truncated = batch.last().map_or((0, 0), |write| write.truncated);
        let mut tasks = Vec::with_capacity(batch.len());
        let mut after = Vec::new();
        for write in batch {
            tasks.push(write.task);
            after.extend(write.after);
        }
        writer.write(&tasks)?;
        send(peers, after);
        if let Some(last) = tasks.last() {
            let _ = own.send(Event::Persisted(last.number));
        }
        if recycle && truncated.0 > 0 {
            writer.set_group_state(GROUP, truncated);
            for segment in segments.truncatable() {
                segments.release(segment);
            }
        }
    }
    Ok(())
}

fn octets(task: &WriteTask) -> usize {
    task.entries.iter().map(|entry| entry.data.len()).sum()
}

/// Every message is encoded, and decoded by whom it is for.
fn send(peers: &[Sender<Event>], messages: Vec<Message>) {
    for message in messages {
        let to = message.to as usize - 1;
        if let (Some(peer), Some(wire)) = (peers.get(to), to_wire(GROUP, message)) {
            // A replica that has ended hears nothing.
            let _ = peer.send(Event::Message(wire.encode_to_vec().into()));
        }
    }
}

struct Replica<'a> {
    raw: RawNode<Memory>,
    load: Load,
    mail: Receiver<Event>,
    peers: &'a [Sender<Event>],
    writes: Sender<Write>,
    body: Bytes,
    /// The last Ready that went to the log, and the last that came back.
    written: u64,
    persisted: u64,
    /// Index and term.
    applied: (u64, u64),
    /// Entries that the leader made and that are not committed.
    proposed: VecDeque<u64>,
}

impl<'a> Replica<'a> {
    fn new(
        id: u64,
        load: Load,
        mail: Receiver<Event>,
        peers: &'a [Sender<Event>],
        writes: Sender<Write>,
    ) -> Result<Replica<'a>> {
        let config = Config {
            id,
            election_tick: 100,
            heartbeat_tick: 10,
            max_size_per_msg: MESSAGE_BYTES,
            max_inflight_msgs: 1024,
            check_quorum: true,
            pre_vote: true,
            batch_append: true,
            ..Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let mut raw = RawNode::new(&config, Memory::new(1..=REPLICAS), &logger)?;
        if id == 1 {
            raw.campaign()?;
        }
        Ok(Replica {
            raw,
            load,
            mail,
            peers,
            writes,
            body: Bytes::from(noise(load.octets)),
            written: 0,
            persisted: 0,
            applied: (0, 0),
            proposed: VecDeque::new(),
        })
    }

    fn run(&mut self, shared: &Shared) -> Result<()> {
        let mut ticked = Instant::now();
        while !shared.stop.load(Ordering::Relaxed) {
            if !self.raw.has_ready() {
                let pause = TICK.saturating_sub(ticked.elapsed());
                if let Ok(event) = self.mail.recv_timeout(pause) {
                    self.take(event)?;
                }
            }
            for _ in 0..EVENTS {
                let Ok(event) = self.mail.try_recv() else {
                    break;
                };
                self.take(event)?;
            }
            if ticked.elapsed() >= TICK {
                self.raw.tick();
                ticked = Instant::now();
            }
            self.propose()?;
            while self.raw.has_ready() {
                self.ready()?;
            }
            self.count(shared);
        }
        Ok(())
    }

    fn take(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Message(bytes) => {
                let (_, message) = from_wire(v1::RaftMessage::decode(bytes)?)?;
                // Raft refuses what is out of date; that is no failure.
                let _ = self.raw.step(message);
            }
            Event::Persisted(number) => {
                self.persisted = number;
                self.raw.on_persist_ready(number);
            }
        }
        Ok(())
    }

    fn propose(&mut self) -> Result<()> {
        if self.raw.raft.state != StateRole::Leader || self.raw.raft.raft_log.committed == 0 {
            return Ok(());
        }
        let free = self.load.in_flight.saturating_sub(self.proposed.len());
        if free == 0 {
            return Ok(());
        }
        // Octets of its own, as every message has: none of them is in the processor's cache already.
        let entry = || Entry {
            data: Bytes::copy_from_slice(&self.body),
            ..Entry::default()
        };
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.raw.raft.id;
        message.set_entries((0..free).map(|_| entry()).collect::<Vec<_>>().into());
        let before = self.raw.raft.raft_log.last_index();
        self.raw
            .step(message)
            .context("a leader refuses its own entries")?;
        self.proposed.extend(before + 1..=before + free as u64);
        Ok(())
    }

    fn ready(&mut self) -> Result<()> {
        let mut ready = self.raw.ready();
        send(self.peers, ready.take_messages());
        if let Some(last) = ready.take_committed_entries().last() {
            self.applied = (last.index, last.term);
        }
        let entries = ready.take_entries();
        let hard_state = ready.hs().cloned();
        let memory = self.raw.mut_store();
        memory.append(&entries);
        if let Some(state) = &hard_state {
            memory.set_hard_state(state.clone());
        }
        memory.forget(self.applied.0.saturating_sub(KEPT));
        let after = ready.take_persisted_messages();
        let (number, must_sync) = (ready.number(), ready.must_sync());
        self.raw.advance_append_async(ready);
        self.raw.advance_apply_to(self.applied.0);
        if entries.is_empty() && after.is_empty() && !must_sync {
            // Nothing to write: it is persisted as soon as all before it are.
            if self.written <= self.persisted {
                self.raw.on_persist_ready(number);
            }
            return Ok(());
        }
        self.written = number;
        let task = WriteTask {
            group: GROUP,
            number,
            entries: entries.into_iter().map(memory::to_log).collect(),
            hard_state: hard_state.as_ref().map(memory::hard_state_to_log),
            reset: None,
            urgent: false,
        };
        let write = Write {
            task,
            after,
            truncated: self.raw.store().forgotten(),
        };
        match self.writes.send(write) {
            Ok(()) => Ok(()),
            Err(_) => bail!("the log of a replica has ended"),
        }
    }

    /// What is committed makes room for more.
    fn count(&mut self, shared: &Shared) {
        let committed = self.raw.raft.raft_log.committed;
        let mut done = 0;
        while self
            .proposed
            .pop_front_if(|index| *index <= committed)
            .is_some()
        {
            done += 1;
        }
        shared.committed.fetch_add(done, Ordering::Relaxed);
    }
}

/// Octets that do not compress (xorshift, always the same).
pub fn noise(octets: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    (0..octets).map(|_| next()).collect()
}
