//! Compares what got 250 with what arrived.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::{Duration, Instant};

use mail::Digest;

use super::client::{Attempt, Client, Outcome};
use super::sink::{Copy, Sink};

/// A settle is flushed after 5 ms and waits for an election at most: a delivery node that lived longer than this after a
/// next hop's 250 has no excuse for a second delivery.
const SETTLE_TIME: Duration = Duration::from_secs(10);
/// What a process wrote into a socket before it was killed can be read so much later.
const IN_THE_SOCKET: Duration = Duration::from_secs(2);

/// The end of a delivery node that was killed.
#[derive(Clone, Debug)]
pub struct Killed {
    /// What it called itself in EHLO.
    pub hostname: String,
    /// When.
    pub at: Instant,
}

/// What came of the messages.
#[derive(Debug, Default)]
pub struct Tally {
    /// Messages that got 250.
    pub acked: usize,
    /// Attempts whose fate the client never heard.
    pub unknown: usize,
    /// Copies that came because a client sent again after it lost a 250: the first window of SMTP.
    pub resent: usize,
    /// Copies that came because a delivery node died between final dot and settle: the second window.
    pub redelivered: usize,
    /// Got 250 and never arrived.
    pub lost: Vec<u64>,
    /// Arrived with other octets than were sent.
    pub damaged: Vec<String>,
    /// Copies that neither window explains.
    pub unexplained: Vec<String>,
    /// Refusals by text.
    pub refusals: BTreeMap<String, usize>,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "acked {}, lost {}, damaged {}; duplicates: {} by the client after {} lost replies, {} by killed delivery \
             nodes, {} unexplained; refusals {:?}",
            self.acked,
            self.lost.len(),
            self.damaged.len(),
            self.resent,
            self.unknown,
            self.redelivered,
            self.unexplained.len(),
            self.refusals
        )
    }
}

impl Tally {
    /// `None` when every acknowledged message arrived as it was sent, every further copy has its reason, and nothing was
    /// refused for good.
    pub fn fault(&self) -> Option<String> {
        let clean = self.lost.is_empty() && self.damaged.is_empty() && self.unexplained.is_empty();
        if !clean {
            return Some(format!("{self}\n{self:#?}"));
        }
        let permanent = self.refusals.keys().find(|text| text.starts_with('5'));
        permanent.map(|text| format!("nothing here is refused for good, and was with {text}"))
    }

    /// Panics when there is a fault.
    pub fn must_hold(&self) {
        if let Some(fault) = self.fault() {
            panic!("{fault}");
        }
    }
}

/// Judges a client's messages.
pub fn judge(client: &Client, sinks: &[&Sink], killed: &[Killed]) -> Tally {
    let mut copies: HashMap<u64, Vec<Copy>> = HashMap::new();
    for sink in sinks {
        for (id, more) in sink.copies() {
            copies.entry(id).or_default().extend(more);
        }
    }
    let mut tally = Tally {
        refusals: client.ledger.refusals(),
        ..Tally::default()
    };
    for (id, attempts) in client.ledger.attempts() {
        let own = copies.remove(&id).unwrap_or_default();
        one(&mut tally, id, &attempts, &own, client, killed);
    }
    // A client that was stopped sends no more; what it never sent cannot come. Ids of other clients are not its business.
    tally
}

fn one(
    tally: &mut Tally,
    id: u64,
    attempts: &[Attempt],
    copies: &[Copy],
    client: &Client,
    killed: &[Killed],
) {
    let count = |outcome: Outcome| attempts.iter().filter(|a| a.outcome == outcome).count();
    let (acked, unknown) = (count(Outcome::Acked), count(Outcome::Unknown));
    tally.acked += acked;
    tally.unknown += unknown;
    let sent = client.load.message(id);
    let mut by_message: BTreeMap<String, Vec<&Copy>> = BTreeMap::new();
    for copy in copies {
        match arrived_as(copy, &sent) {
            Ok(ulid) => by_message.entry(ulid).or_default().push(copy),
            Err(why) => tally.damaged.push(format!("{id}: {why}")),
        }
    }
    // A copy of another attempt is no excuse for the one that got 250.
    let promised = attempts.iter().filter_map(|a| a.queued_as.as_ref());
    let missing = promised.filter(|ulid| !by_message.contains_key(*ulid));
    tally.lost.extend(missing.map(|_| id));
    // Each transaction makes a message of ours: more of them than 250s are attempts whose reply was lost.
    let resent = by_message.len().saturating_sub(1);
    if by_message.len() > acked + unknown {
        tally.unexplained.push(format!(
            "{id}: {} messages from {acked} 250s and {unknown} lost replies",
            by_message.len()
        ));
    }
    tally.resent += resent;
    for (ulid, mut same) in by_message {
        same.sort_by_key(|copy| copy.at);
        for copy in same.iter().take(same.len() - 1) {
            let excuse = killed.iter().any(|k| {
                k.hostname == copy.by
                    && copy.at <= k.at + IN_THE_SOCKET
                    && k.at.saturating_duration_since(copy.at) < SETTLE_TIME
            });
            match excuse {
                true => tally.redelivered += 1,
                false => tally.unexplained.push(format!(
                    "{id} ({ulid}): delivered {} times, first by {}, then {:?} later",
                    same.len(),
                    copy.by,
                    same.last().map(|last| last.at - copy.at)
                )),
            }
        }
    }
}

/// The ULID in the trace field, when after that one field come just the octets that were sent.
fn arrived_as(copy: &Copy, sent: &[u8]) -> Result<String, String> {
    let begin = |octets: usize| {
        let begin = &copy.begin[..octets.min(copy.begin.len())];
        String::from_utf8_lossy(begin)
    };
    if copy.rest != (sent.len(), Digest::of(sent)) {
        return Err(format!(
            "{} octets after its first field for {} sent, or others: {}",
            copy.rest.0,
            sent.len(),
            begin(400)
        ));
    }
    let trace = begin(copy.first_field);
    let lines: Vec<&str> = trace.split_inclusive("\r\n").collect();
    let folded = |line: &str| line.starts_with([' ', '\t']) && line.ends_with("\r\n");
    let is_trace = lines
        .first()
        .is_some_and(|l| l.starts_with("Received: from "))
        && lines.iter().skip(1).all(|line| folded(line));
    let mut words = trace.split_whitespace();
    let ulid = words.by_ref().skip_while(|word| *word != "id").nth(1);
    match ulid {
        Some(ulid) if is_trace => Ok(ulid.trim_end_matches(';').to_owned()),
        _ => Err(format!("before it stands: {trace}")),
    }
}
