//! A leader and the streams of delivery nodes, over rows in memory: each proposal is applied at once, or fails.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mail::Ulid;
use proto::v1;
use proto::v1::lease_event::What;
use proto::v1::lease_request::What as Request;
use queue::{Command, ItemFacts, ItemId, MemoryRows, MessageFacts, Origin, Rows, State, Timestamp};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::event::{AppendWhat, Outgoing, Unreadable};
use crate::wire::log::{STATE_MACHINE_VERSION, decode};

impl ShardRows for MemoryRows {
    fn locate(&self, _: u64) -> Option<crate::log::Location> {
        None
    }
}

/// When the cluster's clock begins.
const WALL: u64 = 1_760_000_000_000;

struct World {
    leader: Leader,
    rows: MemoryRows,
    streams: Streams,
    bodies: BodyCache,
    now: Instant,
    index: u64,
    members_know: u32,
    out: Out,
    events: UnboundedReceiver<Outgoing>,
}

impl World {
    /// A leader with one stream, of a node that takes ten items.
    fn new() -> World {
        let mut rows = MemoryRows::default();
        let now = Instant::now();
        let config = LeaderConfig {
            group: 1,
            term: 1,
            policy: Policy {
                retry: queue::retry::Policy::default(),
                reporting_mta: "queue.example".into(),
            },
            seed: 1,
            tickets: Arc::default(),
        };
        let leader = Leader::elected(config, &mut rows, WALL, &[], now);
        let mut streams = Streams::default();
        let (to, events) = unbounded_channel();
        let hello = v1::LeaseHello {
            node: "delivery-1".into(),
            incarnation: Bytes::from_static(&[7; 16]),
            boot_id: "boot".into(),
        };
        streams.connected(1, &hello, to);
        let credit = v1::Credit {
            items: 10,
            bytes: 1 << 20,
            classes: Vec::new(),
        };
        streams.credit(1, &credit);
        let mut world = World {
            leader,
            rows,
            streams,
            bodies: BodyCache::new(1 << 20),
            now,
            index: 0,
            members_know: STATE_MACHINE_VERSION,
            out: Out::default(),
            events,
        };
        world.turn(|leader, turn| leader.begin(turn));
        world.rows.set_shard(queue::ShardState {
            version: STATE_MACHINE_VERSION,
            ..world.rows.shard()
        });
        world
    }

    fn turn<T>(&mut self, f: impl FnOnce(&mut Leader, &mut Turn<'_, MemoryRows>) -> T) -> T {
        let mut turn = Turn {
            rows: &mut self.rows,
            streams: &mut self.streams,
            bodies: &mut self.bodies,
            now: self.now,
            out: &mut self.out,
        };
        f(&mut self.leader, &mut turn)
    }

    /// Applies what was proposed; the commands.
    fn apply(&mut self) -> Vec<Command> {
        let mut commands = Vec::new();
        for proposal in std::mem::take(&mut self.out.proposals) {
            let facts = decode(&proposal.context, STATE_MACHINE_VERSION).unwrap();
            self.index += 1;
            let effects = queue::apply(&mut self.rows, self.index, &facts);
            let ticket = Some(proposal.ticket);
            self.turn(|leader, turn| leader.applied(ticket, &effects, turn));
            commands.push(facts.command);
        }
        commands
    }

    /// Two windows later.
    fn run(&mut self) -> Vec<Command> {
        self.now += 2 * WINDOW;
        let outside = Outside {
            wall_ms: WALL,
            members_know: self.members_know,
        };
        self.turn(|leader, turn| leader.run(outside, turn));
        self.apply()
    }

    fn ask(&mut self, request: Request) {
        self.turn(|leader, turn| leader.lease_request(1, request, turn));
    }

    /// What the node has heard.
    fn heard(&mut self) -> Vec<What> {
        let events = std::iter::from_fn(|| self.events.try_recv().ok());
        let what = events.filter_map(|outgoing| match outgoing {
            Outgoing::Event(event) | Outgoing::Read { event, .. } => event.what,
        });
        what.collect()
    }

    /// Opens a lease session; its id.
    fn open(&mut self, sequence: u64) -> u64 {
        self.ask(open(sequence));
        self.apply();
        let heard = self.heard();
        match &heard[..] {
            [.., What::Opened(opened)] if opened.sequence == sequence => opened.session,
            other => panic!("no lease session: {other:?}"),
        }
    }

    /// Appends a message; the express lane grants it at once.
    fn append(&mut self, number: u128) -> ItemId {
        let body = Bytes::from(format!("Subject: {number}\r\n\r\n"));
        let message = Ulid::from_parts(WALL, number << 8);
        let facts = MessageFacts {
            message,
            tenant: "default".into(),
            class: "default".into(),
            priority: 0,
            return_path: "".into(),
            items: vec![ItemFacts {
                destination: mail::Destination::from_canonical("example.net"),
                recipients: vec!["user@example.net".into()],
            }],
            size: body.len() as u64,
            digest: mail::Digest::of(&body),
            header_size: 0,
            eight_bit: false,
            smtputf8: false,
            chunks: 0,
            origin: Origin::default().into(),
            trace_context: "".into(),
            arrived: Timestamp(WALL),
        };
        let what = AppendWhat::Message {
            facts: Box::new(facts),
            body,
        };
        let (reply, _) = reply();
        self.turn(|leader, turn| leader.append(what, reply, false, turn));
        self.apply();
        ItemId { message, number: 0 }
    }
}

fn reply() -> (AppendReply, UnboundedReceiver<v1::AppendAnswer>) {
    let (to, answers) = unbounded_channel();
    let reply = AppendReply {
        request: 0,
        to,
        permit: None,
    };
    (reply, answers)
}

fn open(sequence: u64) -> Request {
    Request::Open(v1::OpenSession {
        shard: 0,
        holding: Vec::new(),
        sequence,
    })
}

/// Event by event: what the node hears of its requests to open.
fn answers(heard: &[What]) -> Vec<String> {
    let answer = |what: &What| match what {
        What::Opened(opened) => Some(format!("{} opened", opened.sequence)),
        What::NotOpened(refused) => Some(format!("{} not", refused.sequence)),
        What::Ended(_) => Some("ended".to_owned()),
        _ => None,
    };
    heard.iter().filter_map(answer).collect()
}

#[test]
fn each_request_to_open_has_its_own_answer() {
    let mut world = World::new();
    world.ask(open(1));
    world.ask(open(2));
    world.apply();
    assert_eq!(answers(&world.heard()), ["1 opened", "ended", "2 opened"]);
}

#[test]
fn a_request_to_open_that_comes_after_a_later_one_ends_nothing() {
    let mut world = World::new();
    let session = world.open(2);
    // On an old connection it was under way for long.
    world.ask(open(1));
    world.apply();
    assert_eq!(answers(&world.heard()), ["1 not"]);
    let session = queue::LeaseSessionId(session);
    assert!(world.rows.sessions().get(&session).is_some());
    assert!(world.streams.of(0, session).is_some(), "still its stream");
}

#[test]
fn a_node_hears_of_a_request_to_open_that_failed() {
    let mut world = World::new();
    world.ask(open(1));
    let lost = world.out.proposals.remove(0).ticket;
    let World {
        leader, streams, ..
    } = &mut world;
    leader.failed(lost, Failure::Unknown, "", streams);
    assert_eq!(answers(&world.heard()), ["1 not"]);
}

#[test]
fn a_body_that_cannot_be_read_is_looked_up_once_more_and_then_taken_back() {
    let mut world = World::new();
    let session = world.open(1);
    let item = world.append(1);
    let granted = |world: &mut World| match world.rows.items().get(&item).map(|i| i.state.clone()) {
        Some(State::Leased { token, .. }) => Some(token),
        _ => None,
    };
    let mut losses = 0;
    while let Some(token) = granted(&mut world) {
        let unreadable = |again| Unreadable {
            shard: 0,
            item,
            token,
            session: queue::LeaseSessionId(session),
            again,
            reason: "test".to_owned(),
        };
        world.heard();
        world.turn(|leader, turn| leader.unreadable(unreadable(false), turn));
        assert!(
            world.out.proposals.is_empty(),
            "the first time it is only looked up"
        );
        assert_eq!(world.heard().len(), 1, "and handed out again");
        let credit = |world: &mut World| world.streams.get(1).map(|s| s.credit_items);
        let before = credit(&mut world);
        world.turn(|leader, turn| leader.unreadable(unreadable(true), turn));
        world.apply();
        assert!(credit(&mut world) > before, "the node never saw it");
        losses += 1;
        assert!(losses < 20, "it spins");
        // By the schedule it is granted again, some minutes later.
        for _ in 0..1_000 {
            if granted(&mut world).is_some() {
                break;
            }
            world.now += Duration::from_secs(20);
            world.run();
            world.ask(Request::Keepalive(v1::Keepalive {
                shard: 0,
                session,
                sequence: 1,
            }));
            world.run();
        }
    }
    let state = world.rows.items().get(&item).map(|i| i.state.clone());
    assert!(matches!(state, Some(State::Held { .. })), "{state:?}");
    assert_eq!(losses, 5);
}

#[test]
fn the_version_goes_up_when_every_voter_knows_it_and_digests_begin_then() {
    let mut world = World::new();
    world.rows.set_shard(queue::ShardState::default());
    world.members_know = 1;
    let upkeep = |world: &mut World| {
        world.now += Duration::from_secs(20);
        let commands = world.run();
        commands.into_iter().find(|c| c.since() > 1)
    };
    assert_eq!(upkeep(&mut world), None, "one voter's program is older");
    world.members_know = 2;
    let raised = upkeep(&mut world);
    assert_eq!(raised, Some(Command::SetVersion { version: 2 }));
    assert_eq!(world.rows.shard().version_in_force(), 2);
    let from = |world: &mut World| match upkeep(world) {
        Some(Command::VerifyDigest { from, .. }) => Some(from.to_vec()),
        None => None,
        Some(other) => panic!("{other:?}"),
    };
    assert_eq!(from(&mut world), Some(Vec::new()));
    let now = world.now;
    world.leader.digested(&[3, 1], now);
    assert_eq!(from(&mut world), Some(vec![3, 1]), "it goes on there");
    world.leader.digested(&[], now);
    assert_eq!(from(&mut world), None, "a pass is followed by a pause");
}

#[test]
fn chunks_of_many_uploads_take_turns_and_few_are_in_flight() {
    let mut world = World::new();
    let mut replies = Vec::new();
    for upload in 1..=6_u128 {
        let (reply, answers) = reply();
        let what = AppendWhat::Chunk {
            message: Ulid::from_parts(WALL, upload << 8),
            seq: 0,
            data: Bytes::from_static(b"octets"),
        };
        world.turn(|leader, turn| leader.append(what, reply, false, turn));
        replies.push(answers);
    }
    assert_eq!(world.out.proposals.len(), chunks::CHUNKS_IN_FLIGHT_MAX);
    world.apply();
    world.run();
    let outcomes = replies
        .iter_mut()
        .map(|r| r.try_recv().map(|a| a.outcome()));
    let stored = Ok(v1::AppendOutcome::ChunkStored);
    assert_eq!(outcomes.filter(|o| *o == stored).count(), 6);
}

/// The grants of a window that was not over took its end with them: settles that were gathered in it waited until
/// something else woke the leader, up to five seconds.
#[test]
fn settles_leave_with_their_window_also_when_grants_leave_before() {
    let mut world = World::new();
    let session = world.open(1);
    let granted = |world: &mut World, item: &ItemId| match world.rows.items().get(item)?.state {
        State::Leased { token, .. } => Some(token),
        _ => None,
    };
    let first = world.append(1);
    let token = granted(&mut world, &first).unwrap();
    while world.streams.get(1).is_some_and(|s| s.credit_items > 0) {
        let next = 2 + u128::from(world.index);
        world.append(next);
    }
    let waits = world.append(1_000_000);
    assert_eq!(granted(&mut world, &waits), None);
    let (to, mut answers) = unbounded_channel();
    let call = crate::event::SettleCall {
        shard: 0,
        item: queue::SettleItem {
            item: first,
            token,
            session: queue::LeaseSessionId(session),
            release: true,
            results: Vec::new(),
            retry: None,
            give_up: false,
            reports: Vec::new(),
        },
        reply: crate::event::SettleReply {
            request: 1,
            to,
            permit: None,
        },
    };
    world.turn(|leader, turn| leader.settle(call, turn));
    let credit = v1::Credit {
        items: 1,
        bytes: 1 << 20,
        classes: Vec::new(),
    };
    world.streams.credit(1, &credit);
    let outside = Outside {
        wall_ms: WALL,
        members_know: world.members_know,
    };
    world.turn(|leader, turn| leader.run(outside, turn));
    world.apply();
    assert!(
        granted(&mut world, &waits).is_some(),
        "its grant did not wait"
    );
    assert!(answers.try_recv().is_err(), "the window is not over");
    let wake = world.leader.next_wake(&world.streams, world.now);
    assert!(wake <= world.now + WINDOW, "{:?}", wake - world.now);
    world.run();
    assert_eq!(
        answers.try_recv().unwrap().outcome(),
        v1::SettleOutcome::Applied
    );
}

/// 64 a second was all: the notices of a million parked messages would have held up expiries for hours.
#[test]
fn what_is_due_at_once_is_worked_off_in_one_go() {
    let mut world = World::new();
    for number in 1..=300 {
        world.append(number);
    }
    world.now += Duration::from_secs(5 * 86_400 + 60);
    let mut expired = 0;
    let outside = Outside {
        wall_ms: WALL,
        members_know: world.members_know,
    };
    // No time passes: only entries are applied.
    for _ in 0..40 {
        world.turn(|leader, turn| leader.run(outside, turn));
        let commands = world.apply();
        let timers = commands
            .iter()
            .filter(|c| matches!(c, Command::ItemTimer(_)));
        expired += timers.count();
    }
    assert_eq!(expired, 300);
}

#[test]
fn an_abandoned_upload_makes_room_at_once_and_a_message_is_not_touched() {
    let mut world = World::new();
    let message = Ulid::from_parts(WALL, 1 << 8);
    let ask = |world: &mut World, what| {
        let (reply, mut answers) = reply();
        world.turn(|leader, turn| leader.append(what, reply, false, turn));
        world.apply();
        world.run();
        answers.try_recv().map(|answer| answer.outcome())
    };
    let chunk = AppendWhat::Chunk {
        message,
        seq: 0,
        data: Bytes::from_static(b"octets"),
    };
    let stored = ask(&mut world, chunk);
    assert_eq!(stored, Ok(v1::AppendOutcome::ChunkStored));
    assert_eq!(world.rows.shard().upload_bytes, 6);
    let gone = Ok(v1::AppendOutcome::UploadGone);
    assert_eq!(ask(&mut world, AppendWhat::Abandon(message)), gone);
    assert_eq!(world.rows.shard().upload_bytes, 0);
    assert!(world.rows.uploads().get(&message).is_none());
    assert!(world.rows.messages().get(&message).is_none());
    // Once more, as after a lost answer.
    assert_eq!(ask(&mut world, AppendWhat::Abandon(message)), gone);
    let item = world.append(2);
    assert_eq!(ask(&mut world, AppendWhat::Abandon(item.message)), gone);
    assert!(world.rows.messages().get(&item.message).is_some());
}
