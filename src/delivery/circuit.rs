//! The circuit of a target: whether a delivery may contact the target, and what its outcome says.
//! Is a target that keeps failing left alone, and does nobody else suffer for it?

use super::passage::LARGE_HEAD;
use super::refusal::{Blame, Code, Refusal};
use crate::live::circuits::{Attempt, Failure, Key, Success};
use crate::live::{InForce, Live};
use crate::policy::circuit::Open;

/// Refuses a delivery to a target whose circuit is open, before anything is spent on it: no token of a limit, no memory
/// for its body, no wait.
pub(super) fn check(live: &Live, in_force: &InForce, key: &Key) -> Result<(), Refusal> {
    if in_force.plan.fuse.is_none() {
        return Ok(());
    }
    Ok(live.circuits.check(key)?)
}

/// Begins the attempt, just before it contacts the target: a delivery that waits for its limits or for its client's body
/// keeps no other from probing. `None`: this configuration has no circuits.
pub(super) fn begin(live: &Live, in_force: &InForce, key: Key) -> Result<Option<Attempt>, Refusal> {
    let Some(fuse) = in_force.plan.fuse else { return Ok(None) };
    Ok(Some(live.circuits.begin(key, fuse)?))
}

/// Counts what this says of the target; what failed for other reasons says nothing. `success`: what `Ok` shows.
pub(super) fn learn<T>(live: &Live, attempt: Option<Attempt>, success: Success, reached: &Result<T, Refusal>) {
    let Some(attempt) = attempt else { return };
    match reached.as_ref().map_err(outcome) {
        Ok(_) => attempt.succeeded(success),
        Err(Outcome::Response) => attempt.succeeded(Success::Response),
        Err(Outcome::Failure(failure, code)) => {
            if attempt.failed(failure, code) {
                live.meters.circuits_opened.inc();
            }
        }
        Err(Outcome::Unknown) => {}
    }
}

enum Outcome {
    /// The target has responded; outgate refuses the response.
    Response,
    Failure(Failure, &'static str),
    Unknown,
}

/// A certificate that proves nothing says nothing here: who waits for it to be mended wants to hear of it at each try.
fn outcome(refusal: &Refusal) -> Outcome {
    let failure = match refusal.code {
        _ if refusal.is_unheard() => return Outcome::Unknown,
        _ if refusal.effective_blame() != Blame::Target => return Outcome::Unknown,
        // A resolver that lost its upstream fails for every name alike.
        Code::NameTimeout => return Outcome::Unknown,
        // The pool lacks the target's address family.
        Code::ConnectUnreachable if !refusal.is_retryable() => return Outcome::Unknown,
        Code::ResponseTooLarge => return Outcome::Response,
        Code::ConnectRefused | Code::ConnectTimeout | Code::ConnectUnreachable | Code::TlsFailed => {
            Failure::Unreachable
        }
        // One client's request head is reason enough.
        Code::ConnectionLost if refusal.word() == Some(LARGE_HEAD) => return Outcome::Unknown,
        // The handshake was cut off.
        Code::ConnectionLost if refusal.word() == Some("tls") => Failure::Unreachable,
        Code::ResponseTimeout | Code::ResponseMalformed | Code::ConnectionLost => Failure::NoResponse,
        _ => return Outcome::Unknown,
    };
    Outcome::Failure(failure, refusal.code.name())
}

impl From<Open> for Refusal {
    fn from(Open { again_in }: Open) -> Self {
        Refusal::new(Code::TargetCircuitOpen, "the target has failed too often lately and is left alone for a while")
            .retry_after(again_in)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_lost_counts_for_the_circuit_unless_one_clients_large_head_explains_it() {
        let lost = || Refusal::new(Code::ConnectionLost, "");
        assert!(matches!(outcome(&lost()), Outcome::Failure(Failure::NoResponse, _)));
        assert!(matches!(outcome(&lost().details(LARGE_HEAD)), Outcome::Unknown));
    }
}
