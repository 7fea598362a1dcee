//! One byte of one node's disk is not what was written, in a file that is neither a segment of the log nor a table of the
//! metadata (those are in `records`): the files beside them, and a journal of the metadata that was sealed. The node does
//! without it, or stays away with a text that says what to do.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::client::{AppendResult, QueueClient};
use proto::v1::append_request::What;
use proto::v1::{self, AdminAction, ItemFilter};
use tests::process::damage::{
    FLUSHED, HURT, PATIENCE, STAYS_AWAY, Start, all_files, deliver, others_serve, start, stop,
    stopped,
};
use tests::process::records::flip;
use tests::process::{Client, Cluster, Load, Sink};
use tests::queue;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// What a queue node has in its data directory. LOCK is empty, and what counts is who holds it.
const FILES: [&str; 5] = ["IDENTITY", "LOCK", "NODES", "log", "meta"];
/// Domain of mail that fills the metadata and is never delivered.
const BALLAST: &str = "ballast.test";
/// Appends of it at a time.
const AT_ONCE: usize = 16;
/// Recipients of such a message: seven items with as many as one may have. As much as an edge may say of one message.
const ITEMS: usize = 7;
const OF_ITEM: usize = 100;

async fn some_mail(sink: &Sink) -> (Cluster, Client) {
    let load = Load::new(20, &["d0.test"]);
    stopped(sink, "4MiB", load).await.unwrap()
}

async fn until_it_reads(file: &Path, wanted: &[u8]) {
    let until = Instant::now() + PATIENCE;
    while std::fs::read(file).unwrap() != wanted {
        assert!(Instant::now() < until, "{}", file.display());
        tokio::time::sleep(LOOK).await;
    }
}

/// IDENTITY is in `damage`. What rots in `snap-in` while a snapshot is received is told by a checksum each time that it is
/// read (unit tests `snapshot`); that takes seconds, which no test hits from outside, and no start believes any of it.
#[tokio::test(flavor = "multi_thread")]
async fn trap_9_one_byte_in_the_files_beside_log_and_metadata_is_mended_or_keeps_the_node_away() {
    let sink = Sink::start().await.unwrap();
    let (mut cluster, client) = some_mail(&sink).await;
    let data = cluster.data(HURT);
    let names = std::fs::read_dir(&data).unwrap().map(|entry| {
        let name = entry.unwrap().file_name();
        name.into_string().unwrap()
    });
    let mut names: Vec<String> = names.filter(|name| name != "snap-in").collect();
    names.sort();
    assert_eq!(names, FILES, "a new file: what does damage of it do?");
    assert_eq!(std::fs::read(data.join("LOCK")).unwrap(), b"");

    // Who the other nodes are: the control group's leader says it again. In the checksum, in the middle, at the end.
    let nodes = data.join("NODES");
    let whole = std::fs::read(&nodes).unwrap();
    for at in [0, whole.len() / 2, whole.len() - 1] {
        flip(&nodes, at).unwrap();
        assert_eq!(start(&mut cluster).await.unwrap(), Start::Ready);
        until_it_reads(&nodes, &whole).await;
        stop(&mut cluster).await.unwrap();
    }

    // What nobody reads: a file that was being replaced when a process died, a snapshot that was never installed, the room
    // of a segment that is yet to be.
    for name in ["IDENTITY.new", "NODES.new"] {
        std::fs::write(data.join(name), "postroad sto").unwrap();
    }
    let staged = data.join("snap-in/1");
    std::fs::create_dir_all(&staged).unwrap();
    std::fs::write(staged.join("0000000000000001"), "half of one").unwrap();
    let log = all_files(&data.join("log")).unwrap();
    let is_spare = |path: &&PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with("spare-")
    };
    flip(log.keys().find(is_spare).unwrap(), 5_000).unwrap();
    assert_eq!(start(&mut cluster).await.unwrap(), Start::Ready);
    assert!(!staged.exists(), "none outlives a start");
    stop(&mut cluster).await.unwrap();

    // That it is there is what counts: the node was put aside, whatever can still be read of why.
    let aside = data.join("QUARANTINED");
    let reason = "this replica's rows differ from those of nodes [1, 3]: start a node with a new node id in its place";
    std::fs::write(&aside, reason).unwrap();
    flip(&aside, 10).unwrap();
    let Start::Refused(said) = start(&mut cluster).await.unwrap() else {
        panic!("it was put aside");
    };
    let told = ["QUARANTINED says", "was put aside", "new node id"];
    assert!(told.iter().all(|text| said.contains(text)), "{said}");
    assert!(aside.exists());
    others_serve(&mut cluster).await.unwrap();
    std::fs::remove_file(&aside).unwrap();
    assert_eq!(start(&mut cluster).await.unwrap(), Start::Ready);
    deliver(&mut cluster, &[&client], &sink).await.unwrap();
}

/// The journals of the metadata, oldest first: the last one is written into, the others are sealed.
fn journals(data: &Path) -> Vec<PathBuf> {
    let number = |path: &PathBuf| -> Option<u64> {
        let digits = path.file_name()?.to_str()?.strip_suffix(".jnl")?;
        digits.parse().ok()
    };
    let entries = std::fs::read_dir(data.join("meta")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut journals: Vec<PathBuf> = paths.filter(|path| number(path).is_some()).collect();
    journals.sort_by_key(number);
    journals
}

/// A message with an envelope of nearly a quarter of a mebibyte, of addresses as long as the queue takes them.
async fn append_ballast(client: &QueueClient) {
    let id = client.new_message_id(queue::wall_ms(), rand::random());
    let shard = client.view().shard_of(id);
    let body = Bytes::from_static(b"Subject: ballast\r\n\r\n");
    let mut message = queue::message(id, &format!("r@{BALLAST}"), &body);
    let recipient = |number: usize| v1::RecipientFacts {
        address: format!("{number:0>64}@{}.test", "x".repeat(250)),
    };
    let item = |item: usize| v1::ItemFacts {
        destination: BALLAST.to_owned(),
        recipients: (item * OF_ITEM..(item + 1) * OF_ITEM)
            .map(recipient)
            .collect(),
    };
    let facts = message.facts.as_mut().expect("they were just made");
    facts.items = (0..ITEMS).map(item).collect();
    let result = client.append(shard, What::Append(message)).await;
    // As good: the answer to the first try was lost.
    let taken = [AppendResult::Created, AppendResult::AlreadyQueued];
    assert!(taken.contains(&result), "{result:?}");
}

/// Appends until a journal is sealed, which fjall does after 64 MB.
async fn seal_a_journal(client: &QueueClient, data: &Path) {
    let until = Instant::now() + PATIENCE;
    let mut count = 0;
    while journals(data).len() < 2 {
        assert!(Instant::now() < until, "{count} messages fill no journal");
        let appends = (0..AT_ONCE).map(|_| append_ballast(client));
        futures::future::join_all(appends).await;
        count += AT_ONCE;
    }
    println!("{count} messages until a journal was sealed");
}

/// A journal stays after it is sealed until the last table has what is in it, and all of it was synced: so any damage in it
/// is a loss, that of its last batch too. fjall would leave out the batch, and all that follow it.
#[tokio::test(flavor = "multi_thread")]
async fn trap_9_one_byte_in_a_sealed_journal_of_the_metadata_keeps_the_node_away() {
    let sink = Sink::start().await.unwrap();
    let (mut cluster, client) = some_mail(&sink).await;
    let appender = cluster.appender().unwrap();
    appender.ready(Duration::from_secs(10)).await.unwrap();
    assert_eq!(start(&mut cluster).await.unwrap(), Start::Ready);
    let data = cluster.data(HURT);
    seal_a_journal(&appender, &data).await;
    tokio::time::sleep(FLUSHED).await;
    stop(&mut cluster).await.unwrap();
    let journals = journals(&data);
    assert!(journals.len() >= 2, "{journals:?}");
    let sealed = &journals[0];
    let octets = std::fs::read(sealed).unwrap();
    let end = octets.iter().rposition(|octet| *octet != 0).unwrap();
    // In the first batch, in the middle, in the last one.
    for at in [40, end / 2, end - 20] {
        let before = all_files(&data).unwrap();
        flip(sealed, at).unwrap();
        let Start::Refused(said) = start(&mut cluster).await.unwrap() else {
            panic!("octet {at} of {end} is not missed");
        };
        println!("octet {at} of {end}: {said}");
        let name = sealed.file_name().unwrap().to_string_lossy();
        let told = STAYS_AWAY.iter().all(|text| said.contains(text));
        assert!(told && said.contains(&*name), "{said}");
        assert!(said.contains("is damaged, and was durable"), "{said}");
        assert_eq!(all_files(&data).unwrap(), before, "nothing is deleted");
        flip(sealed, at).unwrap();
        assert!(std::fs::read(sealed).unwrap() == octets, "nothing changed");
        others_serve(&mut cluster).await.unwrap();
        append_ballast(&appender).await;
    }
    assert_eq!(start(&mut cluster).await.unwrap(), Start::Ready);
    let admin = cluster.admin().unwrap();
    admin.ready(Duration::from_secs(10)).await.unwrap();
    let ballast = ItemFilter {
        destination: BALLAST.to_owned(),
        ..ItemFilter::default()
    };
    let (items, more) = admin.admin().list(&ballast, 20_000).await.unwrap();
    assert!(!more && items.len() > 1_000, "{} items", items.len());
    let items = items.into_iter().filter_map(|i| i.item).collect();
    let drop = AdminAction::Drop;
    let dropped = admin.admin().act(drop, items, "test", "ballast").await;
    dropped.unwrap();
    deliver(&mut cluster, &[&client], &sink).await.unwrap();
}
