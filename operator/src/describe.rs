//! Help texts of the operator's metrics. A test holds every metric that the crate uses against this file.

const GAUGES: &[(&str, &str)] = &[
    ("postroad_build_info", "The version of the program."),
    (
        "postroad_operator_ca_ends_soon_timestamp_seconds",
        "From when on the CA of a RelayCluster's nodes ends soon.",
    ),
    (
        "postroad_operator_ca_expiry_timestamp_seconds",
        "When the CA of a RelayCluster's nodes ends.",
    ),
    (
        "postroad_operator_leader",
        "1 while this replica holds the Lease and works.",
    ),
];

const COUNTERS: &[(&str, &str)] = &[
    (
        "postroad_operator_reconciliations_total",
        "How often an object was compared with what is declared, by kind and outcome.",
    ),
    (
        "postroad_operator_dkim_transitions_total",
        "Signing keys that moved on in their lives, by where to.",
    ),
];

/// Tells the recorder that is installed.
pub fn describe_metrics() {
    for (name, help) in GAUGES {
        metrics::describe_gauge!(*name, *help);
    }
    for (name, help) in COUNTERS {
        metrics::describe_counter!(*name, *help);
    }
}
