//! The commands to a running proxy: reload, diff, rollback, explain, drain and undrain.
//! What does a command do, and what is its outcome?

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use ipnet::IpNet;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::oneshot;

use super::problem::AdminProblem;
use super::{AdminResponse, Call, Effect, JSON, build_response, captures, fleet, json_response, rollout, status};
use crate::audit::{Event, PROCESS_DRAINING, PROCESS_UNDRAINED};
use crate::config::duration_parameter;
use crate::delivery::{self, ExplainRequest};
use crate::names::{ClientName, TenantName};
use crate::policy::redact::Redactor;
use crate::state::Runtime;
use crate::state::config::reload_queue::ComparisonTarget;
use crate::state::config::status::{ReloadOutcome, ReloadVerdict};
use crate::state::drain::Stopping;

/// Limits the body of a comparison, in bytes. A configuration with a hundred thousand routes has some ten megabytes.
const SNAPSHOT_MAX: usize = 64 << 20;
/// Limits the bodies of other commands, in bytes.
const BODY_MAX: usize = 64 << 10;
/// Limits the grace time of a drain.
const GRACE_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

const RANGE: &str = "write a published range, such as 198.51.100.16/28";
const NUMBER: &str = "a number of a configuration in the history is required";

/// The webhook that `outgate explain` describes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExplainBody {
    method: String,
    url: String,
    client: String,
    tenant: Option<String>,
}

/// The body of a command whose parameters are in the query.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EmptyBody {}

impl Call<'_> {
    pub(super) async fn command(
        &self,
        runtime: &Arc<Runtime>,
        request: Request<Incoming>,
    ) -> Result<(AdminResponse, Effect), AdminProblem> {
        let queue = &runtime.reload_queue;
        if matches!(self.id, "reload" | "rollback" | "compare" | "compareWith") && !queue.is_ready() {
            let detail =
                "outgate runs without a configuration file: the built-in configuration cannot be changed or compared";
            return Err(AdminProblem::conflict(detail));
        }
        match self.id {
            "compare" => {
                let number = self.entry(runtime).await?;
                reloaded(queue.compare(number.map_or(ComparisonTarget::Disk, ComparisonTarget::History))).await
            }
            "compareWith" => {
                let snapshot = parse_json(&read_json(request, SNAPSHOT_MAX).await?)?;
                reloaded(queue.compare(ComparisonTarget::Snapshot(snapshot))).await
            }
            "exportCaptures" => {
                read_no_parameters(request).await?;
                let exported = captures::export(runtime, &self.query, self.caller.actor()).await?;
                Ok((json_response(exported), Effect::Recorded))
            }
            "eraseCaptures" => {
                read_no_parameters(request).await?;
                let proof = captures::erase(runtime, &self.query, self.caller.actor()).await?;
                Ok((json_response(proof), Effect::Recorded))
            }
            "moveRange" | "releaseRange" => {
                fleet::of(runtime)?;
                let range = self.query.parse("range", RANGE, str::parse::<IpNet>)?;
                let range = range.filter(|range| range.trunc() == *range);
                let range = range.ok_or_else(|| AdminProblem::field("range", RANGE))?;
                let to = (self.id == "moveRange").then(|| self.query.text("to").unwrap_or_default());
                read_no_parameters(request).await?;
                let assigned = fleet::assign(runtime, range, to.as_deref(), self.caller.actor()).await?;
                Ok((json_response(assigned), Effect::Recorded))
            }
            "forgetInstance" => {
                let instance = self.query.text("instance").unwrap_or_default();
                read_no_parameters(request).await?;
                let forgotten = fleet::forget(runtime, &instance, self.caller.actor()).await?;
                Ok((json_response(forgotten), Effect::Recorded))
            }
            "explain" => {
                let webhook: ExplainBody = parse_json(&read_json(request, BODY_MAX).await?)?;
                Ok((explain(runtime, webhook)?, Effect::None))
            }
            "reload" => {
                read_no_parameters(request).await?;
                reloaded(queue.request_and_wait(self.caller.reload_source())).await
            }
            "rollback" => {
                let number = self.entry(runtime).await?.ok_or_else(|| AdminProblem::field("number", NUMBER))?;
                read_no_parameters(request).await?;
                reloaded(queue.roll_back(number, self.caller.reload_source())).await
            }
            "stateRollout" => {
                let body = parse_json(&read_json(request, SNAPSHOT_MAX).await?)?;
                let stated = rollout::state(runtime, body, self.caller.actor()).await?;
                Ok((json_response(stated), Effect::Recorded))
            }
            "checkRollout" => {
                let body = parse_json(&read_json(request, SNAPSHOT_MAX).await?)?;
                let check = rollout::check(runtime, body).await?;
                Ok((outcome_response(check.outcome.outcome, &check), Effect::None))
            }
            "undrain" => {
                read_no_parameters(request).await?;
                self.undrain(runtime)
            }
            _ => {
                let grace =
                    self.query.parse("grace", "write a duration of at most seven days: 0s, 30s, 5m", parse_grace)?;
                read_no_parameters(request).await?;
                self.drain(runtime, grace.unwrap_or(runtime.active_config().plan.drain_grace))
            }
        }
    }

    /// Returns the number of a configuration that the history has, if the call names one.
    async fn entry(&self, runtime: &Runtime) -> Result<Option<u64>, AdminProblem> {
        let number = self.query.parse("number", NUMBER, str::parse)?;
        if let Some(number) = number
            && !status::entries(runtime).await?.iter().any(|entry| entry.number == number)
        {
            let detail = format!("the history has no configuration {number}: /v1/history lists them");
            return Err(AdminProblem::new(StatusCode::NOT_FOUND, detail));
        }
        Ok(number)
    }

    fn drain(&self, runtime: &Arc<Runtime>, grace: Duration) -> Result<(AdminResponse, Effect), AdminProblem> {
        let (now, by) = (Timestamp::now(), self.caller.reload_source().to_string());
        runtime.request_drain(by, grace, now).map_err(|Stopping| AdminProblem::stopping())?;
        let what = format!("a drain was requested; new deliveries are refused in {grace:?}");
        let event = Event::new(PROCESS_DRAINING, "outgate", now, what).with("grace_seconds", grace.as_secs_f64());
        runtime.audit.record(event.by(self.caller.actor()));
        Ok((json_response(status::drain(runtime)), Effect::Recorded))
    }

    fn undrain(&self, runtime: &Runtime) -> Result<(AdminResponse, Effect), AdminProblem> {
        let by = self.caller.reload_source().to_string();
        let had_drain = runtime.undrain(&by).map_err(|Stopping| AdminProblem::stopping())?;
        let effect = if had_drain { Effect::Recorded } else { Effect::None };
        if had_drain {
            let event = Event::new(PROCESS_UNDRAINED, "outgate", Timestamp::now(), "the drain was ended");
            runtime.audit.record(event.by(self.caller.actor()));
        }
        Ok((json_response(status::drain(runtime)), effect))
    }
}

fn parse_grace(text: &str) -> Result<Duration, ()> {
    duration_parameter(text).filter(|grace| *grace <= GRACE_MAX).ok_or(())
}

/// Waits for the outcome of a reload, a rollback or a comparison.
async fn reloaded(outcome: oneshot::Receiver<ReloadOutcome>) -> Result<(AdminResponse, Effect), AdminProblem> {
    // The reload task, which sends the outcome, ends with the process.
    let outcome = outcome.await.map_err(|_| AdminProblem::stopping())?;
    let effect = if outcome.outcome == ReloadVerdict::Adopted { Effect::Recorded } else { Effect::None };
    Ok((outcome_response(outcome.outcome, &outcome), effect))
}

fn outcome_response(verdict: ReloadVerdict, body: &impl Serialize) -> AdminResponse {
    let is_rejected = verdict == ReloadVerdict::Rejected;
    let status = if is_rejected { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::OK };
    build_response(status, JSON, json!(body).to_string())
}

fn explain(runtime: &Runtime, webhook: ExplainBody) -> Result<AdminResponse, AdminProblem> {
    let method =
        Method::from_bytes(webhook.method.as_bytes()).map_err(|_| AdminProblem::field("method", "not a method"))?;
    let (client, tenant) = (ClientName::new(webhook.client), webhook.tenant.map(TenantName::new));
    let now = Timestamp::now();
    let request = ExplainRequest { method: &method, url: &webhook.url, client: &client, tenant: tenant.as_ref(), now };
    Ok(json_response(delivery::explain_now(runtime, &request).as_json()))
}

/// Reads the body of a command, which is JSON: a form of another site cannot send this content type, and its scripts
/// cannot without the consent of this server (Fetch, CORS-safelisted request-header).
async fn read_json(request: Request<Incoming>, bytes_max: usize) -> Result<Bytes, AdminProblem> {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let is_json = |value: &str| value.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case(JSON));
    if !content_type.is_some_and(is_json) {
        let detail = "a command needs Content-Type: application/json, so that no page of another site can send it";
        return Err(AdminProblem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
    }
    let body = Limited::new(request.into_body(), bytes_max).collect().await;
    let too_large = |error: Box<dyn std::error::Error + Send + Sync>| match error
        .is::<http_body_util::LengthLimitError>()
    {
        true => AdminProblem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body has more than {bytes_max} bytes")),
        false => AdminProblem::new(StatusCode::BAD_REQUEST, "the body is incomplete"),
    };
    Ok(body.map_err(too_large)?.to_bytes())
}

/// Reads a body that has no members: empty, or `{}`.
async fn read_no_parameters(request: Request<Incoming>) -> Result<(), AdminProblem> {
    let body = read_json(request, BODY_MAX).await?;
    if body.is_empty() { Ok(()) } else { parse_json(&body).map(|EmptyBody {}| ()) }
}

fn parse_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, AdminProblem> {
    // serde takes a list for a struct, too.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(AdminProblem::field("body", "the body is not an object"));
    }
    let message = |error: &dyn Display| Redactor::default().message(&error.to_string()).into_owned();
    serde_json::from_slice(body).map_err(|error| AdminProblem::field("body", message(&error).as_str().to_owned()))
}
