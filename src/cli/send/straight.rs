//! A delivery in this process, as the proxy of this configuration would make it.
//! What does the story itself say of it?

use std::process::ExitCode;
use std::sync::Arc;

use bytes::Bytes;
use http::Version;
use http_body_util::{BodyExt, Full};
use tokio::time::Instant;

use super::super::ValidConfig;
use super::super::alone::with_runtime;
use super::RequestSpec;
use super::answer::SendResult;
use crate::delivery::{self, ProxyRequest};
use crate::names::ClientName;
use crate::policy::authn::{AssertedClient, Caller};
use crate::state::Runtime;

pub(super) fn send(valid: ValidConfig, client: ClientName, errand: &RequestSpec) -> Result<SendResult, ExitCode> {
    let caller = Caller { stated: Some(AssertedClient::by_operator(client)), ..Caller::default() };
    with_runtime(valid, async |runtime| deliver(runtime, caller, errand).await)
}

async fn deliver(runtime: &Arc<Runtime>, caller: Caller, errand: &RequestSpec) -> SendResult {
    let body: Full<Bytes> = errand.body.clone().into();
    let arrival = ProxyRequest {
        method: errand.method.clone(),
        version: Version::HTTP_11,
        target: errand.url.clone(),
        fields: errand.fields.clone(),
        body: Box::pin(body.map_err(|never| match never {})),
        caller: Arc::new(caller),
        interim: None,
    };
    let started = Instant::now();
    let response = delivery::deliver(runtime, arrival).await;
    let mut answer = SendResult::read(response, started).await;
    // The answer was read to its end, so the delivery has left its record.
    answer.record = serde_json::from_slice(&runtime.records.drain()).ok();
    answer
}
