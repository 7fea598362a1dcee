//! The verifier: the chain up to our CA, the time, the cluster and the role.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use crate::identity::{Identity, Role};

/// Why a certificate is refused, for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It cannot be read, or names nobody.
    NoIdentity(String),
    /// Made by another CA, expired, not for this use.
    Chain(Identity, webpki::Error),
    /// Signed by our CA, but of a cluster with another name.
    Cluster { found: Identity, ours: String },
    /// Another role than this connection is for.
    Role {
        found: Identity,
        wanted: &'static [Role],
    },
}

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NoIdentity(why) => write!(f, "the certificate names no node: {why}"),
            Refusal::Chain(who, webpki::Error::CertExpired { time, not_after }) => {
                let ago = time.as_secs().saturating_sub(not_after.as_secs());
                write!(f, "the certificate of {who} expired {} ago", span(ago))
            }
            Refusal::Chain(who, webpki::Error::CertNotValidYet { time, not_before }) => {
                let ahead = not_before.as_secs().saturating_sub(time.as_secs());
                write!(
                    f,
                    "the certificate of {who} is not valid for another {}; compare the machines' clocks",
                    span(ahead)
                )
            }
            Refusal::Chain(who, webpki::Error::UnknownIssuer) => write!(
                f,
                "the certificate of {who} was not made by this cluster's CA (ca.crt); was the CA made anew, or is it \
                 another cluster?"
            ),
            Refusal::Chain(who, error) => {
                write!(f, "the certificate of {who} is not valid: {error}")
            }
            Refusal::Cluster { found, ours } => {
                write!(
                    f,
                    "{found} is of cluster {:?}, this node is of {ours:?}",
                    found.cluster
                )
            }
            Refusal::Role { found, wanted } => {
                let wanted: Vec<&str> = wanted.iter().map(|role| role.as_str()).collect();
                write!(
                    f,
                    "{found} has the role {}, expected {}; is this the right address?",
                    found.role,
                    wanted.join(" or ")
                )
            }
        }
    }
}

/// A span as a person says it.
fn span(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds / 60),
        7_200..=172_799 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Who a certificate names; nothing else of it is checked.
pub(crate) fn identity_of(cert: &CertificateDer<'_>) -> Result<Identity, Refusal> {
    let parsed = EndEntityCert::try_from(cert)
        .map_err(|e| Refusal::NoIdentity(format!("it cannot be read ({e})")))?;
    let mut uris = parsed
        .valid_uri_names()
        .filter(|uri| uri.starts_with("spiffe://"));
    match (uris.next(), uris.next()) {
        (Some(uri), None) => Identity::parse(uri).map_err(Refusal::NoIdentity),
        (None, _) => Err(Refusal::NoIdentity(
            "it has no URI spiffe://<cluster>/<role>/<name>".into(),
        )),
        (Some(_), Some(_)) => Err(Refusal::NoIdentity(
            "it has more than one spiffe:// URI".into(),
        )),
    }
}

/// Checks certificates of the other side, for servers and for clients.
pub(crate) struct Verifier {
    cluster: String,
    roles: &'static [Role],
    anchors: Vec<TrustAnchor<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    pub(crate) fn new(
        cluster: String,
        roles: &'static [Role],
        anchors: Vec<TrustAnchor<'static>>,
        provider: &CryptoProvider,
    ) -> Verifier {
        Verifier {
            cluster,
            roles,
            anchors,
            algorithms: provider.signature_verification_algorithms,
        }
    }

    /// The whole check.
    pub(crate) fn check(
        &self,
        cert: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<Identity, Refusal> {
        let identity = identity_of(cert)?;
        let parsed = EndEntityCert::try_from(cert)
            .map_err(|e| Refusal::NoIdentity(format!("it cannot be read ({e})")))?;
        parsed
            .verify_for_usage(
                self.algorithms.all,
                &self.anchors,
                intermediates,
                now,
                usage,
                None,
                None,
            )
            .map_err(|error| Refusal::Chain(identity.clone(), error))?;
        if identity.cluster != self.cluster {
            return Err(Refusal::Cluster {
                found: identity,
                ours: self.cluster.clone(),
            });
        }
        if !self.roles.contains(&identity.role) {
            return Err(Refusal::Role {
                found: identity,
                wanted: self.roles,
            });
        }
        Ok(identity)
    }
}

/// Our text travels inside rustls' error; the peer gets an alert without it.
fn refuse(refusal: Refusal) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(refusal))).into()
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("cluster", &self.cluster)
            .field("roles", &self.roles)
            .finish_non_exhaustive()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        cert: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(cert, intermediates, now, KeyUsage::client_auth())
            .map_err(refuse)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        cert: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(cert, intermediates, now, KeyUsage::server_auth())
            .map_err(refuse)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::crypto::aws_lc_rs;
    use rustls_pki_types::pem::PemObject;
    use std::time::{Duration, SystemTime};

    const HOUR: Duration = Duration::from_secs(3_600);

    /// A certificate valid for ten hours from now, and its CA.
    fn issued(
        dir: &std::path::Path,
        now: SystemTime,
    ) -> (CertificateDer<'static>, TrustAnchor<'static>) {
        crate::pki::init("mail", &dir.join("ca")).unwrap();
        let out = dir.join("out");
        crate::pki::issue_until(&dir.join("ca"), Role::Edge, "e", &out, now, HOUR * 10).unwrap();
        let ca = CertificateDer::from_pem_file(dir.join("ca/ca.crt")).unwrap();
        let anchor = webpki::anchor_from_trusted_cert(&ca).unwrap().to_owned();
        (
            CertificateDer::from_pem_file(out.join("tls.crt")).unwrap(),
            anchor,
        )
    }

    fn at(time: SystemTime) -> UnixTime {
        UnixTime::since_unix_epoch(time.duration_since(SystemTime::UNIX_EPOCH).unwrap())
    }

    #[test]
    fn time_cluster_and_role_are_checked_and_named() {
        let (dir, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
        let (cert, anchor) = issued(dir.path(), now);
        let provider = aws_lc_rs::default_provider();
        let check = |cluster: &str, roles, time| {
            Verifier::new(cluster.into(), roles, vec![anchor.clone()], &provider)
                .check(&cert, &[], at(time), KeyUsage::client_auth())
                .map_err(|refusal| refusal.to_string())
        };
        assert_eq!(
            check("mail", &Role::ALL, now).unwrap().to_string(),
            "spiffe://mail/edge/e"
        );
        let who = "the certificate of spiffe://mail/edge/e";
        assert_eq!(
            check("mail", &Role::ALL, now + HOUR * 13),
            Err(format!("{who} expired 3 h ago"))
        );
        let early = check("mail", &Role::ALL, now - HOUR * 4).unwrap_err();
        assert_eq!(
            early,
            format!("{who} is not valid for another 3 h; compare the machines' clocks")
        );
        let other = check("post", &Role::ALL, now).unwrap_err();
        assert_eq!(
            other,
            r#"spiffe://mail/edge/e is of cluster "mail", this node is of "post""#
        );
        let role = check("mail", &[Role::Queue], now).unwrap_err();
        assert!(role.contains("has the role edge, expected queue"), "{role}");
    }

    #[test]
    fn an_expired_certificate_is_not_loaded() {
        let dir = tempfile::tempdir().unwrap();
        issued(dir.path(), SystemTime::now() - HOUR * 20);
        let error = crate::NodeTls::load(&dir.path().join("out"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("expired 10 h ago") && error.contains("postroad pki issue --role edge"),
            "{error}"
        );
    }
}
