//! The world of a delivery node: a queue node that speaks the protocol over real mutual TLS, next hops that do what a
//! test tells them, and a DNS without packets.

pub mod queue;
pub mod remote;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use delivery::{Config, SigningKeys};
use dns::{Resolver, Scripted};
use proto::client::{ClientConfig, QueueClient};
use proto::{NodeTls, Role, pki};
use resource::{Catalog, DeliverySettings};
use rustls_pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use queue::FakeQueue;
use remote::{Action, Remote};

/// Long enough for any step on a busy machine.
pub const SOON: Duration = Duration::from_secs(20);
/// A next hop that says nothing is given up after this.
pub const REPLY: Duration = Duration::from_millis(400);

pub struct World {
    pub dir: tempfile::TempDir,
    pub queue: FakeQueue,
    pub dns: Arc<Scripted>,
    /// The port of all next hops; each has an address of its own.
    pub port: u16,
    /// DKIM keys of nodes that start.
    pub keys: Arc<SigningKeys>,
    /// What is declared to nodes that start.
    pub catalog: Catalog,
    hosts: u8,
}

impl World {
    pub async fn new() -> World {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let dir = tempfile::tempdir().unwrap();
        pki::init("mail", &dir.path().join("ca")).unwrap();
        let queue = FakeQueue::start(tls(dir.path(), Role::Queue, "1")).await;
        let port = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        World {
            dir,
            queue,
            dns: Arc::new(Scripted::new()),
            port,
            keys: Arc::default(),
            catalog: Catalog::default(),
            hosts: 1,
        }
    }

    pub fn config(&self) -> Config {
        let settings = DeliverySettings {
            connect_timeout: REPLY,
            reply_timeout: REPLY,
            final_reply_timeout: REPLY,
            drain: Duration::from_secs(5),
            ..DeliverySettings::default()
        };
        Config {
            smtp_port: self.port,
            settings: Some(settings),
            ..Config::new("d1", "relay.test", self.dir.path().join("data"))
        }
    }

    /// Starts a delivery node and waits until it has its lease sessions.
    pub async fn node(&self, config: Config) -> Running {
        let running = self.start(config);
        let mut ready = running.ready.clone();
        tokio::time::timeout(SOON, ready.wait_for(|ready| *ready))
            .await
            .expect("ready in time")
            .unwrap();
        running
    }

    pub fn start(&self, config: Config) -> Running {
        let client = QueueClient::new(ClientConfig {
            endpoints: vec![self.queue.address.clone()],
            tls: tls(self.dir.path(), Role::Delivery, "pool"),
            name: "d1".into(),
        });
        let (_, catalog) = watch::channel(Some(Arc::new(self.catalog.clone())));
        let (_, keys) = watch::channel(self.keys.clone());
        let (tell, ready) = watch::channel(false);
        let shutdown = CancellationToken::new();
        let resolver = Resolver::scripted(self.dns.clone());
        let task = tokio::spawn(delivery::run(
            config,
            client,
            catalog,
            resolver,
            keys,
            tell,
            shutdown.clone(),
        ));
        Running {
            ready,
            shutdown,
            task,
        }
    }

    /// A next hop at an address of its own, named `host`.
    pub async fn remote(
        &mut self,
        host: &str,
        script: impl Fn(&str, usize) -> Action + Send + Sync + 'static,
    ) -> Remote {
        self.hosts += 1;
        let ip = IpAddr::from([127, 0, 0, self.hosts]);
        let remote = Remote::start(SocketAddr::new(ip, self.port), script).await;
        self.dns
            .set_addresses(host, dns::AddressAnswer::Found(vec![ip]));
        remote
    }

    /// `domain` has this one next hop, with STARTTLS and this certificate.
    pub async fn tls_domain(
        &mut self,
        domain: &str,
        certificate: &Certificate,
        script: impl Fn(&str, usize) -> Action + Send + Sync + 'static,
    ) -> Remote {
        let host = format!("mx.{domain}");
        self.mx(domain, &[(10, &host)]);
        self.hosts += 1;
        let ip = IpAddr::from([127, 0, 0, self.hosts]);
        let address = SocketAddr::new(ip, self.port);
        let remote = Remote::with(address, Some(certificate.acceptor()), script).await;
        self.dns
            .set_addresses(&host, dns::AddressAnswer::Found(vec![ip]));
        remote
    }

    /// `domain` has this one next hop.
    pub async fn domain(
        &mut self,
        domain: &str,
        script: impl Fn(&str, usize) -> Action + Send + Sync + 'static,
    ) -> Remote {
        let host = format!("mx.{domain}");
        self.mx(domain, &[(10, &host)]);
        self.remote(&host, script).await
    }

    pub fn mx(&self, domain: &str, records: &[(u16, &str)]) {
        let records = records
            .iter()
            .map(|(preference, host)| (*preference, host.to_string()));
        self.dns.set_mx(domain, dns::MxAnswer::of_records(records));
    }
}

/// A self-signed certificate with its key.
pub struct Certificate(pub rcgen::CertifiedKey<rcgen::KeyPair>);

impl Certificate {
    pub fn of(name: &str) -> Certificate {
        Certificate(rcgen::generate_simple_self_signed([name.to_owned()]).unwrap())
    }

    fn acceptor(&self) -> TlsAcceptor {
        let key = PrivateKeyDer::try_from(self.0.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![self.0.cert.der().clone()], key);
        TlsAcceptor::from(Arc::new(config.unwrap()))
    }
}

pub struct Running {
    pub ready: watch::Receiver<bool>,
    pub shutdown: CancellationToken,
    pub task: tokio::task::JoinHandle<Result<(), delivery::Error>>,
}

impl Running {
    /// Leaves in order.
    pub async fn leave(self) {
        self.shutdown.cancel();
        tokio::time::timeout(SOON, self.task)
            .await
            .expect("leaves in time")
            .unwrap()
            .unwrap();
    }
}

fn tls(dir: &Path, role: Role, name: &str) -> Arc<NodeTls> {
    let out = dir.join(format!("{role}-{name}"));
    if !out.exists() {
        pki::issue(&dir.join("ca"), role, name, &out).unwrap();
    }
    Arc::new(NodeTls::load(&out).unwrap())
}

/// Waits until `what` is some.
pub async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = tokio::time::Instant::now() + SOON;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(tokio::time::Instant::now() < until, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
