//! What the operator asks of the API server, kind by kind: the one table that its ClusterRole is written from
//! (`cargo run -p gen`). A test holds it against the kinds that the code names.

/// Rights to one kind.
pub struct Right {
    /// API group; empty: core.
    pub group: &'static str,
    /// As in paths.
    pub resource: &'static str,
    /// The type in the code; empty: of a subresource.
    pub kind: &'static str,
    /// What is done with it.
    pub verbs: &'static [&'static str],
    /// Why.
    pub why: &'static str,
}

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["get", "list", "watch", "create", "patch"];
const ALL: &[&str] = &["get", "list", "watch", "create", "patch", "delete"];
const STATUS: &[&str] = &["patch"];
const OWN: &[&str] = &["update"];

const fn right(
    group: &'static str,
    resource: &'static str,
    kind: &'static str,
    verbs: &'static [&'static str],
    why: &'static str,
) -> Right {
    Right {
        group,
        resource,
        kind,
        verbs,
        why,
    }
}

const POSTROAD: &str = "postroad.dev";
const DECLARED: &str = "what people declare is read and never written";
const TOLD: &str = "what became of it";
const OWNER: &str = "blockOwnerDeletion in what belongs to it, where the API server asks for that";

/// All rights, whatever the namespace. The Lease is in a Role of the operator's own namespace.
pub const RIGHTS: &[Right] = &[
    right(POSTROAD, "relayclusters", "RelayCluster", READ, DECLARED),
    right(POSTROAD, "edgepools", "EdgePool", READ, DECLARED),
    right(
        POSTROAD,
        "queuepools",
        "QueuePool",
        &["get", "list", "watch", "patch"],
        "read, and held by a finalizer while volumes with mail would go with it",
    ),
    right(POSTROAD, "deliverypools", "DeliveryPool", READ, DECLARED),
    right(POSTROAD, "relaydomains", "RelayDomain", READ, DECLARED),
    right(
        POSTROAD,
        "dkimkeys",
        "DkimKey",
        &["get", "list", "watch", "create", "delete"],
        "keys are made and end; none is changed",
    ),
    right(POSTROAD, "relayclusters/status", "", STATUS, TOLD),
    right(POSTROAD, "edgepools/status", "", STATUS, TOLD),
    right(POSTROAD, "queuepools/status", "", STATUS, TOLD),
    right(POSTROAD, "deliverypools/status", "", STATUS, TOLD),
    right(POSTROAD, "relaydomains/status", "", STATUS, TOLD),
    right(POSTROAD, "dkimkeys/status", "", STATUS, TOLD),
    right(POSTROAD, "relayclusters/finalizers", "", OWN, OWNER),
    right(POSTROAD, "edgepools/finalizers", "", OWN, OWNER),
    right(POSTROAD, "queuepools/finalizers", "", OWN, OWNER),
    right(POSTROAD, "deliverypools/finalizers", "", OWN, OWNER),
    right(POSTROAD, "relaydomains/finalizers", "", OWN, OWNER),
    right(POSTROAD, "dkimkeys/finalizers", "", OWN, OWNER),
    right(
        "",
        "secrets",
        "Secret",
        ALL,
        "certificates, sealing keys, signing keys; those of keys that never sign again are deleted",
    ),
    right(
        "",
        "configmaps",
        "ConfigMap",
        WRITE,
        "what nodes trust, and pools' own resources",
    ),
    right(
        "",
        "services",
        "Service",
        WRITE,
        "in front of edge and queue pools",
    ),
    right("", "pods", "Pod", ALL, "queue nodes"),
    right(
        "",
        "persistentvolumeclaims",
        "PersistentVolumeClaim",
        ALL,
        "of queue nodes",
    ),
    right(
        "",
        "namespaces",
        "Namespace",
        &["get"],
        "a RelayCluster admits them by their labels",
    ),
    right(
        "apps",
        "deployments",
        "Deployment",
        WRITE,
        "edge and delivery pools",
    ),
    right(
        "policy",
        "poddisruptionbudgets",
        "PodDisruptionBudget",
        &["get", "create", "patch", "delete"],
        "of pools with several nodes",
    ),
    right(
        "networking.k8s.io",
        "networkpolicies",
        "NetworkPolicy",
        &["get", "create", "patch", "delete"],
        "who reaches which pool",
    ),
    right(
        "events.k8s.io",
        "events",
        "",
        &["create", "patch"],
        "what people are told",
    ),
];

/// The `rules` of the ClusterRole.
pub fn rules() -> String {
    let mut text = String::from("# Written by `cargo run -p gen` from operator/src/rbac.rs.\n");
    for right in RIGHTS {
        let list = |items: &[&str]| items.join(", ");
        text += &format!(
            "# {}\n- apiGroups: [{:?}]\n  resources: [{}]\n  verbs: [{}]\n",
            right.why,
            right.group,
            right.resource,
            list(right.verbs)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    /// The sources of this package.
    fn sources(folder: &Path, into: &mut String) {
        for entry in fs::read_dir(folder).expect("the sources are there") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => sources(&path, into),
                false if path.file_name().is_some_and(|name| name == "rbac.rs") => {}
                false => *into += &fs::read_to_string(&path).expect("text"),
            }
        }
    }

    /// What stands behind a text, up to the end of an identifier.
    fn named<'a>(text: &'a str, before: &str) -> impl Iterator<Item = &'a str> {
        let pieces = text.split(before).skip(1);
        let word = |piece: &'a str| piece.split(|c: char| !c.is_alphanumeric()).next();
        let pieces: Vec<&str> = pieces.filter_map(word).collect();
        pieces.into_iter().filter(|word| word.len() > 1)
    }

    #[test]
    fn every_kind_that_the_code_names_is_in_the_table_and_no_other() {
        let mut text = String::new();
        sources(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
            &mut text,
        );
        let mut used: BTreeSet<&str> = ["Api<", "api::<", ".controller::<"]
            .into_iter()
            .flat_map(|before| named(&text, before))
            .collect();
        assert!(used.remove("Lease"), "the Lease has a Role of its own");
        let table: BTreeSet<&str> = RIGHTS
            .iter()
            .map(|right| right.kind)
            .filter(|kind| !kind.is_empty())
            .collect();
        assert_eq!(used, table);
    }

    #[test]
    fn the_chart_grants_what_the_table_says() {
        let charts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/postroad");
        let granted = fs::read_to_string(charts.join("cluster-role.yaml")).expect("generated");
        assert_eq!(granted, rules(), "run `cargo run -p gen`");
        let template = fs::read_to_string(charts.join("templates/rbac.yaml")).expect("there");
        let included = "rules:\n{{ .Files.Get \"cluster-role.yaml\" }}";
        assert_eq!(template.matches(included).count(), 1);
    }

    #[test]
    fn nothing_that_people_write_is_written_and_no_right_is_named_twice() {
        let mut seen = BTreeSet::new();
        for right in RIGHTS {
            assert!(
                seen.insert((right.group, right.resource)),
                "{}",
                right.resource
            );
            assert!(!right.verbs.contains(&"*") && right.resource != "*");
            let declared = right.group == POSTROAD && !right.resource.contains('/');
            let writes = right
                .verbs
                .iter()
                .any(|verb| ["create", "patch", "update", "delete"].contains(verb));
            let finalizer = right.kind == "QueuePool" && !right.verbs.contains(&"create");
            assert!(
                !declared || right.kind == "DkimKey" || finalizer || !writes,
                "{}",
                right.resource
            );
            assert!(!right.verbs.contains(&"update") || right.resource.ends_with("/finalizers"));
        }
    }
}
