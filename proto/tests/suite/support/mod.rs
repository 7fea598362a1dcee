//! A queue node that says what a test tells it to, over real mutual TLS on loopback: the peer of the client.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use proto::client::{ClientConfig, QueueClient};
use proto::v1::append_request::What;
use proto::v1::queue_server::{Queue, QueueServer};
use proto::v1::*;
use proto::{NodeTls, Right, Role, Ulid, incoming, pki, require, tls, ulid, ulid_bytes};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// A CA and the folders of what it issued.
pub struct Pki {
    pub dir: tempfile::TempDir,
}

impl Pki {
    pub fn new(cluster: &str) -> Pki {
        let dir = tempfile::tempdir().unwrap();
        pki::init(cluster, &dir.path().join("ca")).unwrap();
        Pki { dir }
    }

    pub fn issue(&self, role: Role, name: &str) -> PathBuf {
        let out = self.dir.path().join(format!("{role}-{name}"));
        pki::issue(&self.dir.path().join("ca"), role, name, &out).unwrap();
        out
    }

    pub fn node(&self, role: Role, name: &str) -> Arc<NodeTls> {
        Arc::new(NodeTls::load(&self.issue(role, name)).unwrap())
    }

    pub fn client(&self, role: Role, endpoints: &[&str], give_up: Duration) -> QueueClient {
        let config = ClientConfig {
            endpoints: endpoints.iter().map(|e| e.to_string()).collect(),
            tls: self.node(role, "client"),
            name: "client".into(),
        };
        QueueClient::giving_up_after(config, give_up)
    }
}

/// What the node does with one request.
#[derive(Clone, Debug)]
pub enum Say {
    Append(AppendOutcome),
    Settle(SettleOutcome),
    /// NotLeader with a hint.
    Ask(String),
    /// The stream ends with an error, this request unanswered.
    Break,
    /// No answer, ever.
    Nothing,
}

/// The message and which time it is seen at this node (from 0).
type Script = dyn Fn(Ulid, usize) -> Say + Send + Sync;

#[derive(Clone)]
pub struct ScriptedQueue {
    script: Arc<Script>,
    topology: watch::Receiver<Topology>,
    pub seen: Arc<Mutex<Vec<Ulid>>>,
    /// Answers are gathered up to this many and sent last first.
    reverse: usize,
}

/// A running node; dropping it does not stop it, the runtime's end does.
pub struct Node {
    pub address: String,
    pub seen: Arc<Mutex<Vec<Ulid>>>,
    pub topology: watch::Sender<Topology>,
}

impl Node {
    pub fn times_seen(&self, message: Ulid) -> usize {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .filter(|seen| **seen == message)
            .count()
    }
}

/// One shard, led by `leader`.
pub fn led_by(leader: &str, term: u64, all: &[&str]) -> Topology {
    Topology {
        cluster_id: Bytes::from_static(&[9; 16]),
        shards: 1,
        cluster_time_ms: 1_700_000_000_000,
        groups: vec![GroupLeader {
            group: 1,
            term,
            leader_node: u64::from(!leader.is_empty()),
            leader_address: leader.into(),
        }],
        nodes: all
            .iter()
            .zip(1..)
            .map(|(address, node)| NodeAddress {
                node,
                client_address: address.to_string(),
            })
            .collect(),
    }
}

pub async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// An address at which nobody listens.
pub async fn nobody() -> String {
    listen().await.1
}

pub async fn start(
    tls: Arc<NodeTls>,
    topology: impl FnOnce(&str) -> Topology,
    script: impl Fn(Ulid, usize) -> Say + Send + Sync + 'static,
) -> Node {
    let (listener, address) = listen().await;
    start_on(listener, address, tls, topology, 1, script)
}

pub fn start_on(
    listener: TcpListener,
    address: String,
    tls: Arc<NodeTls>,
    topology: impl FnOnce(&str) -> Topology,
    reverse: usize,
    script: impl Fn(Ulid, usize) -> Say + Send + Sync + 'static,
) -> Node {
    let (publish, topology) = watch::channel(topology(&address));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let queue = ScriptedQueue {
        script: Arc::new(script),
        topology,
        seen: seen.clone(),
        reverse,
    };
    let service = QueueServer::new(queue).max_decoding_message_size(tls::MESSAGE_BYTES_MAX);
    tokio::spawn(async move {
        tls::server()
            .add_service(service)
            .serve_with_incoming(incoming(listener, tls))
            .await
            .unwrap();
    });
    Node {
        address,
        seen,
        topology: publish,
    }
}

impl ScriptedQueue {
    fn say(&self, message: &[u8]) -> Say {
        let message = ulid(message).unwrap();
        let mut seen = self.seen.lock().unwrap();
        let nth = seen.iter().filter(|seen| **seen == message).count();
        // A long run need not remember everything.
        if self.reverse == 1 {
            seen.push(message);
        }
        drop(seen);
        (self.script)(message, nth)
    }
}

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Queue for ScriptedQueue {
    type AppendStream = Out<AppendAnswers>;
    type LeaseStream = Out<LeaseEvents>;
    type SettleStream = Out<SettleAnswers>;
    type WatchTopologyStream = Out<Topology>;

    async fn append(
        &self,
        request: Request<Streaming<AppendFrame>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        require(&request, Right::Append)?;
        let (out, answers) = mpsc::channel(64);
        let (queue, mut frames) = (self.clone(), request.into_inner());
        tokio::spawn(async move {
            let mut held = Vec::new();
            loop {
                let quiet = tokio::time::timeout(Duration::from_millis(5), frames.message());
                let frame = match quiet.await {
                    Ok(Ok(Some(frame))) => frame,
                    Ok(_) => return,
                    Err(_) => {
                        send_reversed(&out, &mut held).await;
                        continue;
                    }
                };
                for request in frame.requests {
                    let message = match &request.what {
                        Some(What::Append(append)) => {
                            append.facts.as_ref().unwrap().message.clone()
                        }
                        Some(What::Chunk(chunk)) => chunk.message.clone(),
                        Some(What::Abandon(abandon)) => abandon.message.clone(),
                        None => return,
                    };
                    let mut answer = AppendAnswer {
                        request: request.request,
                        ..AppendAnswer::default()
                    };
                    match queue.say(&message) {
                        Say::Append(outcome) => answer.set_outcome(outcome),
                        Say::Ask(leader) => {
                            answer.set_outcome(AppendOutcome::NotLeader);
                            answer.leader_address = leader;
                        }
                        Say::Break => {
                            let _ = out
                                .send(Err(Status::aborted("the test breaks the stream")))
                                .await;
                            return;
                        }
                        Say::Nothing => continue,
                        Say::Settle(_) => unreachable!("a settle's answer to an append"),
                    }
                    held.push(answer);
                }
                if held.len() >= queue.reverse {
                    send_reversed(&out, &mut held).await;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn lease(
        &self,
        request: Request<Streaming<LeaseFrame>>,
    ) -> Result<Response<Self::LeaseStream>, Status> {
        require(&request, Right::Lease)?;
        // Each keepalive is answered; that is all that a raw stream needs to show.
        let events = request.into_inner().map(|frame| {
            let events = frame?
                .requests
                .into_iter()
                .filter_map(|request| match request.what {
                    Some(lease_request::What::Keepalive(k)) => Some(LeaseEvent {
                        shard: k.shard,
                        what: Some(lease_event::What::KeptAlive(KeptAlive {
                            session: k.session,
                            sequence: k.sequence,
                        })),
                    }),
                    _ => None,
                })
                .collect();
            Ok(LeaseEvents { events })
        });
        Ok(Response::new(Box::pin(events)))
    }

    async fn settle(
        &self,
        request: Request<Streaming<SettleFrame>>,
    ) -> Result<Response<Self::SettleStream>, Status> {
        require(&request, Right::Settle)?;
        let queue = self.clone();
        let answers = request.into_inner().map(move |frame| {
            let mut answers = Vec::new();
            for request in frame?.requests {
                let mut answer = SettleAnswer {
                    request: request.request,
                    ..SettleAnswer::default()
                };
                match queue.say(&request.item.unwrap().message) {
                    Say::Settle(outcome) => answer.set_outcome(outcome),
                    Say::Ask(leader) => {
                        answer.set_outcome(SettleOutcome::NotLeader);
                        answer.leader_address = leader;
                    }
                    Say::Break => return Err(Status::aborted("the test breaks the stream")),
                    Say::Nothing => continue,
                    Say::Append(_) => unreachable!("an append's answer to a settle"),
                }
                answers.push(answer);
            }
            Ok(SettleAnswers { answers })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn fetch(
        &self,
        request: Request<FetchRequest>,
    ) -> Result<Response<FetchResponse>, Status> {
        require(&request, Right::Fetch)?;
        let asked = request.into_inner();
        let mut answer = FetchResponse::default();
        match self.say(&asked.message) {
            Say::Ask(leader_address) => answer.not_leader = Some(NotLeader { leader_address }),
            Say::Nothing => {}
            _ => answer.data = Bytes::from(vec![b'x'; asked.length as usize]),
        }
        Ok(Response::new(answer))
    }

    async fn watch_topology(
        &self,
        request: Request<WatchTopologyRequest>,
    ) -> Result<Response<Self::WatchTopologyStream>, Status> {
        require(&request, Right::WatchTopology)?;
        let mut topology = self.topology.clone();
        topology.mark_changed();
        let topology = futures::stream::unfold(topology, |mut topology| async {
            topology.changed().await.ok()?;
            let now = topology.borrow_and_update().clone();
            Some((Ok(now), topology))
        });
        Ok(Response::new(Box::pin(topology)))
    }
}

async fn send_reversed(
    out: &mpsc::Sender<Result<AppendAnswers, Status>>,
    held: &mut Vec<AppendAnswer>,
) {
    if !held.is_empty() {
        let answers = held.drain(..).rev().collect();
        let _ = out.send(Ok(AppendAnswers { answers })).await;
    }
}

pub fn message(id: Ulid, body: &Bytes) -> What {
    let facts = MessageFacts {
        message: ulid_bytes(id),
        tenant: "default".into(),
        class: "default".into(),
        return_path: "sender@example.com".into(),
        items: vec![ItemFacts {
            destination: "example.org".into(),
            recipients: vec![RecipientFacts {
                address: "someone@example.org".into(),
            }],
        }],
        size: body.len() as u64,
        digest: Bytes::from_static(&[1; 16]),
        origin: Some(Origin::default()),
        ..MessageFacts::default()
    };
    What::Append(AppendMessage {
        facts: Some(facts),
        body: body.clone(),
    })
}
