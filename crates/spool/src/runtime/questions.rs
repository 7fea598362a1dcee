//! Read-only questions about a shard, answered on the state thread from applied rows; and reads of header blocks.

use std::sync::mpsc::{Receiver, Sender};

use bytes::{Bytes, BytesMut};
use proto::v1;
use queue::view::{self, Filter, Shown, StateName};
use queue::{Ending, Item, ItemId, Message, State, Timestamp};

use crate::collect::{BodyReader, Unread};
use crate::decide::{Pending, ShardRows};
use crate::event::{Piece, Question, StateEvent};
use crate::runtime::Mender;
use crate::wire::log::{message_id, to_item_ref};

/// Items or destinations of an answer when the request names no limit.
const LIMIT_DEFAULT: usize = 1_000;

impl Question {
    /// The shard that it is about.
    pub fn shard(&self) -> u32 {
        match self {
            Question::Summary(r, _) => r.shard,
            Question::List(r, _) => r.shard,
            Question::Show(r, _) => r.shard,
            Question::Act(r, _) => r.shard,
            Question::Locate(r, _) => r.shard,
        }
    }

    /// Another node knows. Whoever asked may have gone; then nobody is answered.
    pub fn not_leader(self, leader_address: String) {
        let not_leader = Some(v1::NotLeader {
            leader_address: leader_address.clone(),
        });
        match self {
            Question::Summary(_, to) => drop(to.send(v1::SummaryResponse {
                not_leader,
                ..Default::default()
            })),
            Question::List(_, to) => drop(to.send(v1::ListResponse {
                not_leader,
                ..Default::default()
            })),
            Question::Show(_, to) => drop(to.send(v1::ShowResponse {
                not_leader,
                ..Default::default()
            })),
            Question::Act(_, to) => drop(to.send(v1::ActResponse {
                not_leader,
                ..Default::default()
            })),
            Question::Locate(_, to) => drop(to.send(Err(leader_address))),
        }
    }
}

/// Answers any question but Act.
pub fn answer(question: Question, rows: &mut impl ShardRows, time: Timestamp) {
    match question {
        Question::Summary(request, to) => drop(to.send(summary(&request, rows, time))),
        Question::List(request, to) => drop(to.send(list(&request, rows))),
        Question::Show(request, to) => drop(to.send(show(&request, rows))),
        Question::Locate(request, to) => drop(to.send(Ok(locate(&request, rows)))),
        Question::Act(..) => {}
    }
}

fn limit(wanted: u32) -> usize {
    if wanted == 0 {
        LIMIT_DEFAULT
    } else {
        wanted as usize
    }
}

fn summary(
    request: &v1::SummaryRequest,
    rows: &mut impl ShardRows,
    time: Timestamp,
) -> v1::SummaryResponse {
    let from = (!request.from.is_empty()).then(|| mail::Destination::from_canonical(&request.from));
    let summary = view::summary(rows, from.as_ref(), limit(request.limit));
    let destinations =
        summary
            .destinations
            .iter()
            .map(|(destination, counts)| v1::DestinationSummary {
                destination: destination.to_string(),
                waiting: counts.waiting,
                leased: counts.leased,
                held: counts.held,
            });
    v1::SummaryResponse {
        not_leader: None,
        messages: summary.shard.messages,
        waiting: summary.shard.waiting,
        leased: summary.shard.leased,
        held: summary.shard.held,
        destinations: destinations.collect(),
        cluster_time_ms: time.0,
        next: summary
            .next
            .map(|next| next.to_string())
            .unwrap_or_default(),
    }
}

fn list(request: &v1::ListRequest, rows: &mut impl ShardRows) -> v1::ListResponse {
    let wire = request.filter.clone().unwrap_or_default();
    let some = |text: String| (!text.is_empty()).then_some(text);
    let filter = Filter {
        message: message_id(&wire.message).ok(),
        sender: some(wire.sender),
        recipient: some(wire.recipient),
        destination: some(wire.destination).map(|d| mail::Destination::from_canonical(&d)),
        tenant: some(wire.tenant),
        state: match wire.state.as_str() {
            "Waiting" => Some(StateName::Waiting),
            "Leased" => Some(StateName::Leased),
            "Held" => Some(StateName::Held),
            _ => None,
        },
    };
    let after = crate::wire::log::item_ref(request.after.clone()).ok();
    let list = view::list(rows, &filter, after, limit(request.limit));
    let items = list.items.iter().map(|l| {
        let recipients = l.recipients.iter().map(ToString::to_string).collect();
        item_summary(l.id, &l.item, &l.message, recipients)
    });
    v1::ListResponse {
        not_leader: None,
        items: items.collect(),
        more: list.next.is_some(),
        next: list.next.map(to_item_ref),
    }
}

fn item_summary(
    id: ItemId,
    item: &Item,
    message: &Message,
    recipients: Vec<String>,
) -> v1::ItemSummary {
    let (state, due_ms, reason) = match &item.state {
        State::Waiting { due } => ("Waiting", due.0, item.reason.to_string()),
        State::Leased { deadline, .. } => ("Leased", deadline.0, item.reason.to_string()),
        State::Held { reason } => ("Held", 0, reason.to_string()),
    };
    v1::ItemSummary {
        item: Some(to_item_ref(id)),
        destination: item.destination.to_string(),
        state: state.to_owned(),
        tenant: message.tenant.to_string(),
        class: message.class.to_string(),
        return_path: message.return_path.to_string(),
        size: message.size,
        arrived_ms: message.arrived.0,
        due_ms,
        expires_ms: message.expires.0,
        attempts: item.attempts,
        reason,
        recipients,
    }
}

fn show(request: &v1::ShowRequest, rows: &mut impl ShardRows) -> v1::ShowResponse {
    let Ok(id) = message_id(&request.message) else {
        return v1::ShowResponse::default();
    };
    match view::show(rows, id) {
        Shown::Unknown => v1::ShowResponse::default(),
        Shown::Finished(row) => {
            let finished = match row.ending {
                Ending::Delivered => "delivered",
                Ending::Failed => "failed",
                Ending::Dropped => "dropped",
            };
            v1::ShowResponse {
                found: true,
                finished: finished.to_owned(),
                ..Default::default()
            }
        }
        Shown::Live {
            message,
            items,
            recipients,
        } => {
            let items = items
                .iter()
                .map(|(id, item)| item_summary(*id, item, &message, Vec::new()));
            let recipients = recipients.iter().map(|(id, row)| v1::ShownRecipient {
                item: Some(to_item_ref(id.item)),
                recipient: id.number,
                address: row.address.to_string(),
                result: row.result.as_ref().map(crate::wire::log::result_to_wire),
            });
            v1::ShowResponse {
                not_leader: None,
                found: true,
                items: items.collect(),
                origin: Some(crate::wire::log::origin_to_wire(&message.origin)),
                recipients: recipients.collect(),
                finished: String::new(),
            }
        }
    }
}

/// The pieces of a range of a body; empty when the message is gone.
fn locate(request: &v1::FetchRequest, rows: &mut impl ShardRows) -> Vec<Piece> {
    let Ok(id) = message_id(&request.message) else {
        return Vec::new();
    };
    let Some(message) = rows.messages().get(&id) else {
        return Vec::new();
    };
    let (mut skip, mut left) = (request.offset, u64::from(request.length));
    let mut pieces = Vec::new();
    for extent in &message.body {
        if skip >= extent.length {
            skip -= extent.length;
            continue;
        }
        let length = (extent.length - skip).min(left);
        if length == 0 {
            break;
        }
        let Some(location) = rows.locate(extent.index) else {
            return Vec::new();
        };
        pieces.push(Piece {
            index: extent.index,
            location,
            offset: extent.offset + skip,
            length,
        });
        left -= length;
        skip = 0;
    }
    pieces
}

/// Reads a piece of a body. Blocking.
///
/// # Errors
/// The message ended meanwhile, or the disk does not give it back; and where it should lie.
pub fn read_piece(reader: &BodyReader, group: u32, piece: &Piece) -> Result<Bytes, Unread> {
    let (offset, length) = (piece.offset as u32, piece.length as u32);
    reader.read_data(piece.location, group, piece.index, offset, length)
}

/// Reads a body whole; what this disk does not give back comes from another replica.
fn read_all(
    reader: &BodyReader,
    mender: &Mender,
    group: u32,
    pieces: &[Piece],
) -> Result<Bytes, String> {
    let mut all = BytesMut::new();
    for piece in pieces {
        let read = read_piece(reader, group, piece)
            .or_else(|unread| mender.piece_instead_blocking(group, piece, &unread))?;
        all.extend_from_slice(&read);
    }
    Ok(all.freeze())
}

/// A header block that a report waits for: group, decision, and where the header lies.
pub type HeaderRead = (u32, Pending, Vec<Piece>);

/// The thread that reads header blocks, one after another: a burst of failures with an old backlog must not become a
/// burst of threads. What waits is bounded by the settles that a node takes at once. A report without the header is
/// better than none, so an error is logged and the decision goes on. Ends with the state thread.
pub fn read_headers(
    reader: &BodyReader,
    mender: &Mender,
    from: &Receiver<HeaderRead>,
    to: &Sender<StateEvent>,
) {
    while let Ok((group, pending, pieces)) = from.recv() {
        let header = read_all(reader, mender, group, &pieces).unwrap_or_else(|error| {
            tracing::warn!(
                group,
                error,
                "a report goes without the header of its message"
            );
            Bytes::new()
        });
        let _ = to.send(StateEvent::HeaderRead(pending, header));
    }
}
