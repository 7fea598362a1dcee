//! What an applied entry changed, for the driver: answers to whoever waits, the leader's scheduler, and the local
//! accounting of the log's segments. Effects are the same on every replica; only the leader acts on most of them.

use std::sync::Arc;

use mail::{Destination, Ulid};

use crate::{Extent, ItemId, LeaseSessionId, Timestamp, Token};

/// One thing that an entry did.
#[derive(Clone, PartialEq, Debug)]
pub enum Effect {
    /// A message exists now.
    Created {
        /// Which.
        message: Ulid,
    },
    /// An Append of a message that is live, or finished and remembered.
    AlreadyQueued {
        /// Which.
        message: Ulid,
    },
    /// The same id with another digest: the first is kept. An alarm.
    Conflict {
        /// Which.
        message: Ulid,
    },
    /// An Append named chunks that are not (all) there.
    UploadGone {
        /// Which.
        message: Ulid,
    },
    /// A chunk is kept (also when it was there before).
    ChunkStored {
        /// Of which message.
        message: Ulid,
        /// Which.
        seq: u32,
    },
    /// Body octets that are referred to from now on.
    BodyKept(Extent),
    /// Body octets that nothing refers to any more.
    BodyDropped(Extent),
    /// An item became Waiting.
    Waiting {
        /// Which.
        item: ItemId,
        /// Where it goes.
        destination: Destination,
        /// The pools choose by it.
        class: Arc<str>,
        /// -9 to 9.
        priority: i8,
        /// When it may be granted.
        due: Timestamp,
    },
    /// An item that was Waiting is not any more (held, dropped, expired, settled by a late success, due at another
    /// time). A grant says so by [`Effect::Granted`] alone.
    LeftWaiting {
        /// Which.
        item: ItemId,
        /// Where it goes.
        destination: Destination,
    },
    /// An item was granted. The driver hands it out.
    Granted {
        /// Which.
        item: ItemId,
        /// To whom.
        session: LeaseSessionId,
        /// The fencing number: the index of this entry.
        token: Token,
        /// When the leader asks `still working?`.
        deadline: Timestamp,
        /// Where it goes.
        destination: Destination,
    },
    /// A grant ended: settled, expired, superseded or dropped. The scheduler's counts go down.
    Ungranted {
        /// Which.
        item: ItemId,
        /// Whose it was.
        session: LeaseSessionId,
        /// Where it goes.
        destination: Destination,
    },
    /// Another node delivered it: the holder aborts unless past the final dot.
    Revoke {
        /// Which.
        item: ItemId,
        /// Whose.
        session: LeaseSessionId,
    },
    /// A lease session exists now.
    SessionOpened {
        /// The index of this entry.
        session: LeaseSessionId,
        /// The node's name.
        node: Arc<str>,
        /// Items that it holds from before (past the final dot), with their new tokens.
        kept: Vec<KeptItem>,
    },
    /// An OpenSession that came after a later one of the same node: it opened nothing.
    OpenRefused {
        /// The node's name.
        node: Arc<str>,
    },
    /// The state machine behaves as this version from the next entry on.
    VersionSet {
        /// See [`crate::version::NEWEST`].
        version: u32,
    },
    /// Every replica digests rows now; the driver does, as it knows their octets.
    DigestWanted {
        /// Where the rows begin.
        from: Arc<[u8]>,
        /// How many at most.
        rows: u32,
    },
    /// A grant that came to nothing: the item is not Waiting, not due, or the lease session is gone. Where
    /// the item still waits, [`Effect::Waiting`] follows.
    GrantSkipped {
        /// Which.
        item: ItemId,
        /// To whom it was to go.
        session: LeaseSessionId,
    },
    /// A lease session is gone.
    SessionEnded {
        /// Which.
        session: LeaseSessionId,
        /// For the node's log.
        reason: &'static str,
    },
    /// A keepalive was applied.
    KeptAlive {
        /// Whose.
        session: LeaseSessionId,
    },
    /// The answer to one settled item; in the order of the command's items.
    Settled {
        /// Which.
        item: ItemId,
        /// From which grant.
        token: Token,
        /// The answer.
        outcome: SettleOutcome,
    },
    /// All items of a message are terminal.
    Finished {
        /// Which.
        message: Ulid,
    },
    /// What an Admin command did to one item; in the order of the command's items.
    Administered {
        /// Which.
        item: ItemId,
        /// What.
        done: AdminOutcome,
    },
    /// A result that can mean a second delivery: the success of a stale grant, or an ambiguous end. Counted and shown.
    PossibleDuplicate {
        /// Which.
        item: ItemId,
        /// `stale success`, `ambiguous`, `lost attempt`.
        why: &'static str,
    },
}

/// An item that a delivery node keeps over its own restart.
#[derive(Clone, PartialEq, Debug)]
pub struct KeptItem {
    /// Which.
    pub item: ItemId,
    /// Its new fencing number.
    pub token: Token,
    /// When the leader asks `still working?`.
    pub deadline: Timestamp,
    /// Where it goes.
    pub destination: Destination,
}

/// The answer to a settle.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SettleOutcome {
    /// Done (also where only a part counted).
    Applied,
    /// The item or these recipients were terminal before.
    AlreadyTerminal,
    /// The token is not the present grant's, and nothing in the results is a success.
    Fenced,
}

/// What became of an administered item.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AdminOutcome {
    /// At once.
    Done,
    /// It is Leased: the mark acts when the lease ends.
    Marked,
    /// There is no such item, or nothing to change.
    Missing,
}
