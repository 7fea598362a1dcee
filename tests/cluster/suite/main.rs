//! What runs on the real Kubernetes of `tests/cluster/up`. `tests/cluster/run` brings it up, runs these and takes it away.
//!
//! ```text
//! smoke.rs      the image in a bare pod
//! readme.rs     the README's section, word for word
//! charts.rs     both charts, both Helms
//! scale.rs      pools grow and shrink under load
//! trouble.rs    evictions, a lost volume, a killed operator, an API server that is away
//! upgrade.rs    another image, another public certificate
//! authority.rs  the CA of the relay's own nodes
//! tenants.rs    who may claim what
//! domains.rs    many of them
//! signed.rs     DKIM keys, from the making to the end; dkim.rs: a name server and a verifier of others
//! imported.rs   the same with keys that somebody brings along
//! uninstall.rs  what stays when the charts go
//! relay.rs      one installation for all of these; traffic.rs: mail that passes meanwhile; smtp.rs: one question;
//!               administrator.rs: a command of `postroad`; operator.rs: the operator's processes
//! ```
//!
//! Each finds the relay as the charts make it, whatever the one before left, so their order does not matter.

#[path = "administrator.rs"]
mod administrator;
#[path = "authority.rs"]
mod authority;
#[path = "charts.rs"]
mod charts;
#[path = "dkim.rs"]
mod dkim;
#[path = "domains.rs"]
mod domains;
#[path = "imported.rs"]
mod imported;
#[path = "operator.rs"]
mod operator;
#[path = "readme.rs"]
mod readme;
#[path = "relay.rs"]
mod relay;
#[path = "scale.rs"]
mod scale;
#[path = "signed.rs"]
mod signed;
#[path = "smoke.rs"]
mod smoke;
#[path = "smtp.rs"]
mod smtp;
#[path = "tenants.rs"]
mod tenants;
#[path = "traffic.rs"]
mod traffic;
#[path = "trouble.rs"]
mod trouble;
#[path = "uninstall.rs"]
mod uninstall;
#[path = "upgrade.rs"]
mod upgrade;

use anyhow::{Context, Result};
use tests::kubernetes::Kubernetes;

/// Runs a test; a failure says what was there in the namespace, and what the operator logged.
fn explained(namespace: &str, test: impl FnOnce(&Kubernetes) -> Result<()>) {
    let outcome = Kubernetes::find().and_then(|cluster| {
        test(&cluster).with_context(|| {
            format!(
                "{}\n{}",
                cluster.explain(relay::OPERATOR),
                cluster.explain(namespace)
            )
        })
    });
    if let Err(error) = outcome {
        panic!("{error:#}");
    }
}

/// Runs a test in a namespace of its own, which is taken away afterwards.
fn in_namespace(name: &str, test: impl FnOnce(&Kubernetes) -> Result<()>) {
    explained(name, |cluster| {
        let outcome = test(cluster);
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
}
