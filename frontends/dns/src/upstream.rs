//! The upstream server for other names, queried as a stub resolver does.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::reply::UDP_PAYLOAD;
use crate::request::DnsRequest;

/// How long each attempt waits, because a datagram may be lost.
const ATTEMPTS: [Duration; 2] = [Duration::from_millis(1500), Duration::from_millis(2500)];

/// Asks over UDP with a new port and ID each time, and over TCP if the answer does not fit.
pub(crate) async fn ask(request: &DnsRequest, server: SocketAddr) -> io::Result<Message> {
    let mut lost = io::Error::from(io::ErrorKind::TimedOut);
    for patience in ATTEMPTS {
        match timeout(patience, by_udp(request, server)).await {
            Ok(Ok(answer)) if answer.metadata.truncation => return by_tcp(request, server).await,
            Ok(Err(error)) => lost = error,
            Ok(answer) => return answer,
            Err(_) => {}
        }
    }
    Err(lost)
}

async fn by_udp(request: &DnsRequest, server: SocketAddr) -> io::Result<Message> {
    let any = match server {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any).await?;
    // Connected, so that the kernel drops datagrams from others.
    socket.connect(server).await?;
    let (question, bytes) = question(request)?;
    socket.send(&bytes).await?;
    let mut buffer = [0; UDP_PAYLOAD as usize];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(answer) = ours(&question, &buffer[..length]) {
            return Ok(answer);
        }
    }
}

async fn by_tcp(request: &DnsRequest, server: SocketAddr) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let (question, bytes) = question(request)?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream
        .write_all(&[&length.to_be_bytes()[..], &bytes].concat())
        .await?;
    let mut answer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut answer).await?;
    let not_ours = || io::Error::new(io::ErrorKind::InvalidData, "it answered something else");
    ours(&question, &answer).ok_or_else(not_ours)
}

fn question(request: &DnsRequest) -> io::Result<(Message, Vec<u8>)> {
    let mut question = Message::query();
    question.metadata.recursion_desired = request.recursion_desired;
    question.metadata.checking_disabled = request.checking_disabled;
    question.add_query(request.query.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_PAYLOAD);
    edns.set_dnssec_ok(request.wants_signatures());
    question.set_edns(edns);
    let bytes = question.to_vec().map_err(io::Error::other)?;
    Ok((question, bytes))
}

/// Whether an answer has the ID and the question of our query.
fn ours(question: &Message, bytes: &[u8]) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    let fits = answer.metadata.id == question.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && answer.queries == question.queries;
    fits.then_some(answer)
}
