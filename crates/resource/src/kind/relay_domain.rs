//! RelayDomain: a domain that mail is relayed for.

use serde::{Deserialize, Serialize};

use super::common::{ClusterRef, Condition, DEFAULT_CLASS, LocalRef};

/// A domain that mail is relayed for: inbound (mail *to* it), outbound (mail *from* it), or both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "kube",
    derive(kube::CustomResource, schemars::JsonSchema),
    kube(
        group = "postroad.dev",
        version = "v1alpha1",
        kind = "RelayDomain",
        namespaced,
        status = "RelayDomainStatus",
        derive = "PartialEq",
        shortname = "rdom",
        category = "postroad",
        doc = "A domain that a RelayCluster relays mail for: inbound (mail to it), outbound (mail from it), or both.",
        printcolumn(name = "Domain", type_ = "string", json_path = ".spec.domain"),
        printcolumn(name = "In", type_ = "boolean", json_path = ".status.inbound", description = "mail to it is accepted"),
        printcolumn(name = "Out", type_ = "boolean", json_path = ".status.outbound", description = "mail from it is accepted"),
        printcolumn(name = "DKIM", type_ = "string", json_path = ".status.activeSelectors", description = "selectors that sign"),
        printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
        printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason", priority = 1),
        printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
        validation = kube::core::Rule::new("self.metadata.name.size() <= 63").message("the name has at most 63 characters")
    ),
    schemars(extend("x-kubernetes-validations" = [{"rule": "has(self.inbound) || has(self.outbound)", "message": "neither inbound nor outbound: write `inbound: {}` to accept mail to the domain, `outbound` to accept mail from it"}]))
)]
#[serde(rename_all = "camelCase")]
pub struct RelayDomainSpec {
    /// The cluster that it belongs to.
    #[serde(default)]
    #[cfg_attr(feature = "kube", schemars(extend("x-kubernetes-validations" = [crate::schema::cluster_ref_rule()])))]
    pub cluster_ref: ClusterRef,
    /// The domain, unique in a cluster. In files Unicode is taken to its A-label form (RFC 5890). It cannot be changed later.
    #[cfg_attr(
        feature = "kube",
        schemars(schema_with = "crate::schema::host_name"),
        schemars(extend("x-kubernetes-validations" = [{"rule": "self == oldSelf", "message": "domain cannot be changed: make a new RelayDomain"}]))
    )]
    pub domain: String,
    /// Mail to the domain is accepted.
    #[serde(default)]
    pub inbound: Option<InboundSpec>,
    /// Mail from the domain is accepted, from the networks named.
    #[serde(default)]
    pub outbound: Option<OutboundSpec>,
}

/// Mail to the domain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct InboundSpec {
    /// Where accepted mail goes; empty: by the domain's MX records.
    #[cfg_attr(feature = "kube", schemars(length(max = 16)))]
    pub targets: Vec<TargetSpec>,
}

/// A mail server behind this relay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "kube",
    derive(schemars::JsonSchema),
    schemars(extend("x-kubernetes-validations" = [{"rule": "has(self.host) != has(self.serviceRef)", "message": "write either host or serviceRef"}]))
)]
#[serde(rename_all = "camelCase")]
pub struct TargetSpec {
    /// Host name or IP address.
    #[serde(default)]
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 253)))]
    pub host: Option<String>,
    /// A Service of the same namespace. Understood on Kubernetes only; elsewhere an error that names `host`.
    #[serde(default)]
    pub service_ref: Option<LocalRef>,
    /// TCP port.
    #[serde(default = "smtp_port")]
    #[cfg_attr(feature = "kube", schemars(range(min = 1, max = 65535)))]
    pub port: u16,
    /// Whether mail goes there under TLS.
    #[serde(default)]
    pub tls: TargetTls,
}

/// Whether mail goes to a target under TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum TargetTls {
    /// Never.
    Off,
    /// By STARTTLS where it is offered, without a look at the certificate; else in clear.
    #[default]
    Opportunistic,
    /// Only by STARTTLS, and only to a server whose certificate is that of its host, of a known CA.
    Required,
}

/// Mail from the domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct OutboundSpec {
    /// The class of this mail: a DNS label. Delivery pools choose by it.
    #[cfg_attr(
        feature = "kube",
        schemars(
            length(min = 1, max = 63),
            regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
        )
    )]
    pub class: String,
    /// Client networks that may send from the domain without AUTH, as CIDR, never /0. Each must lie inside one of the
    /// cluster's `access.networks`.
    #[cfg_attr(
        feature = "kube",
        schemars(length(max = 32), inner(length(max = 49))),
        schemars(extend("x-kubernetes-validations" = [crate::schema::networks_rule()]))
    )]
    pub networks: Vec<String>,
    /// Signatures (RFC 6376).
    pub dkim: DkimSpec,
}

impl Default for OutboundSpec {
    fn default() -> OutboundSpec {
        OutboundSpec {
            class: DEFAULT_CLASS.into(),
            networks: Vec::new(),
            dkim: DkimSpec::default(),
        }
    }
}

/// Signatures of the domain's mail (RFC 6376).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "kube",
    derive(schemars::JsonSchema),
    schemars(extend("x-kubernetes-validations" = [{"rule": "(self.mode == 'Imported') == (self.keys.size() > 0)", "message": "keys are written exactly with `mode: Imported`"}]))
)]
#[serde(rename_all = "camelCase", default)]
pub struct DkimSpec {
    /// Whose keys sign.
    pub mode: DkimMode,
    /// Which keys are made and used at once, with `Managed`.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 2)))]
    pub algorithms: Vec<DkimAlgorithm>,
    /// Keys of your own, with `Imported`.
    #[cfg_attr(
        feature = "kube",
        schemars(length(max = 4)),
        schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["selector"]))
    )]
    pub keys: Vec<ImportedKey>,
    /// What selectors of made keys begin with.
    #[cfg_attr(
        feature = "kube",
        schemars(length(max = 10), regex(pattern = "^[a-z][a-z0-9]{0,9}$"))
    )]
    pub selector_prefix: String,
    /// Age at which a made key is followed by the next, days; 0: never.
    #[cfg_attr(
        feature = "kube",
        schemars(range(min = 0, max = 3650)),
        schemars(extend("x-kubernetes-validations" = [{"rule": "self == 0 || self >= 7", "message": "write 0 to never rotate, else at least 7"}]))
    )]
    pub rotate_after_days: u32,
    /// How long the record of a key that no longer signs must stay, days: mail that waits in queues is verified with it.
    #[cfg_attr(feature = "kube", schemars(range(min = 12, max = 365)))]
    pub retire_after_days: u32,
    /// What happens to mail while no key can sign.
    pub on_missing_key: OnMissingKey,
}

impl Default for DkimSpec {
    fn default() -> DkimSpec {
        DkimSpec {
            mode: DkimMode::Managed,
            algorithms: vec![DkimAlgorithm::RSA2048, DkimAlgorithm::Ed25519],
            keys: Vec::new(),
            selector_prefix: "pr".into(),
            rotate_after_days: 180,
            retire_after_days: 14,
            on_missing_key: OnMissingKey::SendUnsigned,
        }
    }
}

/// Whose keys sign.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum DkimMode {
    /// The operator's: made, published, rotated. Without Kubernetes nobody makes keys, and mail goes unsigned.
    #[default]
    Managed,
    /// Those of `keys`.
    Imported,
    /// Nobody's.
    Off,
}

/// A way of signing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum DkimAlgorithm {
    /// rsa-sha256 with 2048 bits (RFC 8301).
    RSA2048,
    /// ed25519-sha256 (RFC 8463).
    Ed25519,
}

/// A key of your own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ImportedKey {
    /// Its selector: the record is at `<selector>._domainkey.<domain>`.
    #[cfg_attr(
        feature = "kube",
        schemars(
            length(min = 1, max = 63),
            regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
        )
    )]
    pub selector: String,
    /// The Secret with the key in `private.key`, PKCS#8 PEM.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 253)))]
    pub secret_name: String,
}

/// What happens to mail while no key can sign.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum OnMissingKey {
    /// It goes without signature.
    #[default]
    SendUnsigned,
    /// It waits.
    Defer,
}

/// What the operator saw of a domain.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct RelayDomainStatus {
    /// Generation of the spec that was looked at last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions: Ready, Accepted, OwnershipVerified, DKIMReady, DNSReady, Programmed.
    #[cfg_attr(
        feature = "kube",
        schemars(length(max = 16)),
        schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))
    )]
    pub conditions: Vec<Condition>,
    /// Mail to it is accepted: `spec.inbound` is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inbound: Option<bool>,
    /// Mail from it is accepted: `spec.outbound` is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbound: Option<bool>,
    /// Revision of the configuration that brought this generation to the nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub programmed_revision: Option<i64>,
    /// Selectors that sign.
    #[cfg_attr(feature = "kube", schemars(length(max = 8), inner(length(max = 63))))]
    pub active_selectors: Vec<String>,
    /// When the next key is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(schema_with = "crate::schema::date_time"))]
    pub next_rotation_time: Option<String>,
    /// TXT record that proves the claim: its value, at `_postroad-challenge.<domain>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(max = 255)))]
    pub ownership_record: Option<String>,
    /// Records that the domain should have, and what was found.
    #[cfg_attr(
        feature = "kube",
        schemars(length(max = 32)),
        schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name", "type", "purpose"]))
    )]
    pub dns_records: Vec<DnsRecord>,
}

/// A record that a domain should have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct DnsRecord {
    /// Its whole name.
    #[cfg_attr(feature = "kube", schemars(length(max = 253)))]
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    #[cfg_attr(feature = "kube", schemars(length(max = 8)))]
    pub type_: String,
    /// What it should be.
    #[cfg_attr(feature = "kube", schemars(length(max = 8), inner(length(max = 2048))))]
    pub values: Vec<String>,
    /// What was found.
    #[serde(default)]
    #[cfg_attr(feature = "kube", schemars(length(max = 8), inner(length(max = 2048))))]
    pub observed: Vec<String>,
    /// What it is for.
    pub purpose: DnsPurpose,
    /// How the two compare.
    pub state: DnsState,
}

/// What a record is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum DnsPurpose {
    /// Mail to the domain.
    MX,
    /// Who may send from it.
    SPF,
    /// A signing key.
    DKIM,
    /// A signing key that is no longer valid.
    DKIMRevoked,
    /// What receivers should do.
    DMARC,
    /// Proves a claim.
    Ownership,
}

/// How a record compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum DnsState {
    /// As it should be.
    Present,
    /// Not there.
    Missing,
    /// There, but other.
    Mismatch,
    /// No answer that counts.
    Unknown,
}

fn smtp_port() -> u16 {
    25
}
