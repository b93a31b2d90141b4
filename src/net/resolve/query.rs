//! One query to one name server: over UDP, again without EDNS if the server does not support it, and over TCP if the response
//! is truncated.
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

#[cfg(test)]
use crate::net::simulated::{self, DnsTransport};

/// The maximum response size that EDNS announces for UDP: it needs no fragments on any network (RFC 9715 §3.1).
const UDP_PAYLOAD: u16 = 1232;
/// The bytes of a datagram that are read: some servers send more than the announced size.
const DATAGRAM_MAX: usize = 4096;
/// The time from connect to the last byte over TCP.
const TCP_TIMEOUT: Duration = Duration::from_secs(10);

/// Sends a query and waits for the response, without a timeout. The error means that no response can come: the port is closed,
/// the network is unreachable, or the TCP connection broke.
pub(super) async fn send_query(server: SocketAddr, name: &Name, kind: RecordType) -> io::Result<Message> {
    let query = Query::query(name.clone(), kind);
    let mut request = message(&query, true);
    let mut response = over_udp(server, &request).await?;
    if matches!(response.metadata.response_code, ResponseCode::FormErr | ResponseCode::NotImp) {
        // The server may be older than EDNS: RFC 6891 §7 has it answer FORMERR, and some answer NOTIMP.
        request = message(&query, false);
        response = over_udp(server, &request).await?;
    }
    if response.metadata.truncation {
        let timed = timeout(TCP_TIMEOUT, over_tcp(server, &request)).await;
        response = timed.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    }
    Ok(response)
}

/// Builds a query message with a random id.
fn message(query: &Query, edns: bool) -> Message {
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

async fn over_udp(server: SocketAddr, request: &Message) -> io::Result<Message> {
    #[cfg(test)]
    if let Some(mut datagrams) = simulated::datagrams(server, encoded(request)?, DnsTransport::Udp) {
        loop {
            if let Some(response) = response_to(request, &datagrams.recv().await?) {
                return Ok(response);
            }
        }
    }
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // Each query has its own random port, which an off-path attacker must guess besides the id (RFC 5452 §9.2). The socket is
    // connected, so that the kernel drops datagrams of other hosts and reports a closed port.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(&encoded(request)?).await?;
    let mut datagram = vec![0; DATAGRAM_MAX];
    loop {
        let length = socket.recv(&mut datagram).await?;
        if let Some(response) = response_to(request, &datagram[..length]) {
            return Ok(response);
        }
    }
}

async fn over_tcp(server: SocketAddr, request: &Message) -> io::Result<Message> {
    #[cfg(test)]
    if let Some(mut responses) = simulated::datagrams(server, encoded(request)?, DnsTransport::Tcp) {
        let response = responses.recv().await?;
        return response_to(request, &response).ok_or_else(|| io::ErrorKind::InvalidData.into());
    }
    let mut stream = TcpStream::connect(server).await?;
    let bytes = encoded(request)?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), &bytes[..]].concat()).await?;
    let mut response = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut response).await?;
    response_to(request, &response).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn encoded(request: &Message) -> io::Result<Vec<u8>> {
    request.to_vec().map_err(io::Error::other)
}

/// Returns the message if it responds to the request. Other messages may be forged and are ignored.
fn response_to(request: &Message, bytes: &[u8]) -> Option<Message> {
    if bytes.get(..2)? != request.metadata.id.to_be_bytes() {
        return None;
    }
    let message = Message::from_vec(bytes).ok()?;
    let metadata = &message.metadata;
    if metadata.message_type != MessageType::Response || metadata.op_code != request.metadata.op_code {
        return None;
    }
    // A server that cannot parse the request may return only a header.
    let refuses = !matches!(metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain);
    let is_header = message.queries.is_empty() && message.answers.is_empty();
    (message.queries == request.queries || refuses && is_header).then_some(message)
}
