//! What people declare, and what nodes make of it.
//!
//! A person writes resources ([`RelayDomainSpec`], [`RelayClusterSpec`], [`EdgePoolSpec`], …) as YAML. [`load_dir`]
//! takes those texts through *parse*, *default* and *validate* to [`Document`]s, and these to a [`Catalog`]: the questions
//! that an edge or a delivery node asks, already answered. The operator and `postroad apply` make the same documents, which
//! reach nodes by way of the queue. A catalog is valid because it exists; every error says file, document,
//! field and what to write instead.
//!
//! This is a core: it reads no files and no clock. Whoever has the directory passes names and texts.
//!
//! ```text
//! kind/         the resources with their defaults, field by field; with the feature `kube` custom resources too
//! parse.rs      texts to resources: one YAML document, one resource
//! validate.rs   single values: domain names, hosts, networks, sizes, bounds
//! spec.rs       one resource to the document that nodes get
//! compile.rs    a directory to documents; what holds between several resources
//! ownership.rs  which claims to domains count
//! dkim.rs       records of signing keys: what to publish, and whether it was
//! document.rs   documents: octets under a key, which the queue keeps unread
//! seal.rs       private keys travel so that only delivery nodes can read them
//! table.rs      documents to a Catalog, as they come and go
//! catalog.rs    the questions that nodes ask
//! schema.rs     CustomResourceDefinitions and the reference page (feature `kube`)
//! ```

mod catalog;
mod compile;
pub mod dkim;
pub mod document;
mod error;
mod kind;
mod ownership;
mod parse;
mod pem;
#[cfg(feature = "kube")]
mod schema;
pub mod seal;
pub mod spec;
mod table;
mod validate;

pub use catalog::{
    Catalog, DeliverySettings, Dkim, EdgeSettings, Host, Inbound, Principal, Retry, Route, Target,
    TlsPolicy,
};
pub use compile::{Compiled, KeyFile, algorithm_of, compile_dir, load_dir};
pub use document::{Audience, Document, DocumentKey, DocumentKind};
pub use error::{Invalid, Problem};
pub use kind::*;
pub use ownership::{
    CHALLENGE_LABEL, Claim, Cluster, NAMESPACE_NAME_LABEL, Refusal, admits, challenge, judge,
};
pub use parse::Metadata;
pub use pem::{private_key, private_pem};
#[cfg(feature = "kube")]
pub use schema::{crds, reference};
pub use table::{Documents, Key};
pub use validate::{DOMAIN_OCTETS_MAX, parse_domain, parse_quantity, parse_resolver};
