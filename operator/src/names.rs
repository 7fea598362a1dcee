//! Names, labels and annotations of everything that the operator makes. One place, so that nobody writes one twice.

use serde_json::{Map, Value, json};

/// What this operator made: `app.kubernetes.io/managed-by`.
pub const MANAGED_BY: &str = "postroad-operator";
/// Label: the RelayCluster that an object belongs to.
pub const CLUSTER: &str = "postroad.dev/cluster";
/// Label: the pool that an object belongs to.
pub const POOL: &str = "postroad.dev/pool";
/// Label of a queue node's objects: its node id.
pub const NODE_ID: &str = "postroad.dev/node-id";
/// Label of a volume claim: the id of the queue whose data lies there.
pub const CLUSTER_ID: &str = "postroad.dev/cluster-id";
/// Label of Kubernetes' nodes, and of the pods that are bound to them.
pub const ZONE: &str = "topology.kubernetes.io/zone";
/// Label of queue pods that are in the queue: what the disruption budget counts.
pub const MEMBER: &str = "postroad.dev/member";
/// Annotation of a volume claim: the first nodes of the queue, as `--initial-cluster` wants them. Only those nodes have it.
pub const INITIAL_CLUSTER: &str = "postroad.dev/initial-cluster";
/// Annotation of a volume claim: it got a pod, so its queue may have begun and no first node is made any more.
pub const USED: &str = "postroad.dev/used-by-node-id";
/// Annotation of a volume claim whose node left the queue: its data is of no use any more, and its node id is never used again.
pub const RETIRED: &str = "postroad.dev/retired-node-id";
/// Annotation of a QueuePool on its way out: its mail may go with it.
pub const FORCE_FORGET: &str = "postroad.dev/force-forget";
/// Annotation of a pod: what it was made from. A pod with another one is replaced.
pub const TEMPLATE_HASH: &str = "postroad.dev/template-hash";
/// Annotation of a pod: the image that was declared for it, whatever the cluster makes of it on the way.
pub const IMAGE: &str = "postroad.dev/image";
/// Annotation of a Secret with a certificate: when to make the next one (RFC 3339).
pub const RENEW_AFTER: &str = "postroad.dev/renew-after";
/// Annotation of a Secret with a certificate: digest of the CA that signed it.
pub const ISSUED_BY: &str = "postroad.dev/issued-by";

/// Label of a signing key's objects: the RelayDomain that it was made for.
pub const RELAY_DOMAIN: &str = "postroad.dev/relay-domain";
/// Annotation of a RelayDomain: a new value starts a rotation of its keys now. Of a DkimKey: the value that it was made under.
pub const ROTATE: &str = "postroad.dev/rotate";
/// Annotation of a RelayDomain, for tests: every time in the life of its keys is divided by this number.
pub const TEST_CLOCK_DIVISOR: &str = "postroad.dev/test-clock-divisor";
/// Annotation of a Secret with a signing key: its domain. With the following ones a DkimKey is found again without its object.
pub const KEY_DOMAIN: &str = "postroad.dev/domain";
/// Annotation of a Secret with a signing key: its selector.
pub const KEY_SELECTOR: &str = "postroad.dev/selector";
/// Annotation of a Secret with a signing key: uid of the RelayDomain under which it has, or had, its DkimKey.
pub const KEY_OWNER: &str = "postroad.dev/relay-domain-uid";
/// Annotation of a Secret with a signing key: where it is in its life.
pub const KEY_PHASE: &str = "postroad.dev/phase";
/// Annotation of a Secret with a signing key: when its record was seen (RFC 3339).
pub const KEY_PUBLISHED: &str = "postroad.dev/published-time";
/// Annotation of a Secret with a signing key: when it began to sign (RFC 3339).
pub const KEY_ACTIVE: &str = "postroad.dev/active-time";
/// Annotation of a Secret with a signing key: when it ceased to sign (RFC 3339).
pub const KEY_RETIRING: &str = "postroad.dev/retiring-time";
/// Type of a Secret with a signing key.
pub const KEY_SECRET_TYPE: &str = "postroad.dev/dkim-key";
/// The key in such a Secret: PKCS#8 PEM.
pub const PRIVATE_KEY: &str = "private.key";

/// Where a node's certificates are mounted.
pub const PKI_DIR: &str = "/etc/postroad/pki";
/// Where the sealing keys are mounted, in delivery pods only.
pub const SEAL_DIR: &str = "/etc/postroad/seal";
/// Where certificates for clients are mounted, a directory for each Secret.
pub const TLS_DIR: &str = "/etc/postroad/tls";
/// Where the pool's own resource is mounted.
pub const POOL_DIR: &str = "/etc/postroad/pool";
/// Its file there.
pub const POOL_FILE: &str = "pool.yaml";
/// Where a node writes.
pub const DATA_DIR: &str = "/var/lib/postroad";
/// Port for clients of queue nodes.
pub const CLIENT_PORT: u16 = 7100;
/// Port for peers of queue nodes.
pub const PEER_PORT: u16 = 7101;
/// Port for health and metrics of every node.
pub const ADMIN_PORT: u16 = 9090;
/// Who runs in the image.
pub const USER: i64 = 65532;

/// What a pool's nodes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    /// They accept.
    Edge,
    /// They keep.
    Queue,
    /// They deliver.
    Delivery,
}

impl Component {
    /// As in labels, names and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Component::Edge => "edge",
            Component::Queue => "queue",
            Component::Delivery => "delivery",
        }
    }
}

/// What names a pool and everything in it.
#[derive(Clone, Debug)]
pub struct PoolName {
    /// Of the pool.
    pub namespace: String,
    /// Of its RelayCluster.
    pub cluster: String,
    /// Of the pool itself.
    pub pool: String,
    /// What its nodes are.
    pub component: Component,
}

impl PoolName {
    /// Deployment, Service, PDB and so on are all called `<pool>-<component>`.
    pub fn object(&self) -> String {
        format!("{}-{}", self.pool, self.component.as_str())
    }

    /// Labels that choose the pool's pods, and no others.
    pub fn selector(&self) -> Map<String, Value> {
        let labels = [
            ("app.kubernetes.io/name", "postroad"),
            ("app.kubernetes.io/component", self.component.as_str()),
            (CLUSTER, &self.cluster),
            (POOL, &self.pool),
        ];
        let pairs = labels.map(|(name, value)| (name.to_owned(), json!(value)));
        Map::from_iter(pairs)
    }

    /// The same as one string, for `status.selector`.
    pub fn selector_text(&self) -> String {
        let pairs: Vec<String> = self
            .selector()
            .iter()
            .map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default()))
            .collect();
        pairs.join(",")
    }

    /// Chooses the pods of all pools of this kind in its cluster.
    pub fn of_cluster(&self) -> String {
        let component = self.component.as_str();
        let cluster = &self.cluster;
        format!("app.kubernetes.io/component={component},{CLUSTER}={cluster}")
    }

    /// Labels of all its objects.
    pub fn labels(&self) -> Map<String, Value> {
        let mut labels = self.selector();
        labels.insert("app.kubernetes.io/instance".into(), json!(self.cluster));
        labels.insert("app.kubernetes.io/managed-by".into(), json!(MANAGED_BY));
        labels
    }
}

/// Secret with the CA of a cluster.
pub fn ca_secret(cluster: &str) -> String {
    format!("{cluster}-ca")
}

/// ConfigMap with the certificates that the nodes of a cluster trust.
pub fn ca_bundle(cluster: &str) -> String {
    format!("{cluster}-ca-bundle")
}

/// Secret with the keys that seal DKIM keys on their way to the nodes.
pub fn seal_secret(cluster: &str) -> String {
    format!("{cluster}-seal")
}

/// What tells one text from another in an annotation or a label: xxh3-64, hexadecimal. It outlives the operator that wrote it, so
/// it must not change with the compiler, as the standard library's hasher may: every pod would be replaced.
pub fn digest(text: &str) -> String {
    format!("{:016x}", xxhash_rust::xxh3::xxh3_64(text.as_bytes()))
}

/// The cluster in a certificate: names of RelayClusters are unique in a namespace only.
pub fn trust_domain(namespace: &str, cluster: &str) -> String {
    format!("{cluster}.{namespace}")
}

/// Where clients of a queue pool connect.
pub fn queue_service(queue_pool: &str, namespace: &str) -> String {
    format!("{queue_pool}-queue.{namespace}.svc:{CLIENT_PORT}")
}

/// Pod, and prefix of everything else, of a queue node.
pub fn queue_pod(queue_pool: &str, node: u64) -> String {
    format!("{queue_pool}-queue-{node}")
}

/// Headless Service that gives each queue pod a name.
pub fn queue_peers(queue_pool: &str) -> String {
    format!("{queue_pool}-queue-peers")
}

/// The name under which others reach a queue node, without a port.
pub fn queue_host(queue_pool: &str, namespace: &str, node: u64) -> String {
    let (pod, peers) = (queue_pod(queue_pool, node), queue_peers(queue_pool));
    format!("{pod}.{peers}.{namespace}.svc")
}

/// Volume claim of a queue node.
pub fn queue_claim(queue_pool: &str, node: u64) -> String {
    format!("data-{}", queue_pod(queue_pool, node))
}

/// Secret with the certificate by which nodes know what is named. Not `-tls`: so people call those that the world sees.
pub fn leaf_secret(object: &str) -> String {
    format!("{object}-node-tls")
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_digest_is_what_every_implementation_of_xxh3_says() {
        assert_eq!(super::digest(""), "2d06800538d394c2");
    }
}
