//! What remote servers took, and why something was taken twice: each second delivery has a cause that SMTP or a crash
//! forces (queue.md 5.5), or the run fails.

use std::collections::{BTreeMap, BTreeSet};

use queue::{ItemId, LeaseSessionId, Token};

/// Why a remote server may be sent the same item again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Window {
    /// The delivery node died after the final dot, before it had the reply.
    DiedPastDot,
    /// The power failed after the reply, and the journal with it, before its settle was committed.
    LostJournal,
    /// The node kept the reply, but its lease session ran out before its settle was committed.
    SessionRanOut,
}

#[derive(Clone, Copy, Debug)]
struct Acceptance {
    session: LeaseSessionId,
    token: Token,
    excuse: Option<Window>,
    settled: bool,
}

/// All that remote servers said 250 to.
#[derive(Default)]
pub struct Deliveries {
    taken: BTreeMap<ItemId, Vec<Acceptance>>,
    /// Lease sessions that ended; by their time to live?
    ended: BTreeMap<LeaseSessionId, bool>,
    /// Grants that a late success of another node ended.
    revoked: BTreeSet<(ItemId, LeaseSessionId)>,
    /// Second deliveries by cause.
    pub duplicates: BTreeMap<Window, u64>,
}

impl Deliveries {
    pub fn has(&self, item: ItemId) -> bool {
        self.taken.contains_key(&item)
    }

    /// A remote server took it. `excuse`: the node will never know.
    pub fn accepted(
        &mut self,
        item: ItemId,
        session: LeaseSessionId,
        token: Token,
        excuse: Option<Window>,
    ) -> Result<(), String> {
        let taken = self.taken.entry(item).or_default();
        for before in taken.iter() {
            let ran_out = self.ended.get(&before.session).copied().unwrap_or(false);
            let ran_out = (ran_out && !before.settled).then_some(Window::SessionRanOut);
            let Some(window) = before.excuse.or(ran_out) else {
                return Err(format!(
                    "{item:?} is delivered under {token:?} of {session:?} and was under {:?} of {:?}, without a cause",
                    before.token, before.session
                ));
            };
            *self.duplicates.entry(window).or_default() += 1;
        }
        taken.push(Acceptance {
            session,
            token,
            excuse,
            settled: false,
        });
        Ok(())
    }

    /// Power failed at a node: what its journal had of this grant is lost.
    pub fn journal_lost(&mut self, item: ItemId, token: Token) {
        self.each(item, token, |taken| {
            if !taken.settled {
                taken.excuse = Some(Window::LostJournal);
            }
        });
    }

    /// A settle of this grant stands in the log: from now on there is no excuse, unless it came too late.
    pub fn settled(&mut self, item: ItemId, token: Token) {
        let taken = self.taken.get_mut(&item).into_iter().flatten();
        for taken in taken.filter(|taken| taken.token == token && !taken.settled) {
            taken.settled = true;
            if self.ended.get(&taken.session) == Some(&true) {
                taken.excuse = taken.excuse.or(Some(Window::SessionRanOut));
            }
        }
    }

    /// A late success ended the grant of another node, which may not know of it yet.
    pub fn revoked(&mut self, item: ItemId, session: LeaseSessionId) {
        self.revoked.insert((item, session));
    }

    pub fn was_revoked(&self, item: ItemId, session: LeaseSessionId) -> bool {
        self.revoked.contains(&(item, session))
    }

    /// A node keeps an item over its own restart, under a new lease session and number.
    pub fn kept(&mut self, item: ItemId, old: Token, session: LeaseSessionId, new: Token) {
        self.each(item, old, |taken| {
            (taken.session, taken.token) = (session, new);
        });
    }

    pub fn session_ended(&mut self, session: LeaseSessionId, expired: bool) {
        self.ended.insert(session, expired);
    }

    fn each(&mut self, item: ItemId, token: Token, mut change: impl FnMut(&mut Acceptance)) {
        let taken = self.taken.get_mut(&item).into_iter().flatten();
        taken
            .filter(|taken| taken.token == token)
            .for_each(&mut change);
    }
}
