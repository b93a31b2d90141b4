//! Tests of the compiled credentials, and of the problem of each invalid one.
//! Does each mistake get its own message?

use std::collections::BTreeSet;

use http::header;

use super::*;
use crate::policy::fixture::{at, config, messages};

fn secret(text: &str) -> Located<Secret> {
    at(9, Secret::new(text.as_bytes().to_vec()))
}

fn compile_one(scheme: Authentication) -> Result<Arc<Credential>, Vec<String>> {
    let mut config = config();
    config.credentials.insert(CredentialName::new("acme"), at(8, config::Credential { scheme, plaintext: false }));
    let mut problems = vec![];
    let mut compiled = compile(&config, &mut problems);
    compiled.remove("acme").ok_or_else(|| messages(&problems))
}

fn value(credential: &Credential) -> (&str, String) {
    let CredentialValue::Static(value) = &credential.value else { panic!("a token") };
    assert!(value.is_sensitive());
    (credential.header.as_str(), value.to_str().unwrap().to_owned())
}

fn basic(username: &str, password: &str) -> Authentication {
    Authentication::Basic { username: at(7, username.into()), password: secret(password) }
}

fn header(name: &str, value: &str) -> Authentication {
    Authentication::Header { name: at(7, name.into()), value: secret(value) }
}

fn oauth2(change: impl FnOnce(&mut config::OAuth2)) -> Authentication {
    let mut written = config::OAuth2 {
        token_url: at(20, "https://login.example/token?x=1".into()),
        client_id: at(21, "s6BhdRkqt3".into()),
        client_secret: secret("7Fjfp0ZBr1KtDRbnfVdmIw"),
        client_auth: ClientAuth::Basic,
        scopes: vec![],
        audience: None,
        parameters: vec![],
    };
    change(&mut written);
    Authentication::OAuth2(Box::new(written))
}

fn oauth2_of(credential: &Credential) -> &OAuth2 {
    match &credential.value {
        CredentialValue::OAuth2(oauth2) => oauth2,
        CredentialValue::Static(_) => panic!("no token"),
    }
}

#[test]
fn credential_headers_have_the_value_of_their_scheme() {
    for (scheme, expected) in [
        // RFC 7617 §2.
        (basic("Aladdin", "open sesame"), ("authorization", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==")),
        (basic("Aladdin", "open:sesame"), ("authorization", "Basic QWxhZGRpbjpvcGVuOnNlc2FtZQ==")),
        (Authentication::Bearer { token: secret("mF_9.B5f-4.1JqM") }, ("authorization", "Bearer mF_9.B5f-4.1JqM")),
        (header("X-Api-Key", "k 1"), ("x-api-key", "k 1")),
        (header("Authorization", "ApiKey k"), ("authorization", "ApiKey k")),
    ] {
        let credential = compile_one(scheme).unwrap();
        let (name, value) = value(&credential);
        assert_eq!((name, value.as_str()), expected);
    }
}

#[test]
fn credentials_compile_reports_each_problem() {
    let no_endpoint = |reason: &str| format!("this is not a token endpoint: {reason}");
    let url = |text: &'static str| oauth2(|o| o.token_url.value = text.into());
    let named = |name: &'static str| oauth2(|o| o.parameters = vec![(at(1, name.into()), at(2, "x".into()))]);
    for (scheme, expected) in [
        (basic("a:b", "x"), "a user name must not have colons or control characters".to_owned()),
        (basic("a", "x\ny"), "a password must not have control characters".into()),
        (
            Authentication::Bearer { token: secret("Bearer x") },
            "this is not a bearer token: it has white space, is not ASCII, or is too long".into(),
        ),
        (header("X Key", "k"), "this cannot be the name of a header".into()),
        (header("Outgate-Tenant", "k"), "the header outgate-tenant cannot carry a credential".into()),
        (header("Proxy-Authorization", "k"), "the header proxy-authorization cannot carry a credential".into()),
        (header("Host", "k"), "the header host cannot carry a credential".into()),
        (header("Transfer-Encoding", "k"), "the header transfer-encoding cannot carry a credential".into()),
        (header("Webhook-Signature", "k"), "the header webhook-signature cannot carry a credential".into()),
        (header("X-Key", "a\r\nX: b"), "the value has characters other than visible ASCII".into()),
        (header("X-Key", "é"), "the value has characters other than visible ASCII".into()),
        (url("http://login.example/token"), no_endpoint("the URL must be https, since the request carries a secret")),
        (url("login.example/token"), no_endpoint("the text is not a URL")),
        (url("https://u:p@login.example/"), no_endpoint("the URL has a user name or password")),
        (url("https://login.example/#x"), no_endpoint("the URL has a fragment, which is never sent")),
        (url("https://login.example:0/"), no_endpoint("the port is not a number from 1 to 65535")),
        (url("https://127.1/"), no_endpoint("the host is not a host name")),
        (
            oauth2(|o| o.scopes = vec![at(1, "a\"b".into())]),
            "a scope must be visible ASCII without quotes and backslashes".into(),
        ),
        (named("grant_type"), "the parameter grant_type has a key of its own".into()),
        (named("scope"), "the parameter scope has a key of its own".into()),
        (named(""), "a parameter has no name".into()),
    ] {
        assert_eq!(compile_one(scheme).err(), Some(vec![expected]));
    }
}

#[test]
fn token_request_follows_the_client_credentials_grant() {
    let credential = compile_one(oauth2(|o| {
        o.scopes = vec![at(1, "a".into()), at(2, "b:c".into())];
        o.audience = Some(at(3, "https://api.example/?x".into()));
        o.parameters = vec![(at(4, "resource".into()), at(5, "ü &".into()))];
    }))
    .unwrap();
    let request = oauth2_of(&credential).request();
    assert_eq!((request.method.as_str(), &*request.target), ("POST", "/token?x=1"));
    // RFC 6749 §2.3.1.
    assert_eq!(
        request.fields.get(header::AUTHORIZATION).unwrap(),
        "Basic czZCaGRSa3F0Mzo3RmpmcDBaQnIxS3REUmJuZlZkbUl3"
    );
    assert_eq!(request.fields.get(header::HOST).unwrap(), "login.example");
    let expected =
        "grant_type=client_credentials&scope=a+b%3Ac&audience=https%3A%2F%2Fapi.example%2F%3Fx&resource=%C3%BC+%26";
    assert_eq!(request.body, expected.as_bytes());
}

/// Names and secrets are form-encoded before the `Basic` encoding; many clients encode them without that.
#[test]
fn token_request_authenticates_in_a_header_or_in_the_body() {
    let odd = |auth| {
        oauth2(move |o| {
            o.client_id.value = "a:b c".into();
            o.client_secret = secret("p+/%=é");
            o.client_auth = auth;
        })
    };
    let (header, body) = (compile_one(odd(ClientAuth::Basic)).unwrap(), compile_one(odd(ClientAuth::Body)).unwrap());
    let header = oauth2_of(&header).request();
    let value = header.fields.get(header::AUTHORIZATION).unwrap().to_str().unwrap().strip_prefix("Basic ").unwrap();
    let decoded = BASE64_STANDARD.decode(value).unwrap();
    assert_eq!(String::from_utf8(decoded).unwrap(), "a%3Ab+c:p%2B%2F%25%3D%C3%A9");
    assert_eq!(header.body, b"grant_type=client_credentials".as_slice());
    let body = oauth2_of(&body).request();
    assert!(!body.fields.contains(header::AUTHORIZATION));
    let expected = "grant_type=client_credentials&client_id=a%3Ab+c&client_secret=p%2B%2F%25%3D%C3%A9";
    assert_eq!(body.body, expected.as_bytes());
}

#[test]
fn token_endpoint_refused_by_the_guard_is_a_problem() {
    for (url, is_refused) in [
        ("https://login.acme.com/", false),
        ("https://login.acme.com:8443/", false),
        ("https://login.internal/", true),
        ("https://10.1.2.3/", true),
        ("https://[::1]/", true),
        ("https://169.254.169.254/", true),
    ] {
        let mut config = config();
        let scheme = oauth2(|o| o.token_url.value = url.into());
        config.credentials.insert(CredentialName::new("acme"), at(8, config::Credential { scheme, plaintext: false }));
        let (mut problems, guard) = (vec![], Guard::compile(&config, &mut vec![]));
        let credentials = compile(&config, &mut problems);
        check_guard(&config, &credentials, &guard, &mut problems);
        let expected = is_refused.then_some("the guard refuses this token endpoint".to_owned());
        assert_eq!(messages(&problems), Vec::from_iter(expected), "{url}");
    }
}

#[test]
fn token_fingerprint_covers_everything_sent_to_the_endpoint() {
    let fingerprint = |change: fn(&mut config::OAuth2)| oauth2_of(&compile_one(oauth2(change)).unwrap()).fingerprint;
    let changes: [fn(&mut config::OAuth2); 6] = [
        |_| {},
        |o| o.client_secret = secret("other"),
        |o| o.client_id.value = "other".into(),
        |o| o.client_auth = ClientAuth::Body,
        |o| o.scopes = vec![at(1, "a".into())],
        |o| o.token_url.value = "https://login.example:8443/token?x=1".into(),
    ];
    let fingerprints: BTreeSet<_> = changes.into_iter().map(fingerprint).collect();
    assert_eq!(fingerprints.len(), changes.len());
    assert_eq!(fingerprint(|_| {}), fingerprint(|o| o.token_url.value = "https://LOGIN.example:443/token?x=1".into()));
}

/// Tokens are shared under the fingerprint of their request. A credential without tokens has none.
#[test]
fn credential_has_the_tokens_of_its_own_request() {
    let [one, other] =
        [|_: &mut config::OAuth2| {}, |written: &mut config::OAuth2| written.client_id.value = "x".into()]
            .map(|change: fn(&mut config::OAuth2)| compile_one(oauth2(change)).unwrap());
    let fingerprint = oauth2_of(&one).fingerprint;
    assert!(one.has_fingerprint(&fingerprint) && !other.has_fingerprint(&fingerprint));
    assert!(!compile_one(header("X-Key", "k")).unwrap().has_fingerprint(&fingerprint));
}
