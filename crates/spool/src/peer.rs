//! Replica to replica: two outgoing streams to each other node, so that heartbeats, votes and responses never wait
//! behind megabytes of entries (cockroach#15808, tikv#442). What comes in is checked against the cluster, the node's
//! certificate and its store's incarnation before Raft sees it.
//!
//! Nothing here is reliable, and nothing needs to be: Raft repeats what was lost. A queue that is full drops.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::v1::peer_client::PeerClient;
use proto::{NodeTls, v1};
use raft::eraftpb::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::directory::{Directory, node_of};
use crate::node::is_bulk;
use crate::wire::raft::{to_wire, wire_size};

/// Octets of messages in one frame: what a link carries in about a millisecond.
const FRAME_BYTES_MAX: usize = 1 << 20;

/// Messages that wait for one stream of entries: Raft itself has at most 32 in flight to a follower and group.
const BULK_QUEUE: usize = 1024;

/// Messages that wait for one stream of small ones.
const SMALL_QUEUE: usize = 8192;

/// Octets that wait for one stream of entries; more are dropped, and sent again by Raft.
const BULK_BYTES_MAX: usize = 32 << 20;

/// Frames handed to the HTTP/2 stream ahead of its window.
const FRAMES_AHEAD: usize = 4;

/// Pause before a broken stream is opened again.
const RECONNECT: Duration = Duration::from_millis(100);

/// A stream says at least this often how this node is (wall clock, room on its disk).
const IDLE_FRAME: Duration = Duration::from_secs(1);

/// Who this node is, on every frame.
#[derive(Clone)]
pub struct Sender {
    /// The cluster.
    pub cluster_id: Bytes,
    /// This node.
    pub node: u64,
    /// Of its store.
    pub incarnation: Bytes,
}

/// The streams to all other nodes.
#[derive(Clone, Default)]
pub struct Peers {
    links: Arc<BTreeMap<u64, Link>>,
}

struct Link {
    small: mpsc::Sender<v1::RaftMessage>,
    bulk: mpsc::Sender<v1::RaftMessage>,
    bulk_bytes: Arc<std::sync::atomic::AtomicUsize>,
    route: Route,
}

impl Peers {
    /// How to reach a node by a connection of one's own.
    pub fn route(&self, node: u64) -> Option<Route> {
        self.links.get(&node).map(|link| link.route.clone())
    }

    /// Opens streams to `others` (node id and address). They connect, and reconnect, by themselves.
    pub fn connect(
        others: &BTreeMap<u64, String>,
        own: &Sender,
        tls: &Arc<NodeTls>,
        directory: &Directory,
    ) -> Peers {
        let mut links = BTreeMap::new();
        for (node, address) in others {
            let (small, small_mail) = mpsc::channel(SMALL_QUEUE);
            let (bulk, bulk_mail) = mpsc::channel(BULK_QUEUE);
            let bulk_bytes = Arc::new(std::sync::atomic::AtomicUsize::new(0));
            let out = Route {
                to: *node,
                address: address.clone(),
                own: own.clone(),
                tls: tls.clone(),
                directory: directory.clone(),
            };
            let route = out.clone();
            tokio::spawn(out.clone().run(small_mail, None));
            tokio::spawn(out.run(bulk_mail, Some(bulk_bytes.clone())));
            links.insert(
                *node,
                Link {
                    small,
                    bulk,
                    bulk_bytes,
                    route,
                },
            );
        }
        Peers {
            links: Arc::new(links),
        }
    }

    /// Sends messages of a group, each to the node of its `to`. What has no room is dropped.
    pub fn send(&self, group: u32, messages: Vec<Message>) {
        use std::sync::atomic::Ordering;
        for message in messages {
            let Some(link) = self.links.get(&node_of(message.to)) else {
                continue;
            };
            let bulk = is_bulk(&message);
            let Some(wire) = to_wire(group, message) else {
                continue;
            };
            if !bulk {
                let _ = link.small.try_send(wire);
                continue;
            }
            let size = wire_size(&wire);
            if link.bulk_bytes.load(Ordering::Relaxed) + size > BULK_BYTES_MAX {
                metrics::counter!("postroad_peer_dropped_total").increment(1);
                continue;
            }
            link.bulk_bytes.fetch_add(size, Ordering::Relaxed);
            if link.bulk.try_send(wire).is_err() {
                link.bulk_bytes.fetch_sub(size, Ordering::Relaxed);
            }
        }
    }
}

/// Another node, and who this one is to it.
#[derive(Clone)]
pub struct Route {
    to: u64,
    address: String,
    own: Sender,
    tls: Arc<NodeTls>,
    directory: Directory,
}

impl Route {
    /// A new connection.
    pub async fn connect(&self) -> Result<tonic::transport::Channel, String> {
        let connector = proto::tls::Connector::to_node(self.tls.clone(), &self.to.to_string());
        let endpoint = proto::tls::endpoint(&self.address)?;
        let connecting = endpoint.connect_with_connector(connector).await;
        connecting.map_err(|e| proto::causes(&e))
    }

    async fn run(
        self,
        mut mail: mpsc::Receiver<v1::RaftMessage>,
        bytes: Option<Arc<std::sync::atomic::AtomicUsize>>,
    ) {
        let mut complained = false;
        loop {
            let ended = self.stream(&mut mail, bytes.as_deref()).await;
            match ended {
                Ok(()) => return,
                Err(error) if !complained => {
                    tracing::warn!(
                        node = self.to,
                        address = self.address,
                        error,
                        "no connection to a replica; it is tried again"
                    );
                    complained = true;
                }
                Err(_) => complained = !self.directory.heard_lately(self.to, Instant::now()),
            }
            // What waited is old by now; Raft sends what is needed.
            while let Ok(message) = mail.try_recv() {
                count_down(bytes.as_deref(), &message);
            }
            if mail.is_closed() {
                return;
            }
            tokio::time::sleep(RECONNECT).await;
        }
    }

    /// One connection's life. `Ok`: this node ends.
    async fn stream(
        &self,
        mail: &mut mpsc::Receiver<v1::RaftMessage>,
        bytes: Option<&std::sync::atomic::AtomicUsize>,
    ) -> Result<(), String> {
        let channel = self.connect().await?;
        let mut client =
            PeerClient::new(channel).max_decoding_message_size(proto::tls::MESSAGE_BYTES_MAX);
        let (frames, outgoing) = mpsc::channel(FRAMES_AHEAD);
        let call = client
            .exchange(ReceiverStream::new(outgoing))
            .await
            .map_err(|s| s.message().to_owned())?;
        let mut acks = call.into_inner();
        let mut batch = Vec::new();
        let mut told: Option<Instant> = None;
        loop {
            tokio::select! {
                n = mail.recv_many(&mut batch, 256) => if n == 0 { return Ok(()) },
                ended = acks.message() => {
                    return Err(ended.err().map_or("the other side closed the stream".to_owned(), |s| s.message().to_owned()));
                }
                () = tokio::time::sleep(IDLE_FRAME) => {}
            }
            // Counted down as they leave the queue: a stream that breaks from here on loses them, and Raft repeats them.
            batch.iter().for_each(|m| count_down(bytes, m));
            let mut rest = std::mem::take(&mut batch).into_iter().peekable();
            loop {
                let mut frame = self.frame();
                if told.is_none_or(|at| at.elapsed() >= IDLE_FRAME) {
                    told = Some(Instant::now());
                    frame.digests = self.directory.own_digests();
                }
                let mut size = 0;
                while let Some(message) =
                    rest.next_if(|m| size == 0 || size + wire_size(m) <= FRAME_BYTES_MAX)
                {
                    size += wire_size(&message);
                    frame.messages.push(message);
                }
                frames
                    .send(frame)
                    .await
                    .map_err(|_| "the stream broke".to_owned())?;
                if rest.peek().is_none() {
                    break;
                }
            }
        }
    }

    /// An empty frame.
    pub fn frame(&self) -> v1::PeerFrame {
        v1::PeerFrame {
            cluster_id: self.own.cluster_id.clone(),
            from_node: self.own.node,
            to_node: self.to,
            from_incarnation: self.own.incarnation.clone(),
            wall_ms: crate::runtime::wall_ms(),
            full: self.directory.own_full(),
            messages: Vec::new(),
            state_machine: self.directory.own_state_machine(),
            digests: Vec::new(),
        }
    }
}

fn count_down(bytes: Option<&std::sync::atomic::AtomicUsize>, message: &v1::RaftMessage) {
    if let Some(bytes) = bytes {
        bytes.fetch_sub(wire_size(message), std::sync::atomic::Ordering::Relaxed);
    }
}
