//! What the queue is told of a message: envelope and origin in the words of the wire.

use std::collections::HashMap;

use mail::header::HeaderFacts;
use mail::{Envelope, Mailbox, ReversePath, Ulid};
use proto::v1::{ItemFacts, MessageFacts, Origin, RecipientFacts};
use smtp::server::Commit;

use crate::append::Client;
use crate::policy::Admission;

/// Recipients of one item: what one transaction at the next hop takes for sure (RFC 5321 section 4.5.3.1.8).
const ITEM_RECIPIENTS_MAX: usize = 100;
/// Octets of the facts of one message. A log entry's context holds 256 KiB; the leader adds the rest.
const FACTS_BYTES_MAX: usize = 240 << 10;
/// Octets that all facts but the recipients may take: return path, origin, names, each bounded by RFC 5321 or the schema.
const FACTS_BYTES_FIXED: usize = 8 << 10;
/// Octets that the wire adds to a recipient or an item: two tags with lengths of up to three octets.
const FRAMING_BYTES: usize = 8;

const _: () = assert!(FACTS_BYTES_FIXED < FACTS_BYTES_MAX);

/// Counts what the recipients of a transaction will take in the log.
#[derive(Debug)]
pub(crate) struct Room(usize);

impl Default for Room {
    fn default() -> Room {
        Room(FACTS_BYTES_MAX - FACTS_BYTES_FIXED)
    }
}

impl Room {
    /// Takes room for a recipient; false: there is none, and nothing was taken. Counts each as an item of its own, so the
    /// estimate is never too small.
    pub fn take(&mut self, recipient: &Mailbox) -> bool {
        let address = recipient.to_string().len();
        let octets = 2 * address + 2 * FRAMING_BYTES;
        match self.0.checked_sub(octets) {
            Some(left) => self.0 = left,
            None => return false,
        }
        true
    }
}

/// What a message asks of whoever takes it next. What the client declared is only what it may ask: many clients declare
/// 8BITMIME and SMTPUTF8 for plain ASCII, which any host takes (RFC 6152 section 3, RFC 6531 section 3.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// 8BITMIME: octets above 127 stand in it.
    eight_bit: bool,
    /// SMTPUTF8: they stand in its header block. Addresses speak for themselves, at each item.
    smtputf8: bool,
}

impl Needs {
    /// `trace_ascii`: of the field that we put before the content.
    pub fn of(commit: &Commit, trace_ascii: bool) -> Needs {
        Needs {
            eight_bit: commit.eight_bit || !trace_ascii,
            // Who did not ask for it and sends such a header gets what it got before SMTPUTF8: eight bits.
            smtputf8: commit.envelope.smtputf8 && (commit.header.eight_bit || !trace_ascii),
        }
    }
}

/// The facts of a message, without its body's size and digest.
pub(crate) fn message(
    id: Ulid,
    envelope: &Envelope,
    needs: Needs,
    admission: &Admission,
) -> MessageFacts {
    MessageFacts {
        message: proto::ulid_bytes(id),
        tenant: admission.tenant.as_ref().into(),
        class: admission.class.as_ref().into(),
        return_path: match &envelope.return_path {
            ReversePath::Null => String::new(),
            ReversePath::Mailbox(mailbox) => mailbox.to_string(),
        },
        items: items(&envelope.recipients),
        eight_bit: needs.eight_bit,
        smtputf8: needs.smtputf8,
        trace_context: trace_context(),
        ..MessageFacts::default()
    }
}

/// Where a message came from.
pub(crate) fn origin(
    client: &Client,
    admission: &Admission,
    header: &HeaderFacts,
    node: &str,
) -> Origin {
    let tls = client.tls.as_ref();
    Origin {
        message_id: header.message_id.clone().unwrap_or_default(),
        client_address: client.address.to_string(),
        helo: client.helo.clone(),
        principal: admission.principal.as_deref().unwrap_or_default().into(),
        listener: client.listener.as_ref().into(),
        edge: node.into(),
        tls_version: tls.map_or_else(String::new, |tls| tls.version.into()),
        tls_cipher: tls.map_or_else(String::new, |tls| tls.cipher.clone()),
        ..Origin::default()
    }
}

/// One item a destination, in the order in which the destinations were first named; split above 100 recipients.
fn items(recipients: &[Mailbox]) -> Vec<ItemFacts> {
    let mut items: Vec<ItemFacts> = Vec::new();
    let mut open: HashMap<mail::Destination, usize> = HashMap::new();
    for recipient in recipients {
        let destination = recipient.destination();
        let fact = RecipientFacts {
            address: recipient.to_string(),
        };
        match open.get(&destination) {
            Some(&n) if items[n].recipients.len() < ITEM_RECIPIENTS_MAX => {
                items[n].recipients.push(fact)
            }
            _ => {
                items.push(ItemFacts {
                    destination: destination.as_str().into(),
                    recipients: vec![fact],
                });
                open.insert(destination, items.len() - 1);
            }
        }
    }
    items
}

/// A W3C traceparent of a trace that begins here, not sampled.
fn trace_context() -> String {
    let (trace, span): (u128, u64) = (rand::random(), rand::random());
    // The all-zero ids mean "invalid" (Trace Context section 3.2.2).
    format!("00-{:032x}-{:016x}-00", trace.max(1), span.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mailboxes(addresses: impl IntoIterator<Item = String>) -> Vec<Mailbox> {
        addresses
            .into_iter()
            .map(|text| Mailbox::parse(&text, false).unwrap())
            .collect()
    }

    #[test]
    fn a_message_needs_what_it_holds_and_not_what_was_declared() {
        let needs = |declared: (bool, bool), content: bool, header: bool, trace_ascii: bool| {
            let mut envelope = Envelope::new(ReversePath::Null);
            (envelope.eight_bit, envelope.smtputf8) = declared;
            let commit = Commit {
                envelope: envelope.into(),
                size: 0,
                eight_bit: content,
                header: HeaderFacts {
                    eight_bit: header,
                    ..HeaderFacts::default()
                },
            };
            let needs = Needs::of(&commit, trace_ascii);
            (needs.eight_bit, needs.smtputf8)
        };
        let (nothing, all) = ((false, false), (true, true));
        assert_eq!(needs(all, false, false, true), (false, false), "all ASCII");
        assert_eq!(needs(all, true, false, true), (true, false), "in the body");
        assert_eq!(needs(all, true, true, true), (true, true), "in the header");
        assert_eq!(
            needs(all, false, false, false),
            (true, true),
            "in our field"
        );
        assert_eq!(
            needs(nothing, true, true, true),
            (true, false),
            "undeclared"
        );
    }

    #[test]
    fn recipients_become_one_item_a_destination_split_at_a_hundred() {
        let addresses =
            (0..150).flat_map(|n| [format!("u{n}@a.example"), format!("u{n}@[192.0.2.1]")]);
        let items = items(&mailboxes(addresses));
        let shape: Vec<(&str, usize)> = items
            .iter()
            .map(|i| (i.destination.as_str(), i.recipients.len()))
            .collect();
        assert_eq!(
            shape,
            [
                ("a.example", 100),
                ("[192.0.2.1]", 100),
                ("a.example", 50),
                ("[192.0.2.1]", 50)
            ]
        );
        assert_eq!(items[2].recipients[0].address, "u100@a.example");
    }

    #[test]
    fn the_estimate_of_recipients_is_never_below_what_the_wire_takes() {
        use prost::Message;
        let mut room = Room::default();
        let long = |n: usize| format!("{n:064}@{}.example", ["x"; 90].join("."));
        let mut taken = Vec::new();
        while room.take(&Mailbox::parse(&long(taken.len()), false).unwrap()) {
            taken.push(long(taken.len()));
        }
        assert!(taken.len() > 400, "{}", taken.len());
        let mut envelope = Envelope::new(ReversePath::Null);
        envelope.recipients = mailboxes(taken);
        let admission = Admission {
            tenant: "t".into(),
            class: "c".into(),
            principal: None,
        };
        let facts = message(Ulid(1), &envelope, Needs::default(), &admission);
        assert!(facts.encoded_len() <= FACTS_BYTES_MAX - FACTS_BYTES_FIXED + 100);
    }
}
