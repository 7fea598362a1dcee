//! Queue nodes of a cluster: the first ones, those that join, one that comes back on an empty disk, and one that comes back with
//! another argument.

use anyhow::{Context, Result};
use proto::Role;

use super::{CLUSTER, Cluster, free_port};

impl Cluster {
    pub(super) fn place_queue(&mut self, id: u32, peer: u16, state: &str) -> Result<()> {
        let client = format!("127.0.0.1:{}", free_port()?);
        self.clients.insert(id, client.clone());
        self.peers.insert(id, peer);
        let (id, listen) = (id.to_string(), format!("127.0.0.1:{peer}"));
        let (initial, shards) = (self.initial.clone(), self.spec.shards.to_string());
        let args = [
            "--cluster-id",
            CLUSTER,
            "--node-id",
            &id,
            "--initial-cluster",
            &initial,
            "--initial-cluster-state",
            state,
            "--advertise",
            &listen,
            "--listen-peer",
            &listen,
            "--listen",
            &client,
            "--shards",
            &shards,
            "--hostname",
            "queue.chaos.test",
        ];
        self.place(Role::Queue, &id, &args)
    }

    /// Places another queue node that waits to be added, and starts it. Returns the address at which replicas reach it.
    pub fn wait_to_join(&mut self, id: u32) -> Result<String> {
        let peer = free_port()?;
        self.place_queue(id, peer, "existing")?;
        self.spawn(&format!("queue-{id}"))?;
        Ok(format!("127.0.0.1:{peer}"))
    }

    /// Empties a queue node's directory and starts it again under its old id, to join.
    pub fn come_back_empty(&mut self, id: u32) -> Result<()> {
        let name = format!("queue-{id}");
        let data = self.data(&name);
        std::fs::remove_dir_all(&data)?;
        std::fs::create_dir(&data)?;
        let peer = self.peers.get(&id).copied().context("no such queue node")?;
        std::fs::remove_dir_all(self.pki(&name))?;
        self.place_queue(id, peer, "existing")?;
        self.spawn(&name)
    }

    /// Gives a node another value for an argument that it has, from its next start on.
    pub fn change(&mut self, name: &str, argument: &str, value: &str) -> Result<()> {
        let place = self.places.get_mut(name).context("no such node")?;
        let at = place.args.iter().position(|arg| arg == argument);
        let at = at.with_context(|| format!("{name} has no {argument}"))?;
        let old = place.args.get_mut(at + 1).context("it has no value")?;
        value.clone_into(old);
        Ok(())
    }
}
