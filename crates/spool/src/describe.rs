//! Help texts: what a queue node counts, in the words that `/metrics` shows. A test holds every metric that the crate uses against this
//! file.

const COUNTERS: &[(&str, &str)] = &[
    (
        "postroad_bodies_damaged_ignored_total",
        "Damaged entries of the log that nothing needs any more.",
    ),
    (
        "postroad_bodies_fetched_total",
        "Bodies that were fetched from another replica.",
    ),
    (
        "postroad_bodies_mended_total",
        "Damaged bodies that were written again from another replica's.",
    ),
    (
        "postroad_bodies_damaged_total",
        "Bodies without the digest that they were accepted with; they are never sent on. A person should look at the disk of this node.",
    ),
    (
        "postroad_bodies_unreadable_total",
        "Handouts that were taken back because their body could not be read.",
    ),
    (
        "postroad_collect_copied_bytes_total",
        "Octets of bodies that the collector copied out of segments that are mostly dead.",
    ),
    (
        "postroad_deadlines_passed_total",
        "Attempts that took longer than they should; their node was asked whether it still works.",
    ),
    (
        "postroad_digests_differ_total",
        "Comparisons of rows in which replicas differed, by who is wrong. Not 0: a person must look.",
    ),
    (
        "postroad_lease_requests_total",
        "Requests on Lease streams, by kind.",
    ),
    (
        "postroad_log_bytes_total",
        "Octets that were written to the log.",
    ),
    (
        "postroad_peer_dropped_total",
        "Raft messages that were dropped, as too many waited for their connection; Raft repeats them.",
    ),
    (
        "postroad_peer_refused_total",
        "Frames of other replicas that were refused.",
    ),
    (
        "postroad_possible_duplicates_total",
        "Items that may be delivered twice, by why.",
    ),
    (
        "postroad_reports_total",
        "Delivery reports that were written, by kind.",
    ),
    (
        "postroad_scrub_damaged_segments_total",
        "Segments in which the scrubber met damage; their bodies are looked at, and mended where anything refers to them.",
    ),
    (
        "postroad_scrub_read_bytes_total",
        "Octets of the log that the scrubber read.",
    ),
    (
        "postroad_snapshot_bytes_total",
        "Octets of snapshots, by direction.",
    ),
    (
        "postroad_snapshots_total",
        "Snapshots of groups that were sent or received, by what came of them.",
    ),
];

const GAUGES: &[(&str, &str)] = &[
    (
        "postroad_bodies_damaged",
        "Damaged bodies of this node that are not mended yet.",
    ),
    (
        "postroad_clock_ignored",
        "1: the wall clock of this node is more than a minute from cluster time and is ignored.",
    ),
    (
        "postroad_disk_limit_bytes",
        "Octets of the disk that the queue may use; some of them are kept free, and then no new mail is taken.",
    ),
    (
        "postroad_disk_used_bytes",
        "Octets of the disk that the queue uses.",
    ),
    (
        "postroad_group_leader",
        "1 while this node leads the group; 0 after it has.",
    ),
    (
        "postroad_log_damaged_bodies",
        "Bodies that were found damaged at the start of this node, to be fetched from another replica.",
    ),
    (
        "postroad_log_damaged_segments",
        "Segments of the log that stay because a living body in them cannot be read.",
    ),
    (
        "postroad_log_dead_bytes",
        "Octets of the log's segments in which nothing lives: what is collected and given back.",
    ),
    (
        "postroad_log_kept_for_followers_bytes",
        "Octets of the log that are kept only for replicas that lag; beyond its budget the silent ones get a snapshot.",
    ),
    (
        "postroad_log_live_bytes",
        "Octets of the log's segments in bodies that are still needed.",
    ),
    (
        "postroad_log_live_ratio",
        "Share of the log's segments that lives, by generation.",
    ),
    (
        "postroad_log_pinned_segment_age_seconds",
        "Age of the oldest sealed segment that stays, by why.",
    ),
    (
        "postroad_queue_items_count",
        "Items (a message for one destination) of a group that this node leads, by state: waiting, leased, held.",
    ),
    (
        "postroad_queue_messages_count",
        "Messages in a group that this node leads.",
    ),
];

const HISTOGRAMS: &[(&str, &str)] = &[
    (
        "postroad_digest_seconds",
        "Time that applying entries was held up by a digest of rows.",
    ),
    (
        "postroad_log_flush_seconds",
        "From a batch of the log to its fsync.",
    ),
];

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
