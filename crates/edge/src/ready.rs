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
        let now = judge(
            node.catalog().is_some(),
            &topology.borrow_and_update(),
            unix_ms(),
            Instant::now(),
        );
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

fn judge(configured: bool, view: &TopologyView, unix_ms: u64, now: Instant) -> Readiness {
    if !configured {
        return Readiness::NotReady("no configuration has come yet".into());
    }
    if view.shards() == 0 {
        let why = view.trouble().unwrap_or("no queue node has answered yet");
        return Readiness::NotReady(format!("the queue was not reached yet: {why}"));
    }
    match view.cluster_time_ms(now) {
        Some(cluster) if cluster.abs_diff(unix_ms) > CLOCK_SKEW_MAX_MS => {
            Readiness::NotReady(format!(
                "this machine's clock is {} s from cluster time; set it (NTP), the queue refuses ids from a wrong clock",
                cluster.abs_diff(unix_ms) / 1000
            ))
        }
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

    #[test]
    fn each_reason_is_said() {
        let now = Instant::now();
        let said = |configured| match judge(configured, &TopologyView::default(), 0, now) {
            Readiness::Ready => "ready".into(),
            Readiness::NotReady(why) => why,
        };
        assert_eq!(said(false), "no configuration has come yet");
        assert_eq!(
            said(true),
            "the queue was not reached yet: no queue node has answered yet"
        );
    }
}
