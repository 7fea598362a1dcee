//! The calling side: a connector for tonic that speaks our TLS.

use std::error::Error;
use std::fmt::Write;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::http::Uri;
use tonic::transport::Endpoint;
use tower::Service;

use super::{HTTP2_FRAME_BYTES, NodeTls, PING_INTERVAL, PING_TIMEOUT, WINDOW_BYTES, verify};

/// TCP and TLS together. A dead address must not hold up the try of the next one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// An endpoint for `host:port` with this cluster's windows and pings; use it with
/// `connect_with_connector_lazy(Connector::new(..))`. The scheme is http because tonic must not add TLS of its own.
pub fn endpoint(address: &str) -> Result<Endpoint, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| format!("{address:?} is no address; expected host:port"))?;
    if endpoint.uri().port_u16().is_none() {
        return Err(format!("{address:?} has no port; expected host:port"));
    }
    Ok(endpoint
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_frame_size(HTTP2_FRAME_BYTES)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true))
}

/// Connects to queue nodes of our cluster.
#[derive(Clone, Debug)]
pub struct Connector {
    tls: Arc<NodeTls>,
    name: Option<Arc<str>>,
}

impl Connector {
    /// To any queue node of the cluster.
    pub fn new(tls: Arc<NodeTls>) -> Connector {
        Connector { tls, name: None }
    }

    /// Only to the queue node whose certificate has this name (its node id).
    pub fn to_node(tls: Arc<NodeTls>, name: &str) -> Connector {
        Connector {
            tls,
            name: Some(name.into()),
        }
    }

    async fn connect(self, uri: Uri) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
        let host = uri.host().unwrap_or_default();
        // An IPv6 literal stands in brackets in a URI and without them in a socket address.
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = uri.port_u16().unwrap_or_default();
        let attempt = async {
            let socket = TcpStream::connect((host, port)).await?;
            socket.set_nodelay(true)?;
            // Names are not checked and not sent; the library wants one.
            let name = ServerName::try_from("queue").map_err(io::Error::other)?;
            TlsConnector::from(self.tls.client_config())
                .connect(name, socket)
                .await
        };
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, attempt)
            .await
            .unwrap_or_else(|_| {
                let text = format!("no connection within {} s", CONNECT_TIMEOUT.as_secs());
                Err(io::Error::new(io::ErrorKind::TimedOut, text))
            })
            .map_err(|e| {
                io::Error::new(
                    e.kind(),
                    format!("cannot connect to {host}:{port}: {}", causes(&e)),
                )
            })?;
        if let Some(wanted) = &self.name {
            let found = stream
                .get_ref()
                .1
                .peer_certificates()
                .and_then(<[_]>::first);
            let found = found.and_then(|cert| verify::identity_of(cert).ok());
            if found.as_ref().is_none_or(|id| id.name != **wanted) {
                let found = found.map_or_else(|| "nobody".to_owned(), |id| id.to_string());
                return Err(io::Error::other(format!(
                    "{host}:{port} is {found}, expected queue node {wanted}; compare the addresses of the nodes"
                )));
            }
        }
        Ok(TokioIo::new(stream))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, io::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// An error with all that caused it, each text once: what tonic says ("transport error") helps nobody.
pub fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut refused = false;
    let mut next = Some(error);
    while let Some(error) = next {
        let one = error.to_string();
        if !text.contains(&one) {
            let separator = if text.is_empty() { "" } else { ": " };
            // Writing to a String cannot fail.
            let _ = write!(text, "{separator}{one}");
        }
        next = match error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => error.source(),
        };
        match next.and_then(|e| e.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::AlertReceived(_)) => refused = true,
            // Our own words, without the library's around them.
            Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other))) => {
                return other.0.to_string();
            }
            _ => {}
        }
    }
    if refused {
        text.push_str("; the other side refused our certificate, its log says why");
    }
    text
}
