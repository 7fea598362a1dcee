//! Whether this node should get connections, and if not, why.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use proto::client::TopologyView;
use tokio::sync::watch;

use crate::node::Node;

/// An edge whose clock is further from cluster time makes ids that the queue may refuse as stale.
const CLOCK_SKEW_MAX_MS: u64 = 60_000;
/// Between two looks at the clock when nothing else changes.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_secs(5);

/// Whether the node should get connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Configuration is there, the queue was reached, the clock is right.
    Ready,
    /// Not, and why: a text for `/readyz` and the log.
    NotReady(String),
}

impl Readiness {
    /// It is [`Readiness::Ready`].
    pub fn is_ready(&self) -> bool {
        *self == Readiness::Ready
    }
}

/// Keeps `tell` true until the node drains. Once the queue was reached, losing it later makes a node not unready: it
/// answers 451, and another edge would do no better.
pub(crate) async fn watch(node: Arc<Node>, tell: watch::Sender<Readiness>) {
    let mut topology = node.appender.queue.topology();
    let mut catalog = node.catalog.clone();
    loop {
        let now = judge(Seen::now(&node, &topology.borrow_and_update()));
        let changed = tell.send_if_modified(|before| {
            let changed = *before != now;
            *before = now.clone();
            changed
        });
        if changed {
            match &now {
                Readiness::Ready => tracing::info!("ready"),
                Readiness::NotReady(why) => tracing::warn!(%why, "not ready"),
            }
        }
        tokio::select! {
            () = node.draining.cancelled() => break,
            _ = topology.changed() => {}
            changed = catalog.changed() => if changed.is_err() { tokio::time::sleep(LOOK_EVERY).await },
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
    tell.send_replace(Readiness::NotReady("draining".into()));
}

/// What readiness depends on.
struct Seen {
    configured: bool,
    /// A queue node has told the topology.
    reached: bool,
    trouble: Option<String>,
    cluster_ms: Option<u64>,
    unix_ms: u64,
}

impl Seen {
    fn now(node: &Node, view: &TopologyView) -> Seen {
        Seen {
            configured: node.catalog().is_some(),
            reached: view.shards() > 0,
            trouble: view.trouble().map(str::to_owned),
            cluster_ms: view.cluster_time_ms(Instant::now()),
            unix_ms: unix_ms(),
        }
    }
}

fn judge(seen: Seen) -> Readiness {
    if !seen.configured {
        return Readiness::NotReady("no configuration has come yet".into());
    }
    if !seen.reached {
        let why = seen
            .trouble
            .as_deref()
            .unwrap_or("no queue node has answered yet");
        return Readiness::NotReady(format!("the queue was not reached yet: {why}"));
    }
    match seen
        .cluster_ms
        .map(|cluster| cluster.abs_diff(seen.unix_ms))
    {
        Some(skew) if skew > CLOCK_SKEW_MAX_MS => Readiness::NotReady(format!(
            "this machine's clock is {} s from cluster time; set it (NTP), the queue refuses ids from a wrong clock",
            skew / 1000
        )),
        _ => Readiness::Ready,
    }
}

fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(configured: bool, reached: bool, cluster_ms: Option<u64>) -> String {
        let unix_ms = 1_700_000_000_000;
        match judge(Seen {
            configured,
            reached,
            trouble: None,
            cluster_ms,
            unix_ms,
        }) {
            Readiness::Ready => "ready".into(),
            Readiness::NotReady(why) => why,
        }
    }

    #[test]
    fn each_reason_is_said() {
        assert_eq!(said(false, true, None), "no configuration has come yet");
        assert_eq!(
            said(true, false, None),
            "the queue was not reached yet: no queue node has answered yet"
        );
        assert_eq!(
            said(true, true, None),
            "ready",
            "no leader has said the time yet"
        );
    }

    #[test]
    fn a_clock_more_than_a_minute_off_is_not_ready() {
        assert_eq!(said(true, true, Some(1_700_000_060_000)), "ready");
        let wrong = "this machine's clock is 61 s from cluster time; set it (NTP), the queue refuses ids from a wrong clock";
        assert_eq!(said(true, true, Some(1_700_000_061_000)), wrong);
        assert_eq!(said(true, true, Some(1_699_999_939_000)), wrong);
    }
}
