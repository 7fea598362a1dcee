//! Changes in the order in which they came, for those who follow.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::{Configuration, GONE_MAX, Held};

/// How far somebody has followed: a revision, and the last key of it. What stands behind is still to be told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cursor {
    revision: u64,
    /// `None`: all of the revision.
    key: Option<Arc<str>>,
    /// Where he began: what went up to here does not concern him.
    began: u64,
}

/// One change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change<'a> {
    /// A document came, or changed.
    Upsert(&'a Held),
    /// It went.
    Delete(&'a Arc<str>),
}

/// Of each key the last change: what came by the revision of the document, what went while it is remembered.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Changes {
    /// `true`: it went.
    by_revision: BTreeMap<(u64, Arc<str>), bool>,
    pub(super) gone: BTreeMap<Arc<str>, u64>,
    /// What went up to here may be forgotten.
    floor: u64,
}

impl Changes {
    /// A document has this revision now.
    pub fn came(&mut self, key: &Arc<str>, revision: u64) {
        if let Some(gone) = self.gone.remove(key) {
            self.by_revision.remove(&(gone, key.clone()));
        }
        self.by_revision.insert((revision, key.clone()), false);
    }

    /// A document has this revision no more.
    pub fn moved(&mut self, key: &Arc<str>, revision: u64) {
        self.by_revision.remove(&(revision, key.clone()));
    }

    /// A document of revision `before` went with `index`.
    pub fn went(&mut self, key: &Arc<str>, before: u64, index: u64) {
        self.moved(key, before);
        self.by_revision.insert((index, key.clone()), true);
        self.gone.insert(key.clone(), index);
        if self.gone.len() > GONE_MAX {
            self.forget_half();
        }
    }

    /// All at once: to find the oldest each time would cost more than it saves.
    fn forget_half(&mut self) {
        let mut when: Vec<u64> = self.gone.values().copied().collect();
        when.sort_unstable();
        let floor = when[when.len() / 2];
        self.forget_before(floor);
        let old = self.gone.iter().filter(|(_, at)| **at <= floor);
        let old: Vec<_> = old.map(|(key, at)| (*at, key.clone())).collect();
        for (at, key) in old {
            self.gone.remove(&key);
            self.by_revision.remove(&(at, key));
        }
    }

    pub fn forget_before(&mut self, revision: u64) {
        self.floor = revision;
    }
}

impl Configuration {
    /// Where somebody begins who has all of revision `from`; the flag: he has to get all, and forget what he has.
    pub fn begin(&self, from: u64) -> (Cursor, bool) {
        let continues = from >= self.changes.floor && from <= self.revision && from > 0;
        let (revision, began) = match continues {
            true => (from, from),
            false => (0, self.revision),
        };
        let key = None;
        (
            Cursor {
                revision,
                key,
                began,
            },
            !continues,
        )
    }

    /// Something that went behind the cursor may be forgotten: he has to begin again.
    pub fn lost(&self, cursor: &Cursor) -> bool {
        let floor = self.changes.floor;
        let told = cursor.revision > floor || (cursor.revision == floor && cursor.key.is_none());
        floor > cursor.began && !told
    }

    /// What is to be told behind a cursor, in order, each with the cursor behind it.
    pub fn changes(&self, behind: &Cursor) -> impl Iterator<Item = (Cursor, Change<'_>)> {
        let start = match &behind.key {
            Some(key) => Bound::Excluded((behind.revision, key.clone())),
            // No key is empty, so all of the next revision is behind this, and nothing of the one before.
            None => Bound::Included((behind.revision.saturating_add(1), Arc::from(""))),
        };
        let range = self.changes.by_revision.range((start, Bound::Unbounded));
        range.filter_map(|((revision, key), gone)| {
            let cursor = Cursor {
                revision: *revision,
                key: Some(key.clone()),
                began: behind.began,
            };
            let change = match gone {
                true => Change::Delete(key),
                false => Change::Upsert(self.documents.get(key)?),
            };
            Some((cursor, change))
        })
    }
}
