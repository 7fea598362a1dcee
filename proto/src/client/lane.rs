//! A lane: one long-lived stream of frames to one node, and the answers to them by request id.
//!
//! Requests wait in a queue until HTTP/2 asks for the next frame; that takes what is there, up to the frame's limits.
//! So a frame is full exactly when the connection is busy, and nothing waits for a timer. A request is *written* from
//! the moment that a frame takes it: if the stream breaks then, nobody knows whether it took effect.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures::Stream;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::AbortHandle;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::{TopologyView, explain, is_final};

/// How often requests that nobody waits for any more, or not any longer, are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_millis(200);

/// What differs between the lanes: the types, and the limits of a frame.
pub(crate) trait Kind: Send + Sync + Sized + 'static {
    type Request: Send;
    type Frame: Send + 'static;
    type Answer: Send;
    type Answers: Send + 'static;
    const NAME: &'static str;
    const REQUESTS_MAX: usize;
    const BYTES_MAX: usize;

    /// Octets on the wire, about.
    fn weight(request: &Self::Request) -> usize;
    fn shard(request: &Self::Request) -> u32;
    fn set_id(request: &mut Self::Request, id: u64);
    fn frame(requests: Vec<Self::Request>) -> Self::Frame;
    fn open(
        channel: Channel,
        frames: Frames<Self>,
    ) -> impl Future<Output = Result<Streaming<Self::Answers>, Status>> + Send;
    fn answers(answers: Self::Answers) -> Vec<Self::Answer>;
    fn id(answer: &Self::Answer) -> u64;
}

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Reply<A> {
    Answer(A),
    /// It never left this process.
    NotWritten,
    /// It was written, and no answer will come.
    Unknown,
    /// Its deadline passed.
    Expired {
        written: bool,
    },
}

struct Queued<K: Kind> {
    id: u64,
    request: K::Request,
    weight: usize,
    waiting: Waiting<K>,
}

struct Waiting<K: Kind> {
    shard: u32,
    deadline: Option<Instant>,
    done: oneshot::Sender<Reply<K::Answer>>,
}

impl<K: Kind> Waiting<K> {
    fn end(self, reply: Reply<K::Answer>) {
        // Whoever asked may have gone; that is its right.
        let _ = self.done.send(reply);
    }
}

struct State<K: Kind> {
    queue: VecDeque<Queued<K>>,
    written: HashMap<u64, Waiting<K>>,
    last_id: u64,
    /// Counts streams; a frame source of an earlier one ends.
    stream: u64,
    open: bool,
    source: Option<Waker>,
}

struct Shared<K: Kind> {
    state: Mutex<State<K>>,
    work: Notify,
}

impl<K: Kind> Shared<K> {
    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The stream of one kind to one node; connects when there is something to say.
pub(crate) struct Lane<K: Kind> {
    shared: Arc<Shared<K>>,
    task: AbortHandle,
}

impl<K: Kind> Drop for Lane<K> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<K: Kind> Lane<K> {
    pub(crate) fn new(
        address: &str,
        channel: Channel,
        view: watch::Receiver<Arc<TopologyView>>,
    ) -> Lane<K> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                queue: VecDeque::new(),
                written: HashMap::new(),
                last_id: 0,
                stream: 0,
                open: false,
                source: None,
            }),
            work: Notify::new(),
        });
        let run = Run {
            address: address.to_owned(),
            channel,
            view,
            shared: shared.clone(),
            said: String::new(),
        };
        Lane {
            shared,
            task: tokio::spawn(run.run()).abort_handle(),
        }
    }

    /// Asks, and waits for what becomes of it.
    pub(crate) async fn ask(
        &self,
        mut request: K::Request,
        deadline: Option<Instant>,
    ) -> Reply<K::Answer> {
        let (done, answer) = oneshot::channel();
        let weight = K::weight(&request);
        let waiting = Waiting {
            shard: K::shard(&request),
            deadline,
            done,
        };
        let source = {
            let mut state = self.shared.lock();
            state.last_id += 1;
            let id = state.last_id;
            K::set_id(&mut request, id);
            state.queue.push_back(Queued {
                id,
                request,
                weight,
                waiting,
            });
            if !state.open {
                self.shared.work.notify_one();
            }
            state.source.take()
        };
        if let Some(source) = source {
            source.wake();
        }
        // A lane that was dropped answers nobody; what it wrote is unknown.
        answer.await.unwrap_or(Reply::Unknown)
    }
}

/// What tonic takes frames from.
pub(crate) struct Frames<K: Kind> {
    shared: Arc<Shared<K>>,
    stream: u64,
}

impl<K: Kind> Stream for Frames<K> {
    type Item = K::Frame;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<K::Frame>> {
        let mut state = self.shared.lock();
        if !state.open || state.stream != self.stream {
            return Poll::Ready(None);
        }
        let mut requests = Vec::new();
        let mut bytes = 0;
        while let Some(next) = state.queue.front() {
            if next.waiting.done.is_closed() {
                state.queue.pop_front();
                continue;
            }
            bytes += next.weight;
            if !requests.is_empty() && bytes > K::BYTES_MAX || requests.len() == K::REQUESTS_MAX {
                break;
            }
            if let Some(Queued {
                id,
                request,
                waiting,
                ..
            }) = state.queue.pop_front()
            {
                state.written.insert(id, waiting);
                requests.push(request);
            }
        }
        if requests.is_empty() {
            state.source = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Some(K::frame(requests)))
    }
}

/// The task behind a lane.
struct Run<K: Kind> {
    address: String,
    channel: Channel,
    view: watch::Receiver<Arc<TopologyView>>,
    shared: Arc<Shared<K>>,
    said: String,
}

impl<K: Kind> Run<K> {
    async fn run(mut self) {
        loop {
            while self.shared.lock().queue.is_empty() {
                self.shared.work.notified().await;
            }
            let why = self.one_stream().await;
            if why != self.said {
                tracing::warn!(
                    address = self.address,
                    stream = K::NAME,
                    reason = why,
                    "lost the stream to a queue node"
                );
                self.said = why;
            }
        }
    }

    /// Opens a stream and serves it until it ends; returns why it did.
    async fn one_stream(&mut self) -> String {
        let stream = {
            let mut state = self.shared.lock();
            state.stream += 1;
            state.open = true;
            state.stream
        };
        let frames = Frames {
            shared: self.shared.clone(),
            stream,
        };
        let mut before = self.view.borrow_and_update().clone();
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);

        let mut opening = std::pin::pin!(K::open(self.channel.clone(), frames));
        let opened = loop {
            tokio::select! {
                opened = &mut opening => break opened,
                _ = sweep.tick() => sweep_expired(&self.shared, Instant::now()),
            }
        };
        let mut answers = match opened {
            Ok(answers) => answers,
            Err(status) => {
                // With these codes the service was never entered, whatever was sent after the headers.
                close(&self.shared, is_final(&status), true);
                return explain(&status);
            }
        };
        self.said.clear();
        let why = loop {
            tokio::select! {
                answer = answers.message() => match answer {
                    Ok(Some(answers)) => settle_all(&self.shared, K::answers(answers)),
                    Ok(None) => break "it ended the stream".to_owned(),
                    Err(status) => break explain(&status),
                },
                _ = sweep.tick() => sweep_expired(&self.shared, Instant::now()),
                Ok(()) = self.view.changed() => {
                    let now = self.view.borrow_and_update().clone();
                    give_back_moved(&self.shared, &self.address, &before, &now);
                    before = now;
                }
            }
        };
        // What was not written stays in the queue for the next stream.
        close(&self.shared, false, false);
        why
    }
}

fn settle_all<K: Kind>(shared: &Shared<K>, answers: Vec<K::Answer>) {
    let mut state = shared.lock();
    for answer in answers {
        // An id that is not there was expired or given back; the answer comes too late.
        if let Some(waiting) = state.written.remove(&K::id(&answer)) {
            waiting.end(Reply::Answer(answer));
        }
    }
}

/// Ends the stream. `unheard`: not even what was written was looked at. `queue_too`: there is no connection.
fn close<K: Kind>(shared: &Shared<K>, unheard: bool, queue_too: bool) {
    let mut state = shared.lock();
    state.open = false;
    if let Some(source) = state.source.take() {
        // It finds that its stream is over.
        source.wake();
    }
    for (_, waiting) in state.written.drain() {
        waiting.end(if unheard {
            Reply::NotWritten
        } else {
            Reply::Unknown
        });
    }
    if queue_too {
        for queued in state.queue.drain(..) {
            queued.waiting.end(Reply::NotWritten);
        }
    }
}

/// One sweep in place of a timer for each request.
fn sweep_expired<K: Kind>(shared: &Shared<K>, now: Instant) {
    end_where(shared, |waiting| {
        let expired = waiting.deadline.is_some_and(|deadline| deadline <= now);
        (expired || waiting.done.is_closed()).then_some(|written| Reply::Expired { written })
    });
}

/// Requests to a shard that this node no longer leads need not wait until its connection is found dead: the id
/// makes a second try at the new leader safe.
fn give_back_moved<K: Kind>(
    shared: &Shared<K>,
    address: &str,
    before: &TopologyView,
    now: &TopologyView,
) {
    let moved = |shard| {
        let leader = now.known_leader(shard);
        leader != before.known_leader(shard) && leader.is_some_and(|leader| leader != address)
    };
    end_where(shared, |waiting| {
        moved(waiting.shard).then_some(|written| {
            if written {
                Reply::Unknown
            } else {
                Reply::NotWritten
            }
        })
    });
}

/// Ends the requests for which `how` has a reply; the reply is told whether the request was written.
fn end_where<K: Kind, R>(shared: &Shared<K>, how: impl Fn(&Waiting<K>) -> Option<R>)
where
    R: Fn(bool) -> Reply<K::Answer>,
{
    let mut state = shared.lock();
    for (_, waiting) in state
        .written
        .extract_if(|_, waiting| how(waiting).is_some())
    {
        if let Some(reply) = how(&waiting) {
            waiting.end(reply(true));
        }
    }
    if state
        .queue
        .iter()
        .any(|queued| how(&queued.waiting).is_some())
    {
        for queued in std::mem::take(&mut state.queue) {
            match how(&queued.waiting) {
                Some(reply) => queued.waiting.end(reply(false)),
                None => state.queue.push_back(queued),
            }
        }
    }
}
