//! One byte of one node's disk is not what was written (nats#7549, rabbit#4251), in each kind of record and of file: the
//! body comes from another replica, or the node stays away with a text that says what to do. The others keep serving,
//! nothing is deleted, and every message arrives as it was sent.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tests::process::node::program;
use tests::process::records::{Record, flip, records};
use tests::process::{Client, Cluster, Load, Sink, Spec, judge, size};

const PATIENCE: Duration = Duration::from_secs(120);
/// The state is flushed every 2 s.
const FLUSHED: Duration = Duration::from_secs(3);

/// What a start came to.
#[derive(Debug, PartialEq)]
enum Start {
    Ready,
    Refused(String),
}

/// Starts queue-2 and waits for one or the other.
async fn start(cluster: &mut Cluster) -> Start {
    cluster.spawn("queue-2").unwrap();
    let until = Instant::now() + PATIENCE;
    loop {
        let process = cluster.process("queue-2").unwrap();
        if let Some(status) = process.ended().unwrap() {
            let said = process.said();
            assert!(!status.success(), "{said}");
            let last = said.lines().last().unwrap_or_default().to_owned();
            cluster.kill("queue-2").unwrap();
            return Start::Refused(last);
        }
        if cluster.is_ready("queue-2").await {
            return Start::Ready;
        }
        assert!(
            Instant::now() < until,
            "neither ready nor refused: {}",
            process_said(cluster)
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn process_said(cluster: &mut Cluster) -> String {
    cluster
        .process("queue-2")
        .map_or_else(|e| e.to_string(), |p| p.said())
}

async fn stop(cluster: &mut Cluster) {
    cluster
        .terminate("queue-2", Duration::from_secs(30))
        .await
        .unwrap();
}

/// All files below, with their lengths.
fn files(dir: &Path, into: &mut BTreeMap<PathBuf, u64>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => files(&entry.path(), into),
            false => drop(into.insert(entry.path(), entry.metadata().unwrap().len())),
        }
    }
}

fn all_files(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let mut all = BTreeMap::new();
    files(dir, &mut all);
    all
}

fn copy_all(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_all(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}

async fn parked(sink: &Sink) -> (Cluster, Client) {
    let mut spec = Spec::full(&[("d0.test", sink.port)]);
    (spec.edges, spec.deliveries) = (1, 1);
    // Small segments: two of them, so that one begins with STATE records.
    let spec = ["queue-1", "queue-2", "queue-3"]
        .iter()
        .fold(spec, |spec, name| {
            spec.with(name, &["--segment-bytes", "1MiB"])
        });
    let mut cluster = Cluster::start_without(spec, "delivery-").await.unwrap();
    let admin = cluster.admin().unwrap();
    admin.ready(Duration::from_secs(10)).await.unwrap();
    let load = Load {
        octets: (3_000, 9_000),
        ..Load::new(size(320, 2_000), &["d0.test"])
    };
    let mut client = Client::start(&cluster.edges, load);
    client.done(PATIENCE).await.unwrap();
    tokio::time::sleep(FLUSHED).await;
    stop(&mut cluster).await;
    (cluster, client)
}

/// Everything is delivered, octet for octet.
async fn deliver(cluster: &mut Cluster, clients: &[&Client], sink: &Sink) {
    let admin = cluster.admin().unwrap();
    cluster.spawn("delivery-1").unwrap();
    cluster.drained(&admin, PATIENCE).await.unwrap();
    for client in clients {
        let tally = judge(client, &[sink], &[]);
        println!("{tally}");
        tally.must_hold();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_9_one_byte_in_each_kind_of_record_and_file_loses_nothing_and_stops_nobody_else() {
    let sink = Sink::start().await.unwrap();
    let (mut cluster, client) = parked(&sink).await;
    let data = cluster.data("queue-2");
    let all = records(&data).unwrap();
    let first = |what: &str, wanted: &dyn Fn(&Record) -> bool| {
        let found = all.iter().find(|r| wanted(r));
        found
            .cloned()
            .unwrap_or_else(|| panic!("no {what} in {} records", all.len()))
    };
    let body = |r: &Record| r.kind == 1 && r.payload > 3_000;
    let (entry, hard_state, state, mark, end) = (
        first("body", &body),
        first("HARDSTATE", &|r| r.kind == 2),
        first("STATE", &|r| r.kind == 3),
        first("DURABLE_MARK", &|r| r.kind == 7),
        first("BATCH_END", &|r| r.kind == 9),
    );
    let log_text = [
        "queue node 2 does not start",
        "is damaged at offset",
        "new node id",
    ];
    let meta_text = ["queue node 2 does not start", "new node id"];
    let mut cases: Vec<(String, PathBuf, usize, &[&str])> = vec![
        (
            "header of an ENTRY".into(),
            entry.file.clone(),
            entry.offset + 20,
            &log_text,
        ),
        (
            "HARDSTATE".into(),
            hard_state.file,
            hard_state.offset + 50,
            &log_text,
        ),
        ("STATE".into(), state.file, state.offset + 50, &log_text),
        ("DURABLE_MARK".into(), mark.file, mark.offset + 4, &log_text),
        ("BATCH_END".into(), end.file, end.offset + 60, &log_text),
        (
            "header of a segment".into(),
            entry.file.clone(),
            20,
            &log_text,
        ),
        (
            "IDENTITY".into(),
            data.join("IDENTITY"),
            60,
            &["IDENTITY is damaged", "new node id"],
        ),
    ];
    // One of each kind of file of the metadata store: by name in the first table's directory and above.
    let mut kinds = BTreeMap::new();
    for (path, length) in all_files(&data.join("meta"))
        .into_iter()
        .filter(|(_, l)| *l > 0)
    {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let kind: String = name.chars().filter(|c| !c.is_ascii_digit()).collect();
        let depth = path.components().count();
        kinds.entry((depth, kind)).or_insert((path, length));
    }
    for ((_, kind), (path, length)) in kinds {
        let at = (length as usize / 2).min(40);
        cases.push((
            format!("metadata {kind}: {}", path.display()),
            path,
            at,
            &meta_text,
        ));
    }
    let kept = data.with_extension("kept");
    copy_all(&data.join("meta"), &kept);
    for (what, file, at, text) in cases {
        let before = all_files(&data);
        flip(&file, at).unwrap();
        let started = start(&mut cluster).await;
        println!("{what}: {started:?}");
        match started {
            Start::Refused(said) => {
                assert!(text.iter().all(|t| said.contains(t)), "{what}: {said}");
            }
            // Some of the metadata store's bytes say nothing, or only what it can do without.
            Start::Ready => {
                assert!(what.starts_with("metadata"), "{what}");
                stop(&mut cluster).await;
            }
        }
        let after = all_files(&data);
        // The metadata store tidies up when it is opened; what it can no longer use is in the log, or with the others.
        let ours = before
            .keys()
            .filter(|path| !path.starts_with(data.join("meta")));
        for path in ours {
            assert!(
                after.contains_key(path),
                "{what}: {} is gone",
                path.display()
            );
        }
        match what.starts_with("metadata") {
            true => {
                std::fs::remove_dir_all(data.join("meta")).unwrap();
                copy_all(&kept, &data.join("meta"));
            }
            false => flip(&file, at).unwrap(),
        }
        for other in ["queue-1", "queue-3"] {
            cluster.ready(other).await.unwrap();
        }
    }
    // The others took mail all the while.
    let more = Load {
        first: 1_000_000,
        ..Load::new(20, &["d0.test"])
    };
    let mut meanwhile = Client::start(&cluster.edges, more);
    meanwhile.done(PATIENCE).await.unwrap();

    // Octets behind a batch say nothing; damaged bodies come from another replica.
    let gap = all
        .iter()
        .zip(all.iter().skip(1))
        .find(|(a, b)| a.kind == 9 && a.file == b.file && b.offset > a.offset + 48 + a.payload);
    flip(&gap.unwrap().0.file, gap.unwrap().1.offset - 1).unwrap();
    let bodies: Vec<&Record> = all.iter().filter(|r| body(r)).take(5).collect();
    for body in &bodies {
        flip(&body.file, body.offset + 48 + body.payload - 100).unwrap();
    }
    assert_eq!(start(&mut cluster).await, Start::Ready);
    let until = Instant::now() + PATIENCE;
    let mended = |cluster: &Cluster| {
        let said = cluster.all_said("queue-2").unwrap();
        said.matches("is written again").count()
    };
    while mended(&cluster) < bodies.len() {
        assert!(
            Instant::now() < until,
            "{} mended\n{}",
            mended(&cluster),
            process_said(&mut cluster)
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // The references are durable by now; from here on it needs nobody's help for them.
    tokio::time::sleep(FLUSHED).await;
    stop(&mut cluster).await;
    assert_eq!(start(&mut cluster).await, Start::Ready);
    deliver(&mut cluster, &[&client, &meanwhile], &sink).await;
}

/// A hand, or a file system check, removed a segment of the log. While a group's log still needs entries of it, the node stays
/// away with a text; when none does, the mail that lives in it is missed at the start and comes from the other replicas.
#[tokio::test(flavor = "multi_thread")]
async fn a_segment_file_that_somebody_deleted_is_missed_and_nothing_is_lost() {
    let sink = Sink::start().await.unwrap();
    let (mut cluster, client) = parked(&sink).await;
    // More segments, of which the last ones say that the first is truncated.
    assert_eq!(start(&mut cluster).await, Start::Ready);
    let more = Load {
        first: 1_000_000,
        octets: (3_000, 9_000),
        ..Load::new(size(600, 2_000), &["d0.test"])
    };
    let mut second = Client::start(&cluster.edges, more);
    second.done(PATIENCE).await.unwrap();
    tokio::time::sleep(FLUSHED).await;
    stop(&mut cluster).await;
    let all = records(&cluster.data("queue-2")).unwrap();
    let oldest = all[0].file.clone();
    let bodies = all.iter().filter(|r| r.file == oldest && r.kind == 1);
    let bodies = bodies.filter(|r| r.payload > 3_000).count();
    assert!(bodies > 20, "{bodies} in {}", oldest.display());
    std::fs::remove_file(&oldest).unwrap();
    if let Start::Refused(said) = start(&mut cluster).await {
        assert!(
            said.contains("are missing") && said.contains("add a new node id"),
            "{said}"
        );
        return deliver(&mut cluster, &[&client, &second], &sink).await;
    }
    let missing = "a segment of the log is missing";
    // It may have said much since.
    let said = cluster.all_said("queue-2").unwrap();
    assert!(said.contains(missing), "{}", process_said(&mut cluster));
    let until = Instant::now() + PATIENCE;
    let mended = |cluster: &Cluster| {
        let said = cluster.all_said("queue-2").unwrap();
        said.matches("is written again").count()
    };
    while mended(&cluster) < bodies {
        assert!(
            Instant::now() < until,
            "{} of {bodies} mended\n{}",
            mended(&cluster),
            process_said(&mut cluster)
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(FLUSHED).await;
    stop(&mut cluster).await;
    // Whole again.
    assert_eq!(start(&mut cluster).await, Start::Ready);
    assert!(!process_said(&mut cluster).contains(missing));
    deliver(&mut cluster, &[&client, &second], &sink).await;
}

/// Its supervisor put an empty volume under the log: whoever remembers no vote must not vote (rabbit#12366,
/// restate#2415).
#[tokio::test(flavor = "multi_thread")]
async fn trap_14_a_node_that_kept_its_name_and_lost_its_log_stays_away() {
    let mut spec = Spec::full(&[("d0.test", 1)]);
    (spec.edges, spec.deliveries) = (0, 0);
    let mut cluster = Cluster::start(spec).await.unwrap();
    cluster.kill("queue-2").unwrap();
    let data = cluster.data("queue-2");
    for part in ["log", "meta"] {
        std::fs::remove_dir_all(data.join(part)).unwrap();
    }
    let Start::Refused(said) = start(&mut cluster).await else {
        panic!("it took part again");
    };
    let told = [
        "queue node 2 does not start",
        "took part in the cluster",
        "new node id",
    ];
    assert!(told.iter().all(|t| said.contains(t)), "{said}");
    for other in ["queue-1", "queue-3"] {
        cluster.ready(other).await.unwrap();
    }
}

/// Runs `postroad queue salvage`: its exit code, and what it wrote by file name.
fn salvage(data: &Path, out: &Path) -> (Option<i32>, BTreeMap<String, Vec<u8>>) {
    let ran = std::process::Command::new(program().unwrap())
        .args(["queue", "salvage", "--data"])
        .arg(data)
        .arg("--out")
        .arg(out)
        .output()
        .unwrap();
    println!("{}", String::from_utf8_lossy(&ran.stdout));
    println!("{}", String::from_utf8_lossy(&ran.stderr));
    let files = std::fs::read_dir(out).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, std::fs::read(path).unwrap())
    });
    (ran.status.code(), files.collect())
}

/// How many of the client's messages are among the .eml files, octet for octet.
fn whole(client: &Client, count: u64, files: &BTreeMap<String, Vec<u8>>) -> usize {
    let bodies: Vec<_> = files.iter().filter(|(n, _)| n.ends_with(".eml")).collect();
    let of = |id: u64| {
        let sent = client.load.message(id);
        bodies
            .iter()
            .filter(|(_, body)| body.ends_with(&sent))
            .count()
    };
    let found: Vec<usize> = (0..count).map(of).collect();
    assert!(found.iter().all(|n| *n <= 1));
    assert_eq!(
        found.iter().sum::<usize>(),
        bodies.len(),
        "nothing else is written"
    );
    bodies.len()
}

/// There was one copy, and its disk rots: what is readable is written out, what is not is named.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_single_copy_gives_out_what_is_readable_and_names_what_is_not() {
    const COUNT: u64 = 50;
    let mut spec = Spec::full(&[("d0.test", 1)]);
    (spec.queues, spec.edges, spec.deliveries) = (1, 1, 0);
    let mut cluster = Cluster::start(spec).await.unwrap();
    let admin = cluster.admin().unwrap();
    admin.ready(Duration::from_secs(10)).await.unwrap();
    let load = |first, count| Load {
        octets: (3_000, 9_000),
        first,
        ..Load::new(count, &["d0.test"])
    };
    let mut client = Client::start(&cluster.edges, load(0, COUNT - 10));
    client.done(PATIENCE).await.unwrap();
    tokio::time::sleep(FLUSHED).await;
    // The last ones are in the log alone.
    let mut last = Client::start(&cluster.edges, load(COUNT - 10, 10));
    last.done(PATIENCE).await.unwrap();
    cluster.kill("queue-1").unwrap();
    let data = cluster.data("queue-1");
    let all = records(&data).unwrap();
    let bodies: Vec<&Record> = all
        .iter()
        .filter(|r| r.kind == 1 && r.payload > 3_000)
        .collect();
    assert_eq!(bodies.len() as u64, COUNT);
    flip(
        &bodies[3].file,
        bodies[3].offset + 48 + bodies[3].payload - 1,
    )
    .unwrap();
    flip(&bodies[10].file, bodies[10].offset + 22).unwrap();
    let before = all_files(&data.join("log"));
    let out = tempfile::tempdir().unwrap();

    let (code, files) = salvage(&data, &out.path().join("1"));
    assert_eq!((code, whole(&client, COUNT, &files)), (Some(1), 48));
    let report = String::from_utf8_lossy(&files["salvage.json"]).into_owned();
    for lost in [bodies[3], bodies[10]] {
        assert!(
            report.contains(&format!("offset {}", lost.offset)),
            "{report}"
        );
    }
    let envelopes = files
        .iter()
        .filter(|(n, _)| n.ends_with(".json") && *n != "salvage.json");
    let envelopes: Vec<_> = envelopes.map(|(_, e)| String::from_utf8_lossy(e)).collect();
    assert_eq!(envelopes.len(), 50, "the envelopes of all are known");
    assert!(
        envelopes.iter().all(|e| e.contains("@d0.test")),
        "{envelopes:?}"
    );

    // Without metadata the log alone speaks.
    std::fs::rename(data.join("meta"), data.join("meta.away")).unwrap();
    let (code, files) = salvage(&data, &out.path().join("2"));
    assert_eq!((code, whole(&client, COUNT, &files)), (Some(1), 48));
    assert_eq!(all_files(&data.join("log")), before, "the log is as it was");
}
