//! Makes the delivery in this process, as a proxy with this configuration would.
//! What does the delivery itself report?

use std::process::ExitCode;
use std::sync::Arc;

use bytes::Bytes;
use http::Version;
use http_body_util::{BodyExt, Full};
use tokio::time::Instant;

use super::super::ValidConfig;
use super::super::local_runtime::run_locally;
use super::RequestSpec;
use super::result::SendResult;
use crate::delivery::{self, ProxyRequest};
use crate::http_message::Fields;
use crate::names::ClientName;
use crate::policy::authn::Caller;
use crate::state::Runtime;

pub(super) fn send(valid: ValidConfig, client: ClientName, request: &RequestSpec) -> Result<SendResult, ExitCode> {
    let caller = Caller::by_operator(client);
    run_locally(valid, async |runtime| deliver(runtime, caller, request).await)
}

async fn deliver(runtime: &Arc<Runtime>, caller: Caller, request: &RequestSpec) -> SendResult {
    let body: Full<Bytes> = request.body.clone().into();
    let proxy_request = ProxyRequest {
        method: request.method.clone(),
        version: Version::HTTP_11,
        target: request.url.clone(),
        fields: Fields::from(&request.fields),
        body: Box::pin(body.map_err(|never| match never {})),
        caller: Arc::new(caller),
        interim: None,
    };
    let redactor = Arc::clone(&runtime.active_config().plan.redactor);
    let started = Instant::now();
    let response = delivery::deliver(runtime, proxy_request).await;
    let mut result = SendResult::read(response, started, redactor).await;
    // The response was read to its end, so the delivery has written its record.
    result.record = serde_json::from_slice(&runtime.records.drain()).ok();
    result
}
