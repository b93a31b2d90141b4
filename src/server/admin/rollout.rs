//! The rollout of the fleet: what this instance knows of it, and the statements of operators.
//! How far is the rollout, and may this operator start, approve or abort one?

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::problem::AdminProblem;
use crate::audit::{Actor, Event, ROLLOUT_ABORTED, ROLLOUT_APPROVED, ROLLOUT_STARTED};
use crate::policy::rollout::bundle::{Bundle, SignedBundle, Statement};
use crate::state::Runtime;
use crate::state::config::reload_queue::{BundleCheck, BundleRequest};
use crate::state::fleet::{Fleet, RolloutView};

/// How often, and for how long, a command looks whether this instance follows its statement.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(50);
const FOLLOW_MAX: Duration = Duration::from_secs(5);

/// A signed statement of an operator.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StatementBody {
    statement: Statement,
    /// The digest of the bundle that is approved or aborted.
    #[serde(default)]
    digest: String,
    signature: String,
    /// The bundle that is started.
    #[serde(default)]
    document: String,
}

/// A bundle that is compared with the configuration of this host, and not started.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CheckBody {
    document: String,
}

fn fleet(runtime: &Runtime) -> Result<&Arc<Fleet>, AdminProblem> {
    let has_operators = !runtime.active_config().plan.operators.is_empty();
    let detail = "this instance follows no rollouts: [fleet.operators] has no operator";
    runtime.fleet.get().filter(|_| has_operators).ok_or_else(|| AdminProblem::conflict(detail))
}

/// Describes the last rollout, and what an operator needs to sign the next one.
pub(super) async fn report(runtime: &Runtime) -> Result<Value, AdminProblem> {
    let (fleet, active) = (fleet(runtime)?, runtime.active_config());
    let live = fleet.live_instances().await?;
    let view = fleet.rollout();
    Ok(json!({
        "fleet": fleet.prefix,
        "instance": fleet.instance,
        "live_instances": live,
        "operators": active.plan.operators.public_keys(),
        "next_number": view.state.seen + 1,
        "digest": view.digest,
        "refusal": view.problem.as_ref().filter(|_| view.bundle.is_none()),
        "bundle_error": view.fetch_error,
        "rollout": view.bundle.as_ref().map(|bundle| rollout(&view, bundle, &live)),
    }))
}

fn rollout(view: &RolloutView, bundle: &SignedBundle, live: &BTreeSet<String>) -> Value {
    let outcome = match () {
        () if view.is_kept => "kept",
        () if view.ended.is_some() => "failed",
        () if view.needs_approval() => "waiting_for_approval",
        () => "in_progress",
    };
    json!({
        "number": bundle.number,
        "digest": bundle.digest(),
        "author": bundle.author,
        "approver": view.approver,
        "created_at": bundle.created_at,
        "pause_seconds": bundle.pause_seconds,
        "waves": bundle.waves,
        "outcome": outcome,
        "wave": view.wave.map(|wave| wave + 1),
        "waits_for": view.waits_for,
        "failure": view.ended,
        "instances": view.reports,
        "returning": view.returning(live),
        "changes": view.difference.changes,
        "more": view.difference.more,
        "problem": view.problem,
    })
}

/// Verifies a statement of an operator, and states it to the fleet.
pub(super) async fn state(runtime: &Runtime, body: StatementBody, actor: Actor) -> Result<Value, AdminProblem> {
    let (fleet, active) = (fleet(runtime)?, runtime.active_config());
    let (view, operators) = (fleet.rollout(), &active.plan.operators);
    if body.statement == Statement::Start {
        let bundle = SignedBundle::verify(&body.document, &body.signature, &fleet.prefix, operators);
        let bundle = bundle.map_err(|error| AdminProblem::field("document", error.to_string()))?;
        let bundle = Arc::new(bundle);
        start(runtime, fleet, &view, &bundle, &body.signature).await?;
        return Ok(stated(runtime, body.statement, &bundle, &bundle.author, actor));
    }
    let bundle = view.bundle.as_ref().filter(|bundle| bundle.digest() == body.digest);
    let bundle = bundle.ok_or_else(|| AdminProblem::conflict("the fleet has no rollout with this digest"))?;
    // A host that joins later may need the approval of what the others have kept without one.
    let is_late_approval = body.statement == Statement::Approve && view.ended.is_none() && view.needs_approval();
    if !view.is_in_progress() && !is_late_approval {
        let how = match &view.ended {
            Some(reason) if !view.is_kept => format!("it has failed: {reason}"),
            _ => "all instances keep it. To undo it, roll the former files out".to_owned(),
        };
        return Err(AdminProblem::conflict(format!("rollout {} is over: {how}", bundle.number)));
    }
    let signer = bundle.signer(body.statement, &body.signature, operators);
    let detail = "the signature is of no operator, or of the author, who cannot approve the own bundle";
    let signer = signer.ok_or_else(|| AdminProblem::field("signature", detail))?;
    let field = match body.statement {
        Statement::Abort => "abort".to_owned(),
        Statement::Approve | Statement::Start => format!("approval:{signer}"),
    };
    fleet.state_rollout(bundle.digest(), field, body.signature).await?;
    follows(fleet, |view| match body.statement {
        Statement::Abort => view.ended.is_some(),
        Statement::Approve | Statement::Start => view.approver.is_some(),
    })
    .await;
    Ok(stated(runtime, body.statement, bundle, signer, actor))
}

/// Returns what a bundle would change on this host, or its problems. It needs no signature, because it states nothing.
pub(super) async fn check(runtime: &Runtime, body: CheckBody) -> Result<BundleCheck, AdminProblem> {
    let fleet = fleet(runtime)?;
    let bundle = Bundle::parse(&body.document, &fleet.prefix);
    let bundle = bundle.map_err(|error| AdminProblem::field("document", error.to_string()))?;
    check_bundle(runtime, &fleet.rollout(), Arc::new(bundle)).await
}

async fn check_bundle(runtime: &Runtime, view: &RolloutView, bundle: Arc<Bundle>) -> Result<BundleCheck, AdminProblem> {
    let unreadable = || {
        let reason = view.state_error.clone().unwrap_or_else(|| "this instance has just started".to_owned());
        AdminProblem::conflict(format!("this instance follows no rollout: {reason}"))
    };
    let folder = view.folder.clone().ok_or_else(unreadable)?;
    let queue = &runtime.reload_queue;
    let check = queue.ask_about_bundle(|reply| BundleRequest::Check { folder, bundle, reply }).await;
    check.ok_or_else(AdminProblem::stopping)
}

/// Records the statement of an operator, and who has brought it.
fn stated(runtime: &Runtime, statement: Statement, bundle: &SignedBundle, operator: &str, actor: Actor) -> Value {
    let (event_type, what) = match statement {
        Statement::Start => (ROLLOUT_STARTED, "started"),
        Statement::Approve => (ROLLOUT_APPROVED, "approved"),
        Statement::Abort => (ROLLOUT_ABORTED, "aborted"),
    };
    let (number, digest, what) = (bundle.number, bundle.digest(), format!("the operator {operator} has {what} it"));
    let event = Event::new(event_type, number.to_string(), Timestamp::now(), what).by(actor);
    runtime.audit.record(event.with("operator", operator).with("digest", digest));
    json!({ "number": number, "digest": digest })
}

/// Starts a rollout, if this host would adopt the bundle.
async fn start(
    runtime: &Runtime,
    fleet: &Fleet,
    view: &RolloutView,
    bundle: &Arc<SignedBundle>,
    signature: &str,
) -> Result<(), AdminProblem> {
    if let Some(former) = view.bundle.as_ref().filter(|_| view.is_in_progress()) {
        let (number, author, since) = (former.number, &former.author, former.created_at);
        let detail = format!(
            "rollout {number} is not over: {author} signed it at {since:.0}, and `outgate fleet rollout --status` shows its \
             progress. Wait for its end, or agree with {author} to abort it"
        );
        return Err(AdminProblem::conflict(detail));
    }
    // An instance that adopts the new bundle first would return to that of the failed rollout.
    let live = fleet.live_instances().await?;
    let (returning, failed) = (view.returning(&live), view.bundle.as_ref().map_or(0, |failed| failed.number));
    if !returning.is_empty() {
        let names = returning.join(", ");
        let detail = format!(
            "these instances still have the bundle of rollout {failed}, which has failed: {names}. Try again when they have \
             returned to their former bundle"
        );
        return Err(AdminProblem::conflict(detail));
    }
    if bundle.number <= view.state.seen {
        return Err(AdminProblem::conflict(format!("the number is not above {}, the last one", view.state.seen)));
    }
    bundle.may_start(Timestamp::now()).map_err(|error| AdminProblem::field("document", error.to_string()))?;
    let check = check_bundle(runtime, view, bundle.bundle()).await?;
    if check.problem.is_some() {
        return Err(AdminProblem::conflict(check.outcome.report));
    }
    // An operator cannot abort a rollout whose bundle this instance does not accept or cannot read. The new one replaces it.
    let is_unverified = view.bundle.is_none() && view.digest.as_ref().is_some_and(|digest| !digest.is_empty());
    let former = if is_unverified { fleet.rollout_digest().await? } else { view.digest.clone().unwrap_or_default() };
    fleet.start_rollout(bundle, signature, &former).await?;
    follows(fleet, |view| view.digest.as_deref() == Some(bundle.digest())).await;
    Ok(())
}

/// Waits until this instance follows a statement that is in the store, so that the next command finds it. It takes a second, and
/// longer while the store is away: then the command does not wait.
async fn follows(fleet: &Fleet, is_followed: impl Fn(&RolloutView) -> bool) {
    let followed = async {
        while !is_followed(&fleet.rollout()) {
            sleep(FOLLOW_INTERVAL).await;
        }
    };
    let _ = timeout(FOLLOW_MAX, followed).await;
}
