//! The listening side: TCP and TLS done before tonic sees a connection, with the caller's identity in each request.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::Server;
use tonic::transport::server::Connected;

use super::{
    HTTP2_FRAME_BYTES, NodeTls, PING_INTERVAL, PING_TIMEOUT, WINDOW_BYTES, causes, verify,
};
use crate::Rare;
use crate::identity::Peer;

/// A handshake that is not done by then is dropped: a sane one takes milliseconds.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes under way at once; more wait in the kernel's backlog. Each costs some 30 KiB.
const HANDSHAKES_MAX: usize = 256;
/// After a failing accept (no descriptors left) the next try waits this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Of refused connections one in so long is written to the log: whoever reaches the port can make any number of them.
const REFUSED_LOGGED: Duration = Duration::from_secs(10);

static REFUSED: Rare = Rare::new(REFUSED_LOGGED);

/// A gRPC server with this cluster's windows and pings; for `serve_with_incoming(incoming(..))`.
pub fn server() -> Server {
    Server::builder()
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_frame_size(HTTP2_FRAME_BYTES)
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
}

/// Accepts connections and shakes hands, many at once: a slow or broken one holds up nobody. The stream ends never;
/// dropping it closes the listener.
pub fn incoming(listener: TcpListener, tls: Arc<NodeTls>) -> Incoming {
    let (done, ready) = mpsc::channel(HANDSHAKES_MAX);
    tokio::spawn(accept(listener, tls, done));
    Incoming { ready, cut: None }
}

/// Connections whose handshake is done.
#[derive(Debug)]
pub struct Incoming {
    ready: mpsc::Receiver<TlsIo>,
    cut: Option<CancellationToken>,
}

impl Incoming {
    /// Its connections break when `cut` is cancelled. A server that ends waits for the streams that stand, and some
    /// stand for ever; who is at their other end must notice and go elsewhere.
    pub fn until(self, cut: CancellationToken) -> Incoming {
        let cut = Some(cut);
        Incoming { cut, ..self }
    }
}

impl Stream for Incoming {
    type Item = Result<TlsIo, io::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let ready = self.ready.poll_recv(cx);
        ready.map(|io| {
            io.map(|mut io| {
                io.cut = self.cut.clone().map(|cut| Box::pin(cut.cancelled_owned()));
                Ok(io)
            })
        })
    }
}

async fn accept(listener: TcpListener, tls: Arc<NodeTls>, done: mpsc::Sender<TlsIo>) {
    let pending = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let Ok(permit) = pending.clone().acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = done.closed() => return,
        };
        match accepted {
            Ok((socket, address)) => {
                let (tls, done) = (tls.clone(), done.clone());
                tokio::spawn(async move {
                    let shaken =
                        tokio::time::timeout(HANDSHAKE_TIMEOUT, shake(socket, address, &tls)).await;
                    drop(permit);
                    match shaken {
                        Ok(Ok(io)) => {
                            // The server is gone: so is its connection.
                            let _ = done.send(io).await;
                        }
                        Ok(Err(error)) => {
                            refused("refused", address, &causes(&error));
                        }
                        Err(_) => {
                            let text =
                                format!("no TLS handshake in {} s", HANDSHAKE_TIMEOUT.as_secs());
                            refused("slow", address, &text);
                        }
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection of another node; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A connection came to nothing: counted, and now and then logged.
fn refused(why: &'static str, address: SocketAddr, error: &str) {
    metrics::counter!("postroad_connections_refused_total", "why" => why).increment(1);
    if let Some(withheld) = REFUSED.pass(Instant::now()) {
        tracing::warn!(%address, error, withheld, "refused a connection of another node");
    }
}

async fn shake(socket: TcpStream, address: SocketAddr, tls: &NodeTls) -> io::Result<TlsIo> {
    socket.set_nodelay(true)?;
    let stream = TlsAcceptor::from(tls.server_config())
        .accept(socket)
        .await?;
    // The verifier accepted it a moment ago; this only reads the name again.
    let identity = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(<[_]>::first)
        .ok_or_else(|| io::Error::other("the other side sent no certificate"))
        .and_then(|cert| verify::identity_of(cert).map_err(io::Error::other))?;
    Ok(TlsIo {
        stream,
        peer: Peer { identity, address },
        cut: None,
    })
}

/// An accepted connection: its requests carry a [`Peer`].
#[derive(Debug)]
pub struct TlsIo {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    cut: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl Connected for TlsIo {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for TlsIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // HTTP/2 always reads, so this always wakes.
        if let Some(cut) = &mut self.cut
            && cut.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for TlsIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
