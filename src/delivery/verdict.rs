//! What each room's "no" means to the client.
//! Which refusal is it?

use std::time::Duration;

use http::{HeaderMap, Response, StatusCode, Version, header};
use http_body::Body;
use jiff::Timestamp;

use super::fields;
use super::refusal::{Blame, Code, Refusal};
use crate::config::ResponseHeadMax;
use crate::live::Draining;
use crate::live::gate::Busy;
use crate::live::limits::{Kind, Limited};
use crate::live::replay::NotFresh;
use crate::names::{Host, TenantName};
use crate::net::exchange::{self, Violation};
use crate::net::hpack::Rule;
use crate::net::resolve::ResolveFault;
use crate::net::tls::TlsFault;
use crate::policy::admit;
use crate::policy::egress::NoHop;
use crate::policy::guard::Forbidden;
use crate::policy::identify::{Client, Unidentified};
use crate::policy::route::{AmbiguousPath, Route};
use crate::policy::sign::{SignError, Signer};

pub(super) fn speaks_for(client: &Client, tenant: Option<&TenantName>) -> Result<(), Refusal> {
    match tenant {
        Some(tenant) if !client.speaks_for(tenant) => Err(Refusal::new(
            Code::ClientForbidden,
            format!("this client may not send for tenant {:?}", tenant.as_str()),
        )),
        _ => Ok(()),
    }
}

pub(super) fn no_route(host: &Host) -> Refusal {
    Refusal::new(Code::NoRoute, format!("no route takes this client and tenant to {host}"))
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
        Ok(_) if signer.signing_keys(tenant, now).next().is_none() => Err(unsigned(signer, tenant, SignError::NoKey)),
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
        .details("no_tenant"),
        SignError::NoKeys => {
            Refusal::new(Code::ClientForbidden, format!("there is no signing key for tenant {tenant:?}"))
                .details("no_tenant_key")
        }
        SignError::NoKey => Refusal::new(Code::Internal, "no signing key is in force"),
        SignError::Failed => Refusal::new(Code::Internal, "the webhook could not be signed"),
    };
    refusal.cause(format!("signer {}: {fault}", signer.name()))
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
    refusal.proxy_status("http_response_header_section_size").details(word)
}

/// What is wrong with a response that no stream other than its own ends for.
pub(super) fn malformed_response(violation: Violation, head: ResponseHeadMax) -> Refusal {
    let rule = match violation {
        Violation::TooLarge => return head_too_large(head, HeadLimit::Bytes).responded(),
        Violation::Field(rule) => rule,
    };
    let broken = match rule {
        Rule::FieldName => "a field name that has an upper-case letter, or is no name",
        Rule::FieldValue => "a field value with a control character",
        Rule::WhiteSpace => "white space around a field value",
        Rule::ConnectionField => "a field of the connection, such as Connection or Transfer-Encoding",
        Rule::PseudoHeader => "a pseudo-header field that is unknown, missing, repeated or out of place",
        Rule::Status => "a :status that HTTP/2 does not permit",
    };
    let detail = format!("the target's response breaks HTTP/2: {broken}");
    Refusal::new(Code::ResponseMalformed, detail).details(rule.as_str()).responded()
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
        if exchange::list_size(answer.headers()) > head.bytes {
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
            AmbiguousPath::Differs { reading, steps, has_route } => {
                let reading: String = reading.chars().take(READING_SHOWN).collect();
                let taken = if has_route { "another route takes" } else { "no route takes" };
                format!("the path is ambiguous: with {steps} it is {reading:?}, which {taken}")
            }
            AmbiguousPath::TooManyReadings => {
                "the path is ambiguous: its escapes and dot segments can be read in too many ways".to_owned()
            }
        };
        Refusal::malformed(detail).details("ambiguous_path")
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

impl From<Unidentified> for Refusal {
    fn from(fault: Unidentified) -> Self {
        let refused = |detail: &str| Refusal::new(Code::ClientUnauthenticated, detail).cause(fault);
        match fault {
            Unidentified::Missing => refused("Proxy-Authorization is missing"),
            Unidentified::Wrong => refused("the credential does not prove a client"),
            Unidentified::Conflict => refused("the credentials are those of different clients"),
            Unidentified::Signature(why) => refused(&format!("the signature is refused: {why}")),
            Unidentified::Incomplete(missing) => {
                refused(&format!("the client must prove itself by {}, too", missing.as_str()))
            }
            Unidentified::CertificateExpired(_)
            | Unidentified::CertificateRevoked
            | Unidentified::CertificateUntrusted => refused(&format!("{fault}: connect again with a valid one")),
            Unidentified::Network => Refusal::new(Code::ClientForbidden, "the client may not call from this network"),
        }
    }
}

impl From<NotFresh> for Refusal {
    fn from(fault: NotFresh) -> Self {
        match fault {
            NotFresh::Used => Refusal::new(Code::ClientUnauthenticated, "the signature is refused: it was used before"),
            NotFresh::Full => {
                let detail = "more requests are signed than can be told from those sent again";
                Refusal::new(Code::RateLimited, detail).retry_after(Duration::from_secs(1))
            }
        }
    }
}

pub(super) fn limited(kind: Kind) -> Code {
    match kind {
        Kind::Rate => Code::RateLimited,
        Kind::Concurrency => Code::ConcurrencyLimited,
    }
}

impl From<Limited> for Refusal {
    fn from(limited: Limited) -> Self {
        let name = limited.limit.as_str();
        let detail = match limited.kind {
            Kind::Rate => format!("the rate of limit {name:?} is exhausted"),
            Kind::Concurrency => format!("limit {name:?} allows no more deliveries at once"),
        };
        let refusal = Refusal::new(self::limited(limited.kind), detail).retry_after(limited.retry_after);
        let fields = admit::headers(&limited.standings).into_iter().flatten();
        fields.fold(refusal, |refusal, (name, value)| refusal.field(name, value))
    }
}

/// Open tunnels have taken all file descriptors that they may.
pub(super) fn too_many_tunnels() -> Refusal {
    busy("the proxy as a whole is busy: it has as many tunnels open as it may")
}

fn busy(detail: &'static str) -> Refusal {
    Refusal::new(Code::ConcurrencyLimited, detail).retry_after(Duration::from_secs(1)).details("busy")
}

impl From<Busy> for Refusal {
    fn from(Busy: Busy) -> Self {
        busy("the proxy as a whole is busy: it has as many deliveries in flight as it may")
    }
}

impl From<Forbidden> for Refusal {
    fn from(forbidden: Forbidden) -> Self {
        match forbidden {
            Forbidden::Port(port) => Refusal::new(Code::TargetPortForbidden, format!("port {port} is not allowed")),
            Forbidden::Name => Refusal::new(Code::TargetForbidden, "the target's name is reserved and never public")
                .cause("special-use name"),
            // Which rule it was tells a prober what stands inside: the operator's record alone says.
            Forbidden::Address { address, rule } => {
                Refusal::new(Code::TargetForbidden, "the target is not a public address")
                    .cause(format!("{address}: {rule}"))
            }
            Forbidden::LoopsBack => Refusal::new(Code::TargetLoopsBack, "the target is this proxy itself"),
        }
    }
}

impl From<ResolveFault> for Refusal {
    fn from(fault: ResolveFault) -> Self {
        match fault {
            ResolveFault::NotFound => Refusal::new(Code::NameNotFound, "the target's name has no address"),
            ResolveFault::NoFamily => NoHop::Family.into(),
            ResolveFault::Timeout => {
                Refusal::new(Code::NameTimeout, "the target's name did not resolve within the dns timeout")
            }
            ResolveFault::Outage => Refusal::new(Code::NameTimeout, "no name server of this proxy responds")
                .blame(Blame::Outgate)
                .details("no_server_responds"),
            // A failure that may pass: only NXDOMAIN and a name without addresses say that there is nothing to find.
            ResolveFault::Failed(cause) => {
                Refusal::new(Code::NameTimeout, format!("the target's name did not resolve: {cause}"))
                    .proxy_status("dns_error")
                    .cause(fault)
            }
            ResolveFault::Busy => Refusal::new(Code::NameTimeout, "too many names are being resolved")
                .blame(Blame::Outgate)
                .details("busy"),
        }
    }
}

impl From<NoHop> for Refusal {
    fn from(fault: NoHop) -> Self {
        match fault {
            NoHop::Empty => Refusal::new(Code::NoEgress, "no source address of the pool is usable"),
            // The target gets an address of the other family, or the pool a source: no retry helps before.
            NoHop::Family => Refusal::new(
                Code::ConnectUnreachable,
                "the target has no address of an IP version that the route's pool has source addresses of",
            )
            .details("address_family")
            .not_retryable(),
        }
    }
}

impl From<TlsFault> for Refusal {
    fn from(fault: TlsFault) -> Self {
        let failed = |detail: &str| Refusal::new(Code::TlsFailed, detail);
        match fault {
            TlsFault::Certificate { fault, issuer } => {
                let issuer = issuer.map(|issuer| format!(": {issuer}")).unwrap_or_default();
                let detail = format!("the target's certificate is refused: {fault}{issuer}");
                Refusal::new(Code::CertificateUntrusted, detail).details(fault.as_str())
            }
            TlsFault::Alert { id, name } => {
                failed(&format!("the target ended the handshake with the alert {name}")).alert(id, name)
            }
            TlsFault::NoCommon(cause) => failed("the target offers no TLS version or suite that the route accepts")
                .details("no_common")
                .cause(format!("{cause:?}")),
            TlsFault::Plaintext => failed("the target's port does not speak TLS").details("plaintext"),
            TlsFault::Protocol(cause) => {
                failed("the target's handshake breaks the protocol").details("protocol").cause(cause)
            }
            TlsFault::Timeout => {
                Refusal::new(Code::ConnectTimeout, "the TLS handshake did not end within the tls timeout")
                    .details("tls")
            }
            TlsFault::Lost(cause) => Refusal::new(Code::ConnectionLost, "the target hung up during the TLS handshake")
                .details("tls")
                .cause(cause),
        }
    }
}
