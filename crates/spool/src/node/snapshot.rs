//! Snapshots, as a group sees them. Raft asks, the driver makes one and sends it by a way of its own, and tells how it
//! went; on the other side the driver brings one that is staged, Raft takes it or not, and what is written meanwhile
//! waits until the driver has installed it.
//!
//! `Progress::Snapshot` pauses a follower until somebody reports: so every [`SnapshotAction::Send`] must be answered by one
//! [`SnapshotInput::Sent`], whatever happens (tikv#2341, #16435).

use std::collections::BTreeMap;

use raft::eraftpb::{Message, MessageType, Snapshot};
use raft::{ProgressState, SnapshotStatus};

use super::{Action, Group, Membership, Proposal};
use crate::log::WriteTask;
use crate::wire::snapshot as wire;

/// A snapshot that Raft has not asked for again within this time is dropped, ticks: 30 s. Raft asks at each answered
/// heartbeat, so its follower is gone.
const OFFER_TICKS: u64 = 600;
/// After a failure the next attempt waits this long, ticks, and twice as long each time up to [`RETRY_TICKS_MAX`]: a
/// follower without room is not to be bothered at each heartbeat.
const RETRY_TICKS: u64 = 20;
/// See [`RETRY_TICKS`]: half a minute.
const RETRY_TICKS_MAX: u64 = 600;
/// What appends may take at once while they are slowed, octets: some messages go through even between two reports.
const CREDIT_MAX: u64 = 8 << 20;
/// What appends may take a tick at least while a follower installs a snapshot, octets: 1 MB a second. A snapshot too small
/// to measure must not hold up everybody's mail.
const PACE_MIN: u64 = 50_000;

/// A snapshot that the driver has made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Made {
    /// Names it, here and at the receiver.
    pub id: u64,
    /// The last entry that it contains: durably applied here.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// The members as of that entry.
    pub members: Membership,
    /// Octets of its live bodies, about.
    pub body_bytes: u64,
}

/// What became of a snapshot.
#[derive(Debug)]
pub enum SnapshotInput {
    /// The answer to [`SnapshotAction::Make`]. `None`: not now.
    Made {
        /// Peer id.
        to: u64,
        /// It.
        made: Option<Made>,
    },
    /// So many octets more left for any follower.
    Progress {
        /// Octets.
        octets: u64,
    },
    /// The answer to [`SnapshotAction::Send`].
    Sent {
        /// Peer id.
        to: u64,
        /// [`Made::id`].
        id: u64,
        /// The receiver has it all, durably, and its Raft was told.
        staged: bool,
    },
    /// A snapshot is staged here, verified and durable; this is its message.
    Staged(Message),
    /// What [`SnapshotAction::Install`] asked for is durable.
    Installed {
        /// Its index.
        index: u64,
    },
}

/// What is to be done with a snapshot.
#[derive(Debug)]
pub enum SnapshotAction {
    /// Make one of what is durably applied; then [`SnapshotInput::Made`].
    Make {
        /// Peer id of who needs it.
        to: u64,
    },
    /// Send it; then [`SnapshotInput::Sent`], always.
    Send {
        /// Peer id.
        to: u64,
        /// [`Made::id`].
        id: u64,
        /// To be handed to the receiver's Raft when everything is staged there.
        message: Box<Message>,
    },
    /// One that was made or is being sent is of no use any more.
    Drop {
        /// [`Made::id`].
        id: u64,
    },
    /// Replace rows and bodies by what is staged, after all that was handed out before is applied; then
    /// [`SnapshotInput::Installed`].
    Install(Made),
    /// What is staged is of no use.
    Discard {
        /// [`Made::id`].
        id: u64,
    },
}

/// On its way to a follower.
#[derive(Clone, Copy, Debug)]
struct Sending {
    id: u64,
    index: u64,
    /// It has it, and installs it.
    staged: bool,
    since: u64,
    /// The tick at which it began to be sent, and the octets that left since.
    begun: u64,
    octets: u64,
}

impl Sending {
    /// What appends may take a tick while it is installed: half of what left a tick while it was sent.
    fn pace(&self) -> u64 {
        let ticks = self.since.saturating_sub(self.begun).max(1);
        (self.octets / ticks / 2).max(PACE_MIN)
    }
}

/// What comes in.
#[derive(Debug)]
struct Installing {
    /// Of its Ready.
    number: u64,
    index: u64,
    installed: bool,
    /// Its own write, and those after it.
    writes: Vec<WriteTask>,
}

/// What a group knows of snapshots under way.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    /// Asked for, by peer, with the tick.
    making: BTreeMap<u64, u64>,
    /// Waiting for Raft, with the tick.
    offered: BTreeMap<u64, (Made, u64)>,
    sending: BTreeMap<u64, Sending>,
    /// Peers that wait after failures: until which tick, after how many.
    waiting: BTreeMap<u64, (u64, u32)>,
    installing: Option<Installing>,
    pub(super) over_budget: bool,
    /// What mail may still take while it is slowed, octets.
    credit: u64,
}

impl Snapshots {
    /// Raft asked for one for this peer, and none is on its way.
    pub(super) fn wanted(&self, peer: u64) -> bool {
        let waits = self.waiting.contains_key(&peer) && !self.sending.contains_key(&peer);
        waits || self.making.contains_key(&peer) || self.offered.contains_key(&peer)
    }

    /// The log keeps what follows this entry: a snapshot under way ends with it, and what comes after must be there when it
    /// has arrived.
    pub(super) fn holds(&self) -> u64 {
        let offered = self.offered.values().map(|(made, _)| made.index);
        let sending = self.sending.values().map(|sending| sending.index);
        offered.chain(sending).min().unwrap_or(u64::MAX)
    }

    /// The snapshot that is on its way to a peer.
    pub(super) fn to(&self, peer: u64) -> Option<u64> {
        self.sending
            .get(&peer)
            .filter(|sending| !sending.staged)
            .map(|sending| sending.id)
    }
}

impl Group {
    /// A snapshot is being installed: Raft stands between two logs.
    pub(super) fn installs(&self) -> bool {
        self.snapshots.installing.is_some()
    }

    pub(super) fn snapshot(&mut self, input: SnapshotInput) {
        match input {
            SnapshotInput::Made { to, made } => self.made(to, made),
            SnapshotInput::Progress { octets } => {
                // Half of what a snapshot makes: it must win the race in the end.
                self.snapshots.credit = (self.snapshots.credit + octets / 2).min(CREDIT_MAX);
                let sending = self.snapshots.sending.values_mut();
                sending
                    .filter(|sending| !sending.staged)
                    .for_each(|sending| sending.octets += octets);
            }
            SnapshotInput::Sent { to, id, staged } => self.sent(to, id, staged),
            SnapshotInput::Staged(message) => self.staged(message),
            SnapshotInput::Installed { index } => self.installed(index),
        }
    }

    fn act(&mut self, action: SnapshotAction) {
        self.actions.push(Action::Snapshot(action));
    }

    /// Turns what Raft could not get into work for the driver.
    pub(super) fn collect_snapshots(&mut self) {
        for to in self.raw.mut_store().take_wanted_snapshots() {
            let known = &self.snapshots;
            let waits = known.waiting.get(&to).is_some_and(|w| self.ticks < w.0);
            let busy = known.making.contains_key(&to)
                || known.offered.contains_key(&to)
                || known.to(to).is_some();
            if waits || busy || !self.leads() {
                continue;
            }
            self.snapshots.making.insert(to, self.ticks);
            self.act(SnapshotAction::Make { to });
        }
    }

    fn made(&mut self, to: u64, made: Option<Made>) {
        let asked = self.snapshots.making.remove(&to).is_some();
        let Some(made) = made else {
            self.snapshots
                .waiting
                .entry(to)
                .or_insert((self.ticks + RETRY_TICKS, 0));
            return;
        };
        let fits = made.index > 0 && made.index + 1 >= self.raw.store().first();
        if !asked || !fits || !self.leads() {
            return self.act(SnapshotAction::Drop { id: made.id });
        }
        // What is there goes out at Raft's next question, which is an answered heartbeat away.
        let manifest = wire::manifest(&made);
        self.raw.mut_store().offer(to, wire::to_raft(&manifest));
        self.snapshots.offered.insert(to, (made, self.ticks));
    }

    /// Takes Raft's snapshots out of what is sent: they go another way.
    pub(super) fn hold_snapshots(&mut self, messages: &mut Vec<Message>) {
        let held = messages.extract_if(.., |m| m.get_msg_type() == MessageType::MsgSnapshot);
        for message in held.collect::<Vec<_>>() {
            let to = message.to;
            self.raw.mut_store().withdraw(to);
            let Some((made, _)) = self.snapshots.offered.remove(&to) else {
                continue;
            };
            let (id, index) = (made.id, made.index);
            let sending = Sending {
                id,
                index,
                staged: false,
                since: self.ticks,
                begun: self.ticks,
                octets: 0,
            };
            self.snapshots.sending.insert(to, sending);
            let message = Box::new(message);
            self.act(SnapshotAction::Send { to, id, message });
        }
    }

    fn sent(&mut self, to: u64, id: u64, staged: bool) {
        let now = self.ticks;
        let Some(sending) = self.snapshots.sending.get_mut(&to).filter(|s| s.id == id) else {
            return;
        };
        if staged {
            (sending.staged, sending.since) = (true, now);
            self.snapshots.waiting.remove(&to);
            self.raw.report_snapshot(to, SnapshotStatus::Finish);
            return;
        }
        self.snapshots.sending.remove(&to);
        let failures = self.snapshots.waiting.get(&to).map_or(0, |w| w.1);
        let pause = (RETRY_TICKS << failures.min(8)).min(RETRY_TICKS_MAX);
        self.snapshots
            .waiting
            .insert(to, (now + pause, failures + 1));
        self.raw.report_snapshot(to, SnapshotStatus::Failure);
    }

    /// While a snapshot is made, sent or installed, the log waits for it: the index up to which this peer needs nothing.
    /// One that has it staged and falls silent counts no longer when room is needed.
    pub(super) fn snapshot_at(&mut self, peer: u64, matched: u64, given_up: bool) -> Option<u64> {
        if matched + 1 >= self.raw.store().first() {
            // The log has what it lacks after all.
            self.snapshots.waiting.remove(&peer);
        }
        if let Some((made, _)) = self.snapshots.offered.get(&peer) {
            return Some(made.index.max(matched));
        }
        let sending = *self.snapshots.sending.get(&peer)?;
        let late = self.ticks - sending.since >= self.config.limits.silent_ticks;
        if sending.staged && (matched >= sending.index || given_up || late) {
            self.snapshots.sending.remove(&peer);
            return None;
        }
        Some(sending.index.max(matched))
    }

    /// Nobody asked for them in time.
    pub(super) fn expire_offers(&mut self) {
        let (now, prs) = (self.ticks, self.raw.raft.prs());
        // Once Raft is in this state the message is on its way out.
        let taken = |peer: u64| {
            prs.get(peer)
                .is_some_and(|progress| progress.state == ProgressState::Snapshot)
        };
        let old: Vec<u64> = self
            .snapshots
            .offered
            .iter()
            .filter(|&(&peer, (_, since))| now - since >= OFFER_TICKS && !taken(peer))
            .map(|(&peer, _)| peer)
            .collect();
        self.snapshots
            .making
            .retain(|_, since| now - *since < OFFER_TICKS);
        for peer in old {
            self.raw.mut_store().withdraw(peer);
            if let Some((made, _)) = self.snapshots.offered.remove(&peer) {
                self.act(SnapshotAction::Drop { id: made.id });
            }
        }
    }

    /// These peers get none from here any more: this replica leads no longer and whoever does makes his own, or they are no
    /// members.
    pub(super) fn drop_snapshots(&mut self, of: impl Fn(u64) -> bool) {
        let known = &mut self.snapshots;
        known.making.retain(|&peer, _| !of(peer));
        known.waiting.retain(|&peer, _| !of(peer));
        let offered: BTreeMap<_, _> = known.offered.extract_if(.., |&peer, _| of(peer)).collect();
        let sending: BTreeMap<_, _> = known.sending.extract_if(.., |&peer, _| of(peer)).collect();
        for &peer in offered.keys() {
            self.raw.mut_store().withdraw(peer);
        }
        let offered = offered.into_values().map(|(made, _)| made.id);
        let sending = sending.into_values().filter(|s| !s.staged).map(|s| s.id);
        for id in offered.chain(sending).collect::<Vec<_>>() {
            self.act(SnapshotAction::Drop { id });
        }
    }

    /// While a follower installs what it was sent nobody reports progress: mail goes on at half the pace of the sending.
    pub(super) fn give_credit(&mut self) {
        let known = &mut self.snapshots;
        let staged = known.sending.values().filter(|sending| sending.staged);
        if let Some(pace) = staged.map(Sending::pace).min() {
            known.credit = (known.credit + pace).min(CREDIT_MAX);
        }
    }

    /// Beyond the disk's budget, mail must not be faster than the snapshot for which the log waits, until its receiver has
    /// matched the log: what has no credit is refused for now. Settles and grants free space and are always taken.
    pub(super) fn slow_down(&mut self, proposals: Vec<Proposal>) -> (Vec<Proposal>, Vec<Proposal>) {
        let prs = self.raw.raft.prs();
        let lacks = |(&peer, sending): (&u64, &Sending)| {
            let matched = prs.get(peer).map_or(0, |progress| progress.matched);
            !sending.staged || matched < sending.index
        };
        if !self.snapshots.over_budget || !self.snapshots.sending.iter().any(lacks) {
            return (proposals, Vec::new());
        }
        let credit = &mut self.snapshots.credit;
        proposals.into_iter().partition(|proposal| {
            let pays = !proposal.urgent && !proposal.data.is_empty();
            let may = !pays || *credit > 0;
            if pays {
                *credit = credit.saturating_sub(proposal.data.len() as u64);
            }
            may
        })
    }

    /// Raft takes it, unless its own log has got there meanwhile, or it comes too late.
    fn staged(&mut self, message: Message) {
        let Ok(made) = wire::from_raft(message.get_snapshot()) else {
            return;
        };
        let (id, index) = (made.id, made.index);
        if message.to != self.config.peer_id || self.installs() {
            return self.act(SnapshotAction::Discard { id });
        }
        self.heard.insert(message.from, self.ticks);
        if message.term >= self.raw.raft.term {
            self.led_at = Some(self.ticks);
        }
        let _ = self.raw.step(message);
        let taken = self.raw.snap().is_some_and(|snapshot| {
            snapshot.get_metadata().index == index
                && wire::from_raft(snapshot).is_ok_and(|taken| taken.id == id)
        });
        if !taken {
            self.act(SnapshotAction::Discard { id });
        }
    }

    /// The write of a Ready. One with a snapshot waits until that is installed, and all later ones wait behind it: the log
    /// says that the group begins at the snapshot only when rows and bodies are there.
    pub(super) fn write_or_install(&mut self, task: WriteTask, snapshot: Option<Snapshot>) {
        let number = task.number;
        match (snapshot, &mut self.snapshots.installing) {
            (None, None) => self.actions.push(Action::Write(task)),
            (None, Some(installing)) if installing.installed => {
                self.actions.push(Action::Write(task));
            }
            (None, Some(installing)) => installing.writes.push(task),
            (Some(snapshot), _) => {
                let index = snapshot.get_metadata().index;
                self.snapshots.installing = Some(Installing {
                    number,
                    index,
                    installed: false,
                    writes: vec![task],
                });
                match wire::from_raft(&snapshot) {
                    Ok(made) => self.act(SnapshotAction::Install(made)),
                    // It was read when it was staged.
                    Err(error) => {
                        tracing::error!(group = self.config.group, %error, "a snapshot without a manifest");
                    }
                }
            }
        }
    }

    fn installed(&mut self, index: u64) {
        let Some(installing) = &mut self.snapshots.installing else {
            return;
        };
        if installing.index != index || installing.installed {
            return;
        }
        installing.installed = true;
        let writes = std::mem::take(&mut installing.writes);
        self.actions.extend(writes.into_iter().map(Action::Write));
        for waits in &mut self.unpersisted {
            waits.since = self.ticks;
        }
    }

    /// The log begins at the snapshot, durably: so it is applied.
    pub(super) fn end_install(&mut self, number: u64) {
        let ends = |installing: &mut Installing| installing.number <= number;
        if let Some(installing) = self.snapshots.installing.take_if(ends) {
            while self
                .unapplied
                .pop_front_if(|(index, _)| *index <= installing.index)
                .is_some_and(|(_, bytes)| {
                    self.unapplied_bytes -= bytes;
                    true
                })
            {}
            self.raw.advance_apply_to(installing.index);
        }
    }
}
