//! Runs `tests/scripts/queue/*.txt`: commands, what each did, and the state table after it. `SCRIPTS=rewrite` writes
//! what happens now into the scripts; read the difference before you commit it.
//!
//! ```text
//! > append m1 a.example:alice,bob b.example:carol   one item a destination; also: null, digest=2, chunks=2, grant=0:s2
//! > chunk m1 0                                      a part of a big body
//! > open node-1 boot-1 past-dot=m1.0 handed-back=m1.1   lease sessions are named by the index of their entry; also: process=2, request=3
//! > version 2                                       of the state machine, from the next entry on
//! > grant s2 m1.0 m1.1                              > extend s2 m1.0
//! > settle m1.0 s2 @3 delivered failed retry=5m     one verdict a recipient (- for none); also: release, give-up, report=r1
//! > expire s2        > timer m1.0 notice report=r1     > hold|release|retry|drop m1.0        > wait 5m
//! ```

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use mail::{Digest, Ulid};
use queue::*;

use crate::common::{World, append, message, report, result, ulid};

#[test]
fn scripts_say_what_happens() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/scripts/queue");
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)
        .expect("the scripts' folder")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    assert!(files.len() > 5, "few scripts in {}", folder.display());
    let rewrite = env::var("SCRIPTS").is_ok_and(|value| value == "rewrite");
    for file in files {
        let script = fs::read_to_string(&file).expect("a script");
        let found = run(&script);
        if rewrite {
            fs::write(&file, &found).expect("rewritten");
        } else if found != script {
            panic!(
                "{} does not say what happens; this does:\n{found}",
                file.display()
            );
        }
    }
}

/// The script, with what happens now.
fn run(script: &str) -> String {
    let mut world = World::new();
    let mut found = String::new();
    for line in script
        .lines()
        .filter(|line| line.starts_with("> ") || line.starts_with('#'))
    {
        if let Some(comment) = line.strip_prefix('#') {
            writeln!(found, "#{comment}").expect("a string");
            continue;
        }
        writeln!(found, "\n{line}").expect("a string");
        let words: Vec<&str> = line[2..].split_whitespace().collect();
        if words[0] == "wait" {
            world.now += duration(words[1]);
            continue;
        }
        for effect in world.apply(command(&world, &words)) {
            if let Some(text) = describe(&effect) {
                writeln!(found, "  {text}").expect("a string");
            }
        }
        world.check();
        table(&mut world, &mut found);
    }
    found
}

fn duration(text: &str) -> u64 {
    let (number, unit) = text.split_at(text.len() - 1);
    let unit = match unit {
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        other => panic!("a duration ends in s, m or h, not {other}"),
    };
    number.parse::<u64>().expect("a number") * unit
}

/// `m1` and `r1` by number; reports lie apart.
fn id(name: &str) -> Ulid {
    let number: u128 = name[1..].parse().expect("a number");
    ulid(
        crate::common::START_MS,
        if name.starts_with('r') {
            1_000 + number
        } else {
            number
        },
    )
}

fn item(name: &str) -> ItemId {
    let (message, number) = name.split_once('.').expect("m1.0");
    ItemId {
        message: id(message),
        number: number.parse().expect("a number"),
    }
}

fn session(name: &str) -> LeaseSessionId {
    LeaseSessionId(
        name.strip_prefix('s')
            .expect("s1")
            .parse()
            .expect("a number"),
    )
}

/// The value of `key=value` among the words.
fn value<'a>(words: &[&'a str], key: &str) -> Option<&'a str> {
    words
        .iter()
        .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

fn items(words: &[&str], key: &str) -> Vec<ItemId> {
    value(words, key)
        .map(|names| names.split(',').map(item).collect())
        .unwrap_or_default()
}

fn command(world: &World, words: &[&str]) -> Command {
    let now = Timestamp(world.now);
    let retry = now.plus(duration(value(words, "retry").unwrap_or("10m")));
    let reports: Vec<Report> = value(words, "report")
        .map(|name| report(id(name)))
        .into_iter()
        .collect();
    match words[0] {
        "append" => append_command(world, words),
        "chunk" => Command::BodyChunk {
            message: id(words[1]),
            seq: words[2].parse().expect("a number"),
            size: 10,
        },
        "expire-upload" => Command::ExpireUpload {
            messages: vec![id(words[1])],
        },
        "open" => Command::OpenSession(OpenSession {
            node: words[1].into(),
            incarnation: [value(words, "process").map_or(0, |n| n.parse().expect("a number")); 16],
            sequence: value(words, "request").map_or(0, |n| n.parse().expect("a number")),
            boot_id: words[2].into(),
            past_dot: items(words, "past-dot"),
            handed_back: items(words, "handed-back"),
            retry,
        }),
        "version" => Command::SetVersion {
            version: words[1].parse().expect("a number"),
        },
        "grant" | "extend" => {
            let items = words[2..]
                .iter()
                .map(|name| (item(name), now.plus(600_000)))
                .collect();
            let batches = vec![GrantBatch {
                session: session(words[1]),
                items,
            }];
            Command::Window(match words[0] {
                "grant" => Window {
                    grants: batches,
                    ..Window::default()
                },
                _ => Window {
                    extends: batches,
                    ..Window::default()
                },
            })
        }
        "expire" => Command::ExpireSession {
            session: session(words[1]),
            retry,
        },
        "settle" => settle_command(words, now, reports),
        "timer" => Command::ItemTimer(ItemTimer {
            item: item(words[1]),
            expire: words[2] == "expire",
            reports,
        }),
        verb => {
            let action = match verb {
                "hold" => AdminAction::Hold,
                "release" => AdminAction::Release,
                "retry" => AdminAction::Retry,
                "drop" => AdminAction::Drop,
                other => panic!("no such command: {other}"),
            };
            let items = words[1..].iter().map(|name| item(name)).collect();
            Command::Admin(Admin {
                action,
                items,
                actor: "eve".into(),
                reason: "".into(),
            })
        }
    }
}

fn append_command(world: &World, words: &[&str]) -> Command {
    let now = Timestamp(world.now);
    let items: Vec<(&str, usize)> = words[2..]
        .iter()
        .filter_map(|word| word.split_once(':').filter(|_| !word.contains('=')))
        .map(|(domain, names)| (domain, names.split(',').count()))
        .collect();
    let mut facts = message(id(words[1]), &items);
    if words.contains(&"null") {
        facts.return_path = "".into();
    }
    if let Some(chunks) = value(words, "chunks") {
        facts.chunks = chunks.parse().expect("a number");
        facts.size = u64::from(facts.chunks) * 10;
    }
    if let Some(digest) = value(words, "digest") {
        facts.digest = Digest([digest.parse().expect("a number"); 16]);
    }
    let grant = value(words, "grant").and_then(|grant| grant.split_once(':'));
    let grant_to = grant.map(|(number, name)| ExpressGrant {
        number: number.parse().expect("a number"),
        session: session(name),
        deadline: now.plus(600_000),
    });
    let notice = Some(now.plus(4 * 3_600_000));
    let grant_to = grant_to.into_iter().collect();
    Command::Append(Box::new(Append {
        notice,
        grant_to,
        ..append(facts, now.plus(120 * 3_600_000))
    }))
}

fn settle_command(words: &[&str], now: Timestamp, reports: Vec<Report>) -> Command {
    let results = (0..).zip(&words[4..]).filter_map(|(recipient, word)| {
        let verdict = match *word {
            "delivered" => Verdict::Delivered,
            "deferred" => Verdict::Deferred,
            "failed" => Verdict::Failed,
            _ => return None,
        };
        Some(result(recipient, verdict))
    });
    Command::Settle(vec![SettleItem {
        item: item(words[1]),
        session: session(words[2]),
        token: Token(
            words[3]
                .strip_prefix('@')
                .expect("@3")
                .parse()
                .expect("a number"),
        ),
        release: words.contains(&"release"),
        results: results.collect(),
        retry: value(words, "retry").map(|text| now.plus(duration(text))),
        give_up: words.contains(&"give-up"),
        reports,
    }])
}

fn name(id: Ulid) -> String {
    match id.random() {
        n if n >= 1_000 => format!("r{}", n - 1_000),
        n => format!("m{n}"),
    }
}

fn item_name(id: &ItemId) -> String {
    format!("{}.{}", name(id.message), id.number)
}

/// Time since the beginning of the script.
fn time(at: Timestamp) -> String {
    let seconds = at.0.saturating_sub(crate::common::START_MS) / 1000;
    format!(
        "{}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

/// What an effect is to a reader; the table says the rest.
fn describe(effect: &Effect) -> Option<String> {
    Some(match effect {
        Effect::Created { message } => format!("{} is created", name(*message)),
        Effect::AlreadyQueued { message } => format!("{} is queued already", name(*message)),
        Effect::Conflict { message } => format!("{} is another body: conflict", name(*message)),
        Effect::UploadGone { message } => format!("the chunks of {} are not there", name(*message)),
        Effect::ChunkStored { message, seq } => {
            format!("chunk {seq} of {} is stored", name(*message))
        }
        Effect::OpenRefused { node } => {
            format!("the request of {node} came too late: nothing is opened")
        }
        Effect::VersionSet { version } => format!("version {version} from here on"),
        Effect::DigestWanted { rows, .. } => format!("up to {rows} rows are digested"),
        Effect::BodyKept(extent) => format!("body of {} octets is kept", extent.length),
        Effect::BodyDropped(extent) => format!("body of {} octets is dropped", extent.length),
        Effect::Granted {
            item,
            session,
            token,
            ..
        } => {
            format!(
                "{} goes to s{} with token {}",
                item_name(item),
                session.0,
                token.0
            )
        }
        Effect::GrantSkipped { item, session } => {
            format!("{} does not go to s{}", item_name(item), session.0)
        }
        Effect::Revoke { item, session } => {
            format!("s{} is to abort {}", session.0, item_name(item))
        }
        Effect::SessionOpened { session, kept, .. } => {
            let kept: Vec<_> = kept.iter().map(|kept| item_name(&kept.item)).collect();
            let keeps = if kept.is_empty() {
                String::new()
            } else {
                format!(" and keeps {}", kept.join(" "))
            };
            format!("s{} begins{keeps}", session.0)
        }
        Effect::SessionEnded { session, reason } => format!("s{} ends: {reason}", session.0),
        Effect::Settled { item, outcome, .. } => format!("{}: {outcome:?}", item_name(item)),
        Effect::Finished { message } => format!("{} is finished", name(*message)),
        Effect::Administered { item, done } => format!("{}: {done:?}", item_name(item)),
        Effect::PossibleDuplicate { item, why } => {
            format!("{} may be delivered twice: {why}", item_name(item))
        }
        Effect::KeptAlive { .. }
        | Effect::Waiting { .. }
        | Effect::LeftWaiting { .. }
        | Effect::Ungranted { .. } => {
            return None;
        }
    })
}

fn table(world: &mut World, found: &mut String) {
    let rows = &mut world.rows;
    for (id, row) in rows.items().range(None, usize::MAX) {
        let state = match &row.state {
            State::Waiting { due } => format!("Waiting until {}", time(*due)),
            State::Leased { session, token, .. } => {
                format!("Leased by s{} with {}", session.0, token.0)
            }
            State::Held { reason } => format!("Held: {reason}"),
        };
        let mark = match &row.mark {
            Some(Mark::Hold { .. }) => ", to be held",
            Some(Mark::Drop) => ", to be dropped",
            None => "",
        };
        let (left, all) = (row.recipients_left, row.recipients);
        let line = format!(
            "  | {:<5} {:<12} {left}/{all} left  {state}{mark}",
            item_name(&id),
            row.destination.as_str()
        );
        writeln!(found, "{line}").expect("a string");
    }
}
