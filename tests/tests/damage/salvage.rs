//! There was one copy, and its disk rots: what is readable is written out, what is not is named.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use tests::process::damage::{FLUSHED, PATIENCE, all_files};
use tests::process::node::program;
use tests::process::records::{Record, flip, records};
use tests::process::{Client, Cluster, Load, Spec};

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
    flip(&bodies[3].file, bodies[3].in_body()).unwrap();
    flip(&bodies[10].file, bodies[10].offset + 22).unwrap();
    let before = all_files(&data.join("log")).unwrap();
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
    let after = all_files(&data.join("log")).unwrap();
    assert_eq!(after, before, "the log is as it was");
}
