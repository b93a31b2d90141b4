//! The credential that a target demands: a header as it is configured, or a token that outgate fetches.
//! Which header does the target get, and did the target accept it?
//!
//! The request for a token takes the same steps as a webhook: the route's pool, guard, resolver, trust and timeouts.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::time::{Instant, timeout, timeout_at};

use super::connector::UpstreamConnector;
use super::context::Delivery;
use super::errors::map_exchange_error;
use super::record::{Record, Step, TokenEndpointEvidence};
use super::refusal::{Code, Refusal};
use super::webhook::SignedRequest;
use super::{response, steps};
use crate::http_message::Response;
use crate::names::ClientName;
use crate::net::http_client::{TargetBody, Upload};
use crate::panics;
use crate::policy::credential::{CredentialValue, Grant, OAuth2, rejects_token};
use crate::policy::route::Route;
use crate::state::Runtime;
use crate::state::config::ActiveConfig;
use crate::state::upstreams::tokens::{AccessToken, FetchFailure, FetchGuard, TokenKey, TokenLookup};

/// Size limit of a token endpoint's response, in bytes. A response with a large token has a few thousand.
const TOKEN_RESPONSE_MAX: usize = 64 << 10;

/// The part of a route's total timeout for which a fetch waits for that of another instance.
const FLEET_WAIT_DIVISOR: u32 = 4;

/// The header that authenticates outgate at a target.
pub(super) struct TargetCredential {
    name: HeaderName,
    value: HeaderValue,
    token: Option<(TokenKey, AccessToken)>,
}

impl TargetCredential {
    pub(super) fn header(&self) -> (HeaderName, HeaderValue) {
        (self.name.clone(), self.value.clone())
    }

    /// Discards a token that the target refuses. The client gets the response: outgate does not send the webhook again.
    pub(super) fn observe_response(&self, response: &Response<TargetBody>, runtime: &Runtime) {
        if let Some((key, token)) = &self.token
            && rejects_token(response.status, &response.fields)
        {
            runtime.tokens.refused(key, token, Instant::now().into_std());
        }
    }
}

/// Returns the credential of the route; `None` if the route has none.
pub(super) async fn obtain(delivery: &Delivery<'_>, record: &mut Record) -> Result<Option<TargetCredential>, Refusal> {
    let &Delivery { route, tenant, .. } = delivery;
    let Some(credential) = &route.credential else { return Ok(None) };
    let name = credential.header.clone();
    let oauth2 = match &credential.value {
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
    let token = await_token(delivery, oauth2, &key).await.map_err(|failure| to_refusal(&failure, record))?;
    record.step(Step::Token);
    Ok(Some(TargetCredential { name, value: token.value(), token: Some((key, token)) }))
}

async fn await_token(
    delivery: &Delivery<'_>,
    oauth2: &Arc<OAuth2>,
    key: &TokenKey,
) -> Result<AccessToken, FetchFailure> {
    loop {
        let (lookup, guard) = delivery.runtime.tokens.find(key, Instant::now().into_std());
        if let Some(guard) = guard {
            // A task of its own: the first client may hang up while other deliveries wait for the same token.
            panics::spawn(TokenFetch::new(delivery, oauth2, guard).run());
        }
        match lookup {
            TokenLookup::Token(token) => return Ok(token),
            TokenLookup::Failed(failure) => return Err(failure),
            TokenLookup::Pending(mut pending) => match pending.result().await {
                Some(outcome) => return outcome,
                None => tokio::task::yield_now().await, // the fetch was dropped: this delivery or another starts a new one
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

/// Returns the refusal of a fetch that failed, and records its evidence.
fn to_refusal(failure: &FetchFailure, record: &mut Record) -> Refusal {
    let Some(TokenFetchError { refusal, evidence }) = failure.error.downcast_ref() else {
        return Refusal::new(Code::Internal, "outgate could not fetch a token");
    };
    record.lacks_token(evidence.clone());
    let refusal = refusal.clone();
    if refusal.is_retryable() { refusal.retry_after(failure.retry_after(Instant::now().into_std())) } else { refusal }
}

/// One fetch of a token, for every delivery that waits for it.
struct TokenFetch {
    runtime: Arc<Runtime>,
    active: Arc<ActiveConfig>,
    route: Arc<Route>,
    /// The client of the delivery that started the fetch.
    client: ClientName,
    oauth2: Arc<OAuth2>,
    guard: FetchGuard,
}

impl TokenFetch {
    fn new(delivery: &Delivery<'_>, oauth2: &Arc<OAuth2>, guard: FetchGuard) -> Self {
        let Delivery { runtime, active, route, client, .. } = *delivery;
        Self {
            runtime: Arc::clone(runtime),
            active: Arc::clone(active),
            route: Arc::clone(route),
            client: client.clone(),
            oauth2: Arc::clone(oauth2),
            guard,
        }
    }

    async fn run(self) {
        let fleet = self.runtime.fleet.get().cloned();
        // A part of the time that a delivery has: the instance that fetches the token may fail.
        let wait_max = self.route.timeouts.total / FLEET_WAIT_DIVISOR;
        if let Some(fleet) = &fleet
            && let Some((grant, granted_at)) = fleet.await_token(&self.guard, wait_max).await
        {
            self.runtime.metrics.token_request(&self.oauth2.credential, "shared");
            return self.guard.granted(grant, granted_at);
        }
        let fetched = match panics::contain(self.fetch()).await {
            Ok(fetched) => fetched,
            // A failure like any other: the next fetch waits for its backoff.
            Err(panicked) => {
                self.runtime.metrics.token_request(&self.oauth2.credential, Code::Internal.name());
                return self.guard.failed(Arc::new(panicked), Instant::now().into_std());
            }
        };
        let result = fetched.as_ref().map_or_else(|error| error.refusal.code.name(), |_| "granted");
        self.runtime.metrics.token_request(&self.oauth2.credential, result);
        let share = fleet.map(|fleet| fleet.share_token(&self.guard, fetched.as_ref().ok()));
        match fetched {
            Ok(grant) => self.guard.granted(grant, Instant::now().into_std()),
            Err(error) => self.guard.failed(Arc::new(error), Instant::now().into_std()),
        }
        if let Some(share) = share {
            let _ = share.await; // the store's own state reports its errors
        }
    }

    /// Fetches a token within the route's timeouts: each bounds its step, and the total timeout bounds the whole fetch.
    async fn fetch(&self) -> Result<Grant, TokenFetchError> {
        let Self { runtime, active, route, client, oauth2, guard } = self;
        let mut record = Record::for_internal_request(runtime, &active.plan);
        let delivery = Delivery {
            runtime,
            active,
            route,
            client,
            tenant: guard.key().tenant.as_ref(),
            target: &oauth2.endpoint,
            separates_clients: false,
            started: record.started(),
            capture: None,
        };
        let fetched = timeout(route.timeouts.total, request_token(&delivery, oauth2, &mut record)).await;
        let timed_out = || Refusal::target(Code::ResponseTimeout, "returned no token within the total timeout");
        fetched.unwrap_or_else(|_| Err(timed_out())).map_err(|refusal| TokenFetchError {
            refusal: refusal.of_token_endpoint(&oauth2.endpoint),
            evidence: record.into_endpoint_evidence(oauth2),
        })
    }
}

/// Requests a token, in the steps of a webhook.
async fn request_token(delivery: &Delivery<'_>, oauth2: &OAuth2, record: &mut Record) -> Result<Grant, Refusal> {
    let &Delivery { active, route, target, .. } = delivery;
    // The operator has configured the endpoint, and thereby allowed its port.
    active.plan.guard.check_name(target, &[target.port], false)?;
    let hops = steps::plan_hops(delivery, record).await?;
    let connector = UpstreamConnector::new(delivery, hops);
    let connection = connector.open(record).await?;
    let deadline = Instant::now() + route.timeouts.response;
    let request = SignedRequest { request: oauth2.request().map(Upload::whole), progress: None, interim: None };
    let (mut connection, response) = connector.forward(connection, request, record).await?;
    response::check(&response, TOKEN_RESPONSE_MAX as u64, route.response_head_max)?;
    let status = response.status;
    let read = timeout_at(deadline, Limited::new(response.body, TOKEN_RESPONSE_MAX).collect()).await;
    let timed_out = || Refusal::target(Code::ResponseTimeout, "sent no complete response within the response timeout");
    let body = read.map_err(|_| timed_out())?.map_err(|error| map_body_error(error.as_ref(), route))?.to_bytes();
    record.step(Step::Response);
    connection.finish_exchange();
    OAuth2::parse_response(status, &body).map_err(Refusal::from)
}

fn map_body_error(error: &(dyn Error + Send + Sync + 'static), route: &Route) -> Refusal {
    if error.is::<LengthLimitError>() {
        return Refusal::part_of_target(
            Code::ResponseTooLarge,
            format!("response is longer than {TOKEN_RESPONSE_MAX} bytes"),
        );
    }
    let incomplete = || Refusal::part_of_target(Code::ConnectionLost, "response ended early").with_cause(error);
    error.downcast_ref().map_or_else(incomplete, |error| map_exchange_error(error, route.response_head_max))
}
