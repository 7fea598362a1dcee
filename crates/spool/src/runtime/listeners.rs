//! The two gRPC services of a queue node: for replicas, and for clients.

use proto::v1::admin_server::AdminServer;
use proto::v1::config_server::ConfigServer;
use proto::v1::peer_server::PeerServer;
use proto::v1::queue_server::QueueServer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Error};
use crate::serve::{PeerServices, Services};

type Server = tokio::task::JoinHandle<()>;

/// Serves replicas until `stop`; at `cut` connections are taken no more.
pub(super) async fn serve_peers(
    config: &Config,
    peers: PeerServices,
    stop: CancellationToken,
    cut: CancellationToken,
) -> Result<Server, Error> {
    let listener = listen(config.listen_peer, "replicas").await?;
    let service = PeerServer::new(peers)
        .max_decoding_message_size(proto::tls::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(proto::tls::MESSAGE_BYTES_MAX);
    let server = proto::tls::server().add_service(service);
    let incoming = proto::incoming(listener, config.tls.clone()).until(cut);
    Ok(tokio::spawn(async move {
        if let Err(error) = server
            .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
            .await
        {
            tracing::error!(%error, "the service for replicas ended");
        }
    }))
}

/// Serves clients until `stop`; at `cut` connections are taken no more.
pub(super) async fn serve_clients(
    config: &Config,
    services: Services,
    stop: CancellationToken,
    cut: CancellationToken,
) -> Result<Server, Error> {
    let listener = listen(config.listen_client, "clients").await?;
    let queue = QueueServer::new(services.clone())
        .max_decoding_message_size(proto::tls::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(proto::tls::MESSAGE_BYTES_MAX);
    let admin = AdminServer::new(services.clone());
    let declared = ConfigServer::new(services);
    let server = proto::tls::server().add_service(queue).add_service(admin);
    let server = server.add_service(declared);
    let incoming = proto::incoming(listener, config.tls.clone()).until(cut);
    Ok(tokio::spawn(async move {
        if let Err(error) = server
            .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
            .await
        {
            tracing::error!(%error, "the service for clients ended");
        }
    }))
}

async fn listen(
    address: std::net::SocketAddr,
    purpose: &'static str,
) -> Result<TcpListener, Error> {
    TcpListener::bind(address)
        .await
        .map_err(|source| Error::Listen {
            address,
            purpose,
            source,
        })
}
