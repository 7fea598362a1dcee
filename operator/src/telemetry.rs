//! Logs and metrics of the operator.

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use crate::settings::LogFormat;

/// What is logged unless `POSTROAD_LOG` says otherwise.
const FILTER: &str = "info,kube_client=warn,kube_runtime=warn";

/// Starts to log on standard error.
pub fn start_logs(format: LogFormat) {
    let wanted = std::env::var("POSTROAD_LOG").unwrap_or_else(|_| FILTER.into());
    let (filter, wrong) = match EnvFilter::try_new(&wanted) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new(FILTER), Some(error)),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // A subscriber that is there already stays: nothing in this program sets one before.
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    if let Some(error) = wrong {
        tracing::warn!(%error, "POSTROAD_LOG is not understood and not used; write it like info,kube_client=debug");
    }
}

/// Starts to count. Call it before anything is counted.
pub fn start_metrics() -> anyhow::Result<PrometheusHandle> {
    let handle = PrometheusBuilder::new().install_recorder()?;
    crate::describe::describe_metrics();
    metrics::gauge!("postroad_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(handle)
}
