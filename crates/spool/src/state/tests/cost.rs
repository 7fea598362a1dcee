//! What the whole life of a message costs one replica. A measurement, so it asserts only that nothing is left:
//! `cargo test -p spool --release -- --ignored --nocapture whole_life`.

use std::time::Instant;

use bytes::Bytes;
use mail::{Destination, Ulid};
use queue::*;

use super::Bench;
use super::life::{apply_to, facts};
use crate::state::GroupState;

const MESSAGES: u64 = 200_000;

/// Messages between append and settle: half a second at 10,000 a second.
const IN_FLIGHT: u64 = 5_000;

/// Messages between two flushes: two seconds.
const WINDOW: u64 = 20_000;

const GROUPS: u64 = 4;

/// A step of message `n`, at `index` of its group.
struct Step {
    n: u64,
    index: u64,
    context: Bytes,
}

fn id(n: u64) -> Ulid {
    let random = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    Ulid::from_bytes((u128::from(n / 10) << 80 | u128::from(random)).to_be_bytes())
}

fn item(n: u64) -> ItemId {
    ItemId {
        message: id(n),
        number: 0,
    }
}

fn open() -> Command {
    let (node, boot_id) = ("delivery-0".into(), "boot".into());
    let retry = Timestamp(0);
    Command::OpenSession(OpenSession {
        node,
        incarnation: [0; 16],
        sequence: 0,
        boot_id,
        past_dot: vec![],
        handed_back: vec![],
        retry,
    })
}

fn append(n: u64) -> Command {
    let mut facts = MessageFacts {
        message: id(n),
        ..facts(0, 0, 0)
    };
    facts.items[0].destination = Destination::from_canonical(&format!("d{}.example", n % 1000));
    Command::Append(Box::new(Append {
        facts,
        expires: Timestamp(u64::MAX),
        notice: None,
        grant_to: vec![],
    }))
}

fn grant(n: u64) -> Command {
    let grants = vec![GrantBatch {
        session: LeaseSessionId(1),
        items: vec![(item(n), Timestamp(2_000_000))],
    }];
    Command::Window(Window {
        grants,
        ..Window::default()
    })
}

fn settle(n: u64, token: u64) -> Command {
    let result = RecipientResult {
        recipient: 0,
        verdict: Verdict::Delivered,
        code: 250,
        enhanced: "2.0.0".into(),
        text: "Ok: queued as 4Xyz".into(),
        remote_host: "mx.example".into(),
        remote_address: "192.0.2.1:25".into(),
        tls: "TLSv1.3".into(),
        connect_ms: 1,
        total_ms: 2,
        dkim_selectors: vec![],
        never_reached: false,
        ambiguous: false,
    };
    Command::Settle(vec![SettleItem {
        item: item(n),
        token: Token(token),
        session: LeaseSessionId(1),
        release: false,
        results: vec![result],
        retry: None,
        give_up: false,
        reports: vec![],
    }])
}

/// All entries of all groups, as they would come.
fn entries() -> Vec<Step> {
    let mut indexes = [0_u64; GROUPS as usize];
    let mut steps = Vec::new();
    let mut push = |n: u64, command: Command| {
        let index = &mut indexes[(n % GROUPS) as usize];
        *index += 1;
        let time = Timestamp(1_000_000 + steps.len() as u64 / 30);
        let context = crate::wire::log::encode(&Facts { time, command });
        steps.push(Step {
            n,
            index: *index,
            context,
        });
        *index
    };
    for n in 0..GROUPS {
        push(n, open());
    }
    let mut tokens = Vec::new();
    for n in 0..MESSAGES + IN_FLIGHT {
        if n < MESSAGES {
            push(n, append(n));
            tokens.push(push(n, grant(n)));
        }
        if let Some(n) = n.checked_sub(IN_FLIGHT) {
            push(n, settle(n, tokens[n as usize]));
        }
    }
    steps
}

/// Time that this thread ran, ns: other work on the machine does not count.
fn thread_ns() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split(' ')
        .next()
        .and_then(|ns| ns.parse().ok())
        .unwrap_or(0)
}

#[test]
#[ignore = "a measurement"]
fn whole_life_of_200_000_messages() {
    let steps = entries();
    let mut bench = Bench::new(GROUPS as u32);
    let (mut decode, mut apply, mut flush, mut rows, mut settled) = (0, 0, 0, 0, 0);
    for (number, window) in steps.chunks(WINDOW as usize * 3).enumerate() {
        let take =
            |step: &Step| crate::wire::log::decode(&step.context, queue::version::NEWEST).unwrap();
        let start = thread_ns();
        window
            .iter()
            .for_each(|step| drop(std::hint::black_box(take(step))));
        let decoded = thread_ns();
        for step in window {
            apply_to(
                &mut bench.groups[(step.n % GROUPS) as usize],
                step.index,
                &take(step),
            );
        }
        let applied = thread_ns();
        let overlay: usize = bench.groups.iter().map(GroupState::overlay_bytes).sum();
        let (frozen, began) = (bench.freeze().unwrap(), Instant::now());
        let written = bench.finish(frozen);
        println!(
            "overlay {} KiB, {written} rows, flush {} ms",
            overlay / 1024,
            began.elapsed().as_millis()
        );
        // The first windows pay for memory that the process keeps, the last is short.
        if number >= 2 && window.len() == WINDOW as usize * 3 {
            settled += WINDOW;
            rows += written;
            decode += decoded - start;
            apply += (applied - decoded).saturating_sub(decoded - start);
            flush += thread_ns() - applied;
        }
    }
    assert!(
        bench
            .groups
            .iter()
            .all(|group| group.shard().messages == 0 && group.segments().is_empty())
    );
    let each = |ns: u64| ns as f64 / settled as f64 / 1000.0;
    let (decode, apply, flush, rows) = (
        each(decode),
        each(apply),
        each(flush),
        each(rows as u64) * 1000.0,
    );
    println!(
        "a message: decode {decode:.2} us, apply {apply:.2} us, flush {flush:.2} us of CPU, {rows:.1} rows"
    );
}
