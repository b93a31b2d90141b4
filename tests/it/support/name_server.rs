//! A UDP name server on loopback whose replies the test chooses.
//! Which names and address families does outgate query?

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub const A: u16 = 1;
pub const AAAA: u16 = 28;

/// A query that arrived.
#[derive(Clone, Debug)]
pub struct Query {
    /// The name in lower case, without the last dot.
    pub name: String,
    pub kind: u16,
    pub has_edns: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum Reply {
    Address(IpAddr),
    NoData,
    /// The response code of a failure.
    Code(u8),
    Timeout,
    /// The answer does not fit: outgate must ask over TCP.
    Truncated,
    After(Duration, IpAddr),
}

type Zone = dyn Fn(&Query) -> Reply + Send + Sync;

pub struct NameServer {
    pub address: SocketAddr,
    queries: Arc<Mutex<Vec<Query>>>,
}

impl NameServer {
    pub fn start(zone: impl Fn(&Query) -> Reply + Send + Sync + 'static) -> Self {
        Self::on_socket(UdpSocket::bind("127.0.0.1:0").unwrap(), zone)
    }

    /// Starts on a socket that is bound already.
    pub fn on_socket(socket: UdpSocket, zone: impl Fn(&Query) -> Reply + Send + Sync + 'static) -> Self {
        let server = Self { address: socket.local_addr().unwrap(), queries: Arc::default() };
        let queries = Arc::clone(&server.queries);
        let zone: Arc<Zone> = Arc::new(zone);
        std::thread::spawn(move || {
            let mut datagram = [0; 1500];
            while let Ok((length, peer)) = socket.recv_from(&mut datagram) {
                let datagram = datagram[..length].to_vec();
                let query = read(&datagram);
                queries.lock().unwrap().push(query.clone());
                let (zone, socket) = (Arc::clone(&zone), socket.try_clone().unwrap());
                std::thread::spawn(move || {
                    if let Some(response) = response(&datagram, &query, zone(&query)) {
                        let _ = socket.send_to(&response, peer);
                    }
                });
            }
        });
        server
    }

    pub fn queries(&self) -> Vec<Query> {
        self.queries.lock().unwrap().clone()
    }
}

/// Returns the offset at which the question section ends.
fn end_of_query(datagram: &[u8]) -> usize {
    let mut at = 12;
    while datagram[at] != 0 {
        at += 1 + usize::from(datagram[at]);
    }
    at + 5
}

fn read(datagram: &[u8]) -> Query {
    let end = end_of_query(datagram);
    let (mut labels, mut at) = (Vec::new(), 12);
    while datagram[at] != 0 {
        let next = at + 1 + usize::from(datagram[at]);
        labels.push(String::from_utf8_lossy(&datagram[at + 1..next]).to_lowercase());
        at = next;
    }
    let kind = u16::from_be_bytes([datagram[end - 4], datagram[end - 3]]);
    Query { name: labels.join("."), kind, has_edns: datagram[11] > 0 }
}

fn response(datagram: &[u8], query: &Query, reply: Reply) -> Option<Vec<u8>> {
    let (address, code) = match reply {
        Reply::Timeout => return None,
        Reply::Code(code) => (None, code),
        Reply::NoData | Reply::Truncated => (None, 0),
        Reply::Address(address) => (Some(address), 0),
        Reply::After(wait, address) => {
            std::thread::sleep(wait);
            (Some(address), 0)
        }
    };
    let count = u8::from(address.is_some());
    let mut response = datagram[..2].to_vec();
    let truncated = if matches!(reply, Reply::Truncated) { 2 } else { 0 };
    response.extend([0x81 | truncated, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0]);
    response.extend(&datagram[12..end_of_query(datagram)]);
    if let Some(address) = address {
        let bytes = match address {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        // The name of the query, its type, IN, 60 seconds.
        response.extend([0xc0, 0x0c, 0, query.kind as u8, 0, 1, 0, 0, 0, 60, 0, bytes.len() as u8]);
        response.extend(bytes);
    }
    Some(response)
}
