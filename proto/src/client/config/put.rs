//! Writing documents: one change in as many Puts as it takes.

use std::time::Duration;

use prost::Message as _;
use tokio::time::Instant;

use super::{CallError, ConfigClient, stub};
use crate::client::RETRY_PAUSE;
use crate::v1::{
    ConfigDocument, PutConfigCommand, PutConfigOutcome, PutConfigRequest, PutConfigResponse,
};

/// Octets of the upserts and deletes of one Put, as encoded: with the rest it fits into an entry of the log.
pub const PUT_OCTETS_MAX: usize = 192 << 10;
/// Upserts and deletes of one Put: applying an entry holds up mail of all shards of the node for a millisecond or two.
pub const PUT_DOCUMENTS_MAX: usize = 1_000;

/// A cluster that starts knows documents as soon as its nodes have heard of each other: waited for so long.
const NOT_YET_MAX: Duration = Duration::from_secs(10);

/// What a writer wants changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PutChange {
    /// Documents that come, or come in the place of others of their keys. One that is there already, as it is, changes nothing.
    pub upserts: Vec<ConfigDocument>,
    /// Keys that go.
    pub deletes: Vec<String>,
    /// All other documents of this writer go.
    pub complete: bool,
}

/// Why a change, or the rest of it, was not written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PutError {
    /// Somebody else wrote as this writer meanwhile.
    #[error("{text}")]
    Conflict {
        /// Of the writer's last Put.
        revision: u64,
        /// For a person.
        text: String,
    },
    /// A key belongs to another writer.
    #[error("{text}")]
    Owned {
        /// The first such.
        key: String,
        /// Its writer.
        owner: String,
        /// For a person.
        text: String,
    },
    /// There is no room for it, or it breaks the protocol, or it cannot be written yet.
    #[error("{text}")]
    Refused {
        /// Why.
        outcome: PutConfigOutcome,
        /// For a person.
        text: String,
    },
    /// Nobody answered, or not to us.
    #[error(transparent)]
    Call(#[from] CallError),
}

impl ConfigClient {
    /// Writes a change and gives the revision from which all of it is there. `expected`: the revision of the writer's last Put
    /// as the caller knows it (0: none); `None`: whatever it is now. A change of more than [`PUT_OCTETS_MAX`] or
    /// [`PUT_DOCUMENTS_MAX`] goes out in several Puts; when one is refused, those before it stay, and the same change may be
    /// written again.
    ///
    /// # Errors
    /// [`PutError`]: what the queue said.
    pub async fn put(
        &self,
        writer: &str,
        expected: Option<u64>,
        change: PutChange,
    ) -> Result<u64, PutError> {
        let mut expected = match expected {
            Some(expected) => expected,
            None => self.writers_and_nodes().await?.writer_revision(writer),
        };
        let complete = change.complete;
        let parts = split(change);
        let (mut since, last) = (0, parts.len() - 1);
        for (n, (upserts, deletes)) in parts.into_iter().enumerate() {
            let put = PutConfigCommand {
                writer: writer.into(),
                expected,
                upserts,
                deletes,
                complete: complete && n == last,
                since,
                digest: Default::default(),
            };
            expected = self.put_once(put).await?;
            if n == 0 {
                since = expected;
            }
        }
        Ok(expected)
    }

    /// Writes one Put as it is and gives its revision.
    ///
    /// # Errors
    /// [`PutError`]: what the queue said.
    pub async fn put_once(&self, put: PutConfigCommand) -> Result<u64, PutError> {
        let ask = |channel| {
            let put = Some(put.clone());
            async move { stub(channel).put_config(PutConfigRequest { put }).await }
        };
        let until = Instant::now() + NOT_YET_MAX;
        loop {
            let answer = self
                .client
                .ask_control(ask, |answer| answer.not_leader.as_ref())
                .await?;
            if answer.outcome() != PutConfigOutcome::NotYet || Instant::now() >= until {
                return outcome(answer);
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

fn outcome(answer: PutConfigResponse) -> Result<u64, PutError> {
    let text = answer.text.clone();
    match answer.outcome() {
        PutConfigOutcome::Accepted => Ok(answer.revision),
        PutConfigOutcome::Conflict => Err(PutError::Conflict {
            revision: answer.revision,
            text,
        }),
        PutConfigOutcome::Owned => Err(PutError::Owned {
            key: answer.key,
            owner: answer.owner,
            text,
        }),
        outcome => Err(PutError::Refused { outcome, text }),
    }
}

type Part = (Vec<ConfigDocument>, Vec<String>);

/// At least one part, each within what one Put may have. Deletes come first: a domain that moves from one document to another
/// is free before it is taken.
fn split(change: PutChange) -> Vec<Part> {
    let mut parts = vec![Part::default()];
    let (mut octets, mut count) = (0, 0);
    let mut room = |size: usize, parts: &mut Vec<Part>| {
        if count > 0 && (octets + size > PUT_OCTETS_MAX || count == PUT_DOCUMENTS_MAX) {
            parts.push(Part::default());
            (octets, count) = (0, 0);
        }
        octets += size;
        count += 1;
    };
    for key in change.deletes {
        room(key.len() + FRAMING, &mut parts);
        parts.last_mut().expect("there is one").1.push(key);
    }
    for document in change.upserts {
        room(document.encoded_len() + FRAMING, &mut parts);
        parts.last_mut().expect("there is one").0.push(document);
    }
    parts
}

/// Tag and length of an element, octets.
const FRAMING: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_change_goes_out_in_parts_that_fit() {
        let document = |n: usize| ConfigDocument {
            key: format!("RelayDomain/a/{n}"),
            body: vec![1; 300].into(),
            ..Default::default()
        };
        let change = PutChange {
            upserts: (0..5_000).map(document).collect(),
            deletes: (0..1_500).map(|n| format!("RelayDomain/b/{n}")).collect(),
            complete: true,
        };
        let parts = split(change.clone());
        assert!(parts.len() > 8, "{}", parts.len());
        let (mut upserts, mut deletes) = (Vec::new(), Vec::new());
        for (some, gone) in parts {
            assert!(some.len() + gone.len() <= PUT_DOCUMENTS_MAX);
            let put = PutConfigCommand {
                upserts: some.clone(),
                deletes: gone.clone(),
                ..Default::default()
            };
            assert!(put.encoded_len() <= PUT_OCTETS_MAX);
            upserts.extend(some);
            deletes.extend(gone);
        }
        assert_eq!((upserts, deletes), (change.upserts, change.deletes));
        assert_eq!(
            split(PutChange::default()).len(),
            1,
            "an empty change is one Put"
        );
    }
}
