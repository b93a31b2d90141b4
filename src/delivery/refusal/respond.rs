//! The response that a refused client gets.
//! Which fields and which body tell the client what went wrong?

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;

use super::table::Blame;
use super::{Code, Refusal};
use crate::http_message::{Response, Text};
use crate::policy::limits;
use crate::policy::redact::{Redacted, Redactor};

static OUTGATE_ERROR: HeaderName = HeaderName::from_static("outgate-error");
pub(in crate::delivery) static PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

impl Refusal {
    /// Returns the response: RFC 9457 problem details, with the fields that distinguish it from a target's response.
    pub fn respond(self, pseudonym: &str, request_id: &str, redactor: &Redactor) -> Response<Bytes> {
        let row = self.code.row();
        let status = self.effective_status();
        let problem = ProblemDetails {
            kind: "about:blank",
            title: row.title,
            status: status.as_u16(),
            detail: self.detail(redactor),
            code: row.name,
            blame: self.effective_blame(),
            retryable: self.is_retryable(),
            details: self.context.details,
            request_id,
        };
        let body = Bytes::from(serde_json::to_vec(&problem).expect("strings and numbers always serialise"));
        let mut response = Response { reason: Some(self.reason().into()), ..Response::new(status, body) };
        let fields = &mut response.fields;
        fields.insert(header::CONTENT_TYPE, &HeaderValue::from_static("application/problem+json"));
        fields.insert(&OUTGATE_ERROR, &HeaderValue::from_static(row.name));
        fields.insert(&PROXY_STATUS, &self.proxy_status_field(pseudonym));
        if status == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            fields.append(
                header::PROXY_AUTHENTICATE,
                &HeaderValue::from_static("Basic realm=\"outgate\", charset=\"UTF-8\""),
            );
            fields.append(header::PROXY_AUTHENTICATE, &HeaderValue::from_static("Bearer realm=\"outgate\""));
        }
        if let Some(wait) = self.context.retry_after {
            fields.insert(header::RETRY_AFTER, Text(limits::whole_seconds(wait)));
        }
        if matches!(self.code, Code::Draining | Code::BodyTimeout) {
            fields.insert(header::CONNECTION, &HeaderValue::from_static("close"));
        }
        for (name, value) in self.context.fields {
            fields.append(name, &value);
        }
        response
    }

    fn proxy_status_field(&self, pseudonym: &str) -> HeaderValue {
        let row = self.code.row();
        let error = self.context.proxy_status.unwrap_or(row.proxy_status);
        let details = self.context.details.unwrap_or(row.name);
        let alert = self.context.alert.map(|(id, name)| format!("; alert-id={id}; alert-message=\"{name}\""));
        let alert = alert.unwrap_or_default();
        HeaderValue::from_str(&format!("{pseudonym}; error={error}{alert}; details=\"{details}\""))
            .unwrap_or(HeaderValue::from_static("outgate; error=proxy_internal_error"))
    }
}

/// The members of RFC 9457 §3.1, and outgate's extension members.
#[derive(Serialize)]
struct ProblemDetails<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: Redacted<'a>,
    code: &'static str,
    blame: Blame,
    retryable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<&'static str>,
    request_id: &'a str,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn refusal_response_has_its_row_and_no_internal_cause() {
        let refusal = Refusal::new(Code::TargetForbidden, "hooks.example is not a public host")
            .with_cause("10.0.0.1 is Private-Use");
        let response = refusal.respond("outgate", "0123", &Redactor::default());
        assert_eq!(response.status, 502);
        assert_eq!(response.fields.get("outgate-error").unwrap(), "target_forbidden");
        assert_eq!(
            response.fields.get("proxy-status").unwrap(),
            "outgate; error=destination_ip_prohibited; details=\"target_forbidden\""
        );
        let body = String::from_utf8(response.body.to_vec()).unwrap();
        assert!(!body.contains("10.0.0.1"), "{body}");
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["blame"], "client");
        assert_eq!(body["retryable"], false);
        assert_eq!(body["request_id"], "0123");
    }

    #[test]
    fn retry_after_is_rounded_up_to_whole_seconds() {
        let retry_after_field = |wait| {
            let refusal = Refusal::new(Code::RateLimited, "").retry_after(wait);
            let response = refusal.respond("outgate", "0", &Redactor::default());
            response.fields.get("retry-after").unwrap().to_str().unwrap().to_owned()
        };
        assert_eq!(retry_after_field(Duration::from_millis(1)), "1");
        assert_eq!(retry_after_field(Duration::from_millis(1001)), "2");
        assert_eq!(retry_after_field(Duration::from_secs(7)), "7");
    }
}
