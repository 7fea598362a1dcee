//! Help texts: what an edge node counts, in the words that `/metrics` shows. A test holds every metric that the crate uses against this
//! file.

const COUNTERS: &[(&str, &str)] = &[
    (
        "postroad_accepted_messages_total",
        "Messages that were answered with 250: the queue has them on a majority of its disks.",
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
];

const GAUGES: &[(&str, &str)] = &[("postroad_sessions_count", "SMTP sessions that stand now.")];

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
