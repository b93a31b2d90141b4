//! The conversion of every error into a refusal.
//! Which refusal does the client get for this error?

use std::time::Duration;

use http::{HeaderMap, Response, StatusCode, Version, header};
use http_body::Body;
use jiff::Timestamp;

use super::fields;
use super::refusal::{Blame, Code, Refusal};
use crate::config::ResponseHeadMax;
use crate::names::{Host, TenantName};
use crate::net::hpack::FieldRule;
use crate::net::http_client::{self, Violation};
use crate::net::resolve::ResolveError;
use crate::net::tls::TlsError;
use crate::policy::authn::{AuthnError, Client};
use crate::policy::egress::HopError;
use crate::policy::guard::Forbidden;
use crate::policy::limits;
use crate::policy::route::{AmbiguousPath, Route};
use crate::policy::sign::{SignError, Signer};
use crate::state::Draining;
use crate::state::limits::admission::Overloaded;
use crate::state::limits::{LimitExceeded, LimitKind};
use crate::state::replay::ReplayError;

pub(super) fn check_tenant(client: &Client, tenant: Option<&TenantName>) -> Result<(), Refusal> {
    match tenant {
        Some(tenant) if !client.may_act_for(tenant) => Err(Refusal::new(
            Code::ClientForbidden,
            format!("this client may not send for tenant {:?}", tenant.as_str()),
        )),
        _ => Ok(()),
    }
}

pub(super) fn no_route(host: &Host) -> Refusal {
    Refusal::new(Code::NoRoute, format!("no route matches {host} for this client, tenant and path"))
}

/// A tunnel may carry any path, so every route of the host has a say in it: see `Routes::choose_for_tunnel`.
pub(super) fn no_tunnel() -> Refusal {
    let detail = "no tunnels to this host: send the request itself, in absolute-form";
    Refusal::new(Code::TunnelForbidden, detail)
}

pub(super) fn no_loop(fields: &HeaderMap, pseudonym: &str) -> Result<(), Refusal> {
    if fields::has_via(fields, pseudonym) {
        return Err(Refusal::new(
            Code::TargetLoopsBack,
            format!("Via says that the request came through {pseudonym} already"),
        ));
    }
    Ok(())
}

/// Settled before anything is spent on the webhook: every signer of the route has a key in force for this tenant.
pub(super) fn has_keys(route: &Route, tenant: Option<&TenantName>, now: Timestamp) -> Result<(), Refusal> {
    route.signers.iter().try_for_each(|signer| match signer.keys_of(tenant) {
        Err(fault) => Err(unsigned(signer, tenant, fault)),
        Ok(_) if signer.signing_keys(tenant, now).next().is_none() => {
            Err(unsigned(signer, tenant, SignError::NoActiveKey))
        }
        Ok(_) => Ok(()),
    })
}

pub(super) fn unsigned(signer: &Signer, tenant: Option<&TenantName>, fault: SignError) -> Refusal {
    let tenant = tenant.map_or("", TenantName::as_str);
    let refusal = match fault {
        SignError::Unsignable(why) => return Refusal::malformed(why),
        SignError::NoTenant => Refusal::new(
            Code::ClientForbidden,
            "webhooks of this route are signed with their tenant's own key: name the tenant in Outgate-Tenant",
        )
        .with_details("no_tenant"),
        SignError::NoTenantKeys => {
            Refusal::new(Code::ClientForbidden, format!("there is no signing key for tenant {tenant:?}"))
                .with_details("no_tenant_key")
        }
        SignError::NoActiveKey => Refusal::new(Code::Internal, "no signing key is in force"),
        SignError::BackendFailed => Refusal::new(Code::Internal, "the webhook could not be signed"),
    };
    refusal.with_cause(format!("signer {}: {fault}", signer.name()))
}

/// A limit of a response head.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum HeadLimit {
    Count,
    Bytes,
}

pub(super) fn head_too_large(max: ResponseHeadMax, limit: HeadLimit) -> Refusal {
    let (detail, word) = match limit {
        HeadLimit::Count => {
            (format!("more than {} fields (the route's response_head_max.count)", max.count), "response_head_count")
        }
        HeadLimit::Bytes => {
            (format!("more than {} bytes (the route's response_head_max.bytes)", max.bytes), "response_head_bytes")
        }
    };
    let refusal = Refusal::new(Code::ResponseTooLarge, format!("the head of the target's response has {detail}"));
    refusal.proxy_status("http_response_header_section_size").with_details(word)
}

/// `received`: bytes of the final response, as far as they are counted.
pub(super) fn map_hyper_error(fault: &hyper::Error, head_max: ResponseHeadMax, received: usize) -> Refusal {
    let refusal = if fault.is_parse_too_large() {
        head_too_large(head_max, if received < head_max.bytes { HeadLimit::Count } else { HeadLimit::Bytes })
    } else if http_client::is_protocol_error(fault) {
        Refusal::new(Code::ResponseMalformed, "the target's answer breaks HTTP")
    } else {
        Refusal::new(Code::ConnectionLost, "the connection ended before the answer; the webhook may have arrived")
    };
    let refusal = if http_client::implies_response(fault) { refusal.responded() } else { refusal };
    refusal.with_cause(fault)
}

/// What is wrong with a response that no stream other than its own ends for.
pub(super) fn malformed_response(violation: Violation, head: ResponseHeadMax) -> Refusal {
    let rule = match violation {
        Violation::TooLarge => return head_too_large(head, HeadLimit::Bytes).responded(),
        Violation::Field(rule) => rule,
    };
    let broken = match rule {
        FieldRule::FieldName => "a field name that has an upper-case letter, or is no name",
        FieldRule::FieldValue => "a field value with a control character",
        FieldRule::WhiteSpace => "white space around a field value",
        FieldRule::ConnectionField => "a field of the connection, such as Connection or Transfer-Encoding",
        FieldRule::PseudoHeader => "a pseudo-header field that is unknown, missing, repeated or out of place",
        FieldRule::Status => "a :status that HTTP/2 does not permit",
    };
    let detail = format!("the target's response breaks HTTP/2: {broken}");
    Refusal::new(Code::ResponseMalformed, detail).with_details(rule.as_str()).responded()
}

/// Judges a response before it is passed on. Whatever is wrong with it, it shows that the request has arrived.
pub(super) fn final_answer(answer: &Response<impl Body>, limit: u64, head: ResponseHeadMax) -> Result<(), Refusal> {
    acceptable(answer, limit, head).map_err(Refusal::responded)
}

/// We asked for no upgrade, so a target that switches protocols speaks out of turn. `limit`: of the body, in bytes.
fn acceptable(answer: &Response<impl Body>, limit: u64, head: ResponseHeadMax) -> Result<(), Refusal> {
    // Over HTTP/1.1 the parser has held both limits.
    if answer.version() == Version::HTTP_2 {
        if answer.headers().len() > head.count {
            return Err(head_too_large(head, HeadLimit::Count));
        }
        if http_client::field_section_size(answer.headers()) > head.bytes {
            return Err(head_too_large(head, HeadLimit::Bytes));
        }
    }
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Refusal::new(Code::ResponseMalformed, "the target switched protocols, unasked"));
    }
    let mut codings = answer.headers().get_all(header::TRANSFER_ENCODING).iter();
    // Only chunked is taken off here: what another coding wraps would reach the client unlabelled.
    if codings.any(|coding| !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked")) {
        let refusal = Refusal::new(Code::ResponseMalformed, "the target used a transfer coding that nobody asked for");
        return Err(refusal.proxy_status("http_response_transfer_coding"));
    }
    if answer.body().size_hint().lower() > limit {
        return Err(Refusal::new(
            Code::ResponseTooLarge,
            "the target's answer is longer than the route's response_max",
        ));
    }
    Ok(())
}

/// Of a path's reading, in characters: the rest adds nothing to a refusal.
const READING_SHOWN: usize = 200;

impl From<AmbiguousPath> for Refusal {
    fn from(fault: AmbiguousPath) -> Self {
        let detail = match fault {
            AmbiguousPath::DifferentRoute { reading, steps, has_route } => {
                let reading: String = reading.chars().take(READING_SHOWN).collect();
                let taken = if has_route { "another route matches" } else { "no route matches" };
                format!("the path is ambiguous: with {steps} it is {reading:?}, which {taken}")
            }
            AmbiguousPath::TooManyReadings => {
                "the path is ambiguous: its escapes and dot segments can be read in too many ways".to_owned()
            }
        };
        Refusal::malformed(detail).with_details("ambiguous_path")
    }
}

impl From<Draining> for Refusal {
    fn from(Draining: Draining) -> Self {
        Refusal::new(
            Code::Draining,
            "this proxy is shutting down; another one, or a restarted one, will take the webhook",
        )
    }
}

impl From<AuthnError> for Refusal {
    fn from(fault: AuthnError) -> Self {
        let refused = |detail: &str| Refusal::new(Code::ClientUnauthenticated, detail).with_cause(fault);
        match fault {
            AuthnError::NoCredential => refused("Proxy-Authorization is missing"),
            AuthnError::Invalid => refused("the credential does not prove a client"),
            AuthnError::Conflicting => refused("the credentials are those of different clients"),
            AuthnError::Signature(why) => refused(&format!("the signature is refused: {why}")),
            AuthnError::MissingProof(missing) => {
                refused(&format!("the client must prove itself by {}, too", missing.as_str()))
            }
            AuthnError::CertificateExpired(_) | AuthnError::CertificateRevoked | AuthnError::CertificateUntrusted => {
                refused(&format!("{fault}: connect again with a valid one"))
            }
            AuthnError::ForbiddenNetwork => {
                Refusal::new(Code::ClientForbidden, "the client may not call from this network")
            }
        }
    }
}

impl From<ReplayError> for Refusal {
    fn from(fault: ReplayError) -> Self {
        match fault {
            ReplayError::Replayed => {
                Refusal::new(Code::ClientUnauthenticated, "the signature is refused: it was used before")
            }
            ReplayError::CacheFull => {
                let detail = "more requests are signed than can be told from those sent again";
                Refusal::new(Code::RateLimited, detail).retry_after(Duration::from_secs(1))
            }
        }
    }
}

pub(super) fn limited(kind: LimitKind) -> Code {
    match kind {
        LimitKind::Rate => Code::RateLimited,
        LimitKind::Concurrency => Code::ConcurrencyLimited,
    }
}

impl From<LimitExceeded> for Refusal {
    fn from(limited: LimitExceeded) -> Self {
        let name = limited.limit.as_str();
        let detail = match limited.kind {
            LimitKind::Rate => format!("the rate of limit {name:?} is exhausted"),
            LimitKind::Concurrency => format!("limit {name:?} allows no more deliveries at once"),
        };
        let refusal = Refusal::new(self::limited(limited.kind), detail).retry_after(limited.retry_after);
        let fields = limits::headers(&limited.statuses).into_iter().flatten();
        fields.fold(refusal, |refusal, (name, value)| refusal.field(name, value))
    }
}

/// Open tunnels have taken all file descriptors that they may.
pub(super) fn too_many_tunnels() -> Refusal {
    busy("the proxy as a whole is busy: it has as many tunnels open as it may")
}

fn busy(detail: &'static str) -> Refusal {
    Refusal::new(Code::ConcurrencyLimited, detail).retry_after(Duration::from_secs(1)).with_details("busy")
}

impl From<Overloaded> for Refusal {
    fn from(Overloaded: Overloaded) -> Self {
        busy("the proxy as a whole is busy: it has as many deliveries in flight as it may")
    }
}

impl From<Forbidden> for Refusal {
    fn from(forbidden: Forbidden) -> Self {
        match forbidden {
            Forbidden::Port(port) => Refusal::new(Code::TargetPortForbidden, format!("port {port} is not allowed")),
            Forbidden::Name => Refusal::new(Code::TargetForbidden, "the target's name is reserved and never public")
                .with_cause("special-use name"),
            // Which rule it was tells a prober what stands inside: the operator's record alone says.
            Forbidden::Address { address, rule } => {
                Refusal::new(Code::TargetForbidden, "the target is not a public address")
                    .with_cause(format!("{address}: {rule}"))
            }
            Forbidden::LoopsBack => Refusal::new(Code::TargetLoopsBack, "the target is this proxy itself"),
        }
    }
}

impl From<ResolveError> for Refusal {
    fn from(fault: ResolveError) -> Self {
        match fault {
            ResolveError::NotFound => Refusal::new(Code::NameNotFound, "the target's name has no address"),
            ResolveError::NoFamily => HopError::NoCommonFamily.into(),
            ResolveError::Timeout => {
                Refusal::new(Code::NameTimeout, "the target's name did not resolve within the dns timeout")
            }
            ResolveError::Outage => Refusal::new(Code::NameTimeout, "no name server of this proxy responds")
                .blame(Blame::Outgate)
                .with_details("no_server_responds"),
            // A failure that may pass: only NXDOMAIN and a name without addresses say that there is nothing to find.
            ResolveError::Failed(cause) => {
                Refusal::new(Code::NameTimeout, format!("the target's name did not resolve: {cause}"))
                    .proxy_status("dns_error")
                    .with_cause(fault)
            }
            ResolveError::Busy => Refusal::new(Code::NameTimeout, "too many names are being resolved")
                .blame(Blame::Outgate)
                .with_details("busy"),
        }
    }
}

impl From<HopError> for Refusal {
    fn from(fault: HopError) -> Self {
        match fault {
            HopError::NoUsableSource => Refusal::new(Code::NoEgress, "no source address of the pool is usable"),
            // The target gets an address of the other family, or the pool a source: no retry helps before.
            HopError::NoCommonFamily => Refusal::new(
                Code::ConnectUnreachable,
                "the target has no address of an IP version that the route's pool has source addresses of",
            )
            .with_details("address_family")
            .not_retryable(),
        }
    }
}

impl From<TlsError> for Refusal {
    fn from(fault: TlsError) -> Self {
        let failed = |detail: &str| Refusal::new(Code::TlsFailed, detail);
        match fault {
            TlsError::Certificate { fault, issuer } => {
                let issuer = issuer.map(|issuer| format!(": {issuer}")).unwrap_or_default();
                let detail = format!("the target's certificate is refused: {fault}{issuer}");
                Refusal::new(Code::CertificateUntrusted, detail).with_details(fault.as_str())
            }
            TlsError::Alert { id, name } => {
                failed(&format!("the target ended the handshake with the alert {name}")).alert(id, name)
            }
            TlsError::Incompatible(cause) => failed("the target offers no TLS version or suite that the route accepts")
                .with_details("no_common")
                .with_cause(format!("{cause:?}")),
            TlsError::Plaintext => failed("the target's port does not speak TLS").with_details("plaintext"),
            TlsError::Protocol(cause) => {
                failed("the target's handshake breaks the protocol").with_details("protocol").with_cause(cause)
            }
            TlsError::Timeout => {
                Refusal::new(Code::ConnectTimeout, "the TLS handshake did not end within the tls timeout")
                    .with_details("tls")
            }
            TlsError::Lost(cause) => Refusal::new(Code::ConnectionLost, "the target hung up during the TLS handshake")
                .with_details("tls")
                .with_cause(cause),
        }
    }
}
