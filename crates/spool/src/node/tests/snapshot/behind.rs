//! A log that goes on while a snapshot is under way.

use super::*;

/// A snapshot is made of what is durably applied, and that may be behind where all other replicas are: the log went on
/// over it, and whoever got it needed another one. Found by the simulation (churn).
#[test]
fn the_log_waits_for_a_snapshot_that_was_made_behind_where_everybody_else_is() {
    let mut room = room(0);
    room.tick(12);
    room.deaf = Some(2);
    for ticket in 0..10 {
        room.handle(0, Input::Propose(vec![proposal(ticket, 10)]));
    }
    let truncate = |room: &mut Room, upto: u64| {
        let over_budget = true;
        room.handle(0, Input::Truncate { upto, over_budget });
        room.groups[0].status().first
    };
    assert_eq!(truncate(&mut room, 5), 6);
    room.deaf = None;
    let mut makes = 0;
    let mut sent = None;
    for _ in 0..40 {
        room.tick(1);
        let ours = |event: &mut (usize, Action)| matches!(event.1, Action::Snapshot(_));
        let asked: Vec<_> = room.events.extract_if(.., ours).collect();
        for (k, action) in asked {
            match action {
                Action::Snapshot(SnapshotAction::Make { to }) => {
                    makes += 1;
                    let made = Some(Made {
                        id: 7,
                        index: 5,
                        term: room.groups[k].term(),
                        members: members(&[1, 2, 3]),
                        body_bytes: 0,
                    });
                    room.handle(k, Input::Snapshot(SnapshotInput::Made { to, made }));
                    assert_eq!(truncate(&mut room, 11), 6, "it is offered");
                }
                Action::Snapshot(send @ SnapshotAction::Send { .. }) => sent = Some((k, send)),
                _ => {}
            }
        }
    }
    let (k, send) = sent.expect("it is sent");
    assert_eq!(truncate(&mut room, 11), 6, "it is on its way");
    room.carry_one(k, send, &mut || Fate::Arrives);
    for _ in 0..20 {
        room.tick(1);
        room.carry(|| Fate::Arrives);
    }
    assert_eq!(makes, 1);
    assert_eq!(room.groups[2].status().applied, 11, "it needs no other one");
    assert_eq!(truncate(&mut room, 11), 12);
}
