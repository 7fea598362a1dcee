//! Who has what: the nodes' acknowledgements against the pods that should give one. Pure.

use std::collections::{BTreeMap, BTreeSet};

use proto::v1::ConfigNode;

/// Names that a text for people has of those who are waited for.
const NAMED_MAX: usize = 3;

/// The pods that are ready, by role, and what they said.
#[derive(Debug, Default)]
pub struct Nodes {
    edge: BTreeSet<String>,
    delivery: BTreeSet<String>,
    said: BTreeMap<String, ConfigNode>,
}

/// How far a document is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Everybody who should have it has.
    Done,
    /// Not everybody, with a text for people.
    Waits(String),
    /// Somebody cannot use it, with a text for people.
    Rejected(String),
}

impl Nodes {
    /// Of the ready pods by name, and what the queue heard of nodes.
    pub fn new(edge: BTreeSet<String>, delivery: BTreeSet<String>, said: Vec<ConfigNode>) -> Nodes {
        let said = said
            .into_iter()
            .map(|node| (node.name.clone(), node))
            .collect();
        Nodes {
            edge,
            delivery,
            said,
        }
    }

    /// Of a document that a revision brought, which edges get only if it is for all.
    pub fn progress(&self, key: &str, revision: u64, for_all: bool) -> Progress {
        let edge = self.edge.iter().filter(|_| for_all);
        self.among(self.delivery.iter().chain(edge), key, revision)
    }

    /// Of a document that a revision brought, at these pods.
    pub fn among<'a>(
        &self,
        pods: impl Iterator<Item = &'a String>,
        key: &str,
        revision: u64,
    ) -> Progress {
        let mut missing = Vec::new();
        let mut all = 0;
        for pod in pods {
            all += 1;
            let Some(node) = self.said.get(pod) else {
                missing.push(pod.as_str());
                continue;
            };
            // Of an older revision: what it says is of the former document.
            if node.acknowledged < revision {
                missing.push(pod);
                continue;
            }
            let mut rejected = node.rejected.iter();
            if let Some(rejected) = rejected.find(|rejected| rejected.key == key) {
                return Progress::Rejected(format!("{pod} cannot use it: {}", rejected.text));
            }
        }
        match missing.as_slice() {
            [] if all == 0 => Progress::Waits("no node that should have it is ready".into()),
            [] => Progress::Done,
            missing => {
                let named = missing
                    .iter()
                    .take(NAMED_MAX)
                    .copied()
                    .collect::<Vec<_>>()
                    .join(", ");
                Progress::Waits(match missing.len().saturating_sub(NAMED_MAX) {
                    0 => format!("{named} did not say yet that it is in effect there"),
                    more => format!(
                        "{named} and {more} more did not say yet that it is in effect there"
                    ),
                })
            }
        }
    }

    /// Ready nodes.
    pub fn total(&self) -> usize {
        self.edge.len() + self.delivery.len()
    }

    /// Those of them that have a revision.
    pub fn with(&self, revision: u64) -> usize {
        let pods = self.edge.iter().chain(&self.delivery);
        let said = pods.filter_map(|pod| self.said.get(pod));
        said.filter(|node| node.acknowledged >= revision).count()
    }
}

#[cfg(test)]
mod tests {
    use proto::v1::RejectedDocument;

    use super::*;

    fn node(name: &str, acknowledged: u64, rejected: &[&str]) -> ConfigNode {
        let reject = |key: &&str| RejectedDocument {
            key: (*key).into(),
            text: "no".into(),
        };
        ConfigNode {
            name: name.into(),
            acknowledged,
            rejected: rejected.iter().map(reject).collect(),
            ..ConfigNode::default()
        }
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_document_is_there_when_every_ready_pod_that_gets_it_said_so() {
        let said = vec![
            node("e1", 5, &[]),
            node("d1", 7, &["b"]),
            node("gone", 0, &[]),
        ];
        let nodes = Nodes::new(set(&["e1"]), set(&["d1"]), said);
        assert_eq!(nodes.progress("a", 5, true), Progress::Done);
        assert!(
            matches!(nodes.progress("a", 6, true), Progress::Waits(text) if text.starts_with("e1 "))
        );
        assert_eq!(
            nodes.progress("a", 6, false),
            Progress::Done,
            "edges do not get it"
        );
        assert!(matches!(
            nodes.progress("b", 5, true),
            Progress::Rejected(_)
        ));
        assert!(
            matches!(nodes.progress("b", 8, true), Progress::Waits(_)),
            "it spoke of the former one"
        );
        assert_eq!((nodes.with(5), nodes.with(6), nodes.total()), (2, 1, 2));

        let silent = Nodes::new(
            set(&["e1", "e2"]),
            set(&["d1"]),
            vec![node("e1", 9, &[]), node("d1", 9, &[])],
        );
        assert!(
            matches!(silent.progress("a", 1, true), Progress::Waits(_)),
            "a ready pod that the queue does not know"
        );
        let nobody = Nodes::new(set(&[]), set(&[]), vec![node("e1", 9, &[])]);
        assert!(matches!(nobody.progress("a", 1, true), Progress::Waits(_)));
    }
}
