//! A node's directory, with a real store and a real log, as deaths of the process and hands of people leave it.

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use mail::{Destination, Digest, Ulid};
use proto::{NodeTls, Role, pki};
use queue::{Append, Command, Facts, ItemFacts, MessageFacts, Rows as _, Timestamp};
use tempfile::TempDir;

use super::*;
use crate::config::Retention;
use crate::event::LogEvent;
use crate::identity::ClusterId;
use crate::log::{Entry, EntryKind, HardState};
use crate::node::Made;
use crate::runtime::snapshots::install;
use crate::runtime::state::account;
use crate::runtime::{Health, Helpers};
use crate::snapshot::{Encoder, Staging};
use crate::state::Sworn;

const INCARNATION: u128 = 42;
const GROUP: u32 = 1;
/// What the receiver has before, and what the snapshot brings.
const OLD: (u64, u64) = (5, 1);
const NEW: (u64, u64) = (40, 4);

fn config(dir: &Path, tls: &Arc<NodeTls>) -> Config {
    let address = "127.0.0.1:1".parse().unwrap();
    Config {
        dir: dir.to_owned(),
        node: 1,
        cluster_id: ClusterId([7; 16]),
        listen_peer: address,
        listen_client: address,
        advertise_peer: String::new(),
        advertise_client: String::new(),
        initial_cluster: (1..=3).map(|node| (node, String::new())).collect(),
        initial_state: InitialState::New,
        shards: 1,
        replication_factor: 3,
        tls: tls.clone(),
        disk_bytes: None,
        disk_bytes_per_second: None,
        segment_bytes: 2 << 20,
        retention: Retention {
            log_bytes: None,
            silence: Duration::from_secs(1),
        },
        retry: tokio::sync::watch::channel(queue::retry::Policy::default()).1,
        hostname: "queue.test".to_owned(),
        zone: String::new(),
        state_machine: crate::wire::log::STATE_MACHINE_VERSION,
    }
}

fn tls(dir: &Path) -> Arc<NodeTls> {
    let (ca, out) = (dir.join("ca"), dir.join("node"));
    pki::init("test", &ca).unwrap();
    pki::issue(&ca, Role::Queue, "1", &out).unwrap();
    Arc::new(NodeTls::load(&out).unwrap())
}

/// 100 kB that follow from the entry.
fn body(index: u64) -> Bytes {
    let octet = |at: u64| (at * 7 + index * 31) as u8;
    (0..100_000).map(octet).collect::<Vec<_>>().into()
}

fn append(index: u64) -> Facts {
    let items = vec![ItemFacts {
        destination: Destination::from_canonical("example.org"),
        recipients: vec![Arc::from("a@example.org")],
    }];
    let facts = MessageFacts {
        message: Ulid::from_bytes(u128::from(index).to_be_bytes()),
        tenant: "default".into(),
        class: "default".into(),
        priority: 0,
        return_path: "a@example.net".into(),
        items,
        size: 100_000,
        digest: Digest::of(&body(index)),
        header_size: 10,
        eight_bit: false,
        smtputf8: false,
        chunks: 0,
        origin: Arc::default(),
        trace_context: "".into(),
        arrived: Timestamp(0),
    };
    Facts {
        time: Timestamp(1),
        command: Command::Append(Box::new(Append {
            facts,
            expires: Timestamp(1_000_000),
            notice: None,
            grant_to: vec![],
        })),
    }
}

fn apply(rows: &mut GroupState, index: u64, term: u64, location: crate::log::Location) {
    let effects = queue::apply(rows, index, &append(index));
    account(rows, index, Some(location), &effects);
    rows.set_applied(index, term);
}

/// Stages what another replica would send: entries 11 to 40, each a message.
fn stage(dir: &Path, id: u64) -> Made {
    let other = TempDir::new().unwrap();
    let store = Store::open(other.path(), StoreConfig::default()).unwrap();
    let mut rows = store.group(GROUP).unwrap();
    for index in 11..=NEW.0 {
        let location = crate::log::Location {
            segment: 1,
            offset: index as u32,
            context_len: 0,
            data_len: 100_000,
        };
        apply(&mut rows, index, NEW.1, location);
    }
    let members = Membership {
        voters: vec![1, 2, 3],
        ..Membership::default()
    };
    rows.set_conf_state(crate::wire::members::to_bytes(&members));
    let flush = store.freeze([&mut rows]).unwrap();
    store.flushed(flush.run().unwrap(), [&mut rows]);
    let export = store.export(GROUP).unwrap().unwrap();
    let mut encoder = Encoder::default();
    export
        .rows(|table, key, value| {
            encoder.row(table, key, value);
            Ok::<_, StoreError>(())
        })
        .unwrap();
    export
        .bodies(|it| {
            encoder.body(it.index, it.extents, it.bytes, &body(it.index));
            Ok::<_, StoreError>(())
        })
        .unwrap();
    encoder.end(id);
    let mut staged = Staging::new(dir).begin(GROUP, id).unwrap();
    staged.write(&encoder.take()).unwrap();
    staged.finish().unwrap();
    Made {
        id,
        index: NEW.0,
        term: NEW.1,
        members,
        body_bytes: 0,
    }
}

/// A copy of a directory whose log prepares spare segments meanwhile: one that gets its new name just then is missed, and `cp`
/// says so; the next copy has it.
fn copy_of(dir: &std::path::Path) -> TempDir {
    for _ in 0..20 {
        let copy = TempDir::new().unwrap();
        let done = std::process::Command::new("cp")
            .arg("-a")
            .arg(dir)
            .arg(copy.path().join("data"))
            .status();
        if done.unwrap().success() {
            return copy;
        }
    }
    panic!("{} cannot be copied", dir.display())
}

/// A node that took part: five messages in its log and its rows.
struct Node {
    config: Config,
    replica: u32,
    _dir: TempDir,
}

impl Node {
    fn new() -> Node {
        let dir = TempDir::new().unwrap();
        let config = config(&dir.path().join("data"), &tls(dir.path()));
        std::fs::create_dir_all(&config.dir).unwrap();
        begin(&config, INCARNATION).unwrap();
        let mut it = recover(&config, INCARNATION).unwrap();
        let made_at = it.state.made_at.keys().copied();
        let replica = made_at.filter(|it| group_of(*it) == GROUP).max().unwrap();
        let rows = it.state.shards.get_mut(&GROUP).unwrap();
        let entry = |index| Entry {
            index,
            term: OLD.1,
            kind: EntryKind::Normal,
            context: Bytes::from_static(b"command"),
            data: body(index),
        };
        let (term, vote, commit) = (OLD.1, 1, OLD.0);
        let task = WriteTask {
            group: replica,
            number: 1,
            entries: (1..=OLD.0).map(entry).collect(),
            hard_state: Some(HardState { term, vote, commit }),
            reset: None,
            urgent: false,
        };
        let written = it.writer.write(&[task]).unwrap();
        for (index, location) in &written[0].locations {
            apply(rows, *index, OLD.1, *location);
        }
        let flush = it.state.store.freeze([&mut *rows]).unwrap();
        it.state.store.flushed(flush.run().unwrap(), [rows]);
        it.writer.mark().unwrap();
        Node {
            config,
            replica,
            _dir: dir,
        }
    }

    /// What a start makes of a copy of the directory as it is now, and the next start of that: the index that is applied.
    fn look(&self, when: &str) -> u64 {
        let copy = copy_of(&self.config.dir);
        let mut config = self.config.clone();
        config.dir = copy.path().join("data");
        let first = self.check(&config, when);
        let second = self.check(&config, when);
        assert_eq!(first, second, "{when}: a start after the start");
        first
    }

    /// All that the rows name is there, octet for octet, and log and rows fit together.
    fn check(&self, config: &Config, when: &str) -> u64 {
        let found = recover(config, INCARNATION);
        let mut found = found.unwrap_or_else(|error| panic!("{when}: {error}"));
        assert!(found.damaged.is_empty(), "{when}: {:?}", found.damaged);
        let rows = found.state.shards.get_mut(&GROUP).unwrap();
        let applied = rows.applied();
        assert!([OLD, NEW].contains(&applied), "{when}: {applied:?}");
        let status = found.groups[&GROUP].status();
        let expected = match applied == OLD {
            true => (1, OLD.0),
            false => (NEW.0 + 1, NEW.0),
        };
        assert_eq!((status.first, status.last), expected, "{when}");
        assert_eq!(status.applied, applied.0, "{when}");
        let messages = rows.messages().range(None, 1_000);
        let count = if applied == OLD { 5 } else { 30 };
        assert_eq!(messages.len(), count, "{when}: replaced, not merged");
        for (message, row) in messages {
            let sworn = Sworn {
                message,
                digest: row.digest,
                extents: row.body.clone(),
            };
            let holds = sworn.holds(|index| {
                let location = rows.locate(index).expect("it is kept");
                let read = found.reader.read_entry(location, self.replica, index);
                read.map(|entry| entry.data)
            });
            assert!(holds.unwrap(), "{when}: {message}");
        }
        applied.0
    }
}

/// Curvine#1551, etcd#12691: a crash around the installation of a snapshot. The process dies between any two operations of
/// an installation, with the store and the log that a node has.
#[test]
fn trap_4_a_crash_between_any_two_operations_of_an_install_leaves_one_state_or_the_other() {
    let node = Node::new();
    assert_eq!(node.look("before"), OLD.0);
    let made = stage(&node.config.dir, 99);
    assert_eq!(node.look("staged"), OLD.0);
    let mut it = recover(&node.config, INCARNATION).unwrap();
    let (log, mail) = mpsc::channel();
    let (importer, replica) = (it.state.store.importer(), node.replica);
    let (staging, installed) = (Staging::new(&node.config.dir), made.clone());
    let helpers = Helpers::new(Health::new());
    let helper = helpers.helper();
    let installing = std::thread::spawn(move || {
        install(&staging, &helper, replica, &installed, &importer, &log)
    });
    let mut writes = 0;
    // Until the installation lets go of its end.
    while let Ok(event) = mail.recv() {
        let LogEvent::Bodies {
            who,
            replica,
            bodies,
            reply,
        } = event
        else {
            continue;
        };
        writes += 1;
        assert_eq!(node.look("rows are there"), OLD.0);
        let written = it.writer.write_bodies(replica, &bodies).unwrap();
        let segments = written.iter().map(|location| location.segment);
        it.writer.segments().pin(who, segments);
        assert_eq!(node.look("bodies are written"), OLD.0);
        reply.send(Ok(written)).unwrap();
    }
    assert!(writes >= 2, "{writes}");
    let switched = installing.join().unwrap().unwrap();
    assert_eq!(node.look("switched, and the log is the old one"), NEW.0);
    it.state.store.switched(switched);
    let reset = WriteTask {
        group: node.replica,
        number: 2,
        entries: Vec::new(),
        hard_state: None,
        reset: Some(NEW),
        urgent: true,
    };
    it.writer.write(&[reset]).unwrap();
    assert_eq!(node.look("the log begins at the snapshot"), NEW.0);
    it.writer.mark().unwrap();
    assert_eq!(node.look("marked"), NEW.0);
}

/// A segment of which the log needs nothing any more, but mail that is parked: nobody missed it.
#[test]
fn bodies_whose_segment_somebody_deleted_are_named_at_the_start() {
    let node = Node::new();
    let mut it = recover(&node.config, INCARNATION).unwrap();
    // Parked mail of before, in segments that the log is done with.
    let rows = it.state.shards.get_mut(&GROUP).unwrap();
    let mut places = BTreeMap::new();
    for index in OLD.0 + 1..=60 {
        let entry = Entry {
            index,
            term: 1,
            kind: EntryKind::Normal,
            context: Bytes::from_static(b"command"),
            data: body(index),
        };
        let (term, vote, commit) = (1, 1, index);
        let task = WriteTask {
            group: node.replica,
            number: index,
            entries: vec![entry],
            hard_state: Some(HardState { term, vote, commit }),
            reset: None,
            urgent: false,
        };
        let written = it.writer.write(&[task]).unwrap();
        let location = written[0].locations[0].1;
        places.insert(index, location);
        apply(rows, index, 1, location);
        it.writer.set_group_state(node.replica, (index, 1));
    }
    let flush = it.state.store.freeze([&mut *rows]).unwrap();
    it.state.store.flushed(flush.run().unwrap(), [rows]);
    it.writer.mark().unwrap();
    drop(it);
    let lost = places[&30].segment;
    let last = places[&60].segment;
    assert!(lost > 1 && lost < last, "{lost} {last}");
    let name = format!("log/seg-{lost:016}.g0");
    std::fs::remove_file(node.config.dir.join(name)).unwrap();
    let found = recover(&node.config, INCARNATION).unwrap();
    let named: Vec<_> = found
        .damaged
        .iter()
        .map(|it| (it.group, it.index))
        .collect();
    let lay_there = places.iter().filter(|(_, at)| at.segment == lost);
    let lay_there: Vec<_> = lay_there.map(|(index, _)| (node.replica, *index)).collect();
    assert!(lay_there.len() > 5);
    assert_eq!(named, lay_there);
}
