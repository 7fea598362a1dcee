//! The certificates of an `up`: made at the first start, and made anew long before they end, at a start and while it runs.
//!
//! The CA's key lies beside them. So nothing here has to survive a crash as a whole: a directory that is not there, or a key
//! beside the certificate of another, is found at the next look and made anew.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proto::{NodeTls, Role, pki};

use super::{Installation, cannot, pki_dir};
use crate::failure::Failure;

/// A certificate that has less left is made anew. It lives 365 days, so renewal is practised every two months, and where
/// it fails there is most of a year to see to it.
const LEFT_MIN: Duration = Duration::from_secs(300 * 24 * 60 * 60);
/// Between two looks while an `up` runs: short beside `LEFT_MIN`, and what fails is said once a day.
pub const LOOK_EVERY: Duration = Duration::from_secs(24 * 60 * 60);

/// Who holds a certificate.
struct Holder {
    role: Role,
    /// The name in it.
    name: String,
    /// Its directory under `pki`.
    dir: String,
}

fn holders(installation: &Installation) -> Vec<Holder> {
    let mut all: Vec<Holder> = [Role::Edge, Role::Delivery, Role::Admin]
        .map(|role| Holder {
            role,
            name: "up".to_owned(),
            dir: role.to_string(),
        })
        .into();
    all.extend(installation.nodes.iter().map(|node| Holder {
        role: Role::Queue,
        name: node.node.to_string(),
        dir: format!("queue-{}", node.node),
    }));
    all
}

/// Makes everything beside its place and renames it, so that a crash leaves all or nothing.
pub fn make(data: &Path, installation: &Installation) -> Result<(), Failure> {
    let (new, place) = (data.join("pki.new"), data.join("pki"));
    for leftover in [&new, &place] {
        if leftover.exists() {
            fs::remove_dir_all(leftover).map_err(|e| cannot("remove", leftover, e))?;
        }
    }
    let ca = new.join("ca");
    pki::init(&installation.cluster_id, &ca).map_err(Failure::failed)?;
    for Holder { role, name, dir } in holders(installation) {
        pki::issue(&ca, role, &name, &new.join(dir)).map_err(Failure::failed)?;
    }
    fs::rename(&new, &place).map_err(|e| cannot("create", &place, e))
}

/// Renews for as long as it is polled: who must connect again after a year would be refused by certificates of the start.
/// The nodes read their files again by themselves.
pub async fn follow(data: PathBuf, installation: Installation, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let (data, installation) = (data.clone(), installation.clone());
        let look = move || renew(&data, &installation, SystemTime::now());
        let outcome = match tokio::task::spawn_blocking(look).await {
            Ok(outcome) => outcome,
            Err(error) => Err(Failure::failed(error)),
        };
        if let Err(failure) = outcome {
            tracing::error!(
                %failure,
                "a certificate can be used no more, and no other could be made; new connections are refused"
            );
        }
    }
}

/// Makes anew what cannot be used or ends soon.
///
/// # Errors
/// One cannot be used, and no other could be made.
pub fn renew(data: &Path, installation: &Installation, now: SystemTime) -> Result<(), Failure> {
    for holder in holders(installation) {
        let dir = pki_dir(data, &holder.dir);
        match condition(&dir, now) {
            Condition::Good => {}
            // The former one does for months, so this is no reason not to start.
            Condition::EndsSoon => {
                if let Err(failure) = replace(data, &holder, &dir) {
                    tracing::warn!(%failure, dir = %dir.display(), "a certificate could not be renewed; it is tried again");
                }
            }
            Condition::Unusable(why) => {
                tracing::warn!(why, "a certificate cannot be used; another one is made");
                replace(data, &holder, &dir)?;
            }
        }
    }
    Ok(())
}

/// How the files of a holder are.
enum Condition {
    Good,
    EndsSoon,
    Unusable(String),
}

fn condition(dir: &Path, now: SystemTime) -> Condition {
    // It reads all three files, and sees that they belong together and are valid now.
    if let Err(error) = NodeTls::load(dir) {
        return Condition::Unusable(error.to_string());
    }
    // The end is asked for, not the file's age: a directory that was copied looks young.
    let end = fs::read(dir.join(pki::NODE_CERTIFICATE))
        .ok()
        .and_then(|pem| pki::not_after(&pem))
        .and_then(|seconds| u64::try_from(seconds).ok())
        .map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
    match end {
        Some(end) if end > now + LEFT_MIN => Condition::Good,
        _ => Condition::EndsSoon,
    }
}

/// Makes a certificate beside its place and moves its files there one by one. A crash between key and certificate leaves two
/// that do not belong together, which the next look makes good; running nodes keep what they read until both are there.
fn replace(data: &Path, holder: &Holder, dir: &Path) -> Result<(), Failure> {
    let new = dir.with_extension("new");
    if new.exists() {
        fs::remove_dir_all(&new).map_err(|e| cannot("remove", &new, e))?;
    }
    let (role, name) = (holder.role, &holder.name);
    pki::issue(&data.join("pki/ca"), role, name, &new).map_err(Failure::failed)?;
    fs::create_dir_all(dir).map_err(|e| cannot("create", dir, e))?;
    for file in [pki::CA_CERTIFICATE, pki::NODE_KEY, pki::NODE_CERTIFICATE] {
        let place = dir.join(file);
        fs::rename(new.join(file), &place).map_err(|e| cannot("replace", &place, e))?;
    }
    fs::remove_dir(&new).map_err(|e| cannot("remove", &new, e))?;
    tracing::info!(%role, name, "made a new certificate");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::first_start::open;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    /// A data directory after its first start, and where the edge's certificate lies.
    fn place() -> (tempfile::TempDir, PathBuf) {
        let data = tempfile::tempdir().unwrap();
        drop(open(data.path(), None).unwrap());
        let edge = pki_dir(data.path(), "edge");
        (data, edge)
    }

    fn certificate(dir: &Path) -> Vec<u8> {
        fs::read(dir.join(pki::NODE_CERTIFICATE)).unwrap()
    }

    /// Puts an edge's certificate there that ends in ten days, and gives it.
    fn grow_old(data: &Path, dir: &Path) -> Vec<u8> {
        let of_ca = |file: &str| fs::read_to_string(data.join("pki/ca").join(file)).unwrap();
        let ca = pki::Pair {
            certificate: of_ca(pki::CA_CERTIFICATE),
            key: of_ca(pki::CA_KEY),
        };
        let old = pki::make_leaf(&ca, Role::Edge, "up", SystemTime::now(), DAY * 10).unwrap();
        fs::write(dir.join(pki::NODE_CERTIFICATE), &old.certificate).unwrap();
        fs::write(dir.join(pki::NODE_KEY), &old.key).unwrap();
        NodeTls::load(dir).unwrap();
        certificate(dir)
    }

    #[test]
    fn whatever_a_crash_left_the_next_start_makes_good() {
        let moved_away = |dir: &Path| fs::rename(dir, dir.with_extension("new")).unwrap();
        let without_certificate =
            |dir: &Path| fs::remove_file(dir.join(pki::NODE_CERTIFICATE)).unwrap();
        let key_of_another = |dir: &Path| {
            let other = dir.with_file_name("delivery").join(pki::NODE_KEY);
            fs::copy(other, dir.join(pki::NODE_KEY)).unwrap();
        };
        let harms: [&dyn Fn(&Path); 3] = [&moved_away, &without_certificate, &key_of_another];
        for (n, harm) in harms.into_iter().enumerate() {
            let (data, edge) = place();
            harm(&edge);
            assert!(NodeTls::load(&edge).is_err(), "harm {n}");
            drop(open(data.path(), None).unwrap());
            assert!(NodeTls::load(&edge).is_ok(), "harm {n}");
            assert!(!edge.with_extension("new").exists(), "harm {n}");
        }
    }

    #[test]
    fn one_that_ends_soon_is_renewed_at_a_start_and_one_that_does_not_stays() {
        let (data, edge) = place();
        let first = certificate(&edge);
        drop(open(data.path(), None).unwrap());
        assert_eq!(certificate(&edge), first);

        let old = grow_old(data.path(), &edge);
        drop(open(data.path(), None).unwrap());
        assert_ne!(certificate(&edge), old);
        NodeTls::load(&edge).unwrap();
    }

    #[test]
    fn without_the_key_of_the_ca_one_that_can_be_used_is_used() {
        let (data, edge) = place();
        let old = grow_old(data.path(), &edge);
        fs::remove_file(data.path().join("pki/ca").join(pki::CA_KEY)).unwrap();
        drop(open(data.path(), None).unwrap());
        assert_eq!(certificate(&edge), old);

        fs::remove_file(edge.join(pki::NODE_KEY)).unwrap();
        let error = open(data.path(), None).unwrap_err().to_string();
        assert!(error.contains(pki::CA_KEY), "{error}");
    }

    #[tokio::test]
    async fn an_up_that_runs_renews_too() {
        let (data, edge) = place();
        let opened = open(data.path(), None).unwrap();
        let old = grow_old(data.path(), &edge);
        let (dir, often) = (data.path().to_owned(), Duration::from_millis(1));
        let following = tokio::spawn(follow(dir, opened.installation.clone(), often));
        let renewed = async {
            while certificate(&edge) == old {
                tokio::time::sleep(often).await;
            }
        };
        let patience = Duration::from_secs(60);
        tokio::time::timeout(patience, renewed)
            .await
            .expect("it is renewed");
        following.abort();
        NodeTls::load(&edge).unwrap();
    }
}
