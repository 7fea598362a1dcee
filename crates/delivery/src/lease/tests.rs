//! Conversations between the lease side and a queue node: what is sent, and when the node falls silent.

use super::*;
use crate::hand::FENCE;
use crate::hand::tests::{handout, item};

const QUEUE: &str = "10.0.0.1:7100";
const OTHER: &str = "10.0.0.2:7100";

/// A node with one shard, its stream and the clock.
struct World {
    leases: Leases,
    hand: Hand,
    now: Instant,
    link: u64,
}

impl World {
    fn new() -> World {
        World {
            leases: Leases::new(KEEPALIVE_EVERY),
            hand: Hand::new(FENCE),
            now: Instant::now(),
            link: 0,
        }
    }

    /// A node whose lease session 5 of shard 0 is open.
    fn open() -> World {
        let mut world = World::new();
        world.lead(QUEUE);
        assert_eq!(world.link(QUEUE), ["open []"]);
        assert_eq!(world.hear(opened(5, &[])), ["credit"]);
        world
    }

    fn lead(&mut self, address: &str) -> Vec<String> {
        self.leases.topology(&[(0, Some(address.into()))], 1)
    }

    fn link(&mut self, address: &str) -> Vec<String> {
        self.link = self.leases.link_up(address, &mut self.hand);
        self.tick(Vec::new())
    }

    fn hints(&mut self, room: usize) -> Vec<String> {
        let hints = self.leases.hints(QUEUE, room, self.now);
        hints.iter().map(say).collect()
    }

    fn hear(&mut self, what: Event) -> Vec<String> {
        let mut out = Vec::new();
        let event = v1::LeaseEvent {
            shard: 0,
            what: Some(what),
        };
        self.leases
            .event(self.link, event, &mut self.hand, self.now, &mut out);
        self.tick(out)
    }

    fn pass(&mut self, time: Duration) -> Vec<String> {
        self.now += time;
        self.tick(Vec::new())
    }

    fn tick(&mut self, mut out: Vec<Effect>) -> Vec<String> {
        self.leases.tick(&mut self.hand, self.now, &mut out);
        out.iter().map(say).collect()
    }
}

/// An effect in a few words.
fn say(effect: &Effect) -> String {
    let list = |holding: &[v1::HeldItem]| {
        let mut held: Vec<_> = holding
            .iter()
            .map(|held| {
                (
                    ItemId::from_wire(held.item.as_ref()).map_or(0, |item| item.number),
                    held.token,
                    held.past_dot,
                )
            })
            .map(|(number, token, past_dot)| {
                format!("{number}@{token}{}", if past_dot { "!" } else { "" })
            })
            .collect();
        held.sort();
        format!("[{}]", held.join(" "))
    };
    match effect {
        Effect::Send(_, Request::Open(open)) => format!("open {}", list(&open.holding)),
        Effect::Send(_, Request::Reattach(again)) => {
            format!("reattach {} {}", again.session, list(&again.holding))
        }
        Effect::Send(_, Request::Keepalive(keep)) => format!("keepalive {}", keep.sequence),
        Effect::Send(_, Request::Credit(credit)) => match credit.items {
            ITEMS_IN_HAND_MAX => "credit".into(),
            items => format!("credit {items}"),
        },
        Effect::Send(_, Request::Extend(extend)) => format!("extend {}", list(&extend.items)),
        Effect::Send(_, Request::Window(window)) => {
            format!("window {} {}", window.destination, window.items)
        }
        Effect::Send(_, Request::Busy(busy)) => {
            format!("busy {} {}", busy.destination, busy.for_ms)
        }
        Effect::Send(_, Request::Hello(_)) => "hello".into(),
        Effect::Work(_, handout) => format!(
            "work {}@{}",
            handout.item.as_ref().map_or(0, |item| item.number),
            handout.token
        ),
        Effect::Recalled(request) => format!("recalled @{}", request.token),
        Effect::Forgotten(item) => format!("forgotten {}", item.number),
        Effect::Release { item, token, .. } => format!("release {}@{token}", item.number),
    }
}

/// The answer to the first OpenSession.
fn opened(session: u64, kept: &[(u32, u64)]) -> Event {
    answered(1, session, kept)
}

fn answered(sequence: u64, session: u64, kept: &[(u32, u64)]) -> Event {
    let kept = kept.iter().map(|(number, token)| v1::HeldItem {
        item: Some(item(*number).to_wire()),
        token: *token,
        past_dot: true,
    });
    Event::Opened(v1::SessionOpened {
        session,
        ttl_ms: 30_000,
        kept: kept.collect(),
        sequence,
    })
}

fn work(number: u32, token: u64) -> Event {
    Event::Handout(handout(number, token, 5, &[0]))
}

fn kept(sequence: u64) -> Event {
    Event::KeptAlive(v1::KeptAlive {
        session: 5,
        sequence,
    })
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn twenty_seconds_without_an_answer_end_the_session_for_good() {
    let mut world = World::open();
    assert_eq!(world.hear(work(1, 7)), ["work 1@7"]);
    assert_eq!(world.hear(work(2, 7)), ["work 2@7"]);
    world.hand.begin(item(1), world.now).expect("live");
    world.hand.pass_dot(item(1), world.now).expect("live");
    for sequence in 1..=3 {
        assert_eq!(world.pass(5 * SECOND), [format!("keepalive {sequence}")]);
    }
    // What is past its dot is named when a new lease session is asked for; what never began is not.
    assert_eq!(world.pass(5 * SECOND), ["open [1@7!]"]);
    assert!(world.hand.begin(item(2), world.now).is_err());
    // An answer to an old keepalive does not wake it up again.
    assert!(world.hear(kept(3)).is_empty());
    assert!(world.hand.begin(item(2), world.now).is_err());
    assert!(!world.leases.ready());
    assert!(world.hear(answered(2, 9, &[(1, 11)])).is_empty());
    assert_eq!(
        world.hand.settle(item(1), true),
        Some((11, 9)),
        "settled under the new token"
    );
}

#[test]
fn an_answer_counts_from_when_its_question_was_sent() {
    let mut world = World::open();
    world.pass(5 * SECOND);
    world.pass(5 * SECOND);
    // The answer to the first comes late.
    world.hear(kept(1));
    world.now += 14 * SECOND;
    assert!(world.hand.live(0, world.now).is_some());
    world.now += SECOND;
    assert_eq!(
        world.hand.live(0, world.now),
        None,
        "twenty seconds after the first was sent"
    );
}

#[test]
fn a_new_leader_hears_of_the_same_session_with_all_that_is_held() {
    let mut world = World::open();
    world.hear(work(1, 7));
    world.hear(work(2, 8));
    world.hand.begin(item(2), world.now).expect("live");
    world.hand.pass_dot(item(2), world.now).expect("live");
    assert_eq!(world.lead(OTHER), [OTHER]);
    assert!(
        world.pass(SECOND).is_empty(),
        "without a stream there is nobody to tell"
    );
    assert_eq!(
        world.link(OTHER),
        ["reattach 5 [1@7 2@8!]", "keepalive 1", "credit"]
    );
    // It does not lead yet, or no more: asked again a little later.
    assert!(
        world
            .hear(Event::NotLeader(v1::NotLeader::default()))
            .is_empty()
    );
    assert_eq!(
        world.pass(RETRY_AFTER),
        ["reattach 5 [1@7 2@8!]", "keepalive 2"]
    );
    // It sends once more what it knows not to be held; what is held is not begun twice.
    assert_eq!(world.hear(work(1, 7)), ["credit 1"]);
    assert_eq!(world.hear(work(3, 9)), ["work 3@9"]);
}

/// A leader was stopped (SIGSTOP) between the commit of a grant and its hand-out. Its successor gave the item, which was
/// delivered and settled; then the old one went on, its streams still open, and handed the item out as well.
#[test]
fn what_a_deposed_leader_hands_out_is_not_worked_on() {
    let mut world = World::open();
    let old = world.link;
    world.lead(OTHER);
    world.link(OTHER);
    assert_eq!(world.hear(work(1, 7)), ["work 1@7"]);
    world.hand.settle(item(1), true);
    world.hand.settled(item(1), 7);
    assert_eq!(world.pass(SECOND), ["credit 1"]);
    let new = std::mem::replace(&mut world.link, old);
    assert!(world.hear(work(1, 7)).is_empty(), "settled");
    assert!(world.hear(work(2, 8)).is_empty(), "never seen before");
    world.link = new;
    assert_eq!(world.hear(work(2, 8)), ["work 2@8"], "the successor's");
}

#[test]
fn a_grant_that_is_over_is_not_worked_on_again_whoever_hands_it_out() {
    let mut world = World::open();
    world.hear(work(1, 7));
    world.hand.settle(item(1), false);
    world.hand.settled(item(1), 7);
    assert_eq!(world.hear(work(1, 7)), ["credit 2"]);
    assert_eq!(world.hear(work(1, 6)), ["credit 1"]);
    assert_eq!(world.hear(work(1, 9)), ["work 1@9"], "the next attempt");
}

#[test]
fn a_session_that_the_queue_ended_is_replaced() {
    let mut world = World::open();
    world.hear(work(1, 7));
    let ended = Event::Ended(v1::SessionEnded {
        session: 5,
        reason: "expired".into(),
    });
    assert!(world.hear(ended.clone()).is_empty());
    assert!(world.hand.begin(item(1), world.now).is_err());
    assert_eq!(world.pass(RETRY_AFTER), ["open []"]);
    // A hand-out of the dead session that was still on its way goes back.
    assert_eq!(world.hear(work(2, 8)), ["release 2@8"]);
}

#[test]
fn only_the_answer_to_the_last_request_to_open_counts() {
    let mut world = World::new();
    world.lead(QUEUE);
    assert_eq!(world.link(QUEUE), ["open []"]);
    // No answer for so long that it is sent again. The first one commits late: its lease session is ended by the second.
    assert_eq!(world.pass(Duration::from_secs(10)), ["open []"]);
    assert!(world.hear(answered(1, 5, &[])).is_empty());
    assert!(!world.leases.ready(), "session 5 is void");
    assert_eq!(
        world.hear(Event::Handout(handout(1, 7, 5, &[0]))),
        ["release 1@7"],
        "nothing is sent under it"
    );
    assert_eq!(world.hear(answered(2, 6, &[])), ["credit"]);
    assert_eq!(
        world.hear(Event::Handout(handout(1, 8, 6, &[0]))),
        ["work 1@8"]
    );
}

#[test]
fn a_request_to_open_that_failed_is_sent_again_at_once() {
    let mut world = World::new();
    world.lead(QUEUE);
    assert_eq!(world.link(QUEUE), ["open []"]);
    let failed = |sequence| {
        Event::NotOpened(v1::SessionNotOpened {
            sequence,
            leader_address: String::new(),
        })
    };
    assert!(world.hear(failed(1)).is_empty());
    assert_eq!(world.pass(RETRY_AFTER), ["open []"]);
    assert!(world.hear(failed(1)).is_empty(), "an old refusal");
    assert!(
        world.pass(RETRY_AFTER).is_empty(),
        "the second is still open"
    );
    assert_eq!(world.hear(answered(2, 6, &[])), ["credit"]);
}

#[test]
fn still_working_is_answered_for_what_is_in_hand_and_denied_for_the_rest() {
    let mut world = World::open();
    world.hear(work(1, 7));
    let asked = |number: u32, token: u64| {
        Event::StillWorking(v1::StillWorking {
            item: Some(item(number).to_wire()),
            token,
        })
    };
    assert_eq!(world.hear(asked(1, 7)), ["extend [1@7]"]);
    assert_eq!(world.hear(asked(1, 6)), ["release 1@6"]);
    assert_eq!(world.hear(asked(2, 9)), ["release 2@9"]);
}

#[test]
fn what_the_journal_knows_is_settled_first_and_then_claimed() {
    let mut world = World::new();
    let if_lost = |number: u32| v1::SettleRequest {
        item: Some(item(number).to_wire()),
        token: 3,
        ..Default::default()
    };
    // The third one was past the dot of a second transaction: a recipient of the first has it.
    let mut delivered = v1::RecipientResult::default();
    delivered.set_verdict(v1::Verdict::Delivered);
    let partly = v1::SettleRequest {
        results: vec![delivered],
        ..if_lost(3)
    };
    for (number, if_lost) in [(1, if_lost(1)), (2, if_lost(2)), (3, partly)] {
        world
            .hand
            .recall(item(number), &if_lost, crate::hand::Stage::PastDot);
        world.leases.recall(0, item(number), if_lost);
    }
    world.leases.settle_first(0);
    world.lead(QUEUE);
    assert!(
        world.link(QUEUE).is_empty(),
        "the journal's results go first"
    );
    world.leases.settled_first(0);
    assert_eq!(world.pass(SECOND), ["open [1@3! 2@3! 3@3!]"]);
    // The queue kept one; the others were freed long ago. A success is told all the same.
    assert_eq!(
        world.hear(opened(5, &[(2, 9)])),
        ["recalled @9", "forgotten 1", "recalled @3", "credit"]
    );
}

#[test]
fn what_is_in_hand_of_a_broken_stream_is_charged_to_the_next_one() {
    let mut world = World::open();
    world.hear(work(1, 7));
    world.hand.settle(item(1), true);
    world.hand.settled(item(1), 7);
    assert_eq!(world.pass(SECOND), ["credit 1"]);
    for number in 2..=4 {
        world.hear(work(number, 8));
    }
    for sequence in 1..=3 {
        let old = world.link;
        world.leases.link_down(QUEUE, old);
        assert_eq!(
            world.link(QUEUE),
            [
                "reattach 5 [2@8 3@8 4@8]".to_string(),
                format!("keepalive {sequence}"),
                format!("credit {}", ITEMS_IN_HAND_MAX - 3),
            ],
            "however often the stream breaks"
        );
    }
    world.hand.settle(item(2), true);
    world.hand.settled(item(2), 8);
    assert_eq!(world.pass(SECOND), ["credit 1"], "on the stream of now");
}

#[test]
fn a_new_stream_hears_of_destinations_after_all_else_and_as_room_allows() {
    let mut world = World::open();
    world.leases.window("d.example", 64);
    world.leases.window("d.example", 64);
    world.leases.busy("dead.example", 10 * SECOND, world.now);
    assert_eq!(
        world.hints(9),
        ["window d.example 64", "busy dead.example 10000"]
    );
    world.now += 4 * SECOND;
    assert_eq!(
        world.link(QUEUE),
        ["reattach 5 []", "keepalive 1", "credit"]
    );
    assert_eq!(world.hints(0), [""; 0]);
    assert_eq!(world.hints(1), ["window d.example 64"]);
    assert_eq!(world.hints(1), ["busy dead.example 6000"]);
    assert_eq!(world.hints(1), [""; 0]);
    // A destination that is as any other again is said once and then forgotten.
    world.leases.window("d.example", WINDOW_DEFAULT);
    assert_eq!(world.hints(9), ["window d.example 20"]);
    world.now += 10 * SECOND;
    world.link(QUEUE);
    assert_eq!(world.hints(9), [""; 0]);
}

#[test]
fn a_back_off_is_told_to_a_lease_session_that_opens_later() {
    let mut world = World::new();
    world.lead(QUEUE);
    world.link(QUEUE);
    world.leases.busy("dead.example", 10 * SECOND, world.now);
    assert_eq!(world.hints(9), ["busy dead.example 10000"]);
    world.hear(opened(5, &[]));
    assert_eq!(world.hints(9), ["busy dead.example 10000"]);
}

#[test]
fn back_offs_that_are_over_are_forgotten() {
    let mut world = World::open();
    for number in 0..100 {
        let destination = format!("d{number}.example");
        world.leases.busy(&destination, SECOND, world.now);
    }
    world.pass(120 * SECOND);
    assert!(world.leases.busy.is_empty());
}

#[test]
fn a_leaving_node_keeps_its_sessions_and_takes_nothing() {
    let mut world = World::open();
    world.leases.leave();
    assert!(!world.leases.ready());
    assert_eq!(world.pass(5 * SECOND), ["keepalive 1"]);
    assert!(world.pass(FENCE).is_empty(), "no new lease session");
}
