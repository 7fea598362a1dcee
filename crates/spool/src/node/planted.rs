//! Bugs that the simulator must find. They exist only behind the feature `planted-bugs`; without it, asking for one is
//! a constant `false`.

/// A bug in the order of operations, each one made by some system in earnest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Mutation {
    /// A follower's append responses and votes leave before its fsync.
    FollowerEarly,
    /// A leader answers when its own disk has the entry.
    AckLocal,
    /// A leader answers as soon as it has proposed.
    AckProposed,
    /// Proposals are answered in their order, whatever was committed.
    Fifo,
    /// The messages of a Ready without a write overtake the writes before it.
    EmptyEarly,
    /// A proposal is answered by its index alone, and waits on after a loss of leadership.
    NoTermCheck,
    /// A Ready with nothing but a new term or vote is not waited for.
    TermVoteNotWaited,
    /// A leader whose own vote is not durable sends at once.
    NoGate,
    /// A learner is promoted whatever it lacks.
    PromoteEarly,
    /// Only the leader that began a joint configuration ends it (etcd#12136).
    StayJoint,
    /// The old replica is demoted before the new one votes.
    RemoveFirst,
    /// The log does not wait for a snapshot that is on its way.
    TruncatesPast,
}

impl super::Group {
    /// Plants a bug, for the tests of the simulator.
    #[cfg(feature = "planted-bugs")]
    pub fn plant(&mut self, mutation: Option<Mutation>) {
        self.mutation = mutation;
    }

    #[cfg(feature = "planted-bugs")]
    pub(super) fn planted(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    #[cfg(not(feature = "planted-bugs"))]
    pub(super) const fn planted(&self, _mutation: Mutation) -> bool {
        false
    }

    /// Pops a waiter for each committed entry that is not empty.
    #[cfg(feature = "planted-bugs")]
    pub(super) fn answer_in_order(&mut self) {
        let reached = self.raw.raft.raft_log.committed;
        while self.answered < reached {
            self.answered += 1;
            let empty = self
                .raw
                .store()
                .slot(self.answered)
                .is_none_or(|slot| slot.context_len == 0);
            if !empty && let Some((index, waiter)) = self.waiters.pop_first() {
                let (ticket, ack) = (waiter.ticket, waiter.ack);
                self.actions
                    .push(super::Action::Committed { ticket, index, ack });
            }
        }
    }

    #[cfg(not(feature = "planted-bugs"))]
    pub(super) fn answer_in_order(&mut self) {}
}
