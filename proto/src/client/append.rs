//! Appending: the table of outcomes, from the edge's side.

use prost::Message;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::lane::{Frames, Kind, Lane, Reply};
use super::{Node, QueueClient};
use crate::tls::MESSAGE_BYTES_MAX;
use crate::v1::append_request::What;
use crate::v1::queue_client::QueueClient as Stub;
use crate::v1::{AppendAnswer, AppendAnswers, AppendFrame, AppendOutcome, AppendRequest};

/// How an append ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppendResult {
    /// A majority of the replicas has it on disk: the cluster is responsible from now on.
    Created,
    /// The queue had it already: as good as [`AppendResult::Created`].
    AlreadyQueued,
    /// The chunk is stored; more are to come.
    ChunkStored,
    /// The disks are full: nothing was written.
    Full,
    /// Another message has this id: a bug or an attack. Nothing was overwritten.
    Conflict,
    /// The id is unknown and its time is more than 15 min from cluster time.
    Stale,
    /// The chunks sent before were dropped: too old, over quota, or abandoned.
    UploadGone,
    /// The request breaks the protocol; the text says how.
    Invalid(String),
    /// No outcome within [`super::GIVE_UP`].
    GaveUp {
        /// A try was written and never answered, so the message may be queued: no reply may be given to the client.
        unknown: bool,
    },
}

pub(super) async fn append(client: &QueueClient, shard: u32, what: What) -> AppendResult {
    let mut tries = client.tries(shard, Some(client.inner.give_up));
    let mut unknown = false;
    loop {
        if let Ok(node) = client.inner.nodes.get(&tries.target()) {
            // A body is `Bytes`: this copies only the envelope.
            let request = AppendRequest {
                request: 0,
                shard,
                what: Some(what.clone()),
            };
            match node.appends(client).ask(request, tries.deadline()).await {
                Reply::Answer(answer) => match answer.outcome() {
                    AppendOutcome::Created => return AppendResult::Created,
                    AppendOutcome::AlreadyQueued => return AppendResult::AlreadyQueued,
                    AppendOutcome::ChunkStored => return AppendResult::ChunkStored,
                    AppendOutcome::Full => return AppendResult::Full,
                    AppendOutcome::Conflict => return AppendResult::Conflict,
                    AppendOutcome::Stale => return AppendResult::Stale,
                    AppendOutcome::UploadGone => return AppendResult::UploadGone,
                    AppendOutcome::Invalid => return AppendResult::Invalid(answer.text),
                    AppendOutcome::NotLeader => tries.hint(&answer.leader_address),
                    AppendOutcome::Busy => {}
                    // An outcome that this version does not know may mean anything.
                    AppendOutcome::Unknown | AppendOutcome::Unspecified => unknown = true,
                },
                Reply::NotWritten => {}
                Reply::Unknown => unknown = true,
                Reply::Expired { written } => {
                    return AppendResult::GaveUp {
                        unknown: unknown || written,
                    };
                }
            }
        }
        if !tries.again().await {
            return AppendResult::GaveUp { unknown };
        }
    }
}

impl Node {
    fn appends(&self, client: &QueueClient) -> &Lane<Appends> {
        self.appends
            .get_or_init(|| Lane::new(&self.address, self.channel.clone(), client.topology()))
    }
}

/// The lane of appends.
pub(crate) struct Appends;

impl Kind for Appends {
    type Request = AppendRequest;
    type Frame = AppendFrame;
    type Answer = AppendAnswer;
    type Answers = AppendAnswers;
    const NAME: &'static str = "append";
    /// With 10 KiB a message the cost of a frame is spread thin enough; more would delay the first one's answer.
    const REQUESTS_MAX: usize = 32;
    /// As one chunk of a large body.
    const BYTES_MAX: usize = 1024 * 1024;

    fn weight(request: &AppendRequest) -> usize {
        match &request.what {
            Some(What::Append(append)) => {
                append.body.len() + append.facts.as_ref().map_or(0, Message::encoded_len)
            }
            Some(What::Chunk(chunk)) => chunk.data.len(),
            Some(What::Abandon(_)) | None => 0,
        }
    }

    fn shard(request: &AppendRequest) -> u32 {
        request.shard
    }

    fn set_id(request: &mut AppendRequest, id: u64) {
        request.request = id;
    }

    fn frame(requests: Vec<AppendRequest>) -> AppendFrame {
        AppendFrame { requests }
    }

    async fn open(
        channel: Channel,
        frames: Frames<Appends>,
    ) -> Result<Streaming<AppendAnswers>, Status> {
        let mut stub = Stub::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        Ok(stub.append(frames).await?.into_inner())
    }

    fn answers(answers: AppendAnswers) -> Vec<AppendAnswer> {
        answers.answers
    }

    fn id(answer: &AppendAnswer) -> u64 {
        answer.request
    }
}
