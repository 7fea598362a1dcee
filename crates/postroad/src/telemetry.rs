//! Logs, metrics, and what a panic says.

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use crate::failure::Failure;
use crate::settings::{LogFormat, Logs};

/// What a node logs unless `POSTROAD_LOG` says otherwise. The libraries' own stories are for their authors.
const NODE_FILTER: &str =
    "info,raft=warn,hickory_resolver=warn,hickory_net=warn,fjall=warn,lsm_tree=warn";
/// What a command logs: its answer is on standard output.
const COMMAND_FILTER: &str = "error";
/// Bounds of all histograms of times, seconds: from an append on a fast disk to a slow next hop.
const SECONDS_BUCKETS: [f64; 16] = [
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0,
    300.0,
];
/// Bounds of all histograms of sizes, octets.
const BYTES_BUCKETS: [f64; 8] = [
    1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 10485760.0, 52428800.0,
];

/// Starts to log on standard error, and to log panics.
pub fn start_logs(logs: &Logs, node: bool) {
    let default = if node { NODE_FILTER } else { COMMAND_FILTER };
    let (filter, wrong) = match std::env::var("POSTROAD_LOG") {
        Ok(text) => match EnvFilter::try_new(&text) {
            Ok(filter) => (filter, None),
            Err(error) => (EnvFilter::new(default), Some(error)),
        },
        Err(_) => (EnvFilter::new(default), None),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // A subscriber that is there already stays: nothing in this program sets one before.
    let _ = match logs.log_format {
        LogFormat::Text => builder
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    if let Some(error) = wrong {
        tracing::warn!(%error, "POSTROAD_LOG is not understood and not used; write it like info,delivery=debug");
    }
    log_panics();
}

/// A panic is one log line like any other, so that whoever collects logs has it.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.payload_as_str().unwrap_or("(a panic without a text)");
        let place = panic.location().map(ToString::to_string);
        let thread = std::thread::current();
        tracing::error!(
            thread = thread.name(),
            place,
            backtrace = %std::backtrace::Backtrace::capture(),
            "panic, a bug in this program: {text}"
        );
    }));
}

/// Starts to count. Call it before anything is counted.
pub fn start_metrics() -> Result<PrometheusHandle, Failure> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS_BUCKETS)
        .and_then(|builder| {
            builder.set_buckets_for_metric(Matcher::Suffix("_bytes".into()), &BYTES_BUCKETS)
        })
        .and_then(|builder| builder.install_recorder())
        .map_err(|error| Failure::Failed(format!("cannot start the metrics: {error}")))?;
    crate::describe::describe_metrics();
    proto::describe_metrics();
    edge::describe_metrics();
    spool::describe_metrics();
    delivery::describe_metrics();
    metrics::gauge!("postroad_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(handle)
}

/// What Linux says of this process, in the names that Prometheus clients share.
pub fn count_process() {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let resident = pages.as_deref().and_then(|text| number(text, 1));
    if let Some(pages) = resident {
        metrics::gauge!("process_resident_memory_bytes")
            .set((pages * rustix::param::page_size() as u64) as f64);
    }
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        metrics::gauge!("process_open_fds").set(files.count() as f64);
    }
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the command's name, which may hold anything: state, then numbers (proc(5)); times are the 12th and 13th.
    let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    if let (Some(user), Some(system)) = (number(rest, 11), number(rest, 12)) {
        let ticks = rustix::param::clock_ticks_per_second().max(1) as f64;
        metrics::gauge!("process_cpu_seconds_total").set((user + system) as f64 / ticks);
    }
}

fn number(text: &str, position: usize) -> Option<u64> {
    text.split_ascii_whitespace().nth(position)?.parse().ok()
}
