//! The header by which a target knows us: as it is written, or with a token that is fetched for it.
//! What is this target shown, and does it take it?
//!
//! The request for a token leaves by the same doors as the webhook: the route's pool, guard, resolver, trust and timeouts.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use http::{HeaderName, HeaderValue, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use tokio::time::{Instant, timeout, timeout_at};

use super::connector::UpstreamConnector;
use super::errors::map_hyper_error;
use super::record::{Record, Step, TokenEndpointEvidence};
use super::refusal::{Code, Refusal};
use super::webhook::SignedRequest;
use super::{errors, steps};
use crate::names::TenantName;
use crate::net::http_client::Upload;
use crate::policy::credential::{CredentialValue, Grant, GrantError, OAuth2, refuses_token};
use crate::policy::route::Route;
use crate::state::Runtime;
use crate::state::config::ActiveConfig;
use crate::state::upstreams::tokens::{AccessToken, FetchFailure, FetchGuard, TokenKey, TokenLookup};

/// A token endpoint's answer is a few hundred bytes, even where its token has claims in it.
const ANSWER_MAX: usize = 64 << 10;

/// What a target is shown.
pub(super) struct TargetCredential {
    name: HeaderName,
    value: HeaderValue,
    token: Option<(TokenKey, AccessToken)>,
}

impl TargetCredential {
    pub(super) fn header(&self) -> (HeaderName, HeaderValue) {
        (self.name.clone(), self.value.clone())
    }

    /// A token that the target does not take is not shown again. The webhook is not sent again, either: its answer is
    /// the client's.
    pub(super) fn observe_response(&self, answer: &Response<Incoming>, runtime: &Runtime) {
        if let Some((key, token)) = &self.token
            && refuses_token(answer.status(), answer.headers())
        {
            runtime.tokens.refused(key, token, Instant::now().into_std());
        }
    }
}

/// What the route's target is shown; `None` where the route has no credential.
pub(super) async fn obtain(
    runtime: &Arc<Runtime>,
    active: &Arc<ActiveConfig>,
    route: &Arc<Route>,
    tenant: Option<&TenantName>,
    record: &mut Record,
) -> Result<Option<TargetCredential>, Refusal> {
    let Some(credential) = &route.credential else { return Ok(None) };
    let name = credential.header.clone();
    let oauth2 = match &credential.proof {
        CredentialValue::Static(value) => {
            return Ok(Some(TargetCredential { name, value: value.clone(), token: None }));
        }
        CredentialValue::OAuth2(oauth2) => oauth2,
    };
    let key = TokenKey {
        credential: oauth2.fingerprint,
        pool: route.pool.name().clone(),
        trust: route.trust.fingerprint,
        tenant: tenant.filter(|_| route.is_for_tenants).cloned(),
    };
    record.begin(Step::Token);
    let token = token(runtime, active, route, oauth2, &key).await.map_err(|failed| to_refusal(&failed, record))?;
    record.step(Step::Token);
    Ok(Some(TargetCredential { name, value: token.value(), token: Some((key, token)) }))
}

async fn token(
    runtime: &Arc<Runtime>,
    active: &Arc<ActiveConfig>,
    route: &Arc<Route>,
    oauth2: &Arc<OAuth2>,
    key: &TokenKey,
) -> Result<AccessToken, FetchFailure> {
    loop {
        let (found, errand) = runtime.tokens.find(key, Instant::now().into_std());
        if let Some(errand) = errand {
            // A task of its own: whoever asked first may hang up, and others wait for the same token.
            let errand =
                run_fetch(Arc::clone(runtime), Arc::clone(active), Arc::clone(route), Arc::clone(oauth2), errand);
            tokio::spawn(errand);
        }
        match found {
            TokenLookup::Token(token) => return Ok(token),
            TokenLookup::Failed(failed) => return Err(failed),
            TokenLookup::Pending(mut fetch) => match fetch.result().await {
                Some(outcome) => return outcome,
                None => tokio::task::yield_now().await, // the leader was dropped: this delivery or another one fetches
            },
        }
    }
}

/// A fetch that failed: the refusal of each delivery that waits for it, and the evidence for their records.
#[derive(Debug)]
struct TokenFetchError {
    refusal: Refusal,
    evidence: TokenEndpointEvidence,
}

impl fmt::Display for TokenFetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.refusal.fmt(f)
    }
}

impl Error for TokenFetchError {}

/// What the one who asked was told, in its record, too.
fn to_refusal(failed: &FetchFailure, record: &mut Record) -> Refusal {
    let Some(TokenFetchError { refusal, evidence }) = failed.error.downcast_ref() else {
        return Refusal::new(Code::Internal, "no token could be fetched");
    };
    record.lacks_token(evidence.clone());
    let refusal = refusal.clone();
    if refusal.is_retryable() { refusal.retry_after(failed.retry_after(Instant::now().into_std())) } else { refusal }
}

async fn run_fetch(
    runtime: Arc<Runtime>,
    active: Arc<ActiveConfig>,
    route: Arc<Route>,
    oauth2: Arc<OAuth2>,
    errand: FetchGuard,
) {
    let fetched = fetch(&runtime, &active, &route, &oauth2, errand.tenant()).await;
    let result = fetched.as_ref().map_or_else(|failed| failed.refusal.code.name(), |_| "granted");
    runtime.metrics.token_request(&oauth2.credential, result);
    match fetched {
        Ok(grant) => errand.granted(grant, Instant::now().into_std()),
        Err(failed) => errand.failed(Arc::new(failed), Instant::now().into_std()),
    }
}

/// Bounded by the route's timeouts: each for its step, and the total, which no delivery's end sets here.
async fn fetch(
    runtime: &Arc<Runtime>,
    active: &ActiveConfig,
    route: &Route,
    oauth2: &OAuth2,
    tenant: Option<&TenantName>,
) -> Result<Grant, TokenFetchError> {
    let mut record = Record::for_internal_request(runtime);
    let asked = timeout(route.timeouts.total, request_token(runtime, active, route, oauth2, tenant, &mut record)).await;
    let late = || Refusal::new(Code::ResponseTimeout, "it was not there within the total timeout");
    asked.unwrap_or_else(|_| Err(late())).map_err(|refusal| TokenFetchError {
        refusal: refusal.of_token_endpoint(&oauth2.endpoint),
        evidence: record.into_endpoint_evidence(oauth2),
    })
}

/// The steps of a webhook, for a request of our own.
async fn request_token(
    runtime: &Arc<Runtime>,
    active: &ActiveConfig,
    route: &Route,
    oauth2: &OAuth2,
    tenant: Option<&TenantName>,
    record: &mut Record,
) -> Result<Grant, Refusal> {
    let target = &oauth2.endpoint;
    // Its port is open because the operator has written it.
    active.plan.guard.judge_name(target, &[target.port], false)?;
    let hops = steps::plan_hops(runtime, active, route, tenant, target, record).await?;
    let passage =
        UpstreamConnector { runtime, active, route, target, tenant, client: None, hops, started: record.started() };
    let lease = passage.open(record).await?;
    let deadline = Instant::now() + route.timeouts.response;
    let request = SignedRequest { request: oauth2.request().map(Upload::whole), progress: None, interim: None };
    let (mut lease, answer) = passage.forward(lease, request, record).await?;
    errors::final_answer(&answer, ANSWER_MAX as u64, route.response_head_max)?;
    let status = answer.status();
    let read = timeout_at(deadline, Limited::new(answer.into_body(), ANSWER_MAX).collect()).await;
    let late = || Refusal::new(Code::ResponseTimeout, "no whole answer within the response timeout");
    let body = read.map_err(|_| late())?.map_err(|fault| broken(fault.as_ref(), route))?.to_bytes();
    record.step(Step::Response);
    lease.finish_exchange();
    OAuth2::judge(status, &body).map_err(Refusal::from)
}

fn broken(fault: &(dyn std::error::Error + Send + Sync + 'static), route: &Route) -> Refusal {
    if fault.is::<LengthLimitError>() {
        return Refusal::new(Code::ResponseTooLarge, "an answer longer than any token");
    }
    let broke_off = || Refusal::new(Code::ConnectionLost, "the answer broke off").with_cause(fault);
    fault.downcast_ref().map_or_else(broke_off, |fault| map_hyper_error(fault, route.response_head_max, 0))
}

impl From<GrantError> for Refusal {
    fn from(fault: GrantError) -> Self {
        match fault {
            // It is for the operator to mend: neither the client nor the target can.
            GrantError::Refused(status, word) => {
                let refusal =
                    Refusal::new(Code::Internal, format!("it answers {} and grants nothing", status.as_u16()));
                word.into_iter().fold(refusal, Refusal::with_details)
            }
            GrantError::Unavailable(status) => {
                Refusal::new(Code::TargetCircuitOpen, format!("it answers {}", status.as_u16()))
            }
            GrantError::Malformed(why) => Refusal::new(Code::ResponseMalformed, format!("it answers with {why}")),
        }
    }
}
