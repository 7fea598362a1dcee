//! Bodies too large to travel with their hand-out.

use bytes::Bytes;
use ulid::Ulid;

use super::{CallError, QueueClient};
use crate::tls::MESSAGE_BYTES_MAX;
use crate::ulid_bytes;
use crate::v1::FetchRequest;
use crate::v1::queue_client::QueueClient as Stub;

impl QueueClient {
    /// A byte range of a body from the shard's leader, at most 1 MiB at once; shorter at the body's end.
    /// [`CallError::Gone`] when the message has ended.
    pub async fn fetch(
        &self,
        shard: u32,
        message: Ulid,
        offset: u64,
        length: u32,
    ) -> Result<Bytes, CallError> {
        let message = ulid_bytes(message);
        let call = |channel| {
            let request = FetchRequest {
                shard,
                message: message.clone(),
                offset,
                length,
            };
            async move {
                let mut stub = Stub::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
                stub.fetch(request).await
            }
        };
        let found = self
            .ask_leader(shard, self.inner.give_up, call, |r| r.not_leader.as_ref())
            .await?;
        if found.data.is_empty() && length > 0 {
            return Err(CallError::Gone);
        }
        Ok(found.data)
    }
}
