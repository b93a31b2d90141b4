//! The line of JSON that a record becomes.
//! Which fields does a line of the delivery log have?

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;

use super::connection::{AttemptEvidence, FailedCertificate, TlsEvidence};
use super::json::impl_write_json;
use super::timing::StepTimes;
use super::token_endpoint::TokenEndpointEvidence;
use crate::names::KeyId;
use crate::policy::redact::Redacted;
use crate::policy::trace::TraceId;

/// The refusal of a report-only rule, such as a limit.
pub(super) struct WouldRefuse {
    pub(super) kind: &'static str,
    pub(super) name: String,
    pub(super) code: &'static str,
    /// The key of a limit that counts by a part of the request.
    pub(super) key: LimitKeyParts,
}
impl_write_json!(WouldRefuse: kind, name, code, key unless is_empty);

/// The parts of a limit's key. `None`: the delivery is for no tenant.
pub(in crate::delivery) type LimitKeyParts = BTreeMap<&'static str, Option<Redacted<'static>>>;

/// The limit that refused a request.
pub(super) struct RefusingLimit {
    pub(super) name: String,
    pub(super) key: LimitKeyParts,
}
impl_write_json!(RefusingLimit: name, key);

/// The line. Operators' tools read its field names, so a name never changes. Each text that a request or a target may
/// choose is [`Redacted`]; the other texts are names of the configuration or words of the program.
pub(super) struct RecordLine<'a> {
    pub(super) time: Timestamp,
    pub(super) request_id: &'a str,
    pub(super) trace_id: Option<TraceId>,
    pub(super) peer: Option<IpAddr>,
    pub(super) client: Option<&'a str>,
    pub(super) proof: Option<&'static str>,
    pub(super) claimed_client: Option<&'a str>,
    pub(super) tenant: Option<Redacted<'a>>,
    pub(super) route: Option<&'a str>,
    pub(super) side: Option<&'static str>,
    pub(super) webhook_id: Option<Redacted<'a>>,
    pub(super) method: Option<Redacted<'a>>,
    pub(super) scheme: Option<&'static str>,
    pub(super) host: Option<Redacted<'a>>,
    pub(super) port: Option<u16>,
    pub(super) path: Option<Redacted<'a>>,
    pub(super) source: Option<IpAddr>,
    pub(super) local: Option<IpAddr>,
    pub(super) address: Option<IpAddr>,
    pub(super) attempts: &'a [AttemptEvidence],
    pub(super) reused: Option<bool>,
    /// The version of HTTP to the target.
    pub(super) http: Option<&'static str>,
    pub(super) tls: Option<&'a TlsEvidence>,
    pub(super) certificate: Option<&'a FailedCertificate>,
    pub(super) signatures: &'a [KeyId],
    pub(super) status: Option<u16>,
    /// The status class of the target's response.
    pub(super) status_class: Option<&'static str>,
    pub(super) code: &'static str,
    pub(super) blame: &'static str,
    /// The value in the response to the client.
    pub(super) retryable: Option<bool>,
    pub(super) details: Option<&'static str>,
    /// The value in the response to the client.
    pub(super) detail: Option<&'a Redacted<'static>>,
    pub(super) cause: Option<&'a Redacted<'static>>,
    pub(super) token_endpoint: Option<&'a TokenEndpointEvidence>,
    pub(super) limit: Option<&'a RefusingLimit>,
    pub(super) would_take: Option<&'a str>,
    pub(super) would_refuse: &'a [WouldRefuse],
    pub(super) bytes_sent: u64,
    pub(super) bytes_received: u64,
    pub(super) ms: &'a StepTimes,
    /// The share of successes that the log has, if it has not all of them.
    pub(super) sample: Option<f64>,
}
impl_write_json!(RecordLine<'_>:
    time, request_id, trace_id unless is_none, peer, client, proof, claimed_client unless is_none, tenant, route,
    side unless is_none, webhook_id, method, scheme, host, port, path, source, local unless is_none, address,
    attempts unless is_empty, reused, http, tls, certificate unless is_none, signatures, status, status_class, code, blame,
    retryable unless is_none, details unless is_none, detail unless is_none, cause unless is_none,
    token_endpoint unless is_none, limit unless is_none, would_take unless is_none, would_refuse unless is_empty,
    bytes_sent, bytes_received, ms, sample unless is_none);
