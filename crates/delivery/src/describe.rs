//! Help texts: what a delivery node counts, in the words that `/metrics` shows. A test holds every metric that the crate uses against this
//! file.

const COUNTERS: &[(&str, &str)] = &[
    (
        "postroad_ambiguous_recipients_total",
        "Recipients whose connection was lost after the final dot: they may get the message twice.",
    ),
    (
        "postroad_bodies_damaged_total",
        "Bodies without the digest that they were accepted with; they are never sent on. A person should look at the disks of the queue nodes.",
    ),
    (
        "postroad_connections_failed_total",
        "Connections to next hops that did not come about.",
    ),
    ("postroad_connections_total", "Connections to next hops."),
    (
        "postroad_dead_sites_total",
        "Times that a site was left alone for a while, since nothing of it could be reached.",
    ),
    (
        "postroad_delivery_clear_fallbacks_total",
        "Times that a host was spoken to in clear because TLS with it failed.",
    ),
    (
        "postroad_delivery_tls_failed_total",
        "TLS handshakes with next hops that failed.",
    ),
    (
        "postroad_delivery_tls_sessions_total",
        "Connections to next hops that were secured by TLS, by version.",
    ),
    (
        "postroad_lease_sessions_ended_total",
        "Lease sessions that the queue ended.",
    ),
    (
        "postroad_lease_sessions_fenced_total",
        "Lease sessions under which this node fell silent, because their shard had not answered for 20 s.",
    ),
    (
        "postroad_recipients_total",
        "Results of recipients, by verdict.",
    ),
    (
        "postroad_signatures_missing_total",
        "Messages of domains that are to be signed for which no key was there.",
    ),
    (
        "postroad_signatures_total",
        "DKIM signatures that were made, by algorithm.",
    ),
    (
        "postroad_settles_total",
        "Settles that the queue answered, by outcome.",
    ),
];

const GAUGES: &[(&str, &str)] = &[
    (
        "postroad_signing_keys_unusable_count",
        "DKIM keys whose files cannot be used now; the log says why. A former one of the same selector goes on signing.",
    ),
    (
        "postroad_delivery_connections_count",
        "Connections to next hops that stand now.",
    ),
    (
        "postroad_items_in_hand_count",
        "Items that this node holds a lease of.",
    ),
];

const HISTOGRAMS: &[(&str, &str)] = &[(
    "postroad_attempt_seconds",
    "A whole attempt, from the item to its results.",
)];

/// Tells the recorder that is installed.
pub fn describe_metrics() {
    for (name, help) in COUNTERS {
        metrics::describe_counter!(*name, *help);
    }
    for (name, help) in GAUGES {
        metrics::describe_gauge!(*name, *help);
    }
    for (name, help) in HISTOGRAMS {
        metrics::describe_histogram!(*name, *help);
    }
}
