//! Help texts: what an edge node counts, in the words that `/metrics` shows. A test holds every metric that the crate uses against this
//! file.

const COUNTERS: &[(&str, &str)] = &[
    (
        "postroad_accepted_messages_total",
        "Messages that came whole, by outcome: queued were answered with 250, for the queue has them on a majority of its disks; of the \
         others it says why not.",
    ),
    (
        "postroad_memory_waits_total",
        "Times that a session waited because this node holds as many octets of mail as it may.",
    ),
    (
        "postroad_refused_recipients_total",
        "RCPT commands that were refused.",
    ),
    (
        "postroad_refused_sessions_total",
        "SMTP sessions that were refused at their start, for their number or their source.",
    ),
    ("postroad_sessions_total", "SMTP sessions that began."),
    (
        "postroad_tls_handshakes_failed_total",
        "TLS handshakes with SMTP clients that failed or took too long.",
    ),
    (
        "postroad_tls_sessions_total",
        "SMTP sessions that were secured by TLS, by version.",
    ),
];

const GAUGES: &[(&str, &str)] = &[
    (
        "postroad_certificate_expiry_timestamp_seconds",
        "When a certificate in use ends, by its name in the directory. 0: it is no longer used.",
    ),
    (
        "postroad_certificates_unusable_count",
        "Certificates whose files cannot be used now; the log says why. A former one of the same name stays in use.",
    ),
    ("postroad_sessions_count", "SMTP sessions that stand now."),
];

const HISTOGRAMS: &[(&str, &str)] = &[(
    "postroad_append_seconds",
    "From the end of a message to the answer of the queue.",
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
