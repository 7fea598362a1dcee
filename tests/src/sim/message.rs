//! The mail of a simulation: every message has a body of its own, which its id tells.

use bytes::Bytes;
use mail::{Destination, Digest, Ulid};
use queue::{ItemFacts, MessageFacts, Origin, RecipientResult, Timestamp, Verdict};

/// Octets of a chunk of a big message: within a sector of the disk, or over some of them.
const CHUNK: [usize; 2] = [700, 5000];

pub fn facts(id: Ulid, return_path: &str, body: &[u8], chunks: u32) -> MessageFacts {
    let item = ItemFacts {
        destination: Destination::from_canonical("example.net"),
        recipients: vec!["user@example.net".into()],
    };
    MessageFacts {
        message: id,
        tenant: "default".into(),
        class: "default".into(),
        priority: 0,
        return_path: return_path.into(),
        items: vec![item],
        size: body.len() as u64,
        digest: Digest::of(body),
        header_size: 0,
        eight_bit: false,
        smtputf8: false,
        chunks,
        origin: Origin::default().into(),
        trace_context: "".into(),
        arrived: Timestamp(0),
    }
}

/// Every message has a body of its own.
pub fn body(id: Ulid) -> Bytes {
    let octets = id.to_bytes();
    let length = 16 + usize::from(octets[15]);
    octets.iter().copied().cycle().take(length).collect()
}

pub fn result(verdict: Verdict) -> RecipientResult {
    RecipientResult {
        recipient: 0,
        verdict,
        code: match verdict {
            Verdict::Delivered => 250,
            Verdict::Deferred => 451,
            Verdict::Failed => 550,
        },
        enhanced: "".into(),
        text: "".into(),
        remote_host: "mx.example.net".into(),
        remote_address: "".into(),
        tls: "".into(),
        connect_ms: 0,
        total_ms: 0,
        dkim_selectors: Vec::new(),
        never_reached: false,
        ambiguous: false,
    }
}

/// A part of a big message's body.
pub fn chunk(id: Ulid, seq: u32) -> Bytes {
    let octets = id.to_bytes();
    let first = octets[15].wrapping_add(seq as u8);
    (0..CHUNK[usize::from(octets[14] & 1)])
        .map(|at| first.wrapping_add(at as u8))
        .collect()
}

/// The body of a message that came in `chunks`; 0: at once.
pub fn whole(id: Ulid, chunks: u32) -> Bytes {
    match chunks {
        0 => body(id),
        chunks => (0..chunks).flat_map(|seq| chunk(id, seq)).collect(),
    }
}
