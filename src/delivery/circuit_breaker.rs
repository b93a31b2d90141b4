//! The circuit of a target: whether a delivery may contact the target, and what its outcome says.
//! Is a target that keeps failing left alone, and does nobody else suffer for it?

use super::connector::LARGE_HEAD;
use super::refusal::{Blame, Code, Refusal};
use crate::policy::breaker::BreakerOpen;
use crate::state::Runtime;
use crate::state::config::ActiveConfig;
use crate::state::upstreams::breaker::{BreakerKey, UpstreamAttempt, UpstreamFailure, UpstreamSuccess};

/// Refuses a delivery to a target whose circuit is open, before anything is spent on it: no token of a limit, no memory
/// for its body, no wait.
pub(super) fn check(runtime: &Runtime, active: &ActiveConfig, key: &BreakerKey) -> Result<(), Refusal> {
    if active.plan.fuse.is_none() {
        return Ok(());
    }
    Ok(runtime.circuit_breakers.check(key)?)
}

/// Begins the attempt, just before it contacts the target: a delivery that waits for its limits or for its client's body
/// keeps no other from probing. `None`: this configuration has no circuits.
pub(super) fn begin(
    runtime: &Runtime,
    active: &ActiveConfig,
    key: BreakerKey,
) -> Result<Option<UpstreamAttempt>, Refusal> {
    let Some(fuse) = active.plan.fuse else { return Ok(None) };
    Ok(Some(runtime.circuit_breakers.begin(key, fuse)?))
}

/// Counts what this says of the target; what failed for other reasons says nothing. `success`: what `Ok` shows.
pub(super) fn observe<T>(
    runtime: &Runtime,
    attempt: Option<UpstreamAttempt>,
    success: UpstreamSuccess,
    reached: &Result<T, Refusal>,
) {
    let Some(attempt) = attempt else { return };
    match reached.as_ref().map_err(outcome) {
        Ok(_) => attempt.succeeded(success),
        Err(BreakerOutcome::Responded) => attempt.succeeded(UpstreamSuccess::Response),
        Err(BreakerOutcome::Failure(failure, code)) => {
            if attempt.failed(failure, code) {
                runtime.metrics.circuits_opened.inc();
            }
        }
        Err(BreakerOutcome::Unknown) => {}
    }
}

enum BreakerOutcome {
    /// The target has responded; outgate refuses the response.
    Responded,
    Failure(UpstreamFailure, &'static str),
    Unknown,
}

/// A certificate that proves nothing says nothing here: who waits for it to be mended wants to hear of it at each try.
fn outcome(refusal: &Refusal) -> BreakerOutcome {
    let failure = match refusal.code {
        _ if refusal.is_unheard() => return BreakerOutcome::Unknown,
        _ if refusal.effective_blame() != Blame::Target => return BreakerOutcome::Unknown,
        // A resolver that lost its upstream fails for every name alike.
        Code::NameTimeout => return BreakerOutcome::Unknown,
        // The pool lacks the target's address family.
        Code::ConnectUnreachable if !refusal.is_retryable() => return BreakerOutcome::Unknown,
        Code::ResponseTooLarge => return BreakerOutcome::Responded,
        Code::ConnectRefused | Code::ConnectTimeout | Code::ConnectUnreachable | Code::TlsFailed => {
            UpstreamFailure::Unreachable
        }
        // One client's request head is reason enough.
        Code::ConnectionLost if refusal.details() == Some(LARGE_HEAD) => return BreakerOutcome::Unknown,
        // The handshake was cut off.
        Code::ConnectionLost if refusal.details() == Some("tls") => UpstreamFailure::Unreachable,
        Code::ResponseTimeout | Code::ResponseMalformed | Code::ConnectionLost => UpstreamFailure::NoResponse,
        _ => return BreakerOutcome::Unknown,
    };
    BreakerOutcome::Failure(failure, refusal.code.name())
}

impl From<BreakerOpen> for Refusal {
    fn from(BreakerOpen { again_in }: BreakerOpen) -> Self {
        Refusal::new(
            Code::TargetCircuitOpen,
            "the target failed too often, and its circuit is open: retry after the time in Retry-After",
        )
        .retry_after(again_in)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_lost_counts_for_the_circuit_unless_one_clients_large_head_explains_it() {
        let lost = || Refusal::new(Code::ConnectionLost, "");
        assert!(matches!(outcome(&lost()), BreakerOutcome::Failure(UpstreamFailure::NoResponse, _)));
        assert!(matches!(outcome(&lost().with_details(LARGE_HEAD)), BreakerOutcome::Unknown));
    }
}
