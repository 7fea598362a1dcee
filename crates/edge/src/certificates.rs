//! The certificates of the SMTP side: read from a directory, chosen by the name that a client asks for, and read again when
//! the files change. Sessions that stand keep theirs; a new handshake has the new one.
//!
//! ```text
//! DIR/tls.crt, DIR/tls.key          the default, for clients that ask for no name or for one that nobody has
//! DIR/NAME/tls.crt, DIR/NAME/tls.key    as Kubernetes mounts Secrets of type kubernetes.io/tls
//! ```
//! Without a pair in DIR itself the default is the one of `default`, else the first by name.
//!
//! # Diagnostics
//! A pair that cannot be used keeps the former one of its name in use; the log says why, and `postroad_certificates_unusable_count`
//! counts such names until their files are put right.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_util::sync::CancellationToken;

use self::files::{Stamps, stamps};
use self::pair::Pair;

mod files;
mod pair;

/// How often the files are looked at. With one more look for a pair of which only half was written, a change is in use
/// within five seconds.
const POLL: Duration = Duration::from_secs(1);
/// Pairs of one directory: more than the Secrets of a listener may be (16), few enough to look at each second.
pub const PAIRS_MAX: usize = 256;
/// Name of the pair that lies in the directory itself.
const ITSELF: &str = ".";

/// The certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The directory cannot be read.
    #[error(
        "cannot read {dir}: {source}; --tls names a directory with tls.crt and tls.key, or with a directory of them for each certificate"
    )]
    Read {
        /// Which.
        dir: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// There is no pair that can be used.
    #[error("no certificate of {dir} can be used: {why}")]
    None {
        /// Which.
        dir: PathBuf,
        /// Each pair's fault, and what to do.
        why: String,
    },
}

/// A directory of certificates, kept fresh by [`Certificates::follow`].
#[derive(Debug)]
pub struct Certificates {
    dir: PathBuf,
    default: Option<String>,
    /// What the files looked like when they were read first.
    loaded: Stamps,
    now: RwLock<Arc<Set>>,
}

/// What one look at the directory gave.
#[derive(Debug, Default)]
struct Set {
    pairs: BTreeMap<String, Arc<Pair>>,
    default: Option<Arc<Pair>>,
}

/// What a look found wrong, by pair.
type Faults = BTreeMap<String, String>;

impl Certificates {
    /// Reads `dir`; `default` names the pair for clients that ask for no known name. Pairs that cannot be used are logged,
    /// as long as there is one that can.
    pub fn load(dir: &Path, default: Option<&str>) -> Result<Certificates, CertificateError> {
        let (certificates, faults) = Certificates::first(dir, default)?;
        if !certificates.any() {
            let mut why = faults.values().cloned().collect::<Vec<_>>().join("; ");
            if why.is_empty() {
                why = "it holds no tls.crt with a tls.key, and no directory that does".into();
            }
            return Err(CertificateError::None {
                dir: dir.into(),
                why,
            });
        }
        certificates.complain(&faults);
        Ok(certificates)
    }

    /// The same where they may come later: until one can be used there is no TLS.
    pub fn load_or_wait(
        dir: &Path,
        default: Option<&str>,
    ) -> Result<Certificates, CertificateError> {
        let (certificates, faults) = Certificates::first(dir, default)?;
        certificates.complain(&faults);
        if !certificates.any() {
            tracing::error!(dir = %dir.display(), "no certificate can be used: no TLS is offered until one can");
        }
        Ok(certificates)
    }

    /// One can be used.
    pub fn any(&self) -> bool {
        self.set().default.is_some()
    }

    fn first(
        dir: &Path,
        default: Option<&str>,
    ) -> Result<(Certificates, Faults), CertificateError> {
        let found = stamps(dir).map_err(|source| CertificateError::Read {
            dir: dir.into(),
            source,
        })?;
        let certificates = Certificates {
            dir: dir.into(),
            default: default.map(str::to_owned),
            loaded: found,
            now: RwLock::default(),
        };
        let (set, faults) = certificates.read(&certificates.loaded, &Set::default());
        certificates.take(set);
        Ok((certificates, faults))
    }

    /// Looks at the files until `stop`.
    pub async fn follow(self: Arc<Certificates>, stop: CancellationToken) {
        let mut seen = Some(self.loaded.clone());
        // Found bad at the last look: said only if it still is at the next one, for a pair is two files.
        let mut doubtful = false;
        while stop
            .run_until_cancelled(tokio::time::sleep(POLL))
            .await
            .is_some()
        {
            let certificates = self.clone();
            let before = seen.take();
            let look = tokio::task::spawn_blocking(move || certificates.look(before, doubtful));
            // The task panics only by a defect; the next look begins afresh.
            (seen, doubtful) = look.await.unwrap_or((None, false));
        }
    }

    /// One look: takes what is new and can be used. Gives the stamps, and whether to look again although they stay.
    fn look(&self, before: Option<Stamps>, doubtful: bool) -> (Option<Stamps>, bool) {
        let found = match stamps(&self.dir) {
            Ok(found) => found,
            Err(error) => {
                if before.is_some() {
                    tracing::error!(dir = %self.dir.display(), %error, "the certificates cannot be looked at; the former ones stay in use");
                }
                return (None, false);
            }
        };
        let same = before.as_ref() == Some(&found);
        if same && !doubtful {
            return (Some(found), false);
        }
        let (set, faults) = self.read(&found, &self.set());
        self.take(set);
        let doubtful = !same && !faults.is_empty();
        if !doubtful {
            self.complain(&faults);
        }
        (Some(found), doubtful)
    }

    /// Reads all pairs; where one cannot be used, `former`'s of that name stays.
    fn read(&self, found: &Stamps, former: &Set) -> (Set, Faults) {
        let mut set = Set::default();
        let mut faults = Faults::new();
        for name in found.names() {
            let dir = match name {
                ITSELF => self.dir.clone(),
                name => self.dir.join(name),
            };
            match Pair::read(&dir) {
                Ok(pair) => drop(set.pairs.insert(name.into(), Arc::new(pair))),
                Err(fault) => {
                    faults.insert(name.into(), fault);
                    if let Some(pair) = former.pairs.get(name) {
                        set.pairs.insert(name.into(), pair.clone());
                    }
                }
            }
        }
        if let Some(count) = found.too_many() {
            let fault = format!(
                "{} holds {count} certificates; the first {PAIRS_MAX} are used",
                self.dir.display()
            );
            faults.insert("(number)".into(), fault);
        }
        if set.pairs.is_empty() && !former.pairs.is_empty() {
            // Whoever removed them all did not mean to stop TLS: mail servers would send in clear from now on.
            faults.insert(ITSELF.into(), format!("{} is empty", self.dir.display()));
            set.pairs = former.pairs.clone();
        }
        let wanted = self.default.as_deref().unwrap_or(ITSELF);
        let default = set.pairs.get(wanted).or_else(|| set.pairs.get(ITSELF));
        set.default = default.or_else(|| set.pairs.values().next()).cloned();
        if let Some(name) = &self.default
            && !set.pairs.contains_key(name)
        {
            let fault = format!("there is no certificate {name}, which --tls-default names");
            faults.entry(name.clone()).or_insert(fault);
        }
        (set, faults)
    }

    fn complain(&self, faults: &Faults) {
        for (name, fault) in faults {
            tracing::error!(dir = %self.dir.display(), name, fault, "a certificate cannot be used; the former one of its name, if there is one, stays in use");
        }
        metrics::gauge!("postroad_certificates_unusable_count").set(faults.len() as f64);
    }

    fn take(&self, set: Set) {
        let former = self.set();
        for name in former
            .pairs
            .keys()
            .filter(|name| !set.pairs.contains_key(*name))
        {
            // A gauge cannot be taken back; zero is no time at which anything expires.
            expiry(name).set(0.0);
        }
        for (name, pair) in &set.pairs {
            expiry(name).set(pair.not_after as f64);
            if former.pairs.get(name).is_none_or(|old| !old.same(pair)) {
                tracing::info!(dir = %self.dir.display(), name, names = ?pair.names, not_after = pair.not_after, "certificate in use");
            }
        }
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(set);
    }

    fn set(&self) -> Arc<Set> {
        self.now
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

fn expiry(name: &str) -> metrics::Gauge {
    metrics::gauge!("postroad_certificate_expiry_timestamp_seconds", "certificate" => name.to_owned())
}

impl Set {
    /// The pair for a name: one that has it, then one with a wildcard for it (RFC 6125 section 6.4.3), then the default.
    fn choose(&self, name: Option<&str>) -> Option<&Arc<Pair>> {
        let wanted = name.map(str::to_ascii_lowercase);
        let of = |name: &str| self.pairs.values().find(|pair| pair.has(name));
        let found = wanted.and_then(|name| {
            let wild = || of(&format!("*.{}", name.split_once('.')?.1));
            // One pair may have both; and of two pairs with a name the default comes first.
            let own = self.default.as_ref().filter(|pair| pair.has(&name));
            own.or_else(|| of(&name)).or_else(wild)
        });
        found.or(self.default.as_ref())
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let set = self.set();
        set.choose(hello.server_name()).map(|pair| pair.key.clone())
    }
}

#[cfg(test)]
mod tests;
