//! The one table of refusals, from which the responses, the records, the metrics and the documents come.
//! Which status, blame and title does a code have, and may the client retry?

use http::StatusCode;
use serde::Serialize;

/// The party that must act before a refused webhook can arrive.
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

/// A row of the table: what every refusal with this code has.
#[derive(Debug)]
pub struct Row {
    pub code: Code,
    /// The value of the field `Outgate-Error`.
    pub name: &'static str,
    pub status: StatusCode,
    /// The error type of RFC 9209 §2.3.
    pub proxy_status: &'static str,
    pub blame: Blame,
    /// A retry may succeed without a change by an operator.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_table_is_in_the_order_of_the_codes() {
        for row in TABLE {
            assert_eq!(row.code.row().name, row.name);
            assert!(row.status.is_client_error() || row.status.is_server_error());
        }
    }
}
