//! What a person asks: of one node, or of all shards with the answers put together.

use std::collections::BTreeMap;

use futures::future::{join_all, try_join_all};
use tonic::transport::Channel;
use ulid::Ulid;

use super::{ASK_GIVE_UP, Asked, CALL_TIMEOUT, CallError, QueueClient};
use crate::tls::MESSAGE_BYTES_MAX;
use crate::v1::admin_client::AdminClient as Stub;
use crate::v1::{
    ActRequest, ActResponse, AdminAction, DestinationSummary, ItemFilter, ItemRef, ItemSummary,
    ListRequest, NodeStatus, ShowRequest, ShowResponse, StatusRequest, SummaryRequest,
    SummaryResponse,
};
use crate::{ulid, ulid_bytes};

/// Items asked for at once.
const PAGE_ITEMS: u32 = 1_000;
/// Items acted on at once: a queue node takes no more of a request.
const ACT_ITEMS: usize = 1_000;

/// The service Admin of the whole queue.
#[derive(Clone)]
pub struct AdminClient {
    client: QueueClient,
}

/// The queue in numbers, over all shards.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Messages with at least one item.
    pub messages: u64,
    /// Items that wait for their due time.
    pub waiting: u64,
    /// Items that a delivery node has.
    pub leased: u64,
    /// Items that wait for a person.
    pub held: u64,
    /// By destination, the fullest first.
    pub destinations: Vec<DestinationSummary>,
    /// The latest cluster time of any shard, ms since 1970.
    pub cluster_time_ms: u64,
}

fn stub(channel: Channel) -> Stub<Channel> {
    Stub::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

impl AdminClient {
    pub(super) fn new(client: QueueClient) -> AdminClient {
        AdminClient { client }
    }

    pub(super) fn client(&self) -> &QueueClient {
        &self.client
    }

    async fn shards(&self) -> Result<u32, CallError> {
        Ok(self.client.ready(ASK_GIVE_UP).await?.shards())
    }

    /// How one node is, by its client address.
    pub async fn status(&self, address: &str) -> Result<NodeStatus, CallError> {
        let ask = |channel| async move { stub(channel).status(StatusRequest {}).await };
        self.client
            .ask_node(address, ask)
            .await
            .map_err(|asked| match asked {
                Asked::Never(error) => error,
                Asked::Again(last) => CallError::GaveUp {
                    seconds: CALL_TIMEOUT.as_secs(),
                    last,
                },
            })
    }

    /// How each node is that is configured or known; one that is down does not hide the others.
    pub async fn statuses(&self) -> Vec<(String, Result<NodeStatus, CallError>)> {
        // Without topology the configured addresses are asked all the same.
        let _ = self.client.ready(CALL_TIMEOUT).await;
        let addresses = {
            let view = self.client.view();
            match view.nodes().is_empty() {
                true => self.client.inner.nodes.config.endpoints.clone(),
                false => view.nodes().values().cloned().collect(),
            }
        };
        let asked = addresses.into_iter().map(|address| async move {
            let status = self.status(&address).await;
            (address, status)
        });
        join_all(asked).await
    }

    /// The numbers of the queue, with the `limit` fullest destinations (0: all). Which are the fullest shows only when
    /// all were counted, so all pages of all shards are read, whatever the limit.
    pub async fn summary(&self, limit: usize) -> Result<Summary, CallError> {
        let shards = self.shards().await?;
        let parts = try_join_all((0..shards).map(|shard| self.summary_of(shard))).await?;
        let mut sum = Summary::default();
        let mut destinations: BTreeMap<String, DestinationSummary> = BTreeMap::new();
        for part in parts {
            sum.messages += part.messages;
            sum.waiting += part.waiting;
            sum.leased += part.leased;
            sum.held += part.held;
            sum.cluster_time_ms = sum.cluster_time_ms.max(part.cluster_time_ms);
            for one in part.destinations {
                let all = destinations.entry(one.destination).or_default();
                all.waiting += one.waiting;
                all.leased += one.leased;
                all.held += one.held;
            }
        }
        sum.destinations = destinations
            .into_iter()
            .map(|(destination, numbers)| DestinationSummary {
                destination,
                ..numbers
            })
            .collect();
        // The sort keeps the order of names among equals.
        sum.destinations
            .sort_by_key(|d| std::cmp::Reverse(d.waiting + d.leased + d.held));
        if limit > 0 {
            sum.destinations.truncate(limit);
        }
        Ok(sum)
    }

    /// One shard's numbers with all its destinations. Each page is of its own moment; the totals are those of the first.
    async fn summary_of(&self, shard: u32) -> Result<SummaryResponse, CallError> {
        let mut all: Option<SummaryResponse> = None;
        let mut from = String::new();
        loop {
            let ask = |channel| {
                let request = SummaryRequest {
                    shard,
                    limit: 0,
                    from: from.clone(),
                };
                async move { stub(channel).summary(request).await }
            };
            let page = self
                .client
                .ask_leader(shard, ASK_GIVE_UP, ask, |r| r.not_leader.as_ref())
                .await?;
            // A page never begins with its own next one.
            let more = !page.next.is_empty() && page.next != from;
            from.clone_from(&page.next);
            match &mut all {
                None => all = Some(page),
                Some(all) => all.destinations.extend(page.destinations),
            }
            if !more {
                return Ok(all.unwrap_or_default());
            }
        }
    }

    /// Items that match, at most `limit`, shard after shard; `true` when there are more.
    pub async fn list(
        &self,
        filter: &ItemFilter,
        limit: usize,
    ) -> Result<(Vec<ItemSummary>, bool), CallError> {
        let shards = match ulid(&filter.message) {
            // A message lives in one shard.
            Some(message) => {
                let shard = self.client.ready(ASK_GIVE_UP).await?.shard_of(message);
                shard..shard + 1
            }
            None => 0..self.shards().await?,
        };
        let mut items = Vec::new();
        for shard in shards {
            let mut after: Option<ItemRef> = None;
            loop {
                let page = u32::try_from(limit - items.len())
                    .unwrap_or(PAGE_ITEMS)
                    .min(PAGE_ITEMS);
                if page == 0 {
                    return Ok((items, true));
                }
                let ask = |channel| {
                    let request = ListRequest {
                        shard,
                        filter: Some(filter.clone()),
                        after: after.clone(),
                        limit: page,
                    };
                    async move { stub(channel).list(request).await }
                };
                let found = self
                    .client
                    .ask_leader(shard, ASK_GIVE_UP, ask, |r| r.not_leader.as_ref())
                    .await?;
                items.extend(found.items);
                // A page may be empty and not the last: a node looks at so many rows a call, whether they match or not.
                after = found.next;
                if !found.more || after.is_none() {
                    break;
                }
            }
        }
        Ok((items, false))
    }

    /// All about one message.
    pub async fn show(&self, message: Ulid) -> Result<ShowResponse, CallError> {
        let shard = self.client.ready(ASK_GIVE_UP).await?.shard_of(message);
        let ask = |channel| async move {
            stub(channel)
                .show(ShowRequest {
                    shard,
                    message: ulid_bytes(message),
                })
                .await
        };
        self.client
            .ask_leader(shard, ASK_GIVE_UP, ask, |r| r.not_leader.as_ref())
            .await
    }

    /// Does something to items, shard by shard; the numbers are summed. An error may leave some shards done: the
    /// actions may be repeated.
    pub async fn act(
        &self,
        action: AdminAction,
        items: Vec<ItemRef>,
        actor: &str,
        reason: &str,
    ) -> Result<ActResponse, CallError> {
        let view = self.client.ready(ASK_GIVE_UP).await?;
        let mut sum = ActResponse::default();
        let mut by_shard: BTreeMap<u32, Vec<ItemRef>> = BTreeMap::new();
        for item in items {
            match ulid(&item.message) {
                Some(message) => by_shard
                    .entry(view.shard_of(message))
                    .or_default()
                    .push(item),
                None => sum.missing += 1,
            }
        }
        let parts = by_shard.iter().flat_map(|(shard, items)| {
            let parts = items.chunks(ACT_ITEMS);
            parts.map(move |items| (*shard, items))
        });
        for (shard, items) in parts {
            let ask = |channel| {
                let request = ActRequest {
                    shard,
                    action: action.into(),
                    items: items.to_vec(),
                    actor: actor.to_owned(),
                    reason: reason.to_owned(),
                };
                async move { stub(channel).act(request).await }
            };
            let done = self
                .client
                .ask_leader(shard, ASK_GIVE_UP, ask, |r| r.not_leader.as_ref())
                .await?;
            sum.done += done.done;
            sum.marked += done.marked;
            sum.missing += done.missing;
        }
        Ok(sum)
    }
}
