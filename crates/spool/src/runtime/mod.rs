//! A queue node: its threads, its services, its start and its end.

mod collect_thread;
mod control;
mod digests;
mod health;
mod helpers;
mod introduce;
mod listeners;
mod log_thread;
mod mend;
mod quarantine;
mod questions;
mod raft_thread;
mod recover;
mod replicas;
mod snapshots;
mod state;
mod steer;

use std::sync::mpsc;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use digests::{Digests, Judgement};
pub use health::Health;
pub use helpers::{Helper, Helpers};
pub use introduce::{Introduced, Introducer};
pub use mend::{FETCHES_AT_ONCE, Mender, digest};
pub use questions::read_piece;
pub use snapshots::{Failed as InstallFailed, Snapshots};
pub use state::{account, wall_ms};
pub use steer::Steered;

use listeners::{serve_clients, serve_peers};

use crate::collect::{BodyReader, CollectEvent};
use crate::config::{Config, Error};
use crate::desk::ConfigDesk;
use crate::directory::{Directory, group_of};
use crate::event::{Mailboxes, RaftEvent};
use crate::peer::Peers;
use crate::serve::{PeerRunning, PeerServices, Services};

/// A replica node without space is opened again after this.
const REOPEN: Duration = Duration::from_secs(5);

/// How often a store that this process had open before is found in use, in a row, before that is believed.
const IN_USE_MAX: u32 = 12;

/// A write that finds no room for this long closes the replica node, and it opens again: what waits then is mail that
/// nobody was promised, and behind it, in the same groups, wait the settles that would make room.
const NO_ROOM: Duration = Duration::from_secs(3);

/// [`NO_ROOM`] doubles up to this while it does not help: what this replica lacks is mail that the others have.
const NO_ROOM_MAX: Duration = Duration::from_secs(300);

/// How long leadership is given away before a node ends: a transfer takes milliseconds, and who cannot be told finds
/// out by election.
const HAND_OVER: Duration = Duration::from_millis(1_000);

/// Threads that do not end within this time hang in the disk: the process ends without them. Longer than the last flush
/// of the state takes on a slow disk.
const THREADS_END: Duration = Duration::from_secs(20);

/// Streams that still stand when a node ends are cut after this: its threads have answered everything, and answers leave
/// in milliseconds.
const SERVERS_END: Duration = Duration::from_millis(300);

/// Runs a queue node until `shutdown`. `ready` is true while every group has a leader that this node knows.
///
/// # Errors
/// [`Error`]: it could not start, or it stopped for good.
pub async fn run(
    config: Config,
    shutdown: CancellationToken,
    ready: watch::Sender<bool>,
) -> Result<(), Error> {
    config.validate()?;
    let mut patience = NO_ROOM;
    let (mut again, mut in_use) = (false, 0);
    loop {
        let opened = Instant::now();
        let end = run_once(&config, &shutdown, &ready, patience).await;
        patience = match opened.elapsed() > 10 * patience {
            true => NO_ROOM,
            false => (2 * patience).min(NO_ROOM_MAX),
        };
        match end {
            Err(Error::Store(crate::state::StoreError::NoSpace(reason))) => {
                tracing::error!(
                    reason,
                    "no space to open the metadata store; tried again in 5 s: free space on the disk"
                );
            }
            // What is left of the last time lets go of it in a moment; if it is another process, that is said a minute later.
            Err(Error::Store(crate::state::StoreError::InUse(dir)))
                if in_use < IN_USE_MAX && again =>
            {
                in_use += 1;
                tracing::warn!(dir = %dir.display(), "the metadata store is still in use; tried again in 5 s");
            }
            Ok(End::Reopen) => {
                in_use = 0;
                tracing::info!("the replica node is opened again in 5 s");
            }
            Ok(End::Shutdown) => return Ok(()),
            Err(error) => return Err(error),
        }
        again = true;
        ready.send_replace(false);
        tokio::select! {
            () = tokio::time::sleep(REOPEN) => {}
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}

enum End {
    Shutdown,
    Reopen,
}

async fn run_once(
    config: &Config,
    shutdown: &CancellationToken,
    ready: &watch::Sender<bool>,
    patience: Duration,
) -> Result<End, Error> {
    let stop_servers = CancellationToken::new();
    let _stop_on_return = stop_servers.clone().drop_guard();
    let cut = CancellationToken::new();
    let _cut_on_return = cut.clone().drop_guard();
    quarantine::check(&config.dir)?;
    let introducer = Introducer::open(config)?;
    let running = Arc::new(OnceLock::new());
    let peers = PeerServices {
        introducer: introducer.clone(),
        running: running.clone(),
    };
    let peer_server = serve_peers(config, peers, stop_servers.clone(), cut.clone()).await?;
    tokio::select! {
        joined = introducer.become_member(config) => joined?,
        () = shutdown.cancelled() => return Ok(End::Shutdown),
    }
    let node = Threads::start(config, &introducer, patience).await?;
    let steered = steer::Steered {
        introducer: introducer.clone(),
        mail: node.mail.clone(),
        peers: node.peers.clone(),
        directory: node.directory.clone(),
    };
    let steering = tokio::spawn(steer::steer(
        config.clone(),
        steered.clone(),
        node.orders.clone(),
    ));
    let _ = running.set(PeerRunning {
        mail: node.mail.clone(),
        directory: node.directory.clone(),
        health: node.health.clone(),
        steered,
        reader: node.reader.clone(),
        fetches: Arc::new(tokio::sync::Semaphore::new(FETCHES_AT_ONCE)),
        snapshots: node.snapshots.clone(),
    });
    let mending = node.mender.clone().run(node.mail.clone(), node.log.clone());
    let mending = tokio::spawn(mending);
    let introductions = tokio::spawn(introducer.clone().keep_introducing(config.clone()));
    let services = Services::new(
        node.mail.clone(),
        node.directory.clone(),
        node.bodies.clone(),
        node.mender.clone(),
        node.health.clone(),
        node.desk.clone(),
        config.shards,
    );
    let client_server = serve_clients(config, services, stop_servers.clone(), cut).await?;
    tracing::info!(node = config.node, client = %config.listen_client, peer = %config.listen_peer, "queue node runs");
    let groups = config.shards as usize + 1;
    let mut stopped = node.health.watch();
    let mut topology = node.directory.watch();
    let mut news = introducer.news();
    loop {
        let refused = news.borrow_and_update().refused.clone();
        if !refused.is_empty() {
            node.health.stop_for_good(&refused);
        }
        ready.send_replace(
            topology
                .borrow_and_update()
                .groups
                .iter()
                .filter(|g| g.leader_node != 0)
                .count()
                == groups,
        );
        tokio::select! {
            _ = topology.changed() => {}
            _ = news.changed() => {}
            _ = stopped.wait_for(Option::is_some) => break,
            () = shutdown.cancelled() => break,
        }
    }
    ready.send_replace(false);
    introductions.abort();
    steering.abort();
    mending.abort();
    let health = node.health.clone();
    let outcome = node
        .end(shutdown.is_cancelled() && introducer.addresses(config).len() > 1)
        .await;
    if let Some(reason) = health.stopped().filter(|_| health.quarantined()) {
        quarantine::mark(&config.dir, &reason);
    }
    stop_servers.cancel();
    let servers = async {
        let _ = peer_server.await;
        let _ = client_server.await;
    };
    let _ = tokio::time::timeout(SERVERS_END, servers).await;
    outcome
}

/// The threads of a node and how to reach them.
struct Threads {
    mail: Mailboxes,
    directory: Directory,
    health: Health,
    reader: crate::log::LogReader,
    peers: Peers,
    orders: watch::Receiver<Option<Arc<control::Orders>>>,
    bodies: BodyReader,
    mender: Mender,
    log: mpsc::Sender<crate::event::LogEvent>,
    collect: mpsc::Sender<CollectEvent>,
    snapshots: Snapshots,
    desk: ConfigDesk,
    helpers: Helpers,
    threads: Vec<JoinHandle<()>>,
}

impl Threads {
    async fn start(
        config: &Config,
        introducer: &Introducer,
        patience: Duration,
    ) -> Result<Threads, Error> {
        let (raft, raft_mail) = mpsc::channel();
        let (state, state_mail) = mpsc::channel();
        let (log, log_mail) = mpsc::channel();
        let mail = Mailboxes { state, raft };
        let health = Health::new();
        let cluster = bytes::Bytes::copy_from_slice(&config.cluster_id.0);
        let directory = Directory::new(config.node, cluster, config.shards);
        directory.set_client_address(config.node, &config.advertise_client);
        directory.set_own_state_machine(config.state_machine);
        let (recover_config, incarnation) = (config.clone(), introducer.incarnation());
        let recovered =
            tokio::task::spawn_blocking(move || recover::recover(&recover_config, incarnation))
                .await;
        let recovered = recovered.map_err(|e| recover::panicked(config, &e.to_string()))??;
        let helpers = Helpers::new(health.clone());
        let stored = Arc::new(recovered.state.store.bodies());
        let mender = Mender::new(
            introducer.clone(),
            config.clone(),
            recovered.reader.clone(),
            &stored,
            helpers.clone(),
        );
        for it in &recovered.damaged {
            mender.report(group_of(it.group), it.index, it.location);
        }
        for (group, voters) in &recovered.voters {
            directory.set_voters(*group, voters.clone());
        }
        let peers = Peers::new(&introducer.sender(), &config.tls, &directory);
        peers.update(&introducer.addresses(config));
        let (publish, orders) = watch::channel(None);
        let control_settings = control::ControlSettings {
            own: config.node,
            cluster: config.cluster(),
            initial_nodes: config.initial_cluster.keys().copied().collect(),
            introduced: introducer.introduced(),
            tickets: Arc::new(std::sync::atomic::AtomicU64::new(1)),
            orders: publish,
            desk: ConfigDesk::default(),
            known: config.state_machine,
        };
        let desk = control_settings.desk.clone();
        let segments = recovered.writer.segments();
        let reader = recovered.reader.clone();
        let (collect, collect_mail) = mpsc::channel();
        let (collect_thread, bodies) = collect_thread::CollectThread::new(
            &recovered,
            collect_mail,
            mail.clone(),
            health.clone(),
            mender.clone(),
            stored,
        );
        let snapshots = Snapshots::new(
            &config.dir,
            reader.clone(),
            mail.raft.clone(),
            peers.clone(),
            health.clone(),
            helpers.clone(),
            mender.clone(),
        );
        let snapshots = snapshots.map_err(|source| Error::System {
            what: format!(
                "cannot empty {}, where snapshots are received",
                config.dir.join("snap-in").display()
            ),
            source,
        })?;
        let store = &recovered.state.store;
        let durable = recovered
            .groups
            .iter()
            .map(|(id, group)| (*id, store.durable_applied(group.log_group())))
            .collect();
        let raft_thread = raft_thread::RaftThread {
            durable,
            groups: recovered.groups,
            mail: raft_mail,
            to: mail.clone(),
            log: log.clone(),
            peers: peers.clone(),
            snapshots: snapshots.clone(),
            directory: directory.clone(),
            health: health.clone(),
            full: std::collections::BTreeSet::new(),
            replies: std::collections::HashMap::new(),
        };
        let log_thread = log_thread::LogThread {
            writer: recovered.writer,
            reader: reader.clone(),
            segments,
            mail: log_mail,
            to: mail.clone(),
            directory: directory.clone(),
            health: health.clone(),
            mender: mender.clone(),
            live: recovered.state.store.segments_live(),
            applied: recovered.state.store.all_applied(),
            may_release: true,
            budget: config.retention.log_bytes,
            pace: config.disk_bytes_per_second.map(log_thread::Pace::new),
            patience,
        };
        let (headers, header_reads) = mpsc::channel();
        let state_thread = state::StateThread::new(
            recovered.state,
            config,
            state_mail,
            mail.clone(),
            log.clone(),
            reader.clone(),
            headers,
            collect.clone(),
            directory.clone(),
            health.clone(),
            control_settings,
            snapshots.clone(),
            helpers.clone(),
        )?;
        let (header_reader, header_answers) = (bodies.clone(), mail.state.clone());
        let header_mender = mender.clone();
        let threads = vec![
            helpers::spawn("raft", &health, move || raft_thread.run())?,
            helpers::spawn("log", &health, move || log_thread.run())?,
            helpers::spawn("state", &health, move || state_thread.run())?,
            helpers::spawn("collect", &health, move || collect_thread.run())?,
            helpers::spawn("headers", &health, move || {
                questions::read_headers(
                    &header_reader,
                    &header_mender,
                    &header_reads,
                    &header_answers,
                );
            })?,
        ];
        Ok(Threads {
            mail,
            directory,
            health,
            reader,
            peers,
            orders,
            bodies,
            mender,
            log,
            collect,
            snapshots,
            desk,
            helpers,
            threads,
        })
    }

    /// Gives leadership away when there is somebody to give it to, and waits for the threads.
    async fn end(self, hand_over: bool) -> Result<End, Error> {
        if hand_over && self.health.stopped().is_none() {
            let _ = self.mail.raft.send(RaftEvent::HandOver);
            let until = Instant::now() + HAND_OVER;
            while Instant::now() < until && self.directory.leads_any() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        let _ = self.mail.raft.send(RaftEvent::Stop);
        let _ = self.mail.state.send(crate::event::StateEvent::Stop);
        let _ = self.collect.send(CollectEvent::Stop);
        let (threads, snapshots, helpers) = (self.threads, self.snapshots, self.helpers);
        let joined = tokio::task::spawn_blocking(move || {
            helpers.close();
            snapshots.close();
            for thread in threads {
                let _ = thread.join();
            }
            helpers.wait()
        });
        let ended = match tokio::time::timeout(THREADS_END, joined).await {
            // Helpers that still use the store stop nobody but its next life.
            Ok(helpers) => helpers.is_ok_and(|ended| ended) || !self.health.wants_reopen(),
            Err(_) => false,
        };
        if !ended {
            // To open the log again beside a thread that may still write would be worse than to end.
            let hangs =
                "its threads do not end: the disk does not answer. Check the device".to_owned();
            return Err(Error::Stopped(self.health.stopped().unwrap_or(hangs)));
        }
        match self.health.stopped() {
            Some(_) if self.health.wants_reopen() => Ok(End::Reopen),
            Some(reason) => Err(Error::Stopped(reason)),
            None => Ok(End::Shutdown),
        }
    }
}
