//! One byte of one node's disk is not what was written, in bodies that were written again (RELOCATED_BODY): by the collector,
//! in segments of its own that no start reads, and by the node itself, in the log, when a body came from another replica. The
//! other kinds of records are in `records`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proto::client::QueueClient;
use proto::v1::{AdminAction, ItemFilter};
use tests::process::damage::{
    FLUSHED, HURT, OTHERS, PATIENCE, STAYS_AWAY, Start, all_files, mended, others_serve, start,
    stop, until_mended,
};
use tests::process::records::{HEADER, Record, flip, records};
use tests::process::sink::Verdict;
use tests::process::{Client, Cluster, Load, Sink, Spec, judge};

/// RELOCATED_BODY.
const AGAIN: u8 = 6;
/// Of what passes the last one of so many is parked: some in each segment, which are copied when the segment is given back.
const PARKED_ONE_OF: u64 = 25;
/// Copies that are waited for.
const COPIES: usize = 40;
/// Bodies of which one octet is turned over: in the header, in the body, in the digest that the collector took of it.
const HIT: usize = 4 * 3;
/// More messages than anybody waits for.
const ENDLESS: u64 = 1_000_000;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);

fn is_parked(id: u64) -> bool {
    id % PARKED_ONE_OF == PARKED_ONE_OF - 1
}

/// What the collector copied, at this moment.
fn copies(data: &Path) -> Vec<Record> {
    // A segment may go while they are read: then there is another look.
    let all = records(data).unwrap_or_default();
    let copied = |r: &Record| r.kind == AGAIN && r.is_collected();
    all.into_iter().filter(copied).collect()
}

/// The messages in a record.
fn ids(record: &Record) -> Vec<u64> {
    let octets = std::fs::read(&record.file).unwrap();
    let from = record.offset + HEADER;
    let text = String::from_utf8_lossy(&octets[from..from + record.payload]);
    let begun = text.split("\nX-Id: ").skip(1);
    begun
        .filter_map(|rest| rest.split('\r').next()?.parse().ok())
        .collect()
}

/// The copies that mail refers to, by entry: some are copied a second time.
fn living(data: &Path) -> BTreeMap<(u32, u64), Vec<Record>> {
    let mut living: BTreeMap<_, Vec<Record>> = BTreeMap::new();
    for copy in copies(data) {
        if ids(&copy).into_iter().any(is_parked) {
            living.entry(copy.entry()).or_default().push(copy);
        }
    }
    living
}

/// Lets mail pass until there are copies, and waits until there come no more.
async fn collect(cluster: &mut Cluster, client: &mut Client) {
    let data = cluster.data(HURT);
    let until = Instant::now() + PATIENCE;
    let mut seen = 0;
    while seen < COPIES {
        cluster.all_run().unwrap();
        let refusals = client.ledger.refusals();
        assert!(Instant::now() < until, "{seen} copies; {refusals:?}");
        tokio::time::sleep(LOOK).await;
        seen = copies(&data).len();
    }
    client.stop().await;
    let until = Instant::now() + PATIENCE;
    // It goes on while the disk is pressed, and a copy is what counts after the flush of the state that names it.
    loop {
        tokio::time::sleep(2 * FLUSHED).await;
        let now = copies(&data).len();
        if std::mem::replace(&mut seen, now) == now {
            return;
        }
        assert!(Instant::now() < until, "{now} copies, and ever others");
    }
}

/// All that waits is tried again: whoever leads reads its body.
async fn retry(admin: &QueueClient) {
    let waiting = ItemFilter {
        state: "Waiting".to_owned(),
        ..ItemFilter::default()
    };
    // Where nobody leads just now it is tried again by itself, a little later.
    if let Ok((items, _)) = admin.admin().list(&waiting, 1_000).await {
        let items = items.into_iter().filter_map(|i| i.item).collect();
        let (action, why) = (AdminAction::Retry, "its body is to be read");
        let _ = admin.admin().act(action, items, "test", why).await;
    }
}

/// Waits until the hurt node leads all groups.
async fn leads_all(admin: &QueueClient) {
    let until = Instant::now() + PATIENCE;
    loop {
        let seen = admin.admin().members().await;
        let led = seen.as_ref().is_ok_and(|members| {
            let mut groups = members.groups.iter();
            !members.groups.is_empty() && groups.all(|group| group.leader_node == 2)
        });
        if led {
            return;
        }
        assert!(Instant::now() < until, "{HURT} leads not all: {seen:#?}");
        tokio::time::sleep(LOOK).await;
    }
}

/// Turns over one octet in each of some living copies; which entries they are of.
fn rot(data: &Path) -> BTreeSet<(u32, u64)> {
    let living = living(data);
    assert!(living.len() >= HIT, "{} living copies", living.len());
    let hit: Vec<_> = living.into_iter().take(HIT).collect();
    for (n, (_, copies)) in hit.iter().enumerate() {
        for copy in copies {
            let at = match n % 3 {
                0 => copy.offset + 20,
                1 => copy.in_body(),
                _ => copy.offset + HEADER + 5,
            };
            flip(&copy.file, at).unwrap();
        }
    }
    // Of these segments nobody reads more than the records that mail refers to (but the scrubber, some time): their own headers
    // and the ends of their batches say nothing that is needed.
    let segment = &hit[0].1[0].file;
    flip(segment, 20).unwrap();
    let all = records(data).unwrap();
    let end = all.iter().find(|r| r.kind == 9 && r.file == *segment);
    let end = end.expect("each batch has an end");
    flip(segment, end.offset + 60).unwrap();
    hit.into_iter().map(|(entry, _)| entry).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_9_one_byte_of_a_body_that_was_written_again_loses_nothing_and_stops_nobody_else() {
    let open = Arc::new(AtomicBool::new(false));
    let gate = open.clone();
    let verdict = move |id| match is_parked(id) && !gate.load(Ordering::SeqCst) {
        true => Verdict::Defer,
        false => Verdict::Accept,
    };
    let sink = Sink::with(Box::new(verdict), Duration::ZERO).await.unwrap();
    let mut spec = Spec::full(&[("live.test", sink.port), ("parked.test", sink.port)]);
    (spec.edges, spec.deliveries) = (1, 1);
    // A disk that is pressed soon, so that the collector waits for seconds and not for a minute.
    for name in OTHERS.into_iter().chain([HURT]) {
        let disk = ["--disk-bytes", "64MiB", "--segment-bytes", "1MiB"];
        spec = spec.with(name, &disk);
    }
    let mut cluster = Cluster::start(spec).await.unwrap();
    let admin = cluster.admin().unwrap();
    admin.ready(Duration::from_secs(10)).await.unwrap();
    let mut domains = vec!["live.test"; PARKED_ONE_OF as usize - 1];
    domains.push("parked.test");
    let load = Load {
        octets: (3_000, 9_000),
        ..Load::new(ENDLESS, &domains)
    };
    let mut client = Client::start(&cluster.edges, load);
    collect(&mut cluster, &mut client).await;
    stop(&mut cluster).await.unwrap();
    // From now on what lives stays where it is.
    cluster.change(HURT, "--disk-bytes", "1GiB").unwrap();

    // No start reads the collector's segments: what is damaged is met by whoever reads it, and comes from another replica.
    let data = cluster.data(HURT);
    let hit = rot(&data);
    let from = cluster.all_said(HURT).unwrap().len();
    assert_eq!(start(&mut cluster).await.unwrap(), Start::Ready);
    for other in [1, 3] {
        admin.admin().move_leaders(other).await.unwrap();
    }
    leads_all(&admin).await;
    retry(&admin).await;
    until_mended(&mut cluster, from, &hit).await.unwrap();
    others_serve(&mut cluster).await.unwrap();
    tokio::time::sleep(FLUSHED).await;
    let said = cluster.all_said(HURT).unwrap();
    assert_eq!(mended(&said[from..]), hit, "nothing else was damaged");
    stop(&mut cluster).await.unwrap();

    // What was mended is in the log, whose batches a start believes as a whole or not at all.
    let all = records(&data).unwrap();
    let again: Vec<&Record> = all
        .iter()
        .filter(|r| r.kind == AGAIN && !r.is_collected())
        .collect();
    let of: BTreeSet<_> = again.iter().map(|r| r.entry()).collect();
    assert!(hit.is_subset(&of), "{hit:?} and {of:?}");
    let before = all_files(&data.join("log")).unwrap();
    flip(&again[0].file, again[0].offset + 20).unwrap();
    let Start::Refused(said) = start(&mut cluster).await.unwrap() else {
        panic!("the header of a RELOCATED_BODY in the log");
    };
    let told = STAYS_AWAY.iter().all(|text| said.contains(text));
    assert!(told && said.contains("is damaged at offset"), "{said}");
    let after = all_files(&data.join("log")).unwrap();
    assert_eq!(after, before, "nothing is deleted");
    let more = Load {
        first: 2 * ENDLESS,
        ..Load::new(20, &["live.test"])
    };
    let mut meanwhile = Client::start(&cluster.edges, more);
    meanwhile.done(PATIENCE).await.unwrap();
    flip(&again[0].file, again[0].offset + 20).unwrap();

    // Their bodies come once more.
    let last = again[again.len() - 1].entry();
    for record in again.iter().filter(|r| r.entry() == last) {
        flip(&record.file, record.in_body()).unwrap();
    }
    let from = cluster.all_said(HURT).unwrap().len();
    assert_eq!(start(&mut cluster).await.unwrap(), Start::Ready);
    until_mended(&mut cluster, from, &[last].into())
        .await
        .unwrap();

    // All of it arrives, from this node's disk.
    leads_all(&admin).await;
    open.store(true, Ordering::SeqCst);
    let until = Instant::now() + PATIENCE;
    while cluster.queued(&admin).await.unwrap_or(1) > 0 {
        assert!(Instant::now() < until, "the queue is not empty");
        retry(&admin).await;
        tokio::time::sleep(LOOK).await;
    }
    for client in [&client, &meanwhile] {
        let tally = judge(client, &[&sink], &[]);
        println!("{tally}");
        tally.must_hold();
    }
    cluster.all_run().unwrap();
}
