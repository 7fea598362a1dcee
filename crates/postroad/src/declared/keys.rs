//! DKIM keys out of documents: opened with the sealing keys that only delivery nodes have.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use delivery::{MissingKey, SigningKey};
use resource::seal::{Bound, SEALING_KEY_OCTETS, SealingKey, SealingKeys};
use resource::{Catalog, DocumentKey, Documents, Key};

use crate::failure::Failure;

/// Keys that were opened, and where what opens them is.
pub struct Keys {
    dir: Option<PathBuf>,
    /// The last of each document that opened: while a new one does not, the former goes on signing.
    opened: BTreeMap<DocumentKey, Opened>,
    faults: BTreeMap<String, String>,
}

struct Opened {
    of: Key,
    pem: Vec<u8>,
}

impl Keys {
    pub fn new(dir: Option<PathBuf>) -> Keys {
        Keys {
            dir,
            opened: BTreeMap::new(),
            faults: BTreeMap::new(),
        }
    }

    /// Some do not open: what is missing may come.
    pub fn waits(&self) -> bool {
        !self.faults.is_empty()
    }

    /// What signs, and what cannot be used.
    pub fn open(
        &mut self,
        documents: &Documents,
        catalog: &Catalog,
        cluster_id: &[u8],
    ) -> (delivery::SigningKeys, BTreeMap<String, String>) {
        self.open_all(documents, cluster_id);
        let mut signing = delivery::SigningKeys::default();
        for dkim in catalog.dkim() {
            let missing = match dkim.defer_without {
                true => MissingKey::Defer,
                false => MissingKey::SendUnsigned,
            };
            signing.domain(&dkim.tenant, &dkim.domain, missing);
        }
        for (name, key) in documents.signing_keys().filter(|(_, key)| key.active) {
            // Another tenant's key does not sign, whatever it says of its domain.
            let of = |dkim: &&resource::Dkim| {
                *dkim.domain == *key.domain && *dkim.tenant == *name.namespace
            };
            let (Some(dkim), Some(opened)) =
                (catalog.dkim().iter().find(of), self.opened.get(name))
            else {
                continue;
            };
            if (&opened.of.domain, &opened.of.selector) != (&key.domain, &key.selector) {
                continue;
            }
            let added = SigningKey::from_pem(&key.selector, &opened.pem)
                .is_ok_and(|one| signing.add(&dkim.tenant, &dkim.domain, one));
            if !added {
                let text = format!("{} has as many keys as can sign already", key.domain);
                self.faults.insert(name.to_string(), text);
            }
        }
        (signing, self.faults.clone())
    }

    fn open_all(&mut self, documents: &Documents, cluster_id: &[u8]) {
        self.faults.clear();
        let known: BTreeSet<&DocumentKey> =
            documents.signing_keys().map(|(name, _)| name).collect();
        self.opened.retain(|name, _| known.contains(name));
        if known.is_empty() {
            return;
        }
        let sealing = match &self.dir {
            Some(dir) => read_sealing_keys(dir),
            None => Ok(SealingKeys::default()),
        };
        for (name, key) in documents.signing_keys() {
            let former = self.opened.get_mut(name);
            if let Some(former) = former.filter(|former| former.of.sealed == key.sealed) {
                former.of = key.clone();
                continue;
            }
            let opened = match &sealing {
                Ok(sealing) => open_one(sealing, cluster_id, key),
                Err(failure) => Err(failure.to_string()),
            };
            match opened {
                Ok(pem) => {
                    let of = key.clone();
                    self.opened.insert(name.clone(), Opened { of, pem });
                }
                Err(fault) => drop(self.faults.insert(name.to_string(), fault)),
            }
        }
    }
}

fn open_one(sealing: &SealingKeys, cluster_id: &[u8], key: &Key) -> Result<Vec<u8>, String> {
    let cluster_id = <&[u8; 16]>::try_from(cluster_id);
    let bound = Bound {
        cluster_id: cluster_id.map_err(|_| "the cluster's id is not known yet".to_owned())?,
        domain: &key.domain,
        selector: &key.selector,
    };
    let pem = sealing
        .open(bound, &key.sealed)
        .map_err(|e| e.to_string())?;
    SigningKey::from_pem(&key.selector, &pem).map_err(|error| format!("the key {error}"))?;
    Ok(pem)
}

/// The sealing keys of a directory: each file is one, 32 octets, and its name is the key's. What begins with a dot is none:
/// Kubernetes keeps the versions of a volume there.
///
/// # Errors
/// It cannot be read, or holds something else.
pub fn read_sealing_keys(dir: &Path) -> Result<SealingKeys, Failure> {
    let failed = |path: &Path, error: &dyn std::fmt::Display| {
        Failure::Failed(format!(
            "cannot read sealing keys in {}: {error}; --seal names a directory of files with {SEALING_KEY_OCTETS} octets each",
            path.display()
        ))
    };
    let mut keys = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| failed(dir, &e))? {
        let path = entry.map_err(|e| failed(dir, &e))?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name.starts_with('.') || !path.is_file() {
            continue;
        }
        let octets = std::fs::read(&path).map_err(|e| failed(&path, &e))?;
        let octets: [u8; SEALING_KEY_OCTETS] = octets
            .as_slice()
            .try_into()
            .map_err(|_| failed(&path, &format!("the file has {} octets", octets.len())))?;
        keys.push(SealingKey::new(name, &octets));
    }
    Ok(SealingKeys::new(keys))
}
