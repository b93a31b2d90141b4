//! The refusals of the admin API, as problem details (RFC 9457).
//! Why was a call refused, and what should the caller change?

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde_json::json;

use super::build_response;
use crate::config::AdminRole;
use crate::state::fleet::FleetError;

/// A refused call.
#[derive(Debug)]
pub(super) struct AdminProblem {
    status: StatusCode,
    detail: Cow<'static, str>,
    /// The parameter or member whose value is wrong.
    field: Option<String>,
    /// The role that the call needs.
    role: Option<AdminRole>,
    /// The methods of the resource.
    allow: Option<String>,
}

impl AdminProblem {
    pub(super) fn new(status: StatusCode, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { status, detail: detail.into(), field: None, role: None, allow: None }
    }

    /// A parameter or a member of the body has a wrong value.
    pub(super) fn field(field: &str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { field: Some(field.to_owned()), ..Self::new(StatusCode::BAD_REQUEST, detail) }
    }

    pub(super) fn missing_role(role: AdminRole) -> Self {
        let detail = format!("this call needs the role {}", role.as_str());
        Self { role: Some(role), ..Self::new(StatusCode::FORBIDDEN, detail) }
    }

    /// The call contradicts the state of the proxy.
    pub(super) fn conflict(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::CONFLICT, detail)
    }

    pub(super) fn method(allow: String) -> Self {
        let detail = format!("this resource has the methods {allow}");
        Self { allow: Some(allow), ..Self::new(StatusCode::METHOD_NOT_ALLOWED, detail) }
    }

    pub(super) fn not_rendered() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "outgate could not render this response: see its log")
    }

    pub(super) fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "outgate is stopping")
    }

    #[cfg(test)]
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }
}

impl From<FleetError> for AdminProblem {
    fn from(error: FleetError) -> Self {
        let status = match error {
            FleetError::Store(_) | FleetError::Bucket(_) => StatusCode::SERVICE_UNAVAILABLE,
            FleetError::Range(_) | FleetError::Conflict(_) => StatusCode::CONFLICT,
        };
        Self::new(status, error.to_string())
    }
}

impl From<AdminProblem> for Response<Full<Bytes>> {
    fn from(problem: AdminProblem) -> Self {
        let AdminProblem { status, detail, field, role, allow } = problem;
        let mut body = json!({
            "type": "about:blank", "title": status.canonical_reason(), "status": status.as_u16(), "detail": detail,
        });
        for (name, value) in [("field", field), ("role", role.map(|role| role.as_str().to_owned()))] {
            if let Some(value) = value {
                body[name] = value.into();
            }
        }
        let mut response = build_response(status, "application/problem+json", body.to_string());
        let headers = response.headers_mut();
        if status == StatusCode::UNAUTHORIZED {
            // Basic first: a browser asks its user for a name and a token.
            for challenge in ["Basic realm=\"outgate admin\", charset=\"UTF-8\"", "Bearer realm=\"outgate admin\""] {
                headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
            }
        }
        headers.extend(allow.and_then(|allow| Some((header::ALLOW, HeaderValue::from_str(&allow).ok()?))));
        response
    }
}
