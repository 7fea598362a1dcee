//! Queue nodes in one process, over real TLS and real disks: append, lease, settle, restart.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use proto::client::{AppendResult, QueueClient};
use proto::v1::{self, lease_event, lease_request};
use tests::queue::{Options, Queue, append};
use tokio::sync::mpsc;

fn body(n: usize) -> Bytes {
    Bytes::from(format!("Subject: {n}\r\n\r\n{}\r\n", "x".repeat(1000)))
}

async fn append_all(client: &QueueClient, count: usize) {
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..count {
        let client = client.clone();
        tasks.spawn(async move {
            append(&client, &format!("r{n}@d{}.test", n % 7), &body(n))
                .await
                .1
        });
    }
    while let Some(done) = tasks.join_next().await {
        assert!(
            matches!(done.unwrap(), AppendResult::Created),
            "every message is taken"
        );
    }
}

/// Leases everything that there is, and settles it as delivered. Returns how many handouts came.
async fn deliver_all(client: &QueueClient, shards: u32, expected: usize) -> usize {
    let view = client.ready(Duration::from_secs(10)).await.unwrap();
    let mut seen = 0;
    let mut settles = tokio::task::JoinSet::new();
    let (done, mut all) = mpsc::unbounded_channel();
    for (address, groups) in view.leaders() {
        let hello = v1::LeaseHello {
            node: "d1".into(),
            incarnation: Bytes::from_static(&[7; 16]),
            boot_id: "boot".into(),
        };
        let (to, mut events) = client.lease(address, hello).await.unwrap();
        let say = |what| v1::LeaseRequest { what: Some(what) };
        for shard in groups.into_iter().filter(|g| *g < shards) {
            let open = v1::OpenSession {
                shard,
                sequence: 1,
                holding: vec![],
            };
            to.send(say(lease_request::What::Open(open))).await.unwrap();
        }
        let credit = v1::Credit {
            items: 10_000,
            bytes: 1 << 30,
            classes: vec![],
        };
        to.send(say(lease_request::What::Credit(credit)))
            .await
            .unwrap();
        let done = done.clone();
        settles.spawn(async move {
            let _keep = to;
            while let Some(Ok(event)) = events.next().await {
                if done.send(event).is_err() {
                    return;
                }
            }
        });
    }
    while seen < expected {
        let event = tokio::time::timeout(Duration::from_secs(15), all.recv())
            .await
            .expect("handouts come")
            .unwrap();
        let Some(lease_event::What::Handout(h)) = event.what else {
            continue;
        };
        assert_eq!(h.body.len() as u64, h.message.as_ref().unwrap().size);
        seen += 1;
        let result = v1::RecipientResult {
            recipient: 0,
            verdict: v1::Verdict::Delivered as i32,
            code: 250,
            ..Default::default()
        };
        let request = v1::SettleRequest {
            request: 0,
            shard: event.shard,
            item: h.item,
            token: h.token,
            session: h.session,
            release: false,
            results: vec![result],
        };
        let client = client.clone();
        settles.spawn(async move {
            client.settle(request).await;
        });
    }
    drop(all);
    tokio::time::sleep(Duration::from_millis(300)).await;
    seen
}

async fn waiting(client: &QueueClient) -> u64 {
    client.admin().summary(10).await.unwrap().messages
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_appended_is_handed_out_once_and_gone_when_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let queue = Queue::start(dir.path(), Options::default()).await.unwrap();
    let edge = queue.client("edge").unwrap();
    edge.ready(Duration::from_secs(10)).await.unwrap();
    append_all(&edge, 500).await;
    let admin = queue.client("admin").unwrap();
    assert_eq!(waiting(&admin).await, 500);
    let delivery = queue.client("delivery").unwrap();
    assert_eq!(deliver_all(&delivery, 4, 500).await, 500);
    assert_eq!(waiting(&admin).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_take_mail_and_keep_it_over_a_restart_of_all() {
    let dir = tempfile::tempdir().unwrap();
    let mut queue = Queue::start(
        dir.path(),
        Options {
            replicas: 3,
            ..Options::default()
        },
    )
    .await
    .unwrap();
    let edge = queue.client("edge").unwrap();
    edge.ready(Duration::from_secs(10)).await.unwrap();
    append_all(&edge, 500).await;
    for node in 1..=3 {
        queue.stop_node(node).await.unwrap().unwrap();
    }
    for node in 1..=3 {
        queue.start_node(node).unwrap();
    }
    for node in 1..=3 {
        queue.ready(node).await.unwrap();
    }
    let admin = queue.client("admin").unwrap();
    assert_eq!(waiting(&admin).await, 500);
    let delivery = queue.client("delivery").unwrap();
    assert_eq!(deliver_all(&delivery, 4, 500).await, 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_directory_under_an_old_id_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let mut queue = Queue::start(
        dir.path(),
        Options {
            replicas: 3,
            ..Options::default()
        },
    )
    .await
    .unwrap();
    queue.stop_node(2).await.unwrap().unwrap();
    std::fs::remove_dir_all(queue.data(2)).unwrap();
    queue.start_node(2).unwrap();
    let error = queue
        .ended(2)
        .await
        .unwrap()
        .expect_err("it must not take part")
        .to_string();
    assert!(
        error.contains("already took part") && error.contains("new id"),
        "{error}"
    );
}
