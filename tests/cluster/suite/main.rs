//! What runs on the real Kubernetes of `tests/cluster/up`. `tests/cluster/run` brings it up, runs these and takes it away.

#[path = "relay.rs"]
mod relay;
#[path = "smoke.rs"]
mod smoke;

use anyhow::{Context, Result};
use tests::kubernetes::Kubernetes;

/// Runs a test in a namespace of its own, which is taken away afterwards; a failure says what was there.
fn in_namespace(name: &str, test: impl FnOnce(&Kubernetes) -> Result<()>) {
    let outcome = Kubernetes::find().and_then(|cluster| {
        let outcome = test(&cluster).with_context(|| cluster.explain(name));
        if outcome.is_ok() || std::env::var_os("POSTROAD_CLUSTER_KEEP").is_none() {
            cluster.kubectl(&[
                "delete",
                "namespace",
                name,
                "--wait=false",
                "--ignore-not-found",
            ])?;
        }
        outcome
    });
    if let Err(error) = outcome {
        panic!("{error:#}");
    }
}
