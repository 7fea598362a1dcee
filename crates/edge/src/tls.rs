//! TLS on the SMTP side: the handshake, its time, and what it gave.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::certificates::Certificates;

/// What a TLS session is, for trace headers and logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsFacts {
    /// `TLSv1.3`.
    pub version: &'static str,
    /// `TLS13_AES_256_GCM_SHA384`.
    pub cipher: String,
}

/// A configuration whose certificates are looked up at each handshake.
///
/// # Errors
/// What the library says; it cannot with the versions named here.
pub(crate) fn server_config(certificates: Arc<Certificates>) -> io::Result<Arc<ServerConfig>> {
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    Ok(Arc::new(config))
}

/// Shakes hands within `patience`.
pub(crate) async fn accept(
    config: Arc<ServerConfig>,
    socket: TcpStream,
    patience: Duration,
) -> io::Result<(Box<TlsStream<TcpStream>>, TlsFacts)> {
    let shaken = timeout(patience, TlsAcceptor::from(config).accept(socket)).await;
    let shaken = shaken.unwrap_or_else(|_| {
        let text = format!("no TLS handshake within {patience:?}");
        Err(io::Error::new(io::ErrorKind::TimedOut, text))
    });
    let stream = shaken.inspect_err(|_| {
        metrics::counter!("postroad_tls_handshakes_failed_total").increment(1);
    })?;
    let facts = facts(stream.get_ref().1);
    metrics::counter!("postroad_tls_sessions_total", "version" => facts.version).increment(1);
    Ok((Box::new(stream), facts))
}

fn facts(connection: &rustls::ServerConnection) -> TlsFacts {
    let version = match connection.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
        Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
        _ => "TLS",
    };
    let suite = connection.negotiated_cipher_suite();
    let cipher = suite.and_then(|suite| suite.suite().as_str().map(str::to_owned));
    TlsFacts {
        version,
        cipher: cipher.unwrap_or_default(),
    }
}
