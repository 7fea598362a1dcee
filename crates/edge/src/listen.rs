//! The accept loop: permits, and how the node leaves.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mail::Reply;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::node::Node;
use crate::permit::{Exceeded, Permit};
use crate::session::{Conversation, Who};
use crate::tls;

/// Connections that the kernel keeps until we accept them: a burst, not a queue.
const BACKLOG: i32 = 1024;
/// After a failed accept (no file descriptors, most likely) others get time to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: TcpListener,
    /// For logs and origins.
    name: Arc<str>,
    /// TLS begins with the connection.
    implicit: bool,
}

impl Listener {
    pub fn new(socket: TcpListener, implicit: bool) -> Listener {
        let name = socket
            .local_addr()
            .map(|address| address.to_string())
            .unwrap_or_default()
            .into();
        Listener {
            socket,
            name,
            implicit,
        }
    }
}

/// Binds an address. A process that starts again gets it while connections of the former one are in TIME_WAIT.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Accepts until the node drains; the listening socket is closed on return.
pub(crate) async fn accept(node: Arc<Node>, listener: Listener, sessions: TaskTracker) {
    let accept = || node.draining.run_until_cancelled(listener.socket.accept());
    while let Some(accepted) = accept().await {
        match accepted {
            Ok((socket, client)) => welcome(&node, socket, client, &listener, &sessions),
            Err(error) => {
                tracing::warn!(%error, listener = %listener.name, "cannot accept a connection; if this goes on, raise the limit of open files");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn welcome(
    node: &Arc<Node>,
    socket: TcpStream,
    client: SocketAddr,
    listener: &Listener,
    sessions: &TaskTracker,
) {
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    let settings = node.settings();
    let permit = match node.permits.take(
        client.ip(),
        settings.connections,
        settings.connections_per_source,
    ) {
        Ok(permit) => permit,
        Err(exceeded) => return refuse(socket, client, exceeded, listener.implicit),
    };
    // Replies are small and waited for; we batch them ourselves.
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, %client, "the connection ended before it began");
        return;
    }
    metrics::counter!("postroad_sessions_total").increment(1);
    let who = Who {
        client,
        listener: listener.name.clone(),
    };
    let session = begin(node.clone(), socket, who, listener.implicit, permit);
    let span = tracing::info_span!("accept", %client);
    sessions.spawn(session.instrument(span));
}

async fn begin(node: Arc<Node>, socket: TcpStream, who: Who, implicit: bool, permit: Permit) {
    let session = async {
        match node.tls.clone().filter(|_| implicit) {
            None => Conversation::new(node.clone(), socket, who).run().await,
            Some(config) => match tls::accept(config, socket, node.config.handshake).await {
                Ok((stream, facts)) => {
                    let session = Conversation::over_tls(node.clone(), stream, facts, who);
                    session.run().await;
                }
                Err(error) => tracing::info!(%error, "no TLS with this client"),
            },
        }
    };
    let _ = node.cut_off.run_until_cancelled(session).await;
    drop(permit);
}

/// Says 421 without a task: the socket's buffer is empty, so the one write never waits. Where TLS comes first nothing can be said
/// for as little.
fn refuse(socket: TcpStream, client: SocketAddr, exceeded: Exceeded, silent: bool) {
    metrics::counter!("postroad_refused_sessions_total", "limit" => exceeded.as_str()).increment(1);
    tracing::info!(%client, limit = exceeded.as_str(), "SMTP session refused");
    if silent {
        return;
    }
    if let Ok(mut socket) = socket.into_std() {
        // Who is refused has no claim to hear it.
        let _ = socket.write_all(&Reply::too_many_sessions().to_bytes());
        let _ = socket.shutdown(std::net::Shutdown::Write);
    }
}
