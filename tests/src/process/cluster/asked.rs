//! What a person asks of the cluster at a command line, and what a node's certificate may hear of it.

use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result};
use proto::client::{ConfigNews, QueueClient};
use proto::{Role, pki};
use tokio::process::Command;

use super::{Cluster, text};
use crate::process::node::program;

/// A command that takes longer hangs.
const COMMAND: Duration = Duration::from_secs(60);

impl Cluster {
    /// Runs `postroad` with these arguments as an administrator of this cluster.
    pub async fn postroad(&self, args: &[&str]) -> Result<Output> {
        let queue: Vec<&str> = self.clients.values().map(String::as_str).collect();
        let mut command = Command::new(program()?);
        command.args(args).kill_on_drop(true);
        command.env("POSTROAD_QUEUE", queue.join(","));
        command.env("POSTROAD_PKI", text(&self.pki("admin"))?);
        let output = tokio::time::timeout(COMMAND, command.output()).await;
        Ok(output.with_context(|| format!("postroad {args:?} does not end"))??)
    }

    /// All documents that a certificate of this role is given.
    pub async fn told(&self, role: Role) -> Result<ConfigNews> {
        // A queue node is named by its id; any will do that is none of the cluster's.
        let name = match role {
            Role::Queue => "99".to_owned(),
            _ => format!("watcher-{role}"),
        };
        let pki = self.pki(&name);
        pki::issue(&self.dir.path().join("ca"), role, &name, &pki)?;
        let client: QueueClient = self.client(&name)?;
        let mut stream = client.config().watch();
        Ok(tokio::time::timeout(COMMAND, stream.next()).await?)
    }
}
