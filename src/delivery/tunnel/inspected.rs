//! A tunnel that ends at outgate, which serves the requests inside.
//! Which certificate does the client get, and what does the record of the CONNECT have?

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use rustls::ServerConfig;
use tokio::time::Instant;

use super::replies;
use crate::delivery::context::Delivery;
use crate::delivery::errors::InspectError;
use crate::delivery::record::Record;
use crate::delivery::response::ResponseBody;
use crate::http_message::Response;
use crate::net::tls::leaf_issuer::IssueError;
use crate::policy::authn::TunnelContext;
use crate::policy::redact::Redacted;
use crate::policy::route::Route;
use crate::state::config::ActiveConfig;
use crate::state::observability::metrics::GaugeGuard;

/// A tunnel whose requests outgate serves. Dropping it writes the record of its CONNECT.
pub struct InspectedTunnel {
    pub inside: TunnelContext,
    /// The bytes that the server has read and written.
    pub passed: Arc<TunnelBytes>,
    /// The time after which the server reads no request.
    pub until: Instant,
    route: Arc<Route>,
    record: Box<Record>,
    active: Arc<ActiveConfig>,
    _counted: GaugeGuard,
}

/// The bytes of a tunnel to the target and to the client.
#[derive(Default)]
pub struct TunnelBytes {
    pub up: AtomicU64,
    pub down: AtomicU64,
}

impl InspectedTunnel {
    pub(super) fn new(delivery: &Delivery<'_>, inside: TunnelContext, mut record: Box<Record>) -> Self {
        record.answered(200);
        Self {
            inside,
            passed: Arc::default(),
            until: Instant::now() + delivery.route.timeouts.tunnel,
            route: Arc::clone(delivery.route),
            record,
            active: Arc::clone(delivery.active),
            _counted: delivery.runtime.metrics.tunnel(),
        }
    }

    /// Returns the 200 of the CONNECT.
    pub fn answer(&self) -> Response<ResponseBody> {
        replies::established(&self.record, &self.active.plan.pseudonym)
    }

    pub fn tls_timeout(&self) -> Duration {
        self.route.timeouts.tls
    }

    /// Returns the TLS configuration with a certificate for the target's host.
    pub fn issue_leaf(&self, now: Timestamp) -> Result<Arc<ServerConfig>, IssueError> {
        self.active.issue_leaf(&self.inside.target().host, now)
    }

    /// Returns the host of the tunnel, as a log line may have it.
    pub fn host(&self) -> Redacted<'_> {
        self.active.plan.redactor.host(&self.inside.target().host)
    }

    /// Refuses a plaintext HTTP request inside a tunnel for TLS.
    pub fn refuse_plaintext(&mut self) -> Response<ResponseBody> {
        replies::refuse_plaintext(&mut self.record, &self.active.plan.pseudonym)
    }

    /// Closes a tunnel in which no request was served.
    pub fn cut(&mut self, error: InspectError) {
        self.record.tunnel_closed(&error.into());
    }

    /// Records that the tunnel was served to its end.
    pub fn end(mut self) {
        self.record.complete();
    }
}

impl Drop for InspectedTunnel {
    fn drop(&mut self) {
        self.record.carried(self.passed.up.load(Ordering::Relaxed), self.passed.down.load(Ordering::Relaxed));
    }
}
