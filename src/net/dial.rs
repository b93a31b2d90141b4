//! The only code that opens an outgoing connection, always bound to the source address of a [`Hop`] first.
//! How does a webhook leave from the source address that was chosen for it?

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout_at};

use super::connection::OutboundSocket;
use super::{local, sockopt};
use crate::policy::egress::Hop;

/// How long one attempt may stay alone before the next one starts beside it (RFC 8305 §5, Connection Attempt Delay).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// What came of dialling.
#[derive(Debug)]
pub struct DialReport {
    pub outcome: Result<DialledSocket, DialError>,
    /// The hop of the attempt that decided the outcome: the last one with the fault of the outcome.
    pub hop: Option<Hop>,
    /// In the order in which they ended.
    pub attempts: Vec<ConnectAttempt>,
    /// Sources that turned out not to be this host's.
    pub unusable: Vec<IpAddr>,
    /// Ways that were refused, had no answer until the deadline, or none for as long as the next one waits.
    pub unanswered: Vec<Hop>,
}

/// One attempt to connect.
#[derive(Debug)]
pub struct ConnectAttempt {
    pub hop: Hop,
    /// `connected`, `abandoned` (another attempt had connected), or what its fault is called in records.
    pub outcome: &'static str,
    pub took: Duration,
}

#[derive(Debug)]
pub struct DialledSocket {
    pub socket: OutboundSocket,
    pub hop: Hop,
}

/// Why no hop led to a connection: of several reasons, the one that says most about the target.
#[derive(Debug)]
pub enum DialError {
    Refused,
    Timeout,
    Unreachable,
    /// No source could be used: not an address of this host, or out of ports towards this target.
    NoSource,
    Other(io::Error),
}

impl DialError {
    /// For records.
    fn as_str(&self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::NoSource => "no_source",
            Self::Other(_) => "error",
        }
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "connection refused",
            Self::Timeout => "no connection in time",
            Self::Unreachable => "no route to the target",
            Self::NoSource => "no usable source address",
            Self::Other(_) => "connection attempt did not succeed",
        })
    }
}

impl std::error::Error for DialError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Other(error) => Some(error),
            _ => None,
        }
    }
}

/// Tries the hops in their order, as RFC 8305 §5 says: the next one starts when the last has failed or has not
/// answered for [`ATTEMPT_DELAY`]; the first to connect wins, and the others are closed with their futures.
pub async fn dial(hops: &[Hop], deadline: Instant) -> DialReport {
    let (mut unusable, mut unanswered, mut attempts) = (Vec::new(), Vec::new(), Vec::new());
    let mut fault = (DialError::NoSource, None);
    let mut waiting = hops.iter().copied();
    let mut running: Vec<AttemptInFlight> = Vec::new();
    let outcome = loop {
        match waiting.find(|hop| !unusable.contains(&hop.from())) {
            Some(hop) => running.push(AttemptInFlight { hop, since: Instant::now(), attempt: Box::pin(connect(hop)) }),
            None if running.is_empty() => break Err(fault),
            None => {}
        }
        let until = if waiting.len() == 0 { deadline } else { deadline.min(Instant::now() + ATTEMPT_DELAY) };
        match timeout_at(until, first(&mut running)).await {
            Ok((hop, since, ended)) => {
                let outcome = ended.as_ref().map_or_else(ConnectFailure::as_str, |_| "connected");
                attempts.push(ConnectAttempt { hop, outcome, took: since.elapsed() });
                let next = match ended {
                    Ok(socket) => break Ok(DialledSocket { socket, hop }),
                    Err(ConnectFailure::SourceUnavailable) => {
                        unusable.push(hop.from());
                        DialError::NoSource
                    }
                    Err(ConnectFailure::Failed(next)) => next,
                };
                if matches!(next, DialError::Refused | DialError::Timeout | DialError::Unreachable) {
                    unanswered.push(hop);
                }
                fault = more_telling(fault, (next, Some(hop)));
            }
            Err(_) if Instant::now() < deadline => {}
            Err(_) => {
                let last = running.last().map(|running| running.hop);
                break Err(more_telling(fault, (DialError::Timeout, last)));
            }
        }
    };
    let has_waited = |running: &&AttemptInFlight| outcome.is_err() || running.since.elapsed() >= ATTEMPT_DELAY;
    unanswered.extend(running.iter().filter(has_waited).map(|running| running.hop));
    let unended = if outcome.is_ok() { "abandoned" } else { DialError::Timeout.as_str() };
    let attempt = |running: &AttemptInFlight| ConnectAttempt {
        hop: running.hop,
        outcome: unended,
        took: running.since.elapsed(),
    };
    attempts.extend(running.iter().map(attempt));
    let (outcome, hop) = match outcome {
        Ok(dialled) => {
            let hop = Some(dialled.hop);
            (Ok(dialled), hop)
        }
        Err((fault, hop)) => (Err(fault), hop),
    };
    DialReport { outcome, hop, attempts, unusable, unanswered }
}

/// Is this an address that connections can leave from and answers come back to?
///
/// An IPv6 address is bindable whether this host has it or not, since [`bound`] asks for that: there, the routing
/// table decides.
pub fn try_source(ip: IpAddr) -> io::Result<()> {
    bound(ip)?;
    if ip.is_ipv6() && !local::read()?.contains(ip) {
        return Err(io::Error::from_raw_os_error(libc::EADDRNOTAVAIL));
    }
    Ok(())
}

/// An attempt under way.
struct AttemptInFlight {
    hop: Hop,
    since: Instant,
    attempt: Pin<Box<dyn Future<Output = Result<OutboundSocket, ConnectFailure>> + Send>>,
}

/// Waits for whichever attempt ends first, and takes it out.
async fn first(running: &mut Vec<AttemptInFlight>) -> (Hop, Instant, Result<OutboundSocket, ConnectFailure>) {
    let (index, ended) = poll_fn(|cx| {
        for (index, running) in running.iter_mut().enumerate() {
            if let Poll::Ready(ended) = running.attempt.as_mut().poll(cx) {
                return Poll::Ready((index, ended));
            }
        }
        Poll::Pending
    })
    .await;
    let AttemptInFlight { hop, since, .. } = running.remove(index);
    (hop, since, ended)
}

enum ConnectFailure {
    /// The kernel does not let this host speak from the address.
    SourceUnavailable,
    Failed(DialError),
}

impl ConnectFailure {
    fn as_str(&self) -> &'static str {
        match self {
            Self::SourceUnavailable => DialError::NoSource.as_str(),
            Self::Failed(fault) => fault.as_str(),
        }
    }
}

async fn connect(hop: Hop) -> Result<OutboundSocket, ConnectFailure> {
    let socket = bound(hop.from()).map_err(|error| match error.raw_os_error() {
        // EAFNOSUPPORT: a host without IPv6 has none of its addresses.
        Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT) => ConnectFailure::SourceUnavailable,
        _ => ConnectFailure::Failed(DialError::Other(error)),
    })?;
    let stream = socket.connect(hop.to()).await.map_err(|error| ConnectFailure::Failed(told_by_connect(error)))?;
    left_from(&stream, hop.from()).map_err(|error| ConnectFailure::Failed(DialError::Other(error)))?;
    Ok(OutboundSocket::new(stream))
}

/// A socket that can leave from nowhere but `ip`.
fn bound(ip: IpAddr) -> io::Result<TcpSocket> {
    let socket = if ip.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if ip.is_ipv6() {
        let options = SockRef::from(&socket);
        // A local route for a whole prefix (AnyIP) is enough to bind any IPv4 address of it, but not an IPv6 one:
        // EADDRNOTAVAIL for each, until the socket asks to bind freely. An address that does not come back to this
        // host is bindable then too; `net::local` tells the two apart.
        options.set_freebind_v6(true)?;
        // Otherwise an IPv4-mapped target would leave from an IPv4 address that nobody chose.
        options.set_only_v6(true)?;
    }
    sockopt::defer_port(socket.as_fd())?;
    socket.set_nodelay(true)?;
    socket.bind(SocketAddr::new(ip, 0))?;
    Ok(socket)
}

/// The kernel was told where to leave from; the promise is worth the question whether it did.
fn left_from(stream: &TcpStream, from: IpAddr) -> io::Result<()> {
    if stream.local_addr()?.ip() == from {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "the connection left from another address than its own"))
    }
}

fn told_by_connect(error: io::Error) -> DialError {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => DialError::Refused,
        Some(libc::ETIMEDOUT) => DialError::Timeout,
        // A local firewall says EPERM or EACCES.
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::EACCES | libc::EPERM) => {
            DialError::Unreachable
        }
        // At connect, not at bind: every port of this source is taken towards this target. Another hop may do.
        Some(libc::EADDRNOTAVAIL) => DialError::NoSource,
        _ => DialError::Other(error),
    }
}

/// A fault and the hop of it; of two that say the same, the later one.
type DecisiveError = (DialError, Option<Hop>);

fn more_telling(one: DecisiveError, other: DecisiveError) -> DecisiveError {
    let weight = |fault: &DialError| match fault {
        DialError::Refused => 4, // the target has answered
        DialError::Timeout => 3,
        DialError::Unreachable => 2,
        DialError::Other(_) => 1,
        DialError::NoSource => 0,
    };
    if weight(&other.0) >= weight(&one.0) { other } else { one }
}

#[cfg(test)]
mod tests;
