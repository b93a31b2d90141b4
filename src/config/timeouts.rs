//! How long things may take, everywhere and on one route, and when a target that fails is left alone.
//! When do we wait no longer?

use std::time::Duration;

/// When a target that fails is left alone, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Circuit {
    /// In a row; 0: never.
    pub failures: u32,
    pub window: Duration,
    pub open: Duration,
    pub open_max: Duration,
}

/// Each `None` is inherited from `[timeouts]`.
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
    /// What is not said here is as said there.
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
    /// TCP, over all addresses tried.
    pub connect: Duration,
    pub tls: Duration,
    /// The client sending its body.
    pub body: Duration,
    /// From the last byte of the request to the head of the response.
    pub response: Duration,
    /// A client or target connection without a request.
    pub idle: Duration,
    /// The whole delivery, from head to last byte.
    pub total: Duration,
    /// A tunnel, from its opening to its end.
    pub tunnel: Duration,
    /// How old a reusable connection may grow.
    pub reuse: Duration,
}
