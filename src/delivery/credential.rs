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

use super::passage::{Passage, lost};
use super::record::{Record, Step, TokenEndpointEvidence};
use super::refusal::{Code, Refusal};
use super::webhook::Sealed;
use super::{steps, verdict};
use crate::live::tokens::{Errand, Failed, Found, Key, Token};
use crate::live::{InForce, Live};
use crate::names::TenantName;
use crate::net::exchange::Upload;
use crate::policy::credential::{Grant, NoGrant, OAuth2, Proof, refuses_token};
use crate::policy::route::Route;

/// A token endpoint's answer is a few hundred bytes, even where its token has claims in it.
const ANSWER_MAX: usize = 64 << 10;

/// What a target is shown.
pub(super) struct Shown {
    name: HeaderName,
    value: HeaderValue,
    token: Option<(Key, Token)>,
}

impl Shown {
    pub(super) fn header(&self) -> (HeaderName, HeaderValue) {
        (self.name.clone(), self.value.clone())
    }

    /// A token that the target does not take is not shown again. The webhook is not sent again, either: its answer is
    /// the client's.
    pub(super) fn heed(&self, answer: &Response<Incoming>, live: &Live) {
        if let Some((key, token)) = &self.token
            && refuses_token(answer.status(), answer.headers())
        {
            live.tokens.refused(key, token);
        }
    }
}

/// What the route's target is shown; `None` where the route has no credential.
pub(super) async fn obtain(
    live: &Arc<Live>,
    in_force: &Arc<InForce>,
    route: &Arc<Route>,
    tenant: Option<&TenantName>,
    record: &mut Record,
) -> Result<Option<Shown>, Refusal> {
    let Some(credential) = &route.credential else { return Ok(None) };
    let name = credential.header.clone();
    let oauth2 = match &credential.proof {
        Proof::Written(value) => return Ok(Some(Shown { name, value: value.clone(), token: None })),
        Proof::Fetched(oauth2) => oauth2,
    };
    let key = Key {
        credential: oauth2.fingerprint,
        pool: route.pool.name().clone(),
        trust: route.trust.fingerprint,
        tenant: tenant.filter(|_| route.is_for_tenants).cloned(),
    };
    record.begin(Step::Token);
    let token = token(live, in_force, route, oauth2, &key).await.map_err(|failed| told(&failed, record))?;
    record.step(Step::Token);
    Ok(Some(Shown { name, value: token.value(), token: Some((key, token)) }))
}

async fn token(
    live: &Arc<Live>,
    in_force: &Arc<InForce>,
    route: &Arc<Route>,
    oauth2: &Arc<OAuth2>,
    key: &Key,
) -> Result<Token, Failed> {
    loop {
        let (found, errand) = live.tokens.find(key);
        if let Some(errand) = errand {
            // A task of its own: whoever asked first may hang up, and others wait for the same token.
            let errand = run(Arc::clone(live), Arc::clone(in_force), Arc::clone(route), Arc::clone(oauth2), errand);
            tokio::spawn(errand);
        }
        match found {
            Found::Token(token) => return Ok(token),
            Found::Failed(failed) => return Err(failed),
            Found::Coming(coming) => match coming.outcome().await {
                Some(outcome) => return outcome,
                None => tokio::task::yield_now().await, // its errand was dropped: it is ours, or another's
            },
        }
    }
}

/// A fetch that failed: the refusal of each delivery that waits for it, and the evidence for their records.
#[derive(Debug)]
struct NoToken {
    refusal: Refusal,
    evidence: TokenEndpointEvidence,
}

impl fmt::Display for NoToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.refusal.fmt(f)
    }
}

impl Error for NoToken {}

/// What the one who asked was told, in its record, too.
fn told(failed: &Failed, record: &mut Record) -> Refusal {
    let Some(NoToken { refusal, evidence }) = failed.why.downcast_ref() else {
        return Refusal::new(Code::Internal, "no token could be fetched");
    };
    record.lacks_token(evidence.clone());
    let refusal = refusal.clone();
    if refusal.is_retryable() { refusal.retry_after(failed.again_in()) } else { refusal }
}

async fn run(live: Arc<Live>, in_force: Arc<InForce>, route: Arc<Route>, oauth2: Arc<OAuth2>, errand: Errand) {
    let fetched = fetch(&live, &in_force, &route, &oauth2, errand.tenant()).await;
    let result = fetched.as_ref().map_or_else(|failed| failed.refusal.code.name(), |_| "granted");
    live.meters.token_request(&oauth2.credential, result);
    match fetched {
        Ok(grant) => errand.granted(grant),
        Err(failed) => errand.failed(Arc::new(failed)),
    }
}

/// Bounded by the route's timeouts: each for its step, and the total, which no delivery's end sets here.
async fn fetch(
    live: &Arc<Live>,
    in_force: &InForce,
    route: &Route,
    oauth2: &OAuth2,
    tenant: Option<&TenantName>,
) -> Result<Grant, NoToken> {
    let mut record = Record::aside(live);
    let asked = timeout(route.timeouts.total, ask(live, in_force, route, oauth2, tenant, &mut record)).await;
    let late = || Refusal::new(Code::ResponseTimeout, "it was not there within the total timeout");
    asked.unwrap_or_else(|_| Err(late())).map_err(|refusal| NoToken {
        refusal: refusal.of_token_endpoint(&oauth2.endpoint),
        evidence: record.into_endpoint_evidence(oauth2),
    })
}

/// The steps of a webhook, for a request of our own.
async fn ask(
    live: &Arc<Live>,
    in_force: &InForce,
    route: &Route,
    oauth2: &OAuth2,
    tenant: Option<&TenantName>,
    record: &mut Record,
) -> Result<Grant, Refusal> {
    let target = &oauth2.endpoint;
    // Its port is open because the operator has written it.
    in_force.plan.guard.judge_name(target, &[target.port], false)?;
    let hops = steps::hops(live, in_force, route, tenant, target, record).await?;
    let passage = Passage { live, in_force, route, target, tenant, client: None, hops, started: record.started() };
    let lease = passage.open(record).await?;
    let deadline = Instant::now() + route.timeouts.response;
    let request = Sealed { request: oauth2.request().map(Upload::whole), progress: None, interim: None };
    let (mut lease, answer) = passage.forward(lease, request, record).await?;
    verdict::final_answer(&answer, ANSWER_MAX as u64, route.response_head_max)?;
    let status = answer.status();
    let read = timeout_at(deadline, Limited::new(answer.into_body(), ANSWER_MAX).collect()).await;
    let late = || Refusal::new(Code::ResponseTimeout, "no whole answer within the response timeout");
    let body = read.map_err(|_| late())?.map_err(|fault| broken(fault.as_ref(), route))?.to_bytes();
    record.step(Step::Response);
    lease.end_exchange();
    OAuth2::judge(status, &body).map_err(Refusal::from)
}

fn broken(fault: &(dyn std::error::Error + Send + Sync + 'static), route: &Route) -> Refusal {
    if fault.is::<LengthLimitError>() {
        return Refusal::new(Code::ResponseTooLarge, "an answer longer than any token");
    }
    let broke_off = || Refusal::new(Code::ConnectionLost, "the answer broke off").cause(fault);
    fault.downcast_ref().map_or_else(broke_off, |fault| lost(fault, route.response_head_max, 0))
}

impl From<NoGrant> for Refusal {
    fn from(fault: NoGrant) -> Self {
        match fault {
            // It is for the operator to mend: neither the client nor the target can.
            NoGrant::Refused(status, word) => {
                let refusal =
                    Refusal::new(Code::Internal, format!("it answers {} and grants nothing", status.as_u16()));
                word.into_iter().fold(refusal, Refusal::details)
            }
            NoGrant::Failing(status) => {
                Refusal::new(Code::TargetCircuitOpen, format!("it answers {}", status.as_u16()))
            }
            NoGrant::Malformed(why) => Refusal::new(Code::ResponseMalformed, format!("it answers with {why}")),
        }
    }
}
