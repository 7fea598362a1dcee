//! What goes into a [`Group`](super::Group) and what comes out of it. All of it is values: no threads, no clock, no I/O.

use std::ops::Range;

use bytes::Bytes;
use raft::eraftpb::ConfState;
/// A Raft message, for those that carry it: `wire` and simulation.
pub use raft::eraftpb::Message;

use super::{SnapshotAction, SnapshotInput};
use crate::log::{EntryKind, Location, WriteTask};

/// One tick of every group, milliseconds. All times of a group are counted in ticks.
pub const TICK_MS: u64 = 50;
/// Ticks without a leader after which a follower may campaign, drawn anew each time: 750 ms to 1.25 s. A leader is
/// missed within a second, and a slow fsync is no reason for an election.
pub const ELECTION_TICKS: Range<usize> = 15..25;
/// Ticks between heartbeats: 100 ms, so that several are lost before anyone campaigns.
pub const HEARTBEAT_TICKS: usize = 2;

/// What one group may use. The defaults are those of a real node; simulation makes them small.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Octets of entries in one message (at least one entry goes): a megabyte keeps a link busy and is soon resent.
    pub message_bytes: u64,
    /// Appends on the way to one follower. Raft counts messages: with the above, 32 MiB a follower.
    pub inflight_messages: usize,
    /// Octets proposed and not yet handed out; beyond it proposals are Busy. A part of the node's 64 MiB at the door.
    pub uncommitted_bytes: u64,
    /// Octets handed out at once: an apply batch.
    pub committed_bytes_per_ready: u64,
    /// Octets handed out and not applied, beyond which a leader answers Busy and a follower drops appends.
    pub unapplied_bytes: u64,
    /// Entries in one proposal to Raft.
    pub proposal_entries: usize,
    /// Octets in one proposal to Raft (at least one entry goes).
    pub proposal_bytes: usize,
    /// Ticks of silence after which a follower no longer holds up truncation, once the log's budget is used up: 10 min.
    pub silent_ticks: u64,
    /// Ticks after which a follower with a full disk that has not come forward no longer holds up truncation on a leader
    /// whose disk is full too: 10 s, many flushes of the state.
    pub stuck_ticks: u64,
    /// Entries that a learner may lack to count as caught up: what is under way at some thousand entries a second.
    pub caught_up_entries: u64,
    /// Ticks for which the disk may owe us the oldest write before the replica stops, unless it is full: 30 s.
    pub hung_disk_ticks: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            message_bytes: 1 << 20,
            inflight_messages: 32,
            uncommitted_bytes: 16 << 20,
            committed_bytes_per_ready: 8 << 20,
            unapplied_bytes: 32 << 20,
            proposal_entries: 64,
            proposal_bytes: 1 << 20,
            silent_ticks: 10 * 60 * 1000 / TICK_MS,
            stuck_ticks: 10 * 1000 / TICK_MS,
            caught_up_entries: 512,
            hung_disk_ticks: 30 * 1000 / TICK_MS,
        }
    }
}

/// Who a group's members are, by Raft peer id.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Membership {
    /// Who votes.
    pub voters: Vec<u64>,
    /// Who only listens.
    pub learners: Vec<u64>,
    /// Not empty: the old voters of a joint configuration.
    pub voters_outgoing: Vec<u64>,
    /// Old voters that become learners when the joint configuration ends.
    pub learners_next: Vec<u64>,
    /// Raft ends the joint configuration by itself. We never ask for it.
    pub auto_leave: bool,
}

impl From<&Membership> for ConfState {
    fn from(members: &Membership) -> ConfState {
        let mut state = ConfState::from((members.voters.clone(), members.learners.clone()));
        state.set_voters_outgoing(members.voters_outgoing.clone());
        state.set_learners_next(members.learners_next.clone());
        state.auto_leave = members.auto_leave;
        state
    }
}

impl From<&ConfState> for Membership {
    fn from(state: &ConfState) -> Membership {
        Membership {
            voters: state.get_voters().to_vec(),
            learners: state.get_learners().to_vec(),
            voters_outgoing: state.get_voters_outgoing().to_vec(),
            learners_next: state.get_learners_next().to_vec(),
            auto_leave: state.auto_leave,
        }
    }
}

/// What a group is made with.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// Its number: 0 is control, shard s is s + 1.
    pub group: u32,
    /// What its entries are called in the log ([`WriteTask::group`]): another number for each replica that a node ever
    /// had of the group.
    pub log_group: u32,
    /// Raft peer id of this replica.
    pub peer_id: u64,
    /// The members as of the applied index.
    pub members: Membership,
    /// See [`ELECTION_TICKS`]; a range of one pins it for simulation.
    pub election_ticks: Range<usize>,
    /// See [`HEARTBEAT_TICKS`].
    pub heartbeat_ticks: usize,
    /// Bounds.
    pub limits: Limits,
    /// Whether an entry with data brings mail, by its context. What a leader knows of its proposals a follower must see from
    /// the entry: a settle with a report has data too, and must get into a full disk's reserved segments.
    pub brings_mail: fn(&[u8]) -> bool,
}

impl GroupConfig {
    /// A group of a real node.
    pub fn new(group: u32, peer_id: u64, members: Membership) -> GroupConfig {
        GroupConfig {
            group,
            log_group: group,
            peer_id,
            members,
            election_ticks: ELECTION_TICKS,
            heartbeat_ticks: HEARTBEAT_TICKS,
            limits: Limits::default(),
            brings_mail: |_| true,
        }
    }
}

/// Why a group cannot start from what its disk holds.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The log ends before what is known to be there.
    #[error(
        "group {group}: the log ends at entry {last}, but {what} says {known}: acknowledged entries are missing. \
         Do not start this replica again; give its node a new id"
    )]
    LogTooShort {
        /// Which group.
        group: u32,
        /// Last entry in the log.
        last: u64,
        /// What knows better.
        what: &'static str,
        /// What it knows.
        known: u64,
    },
    /// The state store is older than what the log still holds.
    #[error(
        "group {group}: the state store ends at entry {applied}, but the log begins at {first}. Do not start this \
         replica again; give its node a new id"
    )]
    StateTooOld {
        /// Which group.
        group: u32,
        /// Applied index of the state store.
        applied: u64,
        /// First entry of the log.
        first: u64,
    },
    /// raft-rs refused the configuration.
    #[error("group {group}: {source}")]
    Raft {
        /// Which group.
        group: u32,
        /// Why.
        source: raft::Error,
    },
}

/// When a proposal is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ack {
    /// When it is committed: it is durable on a majority.
    Commit,
    /// When the driver has applied it.
    Apply,
}

/// An entry that somebody wants in the log.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// The driver's name for it; it comes back exactly once, in Committed, Unknown or Refused.
    pub ticket: u64,
    /// The command.
    pub context: Bytes,
    /// The body.
    pub data: Bytes,
    /// When it is answered.
    pub ack: Ack,
    /// It settles, grants or keeps lease sessions: it may use the log's reserve (see [`WriteTask::urgent`]).
    pub urgent: bool,
}

/// What happens to a group.
#[derive(Debug)]
pub enum Input {
    /// [`TICK_MS`] passed. At most one a wake-up after a pause.
    Tick,
    /// A message came from another replica. What must not come from the network is dropped.
    Step(Message),
    /// Entries to append, in this order.
    Propose(Vec<Proposal>),
    /// The write of this number, and all before it, are durable. In order.
    Persisted {
        /// [`WriteTask::number`].
        number: u64,
        /// Where its entries lie: (index, location).
        locations: Vec<(u64, Location)>,
    },
    /// The state machine holds everything up to here.
    Applied {
        /// Raft index.
        index: u64,
    },
    /// The answer to [`Action::Fetch`]; empty if it cannot be read (Raft asks again by itself).
    Fetched {
        /// [`Action::Fetch`]'s.
        id: u64,
        /// (index, context, data), in order.
        entries: Vec<(u64, Bytes, Bytes)>,
    },
    /// The log collector moved entries: (index, old place, new place).
    Relocated(Vec<(u64, Location, Location)>),
    /// Give the leadership away.
    TransferLeader {
        /// Peer id; `None`: the follower that is furthest.
        to: Option<u64>,
    },
    /// Who the members shall be.
    Plan(super::Plan),
    /// A replica's disk is full (a follower is spared appends while the others can do without it), or is not any more.
    PeerFull {
        /// Peer id; this one's too.
        peer: u64,
        /// Full, or not any more.
        full: bool,
    },
    /// The driver needs nothing of the log up to here any more: it is durably applied.
    Truncate {
        /// Raft index.
        upto: u64,
        /// The log's disk budget is used up: silent followers no longer count.
        over_budget: bool,
    },
    /// What became of a snapshot, going out or coming in.
    Snapshot(SnapshotInput),
    /// The end: whoever waits gets Unknown; nothing comes out afterwards.
    Stop,
}

/// One committed entry to apply.
#[derive(Clone, PartialEq, Debug)]
pub struct Committed {
    /// Raft index.
    pub index: u64,
    /// Raft term.
    pub term: u64,
    /// A command or a change of membership.
    pub kind: EntryKind,
    /// The command; `None`: no longer cached, read it at `location`. Empty: the no-op of a new leader.
    pub context: Option<Bytes>,
    /// The body, while it is cached.
    pub data: Option<Bytes>,
    /// Octets of the body.
    pub data_len: u32,
    /// Where the entry lies.
    pub location: Option<Location>,
}

/// What a replica is in its group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// It takes proposals.
    Leader,
    /// It follows, votes if it is a voter, or is a learner.
    Follower,
    /// It asks for votes, or whether it would get them.
    Candidate,
}

/// Why a proposal was not taken. Nothing was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Another replica leads.
    NotLeader {
        /// Its peer id, when known.
        leader: Option<u64>,
    },
    /// Too much is on its way already.
    Busy,
}

/// Why a replica must stop for good.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AbortReason {
    /// The leader knows that we acknowledged what our log does not hold.
    #[error(
        "group {group}: the leader says that this replica holds entry {known}, but its log ends at {last}: acknowledged \
         entries were lost. Replace this node's id"
    )]
    LostEntries {
        /// Which group.
        group: u32,
        /// Our last entry.
        last: u64,
        /// What the leader knows of us.
        known: u64,
    },
    /// The disk did not answer for [`Limits::hung_disk_ticks`].
    #[error(
        "group {group}: the disk owes this replica write {number} for {ticks} ticks of 50 ms. Check the device"
    )]
    DiskHung {
        /// Which group.
        group: u32,
        /// Number of the write.
        number: u64,
        /// How long.
        ticks: u64,
    },
    /// A committed change of membership cannot be read or used.
    #[error(
        "group {group}: the change of membership at entry {index} cannot be applied; this is a bug"
    )]
    BadConfChange {
        /// Which group.
        group: u32,
        /// Raft index.
        index: u64,
    },
}

/// An entry to read back from the log.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct FetchEntry {
    /// Raft index.
    pub index: u64,
    /// Raft term.
    pub term: u64,
    /// Where it lies.
    pub location: Location,
}

/// What a group wants done, in this order.
#[derive(Debug)]
pub enum Action {
    /// To other replicas, each by its `to`. See [`is_bulk`].
    Send(Vec<Message>),
    /// To the log; then [`Input::Persisted`]. In order of numbers.
    Write(WriteTask),
    /// To the state machine, in order; then [`Input::Applied`].
    Apply(Vec<Committed>),
    /// A proposal is committed. Comes before the [`Action::Apply`] that holds its index.
    Committed {
        /// [`Proposal::ticket`].
        ticket: u64,
        /// Raft index.
        index: u64,
        /// [`Ack::Apply`]: answer when this index is applied.
        ack: Ack,
    },
    /// A proposal may or may not be committed one day.
    Unknown {
        /// [`Proposal::ticket`].
        ticket: u64,
    },
    /// A proposal was not taken.
    Refused {
        /// [`Proposal::ticket`].
        ticket: u64,
        /// Why.
        why: Refusal,
    },
    /// Role, term or leader changed.
    Role {
        /// What this replica is now.
        role: Role,
        /// Raft term.
        term: u64,
        /// Peer id of the leader, when known.
        leader: Option<u64>,
        /// A leader's first entry: when it is applied, everything acknowledged before is.
        noop: Option<u64>,
    },
    /// A lagging follower needs old entries; read them, then [`Input::Fetched`].
    Fetch {
        /// To give back.
        id: u64,
        /// What to read, one after another.
        entries: Vec<FetchEntry>,
    },
    /// The members changed with this entry: to be persisted together with its applied index.
    ConfChanged {
        /// Raft index.
        index: u64,
        /// From now on.
        members: Membership,
    },
    /// The log before this entry is not needed any more.
    Truncated {
        /// First entry that is kept.
        first: u64,
    },
    /// A snapshot is to be made, sent, installed, or is of no use.
    Snapshot(SnapshotAction),
    /// This replica must stop; nothing comes after it.
    Abort {
        /// Why.
        reason: AbortReason,
    },
}

/// What Admin sees of one other replica; only a leader knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerStatus {
    /// Peer id.
    pub peer: u64,
    /// Last entry that it has durably.
    pub matched: u64,
    /// Next entry that it is sent.
    pub next: u64,
    /// `probe`, `replicate`, `snapshot`.
    pub state: &'static str,
    /// It does not vote.
    pub learner: bool,
    /// Ticks since it was heard of.
    pub silent_ticks: u64,
    /// The log no longer holds, or will not keep, what it lacks.
    pub needs_snapshot: bool,
    /// The snapshot that is on its way to it.
    pub snapshot: Option<u64>,
    /// Its disk is full.
    pub full: bool,
}

/// What Admin sees of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupStatus {
    /// Which.
    pub group: u32,
    /// This replica.
    pub peer: u64,
    /// What it is.
    pub role: Role,
    /// Raft term.
    pub term: u64,
    /// Peer id of the leader, when known.
    pub leader: Option<u64>,
    /// First entry in the log.
    pub first: u64,
    /// Last entry in the log.
    pub last: u64,
    /// Last entry that is durable here.
    pub persisted: u64,
    /// Last entry that is committed.
    pub committed: u64,
    /// Last entry that is applied.
    pub applied: u64,
    /// Octets handed out and not applied.
    pub unapplied_bytes: u64,
    /// The disk is late by more than two election timeouts.
    pub disk_late: bool,
    /// The members.
    pub members: Membership,
    /// Empty unless this replica leads.
    pub peers: Vec<PeerStatus>,
}

/// Whether a message goes by the connection for entries; heartbeats, votes and responses never wait behind those.
pub fn is_bulk(message: &Message) -> bool {
    use raft::eraftpb::MessageType::{MsgAppend, MsgSnapshot};
    matches!(message.get_msg_type(), MsgAppend | MsgSnapshot)
}
