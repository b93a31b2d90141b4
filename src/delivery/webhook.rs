//! The request that the target will see: the client's, without what was for us, with what we add.
//! What is forwarded, and what proves it is ours?

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, header};
use http_body::Body;
use jiff::Timestamp;

use super::record::Record;
use super::refusal::Refusal;
use super::request_body::{self, RequestBody, UploadProgress};
use super::request_target::{self, RequestTarget};
use super::{InterimCallback, ProxyRequest, errors, fields};
use crate::config;
use crate::names::{Target, TenantName};
use crate::net::http_client::Upload;
use crate::policy::authn::{self, BodyCheck};
use crate::policy::route::{Route, WHOLE_BODY_MAX};
use crate::policy::sign::{self, SignError, Signer, SigningInput};

static WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");

/// A webhook taken in: its fields cleaned, its body at hand or on its way.
pub(super) struct Webhook {
    method: Method,
    target: Target,
    tenant: Option<TenantName>,
    path_and_query: String,
    fields: HeaderMap,
    body: WebhookBody,
    interim: Option<InterimCallback>,
}

enum WebhookBody {
    Buffered(Bytes),
    Streaming(Upload, Arc<UploadProgress>),
}

/// A request that nothing will change any more, and what goes on around it while it is sent.
pub(super) struct SignedRequest {
    pub(super) request: Request<Upload>,
    pub(super) progress: Option<Arc<UploadProgress>>,
    pub(super) interim: Option<InterimCallback>,
}

/// Returns the id of a webhook that is signed: the client's own, or one that is made of the request's.
pub(super) fn id(fields: &HeaderMap, request_id: &str) -> Result<String, Refusal> {
    Ok(given_id(fields)?.map_or_else(|| format!("msg_{request_id}"), str::to_owned))
}

/// Returns the id that the client gave, if it gave one. The error: it is malformed.
pub(super) fn given_id(fields: &HeaderMap) -> Result<Option<&str>, Refusal> {
    if fields.get_all(&WEBHOOK_ID).iter().nth(1).is_some() {
        return Err(Refusal::malformed("Webhook-Id stands there more than once"));
    }
    let malformed = || Refusal::malformed("Webhook-Id may have letters, digits and -_~+@, up to 256 of them");
    match fields.contains_key(&WEBHOOK_ID) {
        false => Ok(None),
        true => own_id(fields).map(Some).ok_or_else(malformed),
    }
}

/// Returns the id that the client gave, if it is one.
pub(super) fn own_id(fields: &HeaderMap) -> Option<&str> {
    let mut ids = fields.get_all(&WEBHOOK_ID).iter();
    let (id, None) = (ids.next()?, ids.next()) else { return None };
    id.to_str().ok().filter(|id| sign::valid_id(id))
}

impl Webhook {
    /// Reads the body whole if a signer must see it or the client has signed it, or prepares to stream it, under the
    /// route's cap either way.
    pub(super) async fn prepare(
        arrival: ProxyRequest,
        request_target: RequestTarget,
        target: Target,
        route: &Route,
        body_check: Option<BodyCheck>,
        pseudonym: &str,
    ) -> Result<Self, Refusal> {
        let ProxyRequest { method, version, mut fields, body, interim, .. } = arrival;
        if fields::names_end_to_end(&fields) {
            return Err(Refusal::malformed("Connection names a field that is not the connection's"));
        }
        request_target::count_forward(&method, &mut fields);
        fields::strip(&mut fields);
        authn::take_out_proofs(&mut fields);
        fields.remove(header::EXPECT);
        fields.remove(header::CONTENT_LENGTH);
        let host = HeaderValue::try_from(target.authority())
            .map_err(|_| Refusal::malformed("the target's host is malformed"))?;
        fields.insert(header::HOST, host);
        fields::add_via(&mut fields, version, pseudonym);

        let interim = interim.filter(|_| version == Version::HTTP_2 || route.interim == config::InterimPolicy::Forward);
        let body = Self::body(body, route, body_check).await?;
        let RequestTarget { path_and_query, tenant, .. } = request_target;
        Ok(Self { method, target, tenant, path_and_query, fields, body, interim })
    }

    async fn body(body: RequestBody, route: &Route, pledge: Option<BodyCheck>) -> Result<WebhookBody, Refusal> {
        if route.signers.is_empty() && pledge.is_none() {
            request_body::judge_length(&body, route.body_max)?;
            let (upload, progress) = request_body::stream(body, route.body_max);
            return Ok(WebhookBody::Streaming(upload, progress));
        }
        let most = route.body_max.min(WHOLE_BODY_MAX);
        request_body::judge_length(&body, most)?;
        let body = request_body::buffer(body, most).await?;
        pledge.map_or(Ok(()), |pledge| pledge.verify(&body))?;
        Ok(WebhookBody::Buffered(body))
    }

    /// Adds the route's credential; what a client sent under its name is none.
    pub(super) fn set_credential(&mut self, (name, value): (HeaderName, HeaderValue)) {
        self.fields.insert(name, value);
    }

    /// Signs and closes it: nothing is changed afterwards.
    pub(super) fn sign(mut self, route: &Route, now: Timestamp, record: &mut Record) -> Result<SignedRequest, Refusal> {
        let (upload, progress) = match std::mem::replace(&mut self.body, WebhookBody::Buffered(Bytes::new())) {
            WebhookBody::Buffered(body) => {
                self.add_signatures(&body, route, now, record)?;
                record.body_length(body.len() as u64);
                (Upload::whole(body), None)
            }
            WebhookBody::Streaming(upload, progress) => {
                record.uploads(Arc::clone(&progress));
                (upload, Some(progress))
            }
        };
        let uri: Uri = self
            .path_and_query
            .parse()
            .map_err(|_| Refusal::malformed("a character that may not stand in the target's path or query"))?;
        self.frame(&upload);
        let mut request = Request::new(upload);
        *request.method_mut() = self.method;
        *request.uri_mut() = uri;
        *request.headers_mut() = self.fields;
        Ok(SignedRequest { request, progress, interim: self.interim })
    }

    /// Says how long the body is where hyper would say nothing: it leaves out the length of an empty body, for which
    /// servers answer 411 (RFC 9110 §8.6), and sends no stream of unknown length with a GET.
    fn frame(&mut self, upload: &Upload) {
        let takes_a_body = !matches!(self.method, Method::GET | Method::HEAD | Method::OPTIONS | Method::DELETE);
        match upload.size_hint().exact() {
            Some(0) if takes_a_body => self.fields.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0")),
            None => self.fields.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked")),
            Some(_) => None,
        };
    }

    fn add_signatures(
        &mut self,
        body: &[u8],
        route: &Route,
        now: Timestamp,
        record: &mut Record,
    ) -> Result<(), Refusal> {
        if route.signers.is_empty() {
            return Ok(()); // it was taken in whole for the client's signature, not for one of ours
        }
        let id = id(&self.fields, record.request_id())?;
        for signer in &route.signers {
            let changes =
                signer.mutations(&self.draft(body, now, &id)).map_err(|fault| self.unsigned(signer, fault))?;
            self.set(changes.headers);
            if let Some(changed) = changes.path_and_query {
                self.path_and_query = changed;
            }
        }
        for signer in &route.signers {
            let signature = signer.sign(&self.draft(body, now, &id)).map_err(|fault| self.unsigned(signer, fault))?;
            // What a client sent of them is not the signer's word, even where the signer has none.
            signer.headers().iter().for_each(|name| drop(self.fields.remove(name)));
            self.set(signature.headers);
            record.signed_by(signature.keys);
        }
        Ok(())
    }

    fn draft<'a>(&'a self, body: &'a [u8], now: Timestamp, id: &'a str) -> SigningInput<'a> {
        SigningInput {
            method: &self.method,
            target: &self.target,
            tenant: self.tenant.as_ref(),
            path_and_query: &self.path_and_query,
            headers: &self.fields,
            body,
            now,
            id,
        }
    }

    fn unsigned(&self, signer: &Signer, fault: SignError) -> Refusal {
        errors::unsigned(signer, self.tenant.as_ref(), fault)
    }

    fn set(&mut self, headers: Vec<(HeaderName, HeaderValue)>) {
        for (name, value) in headers {
            self.fields.insert(name, value);
        }
    }
}
