//! Help texts: what the program counts of itself, in the words that `/metrics` shows. A test holds every metric that the crate uses against this
//! file.

const GAUGES: &[(&str, &str)] = &[
    ("postroad_build_info", "The version of the program."),
    (
        "postroad_config_rejected_count",
        "Documents that this node cannot use, by role; their former state stays.",
    ),
    (
        "postroad_config_revision",
        "Revision of what is declared that is in effect here, by role.",
    ),
    (
        "process_cpu_seconds_total",
        "Processor time of this process.",
    ),
    ("process_open_fds", "Open file descriptors."),
    (
        "process_resident_memory_bytes",
        "Memory of this process that is not swapped out.",
    ),
];

/// Tells the recorder that is installed.
pub fn describe_metrics() {
    for (name, help) in GAUGES {
        metrics::describe_gauge!(*name, *help);
    }
}
