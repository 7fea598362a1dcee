//! What an edge may send. Checked once, before the proposal; `apply` and the rows rely on it.
//!
//! The limits of the short texts together keep a message's row below `state::ROW_MAX`.

use bytes::Bytes;
use mail::Digest;
use prost::Message as _;
use proto::v1;
use queue::{MessageFacts, RECIPIENTS_PER_ITEM_MAX};

use super::{CONTEXT_MAX, WireError, from_wire};

/// What the leader adds to the facts (times, grants, framing), octets.
const CONTEXT_RESERVE: usize = 16 * 1024;

/// Octets of a tenant or class: both are Kubernetes names (RFC 1123 labels).
pub const LABEL_MAX: usize = 63;

/// Octets of a destination: RFC 5321 4.5.3.1.2 limits a domain to 255.
pub const DESTINATION_MAX: usize = 255;

/// Octets of an address: RFC 5321 4.5.3.1 limits the local part to 64 and the domain to 255.
pub const ADDRESS_MAX: usize = 64 + 1 + 255;

/// Octets of Origin's Message-ID.
pub const MESSAGE_ID_MAX: usize = 250;

/// Octets of the sender's own tag.
pub const TAG_MAX: usize = 128;

/// Octets of the sender's own data.
pub const META_MAX: usize = 512;

/// Octets of a host's, node's or principal's name.
pub const NAME_MAX: usize = 255;

/// Octets of the other words of an origin (address, listener, TLS version and cipher) and of a traceparent (55).
pub const WORD_MAX: usize = 64;

/// Body in the entry itself up to this size, octets; above it comes in chunks of at most this size. A Raft message
/// holds a few of them, and a bigger one would hold up the small mail behind it.
pub const BODY_PART_MAX: u64 = 1024 * 1024;

/// Chunks of a body: its message's row names each.
pub const CHUNKS_MAX: u32 = 256;

/// Extreme of a priority, either way (RFC 6710).
pub const PRIORITY_MAX: i32 = 9;

fn broken(field: &'static str, problem: impl Into<String>) -> WireError {
    WireError::Field {
        field,
        problem: problem.into(),
    }
}

/// NUL and line ends have no place in any of these, and a key in the metadata store ends its texts with NUL.
fn text(field: &'static str, value: &str, max: usize) -> Result<(), WireError> {
    if value.len() > max {
        return Err(broken(
            field,
            format!("has {} octets, at most {max} are allowed", value.len()),
        ));
    }
    if value.bytes().any(|b| matches!(b, 0 | b'\r' | b'\n')) {
        return Err(broken(field, "holds NUL or a line end"));
    }
    Ok(())
}

fn filled(field: &'static str, value: &str, max: usize) -> Result<(), WireError> {
    if value.is_empty() {
        return Err(broken(field, "is empty"));
    }
    text(field, value, max)
}

/// Checks an append, and takes it apart into facts and body. The body is checked against its digest, so damage
/// between the edge and here is found before anything is promised.
///
/// # Errors
/// [`WireError::Field`] names the field and the limit: answer `APPEND_OUTCOME_INVALID` with its text.
pub fn facts_from_append(append: v1::AppendMessage) -> Result<(MessageFacts, Bytes), WireError> {
    let facts = append.facts.ok_or_else(|| broken("facts", "are missing"))?;
    check_message(&facts)?;
    let origin = facts
        .origin
        .as_ref()
        .ok_or_else(|| broken("origin", "is missing"))?;
    check_origin(origin)?;
    let length = facts.encoded_len();
    if length > CONTEXT_MAX - CONTEXT_RESERVE {
        let max = CONTEXT_MAX - CONTEXT_RESERVE;
        return Err(broken(
            "facts",
            format!("have {length} octets, at most {max} are allowed: too many recipients"),
        ));
    }
    let facts = from_wire::message(facts)?;
    check_body(&facts, &append.body)?;
    Ok((facts, append.body))
}

/// Checks a part of a big body and gives its message.
///
/// # Errors
/// [`WireError::Field`], as in [`facts_from_append`].
pub fn chunk_from_append(chunk: &v1::AppendChunk) -> Result<mail::Ulid, WireError> {
    if chunk.data.is_empty() || chunk.data.len() as u64 > BODY_PART_MAX {
        return Err(broken(
            "data",
            format!(
                "has {} octets, 1 to {BODY_PART_MAX} are allowed",
                chunk.data.len()
            ),
        ));
    }
    if chunk.seq >= CHUNKS_MAX {
        return Err(broken(
            "seq",
            format!(
                "{} is too high, a body has at most {CHUNKS_MAX} chunks",
                chunk.seq
            ),
        ));
    }
    from_wire::ulid(&chunk.message)
}

fn check_message(facts: &v1::MessageFacts) -> Result<(), WireError> {
    filled("tenant", &facts.tenant, LABEL_MAX)?;
    filled("class", &facts.class, LABEL_MAX)?;
    text("return_path", &facts.return_path, ADDRESS_MAX)?;
    text("trace_context", &facts.trace_context, WORD_MAX)?;
    if facts.priority.abs() > PRIORITY_MAX {
        return Err(broken(
            "priority",
            format!(
                "{} is not between -{PRIORITY_MAX} and {PRIORITY_MAX}",
                facts.priority
            ),
        ));
    }
    if facts.items.is_empty() {
        return Err(broken("items", "are none"));
    }
    if u64::from(facts.header_size) > facts.size {
        return Err(broken("header_size", "is more than the body's size"));
    }
    facts.items.iter().try_for_each(check_item)
}

fn check_item(item: &v1::ItemFacts) -> Result<(), WireError> {
    filled("destination", &item.destination, DESTINATION_MAX)?;
    let count = item.recipients.len();
    if count == 0 || count > RECIPIENTS_PER_ITEM_MAX {
        let problem =
            format!("are {count} in one item, 1 to {RECIPIENTS_PER_ITEM_MAX} are allowed");
        return Err(broken("recipients", problem));
    }
    item.recipients
        .iter()
        .try_for_each(|to| filled("address", &to.address, ADDRESS_MAX))
}

fn check_origin(origin: &v1::Origin) -> Result<(), WireError> {
    text("message_id", &origin.message_id, MESSAGE_ID_MAX)?;
    text("tag", &origin.tag, TAG_MAX)?;
    text("meta", &origin.meta, META_MAX)?;
    text("client_address", &origin.client_address, WORD_MAX)?;
    text("helo", &origin.helo, NAME_MAX)?;
    text("principal", &origin.principal, NAME_MAX)?;
    text("listener", &origin.listener, WORD_MAX)?;
    text("tls_version", &origin.tls_version, WORD_MAX)?;
    text("tls_cipher", &origin.tls_cipher, WORD_MAX)?;
    text("edge", &origin.edge, NAME_MAX)
}

fn check_body(facts: &MessageFacts, body: &[u8]) -> Result<(), WireError> {
    let length = body.len() as u64;
    if facts.chunks > 0 {
        if length > 0 {
            return Err(broken("body", "is present though the body came in chunks"));
        }
        if facts.chunks > CHUNKS_MAX || facts.size > u64::from(facts.chunks) * BODY_PART_MAX {
            let problem = format!(
                "{} for {} octets: at most {CHUNKS_MAX}, of 1 MiB each",
                facts.chunks, facts.size
            );
            return Err(broken("chunks", problem));
        }
        return Ok(());
    }
    if length != facts.size {
        return Err(broken(
            "size",
            format!("says {} octets, the body has {length}", facts.size),
        ));
    }
    if length > BODY_PART_MAX {
        return Err(broken(
            "body",
            format!("has {length} octets; above {BODY_PART_MAX} it comes in chunks"),
        ));
    }
    if Digest::of(body) != facts.digest {
        return Err(broken(
            "digest",
            "is not the body's: it was damaged on the way",
        ));
    }
    Ok(())
}
