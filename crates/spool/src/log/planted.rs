//! Bugs of the log that the simulator must find. They exist only behind the feature `planted-bugs`; without it, asking
//! for one is a constant `false`.

/// A bug of the log.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Mutation {
    /// A write is reported without its fdatasync.
    NoSync,
    /// The directory entry of a new segment is not synced.
    NoDirSync,
    /// A last batch whose payloads are torn counts.
    TornTaken,
}

#[cfg(feature = "planted-bugs")]
mod cell {
    use std::cell::Cell;

    use super::Mutation;

    thread_local! {
        static PLANTED: Cell<Option<Mutation>> = const { Cell::new(None) };
    }

    /// Plants a bug in the logs that this thread writes and opens from now on, or none.
    pub fn plant(mutation: Option<Mutation>) {
        PLANTED.set(mutation);
    }

    pub(in crate::log) fn planted(mutation: Mutation) -> bool {
        PLANTED.get() == Some(mutation)
    }
}

#[cfg(not(feature = "planted-bugs"))]
mod cell {
    use super::Mutation;

    pub(in crate::log) const fn planted(_mutation: Mutation) -> bool {
        false
    }
}

#[cfg(feature = "planted-bugs")]
pub use cell::plant;
pub(in crate::log) use cell::planted;
