//! The line of JSON that a record becomes.
//! Which fields does a line of the delivery log have?

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::Serialize;

use super::connection::{AttemptEvidence, FailedCertificate, TlsEvidence};
use super::timing::StepTimes;
use super::token_endpoint::TokenEndpointEvidence;
use crate::policy::redact::Redacted;

/// The refusal of a report-only rule, such as a limit.
#[derive(Serialize)]
pub(super) struct WouldRefuse {
    pub(super) kind: &'static str,
    pub(super) name: String,
    pub(super) code: &'static str,
    /// The key of a limit that counts by a part of the request.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) key: LimitKeyParts,
}

/// The parts of a limit's key. `None`: the delivery is for no tenant.
pub(in crate::delivery) type LimitKeyParts = BTreeMap<&'static str, Option<Redacted<'static>>>;

/// The limit that refused a request.
#[derive(Serialize)]
pub(super) struct RefusingLimit {
    pub(super) name: String,
    pub(super) key: LimitKeyParts,
}

/// The line. Operators' tools read its field names, so a name never changes. Each text that a request or a target may
/// choose is [`Redacted`]; the other texts are names of the configuration or words of the program.
#[derive(Serialize)]
pub(super) struct RecordLine<'a> {
    pub(super) time: Timestamp,
    pub(super) request_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) trace_id: Option<String>,
    pub(super) peer: Option<IpAddr>,
    pub(super) client: Option<&'a str>,
    pub(super) proof: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) claimed_client: Option<&'a str>,
    pub(super) tenant: Option<Redacted<'a>>,
    pub(super) route: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) side: Option<&'static str>,
    pub(super) webhook_id: Option<Redacted<'a>>,
    pub(super) method: Option<Redacted<'a>>,
    pub(super) scheme: Option<&'static str>,
    pub(super) host: Option<Redacted<'a>>,
    pub(super) port: Option<u16>,
    pub(super) path: Option<Redacted<'a>>,
    pub(super) source: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) local: Option<IpAddr>,
    pub(super) address: Option<IpAddr>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub(super) attempts: &'a [AttemptEvidence],
    pub(super) reused: Option<bool>,
    /// The version of HTTP to the target.
    pub(super) http: Option<&'static str>,
    pub(super) tls: Option<&'a TlsEvidence>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) certificate: Option<&'a FailedCertificate>,
    pub(super) signatures: Vec<&'a str>,
    pub(super) status: Option<u16>,
    /// The status class of the target's response.
    pub(super) status_class: Option<&'static str>,
    pub(super) code: &'static str,
    pub(super) blame: &'static str,
    /// The value in the response to the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) retryable: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) details: Option<&'static str>,
    /// The value in the response to the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) detail: Option<&'a Redacted<'static>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cause: Option<&'a Redacted<'static>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) token_endpoint: Option<&'a TokenEndpointEvidence>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) limit: Option<&'a RefusingLimit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) would_take: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub(super) would_refuse: &'a [WouldRefuse],
    pub(super) bytes_sent: u64,
    pub(super) bytes_received: u64,
    pub(super) ms: &'a StepTimes,
    /// The share of successes that the log has, if it has not all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sample: Option<f64>,
}
