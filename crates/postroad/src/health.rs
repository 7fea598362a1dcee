//! `/livez`, `/readyz` and `/metrics` over HTTP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;

use crate::failure::Failure;
use crate::role::Probe;
use crate::settings::Listener;

/// How often the metrics forget what is old.
const UPKEEP: Duration = Duration::from_secs(5);

struct Health {
    probes: Vec<Probe>,
    metrics: PrometheusHandle,
}

/// Binds and serves until the process ends. Returns where it listens.
pub async fn serve(
    listen: Listener,
    probes: Vec<Probe>,
    metrics: PrometheusHandle,
) -> Result<Option<SocketAddr>, Failure> {
    let upkeep = metrics.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(UPKEEP).await;
            upkeep.run_upkeep();
        }
    });
    let Some(address) = listen.0 else {
        return Ok(None);
    };
    let cannot = |error| {
        Failure::Failed(format!(
            "cannot listen on {address} for health and metrics: {error}; give another --admin-listen, or off"
        ))
    };
    let listener = TcpListener::bind(address).await.map_err(cannot)?;
    let bound = listener.local_addr().map_err(cannot)?;
    let app = Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(show_metrics))
        .with_state(Arc::new(Health { probes, metrics }));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, app).await {
            tracing::error!(%error, "health and metrics are not served any more");
        }
    });
    Ok(Some(bound))
}

/// 200 when all roles of the process are ready; else 503 and a line for each that is not.
async fn ready(State(health): State<Arc<Health>>) -> impl IntoResponse {
    let not_ready: Vec<String> = health
        .probes
        .iter()
        .filter_map(|probe| Some(format!("{}: {}\n", probe.name, probe.ask().err()?)))
        .collect();
    match not_ready.is_empty() {
        true => (StatusCode::OK, "ready\n".to_owned()),
        false => (StatusCode::SERVICE_UNAVAILABLE, not_ready.concat()),
    }
}

async fn show_metrics(State(health): State<Arc<Health>>) -> impl IntoResponse {
    crate::telemetry::count_process();
    // The version of the text format that Prometheus asks for.
    let kind = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    (kind, health.metrics.render())
}
