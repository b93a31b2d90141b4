//! The report of an attempt's outcome to the circuit breaker of its target.
//! Does this outcome show that the target fails, that it works, or neither?

use super::connector::LARGE_REQUEST_HEAD;
use super::context::Delivery;
use super::refusal::{Blame, Code, Refusal};
use crate::state::upstreams::breaker::{UpstreamAttempt, UpstreamFailure, UpstreamSuccess};

/// Reports the outcome of an attempt. `success`: the evidence that `Ok` is.
pub(super) fn observe<T>(
    delivery: &Delivery<'_>,
    attempt: Option<UpstreamAttempt>,
    success: UpstreamSuccess,
    result: &Result<T, Refusal>,
) {
    let Some(mut attempt) = attempt else { return };
    let now = std::time::Instant::now();
    match result.as_ref().map_err(classify) {
        Ok(_) => attempt.succeeded(success, now),
        Err(BreakerOutcome::Responded) => attempt.succeeded(UpstreamSuccess::Response, now),
        Err(BreakerOutcome::Failure(failure, code)) => {
            let fleet = delivery.runtime.fleet.get().filter(|_| failure == UpstreamFailure::Unreachable);
            let hints = fleet.map(|fleet| fleet.circuit_hints(delivery.target, delivery.route.pool.name()));
            if hints.is_some_and(|hints| !hints.is_empty()) {
                attempt.heed_hint();
            }
            if result.as_ref().is_err_and(Refusal::is_separate_event) {
                attempt.count_at_once();
            }
            if attempt.failed(failure, code, now) {
                delivery.runtime.metrics.circuits_opened.inc();
            }
        }
        Err(BreakerOutcome::Unknown) => {}
    }
}

enum BreakerOutcome {
    /// The target has responded; outgate refuses the response.
    Responded,
    Failure(UpstreamFailure, &'static str),
    /// The refusal is no evidence of the target's health.
    Unknown,
}

/// Classifies a refusal. An untrusted certificate opens no circuit: its owner must see at each retry whether the new
/// certificate works.
fn classify(refusal: &Refusal) -> BreakerOutcome {
    let failure = match refusal.code {
        _ if refusal.is_client_gone() => return BreakerOutcome::Unknown,
        _ if refusal.effective_blame() != Blame::Target => return BreakerOutcome::Unknown,
        // A resolver without its upstream fails for every name.
        Code::NameTimeout => return BreakerOutcome::Unknown,
        // The pool lacks the target's address family.
        Code::ConnectUnreachable if !refusal.is_retryable() => return BreakerOutcome::Unknown,
        Code::ResponseTooLarge => return BreakerOutcome::Responded,
        Code::ConnectRefused | Code::ConnectTimeout | Code::ConnectUnreachable | Code::TlsFailed => {
            UpstreamFailure::Unreachable
        }
        // The size of one client's request head can explain this failure.
        Code::ConnectionLost if refusal.details() == Some(LARGE_REQUEST_HEAD) => return BreakerOutcome::Unknown,
        // The target closed the connection during the handshake.
        Code::ConnectionLost if refusal.details() == Some("tls") => UpstreamFailure::Unreachable,
        Code::ResponseTimeout | Code::ResponseMalformed | Code::ConnectionLost => UpstreamFailure::NoResponse,
        _ => return BreakerOutcome::Unknown,
    };
    BreakerOutcome::Failure(failure, refusal.code.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breaker_counts_a_lost_connection_unless_a_large_request_head_explains_it() {
        let lost = || Refusal::new(Code::ConnectionLost, "");
        assert!(matches!(classify(&lost()), BreakerOutcome::Failure(UpstreamFailure::NoResponse, _)));
        assert!(matches!(classify(&lost().with_details(LARGE_REQUEST_HEAD)), BreakerOutcome::Unknown));
    }
}
