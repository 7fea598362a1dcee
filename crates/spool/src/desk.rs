//! The documents as this node has applied them, for those who watch; and who watches.
//!
//! The state thread writes, the services read: both for a page at a time. It is open while this node leads the control group
//! and has applied all that was committed before; who watches then hears of every change, and is sent on when it closes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use proto::{Role, v1};
use queue::config::{Audience, Change, Configuration, Cursor};
use tokio::sync::watch;

use crate::wire::config::{audience_to_wire, document_to_wire};

/// Octets of a frame's documents: far below what a message may have, and the lock is free again after a few hundred µs.
const PAGE_OCTETS: usize = 256 << 10;
/// Changes that one page looks at.
const PAGE_CHANGES: usize = 2_000;
/// Rejections that a node may tell of, and that are kept of it: the first ones say what is wrong.
const REJECTED_MAX: usize = 100;
/// Octets of a rejection's text that are kept.
const REJECTED_OCTETS_MAX: usize = 512;
/// Documents in one answer to a question for the list.
const LISTED_MAX: usize = 1_000;

/// See the module.
#[derive(Clone)]
pub struct ConfigDesk {
    inner: Arc<Inner>,
}

struct Inner {
    documents: RwLock<Configuration>,
    /// The revision, while open.
    open: watch::Sender<Option<u64>>,
    /// By role and name. Gone with the leader: nodes say it again to the next one.
    nodes: Mutex<BTreeMap<(&'static str, String), Watching>>,
}

#[derive(Default)]
struct Watching {
    streams: usize,
    ack: v1::AckConfigRequest,
}

/// What is told at once.
pub struct Page {
    /// In order.
    pub events: Vec<v1::ConfigEvent>,
    /// Behind them.
    pub cursor: Cursor,
    /// Nothing is behind them; as of this revision.
    pub end: Option<u64>,
}

/// A node that watches; not any more when dropped.
pub struct Listed {
    desk: ConfigDesk,
    key: (&'static str, String),
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut nodes = self.desk.nodes();
        if let Some(node) = nodes.get_mut(&self.key) {
            node.streams -= 1;
            if node.streams == 0 {
                nodes.remove(&self.key);
            }
        }
    }
}

impl Default for ConfigDesk {
    fn default() -> ConfigDesk {
        let inner = Inner {
            documents: RwLock::default(),
            open: watch::Sender::new(None),
            nodes: Mutex::default(),
        };
        ConfigDesk {
            inner: Arc::new(inner),
        }
    }
}

impl ConfigDesk {
    /// Reads the documents.
    pub fn read<T>(&self, read: impl FnOnce(&Configuration) -> T) -> T {
        let documents = self.inner.documents.read();
        read(&documents.unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the documents; who watches hears of it.
    pub fn write<T>(&self, write: impl FnOnce(&mut Configuration) -> T) -> T {
        let (done, revision) = {
            let documents = self.inner.documents.write();
            let mut documents = documents.unwrap_or_else(PoisonError::into_inner);
            let done = write(&mut documents);
            (done, documents.revision())
        };
        self.inner.open.send_if_modified(|open| {
            let news = open.is_some_and(|before| before != revision);
            if news {
                *open = Some(revision);
            }
            news
        });
        done
    }

    /// This node may answer from now on, or may not.
    pub fn set_open(&self, open: bool) {
        let now = open.then(|| self.read(Configuration::revision));
        self.inner.open.send_if_modified(|before| {
            let changed = before.is_some() != now.is_some();
            *before = now;
            changed
        });
    }

    /// The revision while it is open.
    pub fn watch(&self) -> watch::Receiver<Option<u64>> {
        self.inner.open.subscribe()
    }

    fn nodes(&self) -> MutexGuard<'_, BTreeMap<(&'static str, String), Watching>> {
        self.inner
            .nodes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A node watches from now on.
    pub fn list(&self, role: Role, name: &str) -> Listed {
        let key = (role.as_str(), name.to_owned());
        self.nodes().entry(key.clone()).or_default().streams += 1;
        Listed {
            desk: self.clone(),
            key,
        }
    }

    /// A node says what is in effect there; `false`: none of that name watches here.
    pub fn acknowledge(&self, role: Role, mut ack: v1::AckConfigRequest) -> bool {
        ack.rejected.truncate(REJECTED_MAX);
        for rejected in &mut ack.rejected {
            let cut = rejected.text.floor_char_boundary(REJECTED_OCTETS_MAX);
            rejected.text.truncate(cut);
            let cut = rejected
                .key
                .floor_char_boundary(queue::config::KEY_OCTETS_MAX);
            rejected.key.truncate(cut);
        }
        match self.nodes().get_mut(&(role.as_str(), ack.name.clone())) {
            Some(node) => {
                node.ack = ack;
                true
            }
            None => false,
        }
    }

    /// Where one who has all of revision `from` begins, and whether he gets all.
    pub fn begin(&self, from: u64) -> (Cursor, bool) {
        self.read(|all| all.begin(from))
    }

    /// What is to be told to a role behind a cursor. `None`: some of it is forgotten, and he has to begin again.
    pub fn page(&self, behind: &Cursor, role: Role, whole: bool) -> Option<Page> {
        self.read(|all| {
            if all.lost(behind) {
                return None;
            }
            let mut page = Page {
                events: Vec::new(),
                cursor: behind.clone(),
                end: None,
            };
            let mut octets = 0;
            for (n, (cursor, change)) in all.changes(behind).enumerate() {
                if octets >= PAGE_OCTETS || n == PAGE_CHANGES {
                    return Some(page);
                }
                page.cursor = cursor;
                let what = match change {
                    Change::Upsert(held) if reaches(held.document.audience, role) => {
                        octets += held.document.key.len() + held.document.body.len();
                        v1::config_event::What::Upsert(document_to_wire(&held.document))
                    }
                    // It may have been his before.
                    Change::Upsert(held) if !whole => {
                        v1::config_event::What::Delete(held.document.key.to_string())
                    }
                    Change::Upsert(_) => continue,
                    Change::Delete(key) => v1::config_event::What::Delete(key.to_string()),
                };
                page.events.push(v1::ConfigEvent { what: Some(what) });
            }
            page.end = Some(all.revision());
            Some(page)
        })
    }

    /// What is declared and who has it.
    pub fn status(&self, ask: &v1::ConfigStatusRequest) -> v1::ConfigStatusResponse {
        let nodes = self.nodes();
        let nodes = nodes.iter().map(|((role, name), node)| v1::ConfigNode {
            role: (*role).to_owned(),
            name: name.clone(),
            acknowledged: node.ack.revision,
            rejected: node.ack.rejected.clone(),
            ca_hash: node.ack.ca_hash.clone(),
        });
        let nodes = nodes.collect();
        self.read(|all| {
            let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
            for held in all.documents().values() {
                *counts.entry(&held.writer).or_default() += 1;
            }
            let writers = all.writers().iter().map(|(name, writer)| v1::ConfigWriter {
                name: name.to_string(),
                revision: writer.revision,
                documents: counts.get(&**name).copied().unwrap_or(0),
            });
            let behind = (
                std::ops::Bound::Excluded(ask.after.as_str()),
                std::ops::Bound::Unbounded,
            );
            let limit = (ask.limit as usize).min(LISTED_MAX);
            let mut rest = all.documents().range::<str, _>(behind);
            let documents = rest.by_ref().take(limit).map(|(key, held)| {
                let document = &held.document;
                v1::ConfigListed {
                    key: key.to_string(),
                    writer: held.writer.to_string(),
                    generation: document.generation,
                    audience: audience_to_wire(document.audience).into(),
                    sha256: bytes::Bytes::copy_from_slice(&document.sha256),
                    size: document.body.len() as u32,
                    revision: held.revision,
                }
            });
            v1::ConfigStatusResponse {
                not_leader: None,
                revision: all.revision(),
                writers: writers.collect(),
                documents: documents.collect(),
                more: rest.next().is_some(),
                nodes,
            }
        })
    }
}

/// Whether a role gets a document. What is for delivery nodes is secret, also from those who wrote it.
fn reaches(audience: Audience, role: Role) -> bool {
    match audience {
        Audience::All => true,
        Audience::Delivery => role == Role::Delivery,
        Audience::Edge => matches!(role, Role::Edge | Role::Operator | Role::Admin),
        Audience::Queue => matches!(role, Role::Queue | Role::Operator | Role::Admin),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use queue::config::{Document, Put};

    fn desk(audiences: &[(&str, Audience)]) -> ConfigDesk {
        let desk = ConfigDesk::default();
        desk.set_open(true);
        put(&desk, 1, 0, audiences);
        desk
    }

    fn put(desk: &ConfigDesk, index: u64, expected: u64, audiences: &[(&str, Audience)]) {
        let upserts = audiences.iter().map(|(name, audience)| Document {
            key: format!("Kind/a/{name}").as_str().into(),
            generation: 0,
            audience: *audience,
            sha256: [0; 32],
            body: bytes::Bytes::from_static(b"body"),
        });
        let put = Put {
            writer: "w".into(),
            expected,
            upserts: upserts.collect(),
            deletes: Vec::new(),
            complete: false,
            since: 0,
            digest: [index as u8; 32],
        };
        desk.write(|all| all.apply(index, &put)).unwrap();
    }

    fn told(desk: &ConfigDesk, role: Role, from: u64) -> Vec<String> {
        let (cursor, whole) = desk.begin(from);
        let page = desk.page(&cursor, role, whole).unwrap();
        let what = page.events.into_iter().filter_map(|event| event.what);
        what.map(|what| match what {
            v1::config_event::What::Upsert(document) => format!("+{}", &document.key[7..]),
            v1::config_event::What::Delete(key) => format!("-{}", &key[7..]),
            other => format!("{other:?}"),
        })
        .collect()
    }

    #[test]
    fn each_role_gets_what_is_for_it_and_secrets_go_to_delivery_nodes_only() {
        use Audience::*;
        let desk = desk(&[("all", All), ("dkim", Delivery), ("e", Edge), ("q", Queue)]);
        assert_eq!(told(&desk, Role::Edge, 0), ["+all", "+e"]);
        assert_eq!(told(&desk, Role::Delivery, 0), ["+all", "+dkim"]);
        assert_eq!(told(&desk, Role::Queue, 0), ["+all", "+q"]);
        for person in [Role::Operator, Role::Admin] {
            assert_eq!(told(&desk, person, 0), ["+all", "+e", "+q"]);
        }
        put(&desk, 2, 1, &[("all", Delivery)]);
        assert_eq!(
            told(&desk, Role::Edge, 1),
            ["-all"],
            "it is not his any more"
        );
        assert_eq!(told(&desk, Role::Edge, 0), ["+e"]);
    }

    #[test]
    fn a_node_is_listed_while_it_watches_and_only_then_acknowledges() {
        let desk = desk(&[]);
        let ack = |revision| v1::AckConfigRequest {
            name: "e1".into(),
            revision,
            ..Default::default()
        };
        let nodes = || desk.status(&v1::ConfigStatusRequest::default()).nodes;
        assert!(!desk.acknowledge(Role::Edge, ack(1)), "it does not watch");
        let (first, second) = (desk.list(Role::Edge, "e1"), desk.list(Role::Edge, "e1"));
        assert!(desk.acknowledge(Role::Edge, ack(1)));
        assert!(
            !desk.acknowledge(Role::Delivery, ack(1)),
            "another role's name"
        );
        drop(first);
        assert_eq!(nodes()[0].acknowledged, 1);
        drop(second);
        assert!(nodes().is_empty());
    }

    #[test]
    fn the_list_comes_in_pages() {
        use Audience::All;
        let desk = desk(&[("a", All), ("b", All), ("c", All)]);
        let mut after = String::new();
        let mut keys = Vec::new();
        loop {
            let page = desk.status(&v1::ConfigStatusRequest { after, limit: 2 });
            keys.extend(page.documents.into_iter().map(|one| one.key));
            if !page.more {
                break;
            }
            after = keys.last().cloned().unwrap();
        }
        assert_eq!(keys, ["Kind/a/a", "Kind/a/b", "Kind/a/c"]);
    }
}
