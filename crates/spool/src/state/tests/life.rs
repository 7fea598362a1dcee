//! The same entries applied to the durable rows and to rows in memory, with flushes and crashes in between.

use std::collections::BTreeMap;
use std::sync::Arc;

use mail::{Destination, Digest, Ulid};
use proptest::collection::vec;
use proptest::prelude::*;
use queue::*;

use super::{Bench, contents};
use crate::log::Location;
use crate::state::GroupState;

/// Which of the few messages, and what about it.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Append(u8, u8),
    Chunk(u8, u8),
    AppendChunked(u8, u8),
    ExpireUpload(u8),
    Open(u8),
    Grant(u8, u8, u8),
    Settle(u8, u8, Verdict),
    ExpireSession(u8),
    Admin(AdminAction, u8, u8),
    Wait(u32),
    /// Freeze only: the next steps run beside the frozen overlay.
    Freeze,
    /// Write what is frozen, or freeze and write.
    Flush,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let (m, i) = (0..6_u8, 0..3_u8);
    let verdict = prop_oneof![3 => Just(Verdict::Delivered), 2 => Just(Verdict::Deferred), 1 => Just(Verdict::Failed)];
    let action = prop_oneof![
        Just(AdminAction::Hold),
        Just(AdminAction::Release),
        Just(AdminAction::Retry),
        Just(AdminAction::Drop)
    ];
    prop_oneof![
        8 => (m.clone(), i.clone()).prop_map(|(m, n)| Step::Append(m, n)),
        2 => (m.clone(), i.clone()).prop_map(|(m, n)| Step::Chunk(m, n)),
        1 => (m.clone(), i.clone()).prop_map(|(m, n)| Step::AppendChunked(m, n)),
        1 => m.clone().prop_map(Step::ExpireUpload),
        2 => i.clone().prop_map(Step::Open),
        8 => (m.clone(), i.clone(), i.clone()).prop_map(|(m, n, s)| Step::Grant(m, n, s)),
        8 => (m.clone(), i.clone(), verdict).prop_map(|(m, n, v)| Step::Settle(m, n, v)),
        1 => i.clone().prop_map(Step::ExpireSession),
        3 => (action, m, i).prop_map(|(a, m, n)| Step::Admin(a, m, n)),
        2 => prop_oneof![Just(1000_u32), Just(2_000_000)].prop_map(Step::Wait),
        3 => Just(Step::Freeze),
        3 => Just(Step::Flush),
        1 => Just(Step::Crash),
    ]
}

fn id(m: u8) -> Ulid {
    Ulid::from_bytes((u128::from(m) + 1).to_be_bytes())
}

fn item(m: u8, n: u8) -> ItemId {
    ItemId {
        message: id(m),
        number: u32::from(n),
    }
}

pub(super) fn facts(m: u8, items: u8, chunks: u32) -> MessageFacts {
    let item = |n: u8| ItemFacts {
        destination: Destination::from_canonical(["a.example", "b.example"][usize::from(n % 2)]),
        recipients: (0..=n)
            .map(|k| Arc::from(format!("{k}@example.org")))
            .collect(),
    };
    MessageFacts {
        message: id(m),
        tenant: "default".into(),
        class: "default".into(),
        priority: 0,
        return_path: "a@example.net".into(),
        items: (0..=items).map(item).collect(),
        size: 100,
        digest: Digest([m; 16]),
        header_size: 10,
        eight_bit: false,
        smtputf8: false,
        chunks,
        origin: Arc::default(),
        trace_context: "".into(),
        arrived: Timestamp(0),
    }
}

/// What turns steps into entries; the same for both sides.
#[derive(Clone, Default)]
struct Leader {
    index: u64,
    time: u64,
    sessions: BTreeMap<u8, LeaseSessionId>,
}

impl Leader {
    fn report(&self, m: u8) -> Report {
        let message = Ulid::from_bytes(
            ((1 << 64) + (u128::from(self.index) << 8) + u128::from(m)).to_be_bytes(),
        );
        let facts = MessageFacts {
            message,
            return_path: "".into(),
            ..facts(m, 0, 0)
        };
        Report {
            facts,
            offset: 0,
            expires: Timestamp(self.time + 1000),
        }
    }

    /// The command of a step, at the next index.
    fn command(&self, step: &Step, rows: &mut impl Rows) -> Option<Command> {
        let session = |s: u8| self.sessions.get(&s).copied().unwrap_or(LeaseSessionId(0));
        let (expires, retry) = (
            Timestamp(self.time + 5_000_000),
            Timestamp(self.time + 60_000),
        );
        Some(match *step {
            Step::Append(m, n) | Step::AppendChunked(m, n) => {
                let chunks = if matches!(step, Step::Append(..)) {
                    0
                } else {
                    1
                };
                let facts = facts(m, n, chunks);
                Command::Append(Box::new(Append {
                    facts,
                    expires,
                    notice: Some(retry),
                    grant_to: vec![],
                }))
            }
            Step::Chunk(m, seq) => Command::BodyChunk {
                message: id(m),
                seq: u32::from(seq),
                size: 100,
            },
            Step::ExpireUpload(m) => Command::ExpireUpload {
                messages: vec![id(m)],
            },
            Step::Open(s) => Command::OpenSession(OpenSession {
                node: format!("node-{s}").into(),
                incarnation: [s; 16],
                sequence: 0,
                boot_id: "boot".into(),
                past_dot: vec![item(0, 0)],
                handed_back: vec![item(1, 0)],
                retry,
            }),
            Step::Grant(m, n, s) => {
                let grants = vec![GrantBatch {
                    session: session(s),
                    items: vec![(item(m, n), retry)],
                }];
                Command::Window(Window {
                    grants,
                    ..Window::default()
                })
            }
            Step::Settle(m, n, verdict) => {
                let Some(State::Leased { session, token, .. }) =
                    rows.items().get(&item(m, n)).map(|item| item.state.clone())
                else {
                    return None;
                };
                let result = RecipientResult {
                    recipient: 0,
                    verdict,
                    code: 250,
                    enhanced: "2.0.0".into(),
                    text: "as said".into(),
                    remote_host: "mx.example".into(),
                    remote_address: "192.0.2.1:25".into(),
                    tls: "".into(),
                    connect_ms: 1,
                    total_ms: 2,
                    dkim_selectors: vec![],
                    never_reached: false,
                    ambiguous: false,
                };
                let results = (0..=u32::from(n)).map(|recipient| RecipientResult {
                    recipient,
                    ..result.clone()
                });
                Command::Settle(vec![SettleItem {
                    item: item(m, n),
                    token,
                    session,
                    release: false,
                    results: results.collect(),
                    retry: Some(retry),
                    give_up: false,
                    reports: vec![self.report(m)],
                }])
            }
            Step::ExpireSession(s) => Command::ExpireSession {
                session: session(s),
                retry,
            },
            Step::Admin(action, m, n) => Command::Admin(Admin {
                action,
                items: vec![item(m, n)],
                actor: "eve".into(),
                reason: "test".into(),
            }),
            Step::Wait(_) => Command::Note {
                actor: "eve".into(),
                text: "later".into(),
            },
            Step::Freeze | Step::Flush | Step::Crash => return None,
        })
    }
}

fn location(index: u64) -> Location {
    Location {
        segment: index / 8,
        offset: 4096,
        context_len: 100,
        data_len: 100,
    }
}

/// Applies an entry as the driver does.
pub(super) fn apply_to(group: &mut GroupState, index: u64, facts: &Facts) {
    for effect in queue::apply(group, index, facts) {
        match effect {
            Effect::BodyKept(extent) => group.body_kept(extent, location(extent.index)),
            Effect::BodyDropped(extent) => group.body_dropped(extent),
            _ => {}
        }
    }
    group.set_applied(index, 1);
}

/// All that was committed, so that a crash can be followed by a replay.
#[derive(Default)]
struct History {
    leader: Leader,
    memory: MemoryRows,
    log: Vec<Facts>,
}

impl History {
    fn take(&mut self, step: &Step, group: &mut GroupState) {
        if let Step::Wait(ms) = step {
            self.leader.time += u64::from(*ms);
        }
        let Some(command) = self.leader.command(step, &mut self.memory) else {
            return;
        };
        self.leader.time += 1;
        self.leader.index += 1;
        let facts = Facts {
            time: Timestamp(self.leader.time),
            command,
        };
        if let Step::Open(s) = step {
            self.leader
                .sessions
                .insert(*s, LeaseSessionId(self.leader.index));
        }
        queue::apply(&mut self.memory, self.leader.index, &facts);
        apply_to(group, self.leader.index, &facts);
        self.log.push(facts);
    }

    fn replay(&self, group: &mut GroupState) {
        let applied = group.applied().0 as usize;
        for (facts, index) in self.log[applied..].iter().zip(applied as u64 + 1..) {
            apply_to(group, index, facts);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn durable_rows_equal_rows_in_memory(steps in vec((0..2_usize, step()), 1..120)) {
        let mut bench = Bench::new(2);
        let mut histories = [History::default(), History::default()];
        let mut frozen = None;
        for (which, step) in &steps {
            match step {
                Step::Freeze if frozen.is_none() => frozen = bench.freeze(),
                Step::Freeze => {}
                Step::Flush => match frozen.take() {
                    Some(flush) => { bench.finish(flush); }
                    None => { bench.flush(); }
                },
                Step::Crash => {
                    let durable = [1, 2].map(|group| bench.store().durable_applied(group));
                    frozen = None;
                    bench.crash();
                    prop_assert_eq!([0, 1].map(|n: usize| bench.groups[n].applied().0), durable);
                    for (history, group) in histories.iter().zip(&mut bench.groups) {
                        history.replay(group);
                    }
                }
                step => histories[*which].take(step, &mut bench.groups[*which]),
            }
            for (history, group) in histories.iter_mut().zip(&mut bench.groups) {
                prop_assert_eq!(contents(group), contents(&mut history.memory));
                for from in [&[][..], &[3], &[10]] {
                    let in_memory = crate::state::digest(&mut history.memory, from, 30);
                    prop_assert_eq!(crate::state::digest(group, from, 30), in_memory);
                }
                check_bodies(group);
            }
        }
        for group in &bench.groups {
            prop_assert!(group.error().is_none());
        }
    }
}

/// What is kept is exactly what messages and uploads refer to, and the segments' counts say so.
fn check_bodies(group: &mut GroupState) {
    let messages = group.messages().range(None, 1000);
    let uploads = group.uploads().range(None, 1000);
    let live = messages
        .iter()
        .flat_map(|(_, m)| &m.body)
        .chain(uploads.iter().flat_map(|(_, u)| &u.chunks));
    let mut bytes: BTreeMap<u64, u64> = BTreeMap::new();
    live.for_each(|extent| *bytes.entry(extent.index).or_default() += extent.length);
    let kept: Vec<_> = group
        .kept_from(0, 1000)
        .into_iter()
        .map(|(index, at)| (index, at.segment))
        .collect();
    assert_eq!(
        kept,
        bytes
            .keys()
            .map(|index| (*index, index / 8))
            .collect::<Vec<_>>()
    );
    let mut segments: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for (index, bytes) in bytes {
        let live = segments.entry(index / 8).or_default();
        *live = (live.0 + bytes, live.1 + 1);
    }
    let counted: BTreeMap<_, _> = group
        .segments()
        .iter()
        .map(|(s, live)| (*s, (live.bytes, live.count)))
        .collect();
    assert_eq!(counted, segments);
}
