//! Parked mail on a small disk: what passes through is several times what the disk holds, some of it is parked, and the
//! segments that it lies in are collected. `SIZE=full` lets 20 GB through 2 GB, with 1 of 10,000 parked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proto::v1::{DiskStatus, ItemFilter};
use proto::{client::QueueClient, v1::AdminAction};
use tests::process::sink::Verdict;
use tests::process::{Client, Cluster, Load, Sink, Spec, judge, size};

/// For all messages to get their 250, and for the queue to be empty after that.
const PATIENCE: Duration = Duration::from_secs(3_600);
/// Between two looks at the disks.
const LOOK: Duration = Duration::from_millis(250);

async fn disks(admin: &QueueClient) -> BTreeMap<u64, DiskStatus> {
    let statuses = admin.admin().statuses().await;
    let statuses = statuses.into_iter().filter_map(|(_, status)| status.ok());
    statuses
        .map(|s| (s.node, s.disk.unwrap_or_default()))
        .collect()
}

/// First index of each group's log, added up over the nodes: it goes up as the log is truncated.
async fn first_indexes(admin: &QueueClient) -> u64 {
    let statuses = admin.admin().statuses().await;
    let statuses = statuses.into_iter().filter_map(|(_, status)| status.ok());
    statuses
        .flat_map(|s| s.groups)
        .map(|group| group.first_index)
        .sum()
}

/// rabbit#15473, #12141, #13113, tikv#14700 with real processes and a real disk.
#[tokio::test(flavor = "multi_thread")]
async fn parked_mail_pins_no_disk_while_several_times_the_disk_passes() {
    // Each segment of the log holds about one parked message.
    let one_of = size(200, 10_000);
    let (disk, segment) = size(("96MiB", "2MiB"), ("2GiB", "64MiB"));
    // The full size parks 50 messages in 310 segments: 3.2 GB, were each to pin its own.
    let (count, octets) = size((40_000, 10_000), (500_000, 40_000));
    let open = Arc::new(AtomicBool::new(false));
    let gate = open.clone();
    let parks = Sink::with(
        Box::new(move |_| match gate.load(Ordering::SeqCst) {
            true => Verdict::Accept,
            false => Verdict::Defer,
        }),
        Duration::ZERO,
    );
    let (sink, parks) = (Sink::start().await.unwrap(), parks.await.unwrap());
    let mut spec = Spec::full(&[("d0.test", sink.port), ("parked.test", parks.port)]);
    for node in ["queue-1", "queue-2", "queue-3"] {
        spec = spec.with(node, &["--disk-bytes", disk, "--segment-bytes", segment]);
    }
    let mut cluster = Cluster::start(spec).await.unwrap();
    let admin = cluster.admin().unwrap();
    admin.ready(Duration::from_secs(10)).await.unwrap();
    let mut domains = vec!["d0.test"; one_of - 1];
    domains.push("parked.test");
    let load = Load {
        octets: (octets - 2_000, octets),
        connections: 20,
        ..Load::new(count, &domains)
    };
    let begun = Instant::now();
    let mut client = Client::start(&cluster.edges, load);
    let mut most = BTreeMap::<u64, u64>::new();
    let mut limit = 0;
    let mut next_report = Duration::ZERO;
    while client.ledger.acked() < count {
        cluster.all_run().unwrap();
        assert!(begun.elapsed() < PATIENCE, "{:?}", disks(&admin).await);
        for (node, disk) in disks(&admin).await {
            let used = most.entry(node).or_default();
            *used = disk.used_bytes.max(*used);
            limit = disk.limit_bytes;
            assert!(disk.used_bytes <= limit, "node {node}: {disk:?}");
        }
        if begun.elapsed() > next_report {
            next_report += size(Duration::from_secs(5), Duration::from_secs(60));
            println!(
                "{:.0?}: {} messages, {:?}",
                begun.elapsed(),
                client.ledger.acked(),
                disks(&admin).await.values().next()
            );
        }
        tokio::time::sleep(LOOK).await;
    }
    client.stop().await;
    let passed = count * octets as u64;
    println!(
        "{count} messages, {} MB through {} MB in {:.1?}; most used, MB: {:?}; refusals: {:?}; first indexes {}",
        passed / 1_000_000,
        limit / 1_000_000,
        begun.elapsed(),
        most.values()
            .map(|used| used / 1_000_000)
            .collect::<Vec<_>>(),
        client.ledger.refusals(),
        first_indexes(&admin).await,
    );
    assert!(passed > 3 * limit, "several times the disk");
    // Each entry holds at most 64 messages, on three nodes.
    assert!(
        first_indexes(&admin).await > 3 * count / 64 / 2,
        "the logs are truncated"
    );
    let parked = count / one_of as u64;
    assert!(cluster.queued(&admin).await.unwrap() >= parked);

    // All that was parked is still there, octet for octet.
    open.store(true, Ordering::SeqCst);
    let filter = ItemFilter::default();
    let drain = Instant::now();
    while cluster.queued(&admin).await.unwrap() > 0 {
        assert!(drain.elapsed() < Duration::from_secs(90));
        if let Ok((items, _)) = admin.admin().list(&filter, 1_000).await {
            let of: Vec<_> = items.iter().filter_map(|i| i.item.clone()).collect();
            let _ = admin
                .admin()
                .act(
                    AdminAction::Retry,
                    of,
                    "test",
                    "the next hop takes mail now",
                )
                .await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let tally = judge(&client, &[&sink, &parks], &[]);
    println!("{tally}");
    tally.must_hold();
    assert_eq!(parks.count() as u64, parked);
}
