//! The program `postroad-operator`: what people declare on Kubernetes becomes nodes, certificates and configuration.
//!
//! ```text
//! settings.rs     what the command line and the environment say
//! lease.rs        one replica of several works
//! controllers.rs  who watches what; wake.rs: other people's objects; context.rs is what they have at hand
//! cluster.rs      RelayCluster: CA, sealing key, image
//! node_pool/      EdgePool and DeliveryPool: Deployments that drain
//! queue_pool/     QueuePool: pods and volumes of the operator's own, one change at a time
//! config/         RelayDomain: which count, and how they reach the nodes
//! domain.rs       RelayDomain: who agreed to it
//! dkim_key/       signing keys of RelayDomains, from the making to the end
//! network.rs       who reaches which pool
//! pki.rs          certificates in Secrets
//! names.rs        names, labels and annotations; template.rs: what people want of pods
//! ssa.rs          how objects are written; conditions.rs: what is said of them; error.rs: when to try again
//! fail_point.rs   dies where a test wants it to
//! http.rs         health and metrics; telemetry.rs and describe.rs say what
//! ```

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use kube::runtime::events::{Recorder, Reporter};
use kube::{Client, Resource};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

mod cluster;
mod conditions;
mod config;
mod context;
mod controllers;
mod describe;
mod dkim_key;
mod domain;
mod error;
mod fail_point;
mod http;
mod lease;
mod names;
mod network;
mod node_pool;
mod pki;
mod queue_pool;
#[cfg(test)]
mod rbac;
#[cfg(test)]
mod rbac_tests;
mod settings;
mod ssa;
mod telemetry;
mod template;
mod wake;

use context::Context;
use error::Error;
use settings::{Cli, Command, Run};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(settings) => run(settings).await,
        Command::Crds => print_crds(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("postroad-operator: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// All CustomResourceDefinitions as one stream of documents; JSON is YAML.
fn print_crds() -> anyhow::Result<()> {
    for crd in resource::crds() {
        println!("---\n{}", serde_json::to_string_pretty(&crd)?);
    }
    Ok(())
}

async fn run(settings: Run) -> anyhow::Result<()> {
    telemetry::start_logs(settings.log_format);
    // Two providers may be in the tree, one is ours: without this rustls would not know which.
    if rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .is_err()
    {
        tracing::warn!("a TLS provider was installed before ours");
    }
    let metrics = telemetry::start_metrics().context("cannot start the metrics")?;
    http::serve(settings.admin_listen, metrics).await?;
    let client = Client::try_default().await.context(
        "cannot reach an API server; this program runs in a pod, or with KUBECONFIG set",
    )?;

    let stop = CancellationToken::new();
    stop_on_signals(stop.clone())?;
    // Unlike any other, also unlike the same pod's before its container was started again.
    let me = format!("{}_{}", settings.pod, uuid::Uuid::new_v4());
    let watched = settings.watch_namespace.as_deref();
    let election = lease::Election::new(client.clone(), &settings.namespace, watched, me);
    let (leading, mut leads) = watch::channel(false);
    // The Lease is given up only when nobody works any more.
    let idle = CancellationToken::new();
    let election = tokio::spawn(election.run(leading, idle.clone()));

    let reporter = Reporter {
        controller: "postroad-operator".into(),
        instance: Some(settings.pod.clone()),
    };
    let recorder = Recorder::new(client.clone(), reporter);
    let work = async {
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            won = lease::won(&mut leads) => match won {
                true => {
                    let with = |index| Context::new(client.clone(), settings.node_image, settings.test_clock, recorder, settings.state, index);
                    controllers::run(client.clone(), with, settings.watch_namespace, stop.clone()).await
                }
                // The election ended before it was won: it says why.
                false => Ok(()),
            },
        }
    };
    tokio::select! {
        outcome = work => outcome?,
        // Whoever loses the Lease stops at once, whatever is under way.
        lost = wait(election.abort_handle(), idle.clone()) => lost,
    }
    idle.cancel();
    election.await.context("the election panicked")??;
    Ok(())
}

/// Until the election ended by itself.
async fn wait(election: tokio::task::AbortHandle, idle: CancellationToken) {
    while !election.is_finished() && !idle.is_cancelled() {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
}

/// Namespace and name of an object that came from the API server.
pub fn place<K: Resource>(object: &K) -> Result<(&str, &str), Error> {
    let meta = object.meta();
    match (meta.namespace.as_deref(), meta.name.as_deref()) {
        (Some(namespace), Some(name)) => Ok((namespace, name)),
        _ => Err(Error::Internal(
            "an object without namespace or name".into(),
        )),
    }
}

/// SIGTERM and SIGINT end the program in order.
fn stop_on_signals(stop: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("told to stop");
        stop.cancel();
    });
    Ok(())
}
