//! One question to one server: over UDP, and over TCP when the answer is too long for it (RFC 1035 section 4.2).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_resolver::proto::op::{Edns, Message, MessageType, Query};
use hickory_resolver::proto::rr::{Name, RecordType};
use rand::RngExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// One attempt.
const TIMEOUT: Duration = Duration::from_secs(3);
/// UDP loses packets.
const ATTEMPTS: usize = 2;
/// Octets of an answer over UDP: what passes every path in one piece (DNS flag day 2020).
const UDP_OCTETS: u16 = 1232;

/// What the server says, whatever it is; the text says why it said nothing.
pub(crate) async fn ask(
    server: SocketAddr,
    name: &Name,
    kind: RecordType,
) -> Result<Message, String> {
    let mut why = String::new();
    for _ in 0..ATTEMPTS {
        match tokio::time::timeout(TIMEOUT, once(server, name, kind)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => why = error,
            Err(_) => why = format!("no answer for {} s", TIMEOUT.as_secs()),
        }
    }
    Err(why)
}

async fn once(server: SocketAddr, name: &Name, kind: RecordType) -> Result<Message, String> {
    let mut question = Message::query();
    question.metadata.id = rand::rng().random();
    // The server itself is asked, not whom it knows.
    question.metadata.recursion_desired = false;
    question.add_query(Query::query(name.clone(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_OCTETS);
    question.set_edns(edns);
    let octets = question.to_vec().map_err(|error| error.to_string())?;
    let short = by_udp(server, &octets, &question)
        .await
        .map_err(|error| error.to_string())?;
    match short.metadata.truncation {
        false => Ok(short),
        true => by_tcp(server, &octets, &question)
            .await
            .map_err(|error| format!("over TCP: {error}")),
    }
}

async fn by_udp(server: SocketAddr, octets: &[u8], question: &Message) -> std::io::Result<Message> {
    let own: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(own).await?;
    // Connected: nobody else's packets come in.
    socket.connect(server).await?;
    socket.send(octets).await?;
    let mut answer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut answer).await?;
        // What is not the answer to this question was not sent by whom we asked.
        if let Some(answer) = answers(&answer[..length], question) {
            return Ok(answer);
        }
    }
}

async fn by_tcp(server: SocketAddr, octets: &[u8], question: &Message) -> std::io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(octets.len()).map_err(std::io::Error::other)?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(octets).await?;
    let length = usize::from(stream.read_u16().await?);
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer).await?;
    answers(&answer, question)
        .ok_or_else(|| std::io::Error::other("the answer is to another question"))
}

/// The octets are an answer to the question.
fn answers(octets: &[u8], question: &Message) -> Option<Message> {
    let answer = Message::from_vec(octets).ok()?;
    let same = answer.metadata.id == question.metadata.id
        && answer.metadata.message_type == MessageType::Response
        // A server that cannot read the question may leave it out (RFC 1035 section 4.1.1, format error).
        && (answer.queries.is_empty() || answer.queries == question.queries);
    same.then_some(answer)
}
