//! One certificate with its key.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::files::{CERTIFICATE, KEY};

/// A file above this is no certificate chain and no key: the longest real chains have some 20 KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A certificate that fits its key.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) key: Arc<CertifiedKey>,
    /// DNS names of the certificate, lower case; a wildcard as `*.example.org`.
    pub(super) names: Vec<String>,
    /// When it ends, seconds since the Unix epoch.
    pub(super) not_after: i64,
}

impl Pair {
    /// Reads the two files of `dir`; the error says what is wrong with which, and what to do.
    pub(super) fn read(dir: &Path) -> Result<Pair, String> {
        let (cert_path, key_path) = (dir.join(CERTIFICATE), dir.join(KEY));
        let wrong = |path: &Path, what: &dyn Display| format!("{}: {what}", path.display());
        let chain: Result<Vec<CertificateDer<'static>>, _> =
            CertificateDer::pem_slice_iter(&read(&cert_path)?).collect();
        let chain = chain.map_err(|error| wrong(&cert_path, &format!("is no PEM ({error})")))?;
        let leaf = chain
            .first()
            .ok_or_else(|| wrong(&cert_path, &"holds no certificate in PEM"))?;
        let (names, not_after) = facts(leaf)
            .map_err(|error| wrong(&cert_path, &format!("is no certificate ({error})")))?;
        let key = PrivateKeyDer::from_pem_slice(&read(&key_path)?)
            .map_err(|error| wrong(&key_path, &format!("holds no private key in PEM ({error})")))?;
        // Refuses a key that is not the certificate's.
        let key = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).map_err(
            |error| {
                let text = format!(
                    "does not fit {CERTIFICATE} ({error}); put both files of one certificate there"
                );
                wrong(&key_path, &text)
            },
        )?;
        Ok(Pair {
            key: Arc::new(key),
            names,
            not_after,
        })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.names.iter().any(|own| own == name)
    }

    /// The same certificate.
    pub(super) fn same(&self, other: &Pair) -> bool {
        self.key.cert == other.key.cert
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let wrong = |error: &dyn Display| format!("cannot read {}: {error}", path.display());
    let size = std::fs::metadata(path).map_err(|e| wrong(&e))?.len();
    if size > FILE_BYTES_MAX {
        return Err(wrong(&format!(
            "it has {size} octets, more than any certificate or key"
        )));
    }
    std::fs::read(path).map_err(|e| wrong(&e))
}

/// The names and the end of a certificate.
fn facts(leaf: &CertificateDer<'_>) -> Result<(Vec<String>, i64), String> {
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(|error| error.to_string())?;
    let alternative = certificate
        .subject_alternative_name()
        .map_err(|error| error.to_string())?;
    let names = alternative.map_or_else(Vec::new, |names| {
        let names = names.value.general_names.iter();
        names
            .filter_map(|name| match name {
                GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
                _ => None,
            })
            .collect()
    });
    Ok((names, certificate.validity().not_after.timestamp()))
}
