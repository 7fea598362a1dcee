//! The objects of pools as the API server would get them.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use resource::{DeliveryPool, EdgePool, RelayCluster, RelayClusterSpec};
use serde_json::{Value, json};

use super::{build, delivery, edge, scaled};
use crate::conditions::{Conditions, find};
use crate::names;

fn edge_pool(spec: Value) -> EdgePool {
    let mut pool = EdgePool::new("front", serde_json::from_value(spec).expect("a good spec"));
    pool.metadata.namespace = Some("mail".into());
    pool.metadata.uid = Some("u".into());
    pool
}

fn cluster() -> RelayCluster {
    RelayCluster::new("postroad", RelayClusterSpec::default())
}

fn argument(deployment: &Value, flag: &str) -> Option<String> {
    let args = deployment["spec"]["template"]["spec"]["containers"][0]["args"].as_array()?;
    let at = args.iter().position(|arg| arg == flag)?;
    Some(args.get(at + 1)?.as_str()?.to_owned())
}

/// What pod security `restricted` asks of every pod.
pub fn assert_restricted(pod: &Value) {
    let spec = &pod["spec"];
    assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
    assert_eq!(
        spec["securityContext"]["seccompProfile"]["type"],
        "RuntimeDefault"
    );
    assert_eq!(
        spec["automountServiceAccountToken"], false,
        "a node needs no API server"
    );
    for container in spec["containers"].as_array().expect("containers") {
        let context = &container["securityContext"];
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["readOnlyRootFilesystem"], true);
        assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
        let mounts = container["volumeMounts"].as_array().expect("mounts");
        assert!(
            mounts.iter().all(|mount| mount["subPath"].is_null()),
            "a subPath is never updated"
        );
    }
}

#[test]
fn a_listener_without_tls_gets_none_from_the_certificate_of_another() {
    let pool = |mode: &str| {
        let plain = json!({"name": "smtp", "protocol": "SMTP", "port": 25, "tls": {"mode": mode}});
        let implicit = json!({"name": "smtps", "protocol": "Submissions", "port": 465, "tls": {"secretNames": ["a"]}});
        edge_pool(json!({"listeners": [plain, implicit]}))
    };
    for (mode, wanted) in [
        ("Disabled", Some("--no-starttls")),
        ("Required", Some("--require-starttls")),
        ("Optional", None),
    ] {
        let pool = pool(mode);
        let name = edge::name(&pool, "mail");
        let deployment = edge::build(&pool, &cluster(), &name, "image:1", "q:7100");
        let args = deployment["spec"]["template"]["spec"]["containers"][0]["args"].to_string();
        for flag in ["--no-starttls", "--require-starttls"] {
            assert_eq!(args.contains(flag), wanted == Some(flag), "{mode}: {args}");
        }
    }
}

#[test]
fn an_edge_listens_where_it_may_and_drains_longer_than_clients_come() {
    let pool = edge_pool(json!({
        "replicas": 3, "drainSeconds": 30,
        "listeners": [
            {"name": "smtp", "protocol": "SMTP", "port": 25, "tls": {"secretNames": ["a", "b"]}},
            {"name": "smtps", "protocol": "Submissions", "port": 465, "tls": {"secretNames": ["b"]}},
        ],
    }));
    let name = edge::name(&pool, "mail");
    let deployment = edge::build(&pool, &cluster(), &name, "image:1", "q:7100");
    assert_eq!(deployment["metadata"]["name"], "front-edge");
    assert_eq!(deployment["spec"]["replicas"], 3);
    assert_eq!(
        argument(&deployment, "--listen").as_deref(),
        Some("0.0.0.0:2525")
    );
    assert_eq!(
        argument(&deployment, "--listen-tls").as_deref(),
        Some("0.0.0.0:2965")
    );
    assert_eq!(argument(&deployment, "--tls-default").as_deref(), Some("a"));
    let pod = &deployment["spec"]["template"];
    assert_restricted(pod);
    assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], 45);
    let selector = &deployment["spec"]["selector"]["matchLabels"];
    for (label, value) in selector.as_object().expect("labels") {
        assert_eq!(&pod["metadata"]["labels"][label], value);
    }
    let service = edge::service(&pool, &name, true);
    assert_eq!(service["spec"]["ports"][0]["port"], 25);
    assert!(
        service["spec"]["externalTrafficPolicy"].is_null(),
        "a ClusterIP has none"
    );
}

#[test]
fn no_service_hides_clients_before_every_node_knows_it() {
    let pool = |policy: &str| {
        edge_pool(json!({
            "listeners": [{"name": "smtp", "protocol": "SMTP", "port": 25}],
            "service": {"type": "LoadBalancer", "externalTrafficPolicy": policy},
        }))
    };
    let policy = |pool: &EdgePool, hides| {
        let name = edge::name(pool, "mail");
        edge::service(pool, &name, hides)["spec"]["externalTrafficPolicy"].clone()
    };
    let knows = |pool: &EdgePool| {
        let name = edge::name(pool, "mail");
        let deployment = edge::build(pool, &cluster(), &name, "image:1", "q:7100");
        let pod = deployment["spec"]["template"].clone();
        edge::knows_of_hidden_clients(&serde_json::from_value(pod).expect("a pod"))
    };
    let (local, hidden) = (pool("Local"), pool("Cluster"));
    assert!(!knows(&local) && knows(&hidden));
    assert_eq!(policy(&hidden, false), "Local");
    assert_eq!(policy(&hidden, true), "Cluster");
    assert_eq!(policy(&local, true), "Local");
}

#[test]
fn only_delivery_pods_get_the_sealing_key() {
    let pool = edge_pool(json!({"listeners": [{"name": "smtp", "protocol": "SMTP", "port": 25}]}));
    let name = edge::name(&pool, "mail");
    let edges = edge::build(&pool, &cluster(), &name, "image:1", "q:7100").to_string();
    assert!(!edges.contains(&names::seal_secret("postroad")));

    let mut pool = DeliveryPool::new(
        "out",
        serde_json::from_value(json!({})).expect("all defaults"),
    );
    pool.metadata.uid = Some("u".into());
    let name = delivery::name(&pool, "mail");
    let named = edge_pool(json!({"hostname": "mx.example.org"}));
    let edges = [edge_pool(json!({})), named];
    let deployment = delivery::build(&pool, &cluster(), &name, "image:1", "q:7100", &edges);
    // What its edges are called is nowhere else to be known.
    let own = argument(&deployment, "--own-names");
    assert_eq!(own.as_deref(), Some("front-edge.mail.svc,mx.example.org"));
    let alone = delivery::build(&pool, &cluster(), &name, "image:1", "q:7100", &[]);
    assert_eq!(argument(&alone, "--own-names"), None);
    assert!(
        deployment
            .to_string()
            .contains(&names::seal_secret("postroad"))
    );
    assert_restricted(&deployment["spec"]["template"]);
}

#[test]
fn a_single_node_has_no_disruption_budget() {
    let pool = edge_pool(json!({}));
    let name = edge::name(&pool, "mail");
    assert!(build::disruption_budget(&name, &json!([]), 1).is_none());
    assert!(build::disruption_budget(&name, &json!([]), 2).is_some());
}

#[test]
fn a_node_asks_for_a_little_unless_people_say_otherwise() {
    let resources = |spec: Value| {
        let pool = edge_pool(spec);
        let name = edge::name(&pool, "mail");
        let deployment = edge::build(&pool, &cluster(), &name, "image:1", "q:7100");
        deployment["spec"]["template"]["spec"]["containers"][0]["resources"].clone()
    };
    let usual = json!({"requests": {"cpu": "100m", "memory": "128Mi"}});
    assert_eq!(resources(json!({})), usual);
    let own = json!({"limits": {"memory": "1Gi"}});
    assert_eq!(resources(json!({"template": {"resources": own}})), own);
    assert_eq!(resources(json!({"template": {"resources": {}}})), json!({}));
}

#[test]
fn labels_of_people_do_not_replace_those_that_choose_the_pods() {
    let pool =
        edge_pool(json!({"template": {"podLabels": {(names::POOL): "other", "team": "mail"}}}));
    let name = edge::name(&pool, "mail");
    let deployment = edge::build(&pool, &cluster(), &name, "image:1", "q:7100");
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    assert_eq!(
        (&labels[names::POOL], &labels["team"]),
        (&json!("front"), &json!("mail"))
    );
}

/// Pods whose turn in an upgrade comes later look for it there.
#[test]
fn the_declared_image_stands_on_every_pod_whatever_people_write_there() {
    let template = json!({"podAnnotations": {(names::IMAGE): "other", "team": "mail"}});
    let pool = edge_pool(json!({"template": template}));
    let name = edge::name(&pool, "mail");
    let deployment = edge::build(&pool, &cluster(), &name, "image:1", "q:7100");
    let annotations = &deployment["spec"]["template"]["metadata"]["annotations"];
    let wanted = json!({(names::IMAGE): "image:1", "team": "mail"});
    assert_eq!(*annotations, wanted);
}

#[test]
fn a_pool_says_why_no_pod_can_be_made_for_its_deployment() {
    let full = "pods \"front-edge-1\" is forbidden: exceeded quota: mail";
    let deployment: Deployment = serde_json::from_value(json!({
        "metadata": {"generation": 1},
        "status": {"observedGeneration": 1, "conditions": [
            {"type": "Available", "status": "False", "message": "too few"},
            {"type": "ReplicaFailure", "status": "True", "message": full},
        ]},
    }))
    .expect("a Deployment");
    let mut conditions = Conditions::new(&[], Some(1), Timestamp::UNIX_EPOCH);
    scaled(&deployment, 2, &mut json!({}), &mut conditions);
    let conditions = conditions.finish(&["Ready"]);
    let ready = find(&conditions, "Ready").expect("it is said");
    assert!(ready.message.starts_with("0 of 2 pods are ready"));
    assert!(ready.message.ends_with(full), "{}", ready.message);
}
