//! The record of one delivery: a line of JSON that is written when the delivery ends, however it ends.
//! What happened in this delivery, and how long did each step take?

mod connection;
mod counting;
mod denial;
mod json;
mod line;
mod timing;
mod token_endpoint;
mod trace;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use http::{Method, StatusCode};
use jiff::Timestamp;

use super::refusal::{Blame, Code, Refusal};
use super::request::body::UploadProgress;
use super::request::webhook_id::{GeneratedId, WebhookId};
use crate::http_message::SharedText;
use crate::names::{ClientName, RequestId, RouteName, Target, TenantName};
use crate::panics::Panicked;
use crate::policy::Plan;
use crate::policy::authn::Caller;
use crate::policy::redact::{Redacted, Redactor, RoutePaths};
use crate::policy::route::Route;
use crate::policy::sign::KeyIds;
use crate::policy::trace::TraceContext;
use crate::state::Runtime;
use crate::state::observability::metrics::RouteSeries;
use connection::{AttemptEvidence, FailedCertificate, TlsEvidence};
use json::WriteJson;
pub(super) use line::LimitKeyParts;
use line::{RecordLine, RefusingLimit, WouldRefuse};
pub(super) use timing::Step;
use timing::StepTimer;
pub use timing::milliseconds;
pub(super) use token_endpoint::TokenEndpointEvidence;

/// The evidence that the steps of a delivery leave. Dropping it writes the line, so a client that hangs up leaves one too.
///
/// It has no field for a body, a query, a token or a secret.
pub(super) struct Record {
    /// `false`: the record of a request for a token, which writes no line.
    is_written: bool,
    runtime: Arc<Runtime>,
    redactor: Arc<Redactor>,
    timer: StepTimer,
    request_id: RequestId,
    peer: Option<IpAddr>,
    /// `None`: the server could not read the request.
    method: Option<Method>,
    /// The series that count the delivery.
    series: Arc<RouteSeries>,
    /// The target, and the path as it was sent, if outgate sees it.
    target: Option<(Target, Option<SharedText>)>,
    evidence: DeliveryEvidence,
}

/// The evidence apart from what every record has from its beginning.
#[derive(Default)]
struct DeliveryEvidence {
    /// `None`: outgate records no traces.
    trace: Option<TraceContext>,
    client: Option<ClientName>,
    proof: Option<&'static str>,
    /// The client that a request names without proof.
    claimed_client: Option<String>,
    tenant: Option<TenantName>,
    /// The client may act for the tenant.
    is_tenant_proven: bool,
    route: Option<RouteName>,
    route_paths: RoutePaths,
    /// The side of a split that the delivery is on.
    side: Option<&'static str>,
    /// The route that the request would take if report-only routes were enforced.
    would_take: Option<RouteName>,
    webhook_id: Option<WebhookId>,
    source: Option<IpAddr>,
    /// The address of this host behind NAT, where targets see `source`.
    local: Option<IpAddr>,
    address: Option<IpAddr>,
    /// The attempts to connect, if there was more than one, or if none succeeded.
    attempts: Vec<AttemptEvidence>,
    reused: Option<bool>,
    http: Option<&'static str>,
    tls: Option<TlsEvidence>,
    certificate: Option<FailedCertificate>,
    signatures: KeyIds,
    would_refuse: Vec<WouldRefuse>,
    /// Boxed, because few records have one and an open tunnel holds its record.
    limit: Option<Box<RefusingLimit>>,
    /// Set if outgate could not fetch the token of the route's credential.
    token_endpoint: Option<Box<TokenEndpointEvidence>>,
    status_class: Option<&'static str>,
    outcome: RecordOutcome,
    sent: RequestBytes,
    received: u64,
}

#[derive(Default)]
enum RecordOutcome {
    /// No step has finished the delivery: the client hung up, or the drain timeout ended it.
    #[default]
    Pending,
    /// The client got the head of a response. `error` and `cause` state why the response is incomplete.
    Responded { status: u16, error: Option<Code>, cause: Option<Redacted<'static>>, complete: bool },
    Refused {
        status: u16,
        code: Code,
        blame: Blame,
        retryable: bool,
        details: Option<&'static str>,
        detail: Redacted<'static>,
        cause: Option<Redacted<'static>>,
    },
}

/// The bytes of the request body that the target got.
enum RequestBytes {
    Buffered(u64),
    Streaming(Arc<UploadProgress>),
}

impl Default for RequestBytes {
    fn default() -> Self {
        Self::Buffered(0)
    }
}

impl RequestBytes {
    fn bytes(&self) -> u64 {
        match self {
            RequestBytes::Buffered(bytes) => *bytes,
            RequestBytes::Streaming(progress) => progress.bytes(),
        }
    }
}

impl Record {
    pub(super) fn open(runtime: &Arc<Runtime>, plan: &Plan, method: Option<&Method>, caller: &Caller) -> Self {
        Self {
            is_written: true,
            runtime: Arc::clone(runtime),
            redactor: Arc::clone(&plan.redactor),
            timer: StepTimer::start(),
            request_id: runtime.next_request_id(),
            peer: caller.address(),
            method: method.cloned(),
            series: runtime.metrics.route_series(None),
            // Inside a tunnel, every request is for the tunnel's host.
            target: caller.tunnel().map(|inside| (inside.target().clone(), None)),
            evidence: DeliveryEvidence::default(),
        }
    }

    /// Returns the record of a request for a token. It writes no line, and counts the refusals of report-only rules only.
    pub(super) fn for_internal_request(runtime: &Arc<Runtime>, plan: &Plan) -> Self {
        let mut record = Self::open(runtime, plan, None, &Caller::default());
        record.is_written = false;
        record
    }

    pub(super) fn started(&self) -> Instant {
        self.timer.started()
    }
    pub(super) fn request_id(&self) -> &str {
        self.request_id.as_str()
    }
    pub(super) fn redactor(&self) -> &Redactor {
        &self.redactor
    }
    pub(super) fn source(&self) -> Option<IpAddr> {
        self.evidence.source
    }

    pub(super) fn tenant(&self) -> Option<&TenantName> {
        self.evidence.tenant.as_ref()
    }

    /// Sets the tenant that the request names. The client may lack the permission to send for it.
    pub(super) fn for_tenant(&mut self, tenant: Option<&TenantName>) {
        self.evidence.tenant = tenant.cloned();
    }
    pub(super) fn tenant_is_proven(&mut self) {
        self.evidence.is_tenant_proven = true;
    }
    pub(super) fn client(&mut self, client: &ClientName, proof: &'static str) {
        (self.evidence.client, self.evidence.proof) = (Some(client.clone()), Some(proof));
    }
    pub(super) fn claimed(&mut self, client: Option<&str>) {
        self.evidence.claimed_client = client.map(str::to_owned);
    }
    pub(super) fn webhook_id(&mut self, id: WebhookId) {
        self.evidence.webhook_id = Some(id);
    }
    pub(super) fn route(&mut self, route: &Route) {
        (self.evidence.route, self.evidence.side, self.evidence.route_paths) =
            (Some(route.name.clone()), route.side, route.paths.clone());
        self.series = self.runtime.metrics.route_series(Some(route));
    }
    /// Sets the report-only route that the request would take, and the code of its refusal.
    pub(super) fn would_take(&mut self, shadow: &Route, refused: Option<Code>) {
        self.evidence.would_take = Some(shadow.name.clone());
        let metrics = &self.runtime.metrics;
        metrics.would_take(&metrics.route_series(Some(shadow)));
        if let Some(code) = refused {
            self.would_refuse("route", shadow.name.as_str(), code, LimitKeyParts::new());
        }
    }
    /// Sets the target as the client asks for it. `path`: without the query.
    pub(super) fn target(&mut self, target: Target, path: Option<SharedText>) {
        self.target = Some((target, path));
    }
    /// Sets the target under the policy of the route. The path stays the same.
    pub(super) fn route_target(&mut self, target: Target) {
        let path = self.target.take().and_then(|(_, path)| path);
        self.target = Some((target, path));
    }
    pub(super) fn signed_by(&mut self, keys: KeyIds) {
        self.evidence.signatures.extend(keys);
    }
    /// Adds the refusal of a report-only rule of this kind and name. A limit has a key.
    pub(super) fn would_refuse(&mut self, kind: &'static str, name: &str, code: Code, key: LimitKeyParts) {
        self.evidence.would_refuse.push(WouldRefuse { kind, name: name.to_owned(), code: code.name(), key });
    }
    pub(super) fn limited(&mut self, name: &str, key: LimitKeyParts) {
        self.evidence.limit = Some(Box::new(RefusingLimit { name: name.to_owned(), key }));
    }
    /// Sets the status class of the target's response.
    pub(super) fn responded(&mut self, status: StatusCode) {
        self.evidence.status_class = Some(match status.as_u16() / 100 {
            1 => "1xx",
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            5 => "5xx",
            _ => "other",
        });
    }
    pub(super) fn body_length(&mut self, length: u64) {
        self.evidence.sent = RequestBytes::Buffered(length);
    }
    pub(super) fn uploads(&mut self, progress: Arc<UploadProgress>) {
        self.evidence.sent = RequestBytes::Streaming(progress);
    }
    /// Adds the bytes that a tunnel has carried to the target and to the client.
    pub(super) fn carried(&mut self, up: u64, down: u64) {
        self.evidence.sent = RequestBytes::Buffered(self.evidence.sent.bytes() + up);
        self.evidence.received += down;
    }
    /// Returns whether a tunnel has carried bytes to the target and back.
    pub(super) fn has_bytes_both_ways(&self) -> bool {
        self.evidence.sent.bytes() > 0 && self.evidence.received > 0
    }
    pub(super) fn received(&mut self, bytes: u64) {
        self.evidence.received += bytes;
    }

    /// Begins a step. If the delivery ends during the step, the record has the time until then.
    pub(super) fn begin(&mut self, step: Step) {
        self.timer.begin(step);
    }
    /// Ends a step, which has taken the time since the end of the last step.
    pub(super) fn step(&mut self, step: Step) {
        self.timer.end(step);
    }

    pub(super) fn answered(&mut self, status: u16) {
        self.evidence.outcome = RecordOutcome::Responded { status, error: None, cause: None, complete: false };
    }
    pub(super) fn complete(&mut self) {
        if let RecordOutcome::Responded { complete, .. } = &mut self.evidence.outcome {
            *complete = true;
        }
    }
    /// Sets why the response is incomplete.
    pub(super) fn aborted(&mut self, code: Code, reason: Option<String>) {
        if let RecordOutcome::Responded { error, cause, .. } = &mut self.evidence.outcome {
            let reason = reason.map(|reason| self.redactor.message(&reason).into_owned());
            (*error, *cause) = (Some(code), reason);
        }
    }
    pub(super) fn refused(&mut self, refusal: &Refusal) {
        self.end(refusal, refusal.effective_status().as_u16());
    }
    /// Sets why a tunnel was closed after its client had got 200.
    pub(super) fn tunnel_closed(&mut self, refusal: &Refusal) {
        self.end(refusal, 200);
    }
    fn end(&mut self, refusal: &Refusal, status: u16) {
        self.timer.stop();
        if refusal.is_client_gone() {
            return;
        }
        self.evidence.outcome = RecordOutcome::Refused {
            status,
            code: refusal.code,
            blame: refusal.effective_blame(),
            retryable: refusal.is_retryable(),
            details: refusal.details(),
            detail: refusal.detail(&self.redactor),
            cause: refusal.cause(&self.redactor).map(Redacted::into_owned),
        };
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        for WouldRefuse { kind, name, code, .. } in &self.evidence.would_refuse {
            self.runtime.metrics.report_only(kind, name, code);
        }
        if !self.is_written {
            return;
        }
        if std::thread::panicking() {
            self.aborted(Code::Internal, Some(Panicked::last().to_string()));
        }
        let elapsed = self.timer.finish();
        let (status, code, blame) = match &self.evidence.outcome {
            RecordOutcome::Pending if std::thread::panicking() => (None, Code::Internal.name(), "outgate"),
            RecordOutcome::Pending if self.runtime.is_hard_stopped() => (None, Code::Draining.name(), "outgate"),
            RecordOutcome::Pending => (None, "client_gone", "client"),
            RecordOutcome::Responded { status, error: Some(code), .. } => {
                (Some(*status), code.name(), code.row().blame.as_str())
            }
            RecordOutcome::Responded { status, complete: true, .. } => (Some(*status), "delivered", "none"),
            RecordOutcome::Responded { status, .. } if self.runtime.is_hard_stopped() => {
                (Some(*status), Code::Draining.name(), "outgate")
            }
            // The target got the webhook. The client closed the connection before the end of the response, or read too slowly.
            RecordOutcome::Responded { status, .. } => (Some(*status), "client_gone", "client"),
            RecordOutcome::Refused { status, code, blame, .. } => (Some(*status), code.name(), blame.as_str()),
        };
        let (retryable, details, detail, cause) = match &self.evidence.outcome {
            RecordOutcome::Refused { retryable, details, detail, cause, .. } => {
                (Some(*retryable), *details, Some(detail), cause.as_ref())
            }
            RecordOutcome::Responded { cause, .. } => (None, None, None, cause.as_ref()),
            RecordOutcome::Pending => (None, None, None, None),
        };
        let route = self.evidence.route.as_ref().map(RouteName::as_str);
        self.count(code, blame, elapsed);
        self.count_denial(code);
        let sampling = self.sample(code);
        let (redactor, target, generated) = (&self.redactor, self.target.as_ref(), GeneratedId::of(self.request_id()));
        let webhook_id = self.evidence.webhook_id.as_ref().map(|id| id.redact(redactor, &generated));
        let line = RecordLine {
            time: Timestamp::try_from(std::time::SystemTime::now() - elapsed).unwrap_or_default(),
            request_id: self.request_id(),
            trace_id: self.evidence.trace.as_ref().map(|trace| trace.trace_id),
            peer: self.peer,
            client: self.evidence.client.as_ref().map(ClientName::as_str),
            proof: self.evidence.proof,
            claimed_client: self.evidence.claimed_client.as_deref(),
            tenant: self.evidence.tenant.as_ref().map(|tenant| redactor.tenant(tenant, self.evidence.is_tenant_proven)),
            route,
            side: self.evidence.side,
            webhook_id,
            method: self.method.as_ref().map(|method| redactor.claim(method.as_str())),
            scheme: target.map(|(target, _)| target.scheme.as_str()),
            host: target.map(|(target, _)| redactor.host(&target.host)),
            port: target.map(|(target, _)| target.port),
            path: target
                .and_then(|(target, path)| redactor.path(&self.evidence.route_paths, &target.host, path.as_deref()?)),
            source: self.evidence.source,
            local: self.evidence.local,
            address: self.evidence.address,
            attempts: &self.evidence.attempts,
            reused: self.evidence.reused,
            http: self.evidence.http,
            tls: self.evidence.tls.as_ref(),
            certificate: self.evidence.certificate.as_ref(),
            signatures: &self.evidence.signatures,
            status,
            status_class: self.evidence.status_class,
            code,
            blame,
            retryable,
            details,
            detail,
            cause,
            token_endpoint: self.evidence.token_endpoint.as_deref(),
            limit: self.evidence.limit.as_deref(),
            would_take: self.evidence.would_take.as_ref().map(RouteName::as_str),
            would_refuse: &self.evidence.would_refuse,
            bytes_sent: self.evidence.sent.bytes(),
            bytes_received: self.evidence.received,
            ms: self.timer.times(),
            sample: sampling.rate,
        };
        self.runtime.records.write(sampling, |text| line.write_json(text));
        if let Some(trace) = self.evidence.trace.as_ref().filter(|trace| trace.is_sampled()) {
            self.runtime.traces.push(trace::spans(&line, self.timer.times(), trace));
        }
    }
}
