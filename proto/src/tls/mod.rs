//! The TLS between nodes: version 1.3, both sides with a certificate of the cluster's CA.
//!
//! rustls cannot check URI names, so one verifier of ours ([`verify`]) checks the chain, the time, the cluster and the
//! role; DNS names are not looked at. [`NodeTls`] is re-read when its files change: connections that exist go on,
//! new handshakes use the new pair.
//!
//! # Diagnostics
//! [`TlsError`] at start ends the process: the files are wrong. Later a bad file is logged and the former pair stays.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor, UnixTime};

use crate::identity::{Identity, Role};
use crate::pki::{self, CA_CERTIFICATE, NODE_CERTIFICATE, NODE_KEY};

mod accept;
mod connect;
mod verify;

pub use accept::{Incoming, TlsIo, incoming, server};
pub use connect::{Connector, causes, endpoint};
use verify::Verifier;

/// How often the files are looked at, at most; a handshake looks.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);
/// How often [`NodeTls::follow`] looks: a handshake looks by itself, but nodes that are connected shake no hands for weeks.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(10);
/// What both sides speak inside TLS.
const ALPN: &[u8] = b"h2";

/// HTTP/2 window of a stream and of a connection, octets. The protocol's 64 KiB hold eight bodies of 8 KiB; this
/// holds what a 10 Gbit/s link carries in 6 ms.
pub const WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// Largest gRPC message, octets: a frame of 1 MiB of bodies with its envelopes, and a body of 1 MiB that shares its
/// frame with nothing.
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// HTTP/2 frame, octets: four TLS records. The protocol's 16 KiB cost a tenth more CPU with bodies of 10 KiB.
const HTTP2_FRAME_BYTES: u32 = 64 * 1024;
/// A ping this often, also when nothing else is said.
const PING_INTERVAL: Duration = Duration::from_secs(2);
/// A peer that has not answered a ping for this long is dead.
const PING_TIMEOUT: Duration = Duration::from_secs(4);

/// Why a node's certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error(
        "cannot read {path}: {source}; make certificates with: postroad pki issue --role ROLE --out DIR"
    )]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file holds something else.
    #[error("{path}: {problem}")]
    Bad {
        /// Which.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
}

/// A node's key pair and the CA that it trusts, read from a folder and kept fresh.
#[derive(Debug)]
pub struct NodeTls {
    dir: PathBuf,
    now: RwLock<Arc<Material>>,
    looked: Mutex<Looked>,
}

/// When the files were looked at last, and how they were.
#[derive(Debug)]
struct Looked {
    at: Instant,
    stamps: Stamps,
}

/// Time and size of the three files; a file that is not there has none.
type Stamps = [Option<(SystemTime, u64)>; 3];

/// What one reading of the files gave.
#[derive(Debug)]
struct Material {
    identity: Identity,
    ca_pem: Vec<u8>,
    /// When the node's own certificate ends, and the CA's, seconds since the Unix epoch.
    ends: [Option<i64>; 2],
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl NodeTls {
    /// Reads `ca.crt`, `tls.crt` and `tls.key` of `dir`.
    pub fn load(dir: &Path) -> Result<NodeTls, TlsError> {
        // The stamps come first: a change while reading is then seen at the next look.
        let stamps = stamps(dir);
        let material = read(dir)?;
        show_ends(&material);
        Ok(NodeTls {
            dir: dir.into(),
            now: RwLock::new(Arc::new(material)),
            looked: Mutex::new(Looked {
                at: Instant::now(),
                stamps,
            }),
        })
    }

    /// Looks at the files from time to time as long as anybody uses this, so that logs and metrics say what lies there.
    /// Call it inside of a runtime.
    pub fn follow(self: &Arc<NodeTls>) {
        let this = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(FOLLOW_INTERVAL).await;
                let Some(this) = this.upgrade() else {
                    return;
                };
                this.fresh();
            }
        });
    }

    /// Who this node is.
    pub fn identity(&self) -> Identity {
        self.material().identity.clone()
    }

    /// The CA bundle in use, as it stands in the file: its hash is what a node acknowledges.
    pub fn ca_pem(&self) -> Vec<u8> {
        self.material().ca_pem.clone()
    }

    fn server_config(&self) -> Arc<ServerConfig> {
        self.fresh().server.clone()
    }

    fn client_config(&self) -> Arc<ClientConfig> {
        self.fresh().client.clone()
    }

    fn material(&self) -> Arc<Material> {
        self.now
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The pair for a new handshake, read again if the files changed.
    fn fresh(&self) -> Arc<Material> {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.at.elapsed() < RELOAD_INTERVAL {
            return self.material();
        }
        looked.at = Instant::now();
        let found = stamps(&self.dir);
        if found == looked.stamps {
            return self.material();
        }
        // Recorded even when the reading fails: one line for each change, not one for each handshake.
        looked.stamps = found;
        match read(&self.dir) {
            Ok(new) if new.identity.cluster != self.material().identity.cluster => {
                tracing::error!(
                    dir = %self.dir.display(), found = %new.identity, running = %self.material().identity,
                    "the new certificate is of another cluster; the former one stays in use"
                );
            }
            Ok(new) => {
                tracing::info!(dir = %self.dir.display(), identity = %new.identity, "certificates were read again");
                show_ends(&new);
                *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
            }
            Err(error) => tracing::error!(
                %error, "the changed certificates cannot be used; the former ones stay in use"
            ),
        }
        self.material()
    }

    /// Forgets when the files were looked at, so that a test need not wait.
    #[doc(hidden)]
    pub fn look_again(&self) {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(past) = Instant::now().checked_sub(RELOAD_INTERVAL) {
            looked.at = past;
        }
    }
}

/// Nobody else looks at these two: without a successor in time the node is cut off from all others.
fn show_ends(material: &Material) {
    for (which, end) in ["node", "ca"].into_iter().zip(material.ends) {
        if let Some(end) = end {
            metrics::gauge!("postroad_node_certificate_expiry_timestamp_seconds", "certificate" => which)
                .set(end as f64);
        }
    }
}

fn stamps(dir: &Path) -> Stamps {
    [CA_CERTIFICATE, NODE_CERTIFICATE, NODE_KEY].map(|name| {
        let data = fs::metadata(dir.join(name)).ok()?;
        Some((data.modified().ok()?, data.len()))
    })
}

fn read_file(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Read {
        path: path.into(),
        source,
    })
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(certs) if !certs.is_empty() => Ok(certs),
        Ok(_) => Err(bad(path, "holds no certificate in PEM".into())),
        Err(e) => Err(bad(path, format!("is no PEM ({e})"))),
    }
}

fn bad(path: &Path, problem: String) -> TlsError {
    TlsError::Bad {
        path: path.into(),
        problem,
    }
}

/// Reads the folder and checks that its three files belong together.
fn read(dir: &Path) -> Result<Material, TlsError> {
    let (ca_path, cert_path, key_path) = (
        dir.join(CA_CERTIFICATE),
        dir.join(NODE_CERTIFICATE),
        dir.join(NODE_KEY),
    );
    let ca_pem = read_file(&ca_path)?;
    let anchors = certificates(&ca_path, &ca_pem)?
        .iter()
        .map(|der| {
            let anchor = webpki::anchor_from_trusted_cert(der)
                .map_err(|e| bad(&ca_path, format!("holds a certificate that is no CA ({e})")))?;
            Ok(anchor.to_owned())
        })
        .collect::<Result<Vec<TrustAnchor<'static>>, TlsError>>()?;
    let cert_pem = read_file(&cert_path)?;
    let ends = [&cert_pem, &ca_pem].map(|pem| pki::not_after(pem));
    let chain = certificates(&cert_path, &cert_pem)?;
    let key = PrivateKeyDer::from_pem_slice(&read_file(&key_path)?)
        .map_err(|e| bad(&key_path, format!("holds no private key in PEM ({e})")))?;

    let provider = Arc::new(aws_lc_rs::default_provider());
    let identity = verify::identity_of(&chain[0]).map_err(|e| bad(&cert_path, e.to_string()))?;
    // One verifier for each side: clients of any role may come in, and only queue nodes are gone to.
    let verifier = |roles: &'static [Role]| {
        Arc::new(Verifier::new(
            identity.cluster.clone(),
            roles,
            anchors.clone(),
            &provider,
        ))
    };
    let inbound = verifier(&Role::ALL);
    inbound
        .check(
            &chain[0],
            &chain[1..],
            UnixTime::now(),
            webpki::KeyUsage::client_auth(),
        )
        .map_err(|e| {
            bad(
                &cert_path,
                format!(
                    "{e}; replace it: postroad pki issue --role {}",
                    identity.role
                ),
            )
        })?;

    let (server, client) = configs(
        provider.clone(),
        inbound,
        verifier(&[Role::Queue]),
        chain,
        key,
    )
    .map_err(|e| {
        bad(
            &key_path,
            format!("does not go with {NODE_CERTIFICATE} ({e})"),
        )
    })?;
    Ok(Material {
        identity,
        ca_pem,
        ends,
        server: Arc::new(server),
        client: Arc::new(client),
    })
}

fn configs(
    provider: Arc<CryptoProvider>,
    inbound: Arc<Verifier>,
    outbound: Arc<Verifier>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<(ServerConfig, ClientConfig), rustls::Error> {
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(inbound)
        .with_single_cert(chain.clone(), key.clone_key())?;
    server.alpn_protocols = vec![ALPN.to_vec()];
    // No resumption on either side: a resumed connection would outlive its certificate unchecked.
    server.send_tls13_tickets = 0;
    server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});

    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(outbound)
        .with_client_auth_cert(chain, key)?;
    client.alpn_protocols = vec![ALPN.to_vec()];
    client.enable_sni = false;
    client.resumption = rustls::client::Resumption::disabled();
    Ok((server, client))
}
