//! Retry times as they are declared, for queue nodes.

use proto::QueueClient;
use proto::client::ClientConfig;
use queue::retry::Policy;
use resource::Catalog;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::declared::{Declared, follow_queue};

/// Where a queue node's retry times come from.
pub enum RetryTimes {
    /// A directory.
    Files(Declared),
    /// The queue itself, once this node belongs to it.
    Queue,
}

impl RetryTimes {
    /// The times now.
    pub fn now(&self) -> Policy {
        match self {
            RetryTimes::Files(declared) => policy(&declared.borrow().clone().unwrap_or_default()),
            RetryTimes::Queue => Policy::default(),
        }
    }

    /// Tells them as they change. `ready`: this queue node knows leaders.
    pub async fn follow(
        self,
        config: ClientConfig,
        mut ready: watch::Receiver<bool>,
        tell: watch::Sender<Policy>,
        stop: CancellationToken,
    ) {
        let mut declared = match self {
            RetryTimes::Files(declared) => declared,
            RetryTimes::Queue => {
                if ready.wait_for(|ready| *ready).await.is_err() {
                    return;
                }
                let queue = QueueClient::new(config);
                follow_queue(&queue, None, None, proto::Role::Queue, &stop).declared
            }
        };
        loop {
            if declared.changed().await.is_err() {
                return;
            }
            let now = declared.borrow_and_update().clone();
            if let Some(catalog) = now {
                let policy = policy(&catalog);
                tell.send_if_modified(|before| {
                    let changed = *before != policy;
                    *before = policy;
                    changed
                });
            }
        }
    }
}

/// The retry times that a RelayCluster declares.
fn policy(catalog: &Catalog) -> Policy {
    let ms = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let declared = catalog.retry();
    let default = Policy::default();
    Policy {
        first_ms: ms(declared.first),
        max_ms: ms(declared.max),
        unreached_first_ms: default.unreached_first_ms.min(ms(declared.first)),
        unreached_max_ms: default.unreached_max_ms.min(ms(declared.max)),
        lifetime_ms: ms(declared.give_up_after),
        notice_ms: declared.delay_notice_after.map(ms),
        ..default
    }
}
