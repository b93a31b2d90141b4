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
    /// The next step of an operator.
    pub advice: &'static str,
}

macro_rules! table {
    ($($code:ident $name:literal $status:ident $proxy_status:ident $blame:ident $retry:ident $title:literal $advice:literal;)*) => {
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
            advice: $advice,
        },)*];
    };
    (@ retry) => { true };
    (@ final) => { false };
}

table! {
    RequestMalformed "request_malformed" BAD_REQUEST http_request_error Client final "The request is malformed"
        "Correct the request: `detail` names the rule that it breaks.";
    ClientUnauthenticated "client_unauthenticated" PROXY_AUTHENTICATION_REQUIRED http_request_denied Client final "The client is not authenticated"
        "Give the client a credential of `[clients.NAME]`, or correct it: `outgate token new` makes a token.";
    ClientForbidden "client_forbidden" FORBIDDEN http_request_denied Client final "The client is not allowed to send this request"
        "Allow the client what it asks for (`clients.NAME.tenants`, `networks`), or correct the tenant that it names.";
    BodyTooLarge "body_too_large" PAYLOAD_TOO_LARGE http_request_error Client final "The body is larger than the route allows"
        "Send a smaller body, or raise `body_max` of the route.";
    BodyTimeout "body_timeout" REQUEST_TIMEOUT http_request_error Client retry "The body did not arrive in time"
        "Find out why the client sends so slowly, or raise `timeouts.body`. The client may retry.";
    RateLimited "rate_limited" TOO_MANY_REQUESTS http_request_denied Client retry "A rate limit is exceeded"
        "Let the client retry after `Retry-After`. If this traffic is wanted, raise the limit that `limit` names.";
    ConcurrencyLimited "concurrency_limited" TOO_MANY_REQUESTS connection_limit_reached Client retry "Too many deliveries are in flight"
        "Let the client retry after `Retry-After`. If it is common, raise the limit that `limit` names, or find the slow target.";
    NoRoute "no_route" FORBIDDEN http_request_denied Client final "No route matches"
        "Add a route for this host, path, tenant and client, or correct the URL: `outgate explain` shows why none matches.";
    PlaintextForbidden "plaintext_forbidden" FORBIDDEN http_request_denied Client final "The route does not allow plaintext http"
        "Send to an https URL, or set `plaintext = \"upgrade\"` for the route.";
    TunnelForbidden "tunnel_forbidden" FORBIDDEN http_request_denied Client final "Tunnels are not allowed here"
        "Send in absolute-form, or allow tunnels with `connect` of the route.";
    TargetPortForbidden "target_port_forbidden" FORBIDDEN http_request_denied Client final "The target port is not allowed"
        "Correct the port in the URL, or add it to `ports` of the route.";
    TargetForbidden "target_forbidden" BAD_GATEWAY destination_ip_prohibited Client final "The target is not a public address"
        "Ask the target's owner for a public address. If the address is meant, add it to `guard.allow`.";
    TargetLoopsBack "target_loops_back" BAD_GATEWAY proxy_loop_detected Client final "The target is this proxy"
        "Correct the URL: it leads to outgate itself.";
    NameNotFound "name_not_found" BAD_GATEWAY dns_error Target retry "The target's name does not resolve"
        "Check the spelling of the host. If it is right, ask the target's owner to publish its name in DNS.";
    NameTimeout "name_timeout" GATEWAY_TIMEOUT dns_timeout Target retry "Resolving the target's name failed or took too long"
        "Retry later. If it lasts, check the name servers of `[resolver]`, then those of the target's domain.";
    ConnectRefused "connect_refused" BAD_GATEWAY connection_refused Target retry "The target refused the connection"
        "Ask the target's owner whether the server runs on this port and whether a firewall rejects our source address.";
    ConnectTimeout "connect_timeout" GATEWAY_TIMEOUT connection_timeout Target retry "The target did not accept the connection in time"
        "Ask the target's owner to allow every range of `outgate egress list`: `outgate egress probe` shows the addresses that get no answer.";
    ConnectUnreachable "connect_unreachable" BAD_GATEWAY destination_ip_unroutable Target retry "The target cannot be reached"
        "Check that this host has a route to the address and that the pool has its IP version. Then ask the target's owner.";
    CertificateUntrusted "certificate_untrusted" BAD_GATEWAY tls_certificate_error Target final "The target's certificate is not trusted"
        "Ask the target's owner to correct the certificate: `details` says what is wrong with it.";
    TlsFailed "tls_failed" BAD_GATEWAY tls_protocol_error Target final "The TLS handshake with the target failed"
        "Ask the target's owner to serve TLS 1.2 or 1.3 on this port: `detail` says what failed.";
    ResponseTimeout "response_timeout" GATEWAY_TIMEOUT http_response_timeout Target retry "The target did not respond in time"
        "Ask the target's owner why the server is slow. It may have taken the webhook: a retry may arrive twice.";
    ResponseMalformed "response_malformed" BAD_GATEWAY http_protocol_error Target retry "The target's response is malformed"
        "Ask the target's owner to correct the response: `detail` names the rule that it breaks.";
    ResponseTooLarge "response_too_large" BAD_GATEWAY http_response_body_size Target final "The target's response is too large"
        "Ask the target's owner for a smaller response, or raise `response_max` or `response_head_max` of the route.";
    ConnectionLost "connection_lost" BAD_GATEWAY connection_terminated Target retry "The target closed the connection"
        "Let the client retry: the target may have taken the webhook. If it is common, ask the target's owner why the server closes connections.";
    TargetCircuitOpen "target_circuit_open" SERVICE_UNAVAILABLE destination_unavailable Target retry "The target failed too often, and its circuit is open"
        "Look at the deliveries to this host before it: their code says what the target does. The circuit closes by itself.";
    NoEgress "no_egress" SERVICE_UNAVAILABLE proxy_internal_error Outgate retry "No source address of the pool is usable"
        "Run `outgate egress verify`, and give this host the addresses that are missing.";
    Draining "draining" SERVICE_UNAVAILABLE proxy_internal_response Outgate retry "The proxy accepts no new deliveries"
        "Let the client retry: another process, or this one after its restart or after `outgate undrain`, takes the webhook.";
    Internal "internal" INTERNAL_SERVER_ERROR proxy_internal_error Outgate retry "The proxy failed"
        "Read `cause` in the record and the log at this time, and report a bug if it is not the configuration.";
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
