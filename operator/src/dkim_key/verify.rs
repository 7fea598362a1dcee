//! Whether a key's record is there, as its domain's servers say: what no server denies and not all confirm is unknown.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dns::{Authorities, TxtAnswer};
use resource::dkim::{Comparison, PublicKey};
use resource::{DnsState, KeyCheck};

use super::lifecycle::Record;
use tokio::time::Instant;

/// Servers that are named in a text for people.
const NAMED_MAX: usize = 4;
/// Texts of a record that are shown, and characters of each.
const SHOWN: (usize, usize) = (4, 512);

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// As the life of keys takes it.
    pub record: Record,
    /// As the domain's status shows it.
    pub state: DnsState,
    /// The same when the record should say that the key is not valid any more.
    pub revoked: DnsState,
    /// Time to live, seconds.
    pub ttl: Option<u32>,
    /// What stands there.
    pub observed: Vec<String>,
    /// For people.
    pub text: String,
}

/// Looks.
pub async fn look(
    authorities: &Authorities,
    check: KeyCheck,
    name: &str,
    key: &PublicKey,
) -> Found {
    match check {
        KeyCheck::Authoritative => judge(key, &authorities.txt(name).await),
        KeyCheck::Resolver => {
            let said = authorities.txt_by_resolver(name).await;
            judge(key, &[("the resolver".into(), said)])
        }
        KeyCheck::None => Found {
            record: Record::Present,
            state: DnsState::Unknown,
            revoked: DnsState::Unknown,
            ttl: None,
            observed: Vec::new(),
            text: "not looked for: dns.keyCheck of the RelayCluster is None".into(),
        },
    }
}

/// Records that are remembered: two keys twice of five thousand domains. Beyond that the old ones are asked for again.
const REMEMBERED_MAX: usize = 20_000;

/// The last look at each record, so that what wakes a controller is not a question to the DNS each time.
#[derive(Debug, Default)]
pub struct Looks(Mutex<HashMap<String, Look>>);

#[derive(Debug)]
struct Look {
    when: Instant,
    key: PublicKey,
    check: KeyCheck,
    found: Found,
}

impl Looks {
    /// What was found, if that was not longer ago and with the same question.
    pub(super) fn recent(
        &self,
        name: &str,
        key: &PublicKey,
        check: KeyCheck,
        age: Duration,
    ) -> Option<Found> {
        let looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let look = looks.get(name)?;
        let good = look.when.elapsed() < age && look.key == *key && look.check == check;
        good.then(|| look.found.clone())
    }

    /// Remembers what was found just now.
    pub(super) fn note(&self, name: String, key: PublicKey, check: KeyCheck, found: Found) {
        let mut looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if looks.len() >= REMEMBERED_MAX {
            looks.clear();
        }
        let when = Instant::now();
        looks.insert(
            name,
            Look {
                when,
                key,
                check,
                found,
            },
        );
    }
}

/// Judges what each server said.
pub fn judge(key: &PublicKey, said: &[(String, TxtAnswer)]) -> Found {
    let mut observed: Vec<String> = Vec::new();
    let mut ttl: Option<u32> = None;
    let (mut same, mut revoked, mut other, mut missing, mut silent) =
        (vec![], vec![], vec![], vec![], vec![]);
    for (server, answer) in said {
        match answer {
            TxtAnswer::Found { texts, ttl: own } => {
                ttl = Some(ttl.map_or(*own, |ttl| ttl.max(*own)));
                for text in texts {
                    let shown: String = text.chars().take(SHOWN.1).collect();
                    if observed.len() < SHOWN.0 && !observed.contains(&shown) {
                        observed.push(shown);
                    }
                }
                // Several records at one selector are undefined (RFC 6376 section 3.6.2.2).
                match texts.as_slice() {
                    [text] => match key.compare(text) {
                        Comparison::Same => same.push(server.clone()),
                        Comparison::Revoked => revoked.push(server.clone()),
                        Comparison::Other => other.push(server.clone()),
                    },
                    _ => other.push(server.clone()),
                }
            }
            TxtAnswer::Missing => missing.push(server.clone()),
            TxtAnswer::TempFail(why) => silent.push(format!("{server} ({why})")),
        }
    }
    let present = same.len() == said.len() && !said.is_empty();
    let denied = !revoked.is_empty() || !other.is_empty() || !missing.is_empty();
    let record = match (present, denied) {
        (true, _) => Record::Present,
        (_, true) => Record::Absent,
        _ => Record::Unknown,
    };
    let state = match record {
        Record::Present => DnsState::Present,
        Record::Unknown => DnsState::Unknown,
        Record::Absent if other.is_empty() && revoked.is_empty() => DnsState::Missing,
        Record::Absent => DnsState::Mismatch,
    };
    let void = match () {
        () if !same.is_empty() || !other.is_empty() => DnsState::Mismatch,
        () if !silent.is_empty() || said.is_empty() => DnsState::Unknown,
        () if !revoked.is_empty() => DnsState::Present,
        () => DnsState::Missing,
    };
    let mut text = Vec::new();
    for (servers, what) in [
        (&same, "has it"),
        (&missing, "has no such record"),
        (&revoked, "says that the key is not valid"),
        (&other, "has another record, or several"),
        (&silent, "gave no answer that counts"),
    ] {
        text.extend(
            servers
                .iter()
                .take(NAMED_MAX)
                .map(|server| format!("{server} {what}")),
        );
    }
    Found {
        record,
        state,
        revoked: void,
        ttl,
        observed,
        text: text.join("; "),
    }
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
