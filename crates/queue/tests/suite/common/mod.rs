//! What the tests of the state machine share: short ways to say a command, and what must hold after each entry.

use std::collections::BTreeMap;
use std::sync::Arc;

use mail::{Destination, Digest, Ulid};
use queue::*;

/// Cluster time at which the tests begin: 2023, so that ULIDs have a time to lie around.
pub const START_MS: u64 = 1_700_000_000_000;

pub fn ulid(time_ms: u64, n: u128) -> Ulid {
    Ulid::from_parts(time_ms, n)
}

pub fn destination(name: &str) -> Destination {
    Destination::from_canonical(name)
}

/// A message with items of so many recipients each, all to `destinations` in turn.
pub fn message(id: Ulid, items: &[(&str, usize)]) -> MessageFacts {
    let item = |(n, (domain, recipients)): (usize, &(&str, usize))| ItemFacts {
        destination: destination(domain),
        recipients: (0..*recipients)
            .map(|r| Arc::from(format!("r{n}{r}@{domain}")))
            .collect(),
    };
    MessageFacts {
        message: id,
        tenant: "default".into(),
        class: "default".into(),
        priority: 0,
        return_path: "sender@example.com".into(),
        items: items.iter().enumerate().map(item).collect(),
        size: 100,
        digest: Digest([0; 16]),
        header_size: 10,
        eight_bit: false,
        smtputf8: false,
        chunks: 0,
        origin: Arc::default(),
        trace_context: "".into(),
        arrived: Timestamp(0),
    }
}

pub fn append(facts: MessageFacts, expires: Timestamp) -> Append {
    Append {
        facts,
        expires,
        notice: None,
        grant_to: Vec::new(),
    }
}

pub fn result(recipient: u32, verdict: Verdict) -> RecipientResult {
    let (code, enhanced) = match verdict {
        Verdict::Delivered => (250, "2.0.0"),
        Verdict::Deferred => (451, "4.7.1"),
        Verdict::Failed => (550, "5.1.1"),
    };
    RecipientResult {
        recipient,
        verdict,
        code,
        enhanced: enhanced.into(),
        text: format!("said {code}").into(),
        remote_host: "mx.example".into(),
        remote_address: "192.0.2.1:25".into(),
        tls: "".into(),
        connect_ms: 1,
        total_ms: 2,
        dkim_selectors: Vec::new(),
        never_reached: false,
        ambiguous: false,
    }
}

pub fn report(id: Ulid) -> Report {
    let facts = MessageFacts {
        return_path: "".into(),
        size: 40,
        ..message(id, &[("example.com", 1)])
    };
    Report {
        facts,
        offset: 0,
        expires: Timestamp(u64::MAX / 2),
    }
}

/// A shard, entry after entry.
#[derive(Clone, Default)]
pub struct World {
    pub rows: MemoryRows,
    pub index: u64,
    pub now: u64,
    /// Every entry so far.
    pub log: Vec<(u64, Facts)>,
    /// Extents that were kept and not dropped.
    pub bodies: BTreeMap<(u64, u64), Extent>,
}

impl World {
    pub fn new() -> World {
        World {
            now: START_MS,
            ..World::default()
        }
    }

    pub fn apply(&mut self, command: Command) -> Vec<Effect> {
        self.index += 1;
        let facts = Facts {
            time: Timestamp(self.now),
            command,
        };
        let effects = apply(&mut self.rows, self.index, &facts);
        self.log.push((self.index, facts));
        for effect in &effects {
            match effect {
                Effect::BodyKept(extent) => {
                    let before = self.bodies.insert((extent.index, extent.offset), *extent);
                    assert_eq!(before, None, "kept twice");
                }
                Effect::BodyDropped(extent) => {
                    let before = self.bodies.remove(&(extent.index, extent.offset));
                    assert_eq!(before, Some(*extent), "dropped what was not kept");
                }
                _ => {}
            }
        }
        effects
    }

    /// All that must hold between two entries.
    pub fn check(&mut self) {
        let rows = &mut self.rows;
        let all = usize::MAX;
        let (mut due, mut inflight, mut held, mut timers) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut counts: BTreeMap<Destination, DestinationCounts> = BTreeMap::new();
        let mut left: BTreeMap<Ulid, u32> = BTreeMap::new();
        let mut recipients = 0;
        for (id, item) in rows.items().range(None, all) {
            let message = rows
                .messages()
                .get(&id.message)
                .expect("an item has a message");
            *left.entry(id.message).or_default() += 1;
            let count = counts.entry(item.destination.clone()).or_default();
            match &item.state {
                State::Waiting { due: at } => {
                    due.push(DueKey::new(
                        id,
                        &message.class,
                        &item.destination,
                        message.priority,
                        *at,
                    ));
                    timers.push(TimerKey {
                        at: item.timer,
                        item: id,
                    });
                    count.waiting += 1;
                }
                State::Leased { session, .. } => {
                    assert!(
                        rows.sessions().get(session).is_some(),
                        "leased to nobody: {id:?}"
                    );
                    inflight.push((*session, id));
                    count.leased += 1;
                }
                State::Held { .. } => {
                    held.push(id);
                    count.held += 1;
                }
            }
            let open = (0..item.recipients).filter(|number| {
                let row = rows
                    .recipients()
                    .get(&RecipientId {
                        item: id,
                        number: *number,
                    })
                    .expect("a recipient's row");
                row.result
                    .as_ref()
                    .is_none_or(|result| result.verdict == Verdict::Deferred)
            });
            assert_eq!(open.count(), item.recipients_left as usize, "{id:?}");
            assert!(
                item.recipients_left > 0,
                "nothing left of {id:?}, and it lives"
            );
            recipients += item.recipients as usize;
        }
        due.sort();
        inflight.sort();
        timers.sort();
        assert_eq!(keys(rows.due().range(None, all)), due);
        assert_eq!(keys(rows.inflight().range(None, all)), inflight);
        assert_eq!(keys(rows.held().range(None, all)), held);
        assert_eq!(keys(rows.timers().range(None, all)), timers);
        assert_eq!(rows.recipients().range(None, all).len(), recipients);
        let found: Vec<_> = rows
            .destinations()
            .range(None, all)
            .into_iter()
            .map(|(k, v)| (k, *v))
            .collect();
        assert_eq!(found, counts.into_iter().collect::<Vec<_>>());
        let shard = rows.shard();
        assert_eq!(
            (shard.waiting, shard.leased, shard.held),
            (due.len() as u64, inflight.len() as u64, held.len() as u64)
        );
        self.check_messages(left);
    }

    fn check_messages(&mut self, left: BTreeMap<Ulid, u32>) {
        let (rows, all) = (&mut self.rows, usize::MAX);
        let messages = rows.messages().range(None, all);
        assert_eq!(
            messages
                .iter()
                .map(|(id, m)| (*id, m.items_left))
                .collect::<BTreeMap<_, _>>(),
            left
        );
        let uploads = rows.uploads().range(None, all);
        let mut bodies: Vec<Extent> = messages.iter().flat_map(|(_, m)| m.body.clone()).collect();
        bodies.extend(uploads.iter().flat_map(|(_, upload)| upload.chunks.clone()));
        bodies.sort_by_key(|extent| (extent.index, extent.offset));
        assert_eq!(
            bodies,
            self.bodies.values().copied().collect::<Vec<_>>(),
            "what is kept is what is referred to"
        );
        let shard = rows.shard();
        assert_eq!(shard.messages, messages.len() as u64);
        assert_eq!(
            shard.bytes,
            messages.iter().map(|(_, m)| m.size).sum::<u64>()
        );
        assert_eq!(
            shard.upload_bytes,
            uploads.iter().map(|(_, upload)| upload.bytes).sum::<u64>()
        );
        for (id, _) in rows.finished().range(None, all) {
            assert!(
                rows.messages().get(&id).is_none(),
                "{id:?} lives and is finished"
            );
        }
        for (key, _) in rows.forgets().range(None, all) {
            assert!(
                rows.finished().get(&key.message).is_some(),
                "{key:?} forgets nothing"
            );
        }
    }
}

pub fn keys<K, V>(rows: Vec<(K, V)>) -> Vec<K> {
    rows.into_iter().map(|(key, _)| key).collect()
}
