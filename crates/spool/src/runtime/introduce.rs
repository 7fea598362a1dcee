//! First contact between replica nodes: whose disk is whose, told before anything else is said.
//!
//! The decisions are [`crate::identity`]'s; here they are asked for, made durable and answered.

mod roster;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use proto::v1;
use proto::v1::peer_client::PeerClient;
use queue::control::NodeRow;
use tokio::sync::watch;

use crate::config::{Config, Error, InitialState};
use crate::identity::{
    ClusterId, Contact, FirstStart, Identity, Introduction, Lock, Roster, StoreState, answer,
    first_start,
};
use crate::log::RealDisk;
use crate::peer::Sender;

/// Pause between rounds of introductions while a node starts.
const ASK_AGAIN: Duration = Duration::from_millis(300);

/// Pause between rounds once it takes part: who started anew is known after this.
const INTRODUCE_AGAIN: Duration = Duration::from_secs(5);

/// An introduction that is not answered within this time counts as not heard.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// Says who this node is, and hears who the others are. Shared.
#[derive(Clone)]
pub struct Introducer {
    inner: Arc<Mutex<Inner>>,
    settings: Arc<Settings>,
    introduced: Introduced,
    news: Arc<watch::Sender<News>>,
}

/// What the control group's leader said of the nodes, as far as it concerns this one.
#[derive(Clone, Debug, Default)]
pub struct News {
    /// Who there is; empty while nobody said so.
    pub roster: Roster,
    /// Not empty: this node has no place in the cluster, and why.
    pub refused: String,
}

struct Settings {
    dir: std::path::PathBuf,
    replication_factor: u32,
    initial_cluster: String,
    row: NodeRow,
    process: u64,
    _lock: Lock,
}

struct Inner {
    identity: Identity,
    /// Of the control group's leader that was heard last.
    steer_term: u64,
}

/// What nodes said of themselves lately.
#[derive(Clone, Default)]
pub struct Introduced(Arc<Mutex<BTreeMap<u64, NodeRow>>>);

impl Introduced {
    /// All of them.
    pub fn rows(&self) -> BTreeMap<u64, NodeRow> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn insert(&self, node: u64, row: NodeRow) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(node, row);
    }
}

impl Introducer {
    /// Locks the data directory and reads, or makes, its identity.
    ///
    /// # Errors
    /// [`Error::Identity`]: another process has it, it is damaged, or it belongs to another node or cluster.
    pub fn open(config: &Config) -> Result<Introducer, Error> {
        let failed = |e: crate::identity::DirError| Error::Identity(e.to_string());
        let lock = Lock::take(&config.dir).map_err(failed)?;
        let identity = match Identity::load(&RealDisk, &config.dir).map_err(failed)? {
            Some(identity) if identity.state != StoreState::Starting => {
                check_own(identity, config)?
            }
            found => {
                // What only began to start holds nothing: it may still become the other kind.
                let new = || {
                    let incarnation = rand::random();
                    Identity::starting(config.cluster_id, config.node, incarnation, config.shards)
                };
                let mut made = found.map_or_else(|| Ok(new()), |found| check_own(found, config))?;
                if config.initial_state == InitialState::Existing {
                    made.state = StoreState::Joining;
                }
                made.save(&RealDisk, &config.dir).map_err(failed)?;
                made
            }
        };
        let introduced = Introduced::default();
        let row = NodeRow {
            incarnation: identity.incarnation.to_be_bytes(),
            peer_address: config.advertise_peer.as_str().into(),
            client_address: config.advertise_client.as_str().into(),
            zone: config.zone.as_str().into(),
        };
        introduced.insert(config.node, row.clone());
        let settings = Settings {
            dir: config.dir.clone(),
            replication_factor: config.replication_factor,
            initial_cluster: canonical(&config.initial_cluster),
            row,
            process: rand::random(),
            _lock: lock,
        };
        let news = News {
            roster: Roster::load(&RealDisk, &config.dir),
            refused: String::new(),
        };
        let inner = Inner {
            identity,
            steer_term: 0,
        };
        Ok(Introducer {
            inner: Arc::new(Mutex::new(inner)),
            settings: Arc::new(settings),
            introduced,
            news: Arc::new(watch::channel(news).0),
        })
    }

    /// What nodes said of themselves.
    pub fn introduced(&self) -> Introduced {
        self.introduced.clone()
    }

    /// Of this node's store.
    pub fn incarnation(&self) -> u128 {
        self.lock().identity.incarnation
    }

    /// What stands on every frame of this node.
    pub fn sender(&self) -> Sender {
        let inner = self.lock();
        Sender {
            cluster_id: Bytes::copy_from_slice(&inner.identity.cluster.0),
            node: inner.identity.node,
            incarnation: Bytes::copy_from_slice(&inner.identity.incarnation.to_be_bytes()),
        }
    }

    /// Asks the other first nodes until this one may take part. A member may at once.
    ///
    /// # Errors
    /// [`Error::Refused`] with a text that says what to do.
    pub async fn become_member(&self, config: &Config) -> Result<(), Error> {
        if self.lock().identity.state == StoreState::Member {
            return Ok(());
        }
        if self.lock().identity.state == StoreState::Joining {
            return self.wait_to_be_added(config).await;
        }
        let initial: Vec<u64> = config.initial_cluster.keys().copied().collect();
        let mut heard = BTreeMap::new();
        let mut complained = false;
        loop {
            let own = self.own();
            match first_start(&own, &initial, &heard) {
                FirstStart::BecomeMember { known } => return self.take_part(config, known).await,
                FirstStart::Refuse { text } => return Err(Error::Refused(text)),
                FirstStart::Wait { asking } => {
                    for node in asking {
                        let Some(address) = config.initial_cluster.get(&node) else {
                            continue;
                        };
                        match self.introduce(config, node, address).await {
                            Ok(introduction) => {
                                heard.insert(node, introduction);
                            }
                            Err(Error::Refused(text)) => return Err(Error::Refused(text)),
                            Err(error) if !complained => {
                                complained = true;
                                tracing::info!(node, address, %error, "waits for the other first nodes");
                            }
                            Err(_) => {}
                        }
                    }
                    if heard.len() + 1 < initial.len() {
                        tokio::time::sleep(ASK_AGAIN).await;
                    }
                }
            }
        }
    }

    /// From now on this store has given promises. The log is begun before that is said, so that a member without a log is
    /// known to have lost its disk.
    pub(super) async fn take_part(
        &self,
        config: &Config,
        known: BTreeMap<u64, u128>,
    ) -> Result<(), Error> {
        let (config, incarnation) = (config.clone(), self.incarnation());
        tokio::task::spawn_blocking(move || super::recover::begin(&config, incarnation))
            .await
            .map_err(|e| Error::Recovered(format!("beginning the log failed: {e}")))??;
        let mut inner = self.lock();
        let mut identity = inner.identity.clone();
        identity.state = StoreState::Member;
        identity.known = known;
        identity
            .save(&RealDisk, &self.settings.dir)
            .map_err(|e| Error::Identity(e.to_string()))?;
        inner.identity = identity;
        Ok(())
    }

    /// Tells the others again and again who this node is; a refusal is logged, and this node's frames are dropped.
    pub async fn keep_introducing(self, config: Config) {
        loop {
            for (node, address) in self.addresses(&config) {
                if node != config.node
                    && let Err(Error::Refused(text)) = self.introduce(&config, node, &address).await
                {
                    tracing::error!(node, text, "another replica refuses this node");
                }
            }
            tokio::time::sleep(INTRODUCE_AGAIN).await;
        }
    }

    async fn introduce(
        &self,
        config: &Config,
        node: u64,
        address: &str,
    ) -> Result<Introduction, Error> {
        let heard = |text: String| Error::Recovered(text);
        let connector = proto::tls::Connector::to_node(config.tls.clone(), &node.to_string());
        let call = async {
            let endpoint = proto::tls::endpoint(address).map_err(heard)?;
            let channel = endpoint
                .connect_with_connector(connector)
                .await
                .map_err(|e| heard(proto::causes(&e)))?;
            let mut client = PeerClient::new(channel);
            client
                .introduce(self.to_wire())
                .await
                .map_err(|s| heard(s.message().to_owned()))
        };
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, call).await;
        let wire = answer
            .map_err(|_| heard("no answer within 3 s".to_owned()))??
            .into_inner();
        if !wire.refusal.is_empty() {
            return Err(Error::Refused(wire.refusal));
        }
        let introduction = from_wire(&wire).map_err(heard)?;
        self.note(&introduction, &wire);
        Ok(introduction)
    }

    /// Answers a node that introduces itself.
    pub fn answer(&self, wire: &v1::Introduction) -> v1::Introduction {
        let mut own = self.to_wire();
        match from_wire(wire) {
            Ok(asking) => match answer(&self.own(), &asking) {
                Some(refusal) => own.refusal = refusal,
                None => match self.removed(&asking) {
                    Some(refusal) => own.refusal = refusal,
                    None => self.note(&asking, wire),
                },
            },
            Err(text) => own.refusal = text,
        }
        own
    }

    /// Whether a frame may be listened to.
    ///
    /// # Errors
    /// A text for the sender.
    pub fn check_frame(&self, name: &str, frame: &v1::PeerFrame) -> Result<(), String> {
        let inner = self.lock();
        let own = &inner.identity;
        if frame.cluster_id != own.cluster.0[..] {
            return Err("this frame belongs to another cluster".to_owned());
        }
        if frame.to_node != own.node {
            return Err(format!(
                "this is node {}, the frame is for node {}; check the addresses",
                own.node, frame.to_node
            ));
        }
        if frame.from_node.to_string() != name {
            return Err(format!(
                "the certificate is of node {name}, the frame of node {}",
                frame.from_node
            ));
        }
        let Ok(incarnation) = frame
            .from_incarnation
            .as_ref()
            .try_into()
            .map(u128::from_be_bytes)
        else {
            return Err("the frame's incarnation has not 16 octets".to_owned());
        };
        match own.contact(frame.from_node, incarnation) {
            Contact::Known => Ok(()),
            Contact::First | Contact::Foreign => Err(format!(
                "node {} took part with another data directory: replace it with a new node id",
                frame.from_node
            )),
        }
    }

    fn note(&self, of: &Introduction, wire: &v1::Introduction) {
        let row = NodeRow {
            incarnation: of.incarnation.to_be_bytes(),
            peer_address: wire.peer_address.as_str().into(),
            client_address: wire.client_address.as_str().into(),
            zone: wire.zone.as_str().into(),
        };
        self.introduced.insert(of.node, row);
    }

    fn own(&self) -> Introduction {
        let inner = self.lock();
        Introduction::of(
            &inner.identity,
            self.settings.replication_factor,
            &self.settings.initial_cluster,
        )
    }

    fn to_wire(&self) -> v1::Introduction {
        let own = self.own();
        let state = match own.state {
            StoreState::Starting => v1::StoreState::Starting,
            StoreState::Joining => v1::StoreState::Joining,
            StoreState::Member => v1::StoreState::Member,
        };
        let known = own
            .known
            .iter()
            .map(|(node, incarnation)| v1::KnownIncarnation {
                node: *node,
                incarnation: Bytes::copy_from_slice(&incarnation.to_be_bytes()),
            });
        v1::Introduction {
            cluster_id: Bytes::copy_from_slice(&own.cluster.0),
            node: own.node,
            incarnation: Bytes::copy_from_slice(&own.incarnation.to_be_bytes()),
            state: state as i32,
            known: known.collect(),
            shards: own.shards,
            replication_factor: own.replication_factor,
            initial_cluster: own.initial_cluster.clone(),
            client_address: self.settings.row.client_address.to_string(),
            peer_address: self.settings.row.peer_address.to_string(),
            zone: self.settings.row.zone.to_string(),
            refusal: String::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check_own(identity: Identity, config: &Config) -> Result<Identity, Error> {
    let refuse = |text: String| Err(Error::Identity(text));
    let dir = config.dir.display();
    if identity.cluster != config.cluster_id {
        return refuse(format!(
            "{dir} belongs to cluster {}, but --cluster-id is {}: check the data directory and the arguments",
            identity.cluster, config.cluster_id
        ));
    }
    if identity.node != config.node {
        return refuse(format!(
            "{dir} belongs to node {}, but --node-id is {}: a node id names a disk; check the data directory",
            identity.node, config.node
        ));
    }
    if identity.shards != config.shards {
        return refuse(format!(
            "{dir} was made with --shards {}, now it is {}: the number never changes",
            identity.shards, config.shards
        ));
    }
    Ok(identity)
}

fn canonical(initial: &BTreeMap<u64, String>) -> String {
    let each: Vec<String> = initial
        .iter()
        .map(|(id, address)| format!("{id}={address}"))
        .collect();
    each.join(",")
}

fn from_wire(wire: &v1::Introduction) -> Result<Introduction, String> {
    let sixteen = |what: &str, bytes: &Bytes| -> Result<[u8; 16], String> {
        bytes
            .as_ref()
            .try_into()
            .map_err(|_| format!("the {what} of an introduction has not 16 octets"))
    };
    let mut known = BTreeMap::new();
    for k in &wire.known {
        known.insert(
            k.node,
            u128::from_be_bytes(sixteen("known incarnation", &k.incarnation)?),
        );
    }
    Ok(Introduction {
        cluster: ClusterId(sixteen("cluster id", &wire.cluster_id)?),
        node: wire.node,
        incarnation: u128::from_be_bytes(sixteen("incarnation", &wire.incarnation)?),
        state: match wire.state() {
            v1::StoreState::Member => StoreState::Member,
            v1::StoreState::Starting => StoreState::Starting,
            v1::StoreState::Joining => StoreState::Joining,
            v1::StoreState::Unspecified => return Err("an introduction without a state".to_owned()),
        },
        known,
        shards: wire.shards,
        replication_factor: wire.replication_factor,
        initial_cluster: wire.initial_cluster.clone(),
    })
}
