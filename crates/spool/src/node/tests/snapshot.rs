//! Followers whose entries are gone: filled by snapshots, whatever happens to those on the way.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
mod behind;

/// What a carrier of snapshots does with the next one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Arrives,
    /// The stream breaks, or the receiver refuses it.
    Fails,
    /// It is staged and reported, and the receiver dies before Raft hears of it.
    Forgotten,
    /// Nothing is made: the driver has too much to do.
    NotNow,
}

/// A room whose log keeps nothing for anybody.
fn room(silent_ticks: u64) -> Room {
    let group_of = |peer| {
        let mut config = config(peer, &[1, 2, 3]);
        config.limits.silent_ticks = silent_ticks;
        group(config, 1 << 20)
    };
    Room::new((1..=3).map(group_of).collect())
}

impl Room {
    /// Does what groups asked of their drivers in the matter of snapshots.
    fn carry(&mut self, mut fate: impl FnMut() -> Fate) -> usize {
        let is_ours = |event: &mut (usize, Action)| matches!(event.1, Action::Snapshot(_));
        let asked: Vec<_> = self.events.extract_if(.., is_ours).collect();
        let count = asked.len();
        for (k, action) in asked {
            if let Action::Snapshot(action) = action {
                self.carry_one(k, action, &mut fate);
            }
        }
        count
    }

    fn carry_one(&mut self, k: usize, action: SnapshotAction, fate: &mut impl FnMut() -> Fate) {
        match action {
            SnapshotAction::Make { to } => {
                let status = self.groups[k].status();
                let log = self.groups[k].raw.store();
                let made = (fate() != Fate::NotNow).then(|| Made {
                    id: status.applied * 100 + to,
                    index: status.applied,
                    term: log.term_of(status.applied).expect("it is applied"),
                    members: status.members,
                    body_bytes: 0,
                });
                let input = SnapshotInput::Made { to, made };
                self.handle(k, Input::Snapshot(input));
            }
            SnapshotAction::Send { to, id, message } => {
                let fate = fate();
                let receiver = to as usize - 1;
                if fate == Fate::Arrives && self.deaf != Some(receiver) {
                    let input = SnapshotInput::Staged(*message);
                    self.handle(receiver, Input::Snapshot(input));
                }
                let staged = fate != Fate::Fails && self.deaf != Some(receiver);
                let input = SnapshotInput::Sent { to, id, staged };
                self.handle(k, Input::Snapshot(input));
            }
            SnapshotAction::Install(made) => {
                let index = made.index;
                self.handle(k, Input::Snapshot(SnapshotInput::Installed { index }));
            }
            SnapshotAction::Drop { .. } | SnapshotAction::Discard { .. } => {}
        }
    }

    /// Ten entries that peer 3 does not get, and then cannot get.
    fn leave_behind(&mut self) {
        self.deaf = Some(2);
        for ticket in 0..10 {
            self.handle(0, Input::Propose(vec![proposal(ticket, 10)]));
        }
        let (upto, over_budget) = (self.groups[0].status().applied, true);
        self.handle(0, Input::Truncate { upto, over_budget });
        let status = self.groups[0].status();
        assert_eq!(status.first, upto + 1, "the log keeps nothing");
        self.deaf = None;
    }
}

#[test]
fn a_follower_whose_entries_are_gone_is_filled_by_a_snapshot() {
    let mut room = room(0);
    room.deaf = Some(2);
    room.tick(12);
    room.leave_behind();
    let seen = |room: &Room| room.groups[0].status().peers[1].clone();
    room.tick(4);
    assert!(seen(&room).needs_snapshot);
    let mut carried = 0;
    for _ in 0..40 {
        room.tick(1);
        carried += room.carry(|| Fate::Arrives);
    }
    assert_eq!(carried, 3, "made, sent, installed; once each");
    assert_eq!(room.groups[2].status().applied, 11);
    assert_eq!(room.groups[2].truncated().0, 11);
    room.groups[0].config.limits.silent_ticks = 100;
    let (upto, over_budget) = (11, false);
    room.handle(0, Input::Truncate { upto, over_budget });
    let peer = seen(&room);
    assert!(!peer.needs_snapshot && peer.matched == 11, "{peer:?}");
    // It takes part like any other from then on.
    room.deaf = Some(1);
    room.handle(0, Input::Propose(vec![proposal(50, 10)]));
    room.tick(4);
    assert!(room.committed(50));
    assert_eq!(room.groups[2].status().applied, 12);
}

#[test]
fn a_snapshot_whose_stream_report_or_receiver_is_lost_comes_again() {
    for seed in 1..200_u64 {
        let mut room = room(0);
        room.tick(12);
        room.leave_behind();
        let mut random = seed;
        let mut draw = move |below: u64| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(seed);
            (random >> 33) % below
        };
        let bad_until = 200;
        let mut ticks = 0;
        while room.groups[2].status().applied < 11 {
            assert!(ticks < 3_000, "seed {seed}: paused for ever");
            ticks += 1;
            room.tick(1);
            let luck = ticks > bad_until;
            room.carry(|| match draw(4) {
                _ if luck => Fate::Arrives,
                0 => Fate::Fails,
                1 => Fate::Forgotten,
                2 => Fate::NotNow,
                _ => Fate::Arrives,
            });
            if !luck && draw(40) == 0 {
                room.deaf = [None, Some(2)][draw(2) as usize];
            } else if luck {
                room.deaf = None;
            }
        }
    }
}

/// Brings peer 3 to where its snapshot is being installed.
fn installing(room: &mut Room) -> Made {
    room.tick(12);
    room.leave_behind();
    for _ in 0..40 {
        room.tick(1);
        let install = |event: &mut (usize, Action)| {
            matches!(event.1, Action::Snapshot(SnapshotAction::Install(_)))
        };
        let install = room.events.extract_if(.., install).next();
        if let Some((2, Action::Snapshot(SnapshotAction::Install(made)))) = install {
            return made;
        }
        room.carry(|| Fate::Arrives);
    }
    panic!("no snapshot is installed");
}

#[test]
fn until_it_is_installed_nothing_is_written_answered_or_campaigned_with() {
    let mut room = room(0);
    let made = installing(&mut room);
    let matched = |room: &Room| room.groups[0].status().peers[1].matched;
    assert!(matched(&room) < made.index, "nothing is acknowledged yet");
    room.handle(0, Input::Propose(vec![proposal(60, 10)]));
    // Everybody else falls silent; a replica between two logs neither campaigns nor gives up its disk.
    for _ in 0..1_000 {
        room.groups[2].handle(Input::Tick);
        let actions = room.groups[2].drain();
        let quiet = |action: &Action| !matches!(action, Action::Write(_) | Action::Abort { .. });
        assert!(actions.iter().all(quiet), "{actions:?}");
        assert_eq!(room.groups[2].role(), Role::Follower);
    }
    let mut now = Message {
        from: 1,
        to: 3,
        term: room.groups[2].term(),
        ..Message::default()
    };
    now.set_msg_type(MessageType::MsgTimeoutNow);
    room.handle(2, Input::Step(now));
    assert_eq!(room.groups[2].role(), Role::Follower);
    // Installed: the log begins at the snapshot in the first write, the entries follow.
    let index = made.index;
    room.groups[2].handle(Input::Snapshot(SnapshotInput::Installed { index }));
    let writes: Vec<_> = room.groups[2]
        .drain()
        .into_iter()
        .filter_map(|action| match action {
            Action::Write(task) => Some(task),
            _ => None,
        })
        .collect();
    assert_eq!(writes[0].reset, Some((made.index, made.term)));
    assert!(writes[1..].iter().all(|task| task.reset.is_none()));
    for task in writes {
        room.act(2, Action::Write(task));
    }
    room.tick(10);
    assert_eq!(room.groups[2].status().applied, 12);
    assert_eq!(matched(&room), 12);
}

#[test]
fn a_snapshot_that_comes_too_late_is_discarded() {
    let mut room = room(0);
    room.tick(12);
    room.leave_behind();
    let mut late = None;
    for _ in 0..60 {
        room.tick(1);
        let send = |event: &mut (usize, Action)| {
            matches!(event.1, Action::Snapshot(SnapshotAction::Send { .. }))
        };
        let sent = room.events.extract_if(.., send).next();
        if let Some((k, Action::Snapshot(action))) = sent {
            if let SnapshotAction::Send { message, .. } = &action {
                late = Some(message.clone());
            }
            room.carry_one(k, action, &mut || Fate::Arrives);
        }
        room.carry(|| Fate::Arrives);
    }
    assert_eq!(room.groups[2].status().applied, 11);
    let message = *late.expect("one was sent");
    room.handle(2, Input::Snapshot(SnapshotInput::Staged(message)));
    let discarded = |event: &(usize, Action)| {
        matches!(event, (2, Action::Snapshot(SnapshotAction::Discard { .. })))
    };
    assert!(room.events.iter().any(discarded));
    assert_eq!(room.groups[2].status().applied, 11);
}

#[test]
fn a_snapshot_that_was_not_staged_is_no_snapshot() {
    let mut room = room(0);
    room.tick(12);
    let mut message = Message {
        from: 1,
        to: 2,
        term: room.groups[0].term(),
        ..Message::default()
    };
    message.set_msg_type(MessageType::MsgSnapshot);
    let made = Made {
        id: 1,
        index: 500,
        term: room.groups[0].term(),
        members: members(&[1, 2, 3]),
        body_bytes: 0,
    };
    let manifest = crate::wire::snapshot::manifest(&made);
    message.set_snapshot(crate::wire::snapshot::to_raft(&manifest));
    room.handle(1, Input::Step(message));
    assert_eq!(room.groups[1].status().last, 1);
}

#[test]
fn the_log_waits_for_a_snapshot_that_is_on_its_way_and_mail_is_slowed_meanwhile() {
    let mut room = room(0);
    room.tick(12);
    room.leave_behind();
    let mut sent = None;
    while sent.is_none() {
        room.tick(1);
        let send = |event: &mut (usize, Action)| {
            matches!(event.1, Action::Snapshot(SnapshotAction::Send { .. }))
        };
        sent = room.events.extract_if(.., send).next();
        if sent.is_none() {
            room.carry(|| Fate::Arrives);
        }
    }
    // The disk is beyond its budget: without a report of progress, mail is told to come again; a settle is not.
    let truncate = |room: &mut Room| {
        let (upto, over_budget) = (room.groups[0].status().applied, true);
        room.handle(0, Input::Truncate { upto, over_budget });
    };
    truncate(&mut room);
    room.handle(0, Input::Propose(vec![proposal(70, 10)]));
    let busy = |event: &(usize, Action)| {
        matches!(
            event.1,
            Action::Refused {
                ticket: 70,
                why: Refusal::Busy
            }
        )
    };
    assert!(room.events.iter().any(busy));
    let urgent = Proposal {
        urgent: true,
        ..proposal(71, 10)
    };
    room.handle(0, Input::Propose(vec![urgent]));
    assert!(room.committed(71));
    let octets = 1000;
    room.handle(0, Input::Snapshot(SnapshotInput::Progress { octets }));
    room.handle(0, Input::Propose(vec![proposal(72, 10)]));
    assert!(room.committed(72), "half of what left may come");
    truncate(&mut room);
    assert_eq!(
        room.groups[0].status().first,
        12,
        "what follows the snapshot is kept until it has arrived"
    );
    let Some((k, Action::Snapshot(send))) = sent else {
        panic!("it was sent");
    };
    room.carry_one(k, send, &mut || Fate::Arrives);
    for _ in 0..20 {
        room.tick(1);
        room.carry(|| Fate::Arrives);
    }
    assert_eq!(room.groups[2].status().applied, 13);
    truncate(&mut room);
    assert_eq!(room.groups[0].status().first, 14);
}

#[test]
fn a_leader_that_steps_down_drops_its_snapshots() {
    let mut room = room(0);
    room.tick(12);
    room.leave_behind();
    for _ in 0..20 {
        room.tick(1);
        let sent = |event: &(usize, Action)| {
            matches!(event.1, Action::Snapshot(SnapshotAction::Send { .. }))
        };
        if room.events.iter().any(sent) {
            break;
        }
        let making: BTreeMap<_, _> = room.groups[0]
            .status()
            .peers
            .iter()
            .map(|p| (p.peer, p.snapshot))
            .collect();
        assert_eq!(making[&3], None);
        room.carry(|| Fate::Arrives);
    }
    assert!(room.groups[0].status().peers[1].snapshot.is_some());
    room.handle(0, Input::TransferLeader { to: Some(2) });
    room.tick(5);
    assert_ne!(room.leader(), Some(0));
    let dropped = |event: &(usize, Action)| {
        matches!(event, (0, Action::Snapshot(SnapshotAction::Drop { .. })))
    };
    assert!(room.events.iter().any(dropped));
}

#[test]
fn a_new_replica_that_the_log_cannot_fill_takes_the_members_of_its_snapshot() {
    let mut groups: Vec<Group> = (1..=3)
        .map(|peer| group(config(peer, &[1, 2, 3]), 1 << 20))
        .collect();
    // It is made with the members that the group's log began with.
    groups.push(group(config(4, &[1, 2, 3]), 1 << 20));
    let mut room = Room::new(groups);
    room.dead = Some(3);
    room.tick(12);
    for ticket in 0..10 {
        room.handle(0, Input::Propose(vec![proposal(ticket, 10)]));
    }
    let (upto, over_budget) = (room.groups[0].status().applied, false);
    room.tick(4);
    room.handle(0, Input::Truncate { upto, over_budget });
    assert_eq!(room.groups[0].truncated().0, upto, "nothing is kept for it");
    room.dead = None;
    for k in 0..4 {
        let plan = Plan {
            version: 1,
            voters: [1, 2, 4].into(),
            leader: 1,
        };
        room.handle(k, Input::Plan(plan));
    }
    let mut carried = 0;
    for _ in 0..400 {
        room.tick(1);
        carried += room.carry(|| Fate::Arrives);
    }
    assert!(carried >= 3, "made, sent, installed: {carried}");
    assert!(
        room.groups[3].truncated().0 > upto,
        "it began at a snapshot"
    );
    for k in [0, 1, 3] {
        let voters: BTreeSet<u64> = room.groups[k].members().voters.iter().copied().collect();
        assert_eq!(voters, BTreeSet::from([1, 2, 4]), "{k}");
    }
    // It answers for the group like any other.
    room.deaf = Some(1);
    room.handle(0, Input::Propose(vec![proposal(50, 10)]));
    room.tick(4);
    assert!(room.committed(50));
}

#[test]
fn who_stops_or_loses_a_follower_drops_the_snapshots_that_were_made() {
    for leaves in [false, true] {
        let mut room = room(0);
        room.deaf = Some(2);
        room.tick(12);
        room.leave_behind();
        let dropped = |room: &Room| {
            let is = |event: &(usize, Action)| {
                matches!(event, (0, Action::Snapshot(SnapshotAction::Drop { .. })))
            };
            room.events.iter().any(is)
        };
        let mut made = 0;
        for _ in 0..8 {
            room.tick(1);
            if made == 0 {
                made = room.carry(|| Fate::Arrives);
            }
        }
        assert_eq!(made, 1, "made, and now on its way or offered");
        assert!(!dropped(&room));
        match leaves {
            false => room.handle(0, Input::Stop),
            true => {
                let plan = Plan {
                    version: 1,
                    voters: [1, 2].into(),
                    leader: 1,
                };
                room.handle(0, Input::Plan(plan));
                room.tick(100);
                assert!(!room.groups[0].members().voters.contains(&3));
            }
        }
        assert!(dropped(&room), "leaves: {leaves}");
    }
}

/// Staged is not installed: until the receiver has matched the log, mail goes at the snapshot's pace and no faster, and it
/// does go on.
#[test]
fn mail_is_slowed_until_the_receiver_has_matched_the_log() {
    let mut room = room(0);
    let made = installing(&mut room);
    let truncate = |room: &mut Room| {
        let (upto, over_budget) = (room.groups[0].status().applied, true);
        room.handle(0, Input::Truncate { upto, over_budget });
    };
    // It answers, and does not count as silent.
    room.groups[0].config.limits.silent_ticks = 1_000;
    truncate(&mut room);
    let busy = |room: &Room| {
        let is = |event: &&(usize, Action)| {
            matches!(
                event.1,
                Action::Refused {
                    why: Refusal::Busy,
                    ..
                }
            )
        };
        room.events.iter().filter(is).count()
    };
    for ticket in 100..200 {
        room.handle(0, Input::Propose(vec![proposal(ticket, 100_000)]));
        if busy(&room) > 0 {
            break;
        }
    }
    assert_eq!(busy(&room), 1, "there is an end of what may come at once");
    room.tick(1);
    room.handle(0, Input::Propose(vec![proposal(300, 10)]));
    assert_eq!(busy(&room), 1, "a little may come with each tick");
    // Installed and matched: nothing holds mail up any more.
    let index = made.index;
    room.handle(2, Input::Snapshot(SnapshotInput::Installed { index }));
    room.tick(20);
    let last = room.groups[0].status();
    assert_eq!(last.peers[1].matched, last.last, "{last:?}");
    for ticket in 400..500 {
        room.handle(0, Input::Propose(vec![proposal(ticket, 100_000)]));
    }
    assert_eq!(busy(&room), 1);
}
