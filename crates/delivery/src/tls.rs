//! TLS with next hops: opportunistic, where nobody's certificate is checked and a host that cannot do it is spoken to in
//! clear; or required, where the certificate must be the host's, of a CA that is known.
//!
//! A host whose handshake fails is left alone with TLS for a while, so that not every message pays for the try
//! (opportunistic security never holds up mail, RFC 7435).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use resource::TlsPolicy;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use smtp::client::Tls;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::route::Hop;

/// How long a handshake may take: two round trips of an honest host, and then some.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a host whose handshake failed is spoken to in clear without another try.
const CLEAR_FOR: Duration = Duration::from_secs(30 * 60);
/// Hosts of which that is remembered. Above it the oldest half is forgotten: a forgotten one costs one more try.
const CLEAR_HOSTS_MAX: usize = 10_000;

/// The CAs that were named cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The file cannot be read, or holds no certificate.
    #[error("{path}: {problem}; --tls-ca names a file of CA certificates in PEM")]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The TLS library refuses its own settings: a defect.
    #[error("TLS cannot be set up: {0}")]
    Library(rustls::Error),
}

/// What TLS with next hops needs, and what is remembered of them.
pub(crate) struct NextHopTls {
    /// Takes any certificate.
    any: Arc<ClientConfig>,
    /// Takes those of a known CA, for the host's name.
    known: Arc<ClientConfig>,
    clear: Mutex<HashMap<SocketAddr, Instant>>,
}

/// A connection under TLS, and what is said of it in results and logs.
pub(crate) type Secured = (Box<TlsStream<TcpStream>>, String);

impl NextHopTls {
    /// The CAs of `ca` are known beside those that browsers know.
    pub(crate) fn new(ca: Option<&Path>) -> Result<NextHopTls, CaError> {
        let mut roots = RootCertStore {
            roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
        };
        if let Some(path) = ca {
            add(&mut roots, path)?;
        }
        let builder = || {
            ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
                .map_err(CaError::Library)
        };
        let any = builder()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Unchecked(aws_lc_rs::default_provider())))
            .with_no_client_auth();
        let known = builder()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(NextHopTls {
            any: Arc::new(any),
            known: Arc::new(known),
            clear: Mutex::default(),
        })
    }

    /// What to do about STARTTLS with this host now.
    pub(crate) fn starttls(&self, hop: &Hop, now: Instant) -> Tls {
        match hop.tls {
            TlsPolicy::Off => Tls::Off,
            TlsPolicy::Required | TlsPolicy::Implicit => Tls::Required,
            TlsPolicy::Opportunistic => {
                let clear = self.clear().get(&hop.address).is_some_and(|at| *at > now);
                if clear { Tls::Off } else { Tls::Opportunistic }
            }
        }
    }

    /// The handshake with this host failed: for a while it is not tried.
    pub(crate) fn speak_clear(&self, hop: &Hop, now: Instant) {
        let mut clear = self.clear();
        if clear.len() >= CLEAR_HOSTS_MAX {
            clear.retain(|_, until| *until > now + CLEAR_FOR / 2);
        }
        if clear.len() >= CLEAR_HOSTS_MAX {
            clear.clear();
        }
        clear.insert(hop.address, now + CLEAR_FOR);
    }

    /// The handshake.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub(crate) async fn secure(&self, hop: &Hop, socket: TcpStream) -> Result<Secured, String> {
        let checked = matches!(hop.tls, TlsPolicy::Required | TlsPolicy::Implicit);
        let config = if checked { &self.known } else { &self.any };
        // What cannot stand in a certificate as a name is known by its address.
        let name = ServerName::try_from(hop.host.clone())
            .unwrap_or_else(|_| ServerName::from(hop.address.ip()));
        let shaken = TlsConnector::from(config.clone()).connect(name, socket);
        let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, shaken).await;
        let failed = |text: String| {
            metrics::counter!("postroad_delivery_tls_failed_total").increment(1);
            format!("no TLS with {} [{}]: {text}", hop.host, hop.address)
        };
        let stream = shaken
            .map_err(|_| failed(format!("no handshake within {HANDSHAKE_TIMEOUT:?}")))?
            .map_err(|error| failed(error.to_string()))?;
        let facts = facts(stream.get_ref().1, checked);
        Ok((Box::new(stream), facts))
    }

    fn clear(&self) -> MutexGuard<'_, HashMap<SocketAddr, Instant>> {
        // Each change is one call that does not panic half way.
        self.clear.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn add(roots: &mut RootCertStore, path: &Path) -> Result<(), CaError> {
    let wrong = |problem: String| CaError::File {
        path: path.into(),
        problem,
    };
    let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let mut count = 0;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots
            .add(certificate)
            .map_err(|error| wrong(error.to_string()))?;
        count += 1;
    }
    match count {
        0 => Err(wrong("holds no certificate in PEM".into())),
        _ => Ok(()),
    }
}

/// `TLSv1.3 TLS13_AES_256_GCM_SHA384, certificate not checked`.
fn facts(connection: &rustls::ClientConnection, checked: bool) -> String {
    let version = match connection.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
        Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
        _ => "TLS",
    };
    metrics::counter!("postroad_delivery_tls_sessions_total", "version" => version).increment(1);
    let suite = connection.negotiated_cipher_suite();
    let cipher = suite.and_then(|suite| suite.suite().as_str());
    let checked = if checked { "checked" } else { "not checked" };
    format!(
        "{version} {}, certificate {checked}",
        cipher.unwrap_or_default()
    )
}

/// Whoever does not ask whose certificate it is learns nothing from its signatures either: an attacker has one too. Old
/// certificates that a library would not parse are welcome.
#[derive(Debug)]
struct Unchecked(CryptoProvider);

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let mut schemes = self.0.signature_verification_algorithms.supported_schemes();
        schemes.extend([
            SignatureScheme::RSA_PKCS1_SHA1,
            SignatureScheme::ECDSA_SHA1_Legacy,
        ]);
        schemes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(last: u32, tls: TlsPolicy) -> Hop {
        let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 + last);
        Hop {
            host: "mx.test".into(),
            address: (address, 25).into(),
            tls,
        }
    }

    #[test]
    fn a_host_without_tls_is_remembered_for_a_while_and_memory_is_bounded() {
        let tls = NextHopTls::new(None).unwrap();
        let now = Instant::now();
        let (old, other) = (
            hop(1, TlsPolicy::Opportunistic),
            hop(2, TlsPolicy::Opportunistic),
        );
        tls.speak_clear(&old, now);
        assert_eq!(tls.starttls(&old, now), Tls::Off);
        assert_eq!(tls.starttls(&other, now), Tls::Opportunistic);
        assert_eq!(tls.starttls(&old, now + CLEAR_FOR), Tls::Opportunistic);
        assert_eq!(
            tls.starttls(&hop(1, TlsPolicy::Required), now),
            Tls::Required
        );
        for last in 0..3 * CLEAR_HOSTS_MAX as u32 {
            tls.speak_clear(&hop(last, TlsPolicy::Opportunistic), now);
        }
        assert!(tls.clear().len() <= CLEAR_HOSTS_MAX);
    }
}
