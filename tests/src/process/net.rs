//! Ports on loopback that nobody has, and what a node answers over HTTP.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What a node answers to GET.
pub(super) async fn ask(port: u16, path: &str) -> Result<String> {
    let asked = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    };
    tokio::time::timeout(Duration::from_secs(5), asked).await?
}

/// A port that is free, below those that Linux gives to outgoing connections: a node that was killed finds it again.
pub fn free_port() -> Result<u16> {
    for _ in 0..200 {
        let port = rand::random_range(12_000..20_000);
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() && unused(port) {
            return Ok(port);
        }
    }
    bail!("no free port between 12000 and 20000")
}

/// Listens on such a port. Somebody may take one between the look and the bind: then it is another.
pub(super) async fn listen() -> Result<TcpListener> {
    for _ in 0..20 {
        match TcpListener::bind(("127.0.0.1", free_port()?)).await {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
            bound => return Ok(bound?),
        }
    }
    bail!("twenty free ports were all taken before they could be bound")
}

/// Given to nobody else in this process yet.
fn unused(port: u16) -> bool {
    static GIVEN: std::sync::Mutex<std::collections::BTreeSet<u16>> =
        std::sync::Mutex::new(std::collections::BTreeSet::new());
    let mut given = GIVEN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    given.insert(port)
}
