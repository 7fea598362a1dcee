//! Results on their way to the queue: kept, here and in the journal, until it has them.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use proto::{SettleOutcome, v1};
use tokio::sync::mpsc;

use crate::item::ItemId;
use crate::node::Node;

/// Free credit is given back at once from so many items on; below, the next tick is soon enough.
const FREED_ITEMS_NOTABLE: u32 = 64;

/// Settles what comes until the sender is gone and everything has its outcome. The queue's client puts what is asked at
/// once into common frames and asks again until there is an outcome.
pub(crate) async fn run(node: Arc<Node>, mut requests: mpsc::UnboundedReceiver<v1::SettleRequest>) {
    let mut open = FuturesUnordered::new();
    loop {
        tokio::select! {
            request = requests.recv() => match request {
                Some(request) => open.push(settle(&node, request)),
                None => break,
            },
            Some(()) = open.next() => {}
        }
    }
    while open.next().await.is_some() {}
}

async fn settle(node: &Node, mut request: v1::SettleRequest) {
    let Some(item) = ItemId::from_wire(request.item.as_ref()) else {
        return;
    };
    loop {
        let outcome = node.queue.settle(request.clone()).await;
        note(item, &request, outcome);
        if request.release {
            node.hand().released(item);
            return;
        }
        let again = {
            let mut hand = node.hand();
            let again = hand.settled(item, request.token);
            if hand.freed_items() >= FREED_ITEMS_NOTABLE {
                node.credit.notify_one();
            }
            again
        };
        match again {
            Some((token, session)) => (request.token, request.session) = (token, session),
            None => break,
        }
    }
    node.settled(item, request.shard);
}

fn note(item: ItemId, request: &v1::SettleRequest, outcome: SettleOutcome) {
    let label = match outcome {
        SettleOutcome::Applied => "applied",
        SettleOutcome::AlreadyTerminal => "already_terminal",
        SettleOutcome::Fenced => "fenced",
    };
    metrics::counter!("postroad_settles_total", "outcome" => label).increment(1);
    if outcome == SettleOutcome::Applied {
        tracing::debug!(%item, token = request.token, release = request.release, "settled");
    } else {
        tracing::info!(%item, token = request.token, release = request.release, outcome = label, "the queue had moved on before this result");
    }
}
