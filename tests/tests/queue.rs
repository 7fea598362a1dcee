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
