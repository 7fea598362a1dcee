//! What people declare, and what nodes make of it.
//!
//! A person writes resources ([`RelayDomain`], [`RelayCluster`], [`EdgePool`], [`DeliveryPool`]) as YAML. [`load_dir`]
//! takes those texts through *parse*, *default* and *validate* to a [`Catalog`]: the questions that an edge or a
//! delivery node asks, already answered. A catalog is valid because it exists; every error says file, document,
//! field and what to write instead.
//!
//! This is a core: it reads no files and no clock. Whoever has the directory passes names and texts.
//!
//! ```text
//! parse.rs      texts to documents: one YAML document, one resource
//! kind.rs       the resources with their defaults, field by field
//! validate.rs   single values: domain names, hosts, networks, sizes, bounds
//! compile.rs    documents to a Catalog; what holds between several of them
//! catalog.rs    the questions that nodes ask
//! ```

mod catalog;
mod compile;
mod error;
mod kind;
mod parse;
mod validate;

pub use catalog::{
    Catalog, DeliverySettings, EdgeSettings, Host, Inbound, Principal, Retry, Route, Target,
};
pub use compile::load_dir;
pub use error::{Invalid, Problem};
pub use kind::{
    API_VERSION, Access, DEFAULT_CLASS, DEFAULT_NAMESPACE, DeliveryLimits, DeliveryPool, Dns,
    EdgeLimits, EdgePool, Egress, InboundSpec, Metadata, OutboundSpec, RelayCluster, RelayDomain,
    RetrySpec, SmartHost, TargetSpec, Timeouts,
};
pub use validate::{DOMAIN_OCTETS_MAX, parse_domain};
