//! What the parts of a delivery node share, and the ways between them.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dns::Resolver;
use proto::{QueueClient, v1};
use resource::{Catalog, DeliverySettings, Route};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::attempt::{Work, any_delivered};
use crate::config::Config;
use crate::connection::now;
use crate::dkim::Signatures;
use crate::hand::{FENCE, Hand, Stop};
use crate::item::ItemId;
use crate::journal::Journal;
use crate::resolve::{Own, Via};
use crate::route::Hop;
use crate::site::{Enqueued, Site};
use crate::tls::NextHopTls;
use crate::worker;

/// A site where nothing happens is forgotten after this, and with it what its window had learned.
const SITE_FORGOTTEN_AFTER: Duration = Duration::from_secs(900);

/// How often that is looked at.
const FORGET_EVERY: Duration = Duration::from_secs(60);

/// What the lease side is told.
#[derive(Debug)]
pub(crate) enum Said {
    /// So many unsettled items of a destination are wanted from each shard.
    Window(String, u32),
    /// A destination backs off.
    Busy(String, Duration),
    /// One of the results that must go first, of this shard, is settled.
    SettledFirst(u32),
}

/// A delivery node.
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) host: mail::Host,
    pub(crate) queue: QueueClient,
    pub(crate) resolver: Resolver,
    pub(crate) tls: NextHopTls,
    pub(crate) signatures: Signatures,
    /// Credit worth giving became free.
    pub(crate) credit: Notify,
    /// No new work.
    pub(crate) leaving: CancellationToken,
    /// Connections end where they are.
    pub(crate) cut_off: CancellationToken,
    pub(crate) tasks: TaskTracker,
    pub(crate) shards: AtomicU32,
    catalog: watch::Receiver<Option<Arc<Catalog>>>,
    hand: Mutex<Hand>,
    journal: Mutex<Journal>,
    sites: Mutex<HashMap<Via, Arc<Site>>>,
    /// Results of the journal that are not settled yet.
    first: Mutex<HashSet<ItemId>>,
    connections: AtomicU32,
    starved: AtomicBool,
    /// When sites and destinations without use were last forgotten.
    forgotten_at: Mutex<Instant>,
    said: mpsc::UnboundedSender<Said>,
    settles: mpsc::UnboundedSender<v1::SettleRequest>,
}

/// The other ends of a node's ways.
pub(crate) struct Ways {
    pub(crate) said: mpsc::UnboundedReceiver<Said>,
    pub(crate) settles: mpsc::UnboundedReceiver<v1::SettleRequest>,
}

impl Node {
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a part of the node that the caller made"
    )]
    pub(crate) fn new(
        config: Config,
        host: mail::Host,
        queue: QueueClient,
        resolver: Resolver,
        tls: NextHopTls,
        signatures: Signatures,
        catalog: watch::Receiver<Option<Arc<Catalog>>>,
        journal: Journal,
    ) -> (Arc<Node>, Ways) {
        // Bounded by the items in hand: each has one request at a time.
        let ((said, said_to), (settles, settles_to)) =
            (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let hand = Mutex::new(Hand::new(config.fence_after.min(FENCE)));
        let node = Node {
            config,
            host,
            queue,
            resolver,
            tls,
            signatures,
            credit: Notify::new(),
            leaving: CancellationToken::new(),
            cut_off: CancellationToken::new(),
            tasks: TaskTracker::new(),
            shards: AtomicU32::new(1),
            catalog,
            hand,
            journal: Mutex::new(journal),
            sites: Mutex::default(),
            first: Mutex::default(),
            connections: AtomicU32::new(0),
            starved: AtomicBool::new(false),
            forgotten_at: Mutex::new(now()),
            said,
            settles,
        };
        (
            Arc::new(node),
            Ways {
                said: said_to,
                settles: settles_to,
            },
        )
    }

    pub(crate) fn hand(&self) -> MutexGuard<'_, Hand> {
        lock(&self.hand)
    }

    pub(crate) fn journal(&self) -> MutexGuard<'_, Journal> {
        lock(&self.journal)
    }

    pub(crate) fn settings(&self) -> DeliverySettings {
        let declared = || {
            self.catalog
                .borrow()
                .as_ref()
                .map(|catalog| catalog.delivery())
        };
        self.config
            .settings
            .clone()
            .or_else(declared)
            .unwrap_or_default()
    }

    /// Where mail of ours would come back: as this node was told, and as is declared.
    pub(crate) fn own(&self) -> Own {
        let config = &self.config;
        let mut names = vec![config.hostname.to_ascii_lowercase()];
        names.extend(
            config
                .own_names
                .iter()
                .map(|name| name.to_ascii_lowercase()),
        );
        if let Some(catalog) = self.catalog.borrow().as_ref() {
            names.extend(catalog.own_names().map(str::to_ascii_lowercase));
        }
        Own {
            names,
            addresses: config.own_addresses.clone(),
            listen: config.own_listen.clone(),
        }
    }

    /// Takes a leased item in. It is in the hand already.
    pub(crate) fn enqueue(self: &Arc<Node>, work: Work) {
        if self.leaving.is_cancelled() {
            return self.give_up(work.item, Stop::Fenced);
        }
        let destination = work.destination();
        let site = self.site(destination);
        let shards = self.shards.load(Ordering::Relaxed);
        if let Some(items) = site.news(destination, shards, now()) {
            self.say(Said::Window(destination.to_string(), items));
        }
        match site.enqueue(work, now()) {
            Enqueued::Waits => {}
            Enqueued::Connect => self.connect(&site),
            Enqueued::Dead(work, left) => {
                self.say_busy(work.destination().to_string(), left);
                self.give_up(work.item, Stop::Fenced);
            }
        }
    }

    fn site(&self, destination: &str) -> Arc<Site> {
        let route = self
            .catalog
            .borrow()
            .as_ref()
            .map_or(Route::Mx, |catalog| catalog.route(destination));
        let via = match route {
            Route::Mx => Via::Mx(destination.to_string()),
            Route::Targets(targets) => Via::Fixed(targets.to_vec()),
            Route::SmartHost(target) => Via::Fixed(vec![target]),
        };
        let mut sites = lock(&self.sites);
        if let Some(site) = sites.get(&via) {
            return site.clone();
        }
        let limit = u32::try_from(self.settings().connections_per_site).unwrap_or(u32::MAX);
        let site = Site::new(via.clone(), limit, now());
        sites.insert(via, site.clone());
        site
    }

    /// Starts a connection that the site claimed; when the node has too many already, the site waits for one to end.
    pub(crate) fn connect(self: &Arc<Node>, site: &Arc<Site>) {
        let limit = u32::try_from(self.settings().connections).unwrap_or(u32::MAX);
        if self.connections.load(Ordering::Relaxed) >= limit {
            self.starved.store(true, Ordering::Relaxed);
            return site.unclaim();
        }
        self.connections.fetch_add(1, Ordering::Relaxed);
        let (node, site) = (self.clone(), site.clone());
        self.tasks.spawn(async move {
            let cut_off = node.cut_off.clone();
            cut_off.run_until_cancelled(worker::run(node, site)).await;
        });
    }

    /// A connection's task ended.
    pub(crate) fn disconnected(self: &Arc<Node>) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// Now and then: sites that waited for a connection get one, sites without use are forgotten.
    pub(crate) fn tidy(self: &Arc<Node>, now: Instant) {
        metrics::gauge!("postroad_delivery_connections_count")
            .set(self.connections.load(Ordering::Relaxed));
        metrics::gauge!("postroad_items_in_hand_count").set(self.hand().len() as f64);
        if self.starved.swap(false, Ordering::Relaxed) {
            let sites: Vec<_> = lock(&self.sites).values().cloned().collect();
            for site in sites.iter().filter(|site| site.claim()) {
                self.connect(site);
            }
        }
        let mut forgotten_at = lock(&self.forgotten_at);
        if now < *forgotten_at + FORGET_EVERY {
            return;
        }
        *forgotten_at = now;
        drop(forgotten_at);
        if let Some(since) = now.checked_sub(SITE_FORGOTTEN_AFTER) {
            self.forget_unused(since);
        }
    }

    fn forget_unused(&self, since: Instant) {
        let mut destinations = Vec::new();
        lock(&self.sites).retain(|_, site| {
            destinations.append(&mut site.forget_unused(since));
            !site.unused_since(since)
        });
        for destination in destinations {
            self.say(Said::Window(destination, crate::lease::WINDOW_DEFAULT));
        }
    }

    /// Hands back all items that no connection has begun.
    pub(crate) fn hand_back(&self) {
        let sites: Vec<_> = lock(&self.sites).values().cloned().collect();
        for work in sites.iter().flat_map(|site| site.drain()) {
            self.give_up(work.item, Stop::Fenced);
        }
    }

    /// The attempt's results are known: they go to the journal and to the queue.
    pub(crate) fn settle(&self, work: Work, results: Vec<v1::RecipientResult>, hop: Option<&Hop>) {
        log(&work, &results, hop);
        let delivered = any_delivered(&results);
        let Some((token, session)) = self.hand().settle(work.item, delivered) else {
            return self.forget(work.item);
        };
        self.settle_request(work.request(token, session, results));
    }

    /// May another transaction start for an item that some of its recipients have? It stays past its dot, and what is known
    /// of it is in the journal before: a restart must not send it to those again.
    pub(crate) fn goes_on(&self, work: &Work, results: &[v1::RecipientResult]) -> bool {
        if self.leaving.is_cancelled() {
            return false;
        }
        let Ok((token, session)) = self.hand().pass_dot(work.item, now()) else {
            return false;
        };
        let known = work.request(token, session, results.to_vec());
        let written = self.journal().got(&known);
        if let Err(error) = &written {
            tracing::error!(item = %work.item, %error, "the other recipients wait: no more is sent without the journal");
        }
        written.is_ok()
    }

    /// Its connection was cut after the final dot. What a restart would settle of it is settled now: it was perhaps delivered,
    /// and waits. Left to its lease session it would be due elsewhere at once when that runs out.
    pub(crate) fn settle_in_doubt(&self, item: ItemId) {
        let kept = self.journal().kept(item);
        let Some(request) = kept else {
            // No dot leaves before it is in the journal.
            return self.give_up(item, Stop::Fenced);
        };
        let delivered = any_delivered(&request.results);
        let Some((token, session)) = self.hand().settle(item, delivered) else {
            return self.forget(item);
        };
        tracing::warn!(
            %item,
            "this node leaves before all is known of an item: what is known is settled, and the others, who may have got it, are \
             tried again later"
        );
        count(&request.results);
        self.settle_request(v1::SettleRequest {
            token,
            session,
            ..request
        });
    }

    /// Sends results on their way, and writes them down when a restart could else send the mail again.
    pub(crate) fn settle_request(&self, request: v1::SettleRequest) {
        if let Some(item) = ItemId::from_wire(request.item.as_ref()) {
            let mut journal = self.journal();
            if journal.knows(item)
                && let Err(error) = journal.got(&request)
            {
                tracing::error!(%item, %error, "the results are not in the journal: if this node dies now, the mail may be sent again");
            }
        }
        // The receiver lives as long as the node.
        let _ = self.settles.send(request);
    }

    /// The results that a journal held: the shard's lease session waits for them.
    pub(crate) fn settle_first(&self, item: ItemId, request: v1::SettleRequest) {
        lock(&self.first).insert(item);
        let _ = self.settles.send(request);
    }

    /// The queue has an item's results.
    pub(crate) fn settled(&self, item: ItemId, shard: u32) {
        self.forget(item);
        if lock(&self.first).remove(&item) {
            self.say(Said::SettledFirst(shard));
        }
    }

    /// Stops working on an item: hands it back, or, when it is no longer ours, forgets it.
    pub(crate) fn give_up(&self, item: ItemId, stop: Stop) {
        self.forget(item);
        match stop {
            Stop::Revoked => {
                tracing::info!(%item, "the item was taken back by the queue");
                self.hand().drop_item(item);
            }
            Stop::Fenced => {
                let released = self.hand().release(item);
                if let Some((shard, token, session)) = released {
                    self.release(shard, item, token, session);
                }
            }
        }
    }

    /// Hands a grant back: the item counts no attempt and is due at once.
    pub(crate) fn release(&self, shard: u32, item: ItemId, token: u64, session: u64) {
        let item = Some(item.to_wire());
        let release = v1::SettleRequest {
            shard,
            item,
            token,
            session,
            release: true,
            ..Default::default()
        };
        let _ = self.settles.send(release);
    }

    /// The journal need not know of the item any more.
    pub(crate) fn forget(&self, item: ItemId) {
        if let Err(error) = self.journal().settled(item) {
            tracing::warn!(%item, %error, "the journal keeps a settled item; a restart will settle it once more");
        }
    }

    pub(crate) fn say_busy(&self, destination: String, pause: Duration) {
        self.say(Said::Busy(destination, pause));
    }

    fn say(&self, said: Said) {
        let _ = self.said.send(said);
    }
}

/// Counts results: delivered, deferred, failed.
fn count(results: &[v1::RecipientResult]) -> (u64, u64, u64) {
    let (mut delivered, mut deferred, mut failed, mut ambiguous) = (0u64, 0u64, 0u64, 0u64);
    for result in results {
        match result.verdict() {
            v1::Verdict::Delivered => delivered += 1,
            v1::Verdict::Failed => failed += 1,
            v1::Verdict::Deferred | v1::Verdict::Unspecified => deferred += 1,
        }
        ambiguous += u64::from(result.ambiguous);
    }
    for (count, label) in [
        (delivered, "delivered"),
        (deferred, "deferred"),
        (failed, "failed"),
    ] {
        if count > 0 {
            metrics::counter!("postroad_recipients_total", "verdict" => label).increment(count);
        }
    }
    if ambiguous > 0 {
        metrics::counter!("postroad_ambiguous_recipients_total").increment(ambiguous);
    }
    (delivered, deferred, failed)
}

/// One line an attempt.
fn log(work: &Work, results: &[v1::RecipientResult], hop: Option<&Hop>) {
    let (delivered, deferred, failed) = count(results);
    // The result to show is the worst one.
    let shown = results
        .iter()
        .max_by_key(|result| (result.verdict() != v1::Verdict::Delivered, result.code));
    let Some(shown) = shown else { return };
    metrics::histogram!("postroad_attempt_seconds").record(f64::from(shown.total_ms) / 1000.0);
    tracing::info!(
        item = %work.item,
        destination = work.destination(),
        host = hop.map_or(shown.remote_host.as_str(), |hop| &hop.host),
        address = shown.remote_address,
        tls = shown.tls,
        dkim = shown.dkim_selectors.join(","),
        delivered, deferred, failed,
        status = shown.enhanced,
        reply = format_args!("{} {}", shown.code, shown.text),
        ms = shown.total_ms,
        attempts = work.handout.attempts,
        "attempt"
    );
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded is changed by single calls that do not panic half way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
