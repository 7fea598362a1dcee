//! Threads beside those of a node's parts: each takes the node with it when it panics, and those that use store or log are
//! waited for when the node closes, because it may be opened again in the same process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Health;
use crate::config::Error;

/// How long a node that ends waits for threads that still use its store: less than it waits for all of its threads.
const HELPERS_END: Duration = Duration::from_secs(15);

/// The helpers of one node. Cheap to clone.
#[derive(Clone)]
pub struct Helpers(Arc<Inner>);

struct Inner {
    /// Counts helpers, and this.
    alive: Arc<()>,
    closing: Arc<AtomicBool>,
    health: Health,
}

/// Held by whoever uses the store, or the log, in a thread or task of its own.
pub struct Helper {
    _alive: Arc<()>,
    closing: Arc<AtomicBool>,
    health: Health,
}

impl Helper {
    /// The node ends, or has failed: stop soon.
    pub fn must_end(&self) -> bool {
        self.closing.load(Ordering::Relaxed) || self.health.stopped().is_some()
    }
}

impl Helpers {
    /// None yet.
    pub fn new(health: Health) -> Helpers {
        Helpers(Arc::new(Inner {
            alive: Arc::default(),
            closing: Arc::default(),
            health,
        }))
    }

    /// A sign of life for a helper.
    pub fn helper(&self) -> Helper {
        Helper {
            _alive: self.0.alive.clone(),
            closing: self.0.closing.clone(),
            health: self.0.health.clone(),
        }
    }

    /// Set when helpers shall end.
    pub fn closing(&self) -> Arc<AtomicBool> {
        self.0.closing.clone()
    }

    /// Tells them to end.
    pub fn close(&self) {
        self.0.closing.store(true, Ordering::Relaxed);
    }

    /// Waits for those that are told to end. `false`: some still hold the store. Blocking.
    pub fn wait(&self) -> bool {
        let until = Instant::now() + HELPERS_END;
        while Arc::strong_count(&self.0.alive) > 1 {
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }

    /// Starts a thread that uses store or log: guarded as [`spawn`] does it, and waited for when the node closes.
    ///
    /// # Errors
    /// [`Error::System`]: there is none to be had.
    pub fn spawn(
        &self,
        name: &'static str,
        body: impl FnOnce(&Helper) + Send + 'static,
    ) -> Result<(), Error> {
        let helper = self.helper();
        spawn(name, &self.0.health, move || body(&helper)).map(drop)
    }
}

/// A thread that takes the node with it when it panics: half a node answers wrongly, or waits for ever.
///
/// # Errors
/// [`Error::System`]: there is none to be had.
pub fn spawn(
    name: &'static str,
    health: &Health,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    struct Guard(&'static str, Health);
    impl Drop for Guard {
        fn drop(&mut self) {
            if std::thread::panicking() {
                self.1.stop_for_good(&format!(
                    "the {} thread panicked; its message stands above in the log",
                    self.0
                ));
            }
        }
    }
    let guard = Guard(name, health.clone());
    let body = move || {
        let _guard = guard;
        body();
    };
    let builder = std::thread::Builder::new().name(name.to_owned());
    builder.spawn(body).map_err(|source| Error::System {
        what: format!("cannot start the {name} thread"),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A flush that panicked left the node with a state that is never flushed again, and nobody was told.
    #[test]
    fn a_helper_that_panics_takes_its_node_with_it() {
        let health = Health::new();
        let helpers = Helpers::new(health.clone());
        helpers
            .spawn("flush", |_| panic!("on purpose"))
            .expect("a thread");
        assert!(helpers.wait(), "it is over");
        let reason = health.stopped().expect("it stopped");
        assert!(reason.contains("the flush thread panicked"), "{reason}");
        assert!(!health.wants_reopen(), "for good");
    }

    #[test]
    fn a_node_that_closes_waits_for_its_helpers() {
        let helpers = Helpers::new(Health::new());
        let (done, ended) = (Arc::new(AtomicBool::new(false)), helpers.clone());
        let told = done.clone();
        let body = move |helper: &Helper| {
            while !helper.must_end() {
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_millis(50));
            told.store(true, Ordering::Relaxed);
        };
        helpers.spawn("sweep", body).expect("a thread");
        ended.close();
        assert!(ended.wait());
        assert!(done.load(Ordering::Relaxed));
    }

    /// Every thread of a node is started here, so that none can panic unnoticed.
    #[test]
    fn no_thread_of_the_runtime_is_started_elsewhere() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/runtime");
        let mut dirs = vec![dir];
        let mut seen = 0;
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).expect("sources") {
                let path = entry.expect("sources").path();
                if path.is_dir() {
                    dirs.push(path);
                } else if !path.ends_with("helpers.rs") && !path.ends_with("tests.rs") {
                    let text = std::fs::read_to_string(&path).expect("sources");
                    let bare = ["thread::Builder", "thread::spawn"];
                    let found = bare.iter().find(|bare| text.contains(**bare));
                    assert!(found.is_none(), "{}: {found:?}", path.display());
                    seen += 1;
                }
            }
        }
        assert!(seen > 20, "{seen}");
    }
}
