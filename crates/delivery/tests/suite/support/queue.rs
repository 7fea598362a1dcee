//! A queue node with one shard: hands out what a test gives it while there is credit, keeps lease sessions alive until
//! told not to, and remembers what was settled.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::Stream;
use mail::{Digest, Ulid};
use proto::v1::lease_event::What;
use proto::v1::lease_request::What as Asked;
use proto::v1::queue_server::{Queue, QueueServer};
use proto::v1::*;
use proto::{NodeTls, incoming, tls, ulid};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::eventually;

#[derive(Default)]
pub struct State {
    waiting: VecDeque<Handout>,
    /// By message: the token of the grant now.
    pub leased: HashMap<Ulid, (Handout, u64)>,
    pub settled: Vec<SettleRequest>,
    pub released: Vec<Ulid>,
    pub opens: Vec<OpenSession>,
    pub reattached: Vec<Reattach>,
    pub busy: Vec<DestinationBusy>,
    pub windows: Vec<DestinationWindow>,
    bodies: HashMap<Ulid, Bytes>,
    pub fetches: usize,
    pub credit: i64,
    session: u64,
    token: u64,
    /// Keepalives and new sessions get no answer.
    pub mute: bool,
    /// Settles get no answer, and do not count.
    pub deaf: bool,
    stream: Option<mpsc::UnboundedSender<Result<LeaseEvents, Status>>>,
}

#[derive(Clone)]
pub struct FakeQueue {
    pub address: String,
    pub state: Arc<Mutex<State>>,
}

impl FakeQueue {
    pub async fn start(tls: Arc<NodeTls>) -> FakeQueue {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let queue = FakeQueue {
            address,
            state: Arc::default(),
        };
        let service =
            QueueServer::new(queue.clone()).max_decoding_message_size(tls::MESSAGE_BYTES_MAX);
        tokio::spawn(async move {
            tls::server()
                .add_service(service)
                .serve_with_incoming(incoming(listener, tls))
                .await
                .unwrap();
        });
        queue
    }

    /// Appends a message to `domain` and hands it out when there is credit.
    pub fn append(&self, domain: &str, recipients: &[&str], body: impl Into<Bytes>) -> Ulid {
        self.append_with(domain, recipients, body, |_| {})
    }

    pub fn append_with(
        &self,
        domain: &str,
        recipients: &[&str],
        body: impl Into<Bytes>,
        change: impl FnOnce(&mut Handout),
    ) -> Ulid {
        let (id, body) = (Ulid::from_parts(1, rand::random()), body.into());
        let message = HandoutMessage {
            tenant: "default".into(),
            class: "default".into(),
            return_path: "sender@example.com".into(),
            destination: domain.into(),
            size: body.len() as u64,
            digest: Bytes::copy_from_slice(&Digest::of(&body).0),
            has_principal: true,
            ..Default::default()
        };
        let recipients = (0..)
            .zip(recipients)
            .map(|(recipient, local)| HandoutRecipient {
                recipient,
                address: format!("{local}@{domain}"),
            });
        let mut handout = Handout {
            item: Some(ItemRef {
                message: Bytes::copy_from_slice(&id.to_bytes()),
                number: 0,
            }),
            message: Some(message),
            recipients: recipients.collect(),
            ..Default::default()
        };
        let mut state = self.state.lock().unwrap();
        if body.len() <= 1 << 20 {
            handout.body = body;
        } else {
            state.bodies.insert(id, body);
        }
        change(&mut handout);
        state.waiting.push_back(handout);
        state.hand_out();
        id
    }

    /// The results of a message, as soon as it is settled for the `nth` time (from 0).
    pub async fn results(&self, id: Ulid, nth: usize) -> Vec<RecipientResult> {
        self.settle(id, nth).await.results
    }

    pub async fn settle(&self, id: Ulid, nth: usize) -> SettleRequest {
        eventually("settled", || {
            let state = self.state.lock().unwrap();
            let mut settled = state
                .settled
                .iter()
                .filter(|settle| id_of(&settle.item) == Some(id));
            settled.nth(nth).cloned()
        })
        .await
    }

    /// The item is handed out once more, as after its retry time.
    pub fn again(&self, id: Ulid) {
        let mut state = self.state.lock().unwrap();
        let (handout, _) = state.leased[&id].clone();
        state.waiting.push_back(handout);
        state.hand_out();
    }

    /// The Lease stream breaks.
    pub fn break_stream(&self) {
        if let Some(stream) = self.state.lock().unwrap().stream.take() {
            let _ = stream.send(Err(Status::unavailable("the test breaks the stream")));
        }
    }
}

impl State {
    fn say(&self, what: What) {
        if let Some(stream) = &self.stream {
            let _ = stream.send(Ok(LeaseEvents {
                events: vec![LeaseEvent {
                    shard: 0,
                    what: Some(what),
                }],
            }));
        }
    }

    fn hand_out(&mut self) {
        while self.credit > 0 && self.session > 0 && self.stream.is_some() {
            let Some(mut handout) = self.waiting.pop_front() else {
                return;
            };
            self.credit -= 1;
            self.token += 1;
            (handout.token, handout.session) = (self.token, self.session);
            self.leased
                .insert(id_of(&handout.item).unwrap(), (handout.clone(), self.token));
            self.say(What::Handout(handout));
        }
    }

    fn asked(&mut self, asked: Asked) {
        match asked {
            Asked::Hello(_) | Asked::Extend(_) => {}
            Asked::Open(open) => {
                let kept = open.holding.iter().filter(|held| held.past_dot).cloned();
                let kept: Vec<_> = kept
                    .map(|held| {
                        self.token += 1;
                        HeldItem {
                            token: self.token,
                            ..held
                        }
                    })
                    .collect();
                let sequence = open.sequence;
                self.opens.push(open);
                if self.mute {
                    return;
                }
                self.session += 1;
                self.say(What::Opened(SessionOpened {
                    session: self.session,
                    ttl_ms: 30_000,
                    kept,
                    sequence,
                }));
            }
            Asked::Reattach(again) => self.reattached.push(again),
            Asked::Credit(credit) => {
                self.credit += i64::from(credit.items);
                self.hand_out();
            }
            Asked::Window(window) => self.windows.push(window),
            Asked::Busy(busy) => self.busy.push(busy),
            Asked::Keepalive(keep) if !self.mute => {
                self.say(What::KeptAlive(KeptAlive {
                    session: keep.session,
                    sequence: keep.sequence,
                }));
            }
            Asked::Keepalive(_) => {}
        }
    }
}

fn id_of(item: &Option<ItemRef>) -> Option<Ulid> {
    ulid(&item.as_ref()?.message)
}

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Queue for FakeQueue {
    type AppendStream = Out<AppendAnswers>;
    type LeaseStream = Out<LeaseEvents>;
    type SettleStream = Out<SettleAnswers>;
    type WatchTopologyStream = Out<Topology>;

    async fn append(
        &self,
        _: Request<Streaming<AppendFrame>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        Err(Status::unimplemented("a delivery node appends nothing"))
    }

    async fn lease(
        &self,
        request: Request<Streaming<LeaseFrame>>,
    ) -> Result<Response<Self::LeaseStream>, Status> {
        let mut frames = request.into_inner();
        // As the real one: whose stream it is must be known before it is answered.
        let first = frames
            .message()
            .await?
            .ok_or_else(|| Status::invalid_argument("no hello"))?;
        let Some(Asked::Hello(_)) = first
            .requests
            .first()
            .and_then(|request| request.what.clone())
        else {
            return Err(Status::invalid_argument(
                "a Lease stream begins with a hello",
            ));
        };
        let (to, events) = mpsc::unbounded_channel();
        {
            let mut state = self.state.lock().unwrap();
            (state.stream, state.credit) = (Some(to), 0);
            first
                .requests
                .into_iter()
                .filter_map(|request| request.what)
                .for_each(|what| state.asked(what));
        }
        let queue = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(frame)) = frames.message().await {
                let mut state = queue.state.lock().unwrap();
                frame
                    .requests
                    .into_iter()
                    .filter_map(|request| request.what)
                    .for_each(|what| state.asked(what));
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(
            events,
        ))))
    }

    async fn settle(
        &self,
        request: Request<Streaming<SettleFrame>>,
    ) -> Result<Response<Self::SettleStream>, Status> {
        let (to, answers) = mpsc::channel(64);
        let (queue, mut frames) = (self.clone(), request.into_inner());
        tokio::spawn(async move {
            while let Ok(Some(frame)) = frames.message().await {
                let mut answers = Vec::new();
                {
                    let mut state = queue.state.lock().unwrap();
                    if state.deaf {
                        continue;
                    }
                    for request in frame.requests {
                        let mut answer = SettleAnswer {
                            request: request.request,
                            ..Default::default()
                        };
                        answer.set_outcome(SettleOutcome::Applied);
                        answers.push(answer);
                        match request.release {
                            true => state.released.push(id_of(&request.item).unwrap()),
                            false => state.settled.push(request),
                        }
                    }
                }
                if to.send(Ok(SettleAnswers { answers })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn fetch(
        &self,
        request: Request<FetchRequest>,
    ) -> Result<Response<FetchResponse>, Status> {
        let asked = request.into_inner();
        let mut state = self.state.lock().unwrap();
        state.fetches += 1;
        let body = ulid(&asked.message).and_then(|id| state.bodies.get(&id));
        let body = body.ok_or_else(|| Status::not_found("no such body"))?;
        let (from, to) = (
            asked.offset as usize,
            asked.offset as usize + asked.length as usize,
        );
        let data = body.slice(from.min(body.len())..to.min(body.len()));
        Ok(Response::new(FetchResponse {
            data,
            ..Default::default()
        }))
    }

    async fn watch_topology(
        &self,
        _: Request<WatchTopologyRequest>,
    ) -> Result<Response<Self::WatchTopologyStream>, Status> {
        let topology = Topology {
            cluster_id: Bytes::from_static(&[9; 16]),
            shards: 1,
            cluster_time_ms: 1_700_000_000_000,
            groups: vec![GroupLeader {
                group: 1,
                term: 1,
                leader_node: 1,
                leader_address: self.address.clone(),
            }],
            nodes: vec![NodeAddress {
                node: 1,
                client_address: self.address.clone(),
            }],
        };
        let stream = futures::StreamExt::chain(
            futures::stream::iter([Ok(topology)]),
            futures::stream::pending(),
        );
        Ok(Response::new(Box::pin(stream)))
    }
}
