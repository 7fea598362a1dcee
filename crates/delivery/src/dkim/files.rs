//! Keys from files: what the resources of a directory name, in `DIR/secrets/NAME/private.key`, as a Secret holds it. Read again when a
//! file or a resource changes.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use resource::{Catalog, Dkim};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::keys::{MissingKey, SigningKey, SigningKeys};

/// How often the files are looked at.
const POLL: Duration = Duration::from_secs(1);
/// The file of a Secret that holds the key.
const KEY: &str = "private.key";
/// A file above this is no key: RSA with 8192 bits has some 6 KiB.
const KEY_BYTES_MAX: u64 = 64 << 10;

type Stamp = Option<(SystemTime, u64, u64)>;
type Declared = watch::Receiver<Option<Arc<Catalog>>>;

/// Follows the keys that the catalog names, with the Secrets as directories of `secrets`. A file that cannot be used is logged;
/// the last good content of that selector goes on signing.
pub async fn watch_keys(
    secrets: PathBuf,
    catalog: Declared,
    stop: CancellationToken,
) -> watch::Receiver<Arc<SigningKeys>> {
    let mut files = Files {
        secrets,
        seen: None,
        good: HashMap::new(),
    };
    let (tell, told) = watch::channel(Arc::default());
    files = files.look(&catalog, &tell).await;
    tokio::spawn(async move {
        let mut catalog = catalog;
        loop {
            let changed = async {
                tokio::select! {
                    Ok(()) = catalog.changed() => {}
                    () = tokio::time::sleep(POLL) => {}
                }
            };
            if stop.run_until_cancelled(changed).await.is_none() {
                return;
            }
            files = files.look(&catalog, &tell).await;
        }
    });
    told
}

struct Files {
    secrets: PathBuf,
    /// What was declared and how each file was when they were read.
    seen: Option<(Vec<Dkim>, HashMap<PathBuf, Stamp>)>,
    /// The last content of each file that could be used. It is read again for each change, so a key is wiped with its file's next
    /// good content, or when no resource names it any more.
    good: HashMap<PathBuf, Vec<u8>>,
}

impl Files {
    async fn look(self, catalog: &Declared, tell: &watch::Sender<Arc<SigningKeys>>) -> Files {
        let declared = catalog.borrow().clone();
        let work = {
            let secrets = self.secrets.clone();
            tokio::task::spawn_blocking(move || self.read(&declared.unwrap_or_default()))
                .await
                .map_err(|error| (error, secrets))
        };
        match work {
            Ok((files, keys)) => {
                if let Some(keys) = keys {
                    for (tenant, domain, selectors) in keys.selectors() {
                        tracing::info!(tenant, domain, ?selectors, "DKIM keys in use");
                    }
                    tell.send_replace(Arc::new(keys));
                }
                files
            }
            Err((error, secrets)) => {
                tracing::error!(%error, "the DKIM keys could not be read; those in use stay");
                Files {
                    secrets,
                    seen: None,
                    good: HashMap::new(),
                }
            }
        }
    }

    /// The keys, if anything changed.
    fn read(mut self, catalog: &Catalog) -> (Files, Option<SigningKeys>) {
        let named = catalog.dkim().iter().flat_map(|dkim| &dkim.keys);
        let stamps: HashMap<PathBuf, Stamp> = named
            .map(|(_, secret)| self.path(secret))
            .map(|path| (path.clone(), stamp(&path)))
            .collect();
        if self
            .seen
            .as_ref()
            .is_some_and(|(dkim, seen)| dkim == catalog.dkim() && *seen == stamps)
        {
            return (self, None);
        }
        let mut keys = SigningKeys::default();
        let mut unusable = 0;
        self.good.retain(|path, _| stamps.contains_key(path));
        for dkim in catalog.dkim() {
            let missing = match dkim.defer_without {
                true => MissingKey::Defer,
                false => MissingKey::SendUnsigned,
            };
            keys.domain(&dkim.tenant, &dkim.domain, missing);
            for (selector, secret) in &dkim.keys {
                let path = self.path(secret);
                match self.key(selector, &path) {
                    Ok(key) => drop(keys.add(&dkim.tenant, &dkim.domain, key)),
                    Err(fault) => {
                        unusable += 1;
                        tracing::error!(domain = %dkim.domain, %selector, fault, "a DKIM key cannot be used; the former one, if there is one, goes on signing");
                        let former = self
                            .good
                            .get(&path)
                            .map(|pem| SigningKey::from_pem(&**selector, pem));
                        if let Some(Ok(key)) = former {
                            keys.add(&dkim.tenant, &dkim.domain, key);
                        }
                    }
                }
            }
        }
        metrics::gauge!("postroad_signing_keys_unusable_count").set(f64::from(unusable));
        self.seen = Some((catalog.dkim().to_vec(), stamps));
        (self, Some(keys))
    }

    /// Reads one key.
    fn key(&mut self, selector: &str, path: &Path) -> Result<SigningKey, String> {
        let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let size = std::fs::metadata(path).map_err(|e| failed(&e))?.len();
        if size > KEY_BYTES_MAX {
            return Err(failed(&format!("it has {size} octets, more than any key")));
        }
        let pem = std::fs::read(path).map_err(|e| failed(&e))?;
        let key = SigningKey::from_pem(selector, &pem).map_err(|e| failed(&e))?;
        self.good.insert(path.into(), pem);
        Ok(key)
    }

    fn path(&self, secret: &str) -> PathBuf {
        self.secrets.join(secret).join(KEY)
    }
}

/// Follows links.
fn stamp(path: &Path) -> Stamp {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len(), meta.ino()))
}
