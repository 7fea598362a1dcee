//! The kinds as Kubernetes sees them: their CustomResourceDefinitions, and what the derived schemas need on top.
//!
//! What is derived is put in the form that an API server wants: no `null` that could be stored (so that `has()` in a
//! rule means what it says), no number formats that it does not know, and defaults that are complete.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use kube::core::Rule;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

use crate::kind::{DeliveryPool, DkimKey, EdgePool, QueuePool, RelayCluster, RelayDomain};

/// Helm leaves an object with this annotation when the release goes: with a CRD all its objects would go too.
const KEEP: (&str, &str) = ("helm.sh/resource-policy", "keep");

/// The CustomResourceDefinitions of all kinds, in the order in which they are read.
pub fn crds() -> Vec<CustomResourceDefinition> {
    [
        RelayCluster::crd(),
        EdgePool::crd(),
        QueuePool::crd(),
        DeliveryPool::crd(),
        RelayDomain::crd(),
        DkimKey::crd(),
    ]
    .into_iter()
    .map(finish)
    .collect()
}

fn finish(crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let mut value = serde_json::to_value(crd).expect("a CRD is JSON");
    if let Some(schema) = value.pointer_mut("/spec/versions/0/schema/openAPIV3Schema") {
        tidy(schema);
    }
    let metadata = value.pointer_mut("/metadata").expect("a CRD has metadata");
    metadata["annotations"] = serde_json::json!({ KEEP.0: KEEP.1 });
    serde_json::from_value(value).expect("it is still a CRD")
}

/// Goes through a schema; properties named `default` or `format` are schemas, not keywords, and are kept.
fn tidy(schema: &mut Value) {
    let Value::Object(schema) = schema else {
        return;
    };
    schema.remove("nullable");
    let unsigned = |format: &Value| format.as_str().is_some_and(|f| f.starts_with("uint"));
    if schema.get("format").is_some_and(unsigned) {
        schema.remove("format");
    }
    match schema.get_mut("default") {
        Some(Value::Null) => {
            schema.remove("default");
        }
        Some(default) => strip_nulls(default),
        None => {}
    }
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        properties.values_mut().for_each(tidy);
    }
    for under in ["items", "additionalProperties"] {
        if let Some(schema) = schema.get_mut(under) {
            tidy(schema);
        }
    }
}

fn strip_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(strip_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(strip_nulls),
        _ => {}
    }
}

/// An object of Kubernetes' own that is passed on as it is.
pub(crate) fn any_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// A list of such objects.
pub(crate) fn any_objects(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 32,
        "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}
    })
}

/// Labels or annotations. A value is as long as Kubernetes lets all annotations of an object be, for some are programs' text.
pub(crate) fn labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 64,
        "additionalProperties": {"type": "string", "maxLength": 4096}
    })
}

/// An instant (RFC 3339).
pub(crate) fn date_time(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "format": "date-time"})
}

/// A lower-case host or domain name (A-labels).
pub(crate) fn host_name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 1,
        "maxLength": 253,
        "pattern": "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$"
    })
}

/// A mail address with a plain local part, and a domain of A-labels.
pub(crate) fn address(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 3,
        "maxLength": 318,
        "pattern": "^[A-Za-z0-9._+-]{1,64}@[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$"
    })
}

/// Names of clusters and pools: names of children and hashes fit in 63 behind them, and they become names of Services.
pub(crate) fn short_name_rule() -> Rule {
    Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$')").message(
        "the name has at most 40 lower-case letters, digits and inner hyphens, and begins with a letter",
    )
}

/// The cluster of a resource is for ever.
pub(crate) fn cluster_ref_rule() -> Value {
    json!({"rule": "self == oldSelf", "message": "clusterRef cannot be changed: make a new object"})
}

/// Networks that may be trusted.
pub(crate) fn networks_rule() -> Value {
    json!({
        "rule": "self.all(n, isCIDR(n) && cidr(n).prefixLength() > 0 && cidr(n) == cidr(n).masked())",
        "message": "each network is CIDR with no bits behind its prefix, like 192.0.2.0/24 or 2001:db8::/32, and never /0"
    })
}

/// A page that says of every field what it is: type, default, bounds and text, for people.
pub fn reference() -> String {
    let mut page = String::from(
        "# Reference of the custom resources\n\n\
         Written by `cargo run -p gen` from the types in `crates/resource/src/kind`. All kinds are of\n\
         `postroad.dev/v1alpha1`; files given with `-f` have the same fields.\n",
    );
    for crd in crds() {
        let crd = serde_json::to_value(crd).expect("a CRD is JSON");
        let text = |pointer: &str| crd.pointer(pointer).and_then(Value::as_str).unwrap_or("");
        let kind = text("/spec/names/kind");
        page += &format!(
            "\n## {kind}\n\n{} Short name `{}`.\n",
            text("/spec/versions/0/schema/openAPIV3Schema/description"),
            text("/spec/names/shortNames/0"),
        );
        for part in ["spec", "status"] {
            let at = format!("/spec/versions/0/schema/openAPIV3Schema/properties/{part}");
            let Some(schema) = crd.pointer(&at) else {
                continue;
            };
            page += "\n| field | type | default | bounds | meaning |\n|---|---|---|---|---|\n";
            rows(&mut page, part, schema);
        }
    }
    page
}

fn rows(page: &mut String, path: &str, schema: &Value) {
    let empty = Map::new();
    let required = schema.get("required").and_then(Value::as_array);
    let properties = schema["properties"].as_object().unwrap_or(&empty);
    for (name, field) in properties {
        let needed = required.is_some_and(|all| all.iter().any(|one| one == name));
        let items = &field["items"];
        let path = match items.is_object() {
            true => format!("{path}.{name}[]"),
            false => format!("{path}.{name}"),
        };
        let default = match field.get("default") {
            Some(Value::Object(_)) => String::new(),
            Some(default) => format!("`{default}`"),
            None if needed => "required".into(),
            None => String::new(),
        };
        let kind = match items["type"].as_str() {
            Some(of) => format!("list of {of}"),
            None => field["type"].as_str().unwrap_or("any").into(),
        };
        let meaning = field["description"].as_str().unwrap_or("");
        let meaning = meaning.replace(['\n', '|'], " ");
        *page += &format!(
            "| `{path}` | {kind} | {default} | {} | {meaning} |\n",
            bounds(field)
        );
        rows(page, &path, if items.is_object() { items } else { field });
    }
}

fn bounds(field: &Value) -> String {
    let mut said = Vec::new();
    let of = if field["enum"].is_array() {
        field
    } else {
        &field["items"]
    };
    if let Some(values) = of["enum"].as_array() {
        said.extend(values.iter().filter_map(Value::as_str).map(str::to_owned));
    }
    let number = |name: &str| field[name].as_f64().map(|n| format!("{n}"));
    match (number("minimum"), number("maximum")) {
        (Some(min), Some(max)) => said.push(format!("{min} to {max}")),
        (Some(min), None) => said.push(format!("at least {min}")),
        _ => {}
    }
    for (name, unit) in [("maxItems", "entries"), ("maxLength", "characters")] {
        if let Some(max) = number(name) {
            said.push(format!("at most {max} {unit}"));
        }
    }
    for rule in field["x-kubernetes-validations"]
        .as_array()
        .into_iter()
        .flatten()
    {
        said.extend(rule["message"].as_str().map(str::to_owned));
    }
    said.join("; ").replace('|', " ")
}
