//! Refusals of the target's side: errors of the guard, DNS, the connection, TLS and the response.
//! Which refusal does a client get if its target gives no valid response?

use std::borrow::Cow;

use crate::config::ResponseHeadMax;
use crate::delivery::refusal::{Blame, Code, Refusal};
use crate::net::dial::DialError;
use crate::net::field_filter::INTERIM_MAX;
use crate::net::hpack::FieldRule;
use crate::net::http_client::{ExchangeError, HeadLimit, Violation};
use crate::net::resolve::ResolveError;
use crate::net::tls::TlsError;
use crate::policy::breaker::BreakerOpen;
use crate::policy::credential::GrantError;
use crate::policy::egress::HopError;
use crate::policy::guard::Forbidden;

impl From<BreakerOpen> for Refusal {
    fn from(BreakerOpen { retry_after }: BreakerOpen) -> Self {
        Refusal::target(
            Code::TargetCircuitOpen,
            "failed too often, and its circuit is open: retry after the time in Retry-After",
        )
        .retry_after(retry_after)
    }
}

impl From<Forbidden> for Refusal {
    fn from(forbidden: Forbidden) -> Self {
        match forbidden {
            Forbidden::Port(port) => Refusal::new(
                Code::TargetPortForbidden,
                format!("the target port {port} is not allowed: neither guard.ports nor the route lists it"),
            ),
            Forbidden::Name => Refusal::part_of_target(Code::TargetForbidden, "name is reserved and never public")
                .with_cause("special-use name"),
            // The rule would tell an attacker which networks are inside: only the operator's record has it.
            Forbidden::Address { address, rule } => Refusal::target(Code::TargetForbidden, "is not a public address")
                .with_cause(format!("{address}: {rule}")),
            Forbidden::LoopsBack => Refusal::target(Code::TargetLoopsBack, "is this proxy itself"),
        }
    }
}

impl From<ResolveError> for Refusal {
    fn from(error: ResolveError) -> Self {
        match error {
            ResolveError::NotFound => Refusal::part_of_target(Code::NameNotFound, "name has no address"),
            ResolveError::NoFamily => HopError::NoCommonFamily.into(),
            ResolveError::Timeout => {
                Refusal::part_of_target(Code::NameTimeout, "name did not resolve within the dns timeout")
            }
            ResolveError::Outage => Refusal::new(Code::NameTimeout, "no name server of this proxy responds")
                .blame(Blame::Outgate)
                .with_details("no_server_responds"),
            // This failure may be temporary: only NXDOMAIN and a name without addresses show that there is no address.
            ResolveError::Failed(cause) => {
                Refusal::part_of_target(Code::NameTimeout, format!("name did not resolve: {cause}"))
                    .proxy_status("dns_error")
                    .with_cause(error)
            }
            ResolveError::Busy => Refusal::new(Code::NameTimeout, "the proxy is resolving too many names at once")
                .blame(Blame::Outgate)
                .with_details("busy"),
        }
    }
}

impl From<HopError> for Refusal {
    fn from(error: HopError) -> Self {
        match error {
            HopError::NoUsableSource => Refusal::new(Code::NoEgress, "no source address of the pool is usable"),
            // A retry succeeds only after the target gets an address of the other family, or the pool gets a source.
            HopError::NoCommonFamily => Refusal::target(
                Code::ConnectUnreachable,
                "has no address of an IP version for which the route's pool has a source address",
            )
            .with_details("address_family")
            .not_retryable(),
        }
    }
}

impl From<DialError> for Refusal {
    fn from(error: DialError) -> Self {
        match error {
            DialError::Refused => Refusal::target(Code::ConnectRefused, "refused the connection"),
            DialError::Timeout => {
                Refusal::target(Code::ConnectTimeout, "did not accept a connection within the connect timeout")
            }
            DialError::Unreachable => {
                Refusal::target(Code::ConnectUnreachable, "is unreachable: there is no network path to it")
            }
            DialError::Prohibited => Refusal::new(
                Code::ConnectUnreachable,
                "a firewall or a route of the egress host prohibits the connection",
            )
            .blame(Blame::Outgate)
            .with_details("prohibited"),
            DialError::NoSource => Refusal::new(Code::NoEgress, "no source address of the pool is usable"),
            DialError::Other(cause) => {
                Refusal::new(Code::Internal, "outgate could not open the connection").with_cause(cause)
            }
        }
    }
}

impl From<TlsError> for Refusal {
    fn from(error: TlsError) -> Self {
        let failed = |predicate: Cow<'static, str>| Refusal::target(Code::TlsFailed, predicate);
        let part_failed = |rest: &'static str| Refusal::part_of_target(Code::TlsFailed, rest);
        match error {
            TlsError::Certificate { error, issuer } => {
                let issuer = issuer.map(|issuer| format!(": {issuer}")).unwrap_or_default();
                let detail = format!("certificate is refused: {error}{issuer}");
                Refusal::part_of_target(Code::CertificateUntrusted, detail).with_details(error.as_str())
            }
            TlsError::Alert { id, name } => {
                failed(format!("ended the handshake with the alert {name}").into()).alert(id, name)
            }
            TlsError::Incompatible(cause) => failed("offers no TLS version or suite that the route accepts".into())
                .with_details("no_common")
                .with_cause(format!("{cause:?}")),
            TlsError::Plaintext => part_failed("port does not speak TLS").with_details("plaintext"),
            TlsError::Protocol(cause) => {
                part_failed("TLS handshake violates the protocol").with_details("protocol").with_cause(cause)
            }
            TlsError::Timeout => {
                Refusal::new(Code::ConnectTimeout, "the TLS handshake did not end within the tls timeout")
                    .with_details("tls")
            }
            TlsError::Lost(cause) => {
                Refusal::target(Code::ConnectionLost, "closed the connection during the TLS handshake")
                    .with_details("tls")
                    .with_cause(cause)
            }
        }
    }
}

/// Returns the refusal for an exchange that failed.
pub(in crate::delivery) fn map_exchange_error(error: &ExchangeError, head_max: ResponseHeadMax) -> Refusal {
    let refusal = if let Some(limit) = error.head_limit() {
        head_too_large(head_max, limit)
    } else if error.is_protocol_error() {
        Refusal::part_of_target(Code::ResponseMalformed, "response violates HTTP")
    } else {
        Refusal::new(
            Code::ConnectionLost,
            "the connection ended before the response; the target may have received the webhook",
        )
    };
    let refusal = if error.implies_response() { refusal.responded() } else { refusal };
    refusal.with_cause(error)
}

pub(in crate::delivery) fn head_too_large(max: ResponseHeadMax, limit: HeadLimit) -> Refusal {
    let (detail, details) = match limit {
        HeadLimit::Count => {
            (format!("more than {} fields (the route's response_head_max.count)", max.count), "response_head_count")
        }
        HeadLimit::Bytes => {
            (format!("more than {} bytes (the route's response_head_max.bytes)", max.bytes), "response_head_bytes")
        }
    };
    let refusal = Refusal::part_of_target(Code::ResponseTooLarge, format!("response head has {detail}"));
    refusal.proxy_status("http_response_header_section_size").with_details(details)
}

/// Returns the refusal for a malformed response over HTTP/2. Such a response ends its own stream only.
pub(in crate::delivery) fn malformed_response(violation: Violation, head_max: ResponseHeadMax) -> Refusal {
    let rule = match violation {
        Violation::TooLarge => return head_too_large(head_max, HeadLimit::Bytes).responded(),
        Violation::TooManyInterim => {
            let detail = format!("response follows more than {INTERIM_MAX} interim responses (1xx)");
            return Refusal::part_of_target(Code::ResponseMalformed, detail).responded();
        }
        Violation::Field(rule) => rule,
    };
    let violation = match rule {
        FieldRule::FieldName => "a field name has an upper-case letter or another character that is not allowed",
        FieldRule::FieldValue => "a field value has a control character",
        FieldRule::WhiteSpace => "a field value has white space around it",
        FieldRule::ConnectionField => "it has a connection-specific field, such as Connection or Transfer-Encoding",
        FieldRule::PseudoHeader => "a pseudo-header field is unknown, missing, repeated or out of place",
        FieldRule::Status => "its :status is one that HTTP/2 does not permit",
    };
    let detail = format!("response violates HTTP/2: {violation}");
    Refusal::part_of_target(Code::ResponseMalformed, detail).with_details(rule.as_str()).responded()
}

impl From<GrantError> for Refusal {
    fn from(error: GrantError) -> Self {
        match error {
            // Only the operator can correct this: the client and the target cannot.
            GrantError::Refused(status, details) => {
                let refusal = Refusal::target(
                    Code::Internal,
                    format!("responded with status {} and granted no token", status.as_u16()),
                );
                details.into_iter().fold(refusal, Refusal::with_details)
            }
            GrantError::Unavailable(status) => {
                Refusal::target(Code::TargetCircuitOpen, format!("responded with status {}", status.as_u16()))
            }
            GrantError::Malformed(reason) => Refusal::target(Code::ResponseMalformed, format!("returned {reason}")),
        }
    }
}
