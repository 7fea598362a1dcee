//! What is declared, and where it comes from: a directory (`-f`), or the queue. From there it comes as documents: they become
//! what a node asks, and each revision is acknowledged once it is in effect.

mod keys;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proto::QueueClient;
use proto::client::{ConfigNews, ConfigStream};
use proto::v1::RejectedDocument;
use resource::{Catalog, DocumentKey, Documents};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use keys::Keys;

pub use keys::read_sealing_keys;

/// What is declared, as it changes; `None`: nothing has come yet.
pub type Declared = watch::Receiver<Option<Arc<Catalog>>>;

/// The DKIM keys, as they change.
pub type SigningKeys = watch::Receiver<Arc<delivery::SigningKeys>>;

/// Directory in that of the resources where each Secret is a directory with its keys as files.
pub const SECRETS: &str = "secrets";
/// Keys that do not open are tried again so often: the sealing key may come later than what it sealed.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// What a node follows.
pub struct Followed {
    /// What its catalog says.
    pub declared: Declared,
    /// What delivery nodes sign with.
    pub keys: SigningKeys,
}

/// What is declared in a directory, or without one in the queue. `pool`: a directory with the node's own pool. `seal`: sealing
/// keys, for a delivery node.
///
/// # Errors
/// A directory cannot be used.
pub async fn follow(
    files: Option<&Path>,
    pool: Option<&Path>,
    queue: &QueueClient,
    seal: Option<PathBuf>,
    role: proto::Role,
    stop: &CancellationToken,
) -> Result<Followed, Failure> {
    let Some(dir) = files else {
        let pool = match pool {
            Some(dir) => Some(watch_files(dir, stop).await?),
            None => None,
        };
        return Ok(follow_queue(queue, pool, seal, role, stop));
    };
    let declared = watch_files(dir, stop).await?;
    Ok(of_files(dir, declared, role, stop).await)
}

/// What a directory declares, with the keys beside it for a delivery node.
pub async fn of_files(
    dir: &Path,
    declared: Declared,
    role: proto::Role,
    stop: &CancellationToken,
) -> Followed {
    let keys = match role {
        proto::Role::Delivery => {
            delivery::watch_keys(dir.join(SECRETS), declared.clone(), stop.clone()).await
        }
        _ => watch::channel(Arc::default()).1,
    };
    Followed { declared, keys }
}

/// The resources of a directory as they change.
pub async fn watch_files(dir: &Path, stop: &CancellationToken) -> Result<Declared, Failure> {
    edge::watch_dir(dir.into(), stop.clone())
        .await
        .map_err(Failure::failed)
}

/// What is declared in the queue; `pool`: what the node's own pool says.
pub fn follow_queue(
    queue: &QueueClient,
    pool: Option<Declared>,
    seal: Option<PathBuf>,
    role: proto::Role,
    stop: &CancellationToken,
) -> Followed {
    let (tell, declared) = watch::channel(None);
    let (tell_keys, keys) = watch::channel(Arc::default());
    let follower = Follower {
        queue: queue.clone(),
        stream: queue.config().watch(),
        role,
        taken: Taken::default(),
        pool,
        keys: (role == proto::Role::Delivery).then(|| Keys::new(seal)),
        tell,
        tell_keys,
    };
    tokio::spawn(stop.clone().run_until_cancelled_owned(follower.run()));
    Followed { declared, keys }
}

struct Follower {
    queue: QueueClient,
    stream: ConfigStream,
    role: proto::Role,
    taken: Taken,
    pool: Option<Declared>,
    keys: Option<Keys>,
    tell: watch::Sender<Option<Arc<Catalog>>>,
    tell_keys: watch::Sender<Arc<delivery::SigningKeys>>,
}

impl Follower {
    async fn run(mut self) {
        loop {
            let again = self.keys.as_ref().is_some_and(Keys::waits);
            tokio::select! {
                news = self.stream.next() => self.taken.take(news),
                () = changed(&mut self.pool), if self.taken.whole => {}
                () = tokio::time::sleep(LOOK_AGAIN), if again => {}
            }
            let base = self
                .pool
                .as_mut()
                .and_then(|pool| pool.borrow_and_update().clone());
            let catalog = self.taken.documents.catalog(&base.unwrap_or_default());
            let catalog = Arc::new(catalog);
            let mut rejected = self.taken.rejected();
            if let Some(keys) = &mut self.keys {
                let view = self.queue.view();
                let (signing, faults) =
                    keys.open(&self.taken.documents, &catalog, view.cluster_id());
                rejected.extend(faults);
                // Keys first: mail of a new domain must not go unsigned for want of a moment.
                self.tell_keys.send_replace(Arc::new(signing));
            }
            self.tell.send_replace(Some(catalog));
            self.say(&rejected);
            let rejected = rejected
                .into_iter()
                .map(|(key, text)| RejectedDocument { key, text });
            self.stream
                .acknowledge(self.taken.revision, rejected.collect())
                .await;
        }
    }

    fn say(&mut self, rejected: &BTreeMap<String, String>) {
        let role = self.role.as_str();
        let revision = self.taken.revision;
        metrics::gauge!("postroad_config_revision", "role" => role).set(revision as f64);
        metrics::gauge!("postroad_config_rejected_count", "role" => role)
            .set(rejected.len() as f64);
        for (key, text) in rejected {
            if self.taken.said.get(key) != Some(text) {
                tracing::error!(
                    role,
                    document = key,
                    fault = text,
                    "a document cannot be used; the former one, if there is one, stays"
                );
            }
        }
        self.taken.said.clone_from(rejected);
        tracing::debug!(role, revision, "the configuration is in effect");
    }
}

/// Until a pool's resources change; without any, or when nobody tells any more: for ever.
async fn changed(pool: &mut Option<Declared>) {
    if let Some(pool) = pool
        && pool.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// The documents that came, those that cannot be used too: what is wrong with them may go away with another document.
#[derive(Default)]
struct Taken {
    documents: Documents,
    /// Bodies and faults of those that were refused.
    refused: BTreeMap<DocumentKey, (Bytes, String)>,
    /// Of kinds that this program does not know.
    unknown: BTreeMap<String, String>,
    /// All of some revision came.
    whole: bool,
    revision: u64,
    /// What was logged.
    said: BTreeMap<String, String>,
}

impl Taken {
    fn take(&mut self, news: ConfigNews) {
        (self.whole, self.revision) = (true, news.revision);
        let mut upserts: BTreeMap<DocumentKey, Bytes> = BTreeMap::new();
        let mut deletes: BTreeSet<DocumentKey> = BTreeSet::new();
        if news.whole {
            self.unknown.clear();
            self.refused.clear();
        }
        for document in news.upserts {
            match document.key.parse::<DocumentKey>() {
                // A body out of a frame would keep all of the frame.
                Ok(key) => drop(upserts.insert(key, Bytes::copy_from_slice(&document.body))),
                Err(fault) => drop(self.unknown.insert(document.key, fault)),
            }
        }
        for key in news.deletes {
            self.unknown.remove(&key);
            deletes.extend(key.parse::<DocumentKey>());
        }
        if news.whole {
            let gone = self
                .documents
                .known()
                .filter(|key| !upserts.contains_key(key));
            deletes.extend(gone.cloned());
        }
        for (key, (body, _)) in std::mem::take(&mut self.refused) {
            if !deletes.contains(&key) {
                upserts.entry(key).or_insert(body);
            }
        }
        let bodies = upserts.clone();
        for (key, fault) in self.documents.take(upserts, deletes) {
            if let Some(body) = bodies.get(&key) {
                self.refused.insert(key, (body.clone(), fault));
            }
        }
    }

    fn rejected(&self) -> BTreeMap<String, String> {
        let refused = self.refused.iter();
        let refused = refused.map(|(key, (_, fault))| (key.to_string(), fault.clone()));
        refused.chain(self.unknown.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::ConfigDocument;

    /// The documents of one RelayDomain.
    fn domain(name: &str, domain: &str) -> ConfigDocument {
        let text = format!(
            "apiVersion: postroad.dev/v1alpha1\nkind: RelayDomain\nmetadata: {{name: {name}}}\nspec: {{domain: {domain}, inbound: {{}}}}\n"
        );
        let compiled = resource::compile_dir(vec![("a.yaml".into(), text)]).unwrap();
        let document = &compiled.documents[0];
        ConfigDocument {
            key: document.key.to_string(),
            body: document.body.clone(),
            ..Default::default()
        }
    }

    fn news(
        revision: u64,
        whole: bool,
        upserts: Vec<ConfigDocument>,
        deletes: &[&str],
    ) -> ConfigNews {
        ConfigNews {
            whole,
            upserts,
            deletes: deletes.iter().map(|key| (*key).to_owned()).collect(),
            revision,
        }
    }

    fn inbound(taken: &Taken) -> Vec<bool> {
        let catalog = taken.documents.catalog(&Catalog::default());
        let domains = ["one.example", "two.example"];
        domains
            .iter()
            .map(|domain| catalog.inbound(domain).is_some())
            .collect()
    }

    #[test]
    fn what_is_not_among_all_is_gone() {
        let mut taken = Taken::default();
        taken.take(news(
            1,
            true,
            vec![domain("a", "one.example"), domain("b", "two.example")],
            &[],
        ));
        assert_eq!(inbound(&taken), [true, true]);
        taken.take(news(2, true, vec![domain("b", "two.example")], &[]));
        assert_eq!(inbound(&taken), [false, true]);
        taken.take(news(
            3,
            false,
            vec![domain("a", "one.example")],
            &["RelayDomain/default/b"],
        ));
        assert_eq!(inbound(&taken), [true, false]);
        assert!(taken.rejected().is_empty());
    }

    #[test]
    fn what_cannot_be_used_is_said_and_the_former_stays() {
        let mut taken = Taken::default();
        taken.take(news(1, true, vec![domain("a", "one.example")], &[]));
        let mut bad = domain("a", "one.example");
        bad.body = Bytes::from_static(b"\xff");
        let unknown = ConfigDocument {
            key: "Wonder/default/x".into(),
            ..Default::default()
        };
        taken.take(news(2, false, vec![bad, unknown], &[]));
        assert_eq!(inbound(&taken), [true, false]);
        let rejected = taken.rejected();
        let keys: Vec<&String> = rejected.keys().collect();
        assert_eq!(keys, ["RelayDomain/default/a", "Wonder/default/x"]);
        taken.take(news(
            3,
            false,
            vec![domain("a", "one.example")],
            &["Wonder/default/x"],
        ));
        assert!(taken.rejected().is_empty());
    }

    #[test]
    fn a_document_that_another_one_kept_out_comes_in_when_that_goes() {
        let mut taken = Taken::default();
        taken.take(news(1, true, vec![domain("a", "one.example")], &[]));
        taken.take(news(2, false, vec![domain("b", "one.example")], &[]));
        assert!(taken.rejected().contains_key("RelayDomain/default/b"));
        taken.take(news(3, false, vec![], &["RelayDomain/default/a"]));
        assert_eq!(
            (inbound(&taken), taken.rejected().len()),
            (vec![true, false], 0)
        );
    }
}
