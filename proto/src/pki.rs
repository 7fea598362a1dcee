//! Certificates without Kubernetes: one CA for the cluster, one certificate for each node.
//!
//! `init` writes `ca.crt` and `ca.key`; `issue` writes `ca.crt`, `tls.crt` and `tls.key`, which is what
//! [`crate::tls::NodeTls::load`] reads. Nothing is ever overwritten.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};

use crate::identity::{Identity, Role, check_name};

/// The cluster's certificates, all that a node trusts.
pub const CA_CERTIFICATE: &str = "ca.crt";
/// The CA's key: stays where `init` wrote it.
pub const CA_KEY: &str = "ca.key";
/// A node's certificate.
pub const NODE_CERTIFICATE: &str = "tls.crt";
/// A node's key.
pub const NODE_KEY: &str = "tls.key";

/// A CA lives as long as a cluster; replacing it is a migration.
const CA_VALIDITY: Duration = Duration::from_secs(3650 * 24 * 60 * 60);
/// Short enough that rotation is practised, long enough for a machine without an operator.
const NODE_VALIDITY: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// Certificates begin this long before they are made: clocks of machines differ.
const BACKDATED: Duration = Duration::from_secs(60 * 60);

/// Why no certificate was made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file or folder could not be written or read.
    #[error("cannot {what} {path}: {source}")]
    File {
        /// Write, read or create.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is there already.
    #[error(
        "{0} exists and is not overwritten; choose another --out, or move it away if it is no longer used"
    )]
    Exists(PathBuf),
    /// A name that cannot stand in an identity.
    #[error("{0}")]
    Name(String),
    /// The CA's files are not what `init` writes.
    #[error("{path}: {problem}; a CA is made with: postroad pki init --cluster NAME --out DIR")]
    BadCa {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The library refused, which no input should cause.
    #[error("cannot make the certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The private key, PKCS#8.
    pub key: String,
}

/// Makes a CA for the cluster: `ca.crt` and `ca.key` (mode 0600) in `dir`.
pub fn init(cluster: &str, dir: &Path) -> Result<(), PkiError> {
    let (cert_path, key_path) = (dir.join(CA_CERTIFICATE), dir.join(CA_KEY));
    check_name("cluster name", cluster).map_err(PkiError::Name)?;
    refuse_existing(&[&cert_path, &key_path])?;
    let ca = make_ca(cluster, SystemTime::now(), CA_VALIDITY)?;
    create_dir(dir)?;
    write_new(&key_path, &ca.key, 0o600)?;
    write_new(&cert_path, &ca.certificate, 0o644)
}

/// Makes a CA for the cluster: what [`init`] writes.
pub fn make_ca(cluster: &str, now: SystemTime, validity: Duration) -> Result<Pair, PkiError> {
    check_name("cluster name", cluster).map_err(PkiError::Name)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Postroad CA of {cluster}"));
    // `issue` reads the cluster's name from here, so that nobody types it twice.
    params.subject_alt_names = vec![SanType::URI(cluster_uri(cluster).try_into()?)];
    valid_for(&mut params, validity, now);
    let certificate = params.self_signed(&key)?.pem();
    let key = key.serialize_pem();
    Ok(Pair { certificate, key })
}

/// When the first certificate of this PEM ends, seconds since the Unix epoch; `None` when there is none.
pub fn not_after(pem: &[u8]) -> Option<i64> {
    let (_, first) = x509_parser::pem::parse_x509_pem(pem).ok()?;
    let certificate = first.parse_x509().ok()?;
    Some(certificate.validity().not_after.timestamp())
}

/// Makes a node's certificate with the CA in `ca_dir`: `ca.crt`, `tls.crt`, `tls.key` (mode 0600) in `out`.
/// `name` is the pool's or the node's name; for queue nodes the node id.
pub fn issue(ca_dir: &Path, role: Role, name: &str, out: &Path) -> Result<Identity, PkiError> {
    issue_until(ca_dir, role, name, out, SystemTime::now(), NODE_VALIDITY)
}

/// [`issue`] with its time as an argument.
pub(crate) fn issue_until(
    ca_dir: &Path,
    role: Role,
    name: &str,
    out: &Path,
    now: SystemTime,
    validity: Duration,
) -> Result<Identity, PkiError> {
    let (ca_path, ca_key_path) = (ca_dir.join(CA_CERTIFICATE), ca_dir.join(CA_KEY));
    let certificate = read(&ca_path)?;
    cluster_of(&certificate).map_err(|problem| bad_ca(&ca_path, problem))?;
    let ca = Pair {
        certificate,
        key: read(&ca_key_path)?,
    };
    let (trust, cert_path, key_path) = (
        out.join(CA_CERTIFICATE),
        out.join(NODE_CERTIFICATE),
        out.join(NODE_KEY),
    );
    let (identity, node) = make_leaf_in(&ca, ca_dir, role, name, now, validity)?;
    refuse_existing(&[&cert_path, &key_path])?;
    // The CA's own folder may be the output: the same trust is no overwriting.
    let trust_is_there = fs::read_to_string(&trust).is_ok_and(|found| found == ca.certificate);
    if !trust_is_there {
        refuse_existing(&[&trust])?;
    }
    create_dir(out)?;
    write_new(&key_path, &node.key, 0o600)?;
    write_new(&cert_path, &node.certificate, 0o644)?;
    if !trust_is_there {
        write_new(&trust, &ca.certificate, 0o644)?;
    }
    Ok(identity)
}

/// Makes a node's certificate: what [`issue`] writes. The cluster is the CA's.
pub fn make_leaf(
    ca: &Pair,
    role: Role,
    name: &str,
    now: SystemTime,
    validity: Duration,
) -> Result<Pair, PkiError> {
    make_leaf_in(ca, Path::new(""), role, name, now, validity).map(|(_, leaf)| leaf)
}

/// [`make_leaf`] with a CA that was read from a folder, which an error names.
fn make_leaf_in(
    ca: &Pair,
    ca_dir: &Path,
    role: Role,
    name: &str,
    now: SystemTime,
    validity: Duration,
) -> Result<(Identity, Pair), PkiError> {
    let (ca_path, ca_key_path) = (ca_dir.join(CA_CERTIFICATE), ca_dir.join(CA_KEY));
    let cluster = cluster_of(&ca.certificate).map_err(|problem| bad_ca(&ca_path, problem))?;
    let identity = Identity::new(&cluster, role, name).map_err(PkiError::Name)?;
    if role == Role::Queue && !name.parse::<u32>().is_ok_and(|node| node > 0) {
        return Err(PkiError::Name(format!(
            "a queue node is named by its node id, 1 to {}; got {name:?}",
            u32::MAX
        )));
    }
    let ca_key = KeyPair::from_pem(&ca.key)
        .map_err(|e| bad_ca(&ca_key_path, format!("holds no private key ({e})")))?;
    let issuer = Issuer::from_ca_cert_pem(&ca.certificate, ca_key)
        .map_err(|e| bad_ca(&ca_path, format!("holds no CA certificate ({e})")))?;

    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params
        .distinguished_name
        .push(DnType::CommonName, format!("{role} {name}"));
    params.subject_alt_names = vec![SanType::URI(identity.uri().try_into()?)];
    params.use_authority_key_identifier_extension = true;
    valid_for(&mut params, validity, now);
    let certificate = params.signed_by(&key, &issuer)?.pem();
    let key = key.serialize_pem();
    Ok((identity, Pair { certificate, key }))
}

fn bad_ca(path: &Path, problem: String) -> PkiError {
    PkiError::BadCa {
        path: path.into(),
        problem,
    }
}

fn cluster_uri(cluster: &str) -> String {
    format!("spiffe://{cluster}")
}

/// The cluster's name from the CA's own URI.
fn cluster_of(ca_pem: &str) -> Result<String, String> {
    let der = CertificateDer::from_pem_slice(ca_pem.as_bytes())
        .map_err(|e| format!("holds no certificate in PEM ({e})"))?;
    let cert =
        webpki::EndEntityCert::try_from(&der).map_err(|e| format!("cannot be read ({e})"))?;
    cert.valid_uri_names()
        .find_map(|uri| uri.strip_prefix("spiffe://").map(str::to_owned))
        .filter(|cluster| !cluster.contains('/'))
        .ok_or_else(|| "names no cluster (no URI spiffe://<cluster>)".to_owned())
}

fn valid_for(params: &mut CertificateParams, validity: Duration, now: SystemTime) {
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + validity).into();
}

fn refuse_existing(paths: &[&Path]) -> Result<(), PkiError> {
    match paths.iter().find(|path| path.symlink_metadata().is_ok()) {
        Some(path) => Err(PkiError::Exists(path.to_path_buf())),
        None => Ok(()),
    }
}

fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|source| PkiError::File {
        what: "read",
        path: path.into(),
        source,
    })
}

fn create_dir(dir: &Path) -> Result<(), PkiError> {
    fs::create_dir_all(dir).map_err(|source| PkiError::File {
        what: "create",
        path: dir.into(),
        source,
    })
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let fail = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => PkiError::Exists(path.into()),
        _ => PkiError::File {
            what: "write",
            path: path.into(),
            source,
        },
    };
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(fail)?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_certificate_says_when_it_ends() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let ca = make_ca("mail.prod", now, Duration::from_secs(600)).unwrap();
        assert_eq!(not_after(ca.certificate.as_bytes()), Some(1_800_000_600));
        assert_eq!(not_after(ca.key.as_bytes()), None);
        assert_eq!(not_after(b""), None);
    }

    #[test]
    fn nothing_is_overwritten_and_keys_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let (ca, out) = (dir.path().join("ca"), dir.path().join("node"));
        init("mail.prod", &ca).unwrap();
        assert!(matches!(init("mail.prod", &ca), Err(PkiError::Exists(_))));
        let id = issue(&ca, Role::Queue, "3", &out).unwrap();
        assert_eq!(id.uri(), "spiffe://mail.prod/queue/3");
        assert!(matches!(
            issue(&ca, Role::Queue, "3", &out),
            Err(PkiError::Exists(_))
        ));
        for key in [ca.join(CA_KEY), out.join(NODE_KEY)] {
            assert_eq!(
                fs::metadata(key).unwrap().permissions().mode() & 0o777,
                0o600
            );
        }
        assert!(issue(&ca, Role::Queue, "three", &dir.path().join("x")).is_err());
        assert!(issue(&ca, Role::Edge, "a/b", &dir.path().join("x")).is_err());
        let error = issue(dir.path(), Role::Edge, "a", &dir.path().join("x")).unwrap_err();
        assert!(error.to_string().contains("cannot read"), "{error}");
    }
}
