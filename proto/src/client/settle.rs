//! Settling: what a next hop said must reach the queue, however long that takes.

use prost::Message;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::lane::{Frames, Kind, Lane, Reply};
use super::{Node, QueueClient};
use crate::tls::MESSAGE_BYTES_MAX;
use crate::v1::queue_client::QueueClient as Stub;
use crate::v1::{self, SettleAnswer, SettleAnswers, SettleFrame, SettleRequest};

/// What the queue made of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettleOutcome {
    /// It counts.
    Applied,
    /// The item had ended before.
    AlreadyTerminal,
    /// The token is old and the result is not a success: another attempt has the item.
    Fenced,
}

impl QueueClient {
    /// Settles an item and waits for the outcome, without giving up: dropping the future is the only cancel.
    /// `request.request` is filled in here.
    pub async fn settle(&self, request: SettleRequest) -> SettleOutcome {
        let mut tries = self.tries(request.shard, None);
        loop {
            if let Ok(node) = self.inner.nodes.get(&tries.target())
                && let Reply::Answer(answer) = node.settles(self).ask(request.clone(), None).await
            {
                match answer.outcome() {
                    v1::SettleOutcome::Applied => return SettleOutcome::Applied,
                    v1::SettleOutcome::AlreadyTerminal => return SettleOutcome::AlreadyTerminal,
                    v1::SettleOutcome::Fenced => return SettleOutcome::Fenced,
                    v1::SettleOutcome::NotLeader => tries.hint(&answer.leader_address),
                    v1::SettleOutcome::Busy
                    | v1::SettleOutcome::Unknown
                    | v1::SettleOutcome::Unspecified => {}
                }
            }
            tries.again().await;
        }
    }
}

impl Node {
    fn settles(&self, client: &QueueClient) -> &Lane<Settles> {
        self.settles
            .get_or_init(|| Lane::new(&self.address, self.channel.clone(), client.topology()))
    }
}

/// The lane of settles.
pub(crate) struct Settles;

impl Kind for Settles {
    type Request = SettleRequest;
    type Frame = SettleFrame;
    type Answer = SettleAnswer;
    type Answers = SettleAnswers;
    const NAME: &'static str = "settle";
    /// As many as the leader puts into one entry.
    const REQUESTS_MAX: usize = 256;
    /// The leader's entry takes 64 KiB; a frame may feed several shards.
    const BYTES_MAX: usize = 256 * 1024;

    fn weight(request: &SettleRequest) -> usize {
        request.encoded_len()
    }

    fn shard(request: &SettleRequest) -> u32 {
        request.shard
    }

    fn set_id(request: &mut SettleRequest, id: u64) {
        request.request = id;
    }

    fn frame(requests: Vec<SettleRequest>) -> SettleFrame {
        SettleFrame { requests }
    }

    async fn open(
        channel: Channel,
        frames: Frames<Settles>,
    ) -> Result<Streaming<SettleAnswers>, Status> {
        let mut stub = Stub::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        Ok(stub.settle(frames).await?.into_inner())
    }

    fn answers(answers: SettleAnswers) -> Vec<SettleAnswer> {
        answers.answers
    }

    fn id(answer: &SettleAnswer) -> u64 {
        answer.request
    }
}
