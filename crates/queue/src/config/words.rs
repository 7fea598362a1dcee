//! What a Put must be by itself, and why one is refused, in words for a person.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{
    BODY_OCTETS_MAX, DOCUMENTS_MAX, KEY_OCTETS_MAX, OCTETS_MAX, PUT_DOCUMENTS_MAX, PUT_OCTETS_MAX,
    Put, WRITER_OCTETS_MAX, WRITERS_MAX,
};

/// Why a Put is refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PutRefusal {
    /// Somebody else wrote as this writer.
    #[error(
        "the last change by {writer} is revision {revision}, not {expected}: somebody else wrote as {writer} meanwhile; look at \
         `postroad config status` and write again"
    )]
    Conflict {
        /// Which.
        writer: Arc<str>,
        /// What the Put says.
        expected: u64,
        /// What is.
        revision: u64,
    },
    /// A key belongs to another writer.
    #[error(
        "{key} belongs to {owner}: only {owner} changes or removes it; give yours another name, or let {owner} remove it first"
    )]
    Owned {
        /// Which.
        key: Arc<str>,
        /// Whose.
        owner: Arc<str>,
    },
    /// The Put is too large for one entry.
    #[error(
        "a Put of {documents} changes and {octets} octets is too large; at most {PUT_DOCUMENTS_MAX} and {PUT_OCTETS_MAX}: split it"
    )]
    TooLarge {
        /// Upserts and deletes.
        documents: usize,
        /// Of keys and bodies.
        octets: usize,
    },
    /// The whole would be too large.
    #[error(
        "the configuration would have {documents} documents and {octets} octets; at most {DOCUMENTS_MAX} and {OCTETS_MAX}: remove \
         some, or use a second cluster"
    )]
    Full {
        /// That there would be.
        documents: usize,
        /// That there would be.
        octets: usize,
    },
    /// There are too many writers.
    #[error(
        "{writer} would be one writer more than the {WRITERS_MAX} that there can be; write under a name that exists"
    )]
    Writers {
        /// Which.
        writer: Arc<str>,
    },
    /// It breaks the protocol.
    #[error("{0}")]
    Invalid(String),
}

/// A name without anything that could end a row's key, or hide in a terminal.
fn plain(text: &str, max: usize) -> bool {
    !text.is_empty() && text.len() <= max && text.bytes().all(|b| b.is_ascii_graphic())
}

impl Put {
    /// What can be said of it without knowing anything else.
    ///
    /// # Errors
    /// [`PutRefusal::Invalid`] and [`PutRefusal::TooLarge`].
    pub fn check(&self) -> Result<(), PutRefusal> {
        let invalid = |text: String| Err(PutRefusal::Invalid(text));
        if !plain(&self.writer, WRITER_OCTETS_MAX) {
            return invalid(format!(
                "{:?} is no name of a writer: use 1 to {WRITER_OCTETS_MAX} letters, digits and signs",
                self.writer
            ));
        }
        let documents = self.upserts.len() + self.deletes.len();
        let octets = self.upserts.iter().map(super::Document::octets);
        let octets: usize = octets.chain(self.deletes.iter().map(|key| key.len())).sum();
        if documents > PUT_DOCUMENTS_MAX || octets > PUT_OCTETS_MAX {
            return Err(PutRefusal::TooLarge { documents, octets });
        }
        let mut seen = BTreeSet::new();
        for key in self.upserts.iter().map(|one| &one.key).chain(&self.deletes) {
            if !plain(key, KEY_OCTETS_MAX)
                || key.splitn(3, '/').filter(|part| !part.is_empty()).count() != 3
            {
                return invalid(format!(
                    "{key:?} is no key of a document: Kind/namespace/name, at most {KEY_OCTETS_MAX} octets"
                ));
            }
            if !seen.insert(key) {
                return invalid(format!("{key} stands in the change twice"));
            }
        }
        match self
            .upserts
            .iter()
            .find(|one| one.body.len() > BODY_OCTETS_MAX)
        {
            Some(one) => invalid(format!(
                "the body of {} has {} octets; at most {BODY_OCTETS_MAX}",
                one.key,
                one.body.len()
            )),
            None => Ok(()),
        }
    }
}
