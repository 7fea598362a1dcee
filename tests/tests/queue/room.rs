//! Room on a queue node's disk: what fills it, what still passes when it is full, and that it comes back.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::client::{AppendResult, QueueClient};
use proto::v1::append_request::What;
use tests::deliver::deliver_all;
use tests::queue::{Options, Queue, append, message, wall_ms};

/// Small segments, so that a test fills many.
const SEGMENT_BYTES: u64 = 2 << 20;

/// Room comes back this long after the mail is gone: a flush of the state, and a start when the node had to close.
const COMES_BACK: Duration = Duration::from_secs(15);

fn body(octets: usize) -> Bytes {
    Bytes::from(format!("Subject: room\r\n\r\n{}\r\n", "x".repeat(octets)))
}

/// The second: an answer was lost on the way, and the client asked again.
fn is_taken(result: &AppendResult) -> bool {
    matches!(result, AppendResult::Created | AppendResult::AlreadyQueued)
}

/// Appends from many places at once until the queue says that it is full; how much it took.
async fn fill(edge: &QueueClient, at_once: usize) -> usize {
    let mut places = tokio::task::JoinSet::new();
    for _ in 0..at_once {
        let edge = edge.clone();
        places.spawn(async move {
            let mut taken = 0;
            loop {
                match append(&edge, "r@full.test", &body(200_000)).await.1 {
                    result if is_taken(&result) => taken += 1,
                    AppendResult::Full => return taken,
                    other => panic!("only Created or Full: {other:?}"),
                }
                assert!(taken < 1_000, "a disk of 48 MiB takes no 1,600 MB");
            }
        });
    }
    places.join_all().await.into_iter().sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_takes_settles_and_then_mail_again() {
    full_and_back(1, 8, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_full_disks_take_settles_and_then_mail_again() {
    full_and_back(3, 8, 3).await;
}

/// More is under way than the room that is kept for settles: each shard has mail that finds no place, and settles stand
/// behind it.
#[tokio::test(flavor = "multi_thread")]
async fn mail_that_overfills_the_disk_does_not_stand_in_the_way_of_its_settles() {
    full_and_back(1, 64, 1).await;
}

async fn full_and_back(replicas: u64, at_once: usize, rounds: usize) {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        replicas,
        disk_bytes: Some(48 << 20),
        segment_bytes: SEGMENT_BYTES,
        ..Options::default()
    };
    let queue = Queue::start(dir.path(), options).await.unwrap();
    let edge = queue.client("edge").unwrap();
    let delivery = queue.client("delivery").unwrap();
    edge.ready(Duration::from_secs(10)).await.unwrap();
    for round in 0..rounds {
        let taken = fill(&edge, at_once).await;
        assert!(taken > 0, "round {round}: nothing was taken");
        deliver_all(&delivery, 4, taken).await.unwrap();
        let since = Instant::now();
        while !is_taken(&append(&edge, "r@back.test", &body(1_000)).await.1) {
            assert!(
                since.elapsed() < COMES_BACK,
                "round {round}: still full, with {} segments",
                segments(&queue.data(1))
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        deliver_all(&delivery, 4, 1).await.unwrap();
    }
}

/// How many segments hold records.
fn segments(data: &Path) -> usize {
    let names = std::fs::read_dir(data.join("log")).unwrap();
    names
        .filter(|name| {
            let name = name.as_ref().unwrap().file_name();
            name.to_string_lossy().starts_with("seg-")
        })
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_shards_do_not_keep_what_a_busy_one_is_done_with() {
    for replicas in [1, 3] {
        let dir = tempfile::tempdir().unwrap();
        let options = Options {
            replicas,
            segment_bytes: SEGMENT_BYTES,
            ..Options::default()
        };
        let queue = Queue::start(dir.path(), options).await.unwrap();
        let edge = queue.client("edge").unwrap();
        let delivery = queue.client("delivery").unwrap();
        edge.ready(Duration::from_secs(10)).await.unwrap();
        for _ in 0..15 {
            for _ in 0..10 {
                let id = loop {
                    let id = edge.new_message_id(wall_ms(), rand::random());
                    if edge.view().shard_of(id) == 0 {
                        break id;
                    }
                };
                let what = What::Append(message(id, "r@busy.test", &body(200_000)));
                let result = edge.append(0, what).await;
                assert!(is_taken(&result), "{result:?}");
            }
            deliver_all(&delivery, 4, 10).await.unwrap();
        }
        // 30 MB went through 15 segments. Nothing comes any more, and still all but the last one or two are released.
        let since = Instant::now();
        for node in 1..=replicas {
            while segments(&queue.data(node)) > 3 {
                assert!(
                    since.elapsed() < COMES_BACK,
                    "{replicas} replicas: node {node} keeps {} segments",
                    segments(&queue.data(node))
                );
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}
