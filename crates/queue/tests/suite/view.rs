//! Read-only questions: filters, pages, and what is still known of a finished message.

use queue::view::{Filter, LIST_SCAN_ROWS_MAX, Shown, StateName, list, show, summary};
use queue::*;

use crate::common::{START_MS, World, append, destination, message, ulid};

fn world(messages: u128) -> World {
    let mut world = World::new();
    for n in 0..messages {
        let domain = if n % 2 == 0 {
            "even.example"
        } else {
            "odd.example"
        };
        let facts = message(ulid(START_MS, n), &[(domain, 1), ("both.example", 2)]);
        world.apply(Command::Append(Box::new(append(
            facts,
            Timestamp(u64::MAX),
        ))));
    }
    world
}

fn all(world: &mut World, filter: &Filter, limit: usize) -> Vec<ItemId> {
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = list(&mut world.rows, filter, after, limit);
        assert!(page.items.len() <= limit);
        found.extend(page.items.iter().map(|listed| listed.id));
        match page.next {
            Some(next) => after = Some(next),
            None => return found,
        }
    }
}

#[test]
fn a_list_in_pages_is_the_whole_list() {
    let mut world = world(700);
    let whole = all(&mut world, &Filter::default(), 1_000);
    assert_eq!(whole.len(), 1_400);
    for limit in [1, 7, 256, 257] {
        assert_eq!(all(&mut world, &Filter::default(), limit), whole);
    }
}

#[test]
fn filters_choose() {
    let mut world = world(10);
    let to = |domain| Filter {
        destination: Some(destination(domain)),
        ..Filter::default()
    };
    assert_eq!(all(&mut world, &to("odd.example"), 3).len(), 5);
    assert_eq!(all(&mut world, &to("none.example"), 3).len(), 0);
    let third = Filter {
        message: Some(ulid(START_MS, 3)),
        ..Filter::default()
    };
    assert_eq!(all(&mut world, &third, 1).len(), 2);
    let sender = |text: &str| Filter {
        sender: Some(text.into()),
        ..Filter::default()
    };
    assert_eq!(all(&mut world, &sender("SENDER@example.com"), 9).len(), 20);
    assert_eq!(all(&mut world, &sender("ender@example.com"), 9).len(), 0);
    let recipient = Filter {
        recipient: Some("r11@both.example".into()),
        ..Filter::default()
    };
    assert_eq!(all(&mut world, &recipient, 4).len(), 10);
    let items = vec![ItemId {
        message: ulid(START_MS, 4),
        number: 1,
    }];
    let hold = Admin {
        action: AdminAction::Hold,
        items: items.clone(),
        actor: "eve".into(),
        reason: "".into(),
    };
    world.apply(Command::Admin(hold));
    let held = Filter {
        state: Some(StateName::Held),
        ..Filter::default()
    };
    assert_eq!(all(&mut world, &held, 1), items);
}

#[test]
fn one_list_looks_at_a_bounded_number_of_rows() {
    let mut world = world(LIST_SCAN_ROWS_MAX as u128 / 2 + 10);
    let none = Filter {
        destination: Some(destination("none.example")),
        ..Filter::default()
    };
    let page = list(&mut world.rows, &none, None, 10);
    assert!(page.items.is_empty() && page.next.is_some());
    assert_eq!(list(&mut world.rows, &none, page.next, 10).next, None);
}

#[test]
fn a_summary_counts_and_pages() {
    let mut world = world(10);
    let first = summary(&mut world.rows, None, 2);
    assert_eq!((first.shard.messages, first.shard.waiting), (10, 20));
    assert_eq!(
        first
            .destinations
            .iter()
            .map(|(_, counts)| counts.waiting)
            .collect::<Vec<_>>(),
        [10, 5]
    );
    let second = summary(&mut world.rows, first.next.as_ref(), 2);
    assert_eq!((second.destinations.len(), second.next), (1, None));
}

#[test]
fn a_message_is_shown_while_it_lives_and_while_it_is_remembered() {
    let mut world = world(2);
    let id = ulid(START_MS, 1);
    match show(&mut world.rows, id) {
        Shown::Live {
            items, recipients, ..
        } => assert_eq!((items.len(), recipients.len()), (2, 3)),
        other => panic!("{other:?}"),
    }
    let items = vec![
        ItemId {
            message: id,
            number: 0,
        },
        ItemId {
            message: id,
            number: 1,
        },
    ];
    let drop = Admin {
        action: AdminAction::Drop,
        items,
        actor: "eve".into(),
        reason: "".into(),
    };
    world.apply(Command::Admin(drop));
    match show(&mut world.rows, id) {
        Shown::Finished(row) => assert_eq!(row.ending, Ending::Dropped),
        other => panic!("{other:?}"),
    }
    assert_eq!(show(&mut world.rows, ulid(START_MS, 99)), Shown::Unknown);
}
