//! The data directory of `up`: made at the first start, and then always the same cluster.
//!
//! ```text
//! postroad-data/
//!   up.json       cluster id, replicas with their ports on loopback
//!   LOCK          held while an `up` runs
//!   pki/          ca, edge, delivery, admin, queue-N
//!   queue-N/      log and metadata of a replica
//!   delivery/     journal
//!   seal/         the key that seals DKIM keys on their way to the delivery node
//! ```

mod certificates;

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// Shards of an `up`: one machine has nothing to spread, and a few keep its cores busy.
const SHARDS: u32 = 4;
/// Ports are drawn from here: below those that Linux gives to outgoing connections (32768 and up), so that a restart
/// finds them free again.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// Draws before it is said that there is no free port.
const PORT_DRAWS: usize = 200;

/// What was decided at the first start.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Installation {
    /// UUID of the cluster.
    pub cluster_id: String,
    /// Its shards.
    pub shards: u32,
    /// Its queue nodes.
    pub nodes: Vec<Node>,
}

/// A replica in this process.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Node {
    /// Node id.
    pub node: u32,
    /// Port for the other replicas.
    pub peer_port: u16,
    /// Port for edge, delivery and people.
    pub client_port: u16,
}

impl Node {
    /// Where the other replicas connect.
    pub fn peer(&self) -> String {
        format!("127.0.0.1:{}", self.peer_port)
    }

    /// Where everybody else connects.
    pub fn client(&self) -> String {
        format!("127.0.0.1:{}", self.client_port)
    }
}

/// The data directory, ours while this lives.
#[derive(Debug)]
pub struct Opened {
    /// What it holds.
    pub installation: Installation,
    dir: PathBuf,
    _lock: File,
}

impl Opened {
    /// Directory of a replica.
    pub fn queue_dir(&self, node: u32) -> PathBuf {
        self.dir.join(format!("queue-{node}"))
    }

    /// Directory of the delivery node's journal.
    pub fn delivery_dir(&self) -> PathBuf {
        self.dir.join("delivery")
    }

    /// Sealing keys.
    pub fn seal_dir(&self) -> PathBuf {
        seal_dir(&self.dir)
    }

    /// Certificates of `edge`, `delivery`, `admin` or `queue-N`.
    pub fn pki_dir(&self, name: &str) -> PathBuf {
        pki_dir(&self.dir, name)
    }

    /// Renews certificates from now on. Call it inside of a runtime.
    pub fn follow(&self) {
        let (dir, every) = (self.dir.clone(), certificates::LOOK_EVERY);
        tokio::spawn(certificates::follow(dir, self.installation.clone(), every));
    }
}

/// Certificates of `edge`, `delivery`, `admin` or `queue-N` in the data directory of an `up`.
pub fn pki_dir(data: &Path, name: &str) -> PathBuf {
    data.join("pki").join(name)
}

/// Sealing keys in the data directory of an `up`.
pub fn seal_dir(data: &Path) -> PathBuf {
    data.join("seal")
}

/// What is in a data directory, for the administration commands. `None`: there was no first start.
pub fn read(data: &Path) -> Result<Option<Installation>, Failure> {
    let path = data.join("up.json");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(cannot("read", &path, error)),
    };
    let found = serde_json::from_str(&text).map_err(|error| {
        Failure::Failed(format!(
            "{} is damaged: {error}; restore it, or start anew with another --data",
            path.display()
        ))
    })?;
    Ok(Some(found))
}

/// Opens the data directory, and makes what is missing. `replicas`: as asked for, if it was.
pub fn open(data: &Path, replicas: Option<u32>) -> Result<Opened, Failure> {
    fs::create_dir_all(data).map_err(|e| cannot("create", data, e))?;
    let lock = lock(data)?;
    let installation = match read(data)? {
        Some(found) => keep(data, found, replicas)?,
        None => make(data, replicas.unwrap_or(1))?,
    };
    let opened = Opened {
        installation,
        dir: data.into(),
        _lock: lock,
    };
    certificates::renew(data, &opened.installation, SystemTime::now())?;
    make_sealing_key(&opened.seal_dir())?;
    Ok(opened)
}

fn lock(data: &Path) -> Result<File, Failure> {
    let path = data.join("LOCK");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|e| cannot("open", &path, e))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        Failure::Failed(format!(
            "{} is in use by another `postroad up`; stop that one, or give another --data",
            data.display()
        ))
    })?;
    Ok(file)
}

/// A later start: the replicas are what they were; ports that someone else has by now are drawn anew.
fn keep(
    data: &Path,
    mut found: Installation,
    replicas: Option<u32>,
) -> Result<Installation, Failure> {
    let before = found.nodes.len();
    if let Some(asked) = replicas
        && asked as usize != before
    {
        return Err(Failure::usage(format!(
            "{} was made with --replicas {before}; give that, or another --data",
            data.display()
        )));
    }
    let mut held = Vec::new();
    let mut changed = false;
    for node in &mut found.nodes {
        for port in [&mut node.peer_port, &mut node.client_port] {
            match TcpListener::bind(("127.0.0.1", *port)) {
                Ok(listener) => held.push(listener),
                Err(error) => {
                    let listener = free_port()?;
                    let new = port_of(&listener)?;
                    tracing::warn!(old = *port, new, %error, "a port of the queue is taken; another one is used from now on");
                    (*port, changed) = (new, true);
                    held.push(listener);
                }
            }
        }
    }
    if changed {
        write(data, &found)?;
    }
    Ok(found)
}

/// The first start.
fn make(data: &Path, replicas: u32) -> Result<Installation, Failure> {
    if !matches!(replicas, 1 | 3 | 5) {
        return Err(Failure::usage(format!(
            "--replicas {replicas} is not 1, 3 or 5: a majority decides, so an even number adds nothing"
        )));
    }
    // Held until all are drawn, so that none is drawn twice.
    let mut held = Vec::new();
    let mut draw = || -> Result<u16, Failure> {
        let listener = free_port()?;
        let port = port_of(&listener)?;
        held.push(listener);
        Ok(port)
    };
    let mut nodes = Vec::new();
    for node in 1..=replicas {
        let (peer_port, client_port) = (draw()?, draw()?);
        nodes.push(Node {
            node,
            peer_port,
            client_port,
        });
    }
    let made = Installation {
        cluster_id: uuid::Uuid::new_v4().to_string(),
        shards: SHARDS,
        nodes,
    };
    certificates::make(data, &made)?;
    write(data, &made)?;
    tracing::info!(data = %data.display(), cluster = made.cluster_id, replicas, "first start: made certificates and data directory");
    Ok(made)
}

fn free_port() -> Result<TcpListener, Failure> {
    (0..PORT_DRAWS)
        .find_map(|_| TcpListener::bind(("127.0.0.1", rand::random_range(PORTS))).ok())
        .ok_or_else(|| {
            Failure::Failed(format!(
                "found no free port on 127.0.0.1 from {} to {}; does this system have a loopback interface?",
                PORTS.start, PORTS.end
            ))
        })
}

fn port_of(listener: &TcpListener) -> Result<u16, Failure> {
    Ok(listener.local_addr().map_err(Failure::failed)?.port())
}

/// A directory with one sealing key, unless it is there: readable for this user only.
fn make_sealing_key(dir: &Path) -> Result<(), Failure> {
    if dir.exists() {
        return Ok(());
    }
    let new = dir.with_extension("new");
    fs::create_dir_all(&new).map_err(|e| cannot("create", &new, e))?;
    let path = new.join("1");
    let key: [u8; resource::seal::SEALING_KEY_OCTETS] = rand::random();
    let mut options = File::options();
    options.create(true).truncate(true).write(true).mode(0o600);
    let written = options.open(&path).and_then(|mut file| {
        file.write_all(&key)?;
        file.sync_all()
    });
    written
        .and_then(|()| fs::rename(&new, dir))
        .map_err(|e| cannot("write", &path, e))
}

fn write(data: &Path, installation: &Installation) -> Result<(), Failure> {
    let (new, place) = (data.join("up.json.new"), data.join("up.json"));
    let text = serde_json::to_string_pretty(installation).map_err(Failure::failed)?;
    let written = File::create(&new).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written
        .and_then(|()| fs::rename(&new, &place))
        .and_then(|()| File::open(data)?.sync_all())
        .map_err(|e| cannot("write", &place, e))
}

fn cannot(what: &str, path: &Path, error: io::Error) -> Failure {
    Failure::Failed(format!("cannot {what} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_start_is_the_same_cluster() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
        let first = open(dir.path(), Some(3)).unwrap().installation;
        assert_eq!(first.nodes.len(), 3);
        let second = open(dir.path(), None).unwrap();
        assert_eq!(second.installation, first);
        assert_eq!(read(dir.path()).unwrap().as_ref(), Some(&first));
        let identity = proto::NodeTls::load(&second.pki_dir("queue-2"))
            .unwrap()
            .identity();
        assert_eq!(identity.cluster, first.cluster_id);
        assert_eq!(identity.name, "2");
    }

    #[test]
    fn two_cannot_have_one_directory() {
        let dir = tempfile::tempdir().unwrap();
        let _first = open(dir.path(), None).unwrap();
        let error = open(dir.path(), None).unwrap_err().to_string();
        assert!(error.contains("in use by another"), "{error}");
    }

    #[test]
    fn replicas_stay_what_they_were() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), None).unwrap());
        let error = open(dir.path(), Some(3)).unwrap_err();
        assert!(matches!(error, Failure::Usage(_)));
        let other = tempfile::tempdir().unwrap();
        assert!(matches!(
            open(other.path(), Some(2)),
            Err(Failure::Usage(_))
        ));
    }

    #[test]
    fn a_port_that_was_taken_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path(), None).unwrap().installation;
        let _taken = TcpListener::bind(first.nodes[0].client()).unwrap();
        let second = open(dir.path(), None).unwrap().installation;
        assert_ne!(second.nodes[0].client_port, first.nodes[0].client_port);
        assert_eq!(second.nodes[0].peer_port, first.nodes[0].peer_port);
    }
}
