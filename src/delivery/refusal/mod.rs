//! Every way a delivery can be refused: the one table behind the answers, the records, the metrics and the documents.
//! What does the client learn when its webhook is not delivered?

mod reason;

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use serde::Serialize;

use crate::names::Target;
use crate::policy::limits;
pub use reason::ReasonPhrase;

/// Whose fault a refusal is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Hash)]
#[serde(rename_all = "lowercase")]
pub enum Blame {
    Client,
    Target,
    Outgate,
}

impl Blame {
    pub fn as_str(self) -> &'static str {
        match self {
            Blame::Client => "client",
            Blame::Target => "target",
            Blame::Outgate => "outgate",
        }
    }
}

/// A row of the table.
#[derive(Debug)]
pub struct Row {
    pub code: Code,
    /// As in `Outgate-Error`.
    pub name: &'static str,
    pub status: StatusCode,
    /// The error type of RFC 9209 §2.3.
    pub proxy_status: &'static str,
    pub blame: Blame,
    pub retryable: bool,
    pub title: &'static str,
}

macro_rules! table {
    ($($code:ident $name:literal $status:ident $proxy_status:ident $blame:ident $retry:ident $title:literal;)*) => {
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Code { $($code,)* }

        pub static TABLE: &[Row] = &[$(Row {
            code: Code::$code,
            name: $name,
            status: StatusCode::$status,
            proxy_status: stringify!($proxy_status),
            blame: Blame::$blame,
            retryable: table!(@ $retry),
            title: $title,
        },)*];
    };
    (@ retry) => { true };
    (@ final) => { false };
}

table! {
    RequestMalformed "request_malformed" BAD_REQUEST http_request_error Client final "The request is malformed";
    ClientUnauthenticated "client_unauthenticated" PROXY_AUTHENTICATION_REQUIRED http_request_denied Client final "The client did not prove who it is";
    ClientForbidden "client_forbidden" FORBIDDEN http_request_denied Client final "The client may not do this";
    BodyTooLarge "body_too_large" PAYLOAD_TOO_LARGE http_request_error Client final "The body is larger than the route allows";
    BodyTimeout "body_timeout" REQUEST_TIMEOUT http_request_error Client retry "The body did not arrive in time";
    RateLimited "rate_limited" TOO_MANY_REQUESTS http_request_denied Client retry "A rate limit is exhausted";
    ConcurrencyLimited "concurrency_limited" TOO_MANY_REQUESTS connection_limit_reached Client retry "Too many deliveries at once";
    NoRoute "no_route" FORBIDDEN http_request_denied Client final "No route matches";
    PlaintextForbidden "plaintext_forbidden" FORBIDDEN http_request_denied Client final "The route does not allow plaintext http";
    TunnelForbidden "tunnel_forbidden" FORBIDDEN http_request_denied Client final "Tunnels are not allowed here";
    TargetPortForbidden "target_port_forbidden" FORBIDDEN http_request_denied Client final "The target port is not allowed";
    TargetForbidden "target_forbidden" BAD_GATEWAY destination_ip_prohibited Client final "The target is not a public address";
    TargetLoopsBack "target_loops_back" BAD_GATEWAY proxy_loop_detected Client final "The target is this proxy";
    NameNotFound "name_not_found" BAD_GATEWAY dns_error Target retry "The target's name does not resolve";
    NameTimeout "name_timeout" GATEWAY_TIMEOUT dns_timeout Target retry "Resolving the target's name failed or took too long";
    ConnectRefused "connect_refused" BAD_GATEWAY connection_refused Target retry "The target refused the connection";
    ConnectTimeout "connect_timeout" GATEWAY_TIMEOUT connection_timeout Target retry "The target did not accept the connection in time";
    ConnectUnreachable "connect_unreachable" BAD_GATEWAY destination_ip_unroutable Target retry "The target cannot be reached";
    CertificateUntrusted "certificate_untrusted" BAD_GATEWAY tls_certificate_error Target final "The target's certificate is not trusted";
    TlsFailed "tls_failed" BAD_GATEWAY tls_protocol_error Target final "The TLS handshake with the target failed";
    ResponseTimeout "response_timeout" GATEWAY_TIMEOUT http_response_timeout Target retry "The target did not answer in time";
    ResponseMalformed "response_malformed" BAD_GATEWAY http_protocol_error Target retry "The target's answer is malformed";
    ResponseTooLarge "response_too_large" BAD_GATEWAY http_response_body_size Target final "The target's answer is too large";
    ConnectionLost "connection_lost" BAD_GATEWAY connection_terminated Target retry "The target closed the connection";
    TargetCircuitOpen "target_circuit_open" SERVICE_UNAVAILABLE destination_unavailable Target retry "The target failed too often lately";
    NoEgress "no_egress" SERVICE_UNAVAILABLE proxy_internal_error Outgate retry "No source address of the pool is usable";
    Draining "draining" SERVICE_UNAVAILABLE proxy_internal_response Outgate retry "The proxy is shutting down";
    Internal "internal" INTERNAL_SERVER_ERROR proxy_internal_error Outgate retry "The proxy failed";
}

impl Code {
    pub fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }
    pub fn name(self) -> &'static str {
        self.row().name
    }
}

/// One refusal: a row, and what is particular to this case. Rare, and so kept small where all goes well.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub code: Code,
    case: Box<RefusalContext>,
}

#[derive(Clone, Debug, Default)]
struct RefusalContext {
    /// Where RFC 9110 has a more precise status than the row (414, 417, 431, 501, 505).
    status: Option<StatusCode>,
    /// Where RFC 9209 has a more precise error type than the row.
    proxy_status: Option<&'static str>,
    /// The target's TLS alert, as RFC 9209 §2.3.15 wants it told.
    alert: Option<(u8, &'static str)>,
    /// For the client: never an internal address, never a secret.
    detail: String,
    /// One word within the code, such as `self_signed`.
    details: Option<&'static str>,
    /// For the operator's record alone.
    cause: Option<String>,
    retry_after: Option<Duration>,
    /// What is known of the request's arrival, where it says more than the row.
    arrival: Option<ProcessingEvidence>,
    /// Whose fault it is, where that is not the row's.
    blame: Option<Blame>,
    /// To send the webhook again is of no use, though the row says that it may be.
    is_final: bool,
    /// Nobody is there to hear it.
    is_client_gone: bool,
    fields: Vec<(HeaderName, HeaderValue)>,
}

/// What shows whether the target has the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProcessingEvidence {
    /// A byte of a response has come.
    ResponseReceived,
    /// The target has said that it has not processed the request, or not a byte of it was sent.
    Unprocessed,
}

/// How long a client should leave us alone where no limit says it better.
const RETRY_SOON: Duration = Duration::from_secs(1);

impl Refusal {
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        let retry_after = matches!(code, Code::Draining | Code::NoEgress).then_some(RETRY_SOON);
        Self {
            code,
            case: Box::new(RefusalContext { detail: detail.into(), retry_after, ..RefusalContext::default() }),
        }
    }
    pub fn malformed(detail: impl Into<String>) -> Self {
        Self::new(Code::RequestMalformed, detail)
    }
    #[must_use]
    pub fn status(mut self, status: StatusCode) -> Self {
        self.case.status = Some(status);
        self
    }
    #[must_use]
    pub fn proxy_status(mut self, error: &'static str) -> Self {
        self.case.proxy_status = Some(error);
        self
    }
    /// The number and the name of the alert by which the target has refused us.
    #[must_use]
    pub fn alert(mut self, id: u8, name: &'static str) -> Self {
        self.case.proxy_status = Some("tls_alert_received");
        self.case.alert = Some((id, name));
        self.with_details(name)
    }
    #[must_use]
    pub fn with_details(mut self, word: &'static str) -> Self {
        self.case.details = Some(word);
        self
    }
    #[must_use]
    pub fn with_cause(mut self, cause: impl ToString) -> Self {
        self.case.cause = Some(cause.to_string());
        self
    }
    /// A byte of a response has come: the webhook has arrived, and a retry would deliver it once more.
    #[must_use]
    pub fn responded(mut self) -> Self {
        self.case.arrival = Some(ProcessingEvidence::ResponseReceived);
        self
    }
    /// The webhook has certainly not arrived.
    #[must_use]
    pub fn unprocessed(mut self) -> Self {
        self.case.arrival = Some(ProcessingEvidence::Unprocessed);
        self.with_details("unprocessed")
    }
    /// The client has gone: the record says so, and not what it would have been told.
    #[must_use]
    pub fn client_gone(mut self) -> Self {
        self.case.is_client_gone = true;
        self
    }
    /// Whose fault this case is, where that is not the row's.
    #[must_use]
    pub fn blame(mut self, blame: Blame) -> Self {
        self.case.blame = Some(blame);
        self
    }
    /// The operator or the target must change something before the webhook can arrive.
    #[must_use]
    pub fn not_retryable(mut self) -> Self {
        self.case.is_final = true;
        self
    }
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.case.retry_after = Some(wait);
        self
    }
    #[must_use]
    pub fn field(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.case.fields.push((name, value));
        self
    }

    /// The same of the endpoint that was asked for a token, which was the target there. What would be the client's fault
    /// of a target of its own is none here, where the operator has chosen it.
    #[must_use]
    pub fn of_token_endpoint(mut self, endpoint: &Target) -> Self {
        if self.code.row().blame == Blame::Client {
            self.code = Code::Internal;
            self.case.proxy_status = None;
        }
        self.case.arrival = None; // what has arrived there is the request for a token
        let detail = self.case.detail.replace("the target's", "its").replace("the target", "it");
        self.case.detail = format!("no token from the token endpoint: {detail}");
        let cause = self.case.cause.take().map(|cause| format!(": {cause}")).unwrap_or_default();
        self.with_cause(format!("token endpoint {endpoint}{cause}"))
    }

    pub fn detail(&self) -> &str {
        &self.case.detail
    }

    /// One word within the code, such as `self_signed`.
    pub fn details(&self) -> Option<&'static str> {
        self.case.details
    }
    /// For the operator alone.
    pub fn cause(&self) -> Option<&str> {
        self.case.cause.as_deref()
    }

    pub fn is_client_gone(&self) -> bool {
        self.case.is_client_gone
    }

    pub fn effective_blame(&self) -> Blame {
        self.case.blame.unwrap_or(self.code.row().blame)
    }

    /// Returns whether a retry makes sense: never where a response shows that the webhook has arrived, and always where
    /// it certainly has not been processed; else as the row says.
    pub fn is_retryable(&self) -> bool {
        match self.case.arrival {
            Some(ProcessingEvidence::ResponseReceived) => false,
            Some(ProcessingEvidence::Unprocessed) => true,
            None => self.code.row().retryable && !self.case.is_final,
        }
    }

    pub fn effective_status(&self) -> StatusCode {
        self.case.status.unwrap_or(self.code.row().status)
    }

    /// The answer: RFC 9457 problem details under the headers that tell our answers from a target's.
    pub fn respond(self, pseudonym: &str, request_id: &str) -> Response<Bytes> {
        let row = self.code.row();
        let status = self.effective_status();
        let problem = ProblemDetails {
            kind: "about:blank",
            title: row.title,
            status: status.as_u16(),
            detail: &self.case.detail,
            code: row.name,
            blame: self.effective_blame(),
            retryable: self.is_retryable(),
            details: self.case.details,
            request_id,
        };
        let body = Bytes::from(serde_json::to_vec(&problem).expect("strings and numbers always serialise"));
        let mut response = Response::new(body);
        *response.status_mut() = status;
        response.extensions_mut().insert(self.reason());
        let fields = response.headers_mut();
        fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        fields.insert("outgate-error", HeaderValue::from_static(row.name));
        fields.insert("proxy-status", self.proxy_status_field(pseudonym));
        if status == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            fields.append(
                header::PROXY_AUTHENTICATE,
                HeaderValue::from_static("Basic realm=\"outgate\", charset=\"UTF-8\""),
            );
            fields.append(header::PROXY_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"outgate\""));
        }
        if let Some(wait) = self.case.retry_after {
            fields.insert(header::RETRY_AFTER, limits::whole_seconds(wait).into());
        }
        if matches!(self.code, Code::Draining | Code::BodyTimeout) {
            fields.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        for (name, value) in self.case.fields {
            fields.append(name, value);
        }
        response
    }

    fn proxy_status_field(&self, pseudonym: &str) -> HeaderValue {
        let row = self.code.row();
        let error = self.case.proxy_status.unwrap_or(row.proxy_status);
        let details = self.case.details.unwrap_or(row.name);
        let alert = self.case.alert.map(|(id, name)| format!("; alert-id={id}; alert-message=\"{name}\""));
        let alert = alert.unwrap_or_default();
        HeaderValue::from_str(&format!("{pseudonym}; error={error}{alert}; details=\"{details}\""))
            .unwrap_or(HeaderValue::from_static("outgate; error=proxy_internal_error"))
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.case.detail)
    }
}

impl std::error::Error for Refusal {}

/// RFC 9457 §3.1, and our extension members.
#[derive(Serialize)]
struct ProblemDetails<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    code: &'static str,
    blame: Blame,
    retryable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<&'static str>,
    request_id: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_codes() {
        for row in TABLE {
            assert_eq!(row.code.row().name, row.name);
            assert!(row.status.is_client_error() || row.status.is_server_error());
        }
    }

    #[test]
    fn a_refusal_carries_its_row_and_nothing_internal() {
        let refusal = Refusal::new(Code::TargetForbidden, "hooks.example is not a public host")
            .with_cause("10.0.0.1 is Private-Use");
        let response = refusal.respond("outgate", "0123");
        assert_eq!(response.status(), 502);
        assert_eq!(response.headers()["outgate-error"], "target_forbidden");
        assert_eq!(
            response.headers()["proxy-status"],
            "outgate; error=destination_ip_prohibited; details=\"target_forbidden\""
        );
        let body = String::from_utf8(response.into_body().to_vec()).unwrap();
        assert!(!body.contains("10.0.0.1"), "{body}");
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["blame"], "client");
        assert_eq!(body["retryable"], false);
        assert_eq!(body["request_id"], "0123");
    }

    #[test]
    fn a_wait_is_told_in_whole_seconds_never_too_early() {
        let told = |wait| {
            let response = Refusal::new(Code::RateLimited, "").retry_after(wait).respond("outgate", "0");
            response.headers()["retry-after"].to_str().unwrap().to_owned()
        };
        assert_eq!(told(Duration::from_millis(1)), "1");
        assert_eq!(told(Duration::from_millis(1001)), "2");
        assert_eq!(told(Duration::from_secs(7)), "7");
    }
}
