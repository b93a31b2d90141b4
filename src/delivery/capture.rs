//! The copy of a delivery's request and response, as far as a capture selects it.
//! Which bytes of this delivery does its capture get?

use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::json;

use super::judge::Routed;
use super::record::Record;
use super::request::body::BodyObserver;
use super::request::{ProxyRequest, fields, webhook_id};
use crate::http_message::{Fields, Request, Response};
use crate::policy::capture::{CapturedBody, CapturedExchange, CapturedMessage, select};
use crate::policy::{Plan, authn};
use crate::state::Runtime;
use crate::state::observability::captures::PendingCapture;

/// The version of the document in a capture.
const FORMAT: u32 = 1;

/// The copy of one delivery, shared by its steps. Dropping the last reference submits it. `None` only while it is dropped.
pub(super) struct CaptureTap(Mutex<Option<PendingCapture>>);

/// The message that a head or a frame belongs to.
type MessageOf = fn(&mut CapturedExchange) -> &mut CapturedMessage;

impl CaptureTap {
    /// Begins the capture of a delivery. `None`: no capture selects it, its tenant has no recipients, or there is no room.
    ///
    /// The copy of the head is that of the client, without its credentials, until the request is signed.
    pub(super) fn begin(
        runtime: &Arc<Runtime>,
        plan: &Plan,
        routed: &Routed<'_>,
        request: &ProxyRequest,
        record: &Record,
    ) -> Option<Arc<Self>> {
        if plan.captures.is_empty() {
            return None;
        }
        let Routed { request_target, client, route, target, .. } = routed;
        let (at, tenant) = (Timestamp::now(), request_target.tenant.as_ref());
        let webhook_id = webhook_id::well_formed(&request.fields);
        let (capture, recipients) = select(&plan.captures, &route.name, tenant, webhook_id, at)?;
        let (Some(recipients), Some(tenant)) = (recipients, tenant) else {
            runtime.metrics.capture(&capture.name, "no_recipients");
            return None;
        };
        let head = head_size(&request.fields) + request.target.len();
        let mut pending = PendingCapture::begin(runtime, capture, recipients, &plan.redactor, tenant, head)?;
        let mut fields = request.fields.clone();
        fields::strip(&mut fields);
        authn::strip_credentials(&mut fields);
        pending.exchange = CapturedExchange {
            at,
            request_id: record.request_id().to_owned(),
            identity: json!({
                "format": FORMAT,
                "time": at,
                "request_id": record.request_id(),
                "webhook_id": webhook_id,
                "capture": capture.name.as_str(),
                "route": route.name.as_str(),
                "client": client.as_str(),
                "tenant": tenant.as_str(),
                "target": target.to_string(),
            }),
            method: request.method.to_string(),
            path: request_target.path_and_query.to_string(),
            request: CapturedMessage { fields, body: CapturedBody::default() },
            ..CapturedExchange::default()
        };
        Some(Arc::new(Self(Mutex::new(Some(pending)))))
    }

    /// Returns an observer of the request's body.
    pub(super) fn request_observer(self: &Arc<Self>) -> BodyObserver {
        let tap = Arc::clone(self);
        Box::new(move |data| tap.copy(|exchange| &mut exchange.request, data))
    }

    /// Replaces the head by that of the request that the target gets.
    pub(super) fn signed<B>(&self, request: &Request<B>) {
        self.update(|pending| pending.exchange.path = request.target.to_string());
        self.copy_head(|exchange| &mut exchange.request, &request.fields);
    }

    pub(super) fn responded<B>(&self, response: &Response<B>) {
        self.update(|pending| pending.exchange.status = Some(response.status.as_u16()));
        self.copy_head(|exchange| &mut exchange.response, &response.fields);
    }

    /// Copies a part of the response's body; `None`: its end.
    pub(super) fn response_data(&self, data: Option<&[u8]>) {
        self.copy(|exchange| &mut exchange.response, data);
    }

    pub(super) fn failed(&self, code: &'static str) {
        self.update(|pending| pending.exchange.code = Some(code));
    }

    fn copy_head(&self, message_of: MessageOf, fields: &Fields) {
        self.update(|pending| {
            if pending.reserve(head_size(fields)) {
                message_of(&mut pending.exchange).fields = fields.clone();
            }
        });
    }

    /// Copies the bytes up to the bound of the capture, if there is memory.
    fn copy(&self, message_of: MessageOf, data: Option<&[u8]>) {
        self.update(|pending| {
            let max = pending.capture.section.body_max;
            let body = &mut message_of(&mut pending.exchange).body;
            let Some(data) = data else { return body.is_complete = true };
            // After a gap, later bytes would stand in the wrong place.
            let has_gap = (body.bytes.len() as u64) < body.length;
            let room = if has_gap { 0 } else { max.saturating_sub(body.bytes.len()).min(data.len()) };
            body.length += data.len() as u64;
            if room > 0 && pending.reserve(room) {
                message_of(&mut pending.exchange).body.bytes.extend_from_slice(&data[..room]);
            }
        });
    }

    fn update(&self, update: impl FnOnce(&mut PendingCapture)) {
        if let Some(pending) = self.0.lock().as_mut() {
            update(pending);
        }
    }
}

impl Drop for CaptureTap {
    fn drop(&mut self) {
        self.0.get_mut().take().into_iter().for_each(PendingCapture::submit);
    }
}

fn head_size(fields: &Fields) -> usize {
    fields.iter().map(|(name, value)| name.len() + value.as_bytes().len()).sum()
}
