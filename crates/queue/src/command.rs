//! What the leader decided: facts only.

use std::sync::Arc;

use mail::{Destination, Digest, Ulid};

/// Cluster time, or another instant, in milliseconds since the Unix epoch. Due times compare only with cluster time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Debug)]
pub struct Timestamp(pub u64);

/// A shard's lease session of one delivery node: the Raft index of the entry that opened it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct LeaseSessionId(pub u64);

/// The fencing number of a grant: the Raft index of the entry that granted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Token(pub u64);

/// One message to one destination: what is leased, settled and retried.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ItemId {
    /// The message.
    pub message: Ulid,
    /// The number of the item within the message.
    pub number: u32,
}

/// An entry as `apply` sees it.
#[derive(Clone, PartialEq, Debug)]
pub struct Facts {
    /// Cluster time that the leader gave to this entry.
    pub time: Timestamp,
    /// What it decided.
    pub command: Command,
}

/// Every change of the state machine.
#[derive(Clone, PartialEq, Debug)]
pub enum Command {
    /// A message enters.
    Append(Box<Append>),
    /// A part of the body of a big message; only [`Command::Append`] creates the message.
    BodyChunk {
        /// The message that is to come.
        message: Ulid,
        /// Position of the part, from 0.
        seq: u32,
        /// Octets.
        size: u32,
    },
    /// Uploads whose last chunk is too long ago.
    ExpireUpload {
        /// Their ids.
        messages: Vec<Ulid>,
    },
    /// A delivery node begins, or begins anew.
    OpenSession(OpenSession),
    /// What gathered in one window of a few milliseconds.
    Window(Window),
    /// A lease session was not heard of for its time to live.
    ExpireSession {
        /// Which.
        session: LeaseSessionId,
        /// When items that lost an attempt before are due again; the first loss is due at once.
        retry: Timestamp,
    },
    /// Results.
    Settle(Vec<SettleItem>),
    /// A delay notice or the expiry of an item that is not Leased.
    ItemTimer(ItemTimer),
    /// A person's decision.
    Admin(Admin),
    /// A remark for the record.
    Note {
        /// Who.
        actor: Arc<str>,
        /// What.
        text: Arc<str>,
    },
    /// From the next entry on the state machine behaves as this version; see [`crate::version`]. Never goes back.
    SetVersion {
        /// See [`crate::version::NEWEST`].
        version: u32,
    },
    /// Every replica digests the same rows at this entry, so that they can be compared. The rows do not change.
    VerifyDigest {
        /// Where the rows begin, as the driver understands it; empty: with the first.
        from: Arc<[u8]>,
        /// How many rows at most.
        rows: u32,
    },
}

/// What the edge knows of a message; kept with it for its whole life.
#[derive(Clone, PartialEq, Debug)]
pub struct MessageFacts {
    /// Its id, made by the edge.
    pub message: Ulid,
    /// The namespace that admitted it.
    pub tenant: Arc<str>,
    /// The name that a RelayDomain or account gives its mail.
    pub class: Arc<str>,
    /// -9 to 9 (RFC 6710).
    pub priority: i8,
    /// Empty: the null path.
    pub return_path: Arc<str>,
    /// One an item; the number is the position.
    pub items: Vec<ItemFacts>,
    /// Octets of the body.
    pub size: u64,
    /// Of the body.
    pub digest: Digest,
    /// Octets of the header block, with its empty line.
    pub header_size: u32,
    /// BODY=8BITMIME was declared.
    pub eight_bit: bool,
    /// SMTPUTF8 was declared.
    pub smtputf8: bool,
    /// 0: the body is the data of the entry; else the count of its chunks.
    pub chunks: u32,
    /// Who brought it.
    pub origin: Arc<Origin>,
    /// W3C traceparent.
    pub trace_context: Arc<str>,
    /// The edge's wall clock, for people.
    pub arrived: Timestamp,
}

/// The recipients that one transaction can serve, at most [`RECIPIENTS_PER_ITEM_MAX`].
#[derive(Clone, PartialEq, Debug)]
pub struct ItemFacts {
    /// Where.
    pub destination: Destination,
    /// To whom.
    pub recipients: Vec<Arc<str>>,
}

/// RFC 5321 4.5.3.1.8: a server takes at least 100 recipients a transaction, so no next hop refuses for the count.
pub const RECIPIENTS_PER_ITEM_MAX: usize = 100;

/// Who brought a message, for events and traces.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Origin {
    /// Header Message-ID, at most 250 octets.
    pub message_id: String,
    /// The sender's own word for it.
    pub tag: String,
    /// At most 512 octets.
    pub meta: String,
    /// IP address and port.
    pub client_address: String,
    /// What it called itself.
    pub helo: String,
    /// The account, certificate or network that had the right to relay.
    pub principal: String,
    /// Where it came in.
    pub listener: String,
    /// Empty: in clear.
    pub tls_version: String,
    /// Empty: in clear.
    pub tls_cipher: String,
    /// The edge node's name.
    pub edge: String,
}

/// A message enters.
#[derive(Clone, PartialEq, Debug)]
pub struct Append {
    /// As the edge sent them.
    pub facts: MessageFacts,
    /// When what is left of it fails.
    pub expires: Timestamp,
    /// When the sender is told of the delay; `None`: never.
    pub notice: Option<Timestamp>,
    /// Express lane: grants in the same entry. Ignored where the message exists, the lease session is gone, or the item is unknown.
    pub grant_to: Vec<ExpressGrant>,
}

/// A grant inside an Append.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ExpressGrant {
    /// Number of the item.
    pub number: u32,
    /// To whom.
    pub session: LeaseSessionId,
    /// Cluster time at which the leader asks whether the node still works on it.
    pub deadline: Timestamp,
}

/// A delivery node begins, or begins anew.
#[derive(Clone, PartialEq, Debug)]
pub struct OpenSession {
    /// The node's name.
    pub node: Arc<str>,
    /// Of the delivery process. Under one `boot_id` a later process compares greater.
    pub incarnation: [u8; 16],
    /// Of this request within the process: rises. A request that comes after a later one is void.
    pub sequence: u64,
    /// Of the kernel that it runs on: a same one proves by the data directory's lock that the older process is dead.
    pub boot_id: Arc<str>,
    /// Items past the final dot: they stay leased, now under the new lease session.
    pub past_dot: Vec<ItemId>,
    /// Items that were not: due at once, no attempt counted.
    pub handed_back: Vec<ItemId>,
    /// As in [`Command::ExpireSession`], for what the older lease session held beyond these lists.
    pub retry: Timestamp,
}

/// Keepalives, grants and extensions of one window.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Window {
    /// Lease sessions heard of.
    pub keepalives: Vec<LeaseSessionId>,
    /// Who gets what.
    pub grants: Vec<GrantBatch>,
    /// Whose deadlines move; never a token.
    pub extends: Vec<GrantBatch>,
}

/// Items for one lease session.
#[derive(Clone, PartialEq, Debug)]
pub struct GrantBatch {
    /// Whose.
    pub session: LeaseSessionId,
    /// What, and until when (cluster time).
    pub items: Vec<(ItemId, Timestamp)>,
}

/// The results of one attempt, with what the leader decided of them.
#[derive(Clone, PartialEq, Debug)]
pub struct SettleItem {
    /// Which.
    pub item: ItemId,
    /// The grant that the results come from.
    pub token: Token,
    /// Its lease session.
    pub session: LeaseSessionId,
    /// Handed back unattempted: due at once, counts nothing. With `retry` it was denied (the node says that it does not
    /// hold it): counts as a lost attempt, as in [`Command::ExpireSession`].
    pub release: bool,
    /// One a recipient that was tried.
    pub results: Vec<RecipientResult>,
    /// When the rest is due again. `None`: `give_up`, or nothing is left.
    pub retry: Option<Timestamp>,
    /// The rest fails now (expired): `reports` tells of it.
    pub give_up: bool,
    /// Written only if this settle turned a recipient to failed.
    pub reports: Vec<Report>,
}

/// What became of one recipient in one attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The next hop took it. Sticky.
    Delivered,
    /// To be tried again.
    Deferred,
    /// For good.
    Failed,
}

/// The result of one recipient.
#[derive(Clone, PartialEq, Debug)]
pub struct RecipientResult {
    /// Position in the item.
    pub recipient: u32,
    /// What became of it.
    pub verdict: Verdict,
    /// Reply code; 0: there was no reply.
    pub code: u16,
    /// RFC 3463, as text; may be empty.
    pub enhanced: Arc<str>,
    /// At most [`RESULT_TEXT_MAX`] octets.
    pub text: Arc<str>,
    /// Name of the host that answered.
    pub remote_host: Arc<str>,
    /// Its address and port.
    pub remote_address: Arc<str>,
    /// TLS version and how it was verified; empty: in clear.
    pub tls: Arc<str>,
    /// Milliseconds until the connection stood.
    pub connect_ms: u32,
    /// Milliseconds of the whole attempt.
    pub total_ms: u32,
    /// Selectors that signed.
    pub dkim_selectors: Vec<Arc<str>>,
    /// No host was reached: not counted as an attempt at the recipient.
    pub never_reached: bool,
    /// The connection was lost after the final dot: it may have been taken.
    pub ambiguous: bool,
}

/// Longest text of a result, octets: it is a row of its own, and rows stay below 1 KiB.
pub const RESULT_TEXT_MAX: usize = 512;

/// A delivery report, composed by the leader: a message of its own in the same shard.
#[derive(Clone, PartialEq, Debug)]
pub struct Report {
    /// Null return path, one item.
    pub facts: MessageFacts,
    /// Where its body begins in the entry's data; it has `facts.size` octets.
    pub offset: u64,
    /// When it fails (silently: a report is never reported on).
    pub expires: Timestamp,
}

/// A delay notice or an expiry.
#[derive(Clone, PartialEq, Debug)]
pub struct ItemTimer {
    /// Which.
    pub item: ItemId,
    /// The item fails; else its sender is told of the delay.
    pub expire: bool,
    /// What is told.
    pub reports: Vec<Report>,
}

/// What a person can do with items.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AdminAction {
    /// Keep it back. A Leased item gets a mark that acts at settle or release; a success still counts.
    Hold,
    /// End a hold.
    Release,
    /// Due now.
    Retry,
    /// Delete without a report.
    Drop,
}

/// A person's decision.
#[derive(Clone, PartialEq, Debug)]
pub struct Admin {
    /// What.
    pub action: AdminAction,
    /// To what.
    pub items: Vec<ItemId>,
    /// Who.
    pub actor: Arc<str>,
    /// Why.
    pub reason: Arc<str>,
}
