//! What is declared: documents of the control group, octets under a key that nobody here reads.
//!
//! A key belongs to the writer that made it. A writer says with each Put which of its own Puts was the last that it knows, so
//! two processes that write as one do not undo each other unawares; and a Put that comes twice (its answer was lost) is known
//! by its digest and answered as before. The Raft index of the entry is the revision that it makes.
//!
//! Nodes follow by revision. What went is remembered for those who were away for a moment; who was away for longer, or whose
//! revision is of no history that is known here, gets all again.

mod follow;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

pub use follow::{Change, Cursor};
pub use words::PutRefusal;

/// Documents that the control group keeps: ten thousand domains with a few keys each, and room. With [`OCTETS_MAX`] it bounds
/// what every node that has a replica keeps in memory.
pub const DOCUMENTS_MAX: usize = 65_536;
/// Octets of keys and bodies of all documents.
pub const OCTETS_MAX: usize = 64 << 20;
/// Octets of a key: `Kind/namespace/name`.
pub const KEY_OCTETS_MAX: usize = 256;
/// Octets of a body.
pub const BODY_OCTETS_MAX: usize = 32 << 10;
/// Upserts and deletes of one Put: applying it holds up the node's other groups for a millisecond or two.
pub const PUT_DOCUMENTS_MAX: usize = 1_000;
/// Octets of a Put's keys and bodies: with what frames them they fit into an entry's context (256 KiB).
pub const PUT_OCTETS_MAX: usize = 192 << 10;
/// Writers that the control group keeps: one for each operator, and a few people.
pub const WRITERS_MAX: usize = 64;
/// Octets of a writer's name.
pub const WRITER_OCTETS_MAX: usize = 128;
/// Documents that went and are remembered, so that who was away for a moment need not get all.
pub const GONE_MAX: usize = 10_000;

/// Which nodes get a document.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Audience {
    /// Every role.
    All,
    /// Edge nodes.
    Edge,
    /// Delivery nodes, and nobody else at all: secrets.
    Delivery,
    /// Queue nodes.
    Queue,
}

/// One declared thing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Document {
    /// Names it.
    pub key: Arc<str>,
    /// Of the resource that it was made of; 0 for files.
    pub generation: u64,
    /// Who gets it.
    pub audience: Audience,
    /// Of the body.
    pub sha256: [u8; 32],
    /// Nobody here reads it.
    pub body: Bytes,
}

impl Document {
    fn octets(&self) -> usize {
        self.key.len() + self.body.len()
    }
}

/// A writer's change: all of it or nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Put {
    /// Who writes.
    pub writer: Arc<str>,
    /// Revision of this writer's last accepted Put; 0: there was none.
    pub expected: u64,
    /// Documents that come, or come in the place of others.
    pub upserts: Vec<Document>,
    /// Keys that go.
    pub deletes: Vec<Arc<str>>,
    /// This writer's other documents go: those that no Put named since `since`.
    pub complete: bool,
    /// With `complete`: revision of the first Put of the set; 0: this one is all of it.
    pub since: u64,
    /// Of all the above.
    pub digest: [u8; 32],
}

/// A document and whose it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Held {
    /// The document.
    pub document: Document,
    /// Who made its key.
    pub writer: Arc<str>,
    /// Of its last change.
    pub revision: u64,
    /// Of the last Put that named it.
    pub named: u64,
}

/// A writer's last accepted Put.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Writer {
    /// That it made.
    pub revision: u64,
    /// That it expected.
    pub expected: u64,
    /// Of its content.
    pub digest: [u8; 32],
}

/// What an accepted Put did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Accepted {
    /// From which on it is there.
    pub revision: u64,
    /// Keys whose rows came, changed or went. Empty when the same Put was accepted before.
    pub keys: Vec<Arc<str>>,
}

/// All that is declared.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Configuration {
    documents: BTreeMap<Arc<str>, Held>,
    writers: BTreeMap<Arc<str>, Writer>,
    octets: usize,
    /// Of the last accepted Put.
    revision: u64,
    changes: follow::Changes,
}

/// Whether a Put may be, and what it would remove.
enum Verdict {
    /// It was accepted before.
    Again(u64),
    /// These go with it.
    New(BTreeSet<Arc<str>>),
}

impl Configuration {
    /// As its rows were recovered.
    pub fn recovered(
        documents: impl IntoIterator<Item = Held>,
        writers: impl IntoIterator<Item = (Arc<str>, Writer)>,
    ) -> Configuration {
        let mut all = Configuration {
            writers: writers.into_iter().collect(),
            ..Configuration::default()
        };
        for held in documents {
            all.octets += held.document.octets();
            all.changes.came(&held.document.key, held.revision);
            all.documents.insert(held.document.key.clone(), held);
        }
        let last = all.writers.values().map(|writer| writer.revision).max();
        all.revision = last.unwrap_or(0);
        // What went before is not known any more.
        all.changes.forget_before(all.revision);
        all
    }

    /// Applies the Put of the entry at `index`; total and deterministic.
    ///
    /// # Errors
    /// It is refused, and nothing has changed.
    pub fn apply(&mut self, index: u64, put: &Put) -> Result<Accepted, PutRefusal> {
        let removed = match self.verdict(put)? {
            Verdict::Again(revision) => {
                let keys = Vec::new();
                return Ok(Accepted { revision, keys });
            }
            Verdict::New(removed) => removed,
        };
        let mut keys: Vec<Arc<str>> = Vec::new();
        for key in removed {
            if let Some(held) = self.documents.remove(&key) {
                self.octets -= held.document.octets();
                self.changes.went(&key, held.revision, index);
                keys.push(key);
            }
        }
        for document in &put.upserts {
            self.upsert(document, &put.writer, index);
            keys.push(document.key.clone());
        }
        let writer = Writer {
            revision: index,
            expected: put.expected,
            digest: put.digest,
        };
        self.writers.insert(put.writer.clone(), writer);
        self.revision = index;
        Ok(Accepted {
            revision: index,
            keys,
        })
    }

    fn upsert(&mut self, document: &Document, writer: &Arc<str>, index: u64) {
        let before = self.documents.get_mut(&document.key);
        if let Some(same) = before.filter(|held| held.document == *document) {
            same.named = index;
            return;
        }
        let held = Held {
            document: document.clone(),
            writer: writer.clone(),
            revision: index,
            named: index,
        };
        self.octets += document.octets();
        if let Some(former) = self.documents.insert(document.key.clone(), held) {
            self.octets -= former.document.octets();
            self.changes.moved(&document.key, former.revision);
        }
        self.changes.came(&document.key, index);
    }

    /// Whether a Put would be accepted now: the leader asks before it proposes.
    ///
    /// # Errors
    /// Why not.
    pub fn judge(&self, put: &Put) -> Result<(), PutRefusal> {
        self.verdict(put).map(drop)
    }

    fn verdict(&self, put: &Put) -> Result<Verdict, PutRefusal> {
        put.check()?;
        let last = self.writers.get(&put.writer);
        if let Some(last) = last.filter(|w| w.digest == put.digest && w.expected == put.expected) {
            return Ok(Verdict::Again(last.revision));
        }
        let revision = last.map_or(0, |last| last.revision);
        if put.expected != revision {
            return Err(PutRefusal::Conflict {
                writer: put.writer.clone(),
                expected: put.expected,
                revision,
            });
        }
        if last.is_none() && self.writers.len() >= WRITERS_MAX {
            let writer = put.writer.clone();
            return Err(PutRefusal::Writers { writer });
        }
        let upserted: BTreeSet<&str> = put.upserts.iter().map(|one| &*one.key).collect();
        let named = put
            .deletes
            .iter()
            .map(|key| &**key)
            .chain(upserted.iter().copied());
        for key in named {
            if let Some(held) = self
                .documents
                .get(key)
                .filter(|held| held.writer != put.writer)
            {
                return Err(PutRefusal::Owned {
                    key: key.into(),
                    owner: held.writer.clone(),
                });
            }
        }
        let mut removed: BTreeSet<Arc<str>> = put.deletes.iter().cloned().collect();
        if put.complete {
            let others = self.documents.values().filter(|held| {
                held.writer == put.writer && (put.since == 0 || held.named < put.since)
            });
            removed.extend(others.map(|held| held.document.key.clone()));
        }
        removed.retain(|key| !upserted.contains(&**key));
        self.room(put, &removed)?;
        Ok(Verdict::New(removed))
    }

    /// Whether everything fits once the Put has taken effect.
    fn room(&self, put: &Put, removed: &BTreeSet<Arc<str>>) -> Result<(), PutRefusal> {
        let former = |key: &str| self.documents.get(key).map(|held| held.document.octets());
        let gone = removed.iter().filter_map(|key| former(key));
        let replaced = put.upserts.iter().filter_map(|one| former(&one.key));
        let (mut documents, mut octets) = (self.documents.len(), self.octets);
        for size in gone.chain(replaced) {
            documents -= 1;
            octets -= size;
        }
        documents += put.upserts.len();
        octets += put.upserts.iter().map(Document::octets).sum::<usize>();
        match documents > DOCUMENTS_MAX || octets > OCTETS_MAX {
            true => Err(PutRefusal::Full { documents, octets }),
            false => Ok(()),
        }
    }

    /// Of the last accepted Put; 0: there was none.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// By key.
    pub fn documents(&self) -> &BTreeMap<Arc<str>, Held> {
        &self.documents
    }

    /// By name.
    pub fn writers(&self) -> &BTreeMap<Arc<str>, Writer> {
        &self.writers
    }

    /// Octets of keys and bodies.
    pub fn octets(&self) -> usize {
        self.octets
    }
}

#[cfg(test)]
#[path = "config/tests.rs"]
mod tests;
