//! The `IDENTITY` file, a text with a checksum, and the lock that keeps a second process out of the directory.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::{Identity, StoreState};
use crate::log::Disk;

const NAME: &str = "IDENTITY";
const FIRST_LINE: &str = "postroad store identity, version 1";
/// More than any identity has, bytes: a peer is one line of some fifty.
const MOST_BYTES: u64 = 1 << 20;

/// The data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// Another process uses it.
    #[error("{} is in use by another process; stop that one, or give this one a directory of its own", .0.display())]
    InUse(PathBuf),
    /// The file is there and cannot be believed.
    #[error(
        "{} is damaged: {what}. Do not delete it: a node without its identity would vote twice. Restore it from a copy, \
         or remove this node from the cluster and start it on an empty directory under a new node id",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The disk refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The lock on a data directory; it is given back when this is dropped or the process dies.
#[derive(Debug)]
pub struct Lock {
    _file: fs::File,
}

impl Lock {
    /// Locks a directory, which is made when it does not exist.
    pub fn take(dir: &Path) -> Result<Self, DirError> {
        let path = dir.join("LOCK");
        let io = |source| DirError::Io {
            path: path.clone(),
            source,
        };
        fs::create_dir_all(dir).map_err(io)?;
        let file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(io)?;
        Self::on(dir, file)
    }

    /// Locks a directory that is only read, perhaps on a file system that is read-only since it met an error.
    pub fn take_to_read(dir: &Path) -> Result<Self, DirError> {
        let path = dir.join("LOCK");
        let file = fs::File::open(&path).map_err(|source| DirError::Io { path, source })?;
        Self::on(dir, file)
    }

    fn on(dir: &Path, file: fs::File) -> Result<Self, DirError> {
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(DirError::InUse(dir.to_owned())),
            Err(TryLockError::Error(source)) => Err(DirError::Io {
                path: dir.join("LOCK"),
                source,
            }),
        }
    }
}

impl Identity {
    /// Reads the identity of a data directory; None when the directory has none, which is a new one.
    pub fn load(disk: &dyn Disk, dir: &Path) -> Result<Option<Self>, DirError> {
        let path = dir.join(NAME);
        let io = |source| DirError::Io {
            path: path.clone(),
            source,
        };
        let file = match disk.open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(error)),
        };
        let mut bytes = vec![0; file.size().map_err(io)?.min(MOST_BYTES) as usize];
        let read = file.read_at(&mut bytes, 0).map_err(io)?;
        let damaged = |what: String| DirError::Damaged {
            path: path.clone(),
            what,
        };
        let text =
            std::str::from_utf8(&bytes[..read]).map_err(|_| damaged("it is not text".into()))?;
        parse(text).map(Some).map_err(damaged)
    }

    /// Writes the identity so that a crash leaves either the old one or this one, and returns when it is durable.
    pub fn save(&self, disk: &dyn Disk, dir: &Path) -> Result<(), DirError> {
        replace(disk, dir, NAME, print(self).as_bytes())
    }
}

/// Writes a whole file so that a crash leaves either the old one or the new one, and returns when it is durable.
pub(super) fn replace(
    disk: &dyn Disk,
    dir: &Path,
    name: &str,
    bytes: &[u8],
) -> Result<(), DirError> {
    let (path, temporary) = (dir.join(name), dir.join(format!("{name}.new")));
    let write = || {
        disk.create_dir(dir)?;
        match disk.unlink(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = disk.create(&temporary)?;
        file.write_at(bytes, 0)?;
        file.sync_data()?;
        disk.rename(&temporary, &path)?;
        disk.sync_dir(dir)
    };
    write().map_err(|source| DirError::Io { path, source })
}

fn print(identity: &Identity) -> String {
    let state = match identity.state {
        StoreState::Starting => "starting",
        StoreState::Joining => "joining",
        StoreState::Member => "member",
    };
    let mut text = format!(
        "{FIRST_LINE}\ncluster {}\nnode {}\nincarnation {:032x}\nstate {state}\nshards {}\n",
        identity.cluster, identity.node, identity.incarnation, identity.shards
    );
    for (node, incarnation) in &identity.known {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "peer {node} {incarnation:032x}");
    }
    let crc = crc32c::crc32c(text.as_bytes());
    let _ = writeln!(text, "crc32c {crc:08x}");
    text
}

fn parse(text: &str) -> Result<Identity, String> {
    let body_len = text.rfind("crc32c ").ok_or("it has no checksum")?;
    let (body, sum) = text.split_at(body_len);
    if sum != format!("crc32c {:08x}\n", crc32c::crc32c(body.as_bytes())) {
        return Err("its checksum does not fit".into());
    }
    let mut lines = body.lines();
    let first = lines.next().unwrap_or_default();
    if first != FIRST_LINE {
        return Err(format!(
            "it begins with {first:?}, this program reads {FIRST_LINE:?}"
        ));
    }
    let mut field = |name: &str| {
        let line = lines
            .next()
            .and_then(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map(str::to_owned)
            .ok_or_else(|| format!("it has no {name}"))
    };
    let cluster = field("cluster")?
        .parse()
        .map_err(|error| format!("{error}"))?;
    let node = field("node")?
        .parse()
        .map_err(|_| "its node id is no number")?;
    let incarnation = hex(&field("incarnation")?)?;
    let state = match field("state")?.as_str() {
        "starting" => StoreState::Starting,
        "joining" => StoreState::Joining,
        "member" => StoreState::Member,
        other => return Err(format!("its state is {other:?}")),
    };
    let shards = field("shards")?
        .parse()
        .map_err(|_| "its number of shards is no number")?;
    let mut known = BTreeMap::new();
    for line in lines {
        let peer = line
            .strip_prefix("peer ")
            .and_then(|peer| peer.split_once(' '));
        let (peer, incarnation) = peer.ok_or_else(|| format!("it says {line:?}"))?;
        known.insert(
            peer.parse().map_err(|_| "a peer's id is no number")?,
            hex(incarnation)?,
        );
    }
    Ok(Identity {
        cluster,
        node,
        incarnation,
        state,
        shards,
        known,
    })
}

fn hex(text: &str) -> Result<u128, String> {
    u128::from_str_radix(text, 16).map_err(|_| format!("{text:?} is no incarnation"))
}

#[cfg(test)]
mod tests {
    use super::super::{ClusterId, Contact};
    use super::*;
    use crate::log::SimDisk;

    fn identity() -> Identity {
        let mut identity = Identity::starting(ClusterId([0xab; 16]), 2, 0x1234, 16);
        identity.known = BTreeMap::from([(1, 77), (3, u128::MAX)]);
        identity
    }

    #[test]
    fn what_is_printed_is_read() -> Result<(), String> {
        let member = Identity {
            state: StoreState::Member,
            ..identity()
        };
        assert_eq!(parse(&print(&member))?, member);
        assert_eq!(parse(&print(&identity()))?, identity());
        Ok(())
    }

    #[test]
    fn any_changed_byte_is_noticed() {
        let text = print(&identity());
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            assert!(
                String::from_utf8(bytes).is_ok_and(|changed| parse(&changed).is_err()),
                "byte {at}"
            );
        }
        assert!(parse(&text[..text.len() / 2]).is_err());
        assert!(parse("").is_err());
    }

    #[test]
    fn a_crash_leaves_the_old_identity_or_the_new_one() -> Result<(), DirError> {
        for crash in 0..12 {
            for seed in 0..20 {
                let disk = SimDisk::new(1 << 20, seed);
                identity().save(&disk, "/data".as_ref())?;
                let member = Identity {
                    state: StoreState::Member,
                    ..identity()
                };
                disk.crash_after(crash);
                let saved = member.save(&disk, "/data".as_ref());
                disk.restart();
                let found = Identity::load(&disk, "/data".as_ref())?;
                let durable = saved.is_ok();
                assert!(
                    found == Some(member) || (!durable && found == Some(identity())),
                    "{crash} {seed} {found:?}"
                );
            }
        }
        Ok(())
    }

    #[test]
    fn a_directory_has_one_owner() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let lock = Lock::take(dir.path())?;
        assert!(matches!(Lock::take(dir.path()), Err(DirError::InUse(_))));
        drop(lock);
        Lock::take(dir.path())?;
        Ok(())
    }

    #[test]
    fn a_peer_on_another_disk_is_foreign() {
        assert_eq!(identity().contact(1, 77), Contact::Known);
        assert_eq!(identity().contact(1, 78), Contact::Foreign);
        assert_eq!(identity().contact(4, 78), Contact::First);
    }
}
