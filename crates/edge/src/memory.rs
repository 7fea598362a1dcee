//! The octets of message content that a node holds at once, shared among its SMTP sessions.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Memory is taken in pieces of this many octets, so that a small message asks once.
pub(crate) const GRAIN: usize = 16 << 10;

/// All of it.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    /// In grains.
    free: Arc<Semaphore>,
}

/// One message's part, given back when dropped.
#[derive(Debug)]
pub(crate) struct Share {
    of: Memory,
    held: Option<OwnedSemaphorePermit>,
}

impl Memory {
    /// At least room for one chunk, or nothing larger could ever pass.
    pub fn new(octets: usize) -> Memory {
        let octets = octets.max(2 * crate::append::CHUNK_BYTES_MAX);
        Memory {
            free: Arc::new(Semaphore::new(octets / GRAIN)),
        }
    }

    /// A part that holds nothing yet.
    pub fn share(&self) -> Share {
        Share {
            of: self.clone(),
            held: None,
        }
    }
}

impl Share {
    /// Takes what is missing to hold `octets`, if it is free.
    pub fn grow_now(&mut self, octets: usize) -> bool {
        let missing = self.missing(octets);
        if missing == 0 {
            return true;
        }
        match self.of.free.clone().try_acquire_many_owned(missing) {
            Ok(more) => self.add(more),
            Err(_) => return false,
        }
        true
    }

    /// Takes what is missing to hold `octets`, waiting for others to give it back.
    pub async fn grow(&mut self, octets: usize) {
        let missing = self.missing(octets);
        metrics::counter!("postroad_memory_waits_total").increment(1);
        // The semaphore is never closed.
        if let Ok(more) = self.of.free.clone().acquire_many_owned(missing).await {
            self.add(more);
        }
    }

    fn missing(&self, octets: usize) -> u32 {
        let held = self.held.as_ref().map_or(0, |held| held.num_permits());
        octets.div_ceil(GRAIN).saturating_sub(held) as u32
    }

    fn add(&mut self, more: OwnedSemaphorePermit) {
        match &mut self.held {
            Some(held) => held.merge(more),
            None => self.held = Some(more),
        }
    }
}
