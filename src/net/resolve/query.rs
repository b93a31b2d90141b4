//! One question to one name server: UDP, without EDNS where the server cannot read it, TCP where the response is long.
//! What does this server respond?

#![expect(clippy::disallowed_methods, reason = "asks name servers, from whatever address routes to them")]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// The largest response that is asked for over UDP: it fits any network without fragments (RFC 9715 §3.1).
const UDP_PAYLOAD: u16 = 1232;
/// Bytes of a datagram that are read: some servers send more than they were asked for.
const DATAGRAM_MAX: usize = 4096;
/// From connect to the last byte over TCP.
const TCP_TIMEOUT: Duration = Duration::from_secs(10);

/// Waits for the response as long as the caller does. An error says that no response can come: the port is closed, the
/// network unreachable, or the TCP connection broke.
pub(super) async fn send_query(server: SocketAddr, name: &Name, kind: RecordType) -> io::Result<Message> {
    let query = Query::query(name.clone(), kind);
    let mut question = question(&query, true);
    let mut response = over_udp(server, &question).await?;
    if matches!(response.metadata.response_code, ResponseCode::FormErr | ResponseCode::NotImp) {
        // The server may be older than EDNS: RFC 6891 §7 has it answer FORMERR, and some answer NOTIMP.
        question = self::question(&query, false);
        response = over_udp(server, &question).await?;
    }
    if response.metadata.truncation {
        let timed = timeout(TCP_TIMEOUT, over_tcp(server, &question)).await;
        response = timed.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    }
    Ok(response)
}

/// A question under a random id.
fn question(query: &Query, edns: bool) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(query.clone());
    if edns {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_PAYLOAD);
        message.set_edns(edns);
    }
    message
}

async fn over_udp(server: SocketAddr, question: &Message) -> io::Result<Message> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // A port of its own for each question, chosen at random by the kernel: with the id it is what an off-path attacker
    // has to guess (RFC 5452 §9.2). Connected, so that other hosts' datagrams are dropped and a closed port is known.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(&encoded(question)?).await?;
    let mut datagram = vec![0; DATAGRAM_MAX];
    loop {
        let length = socket.recv(&mut datagram).await?;
        if let Some(response) = response_to(question, &datagram[..length]) {
            return Ok(response);
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &Message) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let bytes = encoded(question)?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), &bytes[..]].concat()).await?;
    let mut response = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut response).await?;
    response_to(question, &response).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn encoded(question: &Message) -> io::Result<Vec<u8>> {
    question.to_vec().map_err(io::Error::other)
}

/// The message, if it responds to the question. Anything else may be a stranger's and is ignored.
fn response_to(question: &Message, bytes: &[u8]) -> Option<Message> {
    if bytes.get(..2)? != question.metadata.id.to_be_bytes() {
        return None;
    }
    let message = Message::from_vec(bytes).ok()?;
    let metadata = &message.metadata;
    if metadata.message_type != MessageType::Response || metadata.op_code != question.metadata.op_code {
        return None;
    }
    // A server that cannot read the question may send back nothing but a header.
    let refuses = !matches!(metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain);
    let is_header = message.queries.is_empty() && message.answers.is_empty();
    (message.queries == question.queries || refuses && is_header).then_some(message)
}
