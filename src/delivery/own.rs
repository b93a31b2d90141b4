//! Webhooks that outgate itself sends, such as alerts. They take the steps of every webhook.
//! Did the target accept the webhook?

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Version};
use http_body_util::{BodyExt, Full};

use super::judge::judge_own;
use super::record::Record;
use super::request::ProxyRequest;
use super::{deliver_routed, response};
use crate::http_message::{Fields, Response};
use crate::policy::authn::Caller;
use crate::policy::own_webhook::OwnWebhook;
use crate::state::Runtime;
use crate::state::config::ActiveConfig;

/// Sends a webhook, once. `fields`: its `Webhook-Id`, and the fields of its body.
///
/// # Errors
///
/// outgate refused the webhook, or the target responded with another status than 2xx.
pub async fn deliver_own(
    runtime: &Arc<Runtime>,
    active: &Arc<ActiveConfig>,
    webhook: &OwnWebhook,
    fields: Fields,
    body: Bytes,
) -> Result<(), String> {
    let (plan, caller) = (&active.plan, Arc::new(Caller::default()));
    let mut record = Box::new(Record::open(runtime, plan, Some(&Method::POST), &caller));
    let request = ProxyRequest {
        method: Method::POST,
        version: Version::HTTP_11,
        target: webhook.url.clone(),
        fields,
        body: Box::pin(Full::from(body).map_err(|never| match never {})),
        caller,
        interim: None,
    };
    let response = match judge_own(plan, &webhook.route, &webhook.client, &request, &mut record) {
        Ok(routed) => deliver_routed(runtime, active, &routed, request, record).await,
        Err(refusal) => response::refuse(refusal, record, &plan.pseudonym),
    };
    let Response { status, fields, body, .. } = response;
    let read = body.collect().await; // its end writes the record and frees the connection
    let field = |name| fields.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match field("outgate-error") {
        "" if status.is_success() && read.is_ok() => Ok(()),
        "" => Err(format!("it responded with {}, request {}", status, field("outgate-request-id"))),
        code => Err(format!("outgate refused the webhook as {code}, request {}", field("outgate-request-id"))),
    }
}
