//! Reports: composed by the leader, written into the entry of the failure that they tell of.
//!
//! A report quotes the header block of its message. A young message's body is in the cache; an older one's header is
//! read from the log first, by another thread, and the decision goes on when it is there ([`Pending`]).

use std::time::Instant;

use bytes::Bytes;
use mail::code::report::EXPIRED;
use mail::dsn::{Action, Report as Composer, ReportedRecipient};
use mail::{Digest, EnhancedCode, Ulid};
use queue::{
    ItemFacts, ItemId, Message, MessageFacts, Origin, RecipientResult, Report, SettleItem,
    Timestamp, Verdict,
};
use rand::RngExt;

use super::{Leader, ShardRows, Turn};
use crate::event::{Piece, SettleReply};

/// Octets of a header block that a report quotes at most.
pub const HEADER_BYTES_MAX: u64 = 64 * 1024;

/// A decision that waits for a header block.
pub enum Pending {
    /// A settle that fails recipients.
    Settle(Box<SettleItem>, SettleReply),
    /// A notice, or an expiry (`true`).
    Timer(ItemId, bool),
}

impl Pending {
    /// The group that it belongs to.
    pub fn group(&self, shards: u32) -> u32 {
        let message = match self {
            Pending::Settle(item, _) => item.item.message,
            Pending::Timer(item, _) => item.message,
        };
        mail::shard(message, shards) + 1
    }
}

/// Why there is a report.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// The next hop refused, or the last deferral came too late.
    Failed,
    /// It expired without another attempt.
    Expired,
    /// It is late, and still being tried.
    Delayed,
}

impl Leader {
    /// Goes on with `pending` at once when the body is in the cache, else asks for its header block.
    pub(super) fn with_header(
        &mut self,
        pending: Pending,
        message: &Message,
        turn: &mut Turn<'_, impl ShardRows>,
    ) {
        let id = match &pending {
            Pending::Settle(item, _) => item.item.message,
            Pending::Timer(item, _) => item.message,
        };
        let wanted = u64::from(message.header_size).min(HEADER_BYTES_MAX);
        if let Some(body) = turn.bodies.get(&id) {
            let header = body.slice(..(wanted as usize).min(body.len()));
            return self.header_read(pending, &header, turn);
        }
        let mut left = wanted;
        let mut pieces: Vec<Piece> = Vec::new();
        for mut piece in super::lease::pieces(turn.rows, &message.body) {
            if left == 0 {
                break;
            }
            piece.length = piece.length.min(left);
            left -= piece.length;
            pieces.push(piece);
        }
        turn.out.reads.push((pending, pieces));
    }

    /// The header block of a pending decision is there (empty: it could not be read, and the report goes without).
    pub fn header_read(
        &mut self,
        pending: Pending,
        header: &Bytes,
        turn: &mut Turn<'_, impl ShardRows>,
    ) {
        match pending {
            Pending::Settle(item, reply) => self.settle_with_header(*item, reply, header, turn),
            Pending::Timer(item, expire) => self.timer_with_header(item, expire, header, turn),
        }
    }

    /// A report and its body. `None` when there is nobody to tell, or nothing.
    pub(super) fn compose(
        &mut self,
        item: ItemId,
        message: &Message,
        recipients: &[(String, Option<RecipientResult>)],
        reason: Reason,
        header: &Bytes,
        now: Instant,
    ) -> Option<(Report, Bytes)> {
        let to = mail::Mailbox::parse(&message.return_path, true).ok()?;
        if recipients.is_empty() || message.is_report {
            return None;
        }
        let time = self.time(now);
        let random = self.rng.random::<u128>();
        let id = mail::in_shard_of(Ulid::from_parts(time.0, random), item.message);
        let (id_text, queue_id) = (id.to_string(), item.message.to_string());
        let until = (reason == Reason::Delayed).then_some(message.expires.0);
        let reported: Vec<_> = recipients
            .iter()
            .map(|(a, r)| reported(a, r.as_ref(), reason, time, until))
            .collect();
        let composed = Composer {
            action: if reason == Reason::Delayed {
                Action::Delayed
            } else {
                Action::Failed
            },
            reporting_mta: &self.policy.reporting_mta,
            id: &id_text,
            now_millis: time.0,
            return_path: &message.return_path,
            queue_id: &queue_id,
            arrival_millis: message.arrived.0,
            recipients: &reported,
            original_header: header,
        }
        .compose();
        let body = Bytes::from(composed.bytes);
        let facts = MessageFacts {
            message: id,
            tenant: message.tenant.clone(),
            class: message.class.clone(),
            priority: message.priority,
            return_path: "".into(),
            items: vec![ItemFacts {
                destination: to.destination(),
                recipients: vec![message.return_path.clone()],
            }],
            size: body.len() as u64,
            digest: Digest::of(&body),
            header_size: composed.header_size as u32,
            eight_bit: composed.eight_bit,
            smtputf8: composed.smtputf8,
            chunks: 0,
            origin: std::sync::Arc::new(Origin {
                message_id: composed.message_id,
                ..Origin::default()
            }),
            trace_context: message.trace_context.clone(),
            arrived: time,
        };
        metrics::counter!("postroad_reports_total", "kind" => reason.label()).increment(1);
        Some((
            Report {
                facts,
                offset: 0,
                expires: self.policy.retry.expires(time),
            },
            body,
        ))
    }
}

impl Reason {
    fn label(self) -> &'static str {
        match self {
            Reason::Failed => "failed",
            Reason::Expired => "expired",
            Reason::Delayed => "delayed",
        }
    }
}

fn reported<'a>(
    address: &'a str,
    result: Option<&'a RecipientResult>,
    reason: Reason,
    now: Timestamp,
    will_retry_until_millis: Option<u64>,
) -> ReportedRecipient<'a> {
    // Who read "5.1.1" for a 450 that was repeated until the time was over would strike out a good address: only what was refused
    // for good is of class 5 (RFC 3463 section 2).
    let refused = result.is_some_and(|r| r.verdict == Verdict::Failed);
    let said = result
        .filter(|_| reason == Reason::Failed)
        .and_then(|r| EnhancedCode::parse(&r.enhanced));
    let status = match said {
        Some(said) => EnhancedCode {
            class: if refused { 5 } else { 4 },
            ..said
        },
        None if refused => EnhancedCode::new(5, 0, 0),
        None => EXPIRED,
    };
    let words = match reason {
        Reason::Failed => "The next server refused it, or it could not be delivered in time.",
        Reason::Expired => "It could not be delivered in time and is given up.",
        Reason::Delayed => "It could not be delivered yet. It is still being tried.",
    };
    ReportedRecipient {
        address,
        status,
        reply: result.filter(|r| r.code > 0).map(|r| (r.code, &*r.text)),
        reason: result
            .filter(|r| r.code == 0 && !r.text.is_empty())
            .map_or(words, |r| &*r.text),
        // RFC 3464 2.3.5: who reported the status; a host that was only called did not.
        remote_host: result
            .filter(|r| !r.never_reached)
            .map(|r| &*r.remote_host)
            .filter(|h| !h.is_empty()),
        // A failure is told as it happens. When the attempt before a delay or an expiry was, is not kept.
        last_attempt_millis: result.filter(|_| reason == Reason::Failed).map(|_| now.0),
        will_retry_until_millis,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(code: u16, never_reached: bool) -> RecipientResult {
        RecipientResult {
            recipient: 0,
            verdict: Verdict::Deferred,
            code,
            enhanced: "4.4.1".into(),
            text: "why".into(),
            remote_host: "mx.example.net".into(),
            remote_address: "".into(),
            tls: "".into(),
            connect_ms: 0,
            total_ms: 0,
            dkim_selectors: Vec::new(),
            never_reached,
            ambiguous: false,
        }
    }

    #[test]
    fn a_report_names_a_host_that_was_reached_and_a_time_that_is_known() {
        let told = |result: &RecipientResult, reason| {
            let told = reported("a@b.example", Some(result), reason, Timestamp(7), None);
            (told.remote_host.is_some(), told.last_attempt_millis)
        };
        let (spoke, silent, unreached) = (result(451, false), result(0, false), result(0, true));
        assert_eq!(told(&spoke, Reason::Failed), (true, Some(7)));
        assert_eq!(told(&silent, Reason::Failed), (true, Some(7)));
        assert_eq!(told(&unreached, Reason::Failed), (false, Some(7)));
        // The attempt was hours ago.
        assert_eq!(told(&spoke, Reason::Delayed), (true, None));
        assert_eq!(told(&unreached, Reason::Expired), (false, None));
    }

    /// A 450 that was repeated until the time was over was told as 5.1.1, and good addresses were struck out for it.
    #[test]
    fn only_what_was_refused_for_good_is_of_class_five() {
        let told = |verdict, enhanced: &str, reason| {
            let result = RecipientResult {
                verdict,
                enhanced: enhanced.into(),
                ..result(450, false)
            };
            let told = reported("a@b.example", Some(&result), reason, Timestamp(7), None);
            told.status.to_string()
        };
        assert_eq!(told(Verdict::Deferred, "4.1.1", Reason::Failed), "4.1.1");
        assert_eq!(told(Verdict::Deferred, "", Reason::Failed), "4.4.7");
        assert_eq!(told(Verdict::Deferred, "4.2.2", Reason::Expired), "4.4.7");
        // Some servers say 550 4.1.1.
        assert_eq!(told(Verdict::Failed, "4.1.1", Reason::Failed), "5.1.1");
        assert_eq!(told(Verdict::Failed, "", Reason::Failed), "5.0.0");
        let never = reported("a@b.example", None, Reason::Failed, Timestamp(7), None);
        assert_eq!(never.status, EXPIRED);
    }
}
