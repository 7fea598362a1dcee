//! Lease: sessions of delivery nodes, grants and deadlines.

use std::collections::BTreeSet;
use std::sync::Arc;

use mail::Ulid;

use crate::apply::Shard;
use crate::planted::{Mutation, planted};
use crate::{
    Effect, GrantBatch, InFlight, Item, ItemId, KeptItem, LeaseSession, LeaseSessionId,
    OpenSession, State, Timestamp, Token, Window,
};

/// Rows that one read of a table takes.
const PAGE_ROWS: usize = 256;

impl Shard<'_> {
    pub(crate) fn open_session(&mut self, open: &OpenSession) {
        let session = LeaseSessionId(self.index);
        let ordered = self.knows(crate::version::OPENS_IN_ORDER);
        let superseded = self.superseded_by(open, session);
        // It was under way for so long that a later request, or a later process, was there first. It must not end that one's
        // lease session: the node would not know, and send final dots for items that are granted elsewhere.
        let late = |(_, row): &(_, Arc<LeaseSession>)| {
            (row.incarnation, row.sequence) > (open.incarnation, open.sequence)
        };
        if ordered && superseded.iter().any(late) {
            let node = open.node.clone();
            return self.emit(Effect::OpenRefused { node });
        }
        let mut kept = Vec::new();
        for (older, _) in superseded {
            self.supersede(older, session, open, &mut kept);
        }
        self.rows.sessions().put(
            session,
            LeaseSession {
                node: open.node.clone(),
                incarnation: open.incarnation,
                sequence: if ordered { open.sequence } else { 0 },
                boot_id: open.boot_id.clone(),
                opened: self.now,
            },
        );
        self.emit(Effect::SessionOpened {
            session,
            node: open.node.clone(),
            kept,
        });
    }

    /// The lease sessions that end at once. The same kernel proves, by the lock on the data directory, that the older
    /// process is dead; from any other kernel it may still be at work, so it runs out its time to live.
    fn superseded_by(
        &mut self,
        open: &OpenSession,
        session: LeaseSessionId,
    ) -> Vec<(LeaseSessionId, Arc<LeaseSession>)> {
        let mut found = Vec::new();
        let mut from = None;
        loop {
            let page = self.rows.sessions().range(from.as_ref(), PAGE_ROWS);
            found.extend(
                page.iter()
                    .filter(|(id, row)| {
                        let same = row.node == open.node
                            && row.boot_id == open.boot_id
                            && !open.boot_id.is_empty();
                        same || *id == session
                    })
                    .cloned(),
            );
            match page.last() {
                Some((last, _)) if page.len() == PAGE_ROWS && last.0 < u64::MAX => {
                    from = Some(LeaseSessionId(last.0 + 1));
                }
                _ => return found,
            }
        }
    }

    fn supersede(
        &mut self,
        older: LeaseSessionId,
        session: LeaseSessionId,
        open: &OpenSession,
        kept: &mut Vec<KeptItem>,
    ) {
        let past_dot: BTreeSet<ItemId> = open.past_dot.iter().copied().collect();
        let handed_back: BTreeSet<ItemId> = open.handed_back.iter().copied().collect();
        let token = Token(self.index);
        for id in self.in_flight(older) {
            let Some((before, message)) = self.live(id) else {
                continue;
            };
            let State::Leased { deadline, .. } = before.state else {
                continue;
            };
            let mut item = (*before).clone();
            if past_dot.contains(&id) {
                item.state = State::Leased {
                    session,
                    token,
                    deadline,
                };
                let destination = item.destination.clone();
                self.place(id, Some(&before), Some(item), &message);
                kept.push(KeptItem {
                    item: id,
                    token,
                    deadline,
                    destination,
                });
            } else if handed_back.contains(&id) {
                self.wait_or_mark(id, &before, item, &message, self.now);
            } else {
                self.lose_attempt(id, &before, item, &message, open.retry);
            }
        }
        self.rows.sessions().delete(&older);
        self.emit(Effect::SessionEnded {
            session: older,
            reason: "superseded by a newer process of the node",
        });
    }

    pub(crate) fn expire_session(&mut self, session: LeaseSessionId, retry: Timestamp) {
        if !self.session_lives(session) {
            return;
        }
        for id in self.in_flight(session) {
            let Some((before, message)) = self.live(id) else {
                continue;
            };
            if planted(Mutation::SessionsLeaveItems) {
                continue;
            }
            self.lose_attempt(id, &before, (*before).clone(), &message, retry);
        }
        self.rows.sessions().delete(&session);
        self.emit(Effect::SessionEnded {
            session,
            reason: "not heard of for its time to live",
        });
    }

    /// What a lease session holds, read before any of it changes.
    fn in_flight(&mut self, session: LeaseSessionId) -> Vec<ItemId> {
        let first = ItemId {
            message: Ulid::nil(),
            number: 0,
        };
        let mut found: Vec<ItemId> = Vec::new();
        loop {
            // The page begins with the last row of the one before.
            let from = (session, found.last().copied().unwrap_or(first));
            let page = self.rows.inflight().range(Some(&from), PAGE_ROWS);
            let whole = page.len() == PAGE_ROWS;
            let before = found.len();
            let last = found.last().copied();
            let of_session = page
                .into_iter()
                .map(|(key, _)| key)
                .take_while(|key| key.0 == session);
            found.extend(of_session.map(|key| key.1).filter(|id| Some(*id) != last));
            if !whole || found.len() == before {
                return found;
            }
        }
    }

    pub(crate) fn window(&mut self, window: &Window) {
        for session in &window.keepalives {
            if self.session_lives(*session) {
                self.emit(Effect::KeptAlive { session: *session });
            }
        }
        for batch in &window.extends {
            self.extend(batch);
        }
        for batch in &window.grants {
            let lives = self.session_lives(batch.session);
            for (id, deadline) in &batch.items {
                self.grant(*id, batch.session, lives, *deadline);
            }
        }
    }

    fn grant(&mut self, id: ItemId, session: LeaseSessionId, lives: bool, deadline: Timestamp) {
        let Some((before, message)) = self.live(id) else {
            return self.emit(Effect::GrantSkipped { item: id, session });
        };
        let due = match before.state {
            State::Waiting { due } => due,
            _ => return self.emit(Effect::GrantSkipped { item: id, session }),
        };
        // An item can have been granted, deferred and waiting again since the leader picked it: nothing goes out
        // before it is due.
        if !lives || (due > self.now && !planted(Mutation::GrantEarly)) {
            self.emit(Effect::GrantSkipped { item: id, session });
            return self.announce(id, &before, &message, due);
        }
        let token = Token(self.index);
        let item = Item {
            state: State::Leased {
                session,
                token,
                deadline,
            },
            ..(*before).clone()
        };
        let destination = item.destination.clone();
        self.place(id, Some(&before), Some(item), &message);
        self.emit(Effect::Granted {
            item: id,
            session,
            token,
            deadline,
            destination,
        });
    }

    /// Moves deadlines of what the lease session holds; never a token.
    fn extend(&mut self, batch: &GrantBatch) {
        for (id, deadline) in &batch.items {
            let Some(before) = self.rows.items().get(id) else {
                continue;
            };
            let State::Leased { session, token, .. } = before.state else {
                continue;
            };
            if session != batch.session {
                continue;
            }
            let deadline = *deadline;
            let item = Item {
                state: State::Leased {
                    session,
                    token,
                    deadline,
                },
                ..(*before).clone()
            };
            self.rows.items().put(*id, item);
            self.rows
                .inflight()
                .put((session, *id), InFlight { token, deadline });
        }
    }
}
