//! The Append stream: frames in, answers by request id out, in any order.

use proto::v1;
use proto::v1::append_request::What;
use tokio::sync::mpsc::{self, UnboundedSender};
use tonic::{Status, Streaming};

use super::{APPEND_BYTES_MAX, AppendAnswers, Services};
use crate::event::{AppendCall, AppendReply, AppendWhat, StateEvent};
use crate::wire::log::{chunk_from_append, facts_from_append};

/// What a request costs at the door beside its body: the rows and tasks that wait with it.
const REQUEST_OVERHEAD: usize = 1024;

impl Services {
    pub(super) fn append_stream(&self, frames: Streaming<v1::AppendFrame>) -> AppendAnswers {
        let (to, answers) = mpsc::unbounded_channel();
        let services = self.clone();
        tokio::spawn(async move {
            if let Err(status) = services.take_appends(frames, to).await {
                tracing::debug!(%status, "an Append stream ended");
            }
        });
        super::gather(answers, |answers| v1::AppendAnswers { answers })
    }

    async fn take_appends(
        self,
        mut frames: Streaming<v1::AppendFrame>,
        to: UnboundedSender<v1::AppendAnswer>,
    ) -> Result<(), Status> {
        while let Some(frame) = frames.message().await? {
            let mut calls = Vec::with_capacity(frame.requests.len());
            for request in frame.requests {
                let size = (REQUEST_OVERHEAD + size_of(&request)).min(APPEND_BYTES_MAX) as u32;
                let permit = match self.appends.clone().try_acquire_many_owned(size) {
                    Ok(permit) => permit,
                    // Nothing more is read until there is room; what was taken apart so far goes on meanwhile.
                    Err(_) => {
                        self.hand_over(&mut calls);
                        let acquired = self.appends.clone().acquire_many_owned(size).await;
                        acquired.map_err(|_| Status::unavailable("this node is shutting down"))?
                    }
                };
                let reply = AppendReply {
                    request: request.request,
                    to: to.clone(),
                    permit: Some(permit),
                };
                match parse(request.what) {
                    Ok(what) => calls.push(AppendCall {
                        shard: request.shard,
                        what,
                        reply,
                    }),
                    Err(text) => reply.send_with(v1::AppendOutcome::Invalid, String::new(), text),
                }
            }
            self.hand_over(&mut calls);
        }
        Ok(())
    }

    fn hand_over(&self, calls: &mut Vec<AppendCall>) {
        if !calls.is_empty() {
            let _ = self
                .mail
                .state
                .send(StateEvent::Appends(std::mem::take(calls)));
        }
    }
}

fn size_of(request: &v1::AppendRequest) -> usize {
    match &request.what {
        Some(What::Append(append)) => append.body.len(),
        Some(What::Chunk(chunk)) => chunk.data.len(),
        Some(What::Abandon(_)) | None => 0,
    }
}

fn parse(what: Option<What>) -> Result<AppendWhat, String> {
    match what {
        Some(What::Append(append)) => {
            let (facts, body) = facts_from_append(append).map_err(|e| e.to_string())?;
            Ok(AppendWhat::Message {
                facts: Box::new(facts),
                body,
            })
        }
        Some(What::Chunk(chunk)) => {
            let message = chunk_from_append(&chunk).map_err(|e| e.to_string())?;
            Ok(AppendWhat::Chunk {
                message,
                seq: chunk.seq,
                data: chunk.data,
            })
        }
        Some(What::Abandon(abandon)) => {
            let message = crate::wire::log::message_id(&abandon.message);
            Ok(AppendWhat::Abandon(message.map_err(|e| e.to_string())?))
        }
        None => Err("the request holds neither a message nor a chunk".to_owned()),
    }
}
