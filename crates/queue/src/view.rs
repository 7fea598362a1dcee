//! Read-only questions: how much there is, what is in the list, what one message is. Each reads a bounded number of
//! rows, whatever the queue holds; where more is left, the answer says where to go on.

use std::sync::Arc;

use mail::{Destination, Ulid};

use crate::{
    DestinationCounts, Finished, Item, ItemId, Message, Recipient, RecipientId, Rows, ShardState,
    State,
};

/// Items that one `list` looks at, matching or not. The caller goes on from `next`.
pub const LIST_SCAN_ROWS_MAX: usize = 10_000;

/// Items that one `list` returns.
pub const LIST_ITEMS_MAX: usize = 1_000;

/// Recipients that a listed item shows; `show` has all.
pub const LIST_RECIPIENTS_MAX: u32 = 10;

/// Recipients that `show` returns of one message, over all its items.
pub const SHOW_RECIPIENTS_MAX: usize = 10_000;

/// Destinations in one page of a summary.
pub const SUMMARY_DESTINATIONS_MAX: usize = 1_000;

/// Rows of one read.
const PAGE_ROWS: usize = 256;

/// How much there is.
#[derive(Clone, PartialEq, Debug)]
pub struct Summary {
    /// Totals and cluster time.
    pub shard: ShardState,
    /// A page of destinations, in order of their names.
    pub destinations: Vec<(Destination, DestinationCounts)>,
    /// Where the next page begins; `None`: this was the last.
    pub next: Option<Destination>,
}

/// Counts, with at most `limit` destinations from `from` on.
pub fn summary(rows: &mut impl Rows, from: Option<&Destination>, limit: usize) -> Summary {
    let limit = limit.clamp(1, SUMMARY_DESTINATIONS_MAX);
    let mut page = rows.destinations().range(from, limit + 1);
    let next = (page.len() > limit)
        .then(|| page.pop().map(|(destination, _)| destination))
        .flatten();
    let destinations = page
        .into_iter()
        .map(|(destination, counts)| (destination, *counts))
        .collect();
    Summary {
        shard: rows.shard(),
        destinations,
        next,
    }
}

/// The states of an item, without what belongs to them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StateName {
    /// See [`State::Waiting`].
    Waiting,
    /// See [`State::Leased`].
    Leased,
    /// See [`State::Held`].
    Held,
}

impl State {
    /// Which of the three.
    pub fn name(&self) -> StateName {
        match self {
            State::Waiting { .. } => StateName::Waiting,
            State::Leased { .. } => StateName::Leased,
            State::Held { .. } => StateName::Held,
        }
    }
}

/// What a listed item must match; `None` matches all.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Filter {
    /// This message only.
    pub message: Option<Ulid>,
    /// This return path, whole, in any case.
    pub sender: Option<String>,
    /// A recipient, whole, in any case.
    pub recipient: Option<String>,
    /// This destination.
    pub destination: Option<Destination>,
    /// This tenant.
    pub tenant: Option<String>,
    /// This state.
    pub state: Option<StateName>,
}

/// An item in a list.
#[derive(Clone, PartialEq, Debug)]
pub struct Listed {
    /// Which.
    pub id: ItemId,
    /// Its row.
    pub item: Arc<Item>,
    /// Its message's row.
    pub message: Arc<Message>,
    /// Addresses of the first [`LIST_RECIPIENTS_MAX`] recipients.
    pub recipients: Vec<Arc<str>>,
}

/// A page of a list.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct List {
    /// Matching items in order of their ids.
    pub items: Vec<Listed>,
    /// The last item that was looked at, when there is more to look at: give it as `after`. A page can be empty and
    /// still have a next one.
    pub next: Option<ItemId>,
}

/// Items that match, behind `after`.
pub fn list(rows: &mut impl Rows, filter: &Filter, after: Option<ItemId>, limit: usize) -> List {
    let limit = limit.clamp(1, LIST_ITEMS_MAX);
    let first = filter.message.map(|message| ItemId { message, number: 0 });
    let mut last = after.filter(|after| first.is_none_or(|first| *after >= first));
    let mut list = List::default();
    let mut scanned = 0;
    loop {
        // The page begins with the last row that was looked at, where that one still lives.
        let from = last.or(first);
        let ids = page(rows, filter, from.as_ref());
        let whole = ids.len() == PAGE_ROWS;
        let seen = last;
        for id in ids.into_iter().filter(|id| Some(*id) != seen) {
            if filter.message.is_some_and(|message| message != id.message) {
                return list;
            }
            if list.items.len() == limit || scanned == LIST_SCAN_ROWS_MAX {
                list.next = last;
                return list;
            }
            scanned += 1;
            last = Some(id);
            list.items.extend(matching(rows, filter, id));
        }
        if !whole {
            return list;
        }
    }
}

/// Held items have a table of their own; they are few and looked for often.
fn page(rows: &mut impl Rows, filter: &Filter, from: Option<&ItemId>) -> Vec<ItemId> {
    match filter.state {
        Some(StateName::Held) => rows
            .held()
            .range(from, PAGE_ROWS)
            .into_iter()
            .map(|(id, _)| id)
            .collect(),
        _ => rows
            .items()
            .range(from, PAGE_ROWS)
            .into_iter()
            .map(|(id, _)| id)
            .collect(),
    }
}

fn matching(rows: &mut impl Rows, filter: &Filter, id: ItemId) -> Option<Listed> {
    let item = rows.items().get(&id)?;
    let differs = filter.state.is_some_and(|state| state != item.state.name())
        || filter
            .destination
            .as_ref()
            .is_some_and(|destination| *destination != item.destination);
    if differs {
        return None;
    }
    let message = rows.messages().get(&id.message)?;
    let same = |wanted: &Option<String>, text: &str| {
        wanted.as_ref().is_none_or(|w| w.eq_ignore_ascii_case(text))
    };
    if !same(&filter.sender, &message.return_path) || !same(&filter.tenant, &message.tenant) {
        return None;
    }
    let shown = if filter.recipient.is_some() {
        item.recipients
    } else {
        LIST_RECIPIENTS_MAX
    };
    let mut recipients: Vec<Arc<str>> = recipients(rows, id, &item, shown as usize)
        .into_iter()
        .map(|(_, row)| row.address.clone())
        .collect();
    if filter.recipient.is_some()
        && !recipients
            .iter()
            .any(|address| same(&filter.recipient, address))
    {
        return None;
    }
    recipients.truncate(LIST_RECIPIENTS_MAX as usize);
    Some(Listed {
        id,
        item,
        message,
        recipients,
    })
}

/// The first recipients of an item.
fn recipients(
    rows: &mut impl Rows,
    id: ItemId,
    item: &Item,
    limit: usize,
) -> Vec<(RecipientId, Arc<Recipient>)> {
    let first = RecipientId {
        item: id,
        number: 0,
    };
    let mut page = rows
        .recipients()
        .range(Some(&first), limit.min(item.recipients as usize));
    page.retain(|(key, _)| key.item == id);
    page
}

/// One message.
#[derive(Clone, PartialEq, Debug)]
pub enum Shown {
    /// It lives.
    Live {
        /// Its row.
        message: Arc<Message>,
        /// Its items that live.
        items: Vec<(ItemId, Arc<Item>)>,
        /// Their recipients with the last results, at most [`SHOW_RECIPIENTS_MAX`].
        recipients: Vec<(RecipientId, Arc<Recipient>)>,
    },
    /// It is finished and still remembered.
    Finished(Arc<Finished>),
    /// There is no such message, or no more.
    Unknown,
}

/// All that is known of a message.
pub fn show(rows: &mut impl Rows, id: Ulid) -> Shown {
    let Some(message) = rows.messages().get(&id) else {
        return rows
            .finished()
            .get(&id)
            .map_or(Shown::Unknown, Shown::Finished);
    };
    // Every item has a recipient, so the bound of the one bounds the other.
    let first = ItemId {
        message: id,
        number: 0,
    };
    let mut items = rows.items().range(
        Some(&first),
        SHOW_RECIPIENTS_MAX.min(message.items_left as usize),
    );
    items.retain(|(key, _)| key.message == id);
    let mut all = Vec::new();
    for (id, item) in &items {
        all.extend(recipients(rows, *id, item, SHOW_RECIPIENTS_MAX - all.len()));
    }
    Shown::Live {
        message,
        items,
        recipients: all,
    }
}
