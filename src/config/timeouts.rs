//! Timeouts, for all routes and for one route, and the settings of the circuit breaker.
//! How long does each step wait?

use std::time::Duration;

/// The settings of the circuit breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Circuit {
    /// Consecutive failures that open the circuit; 0: never.
    pub failures: u32,
    pub window: Duration,
    pub open: Duration,
    pub open_max: Duration,
}

/// The timeouts of a route; `None`: the value of `[timeouts]`.
#[derive(Clone, Debug, Default)]
pub struct RouteTimeouts {
    pub dns: Option<Duration>,
    pub connect: Option<Duration>,
    pub tls: Option<Duration>,
    pub body: Option<Duration>,
    pub response: Option<Duration>,
    pub idle: Option<Duration>,
    pub total: Option<Duration>,
    pub tunnel: Option<Duration>,
}

impl RouteTimeouts {
    /// Fills the timeouts that are not set from `fallback`.
    #[must_use]
    pub fn or_inherit(self, fallback: &Self) -> Self {
        Self {
            dns: self.dns.or(fallback.dns),
            connect: self.connect.or(fallback.connect),
            tls: self.tls.or(fallback.tls),
            body: self.body.or(fallback.body),
            response: self.response.or(fallback.response),
            idle: self.idle.or(fallback.idle),
            total: self.total.or(fallback.total),
            tunnel: self.tunnel.or(fallback.tunnel),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Timeouts {
    pub dns: Duration,
    /// The TCP connect, over all addresses tried.
    pub connect: Duration,
    pub tls: Duration,
    /// The upload of the client's body.
    pub body: Duration,
    /// The time from the last byte of the request to the head of the response.
    pub response: Duration,
    /// An idle connection of a client or to a target.
    pub idle: Duration,
    /// The whole delivery, from head to last byte.
    pub total: Duration,
    /// A tunnel, from its opening to its end.
    pub tunnel: Duration,
    /// The maximum age of a reusable connection.
    pub reuse: Duration,
}
