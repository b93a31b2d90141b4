//! The circuit of a target: who may knock, and what is learned when they do.
//! Is a target that keeps failing left alone, and does nobody else suffer for it?

use super::refusal::{Code, Refusal};
use crate::live::circuits::{Attempt, Key};
use crate::live::{InForce, Live};
use crate::names::Target;
use crate::policy::circuit::Open;
use crate::policy::route::Route;

/// Leave to go on, to be told what came of it. `None`: this configuration has no circuits.
///
/// Asked before anything is spent on the webhook: no token of a limit, no memory for its body, no wait.
pub(super) fn enter(
    live: &Live,
    in_force: &InForce,
    route: &Route,
    target: &Target,
) -> Result<Option<Attempt>, Refusal> {
    let Some(fuse) = in_force.plan.fuse else { return Ok(None) };
    Ok(Some(live.circuits.enter(Key::of(route, target), fuse)?))
}

/// What this says of the target; what failed for other reasons says nothing.
pub(super) fn learn<T>(live: &Live, attempt: Option<Attempt>, reached: &Result<T, Refusal>) {
    let Some(attempt) = attempt else { return };
    match reached {
        Ok(_) => attempt.succeeded(),
        Err(refusal) if is_of_the_target(refusal) => {
            if attempt.failed(refusal.code.name()) {
                live.meters.circuits_opened.inc();
            }
        }
        Err(_) => {}
    }
}

/// That it cannot be reached, or does not answer. A certificate that proves nothing is not among them: who waits for it
/// to be mended wants to hear of it at each try.
fn is_of_the_target(refusal: &Refusal) -> bool {
    let told = matches!(
        refusal.code,
        Code::NameTimeout
            | Code::ConnectRefused
            | Code::ConnectTimeout
            | Code::ConnectUnreachable
            | Code::TlsFailed
            | Code::ResponseTimeout
            | Code::ResponseMalformed
            | Code::ConnectionLost
    );
    told && !refusal.is_unheard()
}

impl From<Open> for Refusal {
    fn from(Open { again_in }: Open) -> Self {
        Refusal::new(Code::TargetCircuitOpen, "the target has failed too often lately and is left alone for a while")
            .retry_after(again_in)
    }
}
