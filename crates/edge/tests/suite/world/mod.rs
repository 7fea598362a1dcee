//! An edge on loopback before a small queue node: the real client, real mutual TLS, real SMTP. The queue keeps what it
//! gets, checks it as a real one would, and answers by the sender's local part.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use edge::{Config, Edge};
use futures::Stream;
use mail::{Digest, Ulid};
use proto::client::{ClientConfig, QueueClient};
use proto::v1::append_request::What;
use proto::v1::queue_server::{Queue, QueueServer};
use proto::v1::*;
use proto::{NodeTls, Right, Role, incoming, pki, require, tls, ulid};
use resource::Catalog;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// Anybody on loopback may send as client.example; mail for inbound.example is taken from all.
pub const DECLARED: &str = "\
apiVersion: postroad.dev/v1alpha1
kind: RelayDomain
metadata: {name: client}
spec: {domain: client.example, outbound: {networks: [127.0.0.0/8]}}
---
apiVersion: postroad.dev/v1alpha1
kind: RelayDomain
metadata: {name: inbound, namespace: other}
spec: {domain: inbound.example, inbound: {}}
";

/// What the queue has.
#[derive(Default)]
pub struct Kept {
    pub messages: Vec<(MessageFacts, Bytes)>,
    pub chunks: HashMap<Ulid, Vec<Bytes>>,
}

#[derive(Clone, Default)]
pub struct Store {
    kept: Arc<Mutex<Kept>>,
    /// Lets the messages of `slow@` go on.
    pub gate: Arc<Notify>,
    /// A message of `slow@` has come.
    pub waiting: Arc<Notify>,
    /// Chunks are refused.
    pub chunks_gone: Arc<std::sync::atomic::AtomicBool>,
}

impl Store {
    pub fn messages(&self) -> Vec<(MessageFacts, Bytes)> {
        self.kept.lock().unwrap().messages.clone()
    }

    pub fn chunk_counts(&self) -> Vec<usize> {
        self.kept
            .lock()
            .unwrap()
            .chunks
            .values()
            .map(Vec::len)
            .collect()
    }

    /// `None`: there is never an answer.
    async fn take(&self, what: What) -> Option<AppendOutcome> {
        let append = match what {
            What::Append(append) => append,
            What::Abandon(abandon) => {
                let id = ulid(&abandon.message).unwrap();
                self.kept.lock().unwrap().chunks.remove(&id);
                return Some(AppendOutcome::UploadGone);
            }
            What::Chunk(chunk) => {
                if self.chunks_gone.load(std::sync::atomic::Ordering::SeqCst) {
                    return Some(AppendOutcome::UploadGone);
                }
                let id = ulid(&chunk.message).unwrap();
                let mut kept = self.kept.lock().unwrap();
                let chunks = kept.chunks.entry(id).or_default();
                assert_eq!(chunks.len(), chunk.seq as usize, "chunks come in order");
                assert!(chunk.data.len() <= edge::CHUNK_BYTES_MAX);
                // As the real one: the row of a message names no more.
                if chunk.seq >= edge::CHUNKS_MAX {
                    return Some(AppendOutcome::Invalid);
                }
                chunks.push(chunk.data);
                return Some(AppendOutcome::ChunkStored);
            }
        };
        let facts = append.facts.unwrap();
        match facts.return_path.split('@').next().unwrap() {
            "full" => return Some(AppendOutcome::Full),
            "never" => return None,
            "stale" => return Some(AppendOutcome::Stale),
            "conflict" => return Some(AppendOutcome::Conflict),
            "busy" => return Some(AppendOutcome::Busy),
            "slow" => {
                self.waiting.notify_one();
                self.gate.notified().await;
            }
            _ => {}
        }
        let mut kept = self.kept.lock().unwrap();
        let body = match facts.chunks {
            0 => append.body,
            chunks => {
                let held = &kept.chunks[&ulid(&facts.message).unwrap()];
                assert_eq!(held.len(), chunks as usize);
                assert!(append.body.is_empty());
                Bytes::from(held.concat())
            }
        };
        assert_eq!(facts.size, body.len() as u64);
        assert_eq!(facts.digest, Bytes::copy_from_slice(&Digest::of(&body).0));
        kept.messages.push((facts, body));
        Some(AppendOutcome::Created)
    }
}

pub struct World {
    pub store: Store,
    pub edge: Option<Edge>,
    pub address: SocketAddr,
    pub stop: CancellationToken,
    pub catalog: watch::Sender<Option<Arc<Catalog>>>,
    _pki: tempfile::TempDir,
}

pub fn catalog(text: &str) -> Option<Arc<Catalog>> {
    Some(Arc::new(
        resource::load_dir(vec![("t.yaml".into(), text.into())]).unwrap(),
    ))
}

impl World {
    pub async fn new() -> World {
        World::with(|_| {}, Duration::from_secs(120)).await
    }

    pub async fn with(adjust: impl FnOnce(&mut Config), give_up: Duration) -> World {
        World::on(Handle::current(), adjust, give_up).await
    }

    /// With the edge on a runtime of its own, so that its threads can be told from the others.
    pub async fn on(runtime: Handle, adjust: impl FnOnce(&mut Config), give_up: Duration) -> World {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca");
        pki::init("test", &ca).unwrap();
        let node = |role, name: &str| {
            let out = dir.path().join(name);
            pki::issue(&ca, role, name, &out).unwrap();
            Arc::new(NodeTls::load(&out).unwrap())
        };
        let store = Store::default();
        let client = ClientConfig {
            endpoints: vec![serve(store.clone(), node(Role::Queue, "1")).await],
            tls: node(Role::Edge, "edge"),
            name: "e1".into(),
        };
        let listen = vec!["127.0.0.1:0".parse().unwrap()];
        let mut config = Config::new("e1", mail::Domain::parse("mx.test").unwrap(), listen);
        adjust(&mut config);
        let (tell, told) = watch::channel(catalog(DECLARED));
        let stop = CancellationToken::new();
        let started = stop.clone();
        let edge = runtime.spawn(async move {
            let queue = QueueClient::giving_up_after(client, give_up);
            edge::start(config, queue, told, started).unwrap()
        });
        let edge = edge.await.unwrap();
        let mut readiness = edge.readiness();
        readiness.wait_for(edge::Readiness::is_ready).await.unwrap();
        World {
            store,
            address: edge.addresses()[0],
            edge: Some(edge),
            stop,
            catalog: tell,
            _pki: dir,
        }
    }

    /// A client that has said EHLO.
    pub async fn client(&self) -> Client {
        let mut client = Client::connect(self.address).await;
        assert!(client.reply().await.starts_with("220 "));
        assert!(client.ask("EHLO [127.0.0.1]").await.starts_with("250"));
        client
    }
}

/// Speaks SMTP by hand.
pub struct Client<S = TcpStream>(pub BufReader<S>);

impl Client {
    pub async fn connect(address: SocketAddr) -> Client {
        let socket = TcpStream::connect(address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        Client(BufReader::new(socket))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// The last line of the next reply; empty when the connection ended.
    pub async fn reply(&mut self) -> String {
        loop {
            let mut line = String::new();
            let read = tokio::time::timeout(Duration::from_secs(30), self.0.read_line(&mut line));
            match read.await.expect("a reply in time") {
                Ok(n) if n > 0 && line.as_bytes().get(3) == Some(&b'-') => continue,
                _ => return line.trim_end().to_owned(),
            }
        }
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).await.unwrap();
    }

    pub async fn ask(&mut self, line: &str) -> String {
        self.send(format!("{line}\r\n").as_bytes()).await;
        self.reply().await
    }

    /// Up to the 354.
    pub async fn begin(&mut self, from: &str, to: &[&str]) {
        assert!(
            self.ask(&format!("MAIL FROM:<{from}>"))
                .await
                .starts_with("250 ")
        );
        for to in to {
            assert!(
                self.ask(&format!("RCPT TO:<{to}>"))
                    .await
                    .starts_with("250 ")
            );
        }
        assert!(self.ask("DATA").await.starts_with("354 "));
    }

    /// A whole transaction with content that needs no dot-stuffing; gives the reply to the final dot.
    pub async fn mail(&mut self, from: &str, to: &[&str], content: &[u8]) -> String {
        self.begin(from, to).await;
        self.send(content).await;
        self.send(b".\r\n").await;
        self.reply().await
    }

    /// What comes until the server closes.
    pub async fn rest(mut self) -> String {
        let mut rest = String::new();
        let read = tokio::time::timeout(Duration::from_secs(30), self.0.read_to_string(&mut rest));
        let _ = read.await.expect("the server closes");
        rest
    }
}

async fn serve(store: Store, tls: Arc<NodeTls>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let service = QueueServer::new(Node {
        store,
        address: address.clone(),
    });
    let service = service.max_decoding_message_size(tls::MESSAGE_BYTES_MAX);
    tokio::spawn(
        tls::server()
            .add_service(service)
            .serve_with_incoming(incoming(listener, tls)),
    );
    address
}

struct Node {
    store: Store,
    address: String,
}

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Queue for Node {
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
        let (store, mut frames) = (self.store.clone(), request.into_inner());
        tokio::spawn(async move {
            while let Ok(Some(frame)) = frames.message().await {
                for request in frame.requests {
                    let (store, out) = (store.clone(), out.clone());
                    tokio::spawn(async move {
                        let Some(outcome) = store.take(request.what.unwrap()).await else {
                            return;
                        };
                        let mut answer = AppendAnswer {
                            request: request.request,
                            ..AppendAnswer::default()
                        };
                        answer.set_outcome(outcome);
                        let _ = out
                            .send(Ok(AppendAnswers {
                                answers: vec![answer],
                            }))
                            .await;
                    });
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn lease(
        &self,
        _: Request<Streaming<LeaseFrame>>,
    ) -> Result<Response<Self::LeaseStream>, Status> {
        Err(Status::unimplemented("an edge leases nothing"))
    }

    async fn settle(
        &self,
        _: Request<Streaming<SettleFrame>>,
    ) -> Result<Response<Self::SettleStream>, Status> {
        Err(Status::unimplemented("an edge settles nothing"))
    }

    async fn fetch(&self, _: Request<FetchRequest>) -> Result<Response<FetchResponse>, Status> {
        Err(Status::unimplemented("an edge fetches nothing"))
    }

    async fn watch_topology(
        &self,
        request: Request<WatchTopologyRequest>,
    ) -> Result<Response<Self::WatchTopologyStream>, Status> {
        require(&request, Right::WatchTopology)?;
        let leader = |group| GroupLeader {
            group,
            term: 1,
            leader_node: 1,
            leader_address: self.address.clone(),
        };
        let topology = Topology {
            cluster_id: Bytes::from_static(&[7; 16]),
            shards: 4,
            groups: (0..=4).map(leader).collect(),
            ..Topology::default()
        };
        let once = futures::stream::once(async { Ok(topology) });
        Ok(Response::new(Box::pin(futures::StreamExt::chain(
            once,
            futures::stream::pending(),
        ))))
    }
}
