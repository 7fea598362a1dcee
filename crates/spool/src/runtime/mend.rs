//! Damaged bodies, and where whole ones come from: another replica.
//!
//! A committed entry is the same on every replica (Raft's log matching), so (group, index) names its octets; the answer's
//! digest says that they came over whole, and the messages' rows that they are what the edges took. What the durable state still refers to is written again and its reference
//! moved; what nobody refers to is forgotten. Nothing of this is remembered over a restart: a start reads the whole log
//! and finds the damage again.

mod proof;
mod repair;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use mail::Digester;
use proto::v1;
use proto::v1::peer_client::PeerClient;
use tokio::sync::{Notify, Semaphore};
use tonic::transport::Channel;

use super::{Helpers, Introducer};
use crate::collect::{Unread, edge_digest};
use crate::config::Config;
use crate::event::Piece;
use crate::log::{Location, LogReader, ReadError};
use crate::node::FetchEntry;
use crate::peer;
use crate::state::StoredBodies;

/// Damaged bodies that are kept in mind: some 64 GB of mail. More is no damage but a lost disk; the scrubber and the next
/// start find what is left.
pub const DAMAGED_MAX: usize = 65_536;

/// Fetches that a node asks for, or answers, at once: each is at most 1.25 MiB.
pub const FETCHES_AT_ONCE: usize = 4;

/// A replica that does not answer a fetch within this time is passed by.
const ANSWER: Duration = Duration::from_secs(5);

/// Pins of repairs are numbered from here, beyond those of others.
const FIRST_PIN: u64 = 1 << 62;

/// Fetches what this disk does not give back. Shared.
#[derive(Clone)]
pub struct Mender {
    inner: Arc<Inner>,
}

struct Inner {
    own: peer::Sender,
    introducer: Introducer,
    config: Config,
    tokio: tokio::runtime::Handle,
    channels: Mutex<BTreeMap<(u64, String), Channel>>,
    asking: Semaphore,
    /// (group, index) of each, and where.
    damaged: Mutex<BTreeMap<(u32, u64), Location>>,
    found: Notify,
    next_pin: AtomicU64,
    reader: LogReader,
    /// Weak: a repair that still waits when the node closes must not keep the metadata open.
    rows: Weak<StoredBodies>,
    helpers: Helpers,
}

/// Data of a damaged entry, and from which node it came.
struct Fetched {
    node: u64,
    context: Bytes,
    data: Bytes,
}

impl Mender {
    /// For the node that `introducer` introduces, with the log and the durable rows that it mends. Called within tokio.
    pub fn new(
        introducer: Introducer,
        config: Config,
        reader: LogReader,
        rows: &Arc<StoredBodies>,
        helpers: Helpers,
    ) -> Mender {
        let inner = Inner {
            reader,
            rows: Arc::downgrade(rows),
            helpers,
            own: introducer.sender(),
            introducer,
            config,
            tokio: tokio::runtime::Handle::current(),
            channels: Mutex::default(),
            asking: Semaphore::new(FETCHES_AT_ONCE),
            damaged: Mutex::default(),
            found: Notify::new(),
            next_pin: AtomicU64::new(FIRST_PIN),
        };
        Mender {
            inner: Arc::new(inner),
        }
    }

    /// The octets at `location`, of this entry, are damaged: whoever found it says so here. They are mended if anything
    /// refers to them.
    pub fn report(&self, group: u32, index: u64, location: Location) {
        let mut damaged = self.damaged();
        if damaged.len() >= DAMAGED_MAX && !damaged.contains_key(&(group, index)) {
            metrics::counter!("postroad_bodies_damaged_ignored_total").increment(1);
            return;
        }
        if damaged.insert((group, index), location) != Some(location) {
            tracing::error!(
                group,
                index,
                segment = location.segment,
                offset = location.offset,
                "the octets of an entry are damaged on this disk; if anything refers to them they come from another replica"
            );
        }
        metrics::gauge!("postroad_bodies_damaged").set(damaged.len() as f64);
        drop(damaged);
        self.inner.found.notify_one();
    }

    /// A number for [`crate::log::Segments::pin`].
    pub fn next_pin(&self) -> u64 {
        self.inner.next_pin.fetch_add(1, Ordering::Relaxed)
    }

    /// A piece of a body that the log did not give back, from another replica; for as long as it takes it is damaged.
    ///
    /// # Errors
    /// A text: the segment was recycled, which is no damage, or nobody has it.
    pub async fn piece_instead(
        &self,
        group: u32,
        piece: &Piece,
        unread: &Unread,
    ) -> Result<Bytes, String> {
        let Unread { location, error } = unread;
        if matches!(error, ReadError::Recycled { .. }) {
            return Err(error.to_string());
        }
        // Where it was read last: the collector may have moved it since the piece was made.
        self.report(group, piece.index, *location);
        let fetched = self.fetch(group, piece.index, *location, None).await;
        let data = fetched.map_err(|why| format!("{error}; {why}"))?.data;
        let range = usize::try_from(piece.offset)
            .ok()
            .zip(usize::try_from(piece.length).ok())
            .and_then(|(from, length)| Some(from..from.checked_add(length)?))
            .filter(|range| range.end <= data.len());
        range
            .map(|range| data.slice(range))
            .ok_or_else(|| "the reference reaches beyond the entry's data".to_owned())
    }

    /// The same from a thread that may block.
    ///
    /// # Errors
    /// See [`Mender::piece_instead`].
    pub fn piece_instead_blocking(
        &self,
        group: u32,
        piece: &Piece,
        unread: &Unread,
    ) -> Result<Bytes, String> {
        let tokio = &self.inner.tokio;
        tokio.block_on(self.piece_instead(group, piece, unread))
    }

    /// A whole entry for a follower that lags, from another replica. Blocks; for a thread of its own.
    ///
    /// # Errors
    /// See [`Mender::piece_instead`].
    pub fn entry_instead(
        &self,
        group: u32,
        entry: &FetchEntry,
        error: &ReadError,
    ) -> Result<(Bytes, Bytes), String> {
        if matches!(error, ReadError::Recycled { .. }) {
            return Err(error.to_string());
        }
        self.report(group, entry.index, entry.location);
        let whole = self.fetch(group, entry.index, entry.location, Some(entry.term));
        let fetched = self.inner.tokio.block_on(whole);
        let fetched = fetched.map_err(|why| format!("{error}; {why}"))?;
        Ok((fetched.context, fetched.data))
    }

    /// A whole body for a snapshot, from another replica: its segment is pinned, so whatever the error is, it is damage.
    /// Blocks; for a thread of its own.
    ///
    /// # Errors
    /// A text: nobody has it.
    pub fn body_instead_blocking(
        &self,
        group: u32,
        index: u64,
        location: Location,
        error: &ReadError,
    ) -> Result<Bytes, String> {
        self.report(group, index, location);
        let whole = self.fetch(group, index, location, None);
        let fetched = self.inner.tokio.block_on(whole);
        let fetched = fetched.map_err(|why| format!("{error}; {why}"))?;
        Ok(fetched.data)
    }

    /// Asks one replica after another. `whole`: the term of an entry whose command is wanted too.
    async fn fetch(
        &self,
        group: u32,
        index: u64,
        location: Location,
        whole: Option<u64>,
    ) -> Result<Fetched, String> {
        self.fetch_but_from(&BTreeSet::new(), group, index, location, whole)
            .await
    }

    /// The same, and not those nodes whose answer was of no use.
    async fn fetch_but_from(
        &self,
        refused: &BTreeSet<u64>,
        group: u32,
        index: u64,
        location: Location,
        whole: Option<u64>,
    ) -> Result<Fetched, String> {
        let _permit = self.inner.asking.acquire().await;
        let mut said = Vec::new();
        for (node, address) in self.others() {
            if refused.contains(&node) {
                said.push(format!("node {node}: has other octets than the edge took"));
                continue;
            }
            let asked = self.ask(node, &address, group, index, whole.is_some());
            let answer = match tokio::time::timeout(ANSWER, asked).await {
                Err(_) => Err("no answer".to_owned()),
                Ok(answer) => answer.and_then(|it| fits(group, it, location, whole)),
            };
            match answer {
                Ok((context, data)) => {
                    metrics::counter!("postroad_bodies_fetched_total").increment(1);
                    return Ok(Fetched {
                        node,
                        context,
                        data,
                    });
                }
                Err(why) => said.push(format!("node {node}: {why}")),
            }
        }
        match said.is_empty() {
            true => Err("there is no other replica to fetch it from".to_owned()),
            false => Err(format!("no other replica gives it ({})", said.join("; "))),
        }
    }

    fn others(&self) -> Vec<(u64, String)> {
        // Asked anew each time: nodes come and go.
        let nodes = self.inner.introducer.addresses(&self.inner.config);
        nodes
            .into_iter()
            .filter(|(node, _)| *node != self.inner.own.node)
            .collect()
    }

    async fn ask(
        &self,
        node: u64,
        address: &str,
        group: u32,
        index: u64,
        whole: bool,
    ) -> Result<v1::FetchEntryResponse, String> {
        let own = &self.inner.own;
        let request = v1::FetchEntryRequest {
            cluster_id: own.cluster_id.clone(),
            from_node: own.node,
            to_node: node,
            from_incarnation: own.incarnation.clone(),
            group,
            index,
            whole,
        };
        let mut client = PeerClient::new(self.channel(node, address)?)
            .max_decoding_message_size(proto::tls::MESSAGE_BYTES_MAX);
        let answer = client.fetch_entry(request).await;
        answer
            .map(tonic::Response::into_inner)
            .map_err(|status| status.message().to_owned())
    }

    /// Connects at the first request, and again by itself.
    fn channel(&self, node: u64, address: &str) -> Result<Channel, String> {
        let key = (node, address.to_owned());
        let mut channels = self
            .inner
            .channels
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(&key) {
            return Ok(channel.clone());
        }
        let connector =
            proto::tls::Connector::to_node(self.inner.config.tls.clone(), &node.to_string());
        let channel = proto::tls::endpoint(address)?.connect_with_connector_lazy(connector);
        channels.retain(|(other, _), _| *other != node);
        channels.insert(key, channel.clone());
        Ok(channel)
    }

    fn damaged(&self) -> MutexGuard<'_, BTreeMap<(u32, u64), Location>> {
        self.inner
            .damaged
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The answer's octets, when they are those of the entry that lies at `location`.
fn fits(
    group: u32,
    answer: v1::FetchEntryResponse,
    location: Location,
    whole: Option<u64>,
) -> Result<(Bytes, Bytes), String> {
    if !answer.found {
        return Err("does not have it".to_owned());
    }
    if digest(&answer.context, &answer.data) != answer.digest {
        return Err("its answer is damaged".to_owned());
    }
    let same_data = answer.data.len() == location.data_len as usize;
    let same_whole = whole.is_none_or(|term| {
        answer.term == term && answer.context.len() == location.context_len as usize
    });
    if !(same_data && same_whole) {
        return Err("its entry is another one".to_owned());
    }
    let edge = edge_digest(group, &answer.context);
    if edge.is_some_and(|edge| edge != mail::Digest::of(&answer.data)) {
        return Err("its body is not the one that the edge took".to_owned());
    }
    Ok((answer.context, answer.data))
}

/// What stands in an answer.
pub fn digest(context: &[u8], data: &[u8]) -> Bytes {
    let mut digester = Digester::default();
    digester.update(context);
    digester.update(data);
    Bytes::copy_from_slice(&digester.finish().0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(term: u64, context: &'static [u8], data: &'static [u8]) -> v1::FetchEntryResponse {
        v1::FetchEntryResponse {
            found: true,
            term,
            context: Bytes::from_static(context),
            data: Bytes::from_static(data),
            digest: digest(context, data),
        }
    }

    #[test]
    fn only_the_very_entry_is_taken_for_a_damaged_one() {
        let location = Location {
            segment: 1,
            offset: 0,
            context_len: 3,
            data_len: 4,
        };
        let body = answer(0, b"", b"body");
        assert!(fits(1, body.clone(), location, None).is_ok());
        assert!(
            fits(1, body, location, Some(5)).is_err(),
            "no command in it"
        );
        let entry = answer(5, b"cmd", b"body");
        assert!(fits(1, entry.clone(), location, Some(5)).is_ok());
        assert!(
            fits(1, entry.clone(), location, Some(6)).is_err(),
            "of another term"
        );
        assert!(fits(1, answer(5, b"cmd", b"longer"), location, None).is_err());
        let flipped = v1::FetchEntryResponse {
            data: Bytes::from_static(b"bodx"),
            ..entry
        };
        assert!(
            fits(1, flipped, location, None).is_err(),
            "damaged on the way"
        );
        assert!(fits(1, v1::FetchEntryResponse::default(), location, None).is_err());
    }
}
