//! What a leader does by itself: windows of grants and keepalives, and the ends of lease sessions, items and uploads.

use bytes::Bytes;
use queue::{
    Command, GrantBatch, ItemId, ItemTimer, Rows, Timestamp, Token, UPLOAD_IDLE_MS, Window,
};
use spool::node::Ack;

use crate::sim::leader::DEADLINE_MS;
use crate::sim::net::Tell;
use crate::sim::replica::Pending;
use crate::sim::world::World;

/// Steps after the last applied keepalive at which the leader ends a lease session. A node fences itself at
/// [`crate::sim::delivery::FENCE_STEPS`].
const SESSION_STEPS: u64 = 300;
/// Steps between windows.
const WINDOW_STEPS: u64 = 5;
/// What a lease session is granted before its first keepalive to this leader.
const CREDIT: usize = 4;
/// Timers and uploads that are looked at in one window.
const SCANNED: usize = 32;

impl World {
    /// What a leader does by itself.
    pub fn lead(&mut self, k: usize) {
        if !self.leading(k) || self.replicas[k].next_window > self.now {
            return;
        }
        self.replicas[k].next_window = self.now + WINDOW_STEPS;
        let now = self.cluster_time(k);
        self.expire_sessions(k, now);
        self.run_timers(k, now);
        self.expire_uploads(k, now);
        self.keep_up(k);
        let grants = self.choose_grants(k, now);
        let Some(lead) = self.replicas[k].lead.as_mut() else {
            return;
        };
        let keepalives: Vec<_> = std::mem::take(&mut lead.keepalives)
            .into_iter()
            .map(|(id, (node, sent))| (id, node, sent))
            .collect();
        if keepalives.is_empty() && grants.is_empty() {
            return;
        }
        let granted: Vec<ItemId> = grants
            .iter()
            .flat_map(|batch| batch.items.iter().map(|item| item.0))
            .collect();
        lead.granting.extend(granted.iter().copied());
        self.hand_out_early(k, &grants);
        let window = Command::Window(Window {
            keepalives: keepalives.iter().map(|keepalive| keepalive.0).collect(),
            grants,
            extends: Vec::new(),
        });
        self.propose(
            k,
            window,
            Bytes::new(),
            Ack::Apply,
            Pending::Window {
                keepalives,
                grants: granted,
            },
        );
    }

    fn expire_sessions(&mut self, k: usize, now: Timestamp) {
        let clock = self.replicas[k].clock(self.now);
        let replica = &mut self.replicas[k];
        let sessions = replica.rows.sessions().range(None, usize::MAX);
        let Some(lead) = replica.lead.as_mut() else {
            return;
        };
        let short = self.planted.sessions_short;
        let patience = if short {
            SESSION_STEPS / 3
        } else {
            SESSION_STEPS
        };
        let mut expired = Vec::new();
        for (session, _) in sessions {
            let heard = *lead.heard.entry(session).or_insert(clock);
            if clock.saturating_sub(heard) > patience && lead.expiring.insert(session) {
                expired.push(session);
            }
        }
        for session in expired {
            let retry = Timestamp(now.0 + 2000);
            let expire = Command::ExpireSession { session, retry };
            self.propose(
                k,
                expire,
                Bytes::new(),
                Ack::Apply,
                Pending::Expire { session },
            );
        }
    }

    fn choose_grants(&mut self, k: usize, now: Timestamp) -> Vec<GrantBatch> {
        let replica = &mut self.replicas[k];
        let picked_at = now.plus(self.planted.hasty_ms);
        let due = replica.rows.due().range(None, 64);
        let sessions = replica.rows.sessions().range(None, usize::MAX);
        let Some(lead) = replica.lead.as_mut() else {
            return Vec::new();
        };
        let deadline = Timestamp(now.0 + DEADLINE_MS);
        let mut ready = due
            .into_iter()
            .map(|(key, _)| key)
            .filter(|key| key.due <= picked_at)
            .map(|key| key.item);
        let mut batches = Vec::new();
        for (session, _) in sessions {
            let credit = lead.credit.entry(session).or_insert(CREDIT);
            let granting = &lead.granting;
            let items: Vec<_> = ready
                .by_ref()
                .filter(|item| !granting.contains(item))
                .take(*credit)
                .map(|item| (item, deadline))
                .collect();
            *credit -= items.len();
            if !items.is_empty() {
                batches.push(GrantBatch { session, items });
            }
        }
        batches
    }

    /// A planted bug: the token is a guess at the index that the entry will have.
    fn hand_out_early(&mut self, k: usize, grants: &[GrantBatch]) {
        let group = self.replicas[k].group.as_ref();
        let (true, Some(group)) = (self.planted.hand_out_early, group) else {
            return;
        };
        let token = Token(group.status().last + 1);
        for batch in grants {
            let session = batch.session;
            for &(item, _) in &batch.items {
                if let Some(node) = self.delivery_of(k, session) {
                    self.tell(
                        node,
                        Tell::Grant {
                            session,
                            item,
                            token,
                        },
                    );
                }
            }
        }
    }

    /// Items whose message has expired while they wait.
    fn run_timers(&mut self, k: usize, now: Timestamp) {
        let now = now.plus(self.planted.hasty_ms);
        let due = self.replicas[k].rows.timers().range(None, SCANNED);
        for (key, _) in due.into_iter().filter(|(key, _)| key.at <= now) {
            let replica = &mut self.replicas[k];
            let message = replica.rows.messages().get(&key.item.message);
            let (Some(message), Some(lead)) = (message, replica.lead.as_mut()) else {
                continue;
            };
            if now < message.expires || !lead.timing.insert(key.item) {
                continue;
            }
            let (reports, data) = self.report(k, key.item, now);
            let timer = Command::ItemTimer(ItemTimer {
                item: key.item,
                expire: true,
                reports,
            });
            let pending = Pending::Timer { item: key.item };
            self.propose(k, timer, data, Ack::Apply, pending);
        }
    }

    fn expire_uploads(&mut self, k: usize, now: Timestamp) {
        let replica = &mut self.replicas[k];
        let messages: Vec<_> = replica
            .rows
            .uploads()
            .range(None, SCANNED)
            .into_iter()
            .filter(|(_, upload)| upload.last.plus(UPLOAD_IDLE_MS) <= now)
            .map(|(id, _)| id)
            .collect();
        let Some(lead) = replica.lead.as_mut().filter(|lead| !lead.expiring_uploads) else {
            return;
        };
        if messages.is_empty() {
            return;
        }
        lead.expiring_uploads = true;
        let expire = Command::ExpireUpload { messages };
        self.propose(k, expire, Bytes::new(), Ack::Apply, Pending::Uploads);
    }
}
