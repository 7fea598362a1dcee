//! What the threads of a node tell each other.
//!
//! ```text
//!  gRPC tasks ──calls──► state thread ──proposals──► Raft thread ──writes──► log thread
//!       ▲                 │  ▲  ▲                      │  ▲ │  ▲                │
//!       └────answers──────┘  │  └──────committed───────┘  │ │  └───persisted────┘
//!                    flush helper                 peers ──┘ └──► peers
//! ```
//! Every hop carries batches: a hop costs a wake-up, and on few cores wake-ups are what a message pays for.

mod asked;
mod reply;

pub use asked::{GroupOrder, MembersCall, Piece, PutCall, Question};
pub use reply::{AppendReply, SettleReply};

use std::sync::mpsc::Sender;

use bytes::Bytes;
use proto::v1;
use queue::MessageFacts;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

/// A ticket names a proposal until its fate is known. Unique within a process.
pub type Ticket = u64;

/// Names a Lease stream within a process.
pub type StreamId = u64;

/// Why a proposal did not become an entry that this node knows of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// This node does not lead the group; nothing was written.
    NotLeader,
    /// No room for more at the moment; nothing was written.
    Busy,
    /// Leadership was lost on the way: it may have been written.
    Unknown,
}

/// A message, or a part of one, that wants to be appended.
pub struct AppendCall {
    /// Which shard.
    pub shard: u32,
    /// What.
    pub what: AppendWhat,
    /// Whom to tell.
    pub reply: AppendReply,
}

/// The two kinds of Append requests.
pub enum AppendWhat {
    /// A message; its body is here or came in chunks.
    Message {
        /// Checked facts.
        facts: Box<MessageFacts>,
        /// Empty when it came in chunks.
        body: Bytes,
    },
    /// A part of a big body.
    Chunk {
        /// Of which message.
        message: mail::Ulid,
        /// Position.
        seq: u32,
        /// Octets.
        data: Bytes,
    },
    /// What came of this message is not wanted any more.
    Abandon(mail::Ulid),
}

/// Results that want to be settled.
pub struct SettleCall {
    /// Which shard.
    pub shard: u32,
    /// As sent, checked.
    pub item: queue::SettleItem,
    /// Whom to tell.
    pub reply: SettleReply,
}

/// What a Lease stream says.
pub enum LeaseCall {
    /// A stream stands; events for it go to `to`.
    Connected {
        /// First request.
        hello: v1::LeaseHello,
        /// The stream's events.
        to: mpsc::UnboundedSender<Outgoing>,
    },
    /// Any request after the hello, and one of the requests that a stream may have waiting.
    Request(v1::LeaseRequest, OwnedSemaphorePermit),
    /// The stream is gone. Its lease sessions live on until they expire.
    Disconnected,
}

/// What goes out on a Lease stream.
pub enum Outgoing {
    /// As it stands.
    Event(Box<v1::LeaseEvent>),
    /// A handout whose body is to be read from the log first.
    Read {
        /// The handout, its body empty.
        event: Box<v1::LeaseEvent>,
        /// Where the body lies.
        pieces: Vec<Piece>,
        /// It could not be read a moment ago, and was looked up again.
        again: bool,
    },
}

/// A handout that never went out: its body could not be read, or was not the body that the edge sent.
#[derive(Debug)]
pub struct Unreadable {
    /// Which shard.
    pub shard: u32,
    /// Which item.
    pub item: queue::ItemId,
    /// The grant that it was handed out by.
    pub token: queue::Token,
    /// Its lease session.
    pub session: queue::LeaseSessionId,
    /// The second time in a row.
    pub again: bool,
    /// For people.
    pub reason: String,
}

/// To the state thread.
pub enum StateEvent {
    /// Entries to apply, in order, and the tickets of those that this node proposed.
    Committed {
        /// Which group.
        group: u32,
        /// Index of each proposal that is committed now.
        tickets: Vec<(u64, Ticket)>,
        /// In order of index.
        entries: Vec<crate::node::Committed>,
    },
    /// A proposal has no known index.
    Failed {
        /// Which group.
        group: u32,
        /// Which.
        ticket: Ticket,
        /// Why.
        why: Failure,
    },
    /// This node's part in a group changed.
    Role {
        /// Which group.
        group: u32,
        /// Whether it leads.
        leader: bool,
        /// In which term.
        term: u64,
    },
    /// The members of a group changed with an entry.
    ConfChanged {
        /// Which group.
        group: u32,
        /// Raft index.
        index: u64,
        /// From now on.
        members: crate::node::Membership,
    },
    /// From Append streams.
    Appends(Vec<AppendCall>),
    /// From Settle streams.
    Settles(Vec<SettleCall>),
    /// From a Lease stream.
    Lease(StreamId, LeaseCall),
    /// From Admin and Fetch.
    Ask(Question),
    /// A header block that a report needs was read; the work that waited for it goes on.
    HeaderRead(crate::decide::Pending, Bytes),
    /// From a Lease stream's reader.
    Unreadable(Unreadable),
    /// Where the groups shall be.
    Orders(Vec<GroupOrder>),
    /// The Raft thread has let a replica go.
    Destroyed {
        /// Which group.
        group: u32,
        /// Its peer id.
        peer: u64,
    },
    /// The Raft thread keeps a replica that should go, because a leader counts on it; the next order asks again.
    Needed {
        /// Which group.
        group: u32,
    },
    /// What a node said to the control group's leader.
    Heard {
        /// Which.
        node: u64,
        /// An error text: it was not reached.
        report: Result<Box<v1::SteerReport>, String>,
    },
    /// A person or the operator asks about nodes, or changes them.
    Members(MembersCall),
    /// The operator or a person declares something.
    Put(PutCall),
    /// The rows of a replica that is gone were removed, or not.
    Swept(Result<usize, crate::state::StoreError>),
    /// Rows that snapshots left behind are removed.
    Cleaned(Result<(), crate::state::StoreError>),
    /// The collector copied bodies, durably: their rows are to be moved, and soon flushed when room is short.
    Moved {
        /// What was copied.
        moves: crate::collect::Moves,
        /// The disk is pressed.
        hurry: bool,
    },
    /// Where the data of an entry lies that something still refers to.
    LocateBody {
        /// Which group.
        group: u32,
        /// Raft index.
        index: u64,
        /// What the log calls this replica, and where; `None`: nothing refers to it here.
        reply: oneshot::Sender<Option<(u32, crate::log::Location)>>,
    },
    /// A damaged body was written again, durably.
    Mended {
        /// Of which replica, as the log calls it.
        replica: u32,
        /// Raft index.
        index: u64,
        /// Where the damage is.
        from: crate::log::Location,
        /// Where it lies whole.
        to: crate::log::Location,
        /// Who pins the segment of `to`.
        pin: u64,
    },
    /// Of a snapshot.
    Snapshot {
        /// Which group.
        group: u32,
        /// What is to be done, or is done.
        work: SnapshotWork,
    },
    /// A flush of the state ended.
    Flushed(Result<crate::state::Flushed, crate::state::StoreError>),
    /// Flush and end.
    Stop,
}

/// The state thread's part in a snapshot.
pub enum SnapshotWork {
    /// Make one of what is durable.
    Make {
        /// Peer id of who needs it.
        to: u64,
    },
    /// Install what is staged, once everything before is applied.
    Install(crate::node::Made),
    /// That ended.
    Installed(
        crate::node::Made,
        Box<Result<crate::state::Switched, crate::runtime::InstallFailed>>,
    ),
}

/// To the Raft thread.
pub enum RaftEvent {
    /// What became of a snapshot.
    Snapshot {
        /// Which group.
        group: u32,
        /// What.
        input: crate::node::SnapshotInput,
    },
    /// From peers, with their groups.
    Peer(Vec<(u32, raft::eraftpb::Message)>),
    /// From the state thread; replies are for those that are answered at commit.
    Propose {
        /// Which group.
        group: u32,
        /// In order.
        proposals: Vec<crate::node::Proposal>,
        /// By ticket.
        replies: Vec<(Ticket, AppendReply)>,
    },
    /// From the log thread, in order.
    Persisted(Vec<crate::log::Written>),
    /// The state thread applied entries up to here.
    Applied {
        /// Which group.
        group: u32,
        /// Raft index.
        index: u64,
    },
    /// Entries that the log has and the cache had not.
    Fetched {
        /// Which group.
        group: u32,
        /// The fetch.
        id: u64,
        /// Index, context and data of each.
        entries: Vec<(u64, Bytes, Bytes)>,
    },
    /// The state is durable up to here: the log may be truncated, logically.
    Durable {
        /// Which group.
        group: u32,
        /// Raft index.
        applied: u64,
    },
    /// A node's disk became full, or has room again.
    Full {
        /// Which node.
        node: u64,
        /// Whether.
        full: bool,
    },
    /// A replica that this node has from now on.
    Create(Box<crate::node::Group>),
    /// A replica that this node shall not have any more.
    Destroy {
        /// Which group.
        group: u32,
        /// Its peer id.
        peer: u64,
    },
    /// Who the members of groups shall be.
    Plans(Vec<(u32, crate::node::Plan)>),
    /// What the control group's leader wants to know of the replicas.
    Report(oneshot::Sender<Vec<v1::ReplicaReport>>),
    /// Where a committed entry of a group's log lies.
    Locate {
        /// Which group.
        group: u32,
        /// Raft index.
        index: u64,
        /// `None`: it is not committed, or gone from the log.
        reply: oneshot::Sender<Option<crate::log::Location>>,
    },
    /// What the groups are doing.
    Status(oneshot::Sender<Vec<v1::GroupStatus>>),
    /// Give all leadership away: this node is about to stop.
    HandOver,
    /// The disk failed; this replica node stops for good.
    Failed(String),
    /// End.
    Stop,
}

/// To the log thread.
pub enum LogEvent {
    /// To be written, in order.
    Write(Vec<crate::log::WriteTask>),
    /// A group was truncated, logically: what the next segment's STATE batch says.
    Truncated {
        /// Which group.
        group: u32,
        /// Of the last entry that is gone.
        index: u64,
        /// Of the last entry that is gone.
        term: u64,
    },
    /// Entries that a lagging follower needs and the cache has not.
    Fetch {
        /// Which group.
        group: u32,
        /// To give back.
        id: u64,
        /// Where they lie.
        entries: Vec<crate::node::FetchEntry>,
    },
    /// The state as of its last durable flush.
    Durable {
        /// What lives in each segment.
        live: std::collections::BTreeMap<u64, crate::state::SegmentLive>,
        /// Index up to which each replica's rows are durable, by what the log calls it.
        applied: std::collections::BTreeMap<u32, u64>,
    },
    /// This node does not have the replica any more; what the log calls it.
    Gone(u32),
    /// A damaged body that came from another replica, to be written again.
    Mend {
        /// What the log calls the replica.
        replica: u32,
        /// Raft index.
        index: u64,
        /// Where the damage is.
        from: crate::log::Location,
        /// The entry's data.
        data: Bytes,
    },
    /// The durable state refers to what these pins kept. Comes after the [`LogEvent::Durable`] that says so.
    Unpin(Vec<u64>),
    /// Bodies of a snapshot, to be written and pinned.
    Bodies {
        /// Whose pins: the snapshot's id.
        who: u64,
        /// What the log calls the replica.
        replica: u32,
        /// Index of the entry that brought it, and its data.
        bodies: Vec<(u64, Bytes)>,
        /// Where each lies.
        reply: Sender<Result<Vec<crate::log::Location>, crate::log::WriteError>>,
    },
    /// Octets that the metadata store uses of the same disk.
    OtherBytes(u64),
    /// End.
    Stop,
}

/// The mailboxes of a node.
#[derive(Clone)]
pub struct Mailboxes {
    /// To the state thread.
    pub state: Sender<StateEvent>,
    /// To the Raft thread.
    pub raft: Sender<RaftEvent>,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;

    #[test]
    fn a_reply_is_answered_once_and_also_when_nobody_can_any_more() {
        let door = Arc::new(Semaphore::new(2));
        let (to, mut answers) = mpsc::unbounded_channel();
        let reply = |request| AppendReply {
            request,
            to: to.clone(),
            permit: Some(door.clone().try_acquire_owned().expect("the door is wide")),
        };
        let (told, dropped) = (reply(1), reply(2));
        told.send(v1::AppendOutcome::Created);
        drop(dropped);
        let mut heard = || answers.try_recv().map(|a| (a.request, a.outcome()));
        assert_eq!(heard(), Ok((1, v1::AppendOutcome::Created)));
        assert_eq!(heard(), Ok((2, v1::AppendOutcome::Unknown)));
        assert!(heard().is_err(), "each is answered once");
        assert_eq!(door.available_permits(), 2);
    }
}
