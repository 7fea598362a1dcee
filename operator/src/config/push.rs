//! Writes documents to the queue as the one writer `operator`: only what differs from what the queue holds.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proto::client::{ConfigClient, ConfigView, PutChange, PutError};
use proto::v1::{ConfigAudience, ConfigDocument, ConfigNode};
use resource::{Audience, Document};
use tokio::time::Instant;

use crate::error::Error;

/// As whom the operator writes: its documents are its own, whatever `postroad apply` writes.
const WRITER: &str = "operator";

/// A document as the queue holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    sha256: Bytes,
    generation: u64,
    audience: i32,
    revision: u64,
}

/// What the queue holds of ours.
#[derive(Clone, Debug)]
pub struct Known {
    revision: u64,
    documents: BTreeMap<String, Held>,
    /// When something was written last.
    pub changed: Instant,
}

/// What was written, and who has what.
pub struct Pushed {
    /// What the queue holds now.
    pub known: Known,
    /// Of the whole configuration.
    pub revision: u64,
    /// Nodes that watch.
    pub nodes: Vec<ConfigNode>,
}

impl Known {
    /// The revision that brought a document as it is.
    pub fn revision_of(&self, key: &str) -> Option<u64> {
        self.documents.get(key).map(|held| held.revision)
    }

    fn of(view: &ConfigView) -> Known {
        let own = view.documents.iter().filter(|one| one.writer == WRITER);
        let held = |one: &proto::v1::ConfigListed| Held {
            sha256: one.sha256.clone(),
            generation: one.generation,
            audience: one.audience,
            revision: one.revision,
        };
        Known {
            revision: view.writer_revision(WRITER),
            documents: own.map(|one| (one.key.clone(), held(one))).collect(),
            changed: Instant::now(),
        }
    }

    /// What has to be written so that the queue holds these documents and no others of ours, but for those that it keeps.
    fn change(&self, wanted: &[Document], kept: &BTreeSet<String>) -> PutChange {
        let upserts: Vec<ConfigDocument> = wanted
            .iter()
            .map(wire)
            .filter(|one| {
                self.documents
                    .get(&one.key)
                    .is_none_or(|held| !same(held, one))
            })
            .collect();
        let names: BTreeSet<String> = wanted.iter().map(|one| one.key.to_string()).collect();
        let gone = self
            .documents
            .keys()
            .filter(|key| !names.contains(*key) && !kept.contains(*key));
        PutChange {
            deletes: gone.cloned().collect(),
            upserts,
            complete: false,
        }
    }

    /// It was written.
    fn note(&mut self, change: &PutChange, revision: u64) {
        for key in &change.deletes {
            self.documents.remove(key);
        }
        for one in &change.upserts {
            let held = Held {
                sha256: one.sha256.clone(),
                generation: one.generation,
                audience: one.audience,
                revision,
            };
            self.documents.insert(one.key.clone(), held);
        }
        self.revision = revision;
        self.changed = Instant::now();
    }
}

fn same(held: &Held, one: &ConfigDocument) -> bool {
    held.sha256 == one.sha256 && held.generation == one.generation && held.audience == one.audience
}

fn wire(document: &Document) -> ConfigDocument {
    let audience = match document.audience {
        Audience::All => ConfigAudience::All,
        Audience::Edge => ConfigAudience::Edge,
        Audience::Delivery => ConfigAudience::Delivery,
        Audience::Queue => ConfigAudience::Queue,
    };
    ConfigDocument {
        key: document.key.to_string(),
        generation: document.generation,
        audience: audience.into(),
        sha256: Bytes::copy_from_slice(&document.sha256()),
        body: document.body.clone(),
    }
}

/// Writes what differs and asks who has what. `known` is what was held after the last time; without it the queue is asked. What
/// is `kept` stays as the queue has it.
///
/// # Errors
/// What the queue said; then nothing is known any more.
pub async fn push(
    client: &ConfigClient,
    known: Option<Known>,
    wanted: &[Document],
    kept: &BTreeSet<String>,
) -> Result<Pushed, Error> {
    let call = |error: proto::client::CallError| Error::Queue(error.to_string());
    let mut view = client.writers_and_nodes().await.map_err(call)?;
    // Another operator wrote, or the queue is another one: what it holds is asked for.
    let known = known.filter(|known| known.revision == view.writer_revision(WRITER));
    let mut known = match known {
        Some(known) => known,
        None => {
            view = client.status().await.map_err(call)?;
            Known::of(&view)
        }
    };
    let change = known.change(wanted, kept);
    if change.upserts.is_empty() && change.deletes.is_empty() {
        return Ok(Pushed {
            known,
            revision: view.revision,
            nodes: view.nodes,
        });
    }
    let (upserts, deletes) = (change.upserts.len(), change.deletes.len());
    let revision = client
        .put(WRITER, Some(known.revision), change.clone())
        .await
        .map_err(|error| match error {
            PutError::Call(error) => call(error),
            PutError::Owned { .. } | PutError::Refused { .. } => Error::Refused(error.to_string()),
            PutError::Conflict { .. } => Error::NotYet(error.to_string()),
        })?;
    tracing::info!(revision, upserts, deletes, "wrote what is declared");
    known.note(&change, revision);
    let nodes = client.writers_and_nodes().await.map_err(call)?.nodes;
    Ok(Pushed {
        known,
        revision,
        nodes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use resource::{DocumentKey, DocumentKind};

    fn document(name: &str, generation: u64, body: &'static [u8]) -> Document {
        Document {
            key: DocumentKey::new(DocumentKind::RelayDomain, "a", name),
            generation,
            audience: Audience::All,
            body: Bytes::from_static(body),
        }
    }

    #[test]
    fn only_what_differs_is_written_and_what_is_declared_no_more_goes() {
        let mut known = Known {
            revision: 0,
            documents: BTreeMap::new(),
            changed: Instant::now(),
        };
        let first = [document("x", 1, b"x"), document("y", 1, b"y")];
        let none = BTreeSet::new();
        let change = known.change(&first, &none);
        assert_eq!((change.upserts.len(), change.complete), (2, false));
        known.note(&change, 7);
        assert_eq!(known.change(&first, &none), PutChange::default());
        let second = [document("x", 2, b"x"), document("z", 1, b"z")];
        let kept = BTreeSet::from(["RelayDomain/a/y".to_owned()]);
        assert!(known.change(&second, &kept).deletes.is_empty());
        let change = known.change(&second, &none);
        let keys: Vec<&str> = change.upserts.iter().map(|one| one.key.as_str()).collect();
        assert_eq!(keys, ["RelayDomain/a/x", "RelayDomain/a/z"]);
        assert_eq!(change.deletes, ["RelayDomain/a/y"]);
        known.note(&change, 9);
        assert_eq!(known.revision_of("RelayDomain/a/x"), Some(9));
        assert_eq!(known.revision_of("RelayDomain/a/y"), None);
        assert_eq!(known.change(&second, &none), PutChange::default());
    }
}
