//! Tests with tokens of Twilio's libraries, with tokens made here, and with forged or malformed ones.
//! Is a request accepted exactly if its client signed it?

use super::*;
use crate::config::{self, Config};
use crate::http_message::Fields;
use crate::policy::authn::{Caller, PresentedCredentials};
use crate::policy::fixture::{self, at, config};
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{KeyPair, RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaEncoding, RsaKeyPair};
use base64::prelude::BASE64_STANDARD;
use http::header::CONNECTION;
use http::{HeaderName, HeaderValue, Method};
use serde_json::{Value, json};

use crate::names::ClientName;

const NOW: i64 = 1_735_689_900;

fn clients(name: &str, der: &[u8]) -> Clients {
    let key = config::PublicKey { path: "a.pem".into(), der: der.to_vec() };
    let client = config::Client { public_keys: vec![at(11, key)], ..fixture::client() };
    let mut problems = vec![];
    let config = Config { clients: [(ClientName::new(name), at(10, client))].into(), ..config() };
    let clients = Clients::compile(&config, &mut problems);
    assert!(problems.is_empty(), "{problems:?}");
    clients
}

fn fields(list: &[(&str, &str)]) -> Fields {
    let mut fields = Fields::default();
    for (name, value) in list {
        fields.append_parsed(&[httparse::Header { name, value: value.as_bytes() }], 0);
    }
    fields
}

#[test]
fn client_validation_reads_tokens_up_to_the_maximum() {
    let token = |length: usize| [b"a.b.".as_slice(), &b"c".repeat(length - 4)].concat();
    assert_eq!(split(&token(TOKEN_MAX)).map(|(signed, _)| signed), Some("a.b"));
    assert_eq!(split(&token(TOKEN_MAX + 1)), None);
}

#[test]
fn client_validation_accepts_the_token_of_the_official_library() {
    let vectors: Value =
        serde_json::from_str(include_str!("../../../../tests/vectors/twilio_client_validation.json")).unwrap();
    let vector = &vectors["token"];
    let text = |key: &str| vector[key].as_str().unwrap();
    let clients = clients(text("iss"), &BASE64_STANDARD.decode(text("public_key")).unwrap());
    let fields = fields(&[("authorization", "foobar"), ("host", "api.twilio.com")]);
    assert_eq!(text("target"), "/Messages?PageSize=5&Limit=10");
    let target = "/Messages?Limit=10&PageSize=5";
    let request = SignableRequest { method: &Method::GET, target, fields: &fields, has_body: true };
    let at = |now, request: &SignableRequest<'_>| verify(&clients, text("value").as_bytes(), request, now);
    let (client, signed) = at(NOW, &request).unwrap();
    assert_eq!((client.name().as_str(), signed.replay_token.valid_until), ("SK123", vector["exp"].as_i64().unwrap()));
    let body_check = signed.body_check.unwrap();
    assert_eq!(body_check.verify(b"foobar"), Ok(()));
    assert!(body_check.verify(b"foobaz").is_err() && body_check.verify(b"").is_err());
    // The hash covers the sorted query, so anyone could change the order of the parameters.
    let unsorted = "the query's parameters are not sorted, so the request hash does not cover their order";
    assert_eq!(
        at(NOW, &SignableRequest { target: text("target"), ..request }).err(),
        Some(AuthnError::Signature(unsorted))
    );
    // The form that the Python library sends through a proxy.
    let target = "http://api.twilio.com/Messages?Limit=10&PageSize=5";
    assert!(at(NOW, &SignableRequest { target, ..request }).unwrap().1.body_check.unwrap().verify(b"foobar").is_ok());
    let other =
        at(NOW, &SignableRequest { target: "http://api.twilio.com/Messages?Limit=11&PageSize=5", ..request }).unwrap();
    assert!(other.1.body_check.unwrap().verify(b"foobar").is_err());
    assert!(
        at(NOW, &SignableRequest { target: "http://evil.example/Messages?PageSize=5&Limit=10", ..request }).is_err()
    );
    // The validity period.
    assert!(at(NOW + 299, &request).is_ok() && at(NOW + 300, &request).is_err());
    assert!(at(NOW - 60, &request).is_ok() && at(NOW - 61, &request).is_err());
}

struct Bench {
    key: RsaKeyPair,
    clients: Clients,
    fields: Fields,
}

impl Bench {
    fn new() -> Self {
        let key = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let der: PublicKeyX509Der<'static> = key.public_key().as_der().unwrap();
        let clients = clients("billing", der.as_ref());
        Self { key, clients, fields: fields(&[("host", "hook.example"), ("authorization", "Basic eDp5")]) }
    }

    fn request(&self) -> SignableRequest<'_> {
        SignableRequest {
            method: &Method::POST,
            target: "http://hook.example/in",
            fields: &self.fields,
            has_body: false,
        }
    }

    fn claims(&self) -> Value {
        let text = "POST\n/in\n\nauthorization:Basic eDp5\nhost:hook.example\n\nauthorization;host\n";
        let rqh: String = crate::digest::sha256(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        json!({ "iss": "billing", "exp": NOW + 300, "hrh": "authorization;host", "rqh": rqh })
    }

    fn signed(&self, header: &str, claims: &str, encoding: &'static dyn RsaEncoding) -> String {
        let input = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key.sign(encoding, &SystemRandom::new(), input.as_bytes(), &mut signature).unwrap();
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn presented<'a>(&'a self, caller: &'a Caller, token: &'a str, has_body: bool) -> PresentedCredentials<'a> {
        PresentedCredentials {
            caller,
            proxy_authorization: None,
            client_validation: Some(token.as_bytes()),
            request: SignableRequest { has_body, ..self.request() },
        }
    }

    fn verify(&self, token: &str) -> Result<String, AuthnError> {
        self.verify_request(token, &self.request())
    }

    fn verify_request(&self, token: &str, request: &SignableRequest<'_>) -> Result<String, AuthnError> {
        verify(&self.clients, token.as_bytes(), request, NOW).map(|(client, _)| client.name().to_string())
    }

    fn with(&self, change: impl FnOnce(&mut Value)) -> Result<String, AuthnError> {
        let mut claims = self.claims();
        change(&mut claims);
        self.verify(&self.signed(HEADER, &claims.to_string(), &RSA_PKCS1_SHA256))
    }
}

const HEADER: &str = r#"{"alg":"RS256","cty":"twilio-pkrv;v=1","typ":"JWT","kid":"CR1"}"#;
const WHY_FORM: AuthnError =
    AuthnError::Signature("Twilio-Client-Validation is not a JSON Web Token of header, claims and signature");

#[test]
fn client_validation_accepts_rs256_and_ps256_only() {
    let bench = Bench::new();
    let claims = bench.claims().to_string();
    let ok = Ok("billing".to_owned());
    assert_eq!(bench.verify(&bench.signed(HEADER, &claims, &RSA_PKCS1_SHA256)), ok);
    let pss = HEADER.replace("RS256", "PS256");
    assert_eq!(bench.verify(&bench.signed(&pss, &claims, &RSA_PSS_SHA256)), ok);
    // The header names one algorithm, and the signature uses the other.
    assert_eq!(bench.verify(&bench.signed(HEADER, &claims, &RSA_PSS_SHA256)), Err(AuthnError::Invalid));
    assert_eq!(bench.verify(&bench.signed(&pss, &claims, &RSA_PKCS1_SHA256)), Err(AuthnError::Invalid));
    let reason = Err(AuthnError::Signature("alg is neither RS256 nor PS256"));
    for alg in ["none", "None", "HS256", "RS384", "ES256", "rs256", ""] {
        let header = HEADER.replace("RS256", alg);
        assert_eq!(bench.verify(&bench.signed(&header, &claims, &RSA_PKCS1_SHA256)), reason, "{alg}");
        let unsigned = format!("{}.{}.", URL_SAFE_NO_PAD.encode(&header), URL_SAFE_NO_PAD.encode(&claims));
        assert_eq!(bench.verify(&unsigned), reason, "{alg}");
    }
    // The public key, which is no secret, used as an HMAC key.
    let der: PublicKeyX509Der<'static> = bench.key.public_key().as_der().unwrap();
    let header = URL_SAFE_NO_PAD.encode(HEADER.replace("RS256", "HS256"));
    let input = format!("{header}.{}", URL_SAFE_NO_PAD.encode(&claims));
    let hmac = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, der.as_ref());
    let tag = aws_lc_rs::hmac::sign(&hmac, input.as_bytes());
    assert_eq!(bench.verify(&format!("{input}.{}", URL_SAFE_NO_PAD.encode(tag))), reason);
}

/// A request is authenticated in part until the fleet has seen its signature and its body has been read.
#[test]
fn client_validation_leaves_the_replay_and_the_body_to_check() {
    let bench = Bench::new();
    let token = bench.signed(HEADER, &bench.claims().to_string(), &RSA_PKCS1_SHA256);
    let caller = Caller::default();
    let now = jiff::Timestamp::from_second(NOW).unwrap();
    for has_body in [false, true] {
        let found = bench.clients.authenticate(&bench.presented(&caller, &token, has_body), now).unwrap();
        assert_eq!((found.client().name().as_str(), found.proof()), ("billing", Some(config::AuthMethod::Signature)));
        assert_eq!(found.replay_token().unwrap().valid_until(), NOW + 300);
        let (replay_token, body_check) = found.into_checks();
        assert_eq!((replay_token.unwrap().valid_until(), body_check.is_some()), (NOW + 300, has_body));
    }
    // The client is known by the name in a token that does not verify; a name of no client is not shown.
    let claimed = |issuer: &str| {
        let mut claims = bench.claims();
        claims["iss"] = issuer.into();
        let token = bench.signed(HEADER, &claims.to_string(), &RSA_PSS_SHA256);
        let credentials = bench.presented(&caller, &token, false);
        assert!(bench.clients.authenticate(&credentials, now).is_err());
        bench.clients.claimed_client(&credentials).map(str::to_owned)
    };
    assert_eq!([claimed("billing"), claimed("crm")], ["billing", "unknown"].map(|name| Some(name.to_owned())));
    assert_eq!(bench.clients.claimed_client(&bench.presented(&caller, "a.b.c", false)), None);
}

#[test]
fn client_validation_refuses_malformed_or_expired_claims() {
    let bench = Bench::new();
    let reason = |reason| Err(AuthnError::Signature(reason));
    const TYPES: &str = "iss, exp, hrh or rqh is missing or of another type";
    const LATE: &str = "it expires later than in 300 seconds";
    const NAMES: &str = "hrh is not a sorted list of different names in lower case";
    for exp in [json!(NOW + 361), json!(i64::MAX)] {
        assert_eq!(bench.with(|claims| claims["exp"] = exp), reason(LATE));
    }
    for exp in [json!("soon"), json!(1e300), json!(u64::MAX), json!(1.5), json!(null)] {
        assert_eq!(bench.with(|claims| claims["exp"] = exp.clone()), reason(TYPES), "{exp}");
    }
    for exp in [NOW, 0, i64::MIN] {
        assert_eq!(bench.with(|claims| claims["exp"] = json!(exp)), reason("it has expired"), "{exp}");
    }
    assert_eq!(bench.with(|claims| claims["nbf"] = json!(NOW + 61)), reason("it is not valid yet"));
    assert_eq!(bench.with(|claims| claims["nbf"] = json!(NOW + 60)), Ok("billing".into()));
    assert_eq!(bench.with(|claims| claims["sub"] = json!("AC1")), Ok("billing".into()));
    assert_eq!(bench.with(|claims| claims["iss"] = json!("crm")), Err(AuthnError::Invalid));
    for (hrh, expected) in [
        ("host;authorization", NAMES),
        ("host;host", NAMES),
        ("Host;authorization", NAMES),
        ("", NAMES),
        ("authorization", "hrh does not name host"),
        ("host", "hrh does not name authorization"),
        ("authorization;host;x-none", "hrh names a field that the request does not have"),
        ("authorization;host;x y", "hrh names a field that the request does not have"),
    ] {
        assert_eq!(bench.with(|claims| claims["hrh"] = json!(hrh)), reason(expected), "{hrh}");
    }
    let changed = reason("the request differs from the one that was signed");
    for rqh in ["", "zz", &"0".repeat(64)] {
        assert_eq!(bench.with(|claims| claims["rqh"] = json!(rqh)), changed);
    }
    let twice = bench.claims().to_string().replacen('{', r#"{"iss":"crm","#, 1);
    assert_eq!(bench.verify(&bench.signed(HEADER, &twice, &RSA_PKCS1_SHA256)), reason(TYPES));
}

#[test]
fn client_validation_refuses_malformed_tokens() {
    let bench = Bench::new();
    let claims = bench.claims().to_string();
    let good = bench.signed(HEADER, &claims, &RSA_PKCS1_SHA256);
    for bad in
        ["", ".", "..", "a.b.c", &format!("{good}="), &format!("{good}.x"), &format!(".{good}"), &"a.".repeat(5000)]
    {
        assert_eq!(bench.verify(bad), Err(WHY_FORM), "{bad}");
    }
    let (signed, signature) = good.rsplit_once('.').unwrap();
    assert_eq!(bench.verify(&format!("{signed}.")), Err(AuthnError::Invalid));
    assert_eq!(bench.verify(&format!("{signed}.{}", &signature[4..])), Err(AuthnError::Invalid));
    let other = Bench::new().signed(HEADER, &claims, &RSA_PKCS1_SHA256);
    assert_eq!(bench.verify(&other), Err(AuthnError::Invalid));
    for (header, reason) in [
        (HEADER.replace("v=1", "v=2"), "cty is not twilio-pkrv;v=1"),
        (HEADER.replace("JWT", "JOSE"), "the token's header has crit, or a typ other than JWT"),
        (
            HEADER.replacen('{', r#"{"crit":["b64"],"b64":false,"#, 1),
            "the token's header has crit, or a typ other than JWT",
        ),
    ] {
        let token = bench.signed(&header, &claims, &RSA_PKCS1_SHA256);
        assert_eq!(bench.verify(&token), Err(AuthnError::Signature(reason)));
    }
    assert_eq!(bench.verify(&bench.signed("[]", &claims, &RSA_PKCS1_SHA256)), Err(WHY_FORM));
}

#[test]
fn client_validation_refuses_a_covered_field_named_by_connection() {
    let bench = Bench::new();
    let good = bench.signed(HEADER, &bench.claims().to_string(), &RSA_PKCS1_SHA256);
    for (connection, expected) in [
        ("close, Authorization", Err(AuthnError::Signature(REMOVED_BY_CONNECTION))),
        ("close, x-other", Ok("billing".into())),
    ] {
        let mut fields = bench.fields.clone();
        fields.append(CONNECTION, &HeaderValue::from_static(connection));
        assert_eq!(
            bench.verify_request(&good, &SignableRequest { fields: &fields, ..bench.request() }),
            expected,
            "{connection}"
        );
    }
}

#[test]
fn client_validation_requires_the_target_to_be_signed() {
    let bench = Bench::new();
    let good = bench.signed(HEADER, &bench.claims().to_string(), &RSA_PKCS1_SHA256);
    let verify = |request: SignableRequest<'_>| bench.verify_request(&good, &request);
    assert_eq!(verify(bench.request()), Ok("billing".into()));
    let elsewhere = AuthnError::Signature("the signed Host differs from the request's target");
    assert_eq!(verify(SignableRequest { target: "http://evil.example/in", ..bench.request() }), Err(elsewhere));
    let changed = AuthnError::Signature("the request differs from the one that was signed");
    assert_eq!(verify(SignableRequest { target: "http://hook.example/in?x", ..bench.request() }), Err(changed));
    assert_eq!(verify(SignableRequest { method: &Method::GET, ..bench.request() }), Err(changed));
    let mut fields = bench.fields.clone();
    fields.append(HeaderName::from_static("outgate-target"), &HeaderValue::from_static("https://evil.example/"));
    let unsigned = AuthnError::Signature("hrh does not name outgate-target");
    assert_eq!(verify(SignableRequest { target: "/in", fields: &fields, ..bench.request() }), Err(unsigned));
}
