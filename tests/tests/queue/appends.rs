//! Queue nodes in one process, over real TLS and real disks: append, lease, settle, restart.

use std::time::Duration;

use bytes::Bytes;
use proto::client::{AppendResult, QueueClient};
use proto::v1;
use tests::deliver::deliver_all;
use tests::queue::{Options, Queue, append};

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
            matches!(
                done.unwrap(),
                AppendResult::Created | AppendResult::AlreadyQueued
            ),
            "every message is taken"
        );
    }
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
    let delivered = deliver_all(&delivery, 4, 500).await.unwrap();
    let once = delivered.handouts == 500 || delivered.openings > 1;
    assert!(once, "without a cause: {delivered:?}");
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
    deliver_all(&delivery, 4, 500).await.unwrap();
    assert_eq!(waiting(&admin).await, 0);
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

/// A queue node looks at ten thousand items a call, and gives a thousand destinations of a summary: what lies beyond must
/// be found all the same, or `queue drop` drops less than it says.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_and_a_summary_reach_the_end_of_a_long_queue() {
    const MESSAGES: usize = 12;
    const ITEMS: usize = 1_000;
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        shards: 1,
        ..Options::default()
    };
    let queue = Queue::start(dir.path(), options).await.unwrap();
    let edge = queue.client("edge").unwrap();
    edge.ready(Duration::from_secs(10)).await.unwrap();
    for n in 0..MESSAGES {
        let body = body(n);
        let id = edge.new_message_id(tests::queue::wall_ms(), rand::random());
        let mut append = tests::queue::message(id, "x@x.test", &body);
        let facts = append.facts.as_mut().unwrap();
        let item = |destination: String| v1::ItemFacts {
            recipients: vec![v1::RecipientFacts {
                address: format!("x@{destination}"),
            }],
            destination,
        };
        facts.items = (0..ITEMS).map(|i| item(format!("d{n}-{i}.test"))).collect();
        // The fullest destination is the last one by name, and its items are the last of all.
        if n == MESSAGES - 1 {
            facts.items.extend((0..3).map(|_| item("zz.test".into())));
        }
        let what = v1::append_request::What::Append(append);
        assert_eq!(edge.append(0, what).await, AppendResult::Created);
    }
    let admin = queue.client("admin").unwrap().admin();
    let filter = v1::ItemFilter {
        destination: "zz.test".into(),
        ..Default::default()
    };
    let (found, more) = admin.list(&filter, 100).await.unwrap();
    assert_eq!((found.len(), more), (3, false));
    let summary = admin.summary(2).await.unwrap();
    assert_eq!(summary.waiting, (MESSAGES * ITEMS + 3) as u64);
    let (first, count) = (
        &summary.destinations[0].destination,
        summary.destinations.len(),
    );
    assert_eq!((first.as_str(), count), ("zz.test", 2));
    let all = admin.summary(0).await.unwrap().destinations;
    assert_eq!(all.len(), MESSAGES * ITEMS + 1);
    // What was found can be acted on as a whole.
    let all = admin.list(&v1::ItemFilter::default(), 3_000).await.unwrap();
    let items: Vec<_> = all.0.into_iter().filter_map(|item| item.item).collect();
    let held = admin.act(v1::AdminAction::Hold, items, "test", "why").await;
    assert_eq!(held.unwrap().done, 3_000);
}
