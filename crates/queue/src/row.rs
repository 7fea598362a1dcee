//! What is kept of a message while it lives. A row stays below 1 KiB (the metadata store's journal recovers whole
//! batches of small values after a power cut; see `spool::state`).

use std::sync::Arc;

use mail::{Destination, Digest, Ulid};

use crate::{ItemId, LeaseSessionId, Origin, RecipientResult, Timestamp, Token};

/// Where a part of a body lies: in the data of the entry at `index` of this group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Raft index.
    pub index: u64,
    /// Octets into the entry's data.
    pub offset: u64,
    /// Octets.
    pub length: u64,
}

/// One a message.
#[derive(Clone, PartialEq, Debug)]
pub struct Message {
    /// See [`crate::MessageFacts`].
    pub tenant: Arc<str>,
    /// See [`crate::MessageFacts`].
    pub class: Arc<str>,
    /// See [`crate::MessageFacts`].
    pub priority: i8,
    /// Empty: the null path.
    pub return_path: Arc<str>,
    /// The edge's wall clock.
    pub arrived: Timestamp,
    /// Cluster time of its Append: what its age is counted from.
    pub appended: Timestamp,
    /// When what is left of it fails.
    pub expires: Timestamp,
    /// When the sender is told of the delay.
    pub notice: Option<Timestamp>,
    /// Octets of the body.
    pub size: u64,
    /// Of the body.
    pub digest: Digest,
    /// Octets of the header block.
    pub header_size: u32,
    /// BODY=8BITMIME was declared.
    pub eight_bit: bool,
    /// SMTPUTF8 was declared.
    pub smtputf8: bool,
    /// The body, in order.
    pub body: Vec<Extent>,
    /// Items that live.
    pub items_left: u32,
    /// A report is never reported on.
    pub is_report: bool,
    /// The worst end of its items so far.
    pub ending: Ending,
    /// Who brought it.
    pub origin: Arc<Origin>,
    /// W3C traceparent.
    pub trace_context: Arc<str>,
}

/// One an item.
#[derive(Clone, PartialEq, Debug)]
pub struct Item {
    /// Where it goes.
    pub destination: Destination,
    /// What is happening to it.
    pub state: State,
    /// Attempts that reached a host.
    pub attempts: u32,
    /// Attempts in a row that reached no host; they have a schedule of their own.
    pub unreached: u32,
    /// Grants that ended without a word (see `LOST_ATTEMPTS_MAX`).
    pub lost: u32,
    /// What is to happen when the present lease ends.
    pub mark: Option<Mark>,
    /// Recipients of the item.
    pub recipients: u32,
    /// Those that are not terminal.
    pub recipients_left: u32,
    /// The sender was told of the delay.
    pub notice_sent: bool,
    /// The next of notice and expiry: the key of its row in `timers` while it is Waiting.
    pub timer: Timestamp,
    /// The last deferral, for people; at most [`crate::RESULT_TEXT_MAX`] octets.
    pub reason: Arc<str>,
}

/// The states of an item.
#[derive(Clone, PartialEq, Debug)]
pub enum State {
    /// For its time, or for a delivery node with room. Its row is in `due`.
    Waiting {
        /// When it may be granted.
        due: Timestamp,
    },
    /// Its row is in `inflight`.
    Leased {
        /// Whose.
        session: LeaseSessionId,
        /// The fencing number.
        token: Token,
        /// When the leader asks `still working?`.
        deadline: Timestamp,
    },
    /// Kept back until a person releases it; it does not expire. Its row is in `held`.
    Held {
        /// By whom, or `lost attempts`.
        reason: Arc<str>,
    },
}

/// A decision that waits for the end of a lease.
#[derive(Clone, PartialEq, Debug)]
pub enum Mark {
    /// Becomes Held.
    Hold {
        /// Why.
        reason: Arc<str>,
    },
    /// Is deleted.
    Drop,
}

/// One a recipient: a row each keeps rows small.
#[derive(Clone, PartialEq, Debug)]
pub struct Recipient {
    /// As it is to stand in RCPT.
    pub address: Arc<str>,
    /// The last result; terminal when Delivered or Failed.
    pub result: Option<RecipientResult>,
}

/// Key of a recipient's row.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RecipientId {
    /// Of which item.
    pub item: ItemId,
    /// Position.
    pub number: u32,
}

/// Key of every Waiting item, also of those due at once. Sorted so that one destination's mail within a minute lies
/// together and can be skipped in one seek.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DueKey {
    /// `due` in whole minutes.
    pub minute: u64,
    /// The delivery pools choose by it.
    pub class: Arc<str>,
    /// Where it goes.
    pub destination: Destination,
    /// Negated priority: the most urgent first.
    pub rank: i8,
    /// When it may be granted.
    pub due: Timestamp,
    /// Which.
    pub item: ItemId,
}

impl DueKey {
    /// The key of an item of a message with this class and priority.
    pub fn new(
        item: ItemId,
        class: &Arc<str>,
        destination: &Destination,
        priority: i8,
        due: Timestamp,
    ) -> DueKey {
        let (minute, rank) = (due.0 / 60_000, priority.saturating_neg());
        DueKey {
            minute,
            class: class.clone(),
            destination: destination.clone(),
            rank,
            due,
            item,
        }
    }
}

/// A delivery node's lease session on this shard.
#[derive(Clone, PartialEq, Debug)]
pub struct LeaseSession {
    /// The node's name.
    pub node: Arc<str>,
    /// Of its process.
    pub incarnation: [u8; 16],
    /// Of the request that opened it, within the process; 0 before version 2.
    pub sequence: u64,
    /// Of its kernel.
    pub boot_id: Arc<str>,
    /// Cluster time of the entry that opened it.
    pub opened: Timestamp,
}

/// What is in flight under a lease session.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct InFlight {
    /// The fencing number.
    pub token: Token,
    /// When the leader asks `still working?`.
    pub deadline: Timestamp,
}

/// Counts of a destination; the row goes when all are 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DestinationCounts {
    /// Items Waiting.
    pub waiting: u64,
    /// Items Leased.
    pub leased: u64,
    /// Items Held.
    pub held: u64,
}

/// What is remembered of a finished message, for [`crate::DEDUPE_MS`] after its Append.
#[derive(Clone, PartialEq, Debug)]
pub struct Finished {
    /// Tells a retry from another body under the same id.
    pub digest: Digest,
    /// Cluster time at which it is forgotten.
    pub forget: Timestamp,
    /// How it ended, for people.
    pub ending: Ending,
}

/// How a message ended: the worst end of its recipients.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Ending {
    /// Every recipient was delivered.
    #[default]
    Delivered,
    /// A recipient failed; a report was written if there was somebody to report to.
    Failed,
    /// A person deleted it.
    Dropped,
}

/// Key of `forgets`: rows of `finished` that the sweep in order of ULIDs does not find in time, because the message
/// is much younger than its ULID (a big one that came in slowly). Few.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ForgetKey {
    /// Cluster time.
    pub at: Timestamp,
    /// Which.
    pub message: Ulid,
}

/// A big message that is still coming in.
#[derive(Clone, PartialEq, Debug)]
pub struct Upload {
    /// Its chunks so far, in order.
    pub chunks: Vec<Extent>,
    /// Octets so far.
    pub bytes: u64,
    /// Cluster time of the last chunk.
    pub last: Timestamp,
}

/// Key of `timers`: the next of notice and expiry of an item. Only a Waiting item has a row: a Leased one expires at its
/// next settle and a Held one not at all, so that none of them stands in the way of the leader's scan.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct TimerKey {
    /// Cluster time.
    pub at: Timestamp,
    /// Whose.
    pub item: ItemId,
}

/// One row a shard.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct ShardState {
    /// The highest cluster time applied.
    pub time: Timestamp,
    /// Live messages.
    pub messages: u64,
    /// Octets of their bodies.
    pub bytes: u64,
    /// Octets of uploads.
    pub upload_bytes: u64,
    /// Items Waiting.
    pub waiting: u64,
    /// Items Leased.
    pub leased: u64,
    /// Items Held.
    pub held: u64,
    /// Where the sweep of `finished` goes on: no row below this ULID is its business.
    pub sweep_from: Ulid,
    /// Cluster time before which the sweep of `finished` finds nothing.
    pub sweep_at: Timestamp,
    /// Where the sweep of `forgets` goes on.
    pub forget_from: Timestamp,
    /// What was set by [`crate::Command::SetVersion`]; 0: nothing yet, which is version 1.
    pub version: u32,
}

/// Key of a message's rows; here for symmetry of the tables.
pub type MessageId = Ulid;
