//! Resources from a directory: read once, and read again when it changed.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use resource::{Catalog, Invalid};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often the directory is looked at. Polling sees what every kind of volume does; a change is a matter of seconds.
const POLL: Duration = Duration::from_secs(1);

/// The directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// It or a file in it cannot be read.
    #[error(
        "cannot read {path}: {source}; -f names a directory of *.yaml or *.yml files that this user may read"
    )]
    Io {
        /// What was being read.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What it says is wrong.
    #[error("resources in {path} are not valid:\n{source}")]
    Invalid {
        /// The directory.
        path: PathBuf,
        /// Every fault.
        source: Invalid,
    },
}

/// Tells one state of a directory from another without reading the files.
type Fingerprint = Vec<(PathBuf, Option<SystemTime>, u64, u64)>;

/// Reads `*.yaml` and `*.yml` of a directory (not of those below it) and compiles them.
pub fn read_dir(path: &Path) -> Result<Catalog, DirError> {
    resource::load_dir(read_files(path)?).map_err(|source| DirError::Invalid {
        path: path.into(),
        source,
    })
}

/// Name and text of each `*.yaml` and `*.yml` of a directory (not of those below it).
pub fn read_files(path: &Path) -> Result<Vec<(String, String)>, DirError> {
    let mut files = Vec::new();
    for (file, ..) in fingerprint(path)? {
        let text = std::fs::read_to_string(&file).map_err(|source| DirError::Io {
            path: file.clone(),
            source,
        })?;
        files.push((
            file.file_name()
                .unwrap_or(file.as_os_str())
                .to_string_lossy()
                .into_owned(),
            text,
        ));
    }
    Ok(files)
}

/// Reads the directory and then follows it until `stop`. The first version must be good; a later one that is not keeps
/// the former and is logged, once.
pub async fn watch_dir(
    path: PathBuf,
    stop: CancellationToken,
) -> Result<watch::Receiver<Option<Arc<Catalog>>>, DirError> {
    let (mut seen, first) = look(path.clone()).await;
    let (tell, told) = watch::channel(Some(Arc::new(first?)));
    tokio::spawn(async move {
        while stop
            .run_until_cancelled(tokio::time::sleep(POLL))
            .await
            .is_some()
        {
            let now = {
                let path = path.clone();
                tokio::task::spawn_blocking(move || fingerprint(&path).ok())
                    .await
                    .unwrap_or_default()
            };
            if now == seen {
                continue;
            }
            let (next, result) = look(path.clone()).await;
            seen = next;
            match result {
                Ok(catalog) => {
                    let (inbound, networks) = catalog.counts();
                    tracing::info!(path = %path.display(), inbound, networks, "resources read again");
                    tell.send_replace(Some(Arc::new(catalog)));
                }
                Err(error) => tracing::error!(%error, "the former resources stay in use"),
            }
        }
    });
    Ok(told)
}

/// The fingerprint is taken before reading: what changes in between is seen at the next look.
async fn look(path: PathBuf) -> (Option<Fingerprint>, Result<Catalog, DirError>) {
    let work = tokio::task::spawn_blocking({
        let path = path.clone();
        move || (fingerprint(&path).ok(), read_dir(&path))
    });
    work.await.unwrap_or_else(|error| {
        (
            None,
            Err(DirError::Io {
                path,
                source: io::Error::other(error),
            }),
        )
    })
}

fn fingerprint(path: &Path) -> Result<Fingerprint, DirError> {
    let failed = |path: &Path, source| DirError::Io {
        path: path.into(),
        source,
    };
    let mut files = Fingerprint::new();
    for entry in std::fs::read_dir(path).map_err(|e| failed(path, e))? {
        let file = entry.map_err(|e| failed(path, e))?.path();
        let yaml = file
            .extension()
            .is_some_and(|ext| ext == "yaml" || ext == "yml");
        if !yaml {
            continue;
        }
        // Follows links: Kubernetes shows a new version of a mounted volume by turning one.
        let meta = std::fs::metadata(&file).map_err(|e| failed(&file, e))?;
        if meta.is_file() {
            files.push((file, meta.modified().ok(), meta.len(), meta.ino()));
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, domain: &str) {
        let text = format!(
            "apiVersion: postroad.dev/v1alpha1\nkind: RelayDomain\nmetadata: {{name: d}}\nspec: {{domain: {domain}, inbound: {{}}}}\n"
        );
        let new = dir.join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, dir.join("d.yaml")).unwrap();
    }

    #[tokio::test]
    async fn a_change_is_read_and_a_bad_one_keeps_the_former() {
        let dir = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        write(dir.path(), "one.example");
        let mut catalog = watch_dir(dir.path().into(), stop.clone()).await.unwrap();
        assert!(
            catalog
                .borrow()
                .as_ref()
                .unwrap()
                .inbound("one.example")
                .is_some()
        );

        write(dir.path(), "'not a domain'");
        tokio::time::sleep(POLL * 3 / 2).await;
        assert!(!catalog.has_changed().unwrap());

        write(dir.path(), "two.example");
        catalog.changed().await.unwrap();
        let now = catalog.borrow().clone().unwrap();
        assert!(now.inbound("two.example").is_some() && now.inbound("one.example").is_none());
        stop.cancel();
    }

    #[tokio::test]
    async fn a_first_version_that_is_bad_is_an_error_that_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let error = read_dir(&dir.path().join("absent"))
            .unwrap_err()
            .to_string();
        assert!(
            error
                .ends_with("-f names a directory of *.yaml or *.yml files that this user may read"),
            "{error}"
        );
        write(dir.path(), "'a b'");
        let error = watch_dir(dir.path().into(), CancellationToken::new())
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("d.yaml, document 1 (RelayDomain default/d): spec.domain: `a b`"),
            "{error}"
        );
    }
}
