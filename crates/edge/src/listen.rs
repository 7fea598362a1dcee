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
use crate::session::Conversation;

/// Connections that the kernel keeps until we accept them: a burst, not a queue.
const BACKLOG: i32 = 1024;
/// After a failed accept (no file descriptors, most likely) others get time to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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
pub(crate) async fn accept(node: Arc<Node>, listener: TcpListener, sessions: TaskTracker) {
    let name: Arc<str> = listener
        .local_addr()
        .map(|address| address.to_string())
        .unwrap_or_default()
        .into();
    while let Some(accepted) = node.draining.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((socket, client)) => welcome(&node, socket, client, &name, &sessions),
            Err(error) => {
                tracing::warn!(%error, listener = %name, "cannot accept a connection; if this goes on, raise the limit of open files");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn welcome(
    node: &Arc<Node>,
    socket: TcpStream,
    client: SocketAddr,
    listener: &Arc<str>,
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
        Err(exceeded) => return refuse(socket, client, exceeded),
    };
    // Replies are small and waited for; we batch them ourselves.
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, %client, "the connection ended before it began");
        return;
    }
    metrics::counter!("postroad_sessions_total").increment(1);
    let session = Conversation::new(node.clone(), socket, client, listener.clone());
    let span = tracing::info_span!("accept", %client);
    sessions.spawn(converse(node.clone(), session, permit).instrument(span));
}

async fn converse(node: Arc<Node>, session: Conversation, permit: Permit) {
    let _ = node.cut_off.run_until_cancelled(session.run()).await;
    drop(permit);
}

/// Says 421 without a task: the socket's buffer is empty, so the one write never waits.
fn refuse(socket: TcpStream, client: SocketAddr, exceeded: Exceeded) {
    metrics::counter!("postroad_refused_sessions_total", "limit" => exceeded.as_str()).increment(1);
    tracing::info!(%client, limit = exceeded.as_str(), "SMTP session refused");
    if let Ok(mut socket) = socket.into_std() {
        // Who is refused has no claim to hear it.
        let _ = socket.write_all(&Reply::too_many_sessions().to_bytes());
        let _ = socket.shutdown(std::net::Shutdown::Write);
    }
}
