//! The Settle stream.

use proto::v1;
use queue::{LeaseSessionId, SettleItem, Token};
use tokio::sync::mpsc::{self, UnboundedSender};
use tonic::{Status, Streaming};

use super::{Answers, Services};
use crate::event::{SettleCall, SettleReply, StateEvent};
use crate::wire::log::{WireError, item_ref, result_from_wire};

impl Services {
    pub(super) fn settle_stream(
        &self,
        frames: Streaming<v1::SettleFrame>,
    ) -> Answers<v1::SettleAnswers> {
        let (to, answers) = mpsc::unbounded_channel();
        let services = self.clone();
        tokio::spawn(async move {
            if let Err(status) = services.take_settles(frames, to).await {
                tracing::debug!(%status, "a Settle stream ended");
            }
        });
        super::gather(answers, |answers| v1::SettleAnswers { answers })
    }

    async fn take_settles(
        self,
        mut frames: Streaming<v1::SettleFrame>,
        to: UnboundedSender<v1::SettleAnswer>,
    ) -> Result<(), Status> {
        while let Some(frame) = frames.message().await? {
            let mut calls = Vec::with_capacity(frame.requests.len());
            for request in frame.requests {
                let permit = self.settles.clone().acquire_owned().await;
                let permit =
                    permit.map_err(|_| Status::unavailable("this node is shutting down"))?;
                let (shard, id) = (request.shard, request.request);
                let item = parse(request).map_err(|e| Status::invalid_argument(e.to_string()))?;
                calls.push(SettleCall {
                    shard,
                    item,
                    reply: SettleReply {
                        request: id,
                        to: to.clone(),
                        permit: Some(permit),
                    },
                });
            }
            let _ = self.mail.state.send(StateEvent::Settles(calls));
        }
        Ok(())
    }
}

fn parse(request: v1::SettleRequest) -> Result<SettleItem, WireError> {
    let results = request
        .results
        .into_iter()
        .map(result_from_wire)
        .collect::<Result<_, _>>()?;
    Ok(SettleItem {
        item: item_ref(request.item)?,
        token: Token(request.token),
        session: LeaseSessionId(request.session),
        release: request.release,
        results,
        retry: None,
        give_up: false,
        reports: Vec::new(),
    })
}
