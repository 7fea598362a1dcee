//! The control group's documents and writers, each a row of its own: in parts, since rows are short.

use std::collections::BTreeMap;
use std::sync::Arc;

use queue::Table;

use super::codec::{Reader, Row};
use super::group::GroupState;

/// Octets of a part, so that rows stay below [`super::ROW_MAX`].
const PART: usize = 2048;
/// Parts that are read at once.
const PAGE: usize = 1_000;

/// What a row is of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ConfigRow {
    /// A document, by its key.
    Document,
    /// A writer, by its name.
    Writer,
}

impl ConfigRow {
    fn octet(self) -> u8 {
        match self {
            ConfigRow::Document => b'd',
            ConfigRow::Writer => b'w',
        }
    }
}

/// A part of a row.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct ConfigKey {
    pub(super) kind: u8,
    /// Without a NUL: the door sees to it.
    pub(super) name: Arc<str>,
    pub(super) part: u16,
}

/// Its octets.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Part(Box<[u8]>);

impl Row for Part {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0);
    }

    fn read(from: &mut Reader<'_>) -> Option<Part> {
        Some(Part(from.rest().into()))
    }

    fn weight(&self) -> usize {
        self.0.len()
    }
}

impl GroupState {
    /// Writes a row, or removes it.
    pub fn set_config(&mut self, kind: ConfigRow, name: &Arc<str>, row: Option<&[u8]>) {
        let key = |part| ConfigKey {
            kind: kind.octet(),
            name: name.clone(),
            part,
        };
        let mut next = 0;
        for part in row.into_iter().flat_map(|row| row.chunks(PART)) {
            self.config.put(key(next), Part(part.into()));
            next += 1;
        }
        // What a longer one left.
        while self.config.get(&key(next)).is_some() {
            self.config.delete(&key(next));
            next += 1;
        }
    }

    /// All rows of a kind, by name.
    pub fn config(&self, kind: ConfigRow) -> BTreeMap<Arc<str>, Vec<u8>> {
        let mut rows: BTreeMap<Arc<str>, Vec<u8>> = BTreeMap::new();
        let mut from = ConfigKey {
            kind: kind.octet(),
            name: "".into(),
            part: 0,
        };
        loop {
            let page = self.config.range(Some(&from), PAGE);
            let more = page.len() == PAGE;
            for (key, part) in page {
                if key.kind != kind.octet() {
                    return rows;
                }
                rows.entry(key.name.clone())
                    .or_default()
                    .extend_from_slice(&part.0);
                from = key;
            }
            if !more {
                return rows;
            }
            from.part += 1;
        }
    }
}
