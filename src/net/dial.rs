//! The only code that opens an outgoing connection. It always binds the socket to the source address of a [`Hop`].
//! How does a webhook leave from the source address that was chosen for it?

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;

use super::connection::OutboundSocket;
#[cfg(test)]
use super::simulated;
use super::{deadline, local, sockopt};
use crate::policy::egress::Hop;

/// The delay before the next attempt starts beside a pending one (RFC 8305 §5, Connection Attempt Delay).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// The outcome of dialling, and what each attempt observed.
#[derive(Debug)]
pub struct DialReport {
    /// The connection and its hop; or the error, and the hop of the last attempt that had it.
    pub outcome: Result<DialledSocket, DecisiveError>,
    /// All attempts, in the order in which they ended.
    pub attempts: Vec<ConnectAttempt>,
    /// Sources that the kernel does not bind, because they are not addresses of this host.
    pub unusable_sources: Vec<IpAddr>,
    /// Hops that were refused or unreachable, or that did not answer before the deadline or within [`ATTEMPT_DELAY`].
    pub unresponsive_hops: Vec<Hop>,
}

/// One attempt to connect, for the record.
#[derive(Debug)]
pub struct ConnectAttempt {
    pub hop: Hop,
    /// `connected`, `abandoned` (another attempt had connected), or [`DialError::as_str`].
    pub outcome: &'static str,
    pub elapsed: Duration,
}

#[derive(Debug)]
pub struct DialledSocket {
    pub socket: OutboundSocket,
    pub hop: Hop,
}

/// An error and its hop; `None`: there was no attempt.
pub type DecisiveError = (DialError, Option<Hop>);

/// The reason that no hop led to a connection. Of several reasons, it is the one that is most specific to the target.
#[derive(Debug)]
pub enum DialError {
    Refused,
    Timeout,
    Unreachable,
    /// A firewall or a route of this host prohibits the connection.
    Prohibited,
    /// No source is usable: each is not an address of this host, or has no free port towards this target.
    NoSource,
    Other(io::Error),
}

impl DialError {
    /// Returns the name of the error in records.
    fn as_str(&self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::Prohibited => "prohibited",
            Self::NoSource => "no_source",
            Self::Other(_) => "error",
        }
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "connection refused",
            Self::Timeout => "the connection was not established in time",
            Self::Unreachable => "no route to the target",
            Self::Prohibited => "prohibited by a firewall or a route of this host",
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

/// Tries the hops in their order (RFC 8305 §5). The next attempt starts when one has failed, or
/// when none has ended for [`ATTEMPT_DELAY`]. The first attempt that connects wins, and dropping the others closes them.
///
/// Each attempt asks `may_leave_from` about its source when it starts: a reload may have removed the source since the
/// hops were chosen.
pub async fn dial(hops: &[Hop], may_leave_from: impl Fn(IpAddr) -> bool, deadline: Instant) -> DialReport {
    let (mut unusable_sources, mut unresponsive_hops, mut attempts) = (Vec::new(), Vec::new(), Vec::new());
    let mut decisive = (DialError::NoSource, None);
    let mut untried = hops.iter().copied();
    let mut in_flight: Vec<AttemptInFlight> = Vec::new();
    let outcome = loop {
        match untried.find(|hop| !unusable_sources.contains(&hop.from()) && may_leave_from(hop.from())) {
            Some(hop) => {
                in_flight.push(AttemptInFlight { hop, started: Instant::now(), connect: Box::pin(connect_hop(hop)) })
            }
            None if in_flight.is_empty() => break Err(decisive),
            None => {}
        }
        let wake_at = if untried.len() == 0 { deadline } else { deadline.min(Instant::now() + ATTEMPT_DELAY) };
        match deadline::timeout_at(wake_at, next_completed(&mut in_flight)).await {
            Ok((hop, started, result)) => {
                let outcome = result.as_ref().map_or_else(ConnectFailure::as_str, |_| "connected");
                attempts.push(ConnectAttempt { hop, outcome, elapsed: started.elapsed() });
                let next = match result {
                    Ok(socket) => break Ok(DialledSocket { socket, hop }),
                    Err(ConnectFailure::SourceUnavailable) => {
                        unusable_sources.push(hop.from());
                        DialError::NoSource
                    }
                    Err(ConnectFailure::Failed(next)) => next,
                };
                if matches!(next, DialError::Refused | DialError::Timeout | DialError::Unreachable) {
                    unresponsive_hops.push(hop);
                }
                decisive = more_specific(decisive, (next, Some(hop)));
            }
            Err(_) if Instant::now() < deadline => {}
            Err(_) => {
                let last = in_flight.last().map(|running| running.hop);
                break Err(more_specific(decisive, (DialError::Timeout, last)));
            }
        }
    };
    let was_overtaken = |running: &&AttemptInFlight| outcome.is_err() || running.started.elapsed() >= ATTEMPT_DELAY;
    unresponsive_hops.extend(in_flight.iter().filter(was_overtaken).map(|running| running.hop));
    let unfinished = if outcome.is_ok() { "abandoned" } else { DialError::Timeout.as_str() };
    let attempt = |running: &AttemptInFlight| ConnectAttempt {
        hop: running.hop,
        outcome: unfinished,
        elapsed: running.started.elapsed(),
    };
    attempts.extend(in_flight.iter().map(attempt));
    DialReport { outcome, attempts, unusable_sources, unresponsive_hops }
}

impl DialReport {
    /// Returns the hop of the attempt that decided the outcome.
    pub fn hop(&self) -> Option<Hop> {
        self.outcome.as_ref().map_or_else(|(_, hop)| *hop, |dialled| Some(dialled.hop))
    }
}

/// Checks that this host can send from the address and receives the answers.
///
/// Binding an IPv6 address always succeeds, because [`bind_source`] sets IPV6_FREEBIND. So the local routing table
/// decides about an IPv6 address.
pub fn check_source(ip: IpAddr) -> io::Result<()> {
    bind_source(ip)?;
    if ip.is_ipv6() && !local::read()?.contains(ip) {
        return Err(io::Error::from_raw_os_error(libc::EADDRNOTAVAIL));
    }
    Ok(())
}

/// An attempt that has not ended.
struct AttemptInFlight {
    hop: Hop,
    started: Instant,
    connect: Pin<Box<dyn Future<Output = Result<OutboundSocket, ConnectFailure>> + Send>>,
}

/// Waits until one of the attempts ends, and removes it.
async fn next_completed(
    in_flight: &mut Vec<AttemptInFlight>,
) -> (Hop, Instant, Result<OutboundSocket, ConnectFailure>) {
    let (index, result) = poll_fn(|cx| {
        for (index, running) in in_flight.iter_mut().enumerate() {
            if let Poll::Ready(result) = running.connect.as_mut().poll(cx) {
                return Poll::Ready((index, result));
            }
        }
        Poll::Pending
    })
    .await;
    let AttemptInFlight { hop, started, .. } = in_flight.remove(index);
    (hop, started, result)
}

enum ConnectFailure {
    /// The kernel does not let this host send from the address.
    SourceUnavailable,
    Failed(DialError),
}

impl ConnectFailure {
    fn as_str(&self) -> &'static str {
        match self {
            Self::SourceUnavailable => DialError::NoSource.as_str(),
            Self::Failed(error) => error.as_str(),
        }
    }
}

async fn connect_hop(hop: Hop) -> Result<OutboundSocket, ConnectFailure> {
    #[cfg(test)]
    if let Some(connecting) = simulated::connect(hop.from(), hop.to()) {
        let connected = connecting.await.map_err(|error| ConnectFailure::Failed(classify_connect_error(error)));
        return connected.map(OutboundSocket::simulated);
    }
    let socket = bind_source(hop.from()).map_err(|error| match error.raw_os_error() {
        // EAFNOSUPPORT: a host without IPv6 has no IPv6 address.
        Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT) => ConnectFailure::SourceUnavailable,
        _ => ConnectFailure::Failed(DialError::Other(error)),
    })?;
    let stream =
        socket.connect(hop.to()).await.map_err(|error| ConnectFailure::Failed(classify_connect_error(error)))?;
    verify_source(&stream, hop.from()).map_err(|error| ConnectFailure::Failed(DialError::Other(error)))?;
    Ok(OutboundSocket::new(stream))
}

/// Returns a socket that is bound to the source address `ip`.
#[expect(clippy::disallowed_methods, reason = "the one outbound socket to targets, bound to an address of the pool")]
fn bind_source(ip: IpAddr) -> io::Result<TcpSocket> {
    let socket = if ip.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if ip.is_ipv6() {
        let options = SockRef::from(&socket);
        // With a local route for a prefix (AnyIP), the kernel lets a socket bind any IPv4 address of the prefix. It
        // returns EADDRNOTAVAIL for an IPv6 address, unless the socket has IPV6_FREEBIND. That option also permits
        // addresses that are not routed to this host: the caller passes only sources that the host has, and
        // [`check_source`] detects the others for `egress verify`.
        options.set_freebind_v6(true)?;
        // Without the option, a connection to an IPv4-mapped target would have an IPv4 source address that was not
        // chosen.
        options.set_only_v6(true)?;
    }
    sockopt::defer_port_selection(socket.as_fd())?;
    socket.set_nodelay(true)?;
    socket.bind(SocketAddr::new(ip, 0))?;
    Ok(socket)
}

/// Checks that the kernel used the source address. This is defence in depth: `bind` already fixes it.
fn verify_source(stream: &TcpStream, from: IpAddr) -> io::Result<()> {
    if stream.local_addr()?.ip() == from {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::AddrNotAvailable,
            "the kernel connected from another source address than the bound one",
        ))
    }
}

fn classify_connect_error(error: io::Error) -> DialError {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => DialError::Refused,
        Some(libc::ETIMEDOUT) => DialError::Timeout,
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN) => DialError::Unreachable,
        // A BPF program of the control group causes EPERM, a route of the type "prohibit" EACCES (ip-route(8)).
        Some(libc::EACCES | libc::EPERM) => DialError::Prohibited,
        // `connect`, unlike `bind`, returns EADDRNOTAVAIL if all ports of the source are in use towards this target.
        // Another hop may succeed.
        Some(libc::EADDRNOTAVAIL) => DialError::NoSource,
        _ => DialError::Other(error),
    }
}

fn more_specific(one: DecisiveError, other: DecisiveError) -> DecisiveError {
    let weight = |error: &DialError| match error {
        DialError::Refused => 5, // the target responded
        DialError::Timeout => 4,
        DialError::Unreachable => 3,
        DialError::Prohibited => 2,
        DialError::Other(_) => 1,
        DialError::NoSource => 0,
    };
    if weight(&other.0) >= weight(&one.0) { other } else { one }
}

#[cfg(test)]
mod tests;
