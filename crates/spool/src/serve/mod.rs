//! The gRPC services of a queue node.
//!
//! A long-lived stream is one task that takes frames apart and one that gathers answers; neither decides anything.
//! What a node holds at its door is bounded in octets ([`APPEND_BYTES_MAX`]): beyond it a stream is not read, and
//! HTTP/2's window tells the client.

mod admin;
mod append;
mod config;
mod lease;
mod peer;
mod settle;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use proto::v1;
use tokio::sync::Semaphore;

use crate::collect::BodyReader;
use crate::desk::ConfigDesk;
use crate::directory::Directory;
use crate::event::Mailboxes;
use crate::log::LogReader;
use crate::runtime::{Health, Introducer, Mender};

/// Octets of appends that a node has taken and not answered (queue.md 3.3).
pub const APPEND_BYTES_MAX: usize = 64 << 20;

/// Settles that a node has taken and not answered; each is at most 100 results of a kilobyte.
pub const SETTLES_MAX: usize = 16_384;

/// Answers gathered into one frame.
const ANSWERS_PER_FRAME: usize = 256;

/// Frames of answers ahead of the HTTP/2 window.
const FRAMES_AHEAD: usize = 16;

/// What the services of a node share.
#[derive(Clone)]
pub struct Services {
    pub(crate) mail: Mailboxes,
    pub(crate) directory: Directory,
    pub(crate) bodies: BodyReader,
    pub(crate) mender: Mender,
    pub(crate) health: Health,
    pub(crate) desk: ConfigDesk,
    pub(crate) shards: u32,
    pub(crate) node: u64,
    pub(crate) appends: Arc<Semaphore>,
    pub(crate) settles: Arc<Semaphore>,
    pub(crate) next_stream: Arc<AtomicU64>,
}

impl Services {
    /// For a node whose threads run.
    pub fn new(
        mail: Mailboxes,
        directory: Directory,
        bodies: BodyReader,
        mender: Mender,
        health: Health,
        desk: ConfigDesk,
        shards: u32,
    ) -> Services {
        Services {
            node: directory.own(),
            mail,
            directory,
            bodies,
            mender,
            health,
            desk,
            shards,
            appends: Arc::new(Semaphore::new(APPEND_BYTES_MAX)),
            settles: Arc::new(Semaphore::new(SETTLES_MAX)),
            next_stream: Arc::new(AtomicU64::new(1)),
        }
    }

    fn check_running(&self) -> Result<(), tonic::Status> {
        match self.health.stopped() {
            None => Ok(()),
            Some(reason) => Err(tonic::Status::unavailable(format!(
                "queue node {} has stopped: {reason}",
                self.node
            ))),
        }
    }
}

/// The services that other replicas use. They answer before the node is a member: a first start needs it.
#[derive(Clone)]
pub struct PeerServices {
    pub(crate) introducer: Introducer,
    pub(crate) running: Arc<std::sync::OnceLock<PeerRunning>>,
}

/// What the peer services need once the threads run.
pub struct PeerRunning {
    /// The mailboxes.
    pub mail: Mailboxes,
    /// Who is heard of.
    pub directory: Directory,
    /// Why the node stopped, if it did.
    pub health: Health,
    /// What it does with what the control group's leader says.
    pub steered: crate::runtime::Steered,
    /// Entries back.
    pub reader: LogReader,
    /// Entries that are read for other replicas at once.
    pub fetches: Arc<Semaphore>,
    /// Snapshots that come in.
    pub snapshots: crate::runtime::Snapshots,
}

/// A gRPC answer stream that is fed by a channel.
pub(crate) type Answers<T> = tokio_stream::wrappers::ReceiverStream<Result<T, tonic::Status>>;

/// Gathers single answers into frames.
fn gather<T: Send + 'static, F: Send + 'static>(
    mut from: tokio::sync::mpsc::UnboundedReceiver<T>,
    frame: impl Fn(Vec<T>) -> F + Send + 'static,
) -> Answers<F> {
    let (to, stream) = tokio::sync::mpsc::channel(FRAMES_AHEAD);
    tokio::spawn(async move {
        let mut batch = Vec::new();
        while from.recv_many(&mut batch, ANSWERS_PER_FRAME).await > 0 {
            if to
                .send(Ok(frame(std::mem::take(&mut batch))))
                .await
                .is_err()
            {
                return;
            }
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(stream)
}

/// All of a client stream's answers in one type.
pub(crate) type AppendAnswers = Answers<v1::AppendAnswers>;
