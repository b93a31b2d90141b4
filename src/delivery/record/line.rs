//! The line that a record becomes.
//! Which names does a delivery log have?

use std::net::IpAddr;

use jiff::Timestamp;
use serde::Serialize;

/// By what only reports, a limit for example.
#[derive(Serialize)]
pub(super) struct WouldRefuse {
    pub(super) kind: &'static str,
    pub(super) name: String,
    pub(super) code: &'static str,
}

#[derive(Serialize, Clone)]
pub(super) struct TlsEvidence {
    pub(super) version: &'static str,
    pub(super) suite: &'static str,
    pub(super) certificate_expires: Timestamp,
    /// `false`: the route's trust says `verify = "none"`.
    pub(super) verified: bool,
}

/// Milliseconds.
#[derive(Serialize, Default)]
pub(super) struct Steps {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) admit: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) token: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) take_in: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) resolve: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) connect: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tls: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sign: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) response: Option<f64>,
    pub(super) total: f64,
}

/// The line. Names are part of the product's surface.
#[derive(Serialize)]
pub(super) struct Line<'a> {
    pub(super) time: Timestamp,
    pub(super) request_id: &'a str,
    pub(super) peer: Option<IpAddr>,
    pub(super) client: Option<&'a str>,
    pub(super) proof: Option<&'static str>,
    pub(super) tenant: Option<&'a str>,
    pub(super) route: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) side: Option<&'static str>,
    pub(super) method: Option<&'a str>,
    pub(super) scheme: Option<&'static str>,
    pub(super) host: Option<String>,
    pub(super) port: Option<u16>,
    pub(super) path: Option<&'a str>,
    pub(super) source: Option<IpAddr>,
    pub(super) address: Option<IpAddr>,
    pub(super) reused: Option<bool>,
    /// The version spoken with the target.
    pub(super) http: Option<&'static str>,
    pub(super) tls: Option<&'a TlsEvidence>,
    pub(super) signatures: Vec<&'a str>,
    pub(super) status: Option<u16>,
    pub(super) code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) details: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cause: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) would_take: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub(super) would_refuse: &'a [WouldRefuse],
    pub(super) bytes_sent: u64,
    pub(super) bytes_received: u64,
    pub(super) ms: &'a Steps,
}
