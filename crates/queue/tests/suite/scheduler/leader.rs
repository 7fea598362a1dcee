//! What the tests of the scheduler lead: a shard and what is proposed to it.

use queue::scheduler::{Credit, Limits, Scheduler};
use queue::*;

use crate::common::{START_MS, World, append, message, result, ulid};

/// What every item takes of the credit, octets.
pub const SIZE: u64 = 100;

/// A leader: a shard, its scheduler, and grants that are proposed and not applied yet.
pub struct Leader {
    pub world: World,
    pub scheduler: Scheduler,
    pub proposed: Vec<(LeaseSessionId, Vec<ItemId>)>,
    pub appended: u128,
}

impl Leader {
    pub fn new(limits: Limits) -> Leader {
        let mut world = World::new();
        let scheduler = Scheduler::start(&mut world.rows, limits);
        Leader {
            world,
            scheduler,
            proposed: Vec::new(),
            appended: 0,
        }
    }

    pub fn now(&self) -> Timestamp {
        Timestamp(self.world.now)
    }

    pub fn apply(&mut self, command: Command) -> Vec<Effect> {
        let effects = self.world.apply(command);
        effects
            .iter()
            .for_each(|effect| self.scheduler.observe(effect));
        effects
    }

    pub fn append(&mut self, domain: &str, class: &str, priority: i8) -> ItemId {
        self.appended += 1;
        let id = ulid(START_MS, self.appended);
        let facts = MessageFacts {
            class: class.into(),
            priority,
            ..message(id, &[(domain, 1)])
        };
        self.apply(Command::Append(Box::new(append(
            facts,
            Timestamp(u64::MAX),
        ))));
        ItemId {
            message: id,
            number: 0,
        }
    }

    pub fn open(&mut self, node: &str, classes: &[&str]) -> LeaseSessionId {
        let open = OpenSession {
            node: node.into(),
            incarnation: [0; 16],
            sequence: 0,
            boot_id: "boot".into(),
            past_dot: Vec::new(),
            handed_back: Vec::new(),
            retry: self.now().plus(60_000),
        };
        self.apply(Command::OpenSession(open));
        let session = LeaseSessionId(self.world.index);
        self.scheduler.connect(
            session,
            classes.iter().map(|class| (*class).into()).collect(),
        );
        session
    }

    pub fn load(&mut self) {
        let now = self.now();
        while self.scheduler.load(&mut self.world.rows, now) {}
    }

    pub fn pick(&mut self, session: LeaseSessionId, items: usize) -> Vec<ItemId> {
        let bytes = u64::MAX;
        self.pick_within(session, Credit { items, bytes })
    }

    /// Each item is [`SIZE`] octets long.
    pub fn pick_within(&mut self, session: LeaseSessionId, credit: Credit) -> Vec<ItemId> {
        let now = self.now();
        let picked = self.scheduler.pick(now, session, credit, |_| SIZE);
        if !picked.is_empty() {
            self.proposed.push((session, picked.clone()));
        }
        picked
    }

    /// Applies the oldest proposed grant.
    pub fn commit(&mut self) {
        if self.proposed.is_empty() {
            return;
        }
        let (session, items) = self.proposed.remove(0);
        let deadline = self.now().plus(600_000);
        let items = items.into_iter().map(|item| (item, deadline)).collect();
        self.apply(Command::Window(Window {
            grants: vec![GrantBatch { session, items }],
            ..Window::default()
        }));
    }

    pub fn leased(&mut self) -> Vec<(ItemId, LeaseSessionId, Token)> {
        let rows = self.world.rows.inflight().range(None, usize::MAX);
        rows.into_iter()
            .map(|((session, item), row)| (item, session, row.token))
            .collect()
    }

    pub fn settle(
        &mut self,
        (item, session, token): (ItemId, LeaseSessionId, Token),
        retry: Option<Timestamp>,
    ) {
        let verdict = if retry.is_some() {
            Verdict::Deferred
        } else {
            Verdict::Delivered
        };
        self.apply(Command::Settle(vec![SettleItem {
            item,
            token,
            session,
            release: false,
            results: vec![result(0, verdict)],
            retry,
            give_up: false,
            reports: Vec::new(),
        }]));
    }
}
