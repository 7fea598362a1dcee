//! One byte of one node's disk is not what was written (nats#7549, rabbit#4251), in each kind of record and of file: the
//! body comes from another replica, or the node stays away with a text that says what to do. The others keep serving,
//! nothing is deleted, and every message arrives as it was sent.
//!
//! Bodies that were written again are in `collected`, the files beside log and metadata, and journals of the metadata
//! that were sealed, in `files`, the only copy of all in `salvage`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use tests::process::damage::{
    FLUSHED, HURT, PATIENCE, STAYS_AWAY, Start, all_files, copy_all, deliver, others_serve, said,
    start, stop, stopped, until_mended,
};
use tests::process::records::{HEADER, Record, flip, records};
use tests::process::{Client, Cluster, Load, Sink, Spec, size};

async fn parked(sink: &Sink) -> (Cluster, Client) {
    let load = Load {
        octets: (3_000, 9_000),
        ..Load::new(size(320, 2_000), &["d0.test"])
    };
    // Small segments: two of them, so that one begins with STATE records.
    stopped(sink, "1MiB", load).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_9_one_byte_in_each_kind_of_record_and_file_loses_nothing_and_stops_nobody_else() {
    let sink = Sink::start().await.unwrap();
    let (mut cluster, client) = parked(&sink).await;
    let data = cluster.data(HURT);
    // All kinds but RELOCATED_BODY, which a log without damage has none of. 4, 5 and 8 no program ever wrote: this fails when it
    // meets one.
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
    let log_text = ["is damaged at offset"];
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
        .unwrap()
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
            &STAYS_AWAY,
        ));
    }
    let kept = data.with_extension("kept");
    copy_all(&data.join("meta"), &kept).unwrap();
    for (what, file, at, text) in cases {
        let before = all_files(&data).unwrap();
        flip(&file, at).unwrap();
        let started = start(&mut cluster).await.unwrap();
        println!("{what}: {started:?}");
        match started {
            Start::Refused(said) => {
                let always = STAYS_AWAY.iter().filter(|_| what != "IDENTITY");
                let told = text.iter().chain(always).all(|t| said.contains(t));
                assert!(told, "{what}: {said}");
            }
            // Some of the metadata store's bytes say nothing, or only what it can do without.
            Start::Ready => {
                assert!(what.starts_with("metadata"), "{what}");
                stop(&mut cluster).await.unwrap();
            }
        }
        let after = all_files(&data).unwrap();
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
                copy_all(&kept, &data.join("meta")).unwrap();
            }
            false => flip(&file, at).unwrap(),
        }
        others_serve(&mut cluster).await.unwrap();
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
        .find(|(a, b)| a.kind == 9 && a.file == b.file && b.offset > a.offset + HEADER + a.payload);
    flip(&gap.unwrap().0.file, gap.unwrap().1.offset - 1).unwrap();
    let bodies: Vec<&Record> = all.iter().filter(|r| body(r)).take(5).collect();
    for body in &bodies {
        flip(&body.file, body.in_body()).unwrap();
    }
    assert_eq!(start(&mut cluster).await.unwrap(), Start::Ready);
    let bodies: BTreeSet<_> = bodies.into_iter().map(Record::entry).collect();
    until_mended(&mut cluster, 0, &bodies).await.unwrap();
    // The references are durable by now; from here on it needs nobody's help for them.
    tokio::time::sleep(FLUSHED).await;
    stop(&mut cluster).await.unwrap();
    assert_eq!(start(&mut cluster).await.unwrap(), Start::Ready);
    deliver(&mut cluster, &[&client, &meanwhile], &sink)
        .await
        .unwrap();
}

/// A hand, or a file system check, removed a segment of the log. While a group's log still needs entries of it, the node stays
/// away with a text; when none does, the mail that lives in it is missed at the start and comes from the other replicas.
#[tokio::test(flavor = "multi_thread")]
async fn a_segment_file_that_somebody_deleted_is_missed_and_nothing_is_lost() {
    let sink = Sink::start().await.unwrap();
    let (mut cluster, client) = parked(&sink).await;
    // More segments, of which the last ones say that the first is truncated.
    assert_eq!(start(&mut cluster).await.unwrap(), Start::Ready);
    let more = Load {
        first: 1_000_000,
        octets: (3_000, 9_000),
        ..Load::new(size(600, 2_000), &["d0.test"])
    };
    let mut second = Client::start(&cluster.edges, more);
    second.done(PATIENCE).await.unwrap();
    tokio::time::sleep(FLUSHED).await;
    stop(&mut cluster).await.unwrap();
    let all = records(&cluster.data(HURT)).unwrap();
    let oldest = all[0].file.clone();
    let bodies = all.iter().filter(|r| r.file == oldest && r.kind == 1);
    let bodies = bodies.filter(|r| r.payload > 3_000);
    let bodies: BTreeSet<_> = bodies.map(Record::entry).collect();
    assert!(
        bodies.len() > 20,
        "{} in {}",
        bodies.len(),
        oldest.display()
    );
    std::fs::remove_file(&oldest).unwrap();
    if let Start::Refused(said) = start(&mut cluster).await.unwrap() {
        assert!(
            said.contains("are missing") && said.contains("add a new node id"),
            "{said}"
        );
        return deliver(&mut cluster, &[&client, &second], &sink)
            .await
            .unwrap();
    }
    let missing = "a segment of the log is missing";
    // It may have said much since.
    let all_said = cluster.all_said(HURT).unwrap();
    assert!(all_said.contains(missing), "{}", said(&mut cluster));
    until_mended(&mut cluster, 0, &bodies).await.unwrap();
    tokio::time::sleep(FLUSHED).await;
    stop(&mut cluster).await.unwrap();
    // Whole again.
    assert_eq!(start(&mut cluster).await.unwrap(), Start::Ready);
    assert!(!said(&mut cluster).contains(missing));
    deliver(&mut cluster, &[&client, &second], &sink)
        .await
        .unwrap();
}

/// Its supervisor put an empty volume under the log: whoever remembers no vote must not vote (rabbit#12366,
/// restate#2415).
#[tokio::test(flavor = "multi_thread")]
async fn trap_14_a_node_that_kept_its_name_and_lost_its_log_stays_away() {
    let mut spec = Spec::full(&[("d0.test", 1)]);
    (spec.edges, spec.deliveries) = (0, 0);
    let mut cluster = Cluster::start(spec).await.unwrap();
    cluster.kill(HURT).unwrap();
    let data = cluster.data(HURT);
    for part in ["log", "meta"] {
        std::fs::remove_dir_all(data.join(part)).unwrap();
    }
    let Start::Refused(said) = start(&mut cluster).await.unwrap() else {
        panic!("it took part again");
    };
    let told = STAYS_AWAY.iter().all(|t| said.contains(t));
    assert!(told && said.contains("took part in the cluster"), "{said}");
    others_serve(&mut cluster).await.unwrap();
}
