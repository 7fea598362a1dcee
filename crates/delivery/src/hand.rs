//! What this node has in hand: each item's token, how far its attempt is, and whether the lease session behind it still
//! lives. Pure: the moment comes in as argument.
//!
//! Every step that the outside can see asks here first: [`Hand::begin`] before DATA, [`Hand::pass_dot`] before the final
//! dot. A node that has not heard from a shard's leader for [`FENCE`] answers no to itself, so it has fallen silent before
//! the leader gives its items to another node.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use proto::v1;

use crate::item::ItemId;

/// A lease session that was not proved for this long is dead for good. The leader waits 30 s from a later moment, so ten
/// seconds are left for clocks that differ, a slow commit and a late scheduler.
pub(crate) const FENCE: Duration = Duration::from_secs(20);

/// Grants that are over and still known by their tokens: half a minute of a busy node, some 3 MiB. A leader that stood
/// still may hand one of them out when it goes on; most of those come on a stream that counts for nothing any more.
const OVER_MAX: usize = 32 * 1024;

/// A larger body is fetched piece by piece, so this is what it takes of our memory, and what the queue counts of credit.
const BODY_HELD_MAX: u64 = 1024 * 1024;

/// Octets of credit that a hand-out takes.
pub(crate) fn weight(handout: &v1::Handout) -> u64 {
    handout
        .message
        .as_ref()
        .map_or(0, |message| message.size.min(BODY_HELD_MAX))
}

/// How far the attempt of an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Waits for a connection.
    Queued,
    /// In a transaction, before its final dot.
    Sending,
    /// The final dot is out, or about to go out: the mail may be delivered, whatever comes.
    PastDot,
    /// Its results are known and on their way to the queue.
    Settling,
}

/// One item in hand.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) shard: u32,
    pub(crate) token: u64,
    pub(crate) session: u64,
    pub(crate) stage: Stage,
    pub(crate) bytes: u64,
    /// Serial of the stream that handed it out, to which its credit goes back; 0: none.
    pub(crate) link: u64,
    recipients: Vec<u32>,
    /// Its results, when settling, hold a success: another attempt would be a duplicate.
    delivered: bool,
    /// The queue or a newer grant took it away: stop, unless past the dot.
    revoked: bool,
}

/// Why an attempt must stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The lease session is dead or too long unproved: hand the item back.
    Fenced,
    /// The item is no longer ours: forget it.
    Revoked,
}

/// What a hand-out means to what is in hand.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Take {
    /// To be worked on.
    New,
    /// Already being worked on: under this token, or now under this one.
    Known,
    /// An older attempt with other recipients runs: it was told to stop, and the new grant must be handed back.
    Refused,
}

#[derive(Debug)]
struct Session {
    id: u64,
    /// When the youngest request was sent that the leader answered.
    proved: Instant,
}

/// All items and lease sessions of this node.
#[derive(Debug)]
pub(crate) struct Hand {
    fence: Duration,
    items: HashMap<ItemId, Held>,
    sessions: HashMap<u32, Session>,
    /// Handed back under this token, and not yet answered: a stream that reopens may send it once more.
    released: HashMap<ItemId, u64>,
    /// The last token of items that are no longer in hand, oldest first in `over_order`.
    over: HashMap<ItemId, u64>,
    over_order: VecDeque<(ItemId, u64)>,
    /// By the serial of the stream: credit that is free again.
    freed: HashMap<u64, (u32, u64)>,
}

impl Hand {
    /// An empty hand that falls silent after `fence` without an answer.
    pub(crate) fn new(fence: Duration) -> Hand {
        Hand {
            fence,
            items: HashMap::new(),
            sessions: HashMap::new(),
            released: HashMap::new(),
            over: HashMap::new(),
            over_order: VecDeque::new(),
            freed: HashMap::new(),
        }
    }

    /// A new lease session of a shard; `proved` is when it was asked for.
    pub(crate) fn open(&mut self, shard: u32, id: u64, proved: Instant) {
        self.sessions.insert(shard, Session { id, proved });
    }

    /// The leader answered what was sent at `sent`.
    pub(crate) fn prove(&mut self, shard: u32, id: u64, sent: Instant) {
        if let Some(session) = self
            .sessions
            .get_mut(&shard)
            .filter(|session| session.id == id)
        {
            session.proved = session.proved.max(sent);
        }
    }

    /// The shard's lease session is dead for good: nothing under it starts DATA or sends a final dot from now on.
    pub(crate) fn end(&mut self, shard: u32) {
        self.sessions.remove(&shard);
    }

    /// The shard's lease session, when it has not been unproved for too long.
    pub(crate) fn live(&self, shard: u32, now: Instant) -> Option<u64> {
        let session = self.sessions.get(&shard)?;
        (now.saturating_duration_since(session.proved) < self.fence).then_some(session.id)
    }

    /// Takes a hand-out in.
    pub(crate) fn take(
        &mut self,
        item: ItemId,
        shard: u32,
        link: u64,
        handout: &v1::Handout,
    ) -> Take {
        let recipients: Vec<u32> = handout
            .recipients
            .iter()
            .map(|recipient| recipient.recipient)
            .collect();
        if self.released.get(&item) == Some(&handout.token) {
            return Take::Known;
        }
        // Tokens of an item only grow: this grant is settled or handed back, and a leader of before has not heard of it.
        if self
            .over
            .get(&item)
            .is_some_and(|over| *over >= handout.token)
        {
            return Take::Known;
        }
        // A deferral that the queue has, but not yet told us: the next attempt begins.
        let next = |held: &Held| {
            held.stage == Stage::Settling && !held.delivered && held.token < handout.token
        };
        if let Some(held) = self.items.get_mut(&item).filter(|held| !next(held)) {
            if held.token > handout.token {
                return Take::Known; // An older grant, sent again: ours is newer.
            }
            if held.recipients != recipients
                && held.stage < Stage::PastDot
                && held.token != handout.token
            {
                held.revoked = true;
                return Take::Refused;
            }
            // The queue gave it to us again while we still work on it: go on, under the new token.
            (held.token, held.session) = (handout.token, handout.session);
            return Take::Known;
        }
        let bytes = weight(handout);
        let (token, session) = (handout.token, handout.session);
        let held = Held {
            shard,
            token,
            session,
            stage: Stage::Queued,
            bytes,
            link,
            recipients,
            delivered: false,
            revoked: false,
        };
        // The credit of an attempt that is replaced goes back.
        self.drop_item(item);
        self.items.insert(item, held);
        Take::New
    }

    /// Takes in what the journal says: past the dot or settling, without a stream.
    pub(crate) fn recall(&mut self, item: ItemId, request: &v1::SettleRequest, stage: Stage) {
        let recipients = request
            .results
            .iter()
            .map(|result| result.recipient)
            .collect();
        let held = Held {
            shard: request.shard,
            token: request.token,
            session: request.session,
            stage,
            bytes: 0,
            link: 0,
            recipients,
            delivered: false,
            revoked: false,
        };
        self.items.insert(item, held);
    }

    /// May a transaction start for it?
    pub(crate) fn begin(&mut self, item: ItemId, now: Instant) -> Result<(), Stop> {
        self.advance(item, Stage::Sending, now).map(drop)
    }

    /// May its final dot be sent, or may it go on after one? From here on it counts as perhaps delivered. Gives its token and
    /// lease session.
    pub(crate) fn pass_dot(&mut self, item: ItemId, now: Instant) -> Result<(u64, u64), Stop> {
        self.advance(item, Stage::PastDot, now)
    }

    fn advance(&mut self, item: ItemId, stage: Stage, now: Instant) -> Result<(u64, u64), Stop> {
        let held = self
            .items
            .get(&item)
            .filter(|held| !held.revoked)
            .ok_or(Stop::Revoked)?;
        if self.live(held.shard, now) != Some(held.session) {
            return Err(Stop::Fenced);
        }
        let held = self.items.get_mut(&item).ok_or(Stop::Revoked)?;
        held.stage = stage;
        Ok((held.token, held.session))
    }

    /// It waits for another connection.
    pub(crate) fn requeue(&mut self, item: ItemId) {
        if let Some(held) = self.items.get_mut(&item) {
            held.stage = Stage::Queued;
        }
    }

    /// Its results are known; `delivered`: one of them is a success. Gives the token and lease session to settle them
    /// with; `None`: nobody waits for them.
    pub(crate) fn settle(&mut self, item: ItemId, delivered: bool) -> Option<(u64, u64)> {
        let held = self.items.get_mut(&item)?;
        held.stage = Stage::Settling;
        held.delivered = delivered;
        Some((held.token, held.session))
    }

    /// One item.
    pub(crate) fn get(&self, item: ItemId) -> Option<&Held> {
        self.items.get(&item)
    }

    /// The queue answered what was settled under `token`. `Some`: the item came back under this newer token and lease
    /// session while its results were on their way, so they must be settled again.
    pub(crate) fn settled(&mut self, item: ItemId, token: u64) -> Option<(u64, u64)> {
        let held = self.items.get(&item)?;
        if held.token == token {
            self.drop_item(item);
            return None;
        }
        (held.stage == Stage::Settling).then_some((held.token, held.session))
    }

    /// It is no longer ours: its credit is free again.
    pub(crate) fn drop_item(&mut self, item: ItemId) -> Option<Held> {
        let held = self.items.remove(&item)?;
        self.remember(item, held.token);
        if held.link != 0 {
            let (items, bytes) = self.freed.entry(held.link).or_default();
            *items += 1;
            *bytes += held.bytes;
        }
        Some(held)
    }

    fn remember(&mut self, item: ItemId, token: u64) {
        self.over.insert(item, token);
        self.over_order.push_back((item, token));
        if self.over_order.len() > OVER_MAX
            && let Some((oldest, token)) = self.over_order.pop_front()
            && self.over.get(&oldest) == Some(&token)
        {
            self.over.remove(&oldest);
        }
    }

    /// It goes back unattempted. Gives shard, token and lease session.
    pub(crate) fn release(&mut self, item: ItemId) -> Option<(u32, u64, u64)> {
        let held = self.drop_item(item)?;
        self.released.insert(item, held.token);
        Some((held.shard, held.token, held.session))
    }

    /// The queue answered a release.
    pub(crate) fn released(&mut self, item: ItemId) {
        self.released.remove(&item);
    }

    /// A new stream stands in for those that are gone: what they handed out and is still in hand takes of the new one's
    /// credit, up to its share of items and octets, and gives it back there. Else each new stream would add a whole
    /// share to what is in hand. Gives what was charged.
    pub(crate) fn charge_orphans(
        &mut self,
        live: &[u64],
        to: u64,
        share: (u32, u64),
    ) -> (u32, u64) {
        let (mut items, mut bytes) = (0, 0);
        for held in self.items.values_mut() {
            if items == share.0 || bytes >= share.1 {
                break;
            }
            if held.link != 0 && !live.contains(&held.link) {
                held.link = to;
                items += 1;
                bytes += held.bytes;
            }
        }
        (items, bytes)
    }

    /// Takes the credit that became free, by stream.
    pub(crate) fn take_freed(&mut self) -> HashMap<u64, (u32, u64)> {
        std::mem::take(&mut self.freed)
    }

    /// Items whose credit is free and not yet given.
    pub(crate) fn freed_items(&self) -> u32 {
        self.freed.values().map(|(items, _)| items).sum()
    }

    /// All that have not passed their dot.
    pub(crate) fn before_dot(&self) -> Vec<ItemId> {
        self.at(|stage| stage < Stage::PastDot)
    }

    /// All that have, and whose results are not known.
    pub(crate) fn in_doubt(&self) -> Vec<ItemId> {
        self.at(|stage| stage == Stage::PastDot)
    }

    fn at(&self, stage: impl Fn(Stage) -> bool) -> Vec<ItemId> {
        let items = self.items.iter();
        items
            .filter(|(_, held)| stage(held.stage))
            .map(|(item, _)| *item)
            .collect()
    }

    /// Another node delivered it, or an operator dropped it.
    pub(crate) fn revoke(&mut self, item: ItemId) {
        if let Some(held) = self.items.get_mut(&item) {
            held.revoked = true;
        }
    }

    /// A new lease session took over an item past the dot, under this token.
    pub(crate) fn adopt(&mut self, item: ItemId, token: u64, session: u64) {
        if let Some(held) = self.items.get_mut(&item) {
            (held.token, held.session) = (token, session);
        }
    }

    /// What is held under the shard's lease session `session`, for `Reattach`.
    pub(crate) fn holding(&self, shard: u32, session: u64) -> Vec<v1::HeldItem> {
        self.list(|held| held.shard == shard && held.session == session)
    }

    /// What must stay leased under a new lease session: perhaps delivered, or with results on their way.
    pub(crate) fn past_dot(&self, shard: u32) -> Vec<v1::HeldItem> {
        self.list(|held| held.shard == shard && held.stage >= Stage::PastDot)
    }

    fn list(&self, which: impl Fn(&Held) -> bool) -> Vec<v1::HeldItem> {
        let held = self.items.iter().filter(|(_, held)| which(held));
        held.map(|(item, held)| v1::HeldItem {
            item: Some(item.to_wire()),
            token: held.token,
            past_dot: held.stage >= Stage::PastDot,
        })
        .collect()
    }

    /// Items in hand.
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// Nothing is in hand, and the queue has answered all that was handed back.
    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty() && self.released.is_empty()
    }
}

#[cfg(test)]
pub(crate) mod tests;
