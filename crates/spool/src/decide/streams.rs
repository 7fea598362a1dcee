//! The Lease streams of delivery nodes that stand at this node, for all the shards that it leads.
//!
//! A stream is a connection; a lease session is a fact in the log. A stream may go and come while its lease sessions
//! live on, and credit belongs to the stream: what a node said it has room for is forgotten with the connection.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use mail::Destination;
use proto::v1;
use proto::v1::lease_event::What;
use queue::{ItemId, LeaseSessionId};
use tokio::sync::mpsc::UnboundedSender;

use crate::event::{Outgoing, StreamId};

/// One Lease stream.
pub struct LeaseStream {
    /// The node's name.
    pub node: Arc<str>,
    /// Of its process.
    pub incarnation: [u8; 16],
    /// Of its kernel.
    pub boot_id: Arc<str>,
    /// Its events.
    pub to: UnboundedSender<Outgoing>,
    /// Items that may still be handed out.
    pub credit_items: u64,
    /// Octets that may still be handed out; a last item may overdraw it.
    pub credit_bytes: i64,
    /// Classes that it takes; empty: all.
    pub classes: Vec<Arc<str>>,
    /// Its lease sessions, by shard.
    pub sessions: BTreeMap<u32, LeaseSessionId>,
    /// How many unsettled items of a destination it wants from each shard.
    pub windows: HashMap<Destination, u32>,
}

/// All of them.
#[derive(Default)]
pub struct Streams {
    streams: BTreeMap<StreamId, LeaseStream>,
    attached: BTreeMap<(u32, LeaseSessionId), StreamId>,
}

/// Windows of destinations that one stream may set: beyond it the oldest habit, the default, holds.
const WINDOWS_MAX: usize = 100_000;

/// Items that a stream may be owed at once. It bounds what waits here for a node that gives credit and never reads: events
/// of handouts are the only ones that pile up by themselves.
const CREDIT_ITEMS_MAX: u64 = 20_000;

/// The same in octets of bodies; most of them are the entry cache's own.
const CREDIT_BYTES_MAX: i64 = 256 << 20;

impl Streams {
    /// A new stream.
    pub fn connected(
        &mut self,
        id: StreamId,
        hello: &v1::LeaseHello,
        to: UnboundedSender<Outgoing>,
    ) {
        let stream = LeaseStream {
            node: hello.node.as_str().into(),
            incarnation: hello.incarnation.as_ref().try_into().unwrap_or_default(),
            boot_id: hello.boot_id.as_str().into(),
            to,
            credit_items: 0,
            credit_bytes: 0,
            classes: Vec::new(),
            sessions: BTreeMap::new(),
            windows: HashMap::new(),
        };
        self.streams.insert(id, stream);
    }

    /// A stream that went away; the lease sessions (with their shards) that nobody speaks for now.
    pub fn disconnected(&mut self, id: StreamId) -> Vec<(u32, LeaseSessionId)> {
        let Some(stream) = self.streams.remove(&id) else {
            return Vec::new();
        };
        let mut left: Vec<_> = stream.sessions.into_iter().collect();
        left.retain(|key| self.attached.get(key) == Some(&id));
        for key in &left {
            self.attached.remove(key);
        }
        left
    }

    /// A stream.
    pub fn get(&mut self, id: StreamId) -> Option<&mut LeaseStream> {
        self.streams.get_mut(&id)
    }

    /// Binds a lease session to the stream that speaks for it now.
    pub fn attach(&mut self, id: StreamId, shard: u32, session: LeaseSessionId) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if let Some(before) = stream.sessions.insert(shard, session) {
            self.attached.remove(&(shard, before));
        }
        if let Some(other) = self.attached.insert((shard, session), id)
            && other != id
            && let Some(other) = self.streams.get_mut(&other)
        {
            other.sessions.remove(&shard);
        }
    }

    /// The stream of a lease session, when it has one.
    pub fn of(&mut self, shard: u32, session: LeaseSessionId) -> Option<&mut LeaseStream> {
        let id = self.attached.get(&(shard, session))?;
        self.streams.get_mut(id)
    }

    /// The attached lease sessions of a shard.
    pub fn sessions_of(&self, shard: u32) -> Vec<LeaseSessionId> {
        let from = (shard, LeaseSessionId(0));
        let to = (shard, LeaseSessionId(u64::MAX));
        self.attached
            .range(from..=to)
            .map(|((_, session), _)| *session)
            .collect()
    }

    /// Whether any stream could take an item.
    pub fn has_credit(&self) -> bool {
        self.streams
            .values()
            .any(|s| s.credit_items > 0 && s.credit_bytes > 0 && !s.sessions.is_empty())
    }

    /// Adds credit; `true`: the classes that the node takes changed.
    pub fn credit(&mut self, id: StreamId, credit: &v1::Credit) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else {
            return false;
        };
        let items = stream.credit_items.saturating_add(u64::from(credit.items));
        stream.credit_items = items.min(CREDIT_ITEMS_MAX);
        let bytes = i64::try_from(credit.bytes).unwrap_or(i64::MAX);
        stream.credit_bytes = stream
            .credit_bytes
            .saturating_add(bytes)
            .min(CREDIT_BYTES_MAX);
        let classes: Vec<Arc<str>> = credit.classes.iter().map(|c| c.as_str().into()).collect();
        let changed = classes != stream.classes;
        stream.classes = classes;
        changed
    }

    /// Gives back the credit of a grant that was not made.
    pub fn give_back(&mut self, shard: u32, session: LeaseSessionId, bytes: u64) {
        if let Some(stream) = self.of(shard, session) {
            stream.credit_items += 1;
            stream.credit_bytes = stream.credit_bytes.saturating_add(bytes as i64);
        }
    }

    /// Sets the window of a destination.
    pub fn window(&mut self, id: StreamId, destination: &Destination, items: u32) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if stream.windows.len() < WINDOWS_MAX || stream.windows.contains_key(destination) {
            stream.windows.insert(destination.clone(), items);
        }
    }

    /// Sends an event on the stream of a lease session.
    pub fn send(&mut self, shard: u32, session: LeaseSessionId, what: What) {
        if let Some(stream) = self.of(shard, session) {
            stream.send(shard, what);
        }
    }

    /// Another node delivered it.
    pub fn revoke(&mut self, shard: u32, session: LeaseSessionId, item: ItemId) {
        self.send(shard, session, What::Revoke(super::lease::item_ref(item)));
    }

    /// A lease session is gone.
    pub fn session_ended(&mut self, shard: u32, session: LeaseSessionId, reason: &str) {
        let ended = v1::SessionEnded {
            session: session.0,
            reason: reason.to_owned(),
        };
        self.send(shard, session, What::Ended(ended));
        if let Some(id) = self.attached.remove(&(shard, session))
            && let Some(stream) = self.streams.get_mut(&id)
        {
            stream.sessions.remove(&shard);
        }
    }

    /// This node leads, or no longer leads, a shard: what was attached there attaches again.
    pub fn leader_changed(&mut self, shard: u32) {
        for session in self.sessions_of(shard) {
            let not_leader = v1::NotLeader {
                leader_address: String::new(),
            };
            self.send(shard, session, What::NotLeader(not_leader));
            if let Some(id) = self.attached.remove(&(shard, session))
                && let Some(stream) = self.streams.get_mut(&id)
            {
                stream.sessions.remove(&shard);
            }
        }
    }
}

impl LeaseStream {
    /// Sends an event. A stream that has gone away is noticed by its own task.
    pub fn send(&self, shard: u32, what: What) {
        let _ = self.to.send(Outgoing::Event(Box::new(v1::LeaseEvent {
            shard,
            what: Some(what),
        })));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_has_an_upper_bound_whatever_a_node_says() {
        let mut streams = Streams::default();
        let (to, _events) = tokio::sync::mpsc::unbounded_channel();
        streams.connected(1, &v1::LeaseHello::default(), to);
        for _ in 0..3 {
            let all = v1::Credit {
                items: u32::MAX,
                bytes: u64::MAX,
                classes: Vec::new(),
            };
            streams.credit(1, &all);
        }
        let stream = streams.get(1).unwrap();
        assert_eq!(
            (stream.credit_items, stream.credit_bytes),
            (CREDIT_ITEMS_MAX, CREDIT_BYTES_MAX)
        );
    }
}
