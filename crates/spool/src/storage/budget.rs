//! How much of the logs of all groups may stay in RAM.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

/// Octets of entries that all groups of a node may keep in RAM.
pub const CACHE_BYTES: usize = 64 << 20;
/// What is not on disk yet is let in up to twice the limit, or twice this: a message of entries always gets in.
const LIMIT_LEAST: usize = 1 << 20;
/// What an entry costs beside its octets, roughly: a node of the map and two reference counts.
pub(super) const ENTRY_OVERHEAD: usize = 64;

/// The octets of cached entries, counted for all groups of a node.
#[derive(Debug)]
pub struct CacheBudget {
    used: AtomicUsize,
    limit: usize,
}

impl CacheBudget {
    /// A budget of `limit` octets ([`CACHE_BYTES`]).
    pub fn new(limit: usize) -> Arc<CacheBudget> {
        Arc::new(CacheBudget {
            used: AtomicUsize::new(0),
            limit,
        })
    }

    /// Octets cached now. It can pass the limit by what must not be evicted: entries that are not on disk yet.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Octets above the limit.
    pub(super) fn excess(&self) -> usize {
        self.used().saturating_sub(self.limit)
    }

    /// So much is not on disk yet that no more may come. A follower whose disk stands still would else keep
    /// 32 MiB for each of its groups, gigabytes on a node with many (cockroach#90314, etcd#14624, nats#7233).
    pub(super) fn is_exhausted(&self) -> bool {
        self.used() >= 2 * self.limit.max(LIMIT_LEAST)
    }

    pub(super) fn take(&self, octets: usize) {
        self.used.fetch_add(octets, Ordering::Relaxed);
    }

    pub(super) fn give_back(&self, octets: usize) {
        self.used.fetch_sub(octets, Ordering::Relaxed);
    }
}

pub(super) fn weight(context: &Bytes, data: &Bytes) -> usize {
    context.len() + data.len() + ENTRY_OVERHEAD
}
