//! NetworkPolicies of a pool: who reaches its nodes. What nodes reach is not limited: an edge of a pool may have any clients, and
//! delivery nodes must reach the world. Nothing here talks to anyone but [`apply`].

use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::Api;
use resource::Switch;
use serde_json::{Value, json};

use crate::context::Context;
use crate::error::Error;
use crate::names::{ADMIN_PORT, CLIENT_PORT, CLUSTER, Component, PEER_PORT, PoolName};
use crate::node_pool::delete_own;
use crate::ssa::{self, Controller};

/// States the policy of a pool, or takes it away where the cluster wants none.
pub async fn apply(
    context: &Context,
    controller: Controller,
    name: &PoolName,
    owners: &Value,
    wanted: Switch,
    listeners: &[u16],
) -> Result<(), Error> {
    let policies: Api<NetworkPolicy> = Api::namespaced(context.client.clone(), &name.namespace);
    match wanted {
        Switch::Enabled => {
            let policy = policy(name, owners, listeners);
            ssa::apply(&policies, controller, &policy).await?;
            Ok(())
        }
        Switch::Disabled => delete_own(&policies, &name.object()).await,
    }
}

/// The policy. Health and metrics are open to all namespaces: kubelets and whoever scrapes; queue nodes serve the cluster's
/// own nodes and the operator, wherever that is, all by mutual TLS.
fn policy(name: &PoolName, owners: &Value, listeners: &[u16]) -> Value {
    let port = |number: u16| json!({"protocol": "TCP", "port": number});
    let mut ingress = vec![json!({"ports": [port(ADMIN_PORT)]})];
    match name.component {
        Component::Edge => {
            let ports: Vec<Value> = listeners.iter().map(|number| port(*number)).collect();
            if !ports.is_empty() {
                // Clients of mail come from anywhere.
                ingress.push(json!({"ports": ports}));
            }
        }
        Component::Delivery => {}
        Component::Queue => {
            let nodes = json!({"podSelector": {"matchLabels": {
                "app.kubernetes.io/name": "postroad", CLUSTER: name.cluster,
            }}});
            // The operator's namespace is not known to those who declare a cluster; its certificate is what counts.
            let operator = json!({
                "namespaceSelector": {},
                "podSelector": {"matchLabels": {"app.kubernetes.io/name": "postroad-operator"}},
            });
            let peers = json!({"podSelector": {"matchLabels": name.selector()}});
            ingress.push(json!({"from": [nodes, operator], "ports": [port(CLIENT_PORT)]}));
            ingress.push(json!({"from": [peers], "ports": [port(PEER_PORT)]}));
        }
    }
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name.object(), "labels": name.labels(), "ownerReferences": owners},
        "spec": {
            "podSelector": {"matchLabels": name.selector()},
            "policyTypes": ["Ingress"],
            "ingress": ingress,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(component: Component, listeners: &[u16]) -> Value {
        let name = PoolName {
            namespace: "mail".into(),
            cluster: "postroad".into(),
            pool: "main".into(),
            component,
        };
        policy(&name, &json!([]), listeners)
    }

    /// Ports that anybody may reach.
    fn open(policy: &Value) -> Vec<u64> {
        let rules = policy["spec"]["ingress"].as_array().expect("rules");
        let open = rules.iter().filter(|rule| rule["from"].is_null());
        open.flat_map(|rule| rule["ports"].as_array().expect("ports"))
            .map(|port| port["port"].as_u64().expect("a number"))
            .collect()
    }

    #[test]
    fn only_listeners_and_health_are_open_and_peers_are_only_the_pools_own() {
        assert_eq!(
            open(&of(Component::Edge, &[2525, 2965])),
            [9090, 2525, 2965]
        );
        assert_eq!(open(&of(Component::Delivery, &[])), [9090]);
        let queue = of(Component::Queue, &[]);
        assert_eq!(open(&queue), [9090]);
        let peer = &queue["spec"]["ingress"][2];
        assert_eq!(peer["ports"][0]["port"], 7101);
        assert_eq!(
            peer["from"][0]["podSelector"]["matchLabels"],
            queue["spec"]["podSelector"]["matchLabels"]
        );
        assert!(
            peer["from"][0]["namespaceSelector"].is_null(),
            "of this namespace"
        );
    }
}
