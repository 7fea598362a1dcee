//! Help texts: what every node counts of its connections, in the words that `/metrics` shows. A test holds every metric that the crate uses against this
//! file.

const COUNTERS: &[(&str, &str)] = &[(
    "postroad_connections_refused_total",
    "Connections of other nodes that came to nothing, by why.",
)];

const GAUGES: &[(&str, &str)] = &[(
    "postroad_node_certificate_expiry_timestamp_seconds",
    "When the certificate that the node shows other nodes ends, and when that of the CA that it trusts.",
)];

/// Tells the recorder that is installed.
pub fn describe_metrics() {
    for (name, help) in COUNTERS {
        metrics::describe_counter!(*name, *help);
    }
    for (name, help) in GAUGES {
        metrics::describe_gauge!(*name, *help);
    }
}
