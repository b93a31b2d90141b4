//! An open tunnel that carries bytes between the client and the target unread.
//! Does the client speak TLS to the verified host, and when does the tunnel end?

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep, timeout};

use super::connect::{RETRY_DELAY, TunnelConnection};
use super::replies;
use crate::delivery::connector;
use crate::delivery::context::Delivery;
use crate::delivery::record::Record;
use crate::delivery::refusal::Refusal;
use crate::delivery::response::ResponseBody;
use crate::delivery::throttle::Throttled;
use crate::http_message::Response;
use crate::names::Host;
use crate::net::client_hello::{self, ClientHelloError, SniRequirement};
use crate::net::connection::OutboundSocket;
use crate::net::splice::MaybeSocket;
use crate::net::tunnel::{self, CopyError};
use crate::policy::egress::Hop;
use crate::policy::route::Route;
use crate::state::Runtime;
use crate::state::limits::LimitPermit;
use crate::state::observability::metrics::GaugeGuard;

/// Time after the ClientHello in which a close without a byte counts as a refused connection. A server that limits
/// connections closes at once.
const EARLY_CLOSE: Duration = Duration::from_millis(250);

/// A tunnel that is connected to its target. Dropping it closes both sides and writes its record.
pub struct Tunnel {
    runtime: Arc<Runtime>,
    socket: OutboundSocket,
    hop: Hop,
    /// The host that the client's ClientHello must name. `None`: the tunnel is not for TLS.
    host: Option<Host>,
    hello_deadline: Instant,
    route: Arc<Route>,
    /// The end of the tunnel's lifetime.
    until: Instant,
    record: Box<Record>,
    permits: TunnelPermits,
    _counted: GaugeGuard,
}

/// The places that a tunnel holds until its end.
pub(super) struct TunnelPermits {
    pub(super) limits: LimitPermit,
    /// A place among the tunnels for which the process has file descriptors.
    pub(super) _slot: OwnedSemaphorePermit,
}

impl Tunnel {
    pub(super) fn new(
        delivery: &Delivery<'_>,
        connection: TunnelConnection,
        permits: TunnelPermits,
        mut record: Box<Record>,
    ) -> Self {
        record.answered(200);
        let TunnelConnection { socket, hop, host } = connection;
        let (now, route) = (Instant::now(), Arc::clone(delivery.route));
        Self {
            runtime: Arc::clone(delivery.runtime),
            socket,
            hop,
            host,
            hello_deadline: now + route.timeouts.tls,
            until: now + route.timeouts.tunnel,
            route,
            record,
            permits,
            _counted: delivery.runtime.metrics.tunnel(),
        }
    }

    /// Returns the 200 of the CONNECT.
    pub fn answer(&self) -> Response<ResponseBody> {
        replies::established(&self.record, &self.runtime.active_config().plan.pseudonym)
    }

    /// Returns the time at which the client must have begun TLS. `None`: the tunnel carries any bytes.
    pub fn hello_deadline(&self) -> Option<Instant> {
        self.host.as_ref().map(|_| self.hello_deadline)
    }

    /// Refuses a plaintext HTTP request inside a tunnel for TLS.
    pub fn refuse_plaintext(&mut self) -> Response<ResponseBody> {
        replies::refuse_plaintext(&mut self.record, &self.runtime.active_config().plan.pseudonym)
    }

    /// Closes a tunnel that has carried no byte.
    pub fn cut(mut self: Box<Self>, error: ClientHelloError) {
        self.record.tunnel_closed(&error.into());
    }

    /// Forwards the ClientHello, if it names the host that the target has proved to be.
    async fn forward_hello(&mut self, client: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<(), Refusal> {
        let Some(host) = &self.host else { return Ok(()) };
        let timeout = self.hello_deadline.saturating_duration_since(Instant::now());
        let hello = match client_hello::read(client, host, SniRequirement::Required, timeout).await {
            Ok(hello) => hello,
            Err(error) => {
                client_hello::refuse(client, &error).await;
                return Err(error.into());
            }
        };
        self.record.carried(hello.len() as u64, 0);
        self.send_hello(&hello).await.map_err(|error| CopyError::Second(error).into())
    }

    /// Sends the client's ClientHello. If the target closes the connection before its first byte, dials the hop once more
    /// and sends the ClientHello again: it contains no data of the client, and no handshake has begun.
    async fn send_hello(&mut self, hello: &[u8]) -> io::Result<()> {
        if is_accepted(&mut self.socket, hello).await {
            return Ok(());
        }
        sleep(RETRY_DELAY).await;
        let Some(host) = &self.host else { return Ok(()) };
        let timeout = self.route.timeouts.connect;
        let report = connector::dial(&self.runtime, &self.route, &[self.hop], timeout, &mut self.record).await;
        let (pool, tenant) = (self.route.pool.name(), self.record.tenant());
        if let Ok(dialled) = connector::observe_dial(&self.runtime, pool, host, tenant, report) {
            self.socket = dialled.socket;
            self.socket.write_all(hello).await?;
        }
        Ok(())
    }

    /// Carries bytes in both directions until both sides have ended.
    ///
    /// No async function: it would hold its arguments twice for the tunnel's lifetime.
    pub fn carry(
        mut self: Box<Self>,
        client: impl AsyncRead + AsyncWrite + MaybeSocket + Unpin,
    ) -> impl Future<Output = ()> {
        let mut client = Throttled::new(client, self.permits.limits.bandwidth_limiter());
        async move {
            // Boxed, so that the tunnel does not hold the memory of this future afterwards.
            let greeted = Box::pin(self.forward_hello(&mut client)).await;
            let Self { socket, route, until, mut record, permits, _counted, .. } = *self;
            let target = socket.liveness();
            let mut socket = Throttled::new(socket, permits.limits.bandwidth_limiter());
            let (idle, count) = (route.timeouts.idle, |up, down| record.carried(up, down));
            let result = match greeted {
                Err(refusal) => Err(refusal),
                Ok(()) => match tunnel::copy_bidirectional(&mut client, &mut socket, idle, until, count).await {
                    Ok(()) | Err(CopyError::Idle | CopyError::MaxDuration) => Ok(()),
                    Err(error) => {
                        // The target must not take an error of a stream of HTTP/2, or of its connection, for an orderly end
                        // (RFC 9113 §8.5). A reset of an HTTP/1 connection may follow data that the target must get.
                        if matches!(&error, CopyError::First(error) if is_http2(error)) {
                            target.set_linger_zero();
                        }
                        Err(Refusal::from(error))
                    }
                },
            };
            match result {
                Ok(()) => record.complete(),
                // Many programs close with RST after they have got their data.
                Err(_) if record.has_bytes_both_ways() => record.complete(),
                Err(refusal) => record.tunnel_closed(&refusal),
            }
        }
    }
}

fn is_http2(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<h2::Error>())
}

/// Sends `hello`, and returns false if the target has closed the connection.
async fn is_accepted(socket: &mut OutboundSocket, hello: &[u8]) -> bool {
    if socket.liveness().is_closed_by_peer() || socket.write_all(hello).await.is_err() {
        return false;
    }
    // A slower target may still respond: the client gets its bytes.
    let _ = timeout(EARLY_CLOSE, socket.readable()).await;
    !socket.liveness().is_closed_by_peer()
}
