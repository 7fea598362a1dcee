//! STARTTLS and implicit TLS with a real TLS client.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use edge::Certificates;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::{DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::world::{Client, World};

/// A change of files is in use after this at most.
const RELOADED: Duration = Duration::from_secs(5);

/// Takes any certificate: what is tested is which one came.
#[derive(Debug)]
struct Any;

impl ServerCertVerifier for Any {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

type Secured = Client<TlsStream<TcpStream>>;

/// The handshake of a client that asks for `name`.
async fn secure(socket: TcpStream, name: &str) -> Secured {
    let config =
        rustls::ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Any))
            .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let shaken = TlsConnector::from(Arc::new(config))
        .connect(name, socket)
        .await;
    Client(BufReader::new(shaken.unwrap()))
}

fn certificate(client: &Secured) -> CertificateDer<'static> {
    let connection = client.0.get_ref().get_ref().1;
    connection.peer_certificates().unwrap()[0]
        .clone()
        .into_owned()
}

/// Writes a certificate for `name`, first beside and then in place of the former; gives it.
fn write(dir: &Path, name: &str) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    std::fs::create_dir_all(dir).unwrap();
    for (file, text) in [
        ("tls.crt", made.cert.pem()),
        ("tls.key", made.signing_key.serialize_pem()),
    ] {
        std::fs::write(dir.join("new"), text).unwrap();
        std::fs::rename(dir.join("new"), dir.join(file)).unwrap();
    }
    made.cert.der().clone()
}

/// An edge with certificates in `dir`; the second address has implicit TLS.
async fn world(dir: &Path, handshake: Duration) -> (World, SocketAddr) {
    let certificates = Arc::new(Certificates::load(dir, None).unwrap());
    let adjust = |config: &mut edge::Config| {
        config.certificates = Some(certificates);
        config.listen_tls = vec!["127.0.0.1:0".parse().unwrap()];
        config.handshake = handshake;
    };
    let world = World::with(adjust, Duration::from_secs(120)).await;
    let implicit = world.edge.as_ref().unwrap().addresses()[1];
    (world, implicit)
}

async fn implicit(address: SocketAddr, name: &str) -> Secured {
    let mut client = secure(TcpStream::connect(address).await.unwrap(), name).await;
    assert!(client.reply().await.starts_with("220 "));
    assert!(client.ask("EHLO [127.0.0.1]").await.starts_with("250"));
    client
}

#[tokio::test]
async fn after_starttls_the_trace_header_and_the_queue_say_how_it_came() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "mx.test");
    let (world, _) = world(dir.path(), Duration::from_secs(30)).await;
    let mut plain = world.client().await;
    assert_eq!(plain.ask("STARTTLS").await, "220 2.0.0 ready to start TLS");
    let mut client = secure(plain.0.into_inner(), "mx.test").await;
    assert!(
        client
            .ask("MAIL FROM:<a@client.example>")
            .await
            .starts_with("503 ")
    );
    assert!(client.ask("EHLO [127.0.0.1]").await.starts_with("250"));
    let reply = client
        .mail(
            "a@client.example",
            &["b@else.example"],
            b"x: y\r\n\r\nz\r\n",
        )
        .await;
    assert!(reply.starts_with("250 "), "{reply}");

    let (facts, body) = world.store.messages().remove(0);
    let trace = String::from_utf8_lossy(&body).into_owned();
    assert!(trace.contains("\r\n\t(TLSv1.3 TLS13_"), "{trace}");
    assert!(trace.contains("by mx.test with ESMTPS id "), "{trace}");
    let origin = facts.origin.unwrap();
    assert_eq!(origin.tls_version, "TLSv1.3");
    assert!(
        origin.tls_cipher.starts_with("TLS13_"),
        "{}",
        origin.tls_cipher
    );
}

/// CVE-2011-0411 with real sockets: what came in one packet with STARTTLS is not obeyed after the handshake.
#[tokio::test]
async fn commands_behind_starttls_in_clear_do_not_survive_the_handshake() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "mx.test");
    let (world, _) = world(dir.path(), Duration::from_secs(30)).await;
    let mut plain = world.client().await;
    plain
        .send(b"STARTTLS\r\nEHLO evil.test\r\nMAIL FROM:<a@client.example>\r\n")
        .await;
    assert!(plain.reply().await.starts_with("220 "));
    let mut client = secure(plain.0.into_inner(), "mx.test").await;
    let reply = client.ask("RCPT TO:<b@else.example>").await;
    assert_eq!(reply, "503 5.5.1 bad sequence of commands");
    assert!(client.ask("NOOP").await.starts_with("250 2.0.0 ok"));
}

#[tokio::test]
async fn a_changed_certificate_is_in_the_next_handshake_and_open_sessions_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let (first, other) = (write(&a, "a.test"), write(&b, "b.test"));
    let (world, address) = world(dir.path(), Duration::from_secs(30)).await;
    let mut open = implicit(address, "a.test").await;
    assert_eq!(certificate(&open), first);
    assert_eq!(certificate(&implicit(address, "b.test").await), other);
    open.begin("a@client.example", &["b@else.example"]).await;

    let second = write(&a, "a.test");
    let until = tokio::time::Instant::now() + RELOADED;
    while certificate(&implicit(address, "a.test").await) != second {
        assert!(
            tokio::time::Instant::now() < until,
            "not in use after {RELOADED:?}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    open.send(b"x: y\r\n\r\nz\r\n.\r\n").await;
    assert!(open.reply().await.starts_with("250 2.0.0 queued"));
    assert!(open.ask("QUIT").await.starts_with("221 "));

    // A key without its certificate changes nothing.
    std::fs::copy(b.join("tls.key"), a.join("tls.key")).unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(certificate(&implicit(address, "a.test").await), second);
    assert_eq!(world.store.messages().len(), 1);
}

#[tokio::test]
async fn where_certificates_may_wait_starttls_is_offered_when_the_first_comes() {
    let dir = tempfile::tempdir().unwrap();
    let certificates = Arc::new(Certificates::load_or_wait(dir.path(), Some("late")).unwrap());
    let adjust = |config: &mut edge::Config| config.certificates = Some(certificates);
    let world = World::with(adjust, Duration::from_secs(120)).await;
    let starttls = async || world.client().await.ask("STARTTLS").await;
    assert!(starttls().await.starts_with("502 "));
    write(&dir.path().join("late"), "mx.test");
    let until = tokio::time::Instant::now() + RELOADED;
    while !starttls().await.starts_with("220 ") {
        assert!(
            tokio::time::Instant::now() < until,
            "not in use after {RELOADED:?}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_client_that_stands_still_in_the_handshake_loses_its_connection() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "mx.test");
    let (world, address) = world(dir.path(), Duration::from_millis(300)).await;
    let silent: Client = Client::connect(address).await;
    let mut plain = world.client().await;
    assert!(plain.ask("STARTTLS").await.starts_with("220 "));
    assert_eq!(plain.rest().await, "");
    assert_eq!(silent.rest().await, "");
}

#[tokio::test]
async fn where_starttls_is_required_nothing_is_taken_before_it() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "mx.test");
    let certificates = Arc::new(Certificates::load(dir.path(), None).unwrap());
    let adjust = |config: &mut edge::Config| {
        config.certificates = Some(certificates);
        config.starttls = edge::StartTlsUse::Required;
    };
    let world = World::with(adjust, Duration::from_secs(120)).await;
    let mut client = world.client().await;
    let reply = client.ask("MAIL FROM:<a@client.example>").await;
    assert_eq!(reply, "530 5.7.0 must issue STARTTLS first");
}

#[tokio::test]
async fn where_starttls_is_switched_off_a_certificate_for_other_listeners_does_not_bring_it() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "mx.test");
    let certificates = Arc::new(Certificates::load(dir.path(), None).unwrap());
    let adjust = |config: &mut edge::Config| {
        config.certificates = Some(certificates);
        config.starttls = edge::StartTlsUse::Never;
    };
    let world = World::with(adjust, Duration::from_secs(120)).await;
    let mut client = world.client().await;
    let offered = client.ask("EHLO client.example").await;
    assert!(!offered.contains("STARTTLS"), "{offered}");
    let reply = client.ask("STARTTLS").await;
    assert!(reply.starts_with("502 "), "{reply}");
}
