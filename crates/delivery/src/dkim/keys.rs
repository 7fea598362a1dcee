//! Whose mail is signed with what. Where the keys come from is another's business.

use std::collections::HashMap;
use std::fmt;

use mail_auth::common::crypto::{DkimKey, Ed25519Key, RsaKey, Sha256};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// Keys of one domain: what a RelayDomain may name (4), or the made ones of both algorithms, twice while they change.
const KEYS_MAX: usize = 4;

/// A way of signing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// rsa-sha256 (RFC 6376, RFC 8301), 2048 to 8192 bits.
    Rsa,
    /// ed25519-sha256 (RFC 8463).
    Ed25519,
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Algorithm::Rsa => "rsa",
            Algorithm::Ed25519 => "ed25519",
        })
    }
}

/// A private key cannot be used. The text never holds any of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It is not PKCS#8.
    #[error(
        "is no private key in PKCS#8 ({0}); make one with: openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048"
    )]
    Format(String),
    /// Neither RSA nor Ed25519, or RSA with too few bits.
    #[error("is neither an RSA key of 2048 to 8192 bits nor an Ed25519 key ({0})")]
    Kind(String),
}

/// A private key with the name under which its public one is found.
pub struct SigningKey {
    /// The record is at `<selector>._domainkey.<domain>`.
    pub selector: String,
    key: DkimKey,
}

impl SigningKey {
    /// From PKCS#8 PEM, as a Secret holds it.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn from_pem(selector: impl Into<String>, pem: &[u8]) -> Result<SigningKey, KeyError> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem)
            .map_err(|error| KeyError::Format(error.to_string()))?;
        SigningKey::from_pkcs8(selector, der.secret_pkcs8_der())
    }

    /// From PKCS#8 DER.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn from_pkcs8(selector: impl Into<String>, der: &[u8]) -> Result<SigningKey, KeyError> {
        let key = match Ed25519Key::from_pkcs8_maybe_unchecked_der(der) {
            Ok(key) => DkimKey::Ed25519(key),
            Err(_) => {
                let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der));
                let key = RsaKey::<Sha256>::from_key_der(der);
                DkimKey::Rsa(key.map_err(|error| KeyError::Kind(error.to_string()))?)
            }
        };
        Ok(SigningKey {
            selector: selector.into(),
            key,
        })
    }

    /// How it signs.
    pub fn algorithm(&self) -> Algorithm {
        match self.key {
            DkimKey::Rsa(_) => Algorithm::Rsa,
            DkimKey::Ed25519(_) => Algorithm::Ed25519,
        }
    }

    pub(super) fn key(&self) -> &DkimKey {
        &self.key
    }
}

/// Without the key.
impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.selector, self.algorithm())
    }
}

/// What happens to mail that should be signed while no key can (`outbound.dkim.onMissingKey`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MissingKey {
    /// It goes unsigned.
    #[default]
    SendUnsigned,
    /// It waits.
    Defer,
}

/// Keys of one domain.
#[derive(Debug, Default)]
pub(super) struct DomainKeys {
    pub(super) signing: Vec<SigningKey>,
    pub(super) missing: MissingKey,
}

/// The domains whose mail is signed, each of one tenant, with their keys. One who feeds it makes a new one for each change
/// and sends it over the channel that [`crate::run`] was given.
#[derive(Debug, Default)]
pub struct SigningKeys {
    domains: HashMap<String, HashMap<String, DomainKeys>>,
}

impl SigningKeys {
    /// Mail of this tenant from this domain (lower-case A-labels) is to be signed; with which keys is said by
    /// [`SigningKeys::add`].
    pub fn domain(&mut self, tenant: &str, domain: &str, missing: MissingKey) {
        let domains = self.domains.entry(tenant.into()).or_default();
        domains.entry(domain.into()).or_default().missing = missing;
    }

    /// This key signs; false: the domain has as many as it may.
    pub fn add(&mut self, tenant: &str, domain: &str, key: SigningKey) -> bool {
        let domains = self.domains.entry(tenant.into()).or_default();
        let keys = &mut domains.entry(domain.into()).or_default().signing;
        let room = keys.len() < KEYS_MAX;
        if room {
            keys.push(key);
            // The more widely known algorithm first: some verifiers look at one signature only.
            keys.sort_by_key(|key| (key.algorithm(), key.selector.clone()));
        }
        room
    }

    /// No mail is to be signed.
    pub fn is_empty(&self) -> bool {
        self.domains.is_empty()
    }

    /// Tenant, domain and selectors, for logs and status.
    pub fn selectors(&self) -> impl Iterator<Item = (&str, &str, Vec<&str>)> {
        self.domains.iter().flat_map(|(tenant, domains)| {
            domains.iter().map(|(domain, keys)| {
                let selectors = keys.signing.iter().map(|key| key.selector.as_str());
                (tenant.as_str(), domain.as_str(), selectors.collect())
            })
        })
    }

    pub(super) fn of(&self, tenant: &str, domain: &str) -> Option<&DomainKeys> {
        self.domains.get(tenant)?.get(domain)
    }
}
