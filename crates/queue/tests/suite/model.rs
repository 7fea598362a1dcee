//! Random commands, sensible and absurd, against a second, simpler state machine; what must hold is checked after each.

mod machine;

use machine::{Fate, Model, Place};
use mail::{Digest, Ulid};
use proptest::collection::vec;
use proptest::prelude::*;
use queue::*;

use crate::common::{START_MS, World, append, message, report, result, ulid};

const MESSAGES: usize = 3;

/// A command, in small numbers that meet each other often.
#[derive(Clone, Debug)]
enum Op {
    Append {
        message: usize,
        digest: bool,
        chunks: u32,
        null: bool,
        grant: Option<usize>,
    },
    Chunk {
        message: usize,
        seq: u32,
    },
    ExpireUpload,
    Open {
        node: u8,
        boot: u8,
        sequence: u64,
        past_dot: u16,
        handed_back: u16,
    },
    Grant {
        items: Vec<usize>,
        session: usize,
    },
    Expire {
        session: usize,
    },
    Settle {
        item: usize,
        grant: usize,
        release: bool,
        verdicts: Vec<(u32, u8)>,
        retry: bool,
        give_up: bool,
    },
    Timer {
        item: usize,
        expire: bool,
    },
    Admin {
        item: usize,
        action: u8,
    },
    Again {
        back: usize,
    },
    Version {
        version: u32,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let item = 0..MESSAGES * 2 + 4;
    prop_oneof![
        4 => (0..MESSAGES, prop::bool::weighted(0.1), prop_oneof![3 => Just(0u32), 1 => 1..3u32], prop::bool::weighted(0.2), prop::option::of(0..4usize))
            .prop_map(|(message, digest, chunks, null, grant)| Op::Append { message, digest, chunks, null, grant }),
        2 => (0..MESSAGES, 0..3u32).prop_map(|(message, seq)| Op::Chunk { message, seq }),
        1 => Just(Op::ExpireUpload),
        2 => (0..2u8, 0..2u8, 0..4u64, any::<u16>(), any::<u16>())
            .prop_map(|(node, boot, sequence, past_dot, handed_back)| Op::Open { node, boot, sequence, past_dot, handed_back }),
        1 => (1..3u32).prop_map(|version| Op::Version { version }),
        6 => (vec(item.clone(), 1..6), 0..4usize).prop_map(|(items, session)| Op::Grant { items, session }),
        2 => (0..4usize).prop_map(|session| Op::Expire { session }),
        8 => (item.clone(), 0..4usize, prop::bool::weighted(0.2), vec((0..3u32, 0..3u8), 0..3), prop::bool::weighted(0.8), prop::bool::weighted(0.2))
            .prop_map(|(item, grant, release, verdicts, retry, give_up)| Op::Settle { item, grant, release, verdicts, retry, give_up }),
        2 => (item.clone(), any::<bool>()).prop_map(|(item, expire)| Op::Timer { item, expire }),
        2 => (item, 0..4u8).prop_map(|(item, action)| Op::Admin { item, action }),
        1 => (1..6usize).prop_map(|back| Op::Again { back }),
    ]
}

/// Cluster time between two entries, ms.
fn pause() -> impl Strategy<Value = u64> {
    prop_oneof![
        30 => 0..3_000u64, 3 => Just(301_000), 1 => Just(31 * 60_000), 1 => Just(5 * 3_600_000), 1 => Just(121 * 3_600_000)
    ]
}

fn id(n: usize) -> Ulid {
    // Some far behind cluster time, as of a body that came in for hours; the sweep has to find them all.
    ulid(START_MS - (n as u64 % 3) * 3 * 3_600_000, n as u128)
}

struct Run {
    world: World,
    model: Model,
}

impl Run {
    /// Items by small numbers; the last few are reports, or unknown.
    fn item(&self, n: usize) -> ItemId {
        if n < MESSAGES * 2 {
            return ItemId {
                message: id(n / 2),
                number: (n % 2) as u32,
            };
        }
        let mut live = self
            .model
            .items
            .keys()
            .filter(|item| self.model.messages[&item.message].report);
        live.nth(n - MESSAGES * 2).copied().unwrap_or(ItemId {
            message: ulid(7, 7),
            number: u32::MAX,
        })
    }

    fn session(&self, n: usize) -> LeaseSessionId {
        LeaseSessionId(
            self.model
                .sessions
                .keys()
                .rev()
                .nth(n)
                .copied()
                .unwrap_or(n as u64),
        )
    }

    fn reports(&self) -> Vec<Report> {
        vec![report(ulid(START_MS, 1000 + u128::from(self.world.index)))]
    }

    fn later(&self, ms: u64) -> Timestamp {
        Timestamp(self.world.now + ms)
    }

    fn command(&self, op: &Op) -> Command {
        match op {
            Op::Append {
                message: n,
                digest,
                chunks,
                null,
                grant,
            } => {
                let mut facts = message(id(*n), &[("a.example", 1), ("b.example", 2)][..n % 2 + 1]);
                facts.digest = Digest([*digest as u8; 16]);
                facts.chunks = *chunks;
                facts.size = if *chunks > 0 {
                    u64::from(*chunks) * 10
                } else {
                    100
                };
                if *null {
                    facts.return_path = "".into();
                }
                let deadline = self.later(600_000);
                let grant = grant.map(|session| ExpressGrant {
                    number: 0,
                    session: self.session(session),
                    deadline,
                });
                let notice = Some(self.later(4 * 3_600_000));
                let grant_to = grant.into_iter().collect();
                Command::Append(Box::new(Append {
                    notice,
                    grant_to,
                    ..append(facts, self.later(120 * 3_600_000))
                }))
            }
            Op::Chunk { message, seq } => Command::BodyChunk {
                message: id(*message),
                seq: *seq,
                size: 10,
            },
            Op::ExpireUpload => Command::ExpireUpload {
                messages: (0..MESSAGES).map(id).collect(),
            },
            Op::Open {
                node,
                boot,
                sequence,
                past_dot,
                handed_back,
            } => {
                let of = |mask: u16| {
                    (0..16)
                        .filter(|n| mask >> n & 1 == 1)
                        .map(|n| self.item(n))
                        .collect()
                };
                Command::OpenSession(OpenSession {
                    node: format!("node-{node}").into(),
                    incarnation: [0; 16],
                    sequence: *sequence,
                    boot_id: format!("boot-{boot}").into(),
                    past_dot: of(*past_dot),
                    handed_back: of(*handed_back),
                    retry: self.later(60_000),
                })
            }
            Op::Version { version } => Command::SetVersion { version: *version },
            Op::Grant { items, session } => {
                let session = self.session(*session);
                let items = items
                    .iter()
                    .map(|n| (self.item(*n), self.later(600_000)))
                    .collect();
                let batch = GrantBatch { session, items };
                Command::Window(Window {
                    keepalives: vec![session],
                    extends: vec![batch.clone()],
                    grants: vec![batch],
                })
            }
            Op::Expire { session } => Command::ExpireSession {
                session: self.session(*session),
                retry: self.later(60_000),
            },
            Op::Settle {
                item,
                grant,
                release,
                verdicts,
                retry,
                give_up,
            } => {
                let item = self.item(*item);
                let grants = self.model.grants.get(&item);
                let (session, token) = grants
                    .and_then(|all| all.iter().rev().nth(*grant))
                    .copied()
                    .unwrap_or((1, 1));
                let verdict =
                    |n: u8| [Verdict::Delivered, Verdict::Deferred, Verdict::Failed][n as usize];
                Command::Settle(vec![SettleItem {
                    item,
                    token: Token(token),
                    session: LeaseSessionId(session),
                    release: *release,
                    results: verdicts
                        .iter()
                        .map(|(n, v)| result(*n, verdict(*v)))
                        .collect(),
                    retry: retry.then(|| self.later(300_000)),
                    give_up: *give_up,
                    reports: self.reports(),
                }])
            }
            Op::Timer { item, expire } => Command::ItemTimer(ItemTimer {
                item: self.item(*item),
                expire: *expire,
                reports: self.reports(),
            }),
            Op::Admin { item, action } => {
                use AdminAction::*;
                let action = [Hold, Release, Retry, Drop][*action as usize];
                let items = vec![self.item(*item)];
                Command::Admin(Admin {
                    action,
                    items,
                    actor: "eve".into(),
                    reason: "why".into(),
                })
            }
            Op::Again { back } => {
                let n = self.world.log.len().checked_sub(*back);
                n.map_or(
                    Command::Note {
                        actor: "eve".into(),
                        text: "".into(),
                    },
                    |n| self.world.log[n].1.command.clone(),
                )
            }
        }
    }

    fn step(&mut self, op: &Op, pause: u64) {
        self.world.now += pause;
        let command = self.command(op);
        let finished = self.world.rows.finished().range(None, usize::MAX);
        self.model.remembered = crate::common::keys(finished).into_iter().collect();
        let effects = self.world.apply(command);
        let (index, facts) = self.world.log.last().cloned().expect("applied");
        self.model.apply(index, &facts);
        self.world.check();
        self.compare();
        let outcomes: Vec<_> = effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Settled { outcome, .. } => Some(*outcome),
                _ => None,
            })
            .collect();
        assert_eq!(outcomes, self.model.outcomes);
    }

    /// The state machine and its model agree, and nothing is lost.
    fn compare(&mut self) {
        let rows = &mut self.world.rows;
        let place = |item: &Item| match item.state {
            State::Waiting { due } => Place::Waiting(due.0),
            State::Leased { session, token, .. } => Place::Leased(session.0, token.0),
            State::Held { .. } => Place::Held,
        };
        let found: Vec<_> = rows
            .items()
            .range(None, usize::MAX)
            .into_iter()
            .map(|(id, i)| (id, place(&i)))
            .collect();
        let wanted: Vec<_> = self
            .model
            .items
            .iter()
            .map(|(id, item)| (*id, item.place))
            .collect();
        assert_eq!(found, wanted);
        for (id, item) in &self.model.items {
            let row = rows.items().get(id).expect("compared");
            assert_eq!(
                (row.recipients_left as usize, row.lost),
                (item.open.len(), item.lost)
            );
        }
        assert_eq!(
            crate::common::keys(rows.sessions().range(None, 99)).len(),
            self.model.sessions.len()
        );
        for (id, recipients) in &self.model.created {
            let mut worst = Fate::Delivered;
            for recipient in recipients {
                let queued = self
                    .model
                    .items
                    .get(&recipient.0)
                    .is_some_and(|item| item.open.contains(&recipient.1));
                let fate = self.model.fates.get(recipient);
                assert!(
                    queued != fate.is_some(),
                    "{recipient:?} is queued, or met one fate"
                );
                worst = worst.max(fate.copied().unwrap_or(Fate::Delivered));
            }
            let must = self
                .model
                .finished
                .get(id)
                .is_some_and(|forget| *forget > self.model.now);
            let row = rows.finished().get(id);
            assert!(row.is_some() || !must, "{id:?} is forgotten too early");
            let same = matches!(
                (row.map(|row| row.ending), worst),
                (None, _)
                    | (Some(Ending::Delivered), Fate::Delivered)
                    | (Some(Ending::Failed), Fate::Failed)
                    | (Some(Ending::Dropped), Fate::Dropped)
            );
            assert!(
                same || self.model.messages.contains_key(id),
                "{id:?} did not end as {worst:?}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_commands_do_what_the_model_does(ops in vec((op(), pause()), 1..60)) {
        let mut run = Run { world: World::new(), model: Model::default() };
        for (op, pause) in &ops {
            run.step(op, *pause);
        }
        // The same entries give the same rows.
        let mut rows = MemoryRows::default();
        for (index, facts) in &run.world.log {
            apply(&mut rows, *index, facts);
        }
        prop_assert_eq!(&rows, &run.world.rows);
        // Everything finished is forgotten in the end, wherever its id lies.
        run.world.now += 2 * DEDUPE_MS;
        for _ in 0..40 {
            run.world.now += 1_000;
            run.world.apply(Command::Note { actor: "".into(), text: "".into() });
        }
        prop_assert_eq!(run.world.rows.finished().range(None, 9).len(), 0);
        prop_assert_eq!(run.world.rows.forgets().range(None, 9).len(), 0);
    }

    /// Not even indexes and times that run back or over do harm.
    #[test]
    fn absurd_indexes_and_times_are_survived(ops in vec((op(), any::<u64>(), any::<u64>()), 1..40)) {
        let mut run = Run { world: World::new(), model: Model::default() };
        for (op, index, time) in &ops {
            let command = run.command(op);
            let index = if index % 3 == 0 { *index } else { index % 4 };
            apply(&mut run.world.rows, index, &Facts { time: Timestamp(*time), command });
        }
    }
}

#[test]
fn many_retries_of_one_id_make_one_message() {
    let mut world = World::new();
    for n in 0..50 {
        world.now += 30_000;
        let append = append(message(id(1), &[("a.example", 1)]), Timestamp(u64::MAX));
        let effects = world.apply(Command::Append(Box::new(append)));
        let created = effects
            .iter()
            .any(|effect| matches!(effect, Effect::Created { .. }));
        assert_eq!(created, n == 0);
        world.check();
        if n == 20 {
            let item = ItemId {
                message: id(1),
                number: 0,
            };
            let admin = Admin {
                action: AdminAction::Drop,
                items: vec![item],
                actor: "".into(),
                reason: "".into(),
            };
            world.apply(Command::Admin(admin));
        }
    }
}
