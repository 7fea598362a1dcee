//! Full disks. Each queue node has a small file system of its own; root and loop devices are needed. A machine without is a
//! failure; `POSTROAD_SKIP_DISKS=1` leaves these tests out.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proto::client::QueueClient;
use tempfile::TempDir;
use tests::process::disk::{SmallDisk, can_mount};
use tests::process::{Client, Cluster, Load, Sink, Spec, judge, size};

/// For whatever is waited for here.
const PATIENCE: Duration = Duration::from_secs(90);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// More messages than these disks hold.
const ENDLESS: u64 = 1_000_000;

/// Queue nodes on disks of so many MiB, of which the queue may use all but 16.
fn on_small_disks(sink: &Sink, mebibytes: [u64; 3]) -> (Spec, [SmallDisk; 3], TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = Spec::full(&[("d0.test", sink.port), ("d1.test", sink.port)]);
    let disks = [1, 2, 3].map(|id: usize| {
        let (name, size) = (format!("queue-{id}"), mebibytes[id - 1]);
        let disk = SmallDisk::mount(dir.path(), &name, size).unwrap();
        let allowed = format!("{}MiB", size - 16);
        let args = ["--disk-bytes", &allowed, "--segment-bytes", "2MiB"];
        spec = spec.clone().with(&name, &args);
        spec.data.insert(name, disk.path().join("data"));
        disk
    });
    (spec, disks, dir)
}

fn load(count: u64) -> Load {
    Load {
        octets: (60_000, 120_000),
        ..Load::new(count, &["d0.test", "d1.test"])
    }
}

/// Which queue nodes say that they are full.
async fn full(admin: &QueueClient) -> Vec<u64> {
    let statuses = admin.admin().statuses().await;
    let statuses = statuses.into_iter().filter_map(|(_, status)| status.ok());
    let full = statuses.filter(|s| s.disk.as_ref().is_some_and(|d| d.full));
    full.map(|s| s.node).collect()
}

/// Used and allowed of each disk, MiB, for people.
async fn disks(admin: &QueueClient) -> BTreeMap<u64, String> {
    let statuses = admin.admin().statuses().await;
    let statuses = statuses.into_iter().filter_map(|(_, status)| status.ok());
    statuses
        .map(|s| {
            let d = s.disk.unwrap_or_default();
            let (used, limit) = (d.used_bytes >> 20, d.limit_bytes >> 20);
            (s.node, format!("{used}/{limit} MiB, full: {}", d.full))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_filled_by_its_own_mail_says_452_and_recovers_when_it_is_drained() {
    if !can_mount() {
        return;
    }
    let sink = Sink::start().await.unwrap();
    let (spec, _disks, _dir) = on_small_disks(&sink, [144, 144, 80]);
    let mut cluster = Cluster::start_without(spec, "delivery-").await.unwrap();
    let admin = cluster.admin().unwrap();
    admin.ready(Duration::from_secs(10)).await.unwrap();
    // Slow enough to look at the disks meanwhile.
    let slow = Load {
        pause: Duration::from_millis(80),
        ..load(ENDLESS)
    };
    let mut client = Client::start(&cluster.edges, slow);

    // One replica is full: mail goes on.
    let begun = Instant::now();
    while full(&admin).await != [3] {
        cluster.all_run().unwrap();
        assert_eq!(client.ledger.refusals(), BTreeMap::new());
        assert!(begun.elapsed() < PATIENCE, "{:?}", disks(&admin).await);
        tokio::time::sleep(LOOK).await;
    }
    let one_full = client.ledger.acked();
    println!(
        "one full after {one_full} messages: {:?}",
        disks(&admin).await
    );
    client.acked(one_full + 100, PATIENCE).await.unwrap();
    assert_eq!(
        client.ledger.refusals(),
        BTreeMap::new(),
        "one full disk is nobody's trouble"
    );

    // Two are: clients are told to come again.
    while client.ledger.refusals().is_empty() {
        cluster.all_run().unwrap();
        assert!(begun.elapsed() < PATIENCE, "{:?}", disks(&admin).await);
        tokio::time::sleep(LOOK).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    client.stop().await;
    let refusals = client.ledger.refusals();
    println!(
        "refused after {} messages: {:?}, {refusals:?}",
        client.ledger.acked(),
        disks(&admin).await
    );
    // A full one that waited for room for too long closes and opens again, and is not seen in between.
    while full(&admin).await.len() < 2 {
        cluster.all_run().unwrap();
        assert!(begun.elapsed() < PATIENCE, "{:?}", disks(&admin).await);
        tokio::time::sleep(LOOK).await;
    }
    assert!(
        refusals.keys().all(|text| text.starts_with("452 4.3.1")),
        "{refusals:?}"
    );

    // Settles go through, and make room.
    let drain = Instant::now();
    for name in cluster.names("delivery-") {
        cluster.spawn(&name).unwrap();
    }
    cluster.drained(&admin, PATIENCE).await.unwrap();
    println!(
        "drained in {:.1?}: {:?}",
        drain.elapsed(),
        disks(&admin).await
    );
    let tally = judge(&client, &[&sink], &[]);
    println!("{tally}");
    tally.must_hold();
    let mut after = Client::start(
        &cluster.edges,
        Load {
            first: 2 * ENDLESS,
            ..load(200)
        },
    );
    after.done(PATIENCE).await.unwrap();
    println!("200 more after {:.1?}", drain.elapsed());
    cluster.drained(&admin, PATIENCE).await.unwrap();
    let tally = judge(&after, &[&sink], &[]);
    tally.must_hold();
    assert_eq!(tally.acked, 200);
    // The third, whose disk is the smallest, is spared what the others can take without it, settles too, and so nothing of its
    // own ends: it stays full until it is replaced (README, Honest limits).
    while full(&admin).await.iter().any(|id| *id != 3) {
        cluster.all_run().unwrap();
        assert!(drain.elapsed() < PATIENCE, "{:?}", disks(&admin).await);
        tokio::time::sleep(LOOK).await;
    }
    println!(
        "two have room after {:.1?}: {:?}",
        drain.elapsed(),
        disks(&admin).await
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_filled_by_somebody_else_lose_nothing_and_recover_when_space_returns() {
    if !can_mount() {
        return;
    }
    let sink = Sink::start().await.unwrap();
    let (spec, disks, _dir) = on_small_disks(&sink, [144, 144, 144]);
    let mut cluster = Cluster::start(spec).await.unwrap();
    let admin = cluster.admin().unwrap();
    admin.ready(Duration::from_secs(10)).await.unwrap();
    let steady = Load {
        octets: (2_000, 20_000),
        pause: Duration::from_millis(20),
        ..load(ENDLESS)
    };
    let mut client = Client::start(&cluster.edges, steady);
    // Longer than a flush of the state and the five seconds to the next attempt to open it; or than a disk may hang.
    let held = size(Duration::from_secs(8), Duration::from_secs(45));
    for filled in [&disks[..1], &disks[..]] {
        let before = client.ledger.acked();
        client.acked(before + 200, PATIENCE).await.unwrap();
        let others: Vec<_> = filled.iter().map(|disk| disk.fill().unwrap()).collect();
        let begun = Instant::now();
        tokio::time::sleep(held).await;
        cluster.all_run().unwrap();
        let meanwhile = client.ledger.acked();
        for file in others {
            std::fs::remove_file(file).unwrap();
        }
        let back = Instant::now();
        client
            .acked(client.ledger.acked() + 200, PATIENCE)
            .await
            .unwrap();
        println!(
            "{} of 3 disks full for {held:.0?}: nobody got 250 for {:.1?}; {meanwhile} messages before space returned, 200 more {:.1?} \
             after; refusals so far {:?}",
            filled.len(),
            client.ledger.longest_silence(begun, Instant::now()),
            back.elapsed(),
            client.ledger.refusals()
        );
    }
    client.stop().await;
    cluster.drained(&admin, PATIENCE).await.unwrap();
    let tally = judge(&client, &[&sink], &[]);
    println!("{tally}");
    tally.must_hold();
    cluster.all_run().unwrap();
}
