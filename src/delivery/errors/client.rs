//! Refusals of the request itself: errors of authentication, routing, limits, the body and the signing keys.
//! Which refusal does a client get whose request contacts no target?

use std::borrow::Cow;
use std::time::Duration;

use crate::delivery::refusal::{Code, Refusal};
use crate::delivery::request::RequestBodyError;
use crate::names::Host;
use crate::panics::Panicked;
use crate::policy::authn::AuthnError;
use crate::policy::limits;
use crate::policy::redact::{Redactor, RoutePaths};
use crate::policy::route::AmbiguousPath;
use crate::policy::sign::{SignError, Signer};
use crate::state::drain::Draining;
use crate::state::limits::admission::Overloaded;
use crate::state::limits::{LimitExceeded, LimitKind};
use crate::state::replay::ReplayError;

/// Characters of an ambiguous path's reading that the detail has.
const READING_CHARS_MAX: usize = 200;
/// Time after which a client may retry if the whole proxy is busy.
const BUSY_RETRY_AFTER: Duration = Duration::from_secs(1);

impl From<Draining> for Refusal {
    fn from(Draining: Draining) -> Self {
        Refusal::new(
            Code::Draining,
            "this proxy is shutting down: send the webhook again, to another proxy or after the restart",
        )
    }
}

/// A mistake in outgate itself.
impl From<Panicked> for Refusal {
    fn from(panicked: Panicked) -> Self {
        Refusal::new(Code::Internal, "outgate made an error while it handled this request")
            .with_details("panic")
            .with_cause(panicked)
    }
}

impl From<AuthnError> for Refusal {
    fn from(error: AuthnError) -> Self {
        let refused = |detail: Cow<'static, str>| Refusal::new(Code::ClientUnauthenticated, detail).with_cause(error);
        let unauthenticated = |detail: &'static str| refused(detail.into());
        match error {
            AuthnError::NoCredential => unauthenticated("Proxy-Authorization is missing"),
            AuthnError::Invalid => unauthenticated("the credential does not identify a client"),
            AuthnError::Conflicting => unauthenticated("the credentials identify different clients"),
            AuthnError::Signature(reason) => refused(format!("the signature is refused: {reason}").into()),
            AuthnError::MissingProof(missing) => {
                refused(format!("the client must also authenticate by {}", missing.as_str()).into())
            }
            AuthnError::CertificateExpired(_) | AuthnError::CertificateRevoked | AuthnError::CertificateUntrusted => {
                refused(format!("{error}: connect again with a valid certificate").into())
            }
            AuthnError::ForbiddenNetwork => {
                Refusal::new(Code::ClientForbidden, "the client may not connect from this network")
            }
        }
    }
}

impl From<ReplayError> for Refusal {
    fn from(error: ReplayError) -> Self {
        match error {
            ReplayError::Replayed => Refusal::new(
                Code::ClientUnauthenticated,
                "the signature is refused: it was used before; sign each attempt anew",
            ),
            ReplayError::CacheFull => {
                let detail = "the cache of used signatures is full: outgate cannot distinguish a new signature from a \
                              replayed one";
                Refusal::new(Code::RateLimited, detail).retry_after(BUSY_RETRY_AFTER)
            }
            ReplayError::StoreAway => {
                let detail = "outgate cannot tell whether another instance has accepted this signature: sign the request \
                              anew, and send it again";
                let refusal = Refusal::new(Code::Internal, detail).retry_after(BUSY_RETRY_AFTER);
                refusal.with_details("fleet_store_away").with_cause(error)
            }
        }
    }
}

/// Returns the refusal of a path that servers read in different ways. It shows the reading as records show paths.
pub(in crate::delivery) fn ambiguous_path(error: AmbiguousPath, host: &Host, redactor: &Redactor) -> Refusal {
    let refusal = match error {
        AmbiguousPath::DifferentRoute { reading, steps, is_routed } => {
            let before = format!("the path is ambiguous: with {steps} it is ");
            let after = if is_routed { ", which another route matches" } else { ", which no route matches" };
            let shown = redactor.path(&RoutePaths::default(), host, &reading).filter(|_| redactor.shows_paths());
            match shown {
                Some(shown) => Refusal::quoting(shown.quoted(READING_CHARS_MAX, &before, after)),
                None => Refusal::malformed(format!("{before}another path{after}")),
            }
        }
        AmbiguousPath::TooManyReadings => {
            Refusal::malformed("the path is ambiguous: its escapes and dot segments can be read in too many ways")
        }
    };
    refusal.with_details("ambiguous_path")
}

impl From<LimitKind> for Code {
    fn from(kind: LimitKind) -> Self {
        match kind {
            LimitKind::Rate => Code::RateLimited,
            LimitKind::Concurrency => Code::ConcurrencyLimited,
        }
    }
}

impl From<LimitExceeded> for Refusal {
    fn from(exceeded: LimitExceeded) -> Self {
        let name = exceeded.limit.as_str();
        let detail = match exceeded.kind {
            LimitKind::Rate => format!("the rate of limit {name:?} is exceeded"),
            LimitKind::Concurrency => format!("the concurrency of limit {name:?} is exceeded"),
        };
        let refusal = Refusal::new(exceeded.kind.into(), detail).retry_after(exceeded.retry_after);
        let fields = limits::rate_limit_headers(&exceeded.statuses).into_iter().flatten();
        fields.fold(refusal, |refusal, (name, value)| refusal.field(name, value))
    }
}

impl From<Overloaded> for Refusal {
    fn from(Overloaded: Overloaded) -> Self {
        busy("the proxy as a whole is busy: the deliveries in flight have reached server.max_deliveries")
    }
}

/// The refusal of a tunnel if the open tunnels use all file descriptors that they may.
pub(in crate::delivery) fn too_many_tunnels() -> Refusal {
    busy("the proxy as a whole is busy: it cannot open more tunnels at once")
}

fn busy(detail: &'static str) -> Refusal {
    Refusal::new(Code::ConcurrencyLimited, detail).retry_after(BUSY_RETRY_AFTER).with_details("busy")
}

impl From<RequestBodyError> for Refusal {
    fn from(error: RequestBodyError) -> Self {
        let detail = error.to_string();
        match error {
            RequestBodyError::Malformed => Refusal::malformed(detail),
            RequestBodyError::ClientGone => Refusal::malformed(detail).client_gone(),
            RequestBodyError::TooLarge => Refusal::new(Code::BodyTooLarge, detail),
            RequestBodyError::NoMemory => {
                busy("the proxy as a whole is busy: the bodies that it holds have reached a quarter of its memory")
            }
            RequestBodyError::Timeout => Refusal::new(Code::BodyTimeout, detail),
        }
    }
}

/// The refusal of a webhook that `signer` cannot sign.
pub(in crate::delivery) fn unsigned(signer: &Signer, error: SignError) -> Refusal {
    let refusal = match error {
        SignError::Unsignable(reason) => return Refusal::malformed(reason),
        SignError::NoTenant => Refusal::new(
            Code::ClientForbidden,
            "the route signs webhooks with the key of their tenant: name the tenant in Outgate-Tenant",
        )
        .with_details("no_tenant"),
        SignError::NoTenantKeys => {
            Refusal::new(Code::ClientForbidden, "the tenant in Outgate-Tenant has no signing key")
                .with_details("no_tenant_key")
        }
        SignError::NoActiveKey => Refusal::new(Code::Internal, "no signing key is in force"),
        SignError::BackendFailed => Refusal::new(Code::Internal, "outgate could not sign the webhook"),
    };
    refusal.with_cause(format!("signer {}: {error}", signer.name()))
}
