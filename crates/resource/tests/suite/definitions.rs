//! The kinds as an API server would see them: what it fills in, what its rules refuse, and how large they are.

use kube::core::cel::Validator;
use resource::{
    DeliveryPoolSpec, DkimKeySpec, EdgePoolSpec, QueuePoolSpec, RelayClusterSpec, RelayDomainSpec,
    crds,
};
use serde_json::{Value, json};

/// Client-side apply keeps the whole object in an annotation of 262,144 octets; a fifth of that is a sane definition.
const DEFINITION_OCTETS_MAX: usize = 60_000;

fn schema(kind: &str) -> Value {
    let crd = crds().into_iter().find(|crd| crd.spec.names.kind == kind);
    let crd = serde_json::to_value(crd.expect("a kind of ours")).unwrap();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

/// What the API server does before it validates.
fn fill_in(schema: &Value, value: &mut Value) {
    if let (Some(properties), Value::Object(map)) = (schema["properties"].as_object(), &mut *value)
    {
        for (name, schema) in properties {
            if !map.contains_key(name) && !schema["default"].is_null() {
                map.insert(name.clone(), schema["default"].clone());
            }
            if let Some(value) = map.get_mut(name) {
                fill_in(schema, value);
            }
        }
    }
    if let Value::Array(list) = value {
        list.iter_mut()
            .for_each(|one| fill_in(&schema["items"], one));
    }
}

fn object(kind: &str, name: &str, spec: Value) -> Value {
    let mut object = json!({"metadata": {"name": name}, "spec": spec});
    fill_in(&schema(kind), &mut object);
    object
}

/// The messages of rules that refuse it.
fn refused(kind: &str, new: &Value, old: Option<&Value>) -> String {
    match Validator::new().validate(&schema(kind), new, old) {
        Ok(_) => String::new(),
        Err(errors) => errors.to_string(),
    }
}

fn create(kind: &str, spec: Value) -> String {
    refused(kind, &object(kind, "a", spec), None)
}

fn update(kind: &str, old: Value, new: Value) -> String {
    let (old, new) = (object(kind, "a", old), object(kind, "a", new));
    refused(kind, &new, Some(&old))
}

#[test]
fn what_the_api_server_fills_in_is_what_files_get() {
    macro_rules! same {
        ($spec:ty, $kind:literal, $written:expr) => {
            let written: Value = $written;
            let from_file: $spec = serde_json::from_value(written.clone()).unwrap();
            let stored = object($kind, "a", written)["spec"].clone();
            let from_server: $spec = serde_json::from_value(stored).unwrap();
            assert_eq!(from_server, from_file, $kind);
        };
    }
    same!(RelayClusterSpec, "RelayCluster", json!({}));
    same!(
        RelayClusterSpec,
        "RelayCluster",
        json!({"access": {"networks": ["10.0.0.0/8"]}, "dns": {}})
    );
    same!(
        EdgePoolSpec,
        "EdgePool",
        json!({"listeners": [{"name": "smtp", "protocol": "SMTP", "port": 25}]})
    );
    same!(
        QueuePoolSpec,
        "QueuePool",
        json!({"storage": {"size": "30Gi"}})
    );
    same!(
        DeliveryPoolSpec,
        "DeliveryPool",
        json!({"egress": {"smartHost": {"host": "h.example"}}})
    );
    same!(
        RelayDomainSpec,
        "RelayDomain",
        json!({"domain": "a.example", "inbound": {"targets": [{"host": "h"}]}, "outbound": {"dkim": {}}})
    );
    same!(
        DkimKeySpec,
        "DkimKey",
        json!({"domainRef": {"name": "a"}, "domain": "a.example", "selector": "s", "algorithm": "Ed25519", "secretName": "x", "source": "Generated"})
    );
}

#[test]
fn the_defaults_pass_their_own_rules() {
    for kind in ["RelayCluster", "QueuePool", "DeliveryPool"] {
        assert_eq!(create(kind, json!({})), "", "{kind}");
    }
    let listeners = json!([{"name": "smtp", "protocol": "SMTP", "port": 25}, {"name": "tls", "protocol": "Submissions", "port": 465, "tls": {"mode": "Implicit", "secretNames": ["public"]}}]);
    assert_eq!(create("EdgePool", json!({"listeners": listeners})), "");
    assert_eq!(
        create(
            "RelayDomain",
            json!({"domain": "a.example", "outbound": {"networks": ["10.0.0.0/8", "2001:db8::/32"]}})
        ),
        ""
    );
}

#[test]
fn rules_refuse_with_what_to_do() {
    for (kind, spec, text) in [
        (
            "QueuePool",
            json!({"replicas": 2}),
            "fewer nodes than copies: replicas must be at least replicationFactor",
        ),
        (
            "QueuePool",
            json!({"replicationFactor": 2}),
            "a shard has 1, 3 or 5 copies",
        ),
        ("QueuePool", json!({"shards": 12}), "a power of two"),
        (
            "QueuePool",
            json!({"storage": {"size": "1Gi"}}),
            "at least 2Gi",
        ),
        (
            "QueuePool",
            json!({"replaceAfterSeconds": 5}),
            "write 0 to never replace a node",
        ),
        ("EdgePool", json!({}), "listeners is needed"),
        (
            "EdgePool",
            json!({"listeners": [{"name": "a", "protocol": "SMTP", "port": 25}, {"name": "b", "protocol": "SMTP", "port": 25}]}),
            "the same port",
        ),
        (
            "EdgePool",
            json!({"listeners": [{"name": "a", "protocol": "SMTP", "port": 25, "tls": {"mode": "Implicit"}}]}),
            "is what Submissions means",
        ),
        (
            "EdgePool",
            json!({"listeners": [
                {"name": "a", "protocol": "SMTP", "port": 25, "tls": {"secretNames": ["s"]}},
                {"name": "b", "protocol": "Submission", "port": 587, "tls": {"mode": "Required"}},
            ]}),
            "the same on all listeners",
        ),
        (
            "EdgePool",
            json!({"listeners": [{"name": "a", "protocol": "SMTP", "port": 25, "tls": {"mode": "Required"}}]}),
            "needs a certificate",
        ),
        (
            "EdgePool",
            json!({"listeners": [{"name": "a", "protocol": "Submissions", "port": 465}]}),
            "needs a certificate",
        ),
        (
            "EdgePool",
            json!({"listeners": [{"name": "a", "protocol": "SMTP", "port": 25}], "limits": {"messageSize": "2Gi"}}),
            "from 64Ki to 128Mi",
        ),
        (
            "RelayCluster",
            json!({"internalTLS": {"caDays": 30, "leafDays": 30}}),
            "four times as long",
        ),
        (
            "RelayCluster",
            json!({"access": {"allowedNamespaces": {"from": "Selector"}}}),
            "exactly with `from: Selector`",
        ),
        (
            "RelayCluster",
            json!({"access": {"networks": ["0.0.0.0/0"]}}),
            "never /0",
        ),
        (
            "RelayCluster",
            json!({"retry": {"firstSeconds": 600, "maxSeconds": 300}}),
            "at least firstSeconds",
        ),
        (
            "RelayDomain",
            json!({"domain": "a.example"}),
            "neither inbound nor outbound",
        ),
        (
            "RelayDomain",
            json!({"domain": "a.example", "inbound": {"targets": [{"port": 25}]}}),
            "write either host or serviceRef",
        ),
        (
            "RelayDomain",
            json!({"domain": "a.example", "outbound": {"networks": ["10.0.0.1/8"]}}),
            "no bits behind its prefix",
        ),
        (
            "RelayDomain",
            json!({"domain": "a.example", "outbound": {"dkim": {"mode": "Imported"}}}),
            "exactly with `mode: Imported`",
        ),
    ] {
        let said = create(kind, spec.clone());
        assert!(
            said.contains(text),
            "{kind} {spec}: {said:?} instead of {text:?}"
        );
    }
    let long = object("RelayCluster", &"a".repeat(41), json!({}));
    assert!(refused("RelayCluster", &long, None).contains("at most 40"));
}

#[test]
fn what_is_for_ever_cannot_be_changed() {
    let key = |revoked: bool| json!({"domainRef": {"name": "a"}, "domain": "a.example", "selector": "s", "algorithm": "Ed25519", "secretName": "x", "source": "Generated", "revoked": revoked});
    for (kind, old, new, text) in [
        (
            "QueuePool",
            json!({}),
            json!({"shards": 32}),
            "shards cannot be changed",
        ),
        (
            "QueuePool",
            json!({}),
            json!({"storage": {"size": "10Gi"}}),
            "never shrinks",
        ),
        (
            "QueuePool",
            json!({}),
            json!({"storage": {"storageClassName": "fast"}}),
            "storageClassName cannot be changed",
        ),
        (
            "QueuePool",
            json!({}),
            json!({"clusterRef": {"name": "other"}}),
            "clusterRef cannot be changed",
        ),
        (
            "RelayDomain",
            json!({"domain": "a.example", "inbound": {}}),
            json!({"domain": "b.example", "inbound": {}}),
            "domain cannot be changed",
        ),
        ("DkimKey", key(true), key(false), "stays revoked"),
    ] {
        let said = update(kind, old.clone(), new.clone());
        assert!(
            said.contains(text),
            "{kind} {old} to {new}: {said:?} instead of {text:?}"
        );
    }
    assert_eq!(
        update(
            "QueuePool",
            json!({}),
            json!({"replicas": 5, "storage": {"size": "30Gi"}})
        ),
        ""
    );
    assert_eq!(update("DkimKey", key(false), key(true)), "");
}

/// Goes through a schema and names what an API server or a rule's cost estimate would not like.
fn faults(path: &str, schema: &Value, found: &mut Vec<String>) {
    let mut fault = |text: &str| found.push(format!("{path}: {text}"));
    if !schema["nullable"].is_null() {
        fault("null could be stored");
    }
    let format = schema["format"].as_str();
    if format.is_some_and(|f| !["int32", "int64", "date-time"].contains(&f)) {
        fault("a format that servers do not know");
    }
    match schema["type"].as_str() {
        Some("string")
            if schema["maxLength"].is_null() && schema["enum"].is_null() && format.is_none() =>
        {
            fault("no maxLength");
        }
        Some("array") if schema["maxItems"].is_null() => fault("no maxItems"),
        None => fault("no type"),
        _ => {}
    }
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        faults(&format!("{path}.{name}"), schema, found);
    }
    if schema["items"].is_object() {
        faults(&format!("{path}[]"), &schema["items"], found);
    }
}

#[test]
fn definitions_are_small_and_bounded() {
    for crd in crds() {
        let kind = crd.spec.names.kind.clone();
        let octets = serde_json::to_string(&crd).unwrap().len();
        assert!(octets < DEFINITION_OCTETS_MAX, "{kind}: {octets} octets");
        let mut found = Vec::new();
        for part in ["spec", "status"] {
            faults(part, &schema(&kind)["properties"][part], &mut found);
        }
        assert!(found.is_empty(), "{kind}:\n{}", found.join("\n"));
    }
}
