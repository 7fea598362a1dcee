//! What every controller has at hand.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use dns::Authorities;
use kube::runtime::events::{Event, EventType, Recorder};
use kube::{Client, Resource};
use proto::Role;
use proto::client::{ClientConfig, QueueClient};
use proto::pki::{self, Pair};
use proto::tls::NodeTls;
use tokio::time::Instant;

use crate::config::{Index, Pushes, SealedKeys};
use crate::dkim_key::Looks;
use crate::error::{Backoff, Error};
use crate::names;

/// The operator's own certificates live so long, and are made anew at half of it.
const OWN_CERTIFICATE: Duration = Duration::from_secs(24 * 60 * 60);
/// The API server takes no event whose note is longer, octets (events.k8s.io/v1).
const NOTE_OCTETS_MAX: usize = 1024;
/// What stands at the end of a note that was cut.
const CUT: &str = "…";

/// See the module.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// Image of the nodes of clusters that name none.
    pub node_image: String,
    /// See [`crate::settings::Run::test_clock`].
    pub test_clock: bool,
    /// Pauses after errors.
    pub backoff: Backoff,
    /// Writes events.
    recorder: Recorder,
    /// Where the operator's own certificates lie, a directory for each cluster.
    state: PathBuf,
    queues: Mutex<HashMap<String, Known>>,
    /// All RelayDomains and signing keys.
    pub index: Index,
    /// What the queues hold.
    pub pushes: Pushes,
    /// Signing keys that were sealed before.
    pub sealed: SealedKeys,
    /// The last looks at the records of signing keys.
    pub looks: Looks,
    /// By the resolvers that a cluster names.
    authorities: Mutex<HashMap<Vec<String>, Arc<Authorities>>>,
}

/// A queue that was asked before.
struct Known {
    client: QueueClient,
    ca: String,
    address: String,
    made: Instant,
}

impl Context {
    /// With an empty directory for keys.
    pub fn new(
        client: Client,
        node_image: String,
        test_clock: bool,
        recorder: Recorder,
        state: PathBuf,
        index: Index,
    ) -> Context {
        Context {
            client,
            node_image,
            test_clock,
            backoff: Backoff::default(),
            recorder,
            state,
            queues: Mutex::new(HashMap::new()),
            index,
            pushes: Pushes::default(),
            sealed: SealedKeys::default(),
            looks: Looks::default(),
            authorities: Mutex::new(HashMap::new()),
        }
    }

    /// Who asks the DNS for a cluster: by the resolvers that it names, else by the system's.
    pub fn authorities(&self, resolvers: &[String]) -> Result<Arc<Authorities>, Error> {
        let mut known = self
            .authorities
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get(resolvers) {
            return Ok(known.clone());
        }
        let parsed: Result<Vec<SocketAddr>, String> = resolvers
            .iter()
            .map(|text| resource::parse_resolver(text))
            .collect();
        let parsed = parsed.map_err(Error::Refused)?;
        let made = match parsed.is_empty() {
            true => Authorities::system(),
            false => Authorities::with_name_servers(&parsed),
        };
        let made = Arc::new(made.map_err(|error| Error::Dns(error.to_string()))?);
        known.insert(resolvers.to_vec(), made.clone());
        Ok(made)
    }

    /// Asks a queue as its operator.
    pub fn queue(
        &self,
        namespace: &str,
        cluster: &str,
        address: &str,
        ca: &Pair,
    ) -> Result<QueueClient, Error> {
        let key = names::trust_domain(namespace, cluster);
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let good = |known: &&Known| {
            known.ca == ca.certificate
                && known.address == address
                && known.made.elapsed() < OWN_CERTIFICATE / 2
        };
        if let Some(known) = queues.get(&key).filter(good) {
            return Ok(known.client.clone());
        }
        let dir = self.state.join(&key);
        let problem = |error: std::io::Error| {
            Error::Queue(format!("cannot write {}: {error}", dir.display()))
        };
        std::fs::create_dir_all(&dir).map_err(problem)?;
        let own = pki::make_leaf(
            ca,
            Role::Operator,
            "operator",
            SystemTime::now(),
            OWN_CERTIFICATE,
        )?;
        for (file, text) in [
            (pki::CA_CERTIFICATE, &ca.certificate),
            (pki::NODE_CERTIFICATE, &own.certificate),
            (pki::NODE_KEY, &own.key),
        ] {
            std::fs::write(dir.join(file), text).map_err(problem)?;
        }
        let tls = NodeTls::load(&dir).map_err(|error| Error::Queue(error.to_string()))?;
        let client = QueueClient::new(ClientConfig {
            endpoints: vec![address.to_owned()],
            tls: Arc::new(tls),
            name: "operator".into(),
        });
        let known = Known {
            client: client.clone(),
            ca: ca.certificate.clone(),
            address: address.to_owned(),
            made: Instant::now(),
        };
        queues.insert(key, known);
        Ok(client)
    }

    /// Tells people what was done, in the object's events.
    pub async fn tell<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        reason: &str,
        note: String,
    ) {
        self.event(object, EventType::Normal, reason, note).await;
    }

    /// Tells people what could not be done.
    pub async fn warn<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        reason: &str,
        note: String,
    ) {
        self.event(object, EventType::Warning, reason, note).await;
    }

    async fn event<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        type_: EventType,
        reason: &str,
        note: String,
    ) {
        let event = Event {
            type_,
            reason: reason.into(),
            note: Some(shortened(note)),
            action: reason.into(),
            secondary: None,
        };
        // An event that is lost loses nobody's mail.
        if let Err(error) = self.recorder.publish(&event, &object.object_ref(&())).await {
            tracing::warn!(%error, reason, "an event could not be written");
        }
    }
}

/// A note that the API server takes. The whole of it stands in a condition, as a rule.
fn shortened(mut note: String) -> String {
    if note.len() > NOTE_OCTETS_MAX {
        note.truncate(note.floor_char_boundary(NOTE_OCTETS_MAX - CUT.len()));
        note.push_str(CUT);
    }
    note
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_note_is_cut_between_two_characters_and_says_so() {
        let fits = "x".repeat(NOTE_OCTETS_MAX);
        assert_eq!(shortened(fits.clone()), fits);
        assert_eq!(shortened(format!("{fits}x")).len(), NOTE_OCTETS_MAX);
        for shift in 0..4 {
            let note = "x".repeat(shift) + &"\u{1F4EE}".repeat(300);
            let cut = shortened(note.clone());
            assert!(cut.len() <= NOTE_OCTETS_MAX && cut.len() > NOTE_OCTETS_MAX - 4);
            assert!(note.starts_with(cut.strip_suffix(CUT).expect("it says so")));
        }
    }
}
