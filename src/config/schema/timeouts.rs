//! The keys of `[timeouts]`, of a route's timeouts, and of `[circuit]`.
//! Which timeouts and thresholds can an operator set?

use super::Schema;

pub(in crate::config) static TIMEOUTS: Schema = Schema {
    path: "timeouts",
    title: "[timeouts]",
    keys: &["dns", "connect", "tls", "body", "response", "idle", "total", "tunnel", "reuse"],
    reserved: &[],
    aliases: TIMEOUT_ALIASES,
};

pub(in crate::config) static ROUTE_TIMEOUTS: Schema = Schema {
    path: "routes.timeouts",
    title: "the timeouts of [[routes]]",
    keys: &["dns", "connect", "tls", "body", "response", "idle", "total", "tunnel"],
    reserved: &[],
    aliases: TIMEOUT_ALIASES,
};

/// Aliases of the timeouts.
const TIMEOUT_ALIASES: &[(&str, &str)] = &[
    ("resolve", "dns"),
    ("tcp", "connect"),
    ("handshake", "tls"),
    ("client", "body"),
    ("request", "body"),
    ("server", "response"),
    ("read", "response"),
    ("keepalive", "idle"),
    ("keep_alive", "idle"),
    ("overall", "total"),
    ("max_age", "reuse"),
];

pub(in crate::config) static CIRCUIT: Schema = Schema {
    path: "circuit",
    title: "[circuit]",
    keys: &["failures", "window", "open", "open_max"],
    reserved: &[],
    aliases: &[
        ("consecutive_errors", "failures"),
        ("threshold", "failures"),
        ("max_fails", "failures"),
        ("interval", "window"),
        ("fail_timeout", "open"),
        ("cooldown", "open"),
        ("base_ejection_time", "open"),
        ("max_ejection_time", "open_max"),
    ],
};
