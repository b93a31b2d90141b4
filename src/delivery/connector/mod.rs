//! Connections to the target: one that is open already, or a new one that is dialled and verified.
//! Over which connection does this delivery reach its target?

mod interim;
mod send;

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::context::Delivery;
use super::errors::map_exchange_error;
use super::record::{Record, Step};
use super::refusal::Refusal;
use super::steps;
use crate::config::VerifyMode;
use crate::names::{Host, PoolName, Scheme, TenantName};
use crate::net::connection::{MaybeTlsStream, OutboundSocket};
use crate::net::dial::{self, DialError, DialReport, DialledSocket};
use crate::net::http_client::Connection;
use crate::net::tls::{self, AlpnOffer, HandshakeError, HandshakeInfo, TlsError};
use crate::panics;
use crate::policy::egress::{Hop, Hops};
use crate::policy::route::Route;
use crate::state::Runtime;
use crate::state::hashed::Hashed;
use crate::state::upstreams::http2_dials::{self, Turn};
use crate::state::upstreams::pool::{ConnectionKey, PooledConnection};

pub(super) use send::LARGE_REQUEST_HEAD;

/// Opens connections for one delivery. Every connection goes over one of its hops.
pub(super) struct UpstreamConnector<'a> {
    delivery: &'a Delivery<'a>,
    /// The hops in the order of trying. All come from the pool, and the guard has cleared all.
    hops: Hops,
}

impl<'a> UpstreamConnector<'a> {
    pub(super) fn new(delivery: &'a Delivery<'a>, hops: Hops) -> Self {
        Self { delivery, hops }
    }

    pub(super) fn delivery(&self) -> &'a Delivery<'a> {
        self.delivery
    }

    /// Returns a pooled connection that equals a new one in every respect, or else opens a new one.
    pub(super) async fn open(&self, record: &mut Record) -> Result<PooledConnection, Refusal> {
        match self.pooled(record).await {
            Some(connection) => Ok(connection),
            // Boxed, so that a delivery over a pooled connection has no room for it.
            None => Box::pin(self.open_new(record)).await,
        }
    }

    /// Opens a connection. If another delivery opens one over HTTP/2 just now, this one waits for that first.
    async fn open_new(&self, record: &mut Record) -> Result<PooledConnection, Refusal> {
        let key = self.chosen_sources().next().filter(|_| !self.requires_http1()).map(|from| self.pool_key(from));
        let Some(key) = key else { return self.dial(record).await };
        let dials = &self.delivery.runtime.http2_dials;
        let mut wait_end = None;
        let dial = loop {
            let follower = match dials.join(&key, Instant::now()) {
                Turn::Opens(dial) => break dial,
                Turn::Waits(follower) => follower,
            };
            record.dials(&self.hops);
            let timeouts = &self.delivery.route.timeouts;
            let end = *wait_end.get_or_insert_with(|| http2_dials::wait_end(&follower, timeouts));
            let has_left = http2_dials::wait(follower, end).await;
            record.step(Step::Connect);
            if !has_left {
                break None;
            }
        };
        // Another delivery may have opened one since the first look.
        if let Some(connection) = self.pooled(record).await {
            dial.iter().for_each(|dial| dial.finish(()));
            return Ok(connection);
        }
        let connection = match self.dial(record).await {
            Ok(connection) => connection,
            Err(refusal) => {
                dial.iter().for_each(|dial| dial.finish(()));
                return Err(refusal);
            }
        };
        let stream_limit = connection.stream_limit_known();
        dials.observe(&key, stream_limit.is_some());
        match (dial, stream_limit) {
            (Some(dial), Some(stream_limit)) => drop(panics::spawn(async move {
                stream_limit.await;
                dial.finish(());
            })),
            (Some(dial), None) => dial.finish(()),
            (None, _) => {}
        }
        Ok(connection)
    }

    /// Returns a connection that is open already.
    async fn pooled(&self, record: &mut Record) -> Option<PooledConnection> {
        let is_eligible = |connection: &Connection| {
            // A target that requires HTTP/1.1 gets no request over HTTP/2 connections that are still open.
            let has_right_version = connection.http_version() != "2" || !self.requires_http1();
            self.hops.contains(&connection.hop()) && has_right_version
        };
        let (pool, timeouts) = (&self.delivery.runtime.connection_pool, &self.delivery.route.timeouts);
        for from in self.chosen_sources() {
            if let Some(connection) =
                pool.acquire(&self.pool_key(from), timeouts, std::time::Instant::now(), is_eligible).await
            {
                record.set_connection(&connection, true);
                return Some(connection);
            }
        }
        None
    }

    /// Returns the chosen source of each address family, in the order of the hops. The other sources are for failover.
    fn chosen_sources(&self) -> impl Iterator<Item = IpAddr> {
        let first = self.hops.first().map(Hop::from);
        let other =
            self.hops.iter().map(Hop::from).find(|from| Some(from.is_ipv4()) != first.map(|from| from.is_ipv4()));
        first.into_iter().chain(other)
    }

    /// Verifies the target by a handshake, and closes the connection, which carries no data.
    pub(super) async fn verify(&self, socket: OutboundSocket, record: &mut Record) -> Result<HandshakeInfo, TlsError> {
        let (stream, handshake) = self.handshake(socket, AlpnOffer::Http2OrHttp1, record).await?;
        tls::close(stream).await;
        Ok(handshake)
    }

    async fn handshake(
        &self,
        socket: OutboundSocket,
        offer: AlpnOffer,
        record: &mut Record,
    ) -> Result<(MaybeTlsStream, HandshakeInfo), TlsError> {
        let Delivery { runtime, active, route, tenant, target, .. } = self.delivery;
        record.begin(Step::Tls);
        let client_tls = active.client_tls(&route.trust);
        let deadline = Instant::now() + self.remaining_timeout(route.timeouts.tls, Duration::ZERO);
        let result = tls::handshake(socket, &client_tls, *tenant, &target.host, offer, deadline).await;
        record.step(Step::Tls);
        if let Ok((_, handshake)) = &result {
            runtime.metrics.target_handshake(handshake.version, handshake.suite);
        }
        result.map_err(|HandshakeError { error, certificate }| {
            let verdict = match (&error, route.trust.verify) {
                (TlsError::Certificate { error, .. }, _) => error.as_str(),
                (_, VerifyMode::Full) => "accepted",
                (_, VerifyMode::None) => "unverified",
            };
            record.failed_certificate(certificate, verdict);
            error
        })
    }

    /// Opens a TCP connection over one of these hops.
    pub(super) async fn connect(&self, hops: &[Hop], record: &mut Record) -> Result<DialledSocket, DialError> {
        let &Delivery { runtime, route, tenant, target, .. } = self.delivery;
        let timeout = self.remaining_timeout(route.timeouts.connect, Duration::ZERO);
        let report = dial(runtime, route, hops, timeout, record).await;
        observe_dial(runtime, route.pool.name(), &target.host, tenant, report)
    }

    pub(super) fn hops(&self) -> &[Hop] {
        &self.hops
    }

    /// Opens a new connection that other deliveries may use as well.
    async fn dial(&self, record: &mut Record) -> Result<PooledConnection, Refusal> {
        let connection = self.dial_new(record).await?;
        let (key, idle) = (self.pool_key(connection.hop().from()), self.delivery.route.timeouts.idle);
        let connection = self.delivery.runtime.connection_pool.lease(key, connection, idle);
        record.set_connection(&connection, false);
        Ok(connection)
    }

    /// Opens a new connection for this delivery alone.
    async fn dial_dedicated(&self, record: &mut Record) -> Result<PooledConnection, Refusal> {
        let connection = self.dial_new(record).await?;
        let key = self.pool_key(connection.hop().from());
        let connection = self.delivery.runtime.connection_pool.lease_dedicated(key, connection);
        record.set_connection(&connection, false);
        Ok(connection)
    }

    async fn dial_new(&self, record: &mut Record) -> Result<Connection, Refusal> {
        record.needs_connection();
        let DialledSocket { socket, hop } = self.connect(&self.hops, record).await?;
        let liveness = socket.liveness();
        let (stream, handshake) = match self.delivery.target.scheme {
            Scheme::Http => (socket.into_plaintext(), None),
            Scheme::Https => {
                let offer = if self.requires_http1() { AlpnOffer::Http1 } else { AlpnOffer::Http2OrHttp1 };
                let (stream, handshake) = self.handshake(socket, offer, record).await?;
                (stream, Some(handshake))
            }
        };
        let head_max = self.delivery.route.response_head_max;
        let opening = Connection::open(stream, liveness, hop, handshake, head_max);
        Box::pin(opening).await.map_err(|error| map_exchange_error(&error, head_max))
    }

    fn requires_http1(&self) -> bool {
        self.delivery.runtime.http1_only.contains(self.delivery.target, std::time::Instant::now())
    }

    fn pool_key(&self, from: IpAddr) -> Hashed<ConnectionKey> {
        let &Delivery { route, client, tenant, target, separates_clients, .. } = self.delivery;
        Hashed::new(ConnectionKey {
            from,
            target: target.clone(),
            trust: route.trust.fingerprint,
            tenant: tenant.cloned(),
            client: separates_clients.then(|| client.clone()),
            head_max: route.response_head_max,
        })
    }

    /// Returns the time that a step may take from now on, in which outgate waits for the target.
    ///
    /// If the total timeout ends the step earlier and the target has had most of that time, the step is cut short, so that
    /// its own refusal names the target. Otherwise the total timeout ends the delivery. `waited`: the time that this
    /// upload has waited for the target already.
    fn remaining_timeout(&self, timeout: Duration, waited: Duration) -> Duration {
        let total = self.delivery.route.timeouts.total;
        let remaining = total.saturating_sub(self.delivery.started.elapsed());
        if waited + remaining >= total / 2 { timeout.min(remaining) } else { timeout }
    }
}

/// Dials one of the hops whose source is still in the route's pool, and records the attempts.
pub(super) async fn dial(
    runtime: &Runtime,
    route: &Route,
    hops: &[Hop],
    timeout: Duration,
    record: &mut Record,
) -> DialReport {
    let may_leave_from =
        |source| steps::pool_now(runtime, route).is_ok_and(|pool| pool.contains(source, Timestamp::now()));
    record.dials(hops);
    let report = dial::dial(hops, may_leave_from, Instant::now() + timeout).await;
    record.dialled(&report);
    report
}

/// Counts attempts to connect to `host` from this pool, updates the health of the sources, and returns the connection.
pub(super) fn observe_dial(
    runtime: &Runtime,
    pool: &PoolName,
    host: &Host,
    tenant: Option<&TenantName>,
    report: DialReport,
) -> Result<DialledSocket, DialError> {
    for attempt in &report.attempts {
        runtime.metrics.connect_attempt(pool, attempt.hop.from(), attempt.outcome);
    }
    for source in report.unusable_sources {
        runtime.sources.refused(source);
    }
    let connected = report.outcome.as_ref().ok().map(|dialled| dialled.hop);
    runtime.source_health.observe_dial(host, tenant, connected, &report.unresponsive_hops, std::time::Instant::now());
    report.outcome.map_err(|(error, _)| error)
}
