//! Bugs that the simulator must find. They exist only behind the feature `planted-bugs`; without it, asking for one is
//! a constant `false`, and `apply` reads nothing but its arguments.

/// A bug of the state machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Mutation {
    /// The id of a finished message is forgotten within seconds.
    ForgetEarly,
    /// An item expires though its time has not come.
    ExpireEarly,
    /// An item is granted though it is not due.
    GrantEarly,
    /// A failure or deferral under an old token counts.
    StaleCounts,
    /// A success under an old token does not count.
    LateSuccessRefused,
    /// A lease session ends, and what it held stays leased.
    SessionsLeaveItems,
    /// What an entry does depends on what else its replica did.
    OwnOpinion,
    /// An upload that nobody ends is kept for ever.
    UploadsStay,
}

#[cfg(feature = "planted-bugs")]
mod cell {
    use std::cell::Cell;

    use super::Mutation;

    thread_local! {
        static PLANTED: Cell<Option<Mutation>> = const { Cell::new(None) };
        static APPLIED: Cell<u64> = const { Cell::new(0) };
    }

    /// Plants a bug in what this thread applies from now on, or none.
    pub fn plant(mutation: Option<Mutation>) {
        PLANTED.set(mutation);
    }

    pub(crate) fn planted(mutation: Mutation) -> bool {
        PLANTED.get() == Some(mutation)
    }

    /// Something that differs from replica to replica.
    pub(crate) fn opinion() -> u64 {
        if !planted(Mutation::OwnOpinion) {
            return 0;
        }
        APPLIED.set(APPLIED.get() + 1);
        u64::from(APPLIED.get().is_multiple_of(31))
    }
}

#[cfg(not(feature = "planted-bugs"))]
mod cell {
    use super::Mutation;

    pub(crate) const fn planted(_mutation: Mutation) -> bool {
        false
    }

    pub(crate) const fn opinion() -> u64 {
        planted(Mutation::OwnOpinion) as u64
    }
}

#[cfg(feature = "planted-bugs")]
pub use cell::plant;
pub(crate) use cell::{opinion, planted};
