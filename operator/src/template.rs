//! `template` of a cluster and of its pools: what people want of pods beyond what the operator needs.

use resource::Template;
use serde_json::{Map, Value, json};

/// A pool's template over its cluster's: each field that the pool sets replaces the cluster's.
pub fn merge(cluster: &Template, pool: &Template) -> Template {
    Template {
        resources: pool.resources.clone().or_else(|| cluster.resources.clone()),
        node_selector: pool
            .node_selector
            .clone()
            .or_else(|| cluster.node_selector.clone()),
        tolerations: pool
            .tolerations
            .clone()
            .or_else(|| cluster.tolerations.clone()),
        affinity: pool.affinity.clone().or_else(|| cluster.affinity.clone()),
        topology_spread_constraints: pool
            .topology_spread_constraints
            .clone()
            .or_else(|| cluster.topology_spread_constraints.clone()),
        priority_class_name: pool
            .priority_class_name
            .clone()
            .or_else(|| cluster.priority_class_name.clone()),
        pod_labels: pool
            .pod_labels
            .clone()
            .or_else(|| cluster.pod_labels.clone()),
        pod_annotations: pool
            .pod_annotations
            .clone()
            .or_else(|| cluster.pod_annotations.clone()),
    }
}

/// Writes into a pod's spec where it may run. Without a wish pods spread over zones and Kubernetes nodes, as far as there are
/// enough.
pub fn place(spec: &mut Value, template: &Template, selector: &Map<String, Value>) {
    let spread = |key: &str| {
        json!({
            "topologyKey": key, "maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": selector},
        })
    };
    spec["topologySpreadConstraints"] = match &template.topology_spread_constraints {
        Some(constraints) => json!(constraints),
        None => json!([
            spread("topology.kubernetes.io/zone"),
            spread("kubernetes.io/hostname")
        ]),
    };
    if let Some(labels) = &template.node_selector {
        spec["nodeSelector"] = json!(labels);
    }
    if let Some(tolerations) = &template.tolerations {
        spec["tolerations"] = json!(tolerations);
    }
    if let Some(affinity) = &template.affinity {
        spec["affinity"] = affinity.clone();
    }
    if let Some(class) = &template.priority_class_name {
        spec["priorityClassName"] = json!(class);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_of_a_pool_replaces_the_clusters_and_the_rest_stays() {
        let cluster = Template {
            priority_class_name: Some("cluster".into()),
            resources: Some(json!({"limits": {"memory": "1Gi"}})),
            ..Template::default()
        };
        let pool = Template {
            priority_class_name: Some("pool".into()),
            ..Template::default()
        };
        let merged = merge(&cluster, &pool);
        assert_eq!(merged.priority_class_name.as_deref(), Some("pool"));
        assert_eq!(merged.resources, cluster.resources);
    }
}
