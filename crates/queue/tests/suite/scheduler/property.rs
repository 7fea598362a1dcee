//! The scheduler against the state machine: what it picks is due and waits, windows and Busy hold, nothing is picked
//! twice, and everything is picked in the end.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;
use queue::scheduler::{Credit, Limits, Scheduler, WINDOW_ITEMS};
use queue::*;

use super::leader::{Leader, SIZE};
use crate::common::{START_MS, append, destination, message, ulid};

const DOMAINS: [&str; 4] = ["a.example", "b.example", "c.example", "d.example"];
const CLASSES: [&str; 2] = ["bulk", "default"];

#[derive(Clone, Debug)]
enum Op {
    Append {
        domain: usize,
        class: usize,
        priority: i8,
    },
    Express {
        node: usize,
        domain: usize,
    },
    Open {
        node: usize,
    },
    Expire {
        node: usize,
    },
    Disconnect {
        node: usize,
    },
    Pick {
        node: usize,
        credit: Credit,
    },
    Commit,
    Drop,
    Settle {
        n: usize,
        retry: Option<u64>,
    },
    Admin {
        n: usize,
        action: u8,
    },
    Window {
        node: usize,
        domain: usize,
        items: u32,
    },
    Busy {
        node: usize,
        domain: usize,
        ms: u64,
    },
    Load,
    Sleep(u64),
    NewLeader,
}

/// Of octets now and then so few that a destination's share is an item or two.
fn credit() -> impl Strategy<Value = Credit> {
    let bytes = prop_oneof![Just(u64::MAX), 1..SIZE * 12];
    (1..8usize, bytes).prop_map(|(items, bytes)| Credit { items, bytes })
}

fn op() -> impl Strategy<Value = Op> {
    let (node, domain) = (0..2usize, 0..DOMAINS.len());
    prop_oneof![
        12 => (domain.clone(), 0..2usize, -2..3i8).prop_map(|(domain, class, priority)| Op::Append { domain, class, priority }),
        2 => (node.clone(), domain.clone()).prop_map(|(node, domain)| Op::Express { node, domain }),
        1 => node.clone().prop_map(|node| Op::Open { node }),
        1 => node.clone().prop_map(|node| Op::Expire { node }),
        1 => node.clone().prop_map(|node| Op::Disconnect { node }),
        6 => (node.clone(), credit()).prop_map(|(node, credit)| Op::Pick { node, credit }),
        5 => Just(Op::Commit),
        1 => Just(Op::Drop),
        5 => (0..99usize, prop::option::of(0..600_000u64)).prop_map(|(n, retry)| Op::Settle { n, retry }),
        2 => (0..99usize, 0..4u8).prop_map(|(n, action)| Op::Admin { n, action }),
        1 => (node.clone(), domain.clone(), 0..4u32).prop_map(|(node, domain, items)| Op::Window { node, domain, items }),
        1 => (node, domain, 0..200_000u64).prop_map(|(node, domain, ms)| Op::Busy { node, domain, ms }),
        4 => Just(Op::Load),
        2 => (0..150_000u64).prop_map(Op::Sleep),
        1 => Just(Op::NewLeader),
    ]
}

/// What the scheduler must keep to, as a test sees it.
struct Run {
    leader: Leader,
    sessions: [Option<LeaseSessionId>; 2],
    /// Only the first node takes all classes.
    windows: Vec<((LeaseSessionId, usize), u32)>,
    busy: Vec<((LeaseSessionId, usize), u64)>,
}

impl Run {
    fn session(&self, node: usize) -> LeaseSessionId {
        self.sessions[node].unwrap_or(LeaseSessionId(u64::MAX))
    }

    fn open(&mut self, node: usize) {
        let classes: &[&str] = if node == 0 { &[] } else { &CLASSES[1..] };
        self.sessions[node] = Some(self.leader.open(&format!("node-{node}"), classes));
    }

    fn window(&self, session: LeaseSessionId, domain: &str) -> u32 {
        let said = self
            .windows
            .iter()
            .rev()
            .find(|((s, d), _)| *s == session && DOMAINS[*d] == domain);
        said.map_or(WINDOW_ITEMS, |(_, items)| *items)
    }

    fn step(&mut self, op: &Op) {
        let leader = &mut self.leader;
        match op {
            Op::Append {
                domain,
                class,
                priority,
            } => {
                leader.append(DOMAINS[*domain], CLASSES[*class], *priority);
            }
            Op::Express { node, domain } => self.express(*node, *domain),
            Op::Open { node } => self.open(*node),
            Op::Expire { node } => {
                let retry = leader.now().plus(60_000);
                if let Some(session) = self.sessions[*node].take() {
                    self.leader.apply(Command::ExpireSession { session, retry });
                }
            }
            Op::Disconnect { node } => {
                if let Some(session) = self.sessions[*node] {
                    leader.scheduler.disconnect(session);
                    leader.scheduler.connect(
                        session,
                        if *node == 0 {
                            vec![]
                        } else {
                            vec![CLASSES[1].into()]
                        },
                    );
                }
            }
            Op::Pick { node, credit } => self.pick(*node, *credit),
            Op::Commit => leader.commit(),
            Op::Drop => {
                if let Some((_, items)) = leader.proposed.pop() {
                    items
                        .into_iter()
                        .for_each(|item| leader.scheduler.unpick(item));
                }
            }
            Op::Settle { n, retry } => {
                let leased = leader.leased();
                if let Some(grant) = leased.get(n % leased.len().max(1)) {
                    let retry = retry.map(|ms| leader.now().plus(ms));
                    leader.settle(*grant, retry);
                }
            }
            Op::Admin { n, action } => {
                use AdminAction::*;
                let all = leader.world.rows.items().range(None, usize::MAX);
                let items = all
                    .get(n % all.len().max(1))
                    .map(|(id, _)| *id)
                    .into_iter()
                    .collect();
                let action = [Hold, Release, Retry, Drop][*action as usize];
                leader.apply(Command::Admin(Admin {
                    action,
                    items,
                    actor: "".into(),
                    reason: "".into(),
                }));
            }
            Op::Window {
                node,
                domain,
                items,
            } => {
                let session = self.session(*node);
                self.leader
                    .scheduler
                    .window(session, &destination(DOMAINS[*domain]), *items);
                self.windows.push(((session, *domain), *items));
            }
            Op::Busy { node, domain, ms } => {
                let (session, until) = (self.session(*node), self.leader.now().plus(*ms));
                self.leader
                    .scheduler
                    .busy(session, &destination(DOMAINS[*domain]), until);
                self.busy.retain(|(key, _)| *key != (session, *domain));
                self.busy.push(((session, *domain), until.0));
            }
            Op::Load => leader.load(),
            Op::Sleep(ms) => leader.world.now += ms,
            Op::NewLeader => self.new_leader(),
        }
    }

    fn express(&mut self, node: usize, domain: usize) {
        let (session, to, now) = (
            self.session(node),
            destination(DOMAINS[domain]),
            self.leader.now(),
        );
        let leader = &mut self.leader;
        if !leader
            .scheduler
            .express(session, &to, "default", now, u64::MAX)
        {
            return;
        }
        let ready = leader
            .world
            .rows
            .due()
            .range(None, usize::MAX)
            .into_iter()
            .map(|(key, _)| key);
        let proposed: BTreeSet<ItemId> = leader
            .proposed
            .iter()
            .flat_map(|(_, items)| items.clone())
            .collect();
        let before =
            ready.filter(|key| key.destination == to && &*key.class == "default" && key.due <= now);
        assert!(
            before.clone().all(|key| proposed.contains(&key.item)),
            "something waits before it"
        );
        leader.appended += 1;
        let id = ulid(START_MS, leader.appended);
        leader.scheduler.reserve(
            session,
            ItemId {
                message: id,
                number: 0,
            },
            &to,
            SIZE,
        );
        let facts = message(id, &[(DOMAINS[domain], 1)]);
        let grant_to = vec![ExpressGrant {
            number: 0,
            session,
            deadline: now.plus(600_000),
        }];
        leader.apply(Command::Append(Box::new(Append {
            grant_to,
            ..append(facts, Timestamp(u64::MAX))
        })));
    }

    fn pick(&mut self, node: usize, credit: Credit) {
        let session = self.session(node);
        let proposed: BTreeSet<ItemId> = self
            .leader
            .proposed
            .iter()
            .flat_map(|(_, items)| items.clone())
            .collect();
        let picked = self.leader.pick_within(session, credit);
        assert!(picked.len() <= credit.items);
        let mut seen = proposed;
        for item in &picked {
            assert!(seen.insert(*item), "{item:?} picked twice");
            let row = self
                .leader
                .world
                .rows
                .items()
                .get(item)
                .expect("picked what lives");
            let class = self
                .leader
                .world
                .rows
                .messages()
                .get(&item.message)
                .expect("lives")
                .class
                .clone();
            let State::Waiting { due } = row.state else {
                panic!("{item:?} does not wait")
            };
            assert!(due.0 <= self.leader.world.now, "picked before it is due");
            assert!(
                node == 0 || *class == *CLASSES[1],
                "picked a class that the consumer does not take"
            );
            let to = row.destination.as_str();
            let busy = self.busy.iter().any(|((s, d), until)| {
                *s == session && DOMAINS[*d] == to && *until > self.leader.world.now
            });
            assert!(!busy, "picked for a Busy destination");
        }
        for domain in DOMAINS {
            let to = |item: &ItemId| {
                let row = self.leader.world.rows.clone().items().get(item);
                row.is_some_and(|row| row.destination.as_str() == domain)
            };
            let new = picked.iter().filter(|item| to(item)).count();
            let leased = self
                .leader
                .world
                .rows
                .clone()
                .inflight()
                .range(None, usize::MAX);
            let held = leased
                .iter()
                .filter(|((s, item), _)| *s == session && to(item))
                .count();
            let open = self.leader.proposed.iter().filter(|(s, _)| *s == session);
            let open = open
                .flat_map(|(_, items)| items)
                .filter(|item| to(item))
                .count();
            assert!(
                new == 0 || held + open <= self.window(session, domain) as usize,
                "the window is exceeded"
            );
        }
    }

    /// Another node leads: it begins from the rows, the streams come back, what was proposed is lost.
    fn new_leader(&mut self) {
        let limits = LIMITS;
        self.leader.proposed.clear();
        self.leader.scheduler = Scheduler::start(&mut self.leader.world.rows, limits);
        self.windows.clear();
        self.busy.clear();
        for (node, session) in self.sessions.iter().enumerate() {
            if let Some(session) = session {
                let classes = if node == 0 {
                    vec![]
                } else {
                    vec![CLASSES[1].into()]
                };
                self.leader.scheduler.connect(*session, classes);
            }
        }
    }

    /// All grants end well, all time passes: nothing may be left waiting.
    fn drain(&mut self) {
        self.open(0);
        for _ in 0..400 {
            self.leader.load();
            let bytes = u64::MAX;
            self.pick(0, Credit { items: 100, bytes });
            let proposed = !self.leader.proposed.is_empty();
            while !self.leader.proposed.is_empty() {
                self.leader.commit();
            }
            let leased = self.leader.leased();
            let idle = !proposed && leased.is_empty();
            leased
                .into_iter()
                .for_each(|grant| self.leader.settle(grant, None));
            if !idle {
                continue;
            }
            let Some((key, _)) = self.leader.world.rows.due().range(None, 1).pop() else {
                return;
            };
            // The scheduler says when there is something to do: when the first item is due, or within that minute if it lies behind
            // more urgent ones that a full lane left on disk.
            let wake = self.leader.scheduler.next_wake().expect("something waits");
            let minute_ends = (key.minute + 1) * 60_000;
            assert!(
                wake.0 < minute_ends.max(self.leader.world.now + 1),
                "sleeps until {wake:?}, {key:?} is due"
            );
            self.leader.world.now = self.leader.world.now.max(wake.0);
        }
        panic!(
            "left waiting: {:?}",
            self.leader.world.rows.due().range(None, 9)
        );
    }
}

const LIMITS: Limits = Limits {
    per_destination: 6,
    per_shard: 16,
};

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn all_that_waits_is_picked_once_when_it_may(ops in vec(op(), 1..150)) {
        let sessions = [None, None];
        let mut run = Run { leader: Leader::new(LIMITS), sessions, windows: Vec::new(), busy: Vec::new() };
        for op in &ops {
            run.step(op);
        }
        run.drain();
    }
}
