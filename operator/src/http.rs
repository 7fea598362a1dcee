//! `/livez`, `/readyz` and `/metrics` over HTTP, on leaders and all others alike.

use std::net::SocketAddr;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;

/// Binds, and serves until the process ends.
pub async fn serve(address: SocketAddr, metrics: PrometheusHandle) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address} for health and metrics; give another --admin-listen")
    })?;
    let app = Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(|| async { "ready\n" }))
        .route("/metrics", get(show_metrics))
        .with_state(metrics);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, app).await {
            tracing::error!(%error, "health and metrics are not served any more");
        }
    });
    Ok(())
}

async fn show_metrics(State(metrics): State<PrometheusHandle>) -> impl IntoResponse {
    // The version of the text format that Prometheus asks for.
    let kind = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    (kind, metrics.render())
}
