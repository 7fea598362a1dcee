//! One attempt in the queue's words: a hand-out to a transaction, an outcome to a result per recipient.

use std::collections::HashSet;
use std::sync::Arc;

use mail::{Envelope, Mailbox, Reply, ReversePath};
use proto::v1;
use smtp::client::{Failure, Outcome, RecipientOutcome, Stage, Transaction, Verdict};

use crate::dkim::Signature;
use crate::item::ItemId;
use crate::route::{Hop, NoRoute};

/// Octets of reply text that travel to the queue (log.proto).
const TEXT_BYTES_MAX: usize = 512;

/// One leased item, on its way.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) item: ItemId,
    pub(crate) shard: u32,
    /// Its recipients are those that are still to be told of.
    pub(crate) handout: Box<v1::Handout>,
    /// Results of this attempt that stand: of recipients that an earlier host refused, when others went on to the next, or
    /// that an earlier transaction with this host was for.
    pub(crate) decided: Vec<v1::RecipientResult>,
    /// Connections that were lost under it.
    pub(crate) lost: u32,
    /// Of its message, shared with the other items of it.
    pub(crate) signature: Arc<Signature>,
}

impl Work {
    /// The destination's canonical text.
    pub(crate) fn destination(&self) -> &str {
        self.handout
            .message
            .as_ref()
            .map_or("", |message| &message.destination)
    }

    /// What to say to the next hop; the text says what is wrong with the hand-out.
    pub(crate) fn transaction(&self) -> Result<Transaction, String> {
        let message = self
            .handout
            .message
            .as_ref()
            .ok_or("the queue handed out an item without its message")?;
        let return_path = ReversePath::parse(&message.return_path, true).map_err(|error| {
            format!("the return path {:?} is none: {error}", message.return_path)
        })?;
        let mut envelope = Envelope::new(return_path);
        for recipient in &self.handout.recipients {
            let mailbox = Mailbox::parse(&recipient.address, true).map_err(|error| {
                format!("the recipient {:?} is none: {error}", recipient.address)
            })?;
            envelope.recipients.push(mailbox);
        }
        if envelope.recipients.is_empty() {
            return Err("the queue handed out an item without recipients".into());
        }
        envelope.eight_bit = message.eight_bit;
        envelope.smtputf8 = message.smtputf8;
        Ok(Transaction {
            envelope,
            size: message.size,
        })
    }

    /// The same result for every recipient that has none yet.
    pub(crate) fn all(&self, result: &v1::RecipientResult) -> Vec<v1::RecipientResult> {
        self.with(|_| result.clone())
    }

    /// The results of a transaction. A recipient that the outcome does not name is deferred.
    pub(crate) fn results(&self, outcome: &Outcome, at: &At) -> Vec<v1::RecipientResult> {
        let silent = at.deferred("4.3.0", "the attempt ended without a result");
        let of = |outcome: &RecipientOutcome| at.result(outcome);
        self.with(|n| outcome.recipients.get(n).map_or_else(|| silent.clone(), of))
    }

    /// What stands already, and for each other recipient what `result` gives by its place; in the order of recipients.
    fn with(&self, result: impl Fn(usize) -> v1::RecipientResult) -> Vec<v1::RecipientResult> {
        let open = self.handout.recipients.iter().enumerate();
        let open = open.map(|(n, recipient)| v1::RecipientResult {
            recipient: recipient.recipient,
            ..result(n)
        });
        let mut results: Vec<_> = self.decided.iter().cloned().chain(open).collect();
        results.sort_by_key(|result| result.recipient);
        results
    }

    /// Those that the next host may take remain; the results of the others stand.
    pub(crate) fn go_on(&mut self, results: &[v1::RecipientResult]) {
        let open = results.iter().filter(|result| may_be_taken(result));
        let open: HashSet<u32> = open.map(|result| result.recipient).collect();
        self.keep(&open, results);
    }

    /// These recipients remain; the results of the others stand.
    pub(crate) fn keep(&mut self, open: &HashSet<u32>, results: &[v1::RecipientResult]) {
        let recipients = &mut self.handout.recipients;
        recipients.retain(|recipient| open.contains(&recipient.recipient));
        let decided = results.iter();
        let decided = decided.filter(|result| !open.contains(&result.recipient));
        self.decided = decided.cloned().collect();
    }

    /// Recipients for whom the host wants another transaction: it took the message for others, and these were too many for
    /// one (RFC 5321 section 4.5.3.1.10). None where it took nobody: each transaction more has fewer recipients.
    pub(crate) fn left_over(&self, outcome: &Outcome) -> HashSet<u32> {
        let taken = |outcome: &RecipientOutcome| outcome.verdict == Verdict::Delivered;
        if !outcome.recipients.iter().any(taken) {
            return HashSet::new();
        }
        let each = self.handout.recipients.iter().zip(&outcome.recipients);
        each.filter(|(_, outcome)| is_too_many(outcome))
            .map(|(recipient, _)| recipient.recipient)
            .collect()
    }

    /// An earlier transaction of this attempt delivered it to some of its recipients.
    pub(crate) fn is_delivered_in_part(&self) -> bool {
        any_delivered(&self.decided)
    }

    /// Its results for the queue, under this grant.
    pub(crate) fn request(
        &self,
        token: u64,
        session: u64,
        results: Vec<v1::RecipientResult>,
    ) -> v1::SettleRequest {
        v1::SettleRequest {
            request: 0,
            shard: self.shard,
            item: Some(self.item.to_wire()),
            token,
            session,
            release: false,
            results,
        }
    }
}

/// Where and how long: what all results of one attempt share.
#[derive(Clone, Debug, Default)]
pub(crate) struct At {
    pub(crate) host: String,
    pub(crate) address: String,
    pub(crate) connect_ms: u32,
    pub(crate) total_ms: u32,
    /// See `Connection::tls`.
    pub(crate) tls: String,
    /// Of the keys that signed.
    pub(crate) selectors: Vec<String>,
}

impl At {
    pub(crate) fn hop(hop: &Hop, connect_ms: u32, total_ms: u32) -> At {
        At {
            host: hop.host.clone(),
            address: hop.address.to_string(),
            connect_ms,
            total_ms,
            ..At::default()
        }
    }

    fn base(&self) -> v1::RecipientResult {
        v1::RecipientResult {
            remote_host: self.host.clone(),
            remote_address: self.address.clone(),
            connect_ms: self.connect_ms,
            total_ms: self.total_ms,
            tls: self.tls.clone(),
            dkim_selectors: self.selectors.clone(),
            ..Default::default()
        }
    }

    /// A deferral of our own making.
    pub(crate) fn deferred(&self, enhanced: &str, text: &str) -> v1::RecipientResult {
        let mut result = self.base();
        result.set_verdict(v1::Verdict::Deferred);
        result.enhanced = enhanced.to_string();
        result.text = cut(text);
        result
    }

    /// What stands in the journal while the reply to the final dot is waited for.
    pub(crate) fn if_lost(&self) -> v1::RecipientResult {
        // RFC 3463 X.4.2: bad connection.
        let text = "this node ended after the final dot and before the reply: the message may have been delivered";
        v1::RecipientResult {
            ambiguous: true,
            ..self.deferred("4.4.2", text)
        }
    }

    fn result(&self, outcome: &RecipientOutcome) -> v1::RecipientResult {
        let mut result = self.base();
        result.set_verdict(verdict(outcome.verdict));
        result.code = outcome.reply.as_ref().map_or(0, |reply| reply.code.into());
        result.enhanced = outcome.enhanced.to_string();
        result.text = cut(&as_said(outcome.reply.as_ref(), &outcome.text));
        result.ambiguous = outcome.ambiguous;
        result
    }

    /// No SMTP session came about with this host: it greeted with a refusal, or was lost before a transaction.
    pub(crate) fn refused(&self, failure: &Failure) -> v1::RecipientResult {
        let mut result = self.base();
        result.set_verdict(verdict(failure.verdict));
        result.code = failure.reply.as_ref().map_or(0, |reply| reply.code.into());
        result.enhanced = failure.enhanced.to_string();
        result.text = cut(&as_said(failure.reply.as_ref(), &failure.text));
        result
    }
}

/// The result when there is nowhere to go.
pub(crate) fn unroutable(no: &NoRoute) -> v1::RecipientResult {
    let mut result = v1::RecipientResult {
        never_reached: true,
        ..Default::default()
    };
    result.set_verdict(if no.permanent {
        v1::Verdict::Failed
    } else {
        v1::Verdict::Deferred
    });
    result.enhanced = no.enhanced.to_string();
    result.text = cut(&no.text);
    result
}

/// The connection was lost before anything of the message could have been taken: another host, or the same one over a
/// new connection, may try at once (RFC 5321 section 5.1).
pub(crate) fn may_go_elsewhere(outcome: &Outcome) -> bool {
    outcome.recipients.iter().all(|recipient| {
        let closed = recipient.reply.as_ref().is_some_and(|reply| reply.closes())
            && recipient.stage <= Stage::Mail;
        let silent = recipient.reply.is_none() && recipient.stage < Stage::FinalDot;
        recipient.verdict == Verdict::Deferred && !recipient.ambiguous && (closed || silent)
    })
}

/// A success stands among them: it must reach the queue, whatever becomes of the others.
pub(crate) fn any_delivered(results: &[v1::RecipientResult]) -> bool {
    let mut verdicts = results.iter().map(v1::RecipientResult::verdict);
    verdicts.any(|verdict| verdict == v1::Verdict::Delivered)
}

/// A host said itself why it takes none of those that are left: it would say the same at each of its addresses. 421 says only
/// that this machine of perhaps several closes.
pub(crate) fn is_told(results: &[v1::RecipientResult]) -> bool {
    let told = |result: &v1::RecipientResult| result.code > 0 && result.code != 421;
    let later = |result: &v1::RecipientResult| result.verdict() == v1::Verdict::Deferred;
    results.iter().any(|result| told(result) && later(result))
}

/// The recipient was one too many for its transaction. A code about something else says so: a full mailbox (RFC 3463 X.2.2)
/// or a full disk (X.3.1) is the same in the next one.
fn is_too_many(outcome: &RecipientOutcome) -> bool {
    let says_so = |reply: &Reply| {
        matches!(reply.code, 452 | 552) && reply.enhanced.is_none_or(|code| code.subject == 5)
    };
    outcome.stage == Stage::Rcpt
        && outcome.verdict == Verdict::Deferred
        && outcome.reply.as_ref().is_some_and(says_so)
}

/// A transaction came to an end, and took nobody in for whom another host might still do: that one is asked in the same
/// attempt, "in order until a delivery attempt succeeds" (RFC 5321 section 5.1). Where a recipient was taken the attempt
/// has succeeded; the others wait for their next one, for what is delivered must not hang on a conversation with a second
/// host.
pub(crate) fn next_host_may_take(results: &[v1::RecipientResult]) -> bool {
    results.iter().any(may_be_taken)
        && results
            .iter()
            .all(|result| result.verdict() != v1::Verdict::Delivered && !result.ambiguous)
}

/// It said "not now", whatever it was about: a greylist, a full disk, a sick database are that host's own. Or this node
/// itself saw from what the host offers that it cannot take the message.
fn may_be_taken(result: &v1::RecipientResult) -> bool {
    result.verdict() == v1::Verdict::Deferred || is_our_refusal(result)
}

/// The host was not asked: it lacks what the message needs. The attempt fails for that only if all hosts lack it.
pub(crate) fn is_our_refusal(result: &v1::RecipientResult) -> bool {
    result.verdict() == v1::Verdict::Failed && result.code == 0
}

/// What stands of two hosts' results of the same recipients: the later one, unless it is only that the host was not asked
/// while the one before said "not now". `None`: the later one said nothing.
pub(crate) fn merge(
    before: Vec<v1::RecipientResult>,
    now: Option<Vec<v1::RecipientResult>>,
) -> Vec<v1::RecipientResult> {
    let Some(now) = now else { return before };
    let one = |(before, now): (v1::RecipientResult, v1::RecipientResult)| {
        let keeps = is_our_refusal(&now) && before.verdict() == v1::Verdict::Deferred;
        if keeps { before } else { now }
    };
    before.into_iter().zip(now).map(one).collect()
}

/// A host that was not reached, or not tried, may offer what the others lack: the mail waits for it.
pub(crate) fn wait_for_the_rest(results: &mut [v1::RecipientResult]) {
    for result in results.iter_mut().filter(|result| is_our_refusal(result)) {
        result.set_verdict(v1::Verdict::Deferred);
        result.enhanced = result.enhanced.replacen('5', "4", 1);
        result.text = cut(&format!("{}; another host was not asked", result.text));
    }
}

fn verdict(verdict: Verdict) -> v1::Verdict {
    match verdict {
        Verdict::Delivered => v1::Verdict::Delivered,
        Verdict::Deferred => v1::Verdict::Deferred,
        Verdict::Failed => v1::Verdict::Failed,
    }
}

/// The text of a reply with the enhanced code that stood before it: a report quotes the next hop as it spoke (RFC 3464
/// 2.3.6). Without a code of its own, or without a reply, the text alone.
fn as_said(reply: Option<&Reply>, text: &str) -> String {
    match reply.and_then(|reply| reply.enhanced) {
        Some(enhanced) => format!("{enhanced} {text}"),
        None => text.to_owned(),
    }
}

fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].replace('\n', " ")
}
