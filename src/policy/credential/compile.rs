//! The compilation of credentials.
//! Is this credential a valid header for a target?

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use form_urlencoded::byte_serialize;
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, header};
use zeroize::Zeroizing;

use super::{Credential, CredentialValue, OAuth2, bearer, secret_bytes, secret_value};
use crate::config::{self, Authentication, ClientAuth, Config, Located, Problem, Secret, parse_url};
use crate::digest::Fingerprint;
use crate::names::{CredentialName, Scheme, Target};
use crate::policy::guard::{Guard, LocalAddresses};

/// Headers that frame the message, belong to the connection, or carry a signature.
const RESERVED_HEADERS: [&str; 23] = [
    "connection",
    "content-digest",
    "content-encoding",
    "content-length",
    "content-type",
    "date",
    "expect",
    "forwarded",
    "host",
    "http2-settings",
    "keep-alive",
    "max-forwards",
    "signature",
    "signature-input",
    "te",
    "trailer",
    "transfer-encoding",
    "twilio-client-validation",
    "upgrade",
    "via",
    "webhook-id",
    "webhook-signature",
    "webhook-timestamp",
];

/// Parameters of the grant that other keys configure.
const RESERVED_PARAMETERS: [&str; 6] =
    ["grant_type", "client_id", "client_secret", "scope", "client_assertion", "client_assertion_type"];

pub fn compile(config: &Config, problems: &mut Vec<Problem>) -> BTreeMap<CredentialName, Arc<Credential>> {
    let credential = |(name, written): (&CredentialName, &Located<config::Credential>)| {
        let (kind, header, proof) = match &written.scheme {
            Authentication::Basic { username, password } => {
                ("basic", header::AUTHORIZATION, CredentialValue::Static(basic(username, password, problems)?))
            }
            Authentication::Bearer { token } => {
                ("bearer", header::AUTHORIZATION, CredentialValue::Static(bearer_value(token, problems)?))
            }
            Authentication::Header { name, value } => {
                let (name, value) = (header_name(name, problems), header_value(value, problems));
                ("header", name?, CredentialValue::Static(value?))
            }
            Authentication::OAuth2(written) => {
                ("oauth2", header::AUTHORIZATION, CredentialValue::OAuth2(Arc::new(oauth2(name, written, problems)?)))
            }
        };
        let allows_plaintext = written.plaintext;
        Some((name.clone(), Arc::new(Credential { name: name.clone(), header, value: proof, allows_plaintext, kind })))
    };
    config.credentials.iter().filter_map(credential).collect()
}

/// Reports token endpoints that the guard refuses, as far as that is known without DNS.
pub fn check_guard(
    config: &Config,
    credentials: &BTreeMap<CredentialName, Arc<Credential>>,
    guard: &Guard,
    problems: &mut Vec<Problem>,
) {
    for (name, written) in &config.credentials {
        let Authentication::OAuth2(written) = &written.scheme else { continue };
        let Some(CredentialValue::OAuth2(oauth2)) = credentials.get(name).map(|credential| &credential.value) else {
            continue;
        };
        let endpoint = &oauth2.endpoint;
        let checked = guard.check_name(endpoint, &[endpoint.port], false);
        if checked.is_err() || guard.clear(endpoint, &[], &LocalAddresses::default()).is_err() {
            let problem = Problem::at(written.token_url.span, "the guard refuses this token endpoint");
            problems.push(problem.help("to permit it, add its address to guard.allow, or its name to resolver.hosts"));
        }
    }
}

/// Validates a `Basic` credential (RFC 7617 §2): the first colon ends the name, and neither part has control
/// characters.
fn basic(username: &Located<String>, password: &Located<Secret>, problems: &mut Vec<Problem>) -> Option<HeaderValue> {
    let mut is_valid = true;
    if username.contains(':') || username.contains(char::is_control) {
        let problem = Problem::at(username.span, "a user name must not have colons or control characters");
        problems.push(
            problem.help("remove them: the target would read the text after a colon as the password (RFC 7617 §2)"),
        );
        is_valid = false;
    }
    if password.expose().iter().any(u8::is_ascii_control) {
        let problem = Problem::at(password.span, "a password must not have control characters");
        problems.push(
            problem.help("write only the password, on one line, into the file or variable that this reference names"),
        );
        is_valid = false;
    }
    is_valid.then(|| basic_value(username.as_bytes(), password.expose())).flatten()
}

fn basic_value(user: &[u8], password: &[u8]) -> Option<HeaderValue> {
    let pair = secret_bytes(&[user, b":", password]);
    let mut encoded = Zeroizing::new(vec![0; pair.len().div_ceil(3) * 4]);
    let length = BASE64_STANDARD.encode_slice(&pair, &mut encoded).ok()?;
    secret_value(&[b"Basic ", encoded.get(..length)?])
}

fn bearer_value(token: &Located<Secret>, problems: &mut Vec<Problem>) -> Option<HeaderValue> {
    let value = bearer(token.expose());
    if value.is_none() {
        let problem =
            Problem::at(token.span, "this is not a bearer token: it has white space, is not ASCII, or is too long");
        problems.push(
            problem
                .help("write only the token, without \"Bearer\", into the file or variable that this reference names"),
        );
    }
    value
}

fn header_name(written: &Located<String>, problems: &mut Vec<Problem>) -> Option<HeaderName> {
    let Ok(name) = HeaderName::try_from(written.as_str()) else {
        let problem = Problem::at(written.span, "this cannot be the name of a header");
        problems.push(problem.help("write letters, digits and hyphens: \"X-Api-Key\""));
        return None;
    };
    let is_proxy_field = name.as_str().starts_with("outgate-") || name.as_str().starts_with("proxy-");
    if is_proxy_field || RESERVED_HEADERS.contains(&name.as_str()) {
        let problem = Problem::at(written.span, format!("the header {name} cannot carry a credential"));
        problems.push(problem.help("write a header that has no other meaning: \"Authorization\", \"X-Api-Key\""));
        return None;
    }
    Some(name)
}

/// Validates a field value (RFC 9110 §5.5) without its obsolete forms.
fn header_value(written: &Located<Secret>, problems: &mut Vec<Problem>) -> Option<HeaderValue> {
    let is_text = written.expose().iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ');
    if !is_text {
        let problem = Problem::at(written.span, "the value has characters other than visible ASCII");
        problems.push(
            problem.help("write visible ASCII, on one line, into the file or variable that this reference names"),
        );
        return None;
    }
    secret_value(&[written.expose()])
}

fn oauth2(name: &CredentialName, written: &config::OAuth2, problems: &mut Vec<Problem>) -> Option<OAuth2> {
    let before = problems.len();
    let endpoint = endpoint(&written.token_url).map_err(|(reason, help)| {
        problems
            .push(Problem::at(written.token_url.span, format!("this is not a token endpoint: {reason}")).help(help));
    });
    check_scopes(&written.scopes, problems);
    check_parameters(written, problems);
    if problems.len() > before {
        return None;
    }
    let (endpoint, path_and_query) = endpoint.ok()?;
    let (id, secret) = (written.client_id.as_bytes(), written.client_secret.expose());
    let authorization = match written.client_auth {
        // RFC 6749 §2.3.1: each part is form-encoded before both become a `Basic` credential.
        ClientAuth::Basic => Some(basic_value(&encoded(id), &encoded(secret))?),
        ClientAuth::Body => None,
    };
    let body = form(written);
    let authority = endpoint.authority().to_string();
    let proof = authorization.as_ref().map(HeaderValue::as_bytes).unwrap_or_default();
    let fingerprinted: [&[u8]; 5] =
        [name.as_str().as_bytes(), authority.as_bytes(), path_and_query.as_str().as_bytes(), proof, &body];
    let fingerprint = Fingerprint::of_parts(fingerprinted);
    Some(OAuth2 { credential: name.clone(), fingerprint, endpoint, path_and_query, authorization, body })
}

/// The reason why a text is no token endpoint, and the text of its help.
type EndpointError = (&'static str, &'static str);

/// Parses the URL of a token endpoint, which has https and no fragment (RFC 6749 §3.2).
fn endpoint(text: &str) -> Result<(Target, PathAndQuery), EndpointError> {
    const HELP: &str = "write \"https://login.acme.example/oauth2/token\"";
    let (target, path_and_query) = parse_url(text).map_err(|reason| (reason, HELP))?;
    if target.scheme != Scheme::Https {
        return Err(("the URL must be https, since the request carries a secret", HELP));
    }
    Ok((target, path_and_query))
}

/// Validates each scope as a `scope-token` (RFC 6749 §3.3).
fn check_scopes(scopes: &[Located<String>], problems: &mut Vec<Problem>) {
    for scope in scopes {
        if !scope.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"\\".contains(&byte)) {
            let problem = Problem::at(scope.span, "a scope must be visible ASCII without quotes and backslashes");
            problems.push(problem.help("write each scope as in the documentation of the token endpoint"));
        }
    }
}

/// Reports parameters that would occur twice (RFC 6749 §3.2).
fn check_parameters(written: &config::OAuth2, problems: &mut Vec<Problem>) {
    for (name, _) in &written.parameters {
        if name.is_empty() {
            problems.push(Problem::at(name.span, "a parameter has no name").help("remove the parameter"));
        }
        let is_reserved_audience = name.as_str() == "audience" && written.audience.is_some();
        if RESERVED_PARAMETERS.contains(&name.as_str()) || is_reserved_audience {
            let problem = Problem::at(name.span, format!("the parameter {} has a key of its own", name.value));
            problems.push(problem.help("remove it: use client_id, client_secret, scopes and audience"));
        }
    }
}

/// Returns the body of the token request (RFC 6749 §4.4.2).
fn form(written: &config::OAuth2) -> Bytes {
    let scopes = written.scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(" ");
    let mut fields: Vec<(&str, &[u8])> = vec![("grant_type", b"client_credentials")];
    if !scopes.is_empty() {
        fields.push(("scope", scopes.as_bytes()));
    }
    fields.extend(written.audience.iter().map(|audience| ("audience", audience.as_bytes())));
    fields.extend(written.parameters.iter().map(|(name, value)| (name.as_str(), value.as_bytes())));
    if written.client_auth == ClientAuth::Body {
        fields.push(("client_id", written.client_id.as_bytes()));
        fields.push(("client_secret", written.client_secret.expose()));
    }
    let pairs = fields.into_iter().map(|(name, value)| [encoded(name.as_bytes()), encoded(value)]);
    let mut parts: Vec<Zeroizing<Vec<u8>>> = Vec::new();
    for [name, value] in pairs {
        let separator: &[u8] = if parts.is_empty() { b"" } else { b"&" };
        parts.extend([Zeroizing::new(separator.to_vec()), name, Zeroizing::new(b"=".to_vec()), value]);
    }
    secret_bytes(&parts.iter().map(|part| part.as_slice()).collect::<Vec<_>>())
}

/// Encodes as `application/x-www-form-urlencoded` (RFC 6749 Appendix B). The buffer never grows, so no copy of a secret
/// stays in memory.
fn encoded(bytes: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut encoded = Zeroizing::new(Vec::with_capacity(3 * bytes.len()));
    byte_serialize(bytes).for_each(|piece| encoded.extend_from_slice(piece.as_bytes()));
    encoded
}

#[cfg(test)]
mod tests;
