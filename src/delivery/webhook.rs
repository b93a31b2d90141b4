//! The request that the target gets: the client's request, without the fields for outgate, and with outgate's own.
//! Which fields and which body are forwarded, and which signatures are added?

use std::sync::Arc;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method, Version, header};
use http_body::Body;
use jiff::Timestamp;

use super::capture::CaptureTap;
use super::context::Delivery;
use super::errors;
use super::judge::Routed;
use super::record::Record;
use super::refusal::Refusal;
use super::request::body::{self, TimeoutBody, UploadProgress};
use super::request::webhook_id::{self, GeneratedId};
use super::request::{InterimSender, ProxyRequest, fields, max_forwards};
use super::throttle::Throttled;
use crate::config::InterimPolicy;
use crate::http_message::{FieldText, Fields, Request, SharedText, Text};
use crate::net::http_client::Upload;
use crate::policy::authn::{self, BodyCheck};
use crate::policy::route::WHOLE_BODY_MAX;
use crate::policy::sign::SigningInput;
use crate::policy::trace::TraceContext;
use crate::state::limits::bandwidth::BandwidthLimiter;
use crate::state::observability::traces::{TRACEPARENT, TRACESTATE};

/// A webhook before it is signed. Its body is buffered or about to stream.
pub(super) struct Webhook<'a> {
    delivery: &'a Delivery<'a>,
    method: Method,
    /// The request's own, unless a signer changes it.
    path_and_query: SharedText,
    fields: Fields,
    body: WebhookBody,
    interim: Option<InterimSender>,
}

enum WebhookBody {
    Buffered(Bytes),
    Streaming(Upload, Arc<UploadProgress>),
}

/// A request that is ready to send: no step changes it.
pub(super) struct SignedRequest {
    pub(super) request: Request<Upload>,
    /// `None`: the body is buffered.
    pub(super) progress: Option<Arc<UploadProgress>>,
    pub(super) interim: Option<InterimSender>,
}

impl<'a> Webhook<'a> {
    /// Takes the fields that outgate forwards, and buffers the body or prepares to stream it.
    ///
    /// The body is buffered if outgate signs it or the client has signed it. Either way it is at most as long as the
    /// route allows. `limiter`: of the bandwidth of the body.
    pub(super) async fn prepare(
        delivery: &'a Delivery<'a>,
        routed: &'a Routed<'_>,
        request: ProxyRequest,
        limiter: Option<BandwidthLimiter>,
    ) -> Result<Self, Refusal> {
        let &Delivery { route, target, .. } = delivery;
        let ProxyRequest { method, version, mut fields, body, interim, .. } = request;
        if fields::connection_names_end_to_end(&fields) {
            return Err(Refusal::malformed("Connection names an end-to-end field, which the target would not receive"));
        }
        max_forwards::decrement(&method, &mut fields);
        fields::strip(&mut fields);
        authn::strip_credentials(&mut fields);
        fields.remove(header::EXPECT);
        fields.insert_first(header::HOST, Text(target.authority()));
        fields::add_via(&mut fields, version, delivery.pseudonym());

        let interim = interim.filter(|_| version == Version::HTTP_2 || route.interim == InterimPolicy::Forward);
        // The timeout is inside the throttle, so the client's time excludes the waits for the bandwidth limit.
        let observer = delivery.capture.map(CaptureTap::request_observer);
        let body = Throttled::new(body::with_timeout(body, route.timeouts.body, observer), limiter);
        let body = Self::prepare_body(delivery, body, routed.body_check.as_ref()).await?;
        let path_and_query = routed.request_target.path_and_query.clone();
        Ok(Self { delivery, method, path_and_query, fields, body, interim })
    }

    async fn prepare_body(
        delivery: &Delivery<'_>,
        body: Throttled<TimeoutBody>,
        body_check: Option<&BodyCheck>,
    ) -> Result<WebhookBody, Refusal> {
        let route = delivery.route;
        if route.signers.is_empty() && body_check.is_none() {
            body::check_length(&body, route.body_max)?;
            let (upload, progress) = body::stream(body, route.body_max);
            return Ok(WebhookBody::Streaming(upload, progress));
        }
        let max = route.body_max.min(WHOLE_BODY_MAX);
        body::check_length(&body, max)?;
        let body = body::buffer(body, max, delivery.runtime.body_memory.reservation()).await?;
        body_check.map_or(Ok(()), |check| check.verify(&body))?;
        Ok(WebhookBody::Buffered(body))
    }

    /// Sets the place of the request in its trace. The state of a trace that the client did not name validly is not the
    /// state of the new trace.
    pub(super) fn set_trace(&mut self, trace: &TraceContext) {
        if trace.parent.is_none() {
            self.fields.remove(&TRACESTATE);
        }
        self.fields.insert(&TRACEPARENT, Text(trace.traceparent()));
    }

    /// Sets the route's credential, in place of a field of this name that the client sent.
    pub(super) fn set_credential(&mut self, (name, value): (HeaderName, HeaderValue)) {
        self.fields.insert(name, &value);
    }

    /// Signs the webhook with every signer of the route.
    pub(super) fn sign(mut self, now: Timestamp, record: &mut Record) -> Result<SignedRequest, Refusal> {
        let (upload, progress) = match std::mem::replace(&mut self.body, WebhookBody::Buffered(Bytes::new())) {
            WebhookBody::Buffered(body) => {
                self.set_framing(Some(body.len() as u64));
                self.add_signatures(&body, now, record)?;
                let length = body.len() as u64;
                let (upload, progress) = body::whole(body);
                match &progress {
                    Some(progress) => record.uploads(Arc::clone(progress)),
                    None => record.body_length(length),
                }
                (upload, progress)
            }
            WebhookBody::Streaming(upload, progress) => {
                self.set_framing(upload.size_hint().exact());
                record.uploads(Arc::clone(&progress));
                (upload, Some(progress))
            }
        };
        let request = Request { method: self.method, target: self.path_and_query, fields: self.fields, body: upload };
        self.delivery.capture.iter().for_each(|capture| capture.signed(&request));
        Ok(SignedRequest { request, progress, interim: self.interim })
    }

    /// Announces the framing of the body that the target gets, in place of the one that the client has announced.
    ///
    /// Servers answer 411 to a request without the length of an empty body (RFC 9110 §8.6). A method that usually has no body gets
    /// the length only if the client has written it.
    fn set_framing(&mut self, length: Option<u64>) {
        let allows_body = !matches!(self.method, Method::GET | Method::HEAD | Method::OPTIONS | Method::DELETE);
        match length {
            Some(0) if !allows_body && !self.fields.contains(header::CONTENT_LENGTH) => {}
            Some(length) => self.fields.insert(header::CONTENT_LENGTH, length),
            None => {
                self.fields.remove(header::CONTENT_LENGTH);
                self.fields.insert(header::TRANSFER_ENCODING, &HeaderValue::from_static("chunked"));
            }
        }
    }

    fn add_signatures(&mut self, body: &[u8], now: Timestamp, record: &mut Record) -> Result<(), Refusal> {
        let route = self.delivery.route;
        if route.signers.is_empty() {
            return Ok(()); // the body is buffered for the client's signature only
        }
        let generated = GeneratedId::of(record.request_id());
        let given = webhook_id::given(&self.fields)?.map(str::to_owned);
        let id = given.as_deref().unwrap_or(generated.as_str());
        for signer in &route.signers {
            let mutations = signer.mutations(&self.signing_input(body, now, id));
            let mutations = mutations.map_err(|error| errors::unsigned(signer, error))?;
            self.set_fields(mutations.headers);
            if let Some(path_and_query) = mutations.path_and_query {
                // The request's own is checked already.
                if path_and_query.parse::<PathAndQuery>().is_err() {
                    return Err(Refusal::malformed(
                        "the target's path or query has a character that is not allowed there",
                    ));
                }
                self.path_and_query = path_and_query.into();
            }
        }
        for signer in &route.signers {
            let signature = signer.sign(&self.signing_input(body, now, id));
            let signature = signature.map_err(|error| errors::unsigned(signer, error))?;
            // A target must not take the client's fields for the signer's, even if this signature sets none of them.
            signer.headers().iter().for_each(|name| self.fields.remove(name));
            self.set_fields(signature.headers);
            record.signed_by(signature.keys);
        }
        Ok(())
    }

    fn signing_input<'b>(&'b self, body: &'b [u8], now: Timestamp, id: &'b str) -> SigningInput<'b> {
        let &Delivery { target, tenant, .. } = self.delivery;
        let (method, path_and_query) = (&self.method, &*self.path_and_query);
        SigningInput { method, target, tenant, path_and_query, headers: &self.fields, body, now, id }
    }

    fn set_fields(&mut self, fields: impl IntoIterator<Item = (HeaderName, FieldText)>) {
        for (name, value) in fields {
            self.fields.insert(name, &value);
        }
    }
}
