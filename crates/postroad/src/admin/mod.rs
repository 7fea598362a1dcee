//! The administration commands: each a question to the queue or to a file, an answer for people or for programs, and an
//! exit code that means something (0 done, 1 failed, 2 misused, 3 not reached).

use std::sync::Arc;

use proto::NodeTls;
use proto::QueueClient;
use proto::client::ClientConfig;

use crate::failure::Failure;
use crate::first_start;
use crate::settings::Connection;

pub mod check;
pub mod config;
pub mod dns;
pub mod get;
pub mod members;
pub mod pki;
pub mod queue;
pub mod salvage;
pub mod send;
pub mod status;
mod table;

/// A client of the queue that the flags name, or of the `up` in the data directory.
fn connect(flags: &Connection) -> Result<QueueClient, Failure> {
    let mut endpoints = flags.queue.clone();
    if endpoints.is_empty() {
        let found = first_start::read(&flags.data)?.ok_or_else(|| {
            Failure::Unreachable(format!(
                "there is no queue to ask: {} holds none; start `postroad up` here, name its --data, or give --queue \
                 and --pki",
                flags.data.display()
            ))
        })?;
        endpoints = found.nodes.iter().map(first_start::Node::client).collect();
    }
    let pki = match &flags.pki {
        Some(pki) => pki.clone(),
        None => first_start::pki_dir(&flags.data, "admin"),
    };
    let tls = NodeTls::load(&pki).map_err(Failure::failed)?;
    Ok(QueueClient::new(ClientConfig {
        endpoints,
        tls: Arc::new(tls),
        name: "admin".into(),
    }))
}

/// One JSON document on standard output.
fn print_json(value: &serde_json::Value) {
    println!("{value:#}");
}

/// Milliseconds since 1970 now, by this machine's clock.
fn now_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}
