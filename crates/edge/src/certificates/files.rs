//! Which pairs a directory has, and whether its files are those of the last look, without reading them.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use super::{ITSELF, PAIRS_MAX};

/// The certificate chain, PEM, leaf first.
pub(super) const CERTIFICATE: &str = "tls.crt";
/// The private key, PEM.
pub(super) const KEY: &str = "tls.key";

/// One file: when it was changed, its size, and its inode, which the kubelet's turn of a link changes.
type Stamp = Option<(SystemTime, u64, u64)>;

/// The pairs of a directory by name, with the stamps of their two files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamps {
    pairs: BTreeMap<String, [Stamp; 2]>,
    too_many: Option<usize>,
}

impl Stamps {
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.pairs.keys().map(String::as_str)
    }

    /// How many there are, if that is more than are used.
    pub(super) fn too_many(&self) -> Option<usize> {
        self.too_many
    }
}

/// Looks at `dir`: at itself, and at each directory in it that has a certificate or a key. Names with a dot in front are the kubelet's
/// own business.
pub(super) fn stamps(dir: &Path) -> io::Result<Stamps> {
    let mut pairs = BTreeMap::new();
    let mut add = |name: &str, dir: &Path| {
        let found = [stamp(&dir.join(CERTIFICATE)), stamp(&dir.join(KEY))];
        if found.iter().any(Option::is_some) {
            pairs.insert(name.to_owned(), found);
        }
    };
    add(ITSELF, dir);
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && std::fs::metadata(entry.path()).is_ok_and(|m| m.is_dir()) {
            add(&name, &entry.path());
        }
    }
    let too_many = (pairs.len() > PAIRS_MAX).then_some(pairs.len());
    while pairs.len() > PAIRS_MAX {
        pairs.pop_last();
    }
    Ok(Stamps { pairs, too_many })
}

/// Follows links.
fn stamp(path: &Path) -> Stamp {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len(), meta.ino()))
}
