//! Documents: what is declared in the form that nodes get it. Octets under a key; the queue keeps them unread.
//!
//! The messages are compiled from resources by whoever declares (the operator, `postroad apply`), and read by edge and
//! delivery nodes of perhaps another version: fields are only added, and numbers never used again.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;

/// Octets of a document's key, `Kind/namespace/name`: three names of Kubernetes (63 octets; a DkimKey's name 128).
pub const KEY_OCTETS_MAX: usize = 256;
/// Octets of a document's body. The largest that can be declared, a RelayDomain with all its targets and networks, has
/// about 8 KiB; a queue node keeps them all in memory.
pub const BODY_OCTETS_MAX: usize = 32 << 10;

/// Which nodes get a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Audience {
    /// Every role.
    All,
    /// Edge nodes.
    Edge,
    /// Delivery nodes: sealed bodies have no other audience.
    Delivery,
    /// Queue nodes.
    Queue,
}

/// What a document is of: the first part of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DocumentKind {
    /// Of [`ClusterBody`].
    RelayCluster,
    /// Of [`DomainBody`].
    RelayDomain,
    /// Of [`KeyBody`].
    DkimKey,
}

impl fmt::Display for DocumentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DocumentKind::RelayCluster => "RelayCluster",
            DocumentKind::RelayDomain => "RelayDomain",
            DocumentKind::DkimKey => "DkimKey",
        })
    }
}

/// `Kind/namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DocumentKey {
    /// What it is of.
    pub kind: DocumentKind,
    /// The resource's namespace.
    pub namespace: String,
    /// The resource's name.
    pub name: String,
}

impl DocumentKey {
    /// Of parts that were checked where they came in.
    pub fn new(kind: DocumentKind, namespace: &str, name: &str) -> DocumentKey {
        DocumentKey {
            kind,
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for DocumentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.kind, self.namespace, self.name)
    }
}

impl FromStr for DocumentKey {
    type Err = String;
    fn from_str(text: &str) -> Result<DocumentKey, String> {
        let mut parts = text.splitn(3, '/');
        let kind = match parts.next() {
            Some("RelayCluster") => DocumentKind::RelayCluster,
            Some("RelayDomain") => DocumentKind::RelayDomain,
            Some("DkimKey") => DocumentKind::DkimKey,
            _ => {
                return Err(format!(
                    "`{text}`: this program knows no documents of that kind"
                ));
            }
        };
        match (parts.next(), parts.next()) {
            (Some(namespace), Some(name)) if !namespace.is_empty() && !name.is_empty() => {
                Ok(DocumentKey::new(kind, namespace, name))
            }
            _ => Err(format!(
                "`{text}` is no key of a document: write Kind/namespace/name"
            )),
        }
    }
}

/// One declared thing, compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Names it.
    pub key: DocumentKey,
    /// `metadata.generation` of what it was compiled from; 0 for files.
    pub generation: u64,
    /// Who gets it.
    pub audience: Audience,
    /// A [`ClusterBody`], [`DomainBody`] or [`KeyBody`], by the key's kind.
    pub body: Bytes,
}

impl Document {
    pub(crate) fn of(
        key: DocumentKey,
        generation: u64,
        audience: Audience,
        body: &impl prost::Message,
    ) -> Document {
        Document {
            key,
            generation,
            audience,
            body: body.encode_to_vec().into(),
        }
    }

    /// SHA-256 of the body.
    pub fn sha256(&self) -> [u8; 32] {
        sha256(&self.body)
    }
}

/// SHA-256 of some octets.
pub fn sha256(octets: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, octets).as_ref());
    out
}

/// A RelayCluster as nodes need it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ClusterBody {
    /// DNS servers, `ip:port`; empty: as the system says.
    #[prost(string, repeated, tag = "1")]
    pub resolvers: Vec<String>,
    /// When deferred mail is tried again.
    #[prost(message, optional, tag = "2")]
    pub retry: Option<RetryBody>,
}

/// When deferred mail is tried again.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RetryBody {
    /// Seconds.
    #[prost(uint32, tag = "1")]
    pub first_seconds: u32,
    /// Seconds.
    #[prost(uint32, tag = "2")]
    pub max_seconds: u32,
    /// Hours.
    #[prost(uint32, tag = "3")]
    pub give_up_after_hours: u32,
    /// Hours; 0: never.
    #[prost(uint32, tag = "4")]
    pub delay_notice_after_hours: u32,
}

/// A RelayDomain whose claim was accepted.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DomainBody {
    /// Lower-case A-label.
    #[prost(string, tag = "1")]
    pub domain: String,
    /// Who answers for its mail: the resource's namespace.
    #[prost(string, tag = "2")]
    pub tenant: String,
    /// Mail to it is accepted.
    #[prost(message, optional, tag = "3")]
    pub inbound: Option<InboundBody>,
    /// Mail from it is accepted.
    #[prost(message, optional, tag = "4")]
    pub outbound: Option<OutboundBody>,
}

/// Mail to a domain.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InboundBody {
    /// Its class.
    #[prost(string, tag = "1")]
    pub class: String,
    /// Where it goes; empty: by MX.
    #[prost(message, repeated, tag = "2")]
    pub targets: Vec<TargetBody>,
}

/// A mail server.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct TargetBody {
    /// Name or address.
    #[prost(string, tag = "1")]
    pub host: String,
    /// TCP port.
    #[prost(uint32, tag = "2")]
    pub port: u32,
    /// 0 Opportunistic, 1 Off, 2 Required, 3 Implicit.
    #[prost(uint32, tag = "3")]
    pub tls: u32,
}

/// Mail from a domain.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OutboundBody {
    /// Its class.
    #[prost(string, tag = "1")]
    pub class: String,
    /// Whose clients may send, CIDR.
    #[prost(string, repeated, tag = "2")]
    pub networks: Vec<String>,
    /// Its mail should be signed.
    #[prost(bool, tag = "3")]
    pub sign: bool,
    /// While no key can sign, it waits; else it goes unsigned.
    #[prost(bool, tag = "4")]
    pub defer_unsigned: bool,
}

/// A DKIM key for delivery nodes.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct KeyBody {
    /// Lower-case A-label.
    #[prost(string, tag = "1")]
    pub domain: String,
    /// The record is at `<selector>._domainkey.<domain>`.
    #[prost(string, tag = "2")]
    pub selector: String,
    /// 1 RSA2048, 2 Ed25519.
    #[prost(uint32, tag = "3")]
    pub algorithm: u32,
    /// It signs; else it was only sent ahead.
    #[prost(bool, tag = "4")]
    pub active: bool,
    /// Which sealing key opens it.
    #[prost(string, tag = "5")]
    pub seal: String,
    /// 12 octets.
    #[prost(bytes = "bytes", tag = "6")]
    pub nonce: Bytes,
    /// The private key, PKCS#8 PEM, and the tag of AES-256-GCM.
    #[prost(bytes = "bytes", tag = "7")]
    pub sealed: Bytes,
}
