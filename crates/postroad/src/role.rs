//! The roles: each is made from settings, and is then a task that can be asked whether it is ready and told to leave.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU64;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use dns::Resolver;
use proto::client::ClientConfig;
use proto::{Identity, NodeTls, QueueClient};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::declared::{self, Declared, SigningKeys};
use crate::failure::Failure;
use crate::retry::RetryTimes;
use crate::settings::{self, ClientNode, Disk, ResolverFlags};
use crate::{health, shutdown, telemetry};

/// A role that runs as soon as its task is polled.
pub struct Role {
    /// How it is.
    pub probe: Probe,
    /// Told to leave.
    pub stop: CancellationToken,
    /// Ends when it left, or when it cannot go on.
    pub task: Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>,
}

/// Asks a role whether it is ready.
#[derive(Clone)]
pub struct Probe {
    /// Of the role, for people.
    pub name: String,
    ask: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
}

impl Probe {
    fn new(
        name: impl Into<String>,
        ask: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) -> Probe {
        Probe {
            name: name.into(),
            ask: Arc::new(ask),
        }
    }

    /// Of a role that only says yes or no.
    fn of(name: impl Into<String>, ready: watch::Receiver<bool>, why_not: &'static str) -> Probe {
        Probe::new(name, move || match *ready.borrow() {
            true => Ok(()),
            false => Err(why_not.into()),
        })
    }

    /// Ready, or why not.
    pub fn ask(&self) -> Result<(), String> {
        (self.ask)()
    }
}

/// `postroad edge`.
pub async fn run_edge(settings: settings::Edge) -> Result<(), Failure> {
    let metrics = telemetry::start_metrics()?;
    let name = node_name(settings.node.name.as_deref());
    let tls = certificate(&settings.node.pki, proto::Role::Edge)?;
    let stop = CancellationToken::new();
    let queue = client(&settings.node, tls, &name)?;
    let files = settings.node.files.as_deref();
    let (pool, role) = (settings.node.pool.as_deref(), proto::Role::Edge);
    let followed = declared::follow(files, pool, &queue, None, role, &stop).await?;
    let hostname = hostname(settings.mail.hostname.as_deref())?;
    let mut config = edge_config(&name, hostname, settings.listen, settings.tls)?;
    config.clients_hidden = settings.clients_hidden;
    let (role, _) = edge(config, queue, followed.declared)?;
    serve_alone(role, settings.admin, metrics).await
}

/// `postroad delivery`.
pub async fn run_delivery(settings: settings::Delivery) -> Result<(), Failure> {
    let metrics = telemetry::start_metrics()?;
    let name = node_name(settings.node.name.as_deref());
    let tls = certificate(&settings.node.pki, proto::Role::Delivery)?;
    let stop = CancellationToken::new();
    let queue = client(&settings.node, tls, &name)?;
    let files = settings.node.files.as_deref();
    let (pool, role) = (settings.node.pool.as_deref(), proto::Role::Delivery);
    let followed = declared::follow(files, pool, &queue, settings.seal, role, &stop).await?;
    let hostname = hostname(settings.mail.hostname.as_deref())?;
    let mut config = delivery::Config::new(name, hostname.to_string(), settings.data);
    config.own_addresses = settings.own_addresses;
    config.own_names = settings.own_names;
    config.smtp_port = settings.resolver.smtp_port;
    config.tls_ca = settings.resolver.tls_ca.clone();
    let resolver = resolver(&settings.resolver, &followed.declared)?;
    let role = delivery(config, queue, followed.declared, resolver, followed.keys);
    serve_alone(role, settings.admin, metrics).await
}

/// `postroad queue`.
pub async fn run_queue(settings: settings::QueueNode) -> Result<(), Failure> {
    let metrics = telemetry::start_metrics()?;
    let times = match &settings.files {
        Some(dir) => {
            RetryTimes::Files(declared::watch_files(dir, &CancellationToken::new()).await?)
        }
        None => RetryTimes::Queue,
    };
    let config = queue_config(&settings)?;
    serve_alone(queue(config, times), settings.admin, metrics).await
}

/// A process of one role.
async fn serve_alone(
    role: Role,
    admin: settings::AdminListen,
    metrics: metrics_exporter_prometheus::PrometheusHandle,
) -> Result<(), Failure> {
    health::serve(admin.admin_listen, vec![role.probe.clone()], metrics).await?;
    let name = role.probe.name.clone();
    shutdown::run(vec![vec![role]], move || {
        tracing::info!(role = name, "all is ready");
    })
    .await
}

/// What an edge node is told, with its certificates read.
pub fn edge_config(
    name: &str,
    hostname: mail::Domain,
    listen: Vec<SocketAddr>,
    tls: settings::MailTls,
) -> Result<edge::Config, Failure> {
    let mut config = edge::Config::new(name, hostname, listen);
    if let Some(dir) = &tls.tls {
        let default = tls.tls_default.as_deref();
        let read = match tls.tls_may_wait {
            true => edge::Certificates::load_or_wait(dir, default),
            false => edge::Certificates::load(dir, default),
        };
        config.certificates = Some(Arc::new(read.map_err(Failure::failed)?));
    }
    config.listen_tls = tls.listen_tls;
    config.starttls = match (tls.require_starttls, tls.no_starttls) {
        (true, _) => edge::StartTlsUse::Required,
        (_, true) => edge::StartTlsUse::Never,
        _ => edge::StartTlsUse::WithCertificates,
    };
    Ok(config)
}

/// An edge node; binds its sockets at once and says where.
pub fn edge(
    config: edge::Config,
    queue: QueueClient,
    declared: Declared,
) -> Result<(Role, Vec<SocketAddr>), Failure> {
    let stop = CancellationToken::new();
    let node = edge::start(config, queue, declared, stop.clone()).map_err(Failure::failed)?;
    let (addresses, readiness) = (node.addresses().to_vec(), node.readiness());
    let probe = Probe::new("edge", move || match &*readiness.borrow() {
        edge::Readiness::Ready => Ok(()),
        edge::Readiness::NotReady(why) => Err(why.clone()),
    });
    let task = Box::pin(async move {
        node.drained().await;
        Ok(())
    });
    Ok((Role { probe, stop, task }, addresses))
}

/// A delivery node.
pub fn delivery(
    config: delivery::Config,
    queue: QueueClient,
    declared: Declared,
    resolver: Resolver,
    keys: SigningKeys,
) -> Role {
    let (tell, ready) = watch::channel(false);
    let probe = Probe::of(
        "delivery",
        ready,
        "it has no lease session with some shard of the queue",
    );
    let stop = CancellationToken::new();
    let leaving = stop.clone();
    let task = Box::pin(async move {
        delivery::run(config, queue, declared, resolver, keys, tell, leaving)
            .await
            .map_err(Failure::failed)
    });
    Role { probe, stop, task }
}

/// A queue node; it starts at once. `times`: where its retry times come from.
pub fn queue(mut config: spool::Config, times: RetryTimes) -> Role {
    let (tell, ready) = watch::channel(false);
    let (tell_retry, retry) = watch::channel(times.now());
    config.retry = retry;
    let client = ClientConfig {
        endpoints: vec![config.advertise_client.clone()],
        tls: config.tls.clone(),
        name: config.node.to_string(),
    };
    let probe = Probe::of(
        format!("queue {}", config.node),
        ready.clone(),
        "some shard has no leader that this node knows",
    );
    let stop = CancellationToken::new();
    let following = times.follow(client, ready, tell_retry, stop.clone());
    tokio::spawn(stop.clone().run_until_cancelled_owned(following));
    let running = tokio::spawn(spool::run(config, stop.clone(), tell));
    let task = Box::pin(async move {
        match running.await {
            Ok(outcome) => outcome.map_err(Failure::failed),
            Err(error) => Err(Failure::failed(error)),
        }
    });
    Role { probe, stop, task }
}

fn queue_config(settings: &settings::QueueNode) -> Result<spool::Config, Failure> {
    // Clap has seen to it that all of them are there.
    let absent = || Failure::usage("--cluster-id, --node-id, --pki and --data are needed");
    let node = settings.node_id.ok_or_else(absent)?;
    let initial = settings.initial();
    let tls = certificate(
        settings.pki.as_deref().ok_or_else(absent)?,
        proto::Role::Queue,
    )?;
    let proved: Identity = tls.identity();
    if proved.name != node.to_string() {
        return Err(Failure::usage(format!(
            "the certificate in --pki is that of node {}, but --node-id is {node}",
            proved.name
        )));
    }
    let advertise_peer = settings
        .advertise
        .clone()
        .or_else(|| initial.get(&u64::from(node)).cloned())
        .ok_or_else(|| {
            Failure::usage(format!(
                "--advertise is needed: --initial-cluster does not name node {node}"
            ))
        })?;
    let advertise_client = settings.advertise_client.clone().unwrap_or_else(|| {
        let host = advertise_peer
            .rsplit_once(':')
            .map_or(advertise_peer.as_str(), |(host, _)| host);
        format!("{host}:{}", settings.listen.port())
    });
    let default_factor = if initial.len() == 1 { 1 } else { 3 };
    Ok(spool::Config {
        dir: settings.data.clone().ok_or_else(absent)?,
        node: node.into(),
        cluster_id: settings.cluster_id.ok_or_else(absent)?,
        listen_peer: settings.listen_peer,
        listen_client: settings.listen,
        advertise_peer,
        advertise_client,
        initial_cluster: initial,
        initial_state: match settings.initial_cluster_state {
            settings::InitialClusterState::New => spool::InitialState::New,
            settings::InitialClusterState::Existing => spool::InitialState::Existing,
        },
        shards: settings.shards,
        replication_factor: settings.replication_factor.unwrap_or(default_factor),
        tls,
        disk_bytes: disk_bytes(&settings.disk),
        disk_bytes_per_second: disk_bytes_per_second(&settings.disk),
        segment_bytes: segment_bytes(&settings.disk, spool::log::LogConfig::SEGMENT_BYTES),
        retention: retention(&settings.disk),
        retry: watch::channel(queue::retry::Policy::default()).1,
        hostname: hostname(settings.mail.hostname.as_deref())?.to_string(),
        zone: settings.zone.clone(),
        state_machine: spool::wire::log::STATE_MACHINE_VERSION,
    })
}

/// As the flag says; `None`: the file system.
pub fn disk_bytes(disk: &Disk) -> Option<u64> {
    disk.disk_bytes.map(|octets| octets.0)
}

/// As the flag says; `None` or 0: no limit.
pub fn disk_bytes_per_second(disk: &Disk) -> Option<NonZeroU64> {
    disk.disk_bytes_per_second
        .and_then(|octets| NonZeroU64::new(octets.0))
}

/// As the flag says.
pub fn segment_bytes(disk: &Disk, default: u64) -> u64 {
    disk.segment_bytes.map_or(default, |octets| octets.0)
}

/// As the flags say.
pub fn retention(disk: &Disk) -> spool::Retention {
    let usual = spool::Retention::default();
    spool::Retention {
        log_bytes: disk.retain_log_bytes.map(|octets| octets.0),
        silence: disk
            .retain_log_seconds
            .map_or(usual.silence, std::time::Duration::from_secs),
    }
}

/// Where the flags, the resources or the system say that names are resolved; what the resources say may change.
pub fn resolver(flags: &ResolverFlags, declared: &Declared) -> Result<Resolver, Failure> {
    if !flags.resolver.is_empty() {
        return Resolver::with_name_servers(&flags.resolver).map_err(Failure::failed);
    }
    let servers = |declared: &mut Declared| {
        let catalog = declared.borrow_and_update();
        let servers = catalog.as_ref().map(|catalog| catalog.resolvers().to_vec());
        servers.unwrap_or_default()
    };
    let mut declared = declared.clone();
    let mut used = servers(&mut declared);
    let resolver = match used.is_empty() {
        true => Resolver::system(),
        false => Resolver::with_name_servers(&used),
    };
    let resolver = resolver.map_err(Failure::failed)?;
    let follows = resolver.clone();
    tokio::spawn(async move {
        while declared.changed().await.is_ok() {
            let now = servers(&mut declared);
            if now == used {
                continue;
            }
            match follows.use_name_servers(&now) {
                Ok(()) => {
                    tracing::info!(servers = ?now, "other name servers are asked from now on")
                }
                Err(error) => tracing::error!(%error, "the former name servers are asked"),
            }
            used = now;
        }
    });
    Ok(resolver)
}

/// Addresses that say where mail of ours would come back to us: neither every address nor this machine's own loopback,
/// where other mail servers may listen too.
pub fn own_addresses(listen: &[SocketAddr]) -> Vec<IpAddr> {
    let mut own: Vec<IpAddr> = listen
        .iter()
        .map(|address| address.ip())
        .filter(|ip| !ip.is_unspecified() && !ip.is_loopback())
        .collect();
    own.dedup();
    own
}

fn client(node: &ClientNode, tls: Arc<NodeTls>, name: &str) -> Result<QueueClient, Failure> {
    Ok(QueueClient::new(ClientConfig {
        endpoints: node.queue.clone(),
        tls,
        name: name.into(),
    }))
}

/// Loads a certificate and sees that it is one of this role; its files are followed from now on.
pub fn certificate(dir: &Path, role: proto::Role) -> Result<Arc<NodeTls>, Failure> {
    let tls = NodeTls::load(dir).map_err(Failure::failed)?;
    let found = tls.identity();
    if found.role != role {
        return Err(Failure::usage(format!(
            "the certificate in {} is {found}; a node of role {role} is wanted (postroad pki issue --role {role})",
            dir.display()
        )));
    }
    let tls = Arc::new(tls);
    tls.follow();
    Ok(tls)
}

fn node_name(given: Option<&str>) -> String {
    given.map_or_else(system_name, str::to_owned)
}

fn system_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// The name in SMTP: as given, else the system's, else one that says that it is nobody's.
pub fn hostname(given: Option<&str>) -> Result<mail::Domain, Failure> {
    let wrong = |name: &str, error| {
        Failure::usage(format!(
            "--hostname {name}: {error}; write a domain like mail.example.org"
        ))
    };
    match given {
        Some(name) => mail::Domain::parse(name).map_err(|error| wrong(name, error)),
        None => mail::Domain::parse(&system_name())
            .or_else(|_| mail::Domain::parse("localhost"))
            .map_err(|error| wrong("localhost", error)),
    }
}
