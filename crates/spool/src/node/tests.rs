//! Conversations with one group, or three in a room; the simulation in `tests/sim` has the storms.

use bytes::Bytes;
use raft::eraftpb::{Message, MessageType};

use super::*;
use crate::log::{HardState, Location};
use crate::storage::{CacheBudget, GroupLog};

mod full;
mod snapshot;

fn members(voters: &[u64]) -> Membership {
    Membership {
        voters: voters.to_vec(),
        ..Membership::default()
    }
}

pub(super) fn config(peer: u64, voters: &[u64]) -> GroupConfig {
    // Peer 1 campaigns first.
    let timeout = 9 + peer as usize;
    GroupConfig {
        election_ticks: timeout..timeout + 1,
        ..GroupConfig::new(1, peer, members(voters))
    }
}

pub(super) fn group(config: GroupConfig, cache_bytes: usize) -> Group {
    let log = GroupLog::new(CacheBudget::new(cache_bytes));
    Group::new(config, log, HardState::default(), 0).expect("an empty disk is a good start")
}

pub(super) fn proposal(ticket: u64, octets: usize) -> Proposal {
    Proposal {
        ticket,
        context: Bytes::from_static(b"command"),
        data: Bytes::from(vec![b'x'; octets]),
        ack: Ack::Commit,
        urgent: false,
    }
}

/// Groups in one room: every message arrives, every write is durable at once, unless a disk hangs.
pub(super) struct Room {
    pub(super) groups: Vec<Group>,
    /// Neither hears nor says anything any more, and its clock stands.
    pub(super) dead: Option<usize>,
    hung: Option<usize>,
    deaf: Option<usize>,
    events: Vec<(usize, Action)>,
    /// Who wrote entries, and whether they were urgent.
    written: Vec<(usize, bool)>,
}

impl Room {
    pub(super) fn new(groups: Vec<Group>) -> Room {
        Room {
            groups,
            dead: None,
            hung: None,
            deaf: None,
            events: Vec::new(),
            written: Vec::new(),
        }
    }

    fn of_three() -> Room {
        Room::new(
            (1..=3)
                .map(|peer| group(config(peer, &[1, 2, 3]), 1 << 20))
                .collect(),
        )
    }

    pub(super) fn handle(&mut self, k: usize, input: Input) {
        self.groups[k].handle(input);
        self.settle();
    }

    pub(super) fn tick(&mut self, times: usize) {
        for _ in 0..times {
            for (k, group) in self.groups.iter_mut().enumerate() {
                if self.dead != Some(k) {
                    group.handle(Input::Tick);
                }
            }
            self.settle();
        }
    }

    fn settle(&mut self) {
        loop {
            let actions: Vec<_> = (0..self.groups.len())
                .flat_map(|k| {
                    self.groups[k]
                        .drain()
                        .into_iter()
                        .map(move |action| (k, action))
                })
                .collect();
            if actions.is_empty() {
                return;
            }
            for (k, action) in actions {
                self.act(k, action);
            }
        }
    }

    fn act(&mut self, k: usize, action: Action) {
        match action {
            Action::Send(messages) => {
                for message in messages {
                    let to = message.to as usize - 1;
                    let cut = self.dead == Some(to) || self.dead == Some(k);
                    if !cut && self.deaf != Some(to) && to < self.groups.len() {
                        self.groups[to].handle(Input::Step(message));
                    }
                }
            }
            Action::Write(task) if self.hung != Some(k) => {
                let place = |entry: &crate::log::Entry| {
                    let location = Location {
                        segment: 1,
                        offset: entry.index as u32,
                        context_len: entry.context.len() as u32,
                        data_len: entry.data.len() as u32,
                    };
                    (entry.index, location)
                };
                let locations = task.entries.iter().map(place).collect();
                let number = task.number;
                if !task.entries.is_empty() {
                    self.written.push((k, task.urgent));
                }
                self.groups[k].handle(Input::Persisted { number, locations });
            }
            Action::Apply(entries) => {
                let index = entries.last().expect("an apply has entries").index;
                self.groups[k].handle(Input::Applied { index });
                self.events.push((k, Action::Apply(entries)));
            }
            other => self.events.push((k, other)),
        }
    }

    pub(super) fn leader(&self) -> Option<usize> {
        (0..self.groups.len()).find(|&k| self.groups[k].role() == Role::Leader)
    }

    pub(super) fn committed(&self, ticket: u64) -> bool {
        let hit = |event: &(usize, Action)| matches!(event.1, Action::Committed { ticket: t, .. } if t == ticket);
        self.events.iter().any(hit)
    }
}

#[test]
fn three_elect_one_and_answer_a_proposal() {
    let mut room = Room::of_three();
    room.tick(12);
    assert_eq!(room.leader(), Some(0));
    room.handle(0, Input::Propose(vec![proposal(7, 10)]));
    assert!(room.committed(7));
    room.tick(3);
    assert!(room.groups.iter().all(|group| group.status().applied == 2));
    assert_eq!(room.groups[0].status().peers.len(), 2);
}

#[test]
fn a_follower_refuses_and_names_the_leader() {
    let mut room = Room::of_three();
    room.tick(12);
    room.handle(1, Input::Propose(vec![proposal(1, 0)]));
    let why = Refusal::NotLeader { leader: Some(1) };
    let refused = |event: &(usize, Action)| matches!(event.1, Action::Refused { ticket: 1, why: w } if w == why);
    assert!(room.events.iter().any(refused));
}

#[test]
fn nobody_proposes_or_campaigns_for_us_over_the_network() {
    let mut room = Room::of_three();
    room.tick(12);
    let last = room.groups[0].status().last;
    for kind in [
        MessageType::MsgPropose,
        MessageType::MsgHup,
        MessageType::MsgBeat,
        MessageType::MsgReadIndex,
        MessageType::MsgTransferLeader,
        MessageType::MsgCheckQuorum,
    ] {
        let mut message = Message {
            from: 2,
            to: 1,
            ..Message::default()
        };
        message.set_msg_type(kind);
        message.set_entries(vec![raft::eraftpb::Entry::default()].into());
        room.handle(0, Input::Step(message));
    }
    assert_eq!(room.groups[0].status().last, last);
    assert_eq!(room.leader(), Some(0));
}

#[test]
fn a_heartbeat_that_knows_more_than_our_log_stops_the_replica() {
    let mut room = Room::of_three();
    room.tick(12);
    let mut heartbeat = Message {
        from: 1,
        to: 2,
        term: room.groups[0].term(),
        commit: 50,
        ..Message::default()
    };
    heartbeat.set_msg_type(MessageType::MsgHeartbeat);
    room.handle(1, Input::Step(heartbeat));
    let lost = AbortReason::LostEntries {
        group: 1,
        last: 1,
        known: 50,
    };
    let stops =
        |event: &(usize, Action)| matches!(event.1, Action::Abort { reason } if reason == lost);
    assert!(room.events.iter().any(stops));
    assert!(room.groups[1].drain().is_empty());
}

#[test]
fn a_leader_with_a_hung_disk_hands_over_and_stops_in_the_end() {
    let mut room = Room::of_three();
    room.tick(12);
    room.hung = Some(0);
    room.handle(0, Input::Propose(vec![proposal(1, 10)]));
    room.tick(2 * 10 + 5);
    let next = room.leader().expect("somebody leads");
    assert_ne!(next, 0, "a leader that cannot apply must not stay");
    // Whoever took over committed the entry: two disks have it.
    room.tick(700);
    let hung = |event: &(usize, Action)| {
        matches!(
            event,
            (
                0,
                Action::Abort {
                    reason: AbortReason::DiskHung { .. }
                }
            )
        )
    };
    assert!(room.events.iter().any(hung));
}

#[test]
fn proposals_wait_while_too_much_is_unapplied() {
    let mut config = config(1, &[1]);
    config.limits.unapplied_bytes = 1000;
    let mut leader = group(config, 1 << 20);
    let apply = |leader: &mut Group| {
        let mut refused = 0;
        loop {
            let actions = leader.drain();
            if actions.is_empty() {
                return refused;
            }
            for action in actions {
                match action {
                    Action::Write(task) => {
                        let locations = Vec::new();
                        leader.handle(Input::Persisted {
                            number: task.number,
                            locations,
                        });
                    }
                    Action::Refused {
                        why: Refusal::Busy, ..
                    } => refused += 1,
                    _ => {}
                }
            }
        }
    };
    for _ in 0..12 {
        leader.handle(Input::Tick);
        apply(&mut leader);
    }
    leader.handle(Input::Propose(vec![proposal(1, 2000)]));
    assert_eq!(apply(&mut leader), 0);
    leader.handle(Input::Propose(vec![proposal(2, 10)]));
    assert_eq!(apply(&mut leader), 1, "the bound must show as Busy");
    leader.handle(Input::Applied { index: 2 });
    leader.handle(Input::Propose(vec![proposal(3, 10)]));
    assert_eq!(apply(&mut leader), 0);
}

#[test]
fn the_log_waits_for_the_slowest_and_gives_it_up_when_the_disk_needs_room() {
    let mut room = Room::of_three();
    room.tick(12);
    room.deaf = Some(2);
    for ticket in 0..10 {
        room.handle(0, Input::Propose(vec![proposal(ticket, 10)]));
    }
    let truncate = |over_budget| Input::Truncate {
        upto: 11,
        over_budget,
    };
    room.handle(0, truncate(true));
    let first = room.groups[0].status().first;
    assert!(first <= 2, "a follower that lags a moment holds the log");
    // Its messages still arrive; make it silent.
    let silent = room.groups.remove(2);
    room.tick(12_001);
    room.handle(0, truncate(false));
    assert_eq!(
        room.groups[0].status().first,
        first,
        "there is room: the log waits"
    );
    room.handle(0, truncate(true));
    let status = room.groups[0].status();
    assert_eq!(status.first, 12);
    assert!(
        status
            .peers
            .iter()
            .any(|peer| peer.peer == 3 && peer.needs_snapshot)
    );
    // Followers hear by heartbeat how far they may truncate.
    room.tick(4);
    room.handle(1, truncate(false));
    assert_eq!(room.groups[1].status().first, 12);
    drop(silent);
}

#[test]
fn a_lagging_follower_is_served_from_the_disk_when_the_cache_is_small() {
    let mut room = Room::new(
        (1..=3)
            .map(|peer| group(config(peer, &[1, 2, 3]), 0))
            .collect(),
    );
    room.tick(12);
    room.deaf = Some(2);
    for ticket in 0..10 {
        room.handle(0, Input::Propose(vec![proposal(ticket, 100)]));
    }
    assert!(room.groups[0].cached(5).is_none(), "the budget is nothing");
    room.deaf = None;
    for _ in 0..20 {
        room.tick(1);
        let fetches: Vec<_> = room
            .events
            .extract_if(.., |event| matches!(event, (0, Action::Fetch { .. })))
            .collect();
        for (_, fetch) in fetches {
            let Action::Fetch { id, entries } = fetch else {
                continue;
            };
            let read = |entry: &FetchEntry| {
                let Location {
                    context_len,
                    data_len,
                    ..
                } = entry.location;
                let context = if context_len == 0 {
                    Bytes::new()
                } else {
                    Bytes::from_static(b"command")
                };
                (
                    entry.index,
                    context,
                    Bytes::from(vec![b'x'; data_len as usize]),
                )
            };
            let entries = entries.iter().map(read).collect();
            room.handle(0, Input::Fetched { id, entries });
        }
    }
    assert_eq!(room.groups[2].status().applied, 11);
}

#[test]
fn a_log_that_ends_before_what_is_applied_does_not_start() {
    let log = GroupLog::new(CacheBudget::new(1 << 20));
    let error = Group::new(config(1, &[1]), log, HardState::default(), 5).err();
    assert!(matches!(
        error,
        Some(StartError::LogTooShort {
            known: 5,
            last: 0,
            ..
        })
    ));
}

#[test]
fn a_long_unapplied_log_is_searched_for_conf_changes_without_its_octets() {
    use raft::{GetEntriesContext, Storage};
    let mut log = GroupLog::new(CacheBudget::new(1 << 20));
    let entries: Vec<_> = (1..=100)
        .map(|index| raft::eraftpb::Entry {
            index,
            term: 1,
            data: vec![0; 1000].into(),
            ..Default::default()
        })
        .collect();
    log.truncate_and_append(1, &entries);
    let all = log
        .entries(1, 101, None, GetEntriesContext::empty(false))
        .expect("all are there");
    assert_eq!(all.len(), 100, "a prefix would hide a change of membership");
    assert!(all.iter().all(|entry| entry.data.is_empty()));
}

#[test]
fn a_location_that_comes_late_for_a_replaced_entry_is_forgotten() {
    let entry = |index, term| raft::eraftpb::Entry {
        index,
        term,
        context: Bytes::from_static(b"c"),
        ..Default::default()
    };
    let place = |segment| Location {
        segment,
        offset: 0,
        context_len: 1,
        data_len: 0,
    };
    let mut log = GroupLog::new(CacheBudget::new(1 << 20));
    log.truncate_and_append(1, &[entry(1, 1), entry(2, 1)]);
    log.truncate_and_append(2, &[entry(2, 2)]);
    log.located(1, &[(1, place(10)), (2, place(10))]);
    assert_eq!(log.location(1), Some(place(10)));
    assert_eq!(
        log.location(2),
        None,
        "the write that replaced it is not durable yet"
    );
    log.located(2, &[(2, place(20))]);
    assert_eq!(log.location(2), Some(place(20)));
}

#[test]
fn a_late_rejection_does_not_send_a_follower_back_before_what_it_acknowledged() {
    let mut room = Room::of_three();
    room.tick(12);
    room.handle(0, Input::Propose(vec![proposal(1, 10)]));
    let leader = &mut room.groups[0];
    let progress = leader
        .raw
        .raft
        .mut_prs()
        .get_mut(2)
        .expect("peer 2 is a member");
    progress.become_probe();
    let matched = progress.matched;
    assert_eq!(progress.next_idx, matched + 1);
    let mut rejection = Message {
        from: 2,
        to: 1,
        term: leader.term(),
        index: matched,
        reject: true,
        reject_hint: matched - 1,
        ..Message::default()
    };
    rejection.set_msg_type(MessageType::MsgAppendResponse);
    leader.handle(Input::Step(rejection));
    let progress = leader.raw.raft.prs().get(2).expect("peer 2 is a member");
    assert!(progress.next_idx > progress.matched);
}
