//! DkimKey: one signing key in its life.

use serde::{Deserialize, Serialize};

use super::common::{Condition, LocalRef};
use super::relay_domain::DkimAlgorithm;

/// One signing key of a domain. The operator makes it; a person sets nothing but `revoked`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "kube",
    derive(kube::CustomResource, schemars::JsonSchema),
    kube(
        group = "postroad.dev",
        version = "v1alpha1",
        kind = "DkimKey",
        namespaced,
        status = "DkimKeyStatus",
        derive = "PartialEq",
        shortname = "dkey",
        category = "postroad",
        doc = "One DKIM signing key of a RelayDomain, made by the operator. A person sets nothing but spec.revoked.",
        printcolumn(name = "Domain", type_ = "string", json_path = ".spec.domain"),
        printcolumn(name = "Selector", type_ = "string", json_path = ".spec.selector"),
        printcolumn(name = "Algorithm", type_ = "string", json_path = ".spec.algorithm"),
        printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
        printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
    ),
    schemars(extend("x-kubernetes-validations" = [{"rule": "self.domainRef == oldSelf.domainRef && self.domain == oldSelf.domain && self.selector == oldSelf.selector && self.algorithm == oldSelf.algorithm && self.secretName == oldSelf.secretName && self.source == oldSelf.source", "message": "a key is what it is: only revoked can be set"}, {"rule": "!(has(oldSelf.revoked) && oldSelf.revoked) || (has(self.revoked) && self.revoked)", "message": "a revoked key stays revoked"}]))
)]
#[serde(rename_all = "camelCase")]
pub struct DkimKeySpec {
    /// The RelayDomain, of the same namespace.
    pub domain_ref: LocalRef,
    /// Its domain.
    #[cfg_attr(feature = "kube", schemars(schema_with = "crate::schema::host_name"))]
    pub domain: String,
    /// The record is at `<selector>._domainkey.<domain>`. Never used again for another key.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 63)))]
    pub selector: String,
    /// How it signs.
    pub algorithm: DkimAlgorithm,
    /// The Secret with the key in `private.key`, PKCS#8 PEM.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 253)))]
    pub secret_name: String,
    /// Who made it.
    pub source: KeySource,
    /// The key is known to others or lost: it must sign no more. It never goes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<bool>,
}

/// Who made a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum KeySource {
    /// The operator.
    Generated,
    /// Somebody else.
    Imported,
}

/// What the operator saw of a key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct DkimKeyStatus {
    /// Generation of the spec that was looked at last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions: Ready, KeyReady, RecordSeen, Programmed.
    #[cfg_attr(
        feature = "kube",
        schemars(length(max = 16)),
        schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))
    )]
    pub conditions: Vec<Condition>,
    /// Where it is in its life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<KeyPhase>,
    /// The record to publish.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<KeyRecord>,
    /// Time to live of the record as it was last seen, seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(range(min = 0)))]
    pub ttl_seconds: Option<u32>,
    /// When its record was seen, without being gone since.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(schema_with = "crate::schema::date_time"))]
    pub published_time: Option<String>,
    /// When it began to sign.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(schema_with = "crate::schema::date_time"))]
    pub active_time: Option<String>,
    /// When it ceased to sign.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(schema_with = "crate::schema::date_time"))]
    pub retiring_time: Option<String>,
    /// Revision of the configuration that brought its present use to the nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub programmed_revision: Option<i64>,
}

/// Where a key is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum KeyPhase {
    /// Its record was not seen yet.
    Pending,
    /// Its record was seen; nodes get it, and do not use it yet.
    Published,
    /// It signs.
    Active,
    /// It no longer signs; its record must stay.
    Retiring,
    /// Its record says that it is no longer valid.
    Retired,
    /// A person took it back.
    Revoked,
    /// Its record is gone, or its Secret cannot be read.
    Failed,
}

/// A TXT record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct KeyRecord {
    /// Its whole name.
    #[cfg_attr(feature = "kube", schemars(length(max = 253)))]
    pub name: String,
    /// Its text, as one string.
    #[cfg_attr(feature = "kube", schemars(length(max = 2048)))]
    pub value: String,
}
