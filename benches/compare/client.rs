//! A client of the proxy: how it connects, and what it sends.
//! How does a webhook reach the proxy?

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpStream;

use crate::authority::TARGET;
use crate::http1::Conn;
use crate::receiver::PLAIN;
use crate::workload::{DOWNLOAD, Kind, Workload};

/// The port of a contender that is a proxy.
const PROXY: u16 = 3128;
/// A contender with fixed targets listens at the target's port less this number.
const LISTENERS: u16 = 6000;
/// It relays bytes to the target at the target's port less this number.
const RELAYS: u16 = 7000;

/// The way to a target through the contender.
pub(crate) struct Way {
    address: SocketAddr,
    /// The CONNECT that precedes the requests.
    connect: Option<Vec<u8>>,
    /// The bytes of one request.
    pub(crate) request: Vec<u8>,
}

impl Way {
    /// `listeners`: the contender has a listener for each target, and no CONNECT. `fields`: more lines of the head.
    pub(crate) fn new(workload: &Workload, listeners: bool, fields: &[String]) -> Self {
        let Workload { kind, port, .. } = *workload;
        let authority = format!("{TARGET}:{port}");
        let tunnel = matches!(kind, Kind::Tunnel | Kind::Bulk | Kind::IdleTunnels);
        let fields: String = fields.iter().map(|line| format!("{line}\r\n")).collect();
        let (inner, outer) = if tunnel { ("", fields.as_str()) } else { (fields.as_str(), "") };
        let scheme = if port == PLAIN || listeners { "http" } else { "https" };
        let start = if tunnel { String::new() } else { format!("{scheme}://{authority}") };
        let request = if kind == Kind::Bulk {
            format!("GET /bytes/{DOWNLOAD} HTTP/1.1\r\nHost: {authority}\r\n\r\n")
        } else {
            let body = body();
            format!(
                "POST {start}/in HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: bench/1\r\nAccept: */*\r\n\
                 Content-Type: application/json\r\nContent-Length: {}\r\nWebhook-Id: msg_2f8a61c4\r\n{inner}\r\n{body}",
                body.len()
            )
        };
        let connect = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{outer}\r\n").into_bytes();
        let listener = match (listeners, tunnel) {
            (false, _) => PROXY,
            (true, false) => port - LISTENERS,
            (true, true) => port - RELAYS,
        };
        Self {
            address: (Ipv4Addr::LOCALHOST, listener).into(),
            connect: (tunnel && !listeners).then_some(connect),
            request: request.into_bytes(),
        }
    }

    /// The way to another port of the receiver.
    pub(crate) fn to_port(port: u16, listeners: bool, fields: &[String]) -> Self {
        let workload = Workload { name: "", title: "", kind: Kind::Deliver, port, clients: 1, rate: None };
        Self::new(&workload, listeners, fields)
    }

    /// Connects, and opens the tunnel if there is one.
    pub(crate) async fn open(&self) -> io::Result<Conn<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let mut conn = Conn::new(stream);
        if let Some(connect) = &self.connect {
            conn.send(connect).await?;
            let status = conn.response(true).await?.status;
            if status != 200 {
                return Err(io::Error::other(format!("status {status} to CONNECT")));
            }
            conn = Conn::new(conn.into_stream()?);
        }
        Ok(conn)
    }

    /// Sends the request and reads the response. Returns whether the connection stays open.
    pub(crate) async fn exchange(&self, conn: &mut Conn<TcpStream>) -> io::Result<bool> {
        conn.send(&self.request).await?;
        let head = conn.response(false).await?;
        conn.body(head.framing, &mut |_| ()).await?;
        if head.status == 200 { Ok(!head.close) } else { Err(io::Error::other(format!("status {}", head.status))) }
    }

    pub(crate) async fn wait_until_it_listens(&self) -> io::Result<()> {
        for _ in 0..1000 {
            if TcpStream::connect(self.address).await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        Err(io::Error::other(format!("nothing listens on {}", self.address)))
    }
}

/// 1 KiB of JSON.
fn body() -> String {
    format!("{{\"data\":\"{}\"}}", "x".repeat(1024 - 11))
}
