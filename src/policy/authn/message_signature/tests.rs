//! Tests with the signatures of RFC 9421, with signatures made here, and with forged or malformed ones.
//! Is a request accepted exactly if its client signed it?

use super::*;
use crate::config::{self, Config};
use crate::names::ClientName;
use crate::policy::authn::public_key::VerifyingKey;
use crate::policy::fixture::{self, at, config};
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::Method;
use serde_json::Value;

const NOW: i64 = 1_735_689_900;
const BODY: &str = r#"{"hello": "world"}"#;
const DIGEST: &str = "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:";

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../../tests/vectors/message_signatures.json")).unwrap()
}

fn clients(keys: &[(&str, Vec<u8>)]) -> Clients {
    let client = |(name, der): &(&str, Vec<u8>)| {
        let key = config::PublicKey { path: "a.pem".into(), der: der.clone() };
        let client = config::Client { public_keys: vec![at(11, key)], ..fixture::client() };
        (ClientName::new(*name), at(10, client))
    };
    let mut problems = vec![];
    let config = Config { clients: keys.iter().map(client).collect(), ..config() };
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
fn message_signature_verifies_published_signatures() {
    let vectors = vectors();
    for vector in vectors["signatures"].as_array().unwrap() {
        let text = |key: &str| vector[key].as_str().unwrap();
        let der = BASE64_STANDARD.decode(vectors["keys"][text("keyid")].as_str().unwrap()).unwrap();
        let (key, by) = (VerifyingKey::parse(&der).unwrap(), algorithms_of(text("alg")).unwrap());
        let signature = FieldValue::new(text("signature").as_bytes()).unwrap();
        let signature = members::parse_line(signature).unwrap()[0].bytes().unwrap();
        let base = text("signature_base");
        assert!(key.verify(by, base.as_bytes(), &signature).is_some(), "{}", text("name"));
        assert!(key.verify(by, &base.as_bytes()[1..], &signature).is_none(), "{}", text("name"));
    }
}

#[test]
fn message_signature_rebuilds_published_bases() {
    let vectors = vectors();
    let request = &vectors["request"];
    let headers: Vec<(&str, &str)> = request["headers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|header| (header[0].as_str().unwrap(), header[1].as_str().unwrap()))
        .collect();
    let fields = fields(&headers);
    let target = request["target"].as_str().unwrap();
    let request = SignableRequest { method: &Method::POST, target, fields: &fields, has_body: true };
    // The other vectors sign a response or another request, or cover an unsupported component.
    for name in ["B.2.1 minimal", "B.2.3 full", "B.2.6 ed25519"] {
        let vector = vectors["signatures"].as_array().unwrap().iter().find(|vector| vector["name"] == name).unwrap();
        let input = FieldValue::new(vector["signature_input"].as_str().unwrap().as_bytes()).unwrap();
        let member = &members::parse_line(input).unwrap()[0];
        let signature = parse_member(member, &ParsedMember::parse(member).unwrap(), vec![]).unwrap();
        let base =
            message::signature_base(signature.covered.iter().map(String::as_str), signature.params, &request).unwrap();
        assert_eq!(base, vector["signature_base"].as_str().unwrap(), "{name}");
    }
}

#[test]
fn message_signature_accepts_published_content_digests() {
    for vector in vectors()["digests"].as_array().unwrap() {
        let (body, expected) = (vector["body"].as_str().unwrap(), vector["expected"].as_str().unwrap());
        let fields = fields(&[("content-digest", expected)]);
        let request = SignableRequest { method: &Method::POST, target: "/", fields: &fields, has_body: true };
        let body_check = compile_body_check(&["content-digest".into()], &request).unwrap().unwrap();
        assert_eq!(body_check.verify(body.as_bytes()), Ok(()), "{expected}");
        assert!(body_check.verify(format!("{body} ").as_bytes()).is_err(), "{expected}");
    }
}

struct Bench {
    key: Ed25519KeyPair,
    clients: Clients,
}

/// A request and its signature parameters; each test changes one part.
struct Case<'a> {
    target: &'a str,
    covered: &'a str,
    params: &'a str,
    fields: Vec<(&'a str, &'a str)>,
    has_body: bool,
}

impl Default for Case<'_> {
    fn default() -> Self {
        Case {
            target: "https://hook.example/in?a=1",
            covered: r#""@method" "@target-uri" "content-digest""#,
            params: r#";created=1735689900;keyid="billing";tag="outgate""#,
            fields: vec![("host", "hook.example"), ("content-digest", DIGEST)],
            has_body: true,
        }
    }
}

impl Bench {
    fn new() -> Self {
        let (key, other) = (Ed25519KeyPair::generate().unwrap(), Ed25519KeyPair::generate().unwrap());
        let der = |key: &Ed25519KeyPair| -> Vec<u8> {
            let der: PublicKeyX509Der<'static> = key.public_key().as_der().unwrap();
            der.as_ref().to_vec()
        };
        let clients = clients(&[("billing", der(&key)), ("crm", der(&other))]);
        Self { key, clients }
    }

    fn signed(&self, case: &Case<'_>) -> Fields {
        let mut fields = fields(&case.fields);
        let request =
            SignableRequest { method: &Method::POST, target: case.target, fields: &fields, has_body: case.has_body };
        let mut text = String::new();
        for name in case.covered.split(' ').filter(|name| !name.is_empty()) {
            let value = request.component(name.split(';').next().unwrap().trim_matches('"')).unwrap_or_default();
            text.push_str(&format!("{name}: {value}\n"));
        }
        let params = format!("({}){}", case.covered, case.params);
        text.push_str(&format!("\"@signature-params\": {params}"));
        let signature = BASE64_STANDARD.encode(self.key.sign(text.as_bytes()));
        fields.append(&SIGNATURE_INPUT, &HeaderValue::from_str(&format!("mine={params}")).unwrap());
        fields.append(&SIGNATURE, &HeaderValue::from_str(&format!("mine=:{signature}:")).unwrap());
        fields
    }

    fn verify(&self, case: &Case<'_>) -> Result<String, AuthnError> {
        self.verify_fields(case, &self.signed(case))
    }

    fn verify_fields(&self, case: &Case<'_>, fields: &Fields) -> Result<String, AuthnError> {
        let Some(signature) = find_outgate_signature(fields)? else { return Ok("none".into()) };
        let request = SignableRequest { method: &Method::POST, target: case.target, fields, has_body: case.has_body };
        let (client, signed) = verify(&self.clients, &signature, &request, NOW)?;
        if let Some(body_check) = signed.body_check {
            body_check.verify(BODY.as_bytes())?;
        }
        Ok(format!("{} until {}", client.name(), signed.replay_token.valid_until - NOW))
    }
}

#[test]
fn message_signature_accepts_a_covering_signature() {
    let bench = Bench::new();
    let all = r#""@method" "@scheme" "@authority" "@path" "@query" "content-digest""#;
    let form = r#""@method" "@request-target" "@authority" "@path" "@query" "content-digest""#;
    let own = r#""@method" "@authority" "@path" "@query" "content-digest" "outgate-target""#;
    let target = ("outgate-target", "https://hook.example/in");
    let digest = ("content-digest", DIGEST);
    let more = r#";created=1735689700;expires=1735689950;nonce="n";alg="ed25519";keyid="billing";tag="outgate""#;
    let empty = r#""@method" "@target-uri""#;
    for (case, expected) in [
        (Case::default(), "billing until 300"),
        (Case { covered: all, ..Case::default() }, "billing until 300"),
        (Case { covered: form, ..Case::default() }, "billing until 300"),
        (Case { params: more, ..Case::default() }, "billing until 50"),
        (Case { params: r#";created=1735689600;keyid="billing";tag="outgate""#, ..Case::default() }, "billing until 0"),
        (
            Case { params: r#";created=1735689960;keyid="billing";tag="outgate""#, ..Case::default() },
            "billing until 360",
        ),
        (Case { covered: empty, has_body: false, ..Case::default() }, "billing until 300"),
        (
            Case { covered: own, target: "/x", fields: vec![("host", "p:1"), digest, target], ..Case::default() },
            "billing until 300",
        ),
        (Case { params: r#";created=1735689900;keyid="billing";tag="theirs""#, ..Case::default() }, "none"),
        (Case { params: r#";created=1735689900;keyid="outgate""#, ..Case::default() }, "none"),
    ] {
        assert_eq!(bench.verify(&case), Ok(expected.to_owned()), "{} {}", case.covered, case.params);
    }
}

#[test]
fn message_signature_names_its_client_before_it_is_verified() {
    let bench = Bench::new();
    let signed = bench.signed(&Case { params: r#";created=1;keyid="crm";tag="outgate""#, ..Case::default() });
    assert_eq!(unverified_keyid(&signed).as_deref(), Some("crm"));
    assert_eq!(unverified_keyid(&fields(&[("host", "hook.example")])), None);
}

#[test]
fn message_signature_refuses_bad_parameters() {
    let bench = Bench::new();
    let created = "created=1735689900";
    let rest = r#"keyid="billing";tag="outgate""#;
    let canonical = "Signature-Input is not written as RFC 9651 §4.1 serializes it";
    let dictionary = "Signature-Input is not a dictionary in which each label occurs once (RFC 9651 §3.2)";
    for (params, reason) in [
        (format!(";{rest}"), "created is missing"),
        (format!(";{created};tag=\"outgate\""), "keyid, the client's name, is missing"),
        (format!(";created=1735689599;{rest}"), "it was created more than 300 seconds ago"),
        (format!(";created=1735689961;{rest}"), "it was created in the future"),
        (format!(";created=999999999999999;{rest}"), "it was created in the future"),
        (format!(";created=9999999999999999;{rest}"), dictionary),
        (format!(";{created};expires=1735689900;{rest}"), "it has expired"),
        (format!(";created=\"now\";{rest}"), "a parameter is of the wrong type"),
        (format!(";created=1.5;{rest}"), "a parameter is of the wrong type"),
        (format!(";{created};nonce=1;{rest}"), "a parameter is of the wrong type"),
        (format!(";{created};req;{rest}"), "a parameter is not supported"),
        (format!(";{created};alg=\"hmac-sha256\";{rest}"), "its alg is not supported"),
        (format!(";{created};alg=\"none\";{rest}"), "its alg is not supported"),
        (format!(";{created};created=1735689901;{rest}"), canonical),
        (format!("; {created};{rest}"), canonical),
        (format!(";{created};{rest},"), dictionary),
    ] {
        let case = Case { params: &params, ..Case::default() };
        assert_eq!(bench.verify(&case), Err(AuthnError::Signature(reason)), "{params}");
    }
    for params in [
        format!(";{created};alg=\"ecdsa-p256-sha256\";{rest}"),
        format!(";{created};alg=\"rsa-v1_5-sha256\";{rest}"),
        format!(";{created};keyid=\"crm\";tag=\"outgate\""),
        format!(";{created};keyid=\"nobody\";tag=\"outgate\""),
        format!(";{created};keyid=\"\";tag=\"outgate\""),
    ] {
        assert_eq!(bench.verify(&Case { params: &params, ..Case::default() }), Err(AuthnError::Invalid), "{params}");
    }
}

#[test]
fn message_signature_refuses_insufficient_or_unsupported_coverage() {
    let bench = Bench::new();
    let parts = "it covers neither @target-uri nor all of @authority, @path and @query";
    let params = "a component has parameters: none of sf, key, bs, req, tr, name is supported";
    for (covered, reason) in [
        (r#""@target-uri" "content-digest""#, "it does not cover @method"),
        (r#""@method" "content-digest""#, parts),
        (r#""@method" "@authority" "@path" "content-digest""#, parts),
        (
            r#""@method" "@authority" "@path" "@query" "content-digest""#,
            "it covers neither @target-uri nor @scheme, and the request is in absolute-form",
        ),
        (r#""@method" "@target-uri""#, "it does not cover content-digest, and the request has a body"),
        (r#""@method" "@target-uri" "content-digest" "@status""#, "it covers a component that is not supported"),
        (r#""@method" "@target-uri" "content-digest" "x-none""#, "it covers a field that the request does not have"),
        (r#""@method" "@target-uri" "content-digest" "@method""#, "a component is covered twice"),
        (r#""@method" "@target-uri" "content-digest" "host";bs"#, params),
        (r#""@method" "@target-uri" "content-digest";sf"#, params),
        (r#""@method" "@target-uri" "content-digest" "@query-param";name="a""#, params),
        (r#""@method" "@target-uri" "content-digest" host"#, "a component is not a string"),
    ] {
        let case = Case { covered, ..Case::default() };
        assert_eq!(bench.verify(&case), Err(AuthnError::Signature(reason)), "{covered}");
    }
    let tenant = vec![("content-digest", DIGEST), ("outgate-tenant", "acme")];
    let reason = AuthnError::Signature("it does not cover every Outgate- field of the request");
    assert_eq!(bench.verify(&Case { fields: tenant, ..Case::default() }), Err(reason));
    let reason = "a request to this proxy itself has no scheme to cover: cover @authority, @path, @query";
    assert_eq!(bench.verify(&Case { target: "/in", ..Case::default() }), Err(AuthnError::Signature(reason)));
}

#[test]
fn message_signature_refuses_a_covered_field_named_by_connection() {
    let bench = Bench::new();
    let covered = r#""@method" "@target-uri" "content-digest" "x-event""#;
    for (connection, expected) in [
        ("X-Event", Err(AuthnError::Signature(REMOVED_BY_CONNECTION))),
        ("close ,\tx-event", Err(AuthnError::Signature(REMOVED_BY_CONNECTION))),
        ("content-digest", Err(AuthnError::Signature(REMOVED_BY_CONNECTION))),
        ("close, x-other", Ok("billing until 300".to_owned())),
    ] {
        let fields = vec![("content-digest", DIGEST), ("x-event", "paid"), ("connection", connection)];
        assert_eq!(bench.verify(&Case { covered, fields, ..Case::default() }), expected, "{connection}");
    }
}

#[test]
fn a_covered_field_of_one_hop_is_refused() {
    let bench = Bench::new();
    for name in ["connection", "te", "keep-alive", "expect", "proxy-connection", "max-forwards", "trailer", "via"] {
        let covered = format!(r#""@method" "@target-uri" "content-digest" "{name}""#);
        let fields = vec![("content-digest", DIGEST), (name, "1")];
        let case = Case { covered: &covered, fields: fields.clone(), ..Case::default() };
        assert_eq!(bench.verify(&case), Err(AuthnError::Signature(OF_ONE_HOP)), "{name}");
        assert!(bench.verify(&Case { fields, ..Case::default() }).is_ok(), "{name} may be there uncovered");
    }
}

#[test]
fn message_signature_requires_a_matching_content_digest() {
    let bench = Bench::new();
    let form = "Content-Digest is malformed, or has neither sha-256 nor sha-512";
    let wrong = "the body does not match Content-Digest";
    let empty = "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:";
    for (digest, reason) in [
        ("md5=:AAAA:", form),
        ("sha-256=AAAA", form),
        ("sha-256=:!!:", form),
        (&format!("{DIGEST}, {empty}"), form),
        (empty, wrong),
        (&format!("{DIGEST}, sha-512=:AAAA:"), wrong),
    ] {
        let case = Case { fields: vec![("content-digest", digest)], ..Case::default() };
        assert_eq!(bench.verify(&case), Err(AuthnError::Signature(reason)), "{digest}");
    }
    let both = format!("{DIGEST}, md5=:AAAA:");
    assert!(bench.verify(&Case { fields: vec![("content-digest", &both)], ..Case::default() }).is_ok());
    // Without a body, the digest is checked at once.
    assert_eq!(bench.verify(&Case { has_body: false, ..Case::default() }), Err(AuthnError::Signature(wrong)));
    let none = Case { has_body: false, fields: vec![("content-digest", empty)], ..Case::default() };
    assert!(bench.verify(&none).is_ok());
}

#[test]
fn message_signature_detects_changed_requests() {
    let bench = Bench::new();
    let case = Case::default();
    let good = bench.signed(&case);
    assert!(bench.verify_fields(&case, &good).is_ok());
    let other = Case { target: "https://evil.example/in?a=1", ..Case::default() };
    assert_eq!(bench.verify_fields(&other, &good), Err(AuthnError::Invalid));
    let change = |name: &HeaderName, from: &str, to: &str| {
        let mut fields = good.clone();
        let line = fields.get(name).unwrap().to_str().unwrap().replace(from, to);
        fields.insert(name, &HeaderValue::from_str(&line).unwrap());
        bench.verify_fields(&case, &fields)
    };
    assert_eq!(change(&SIGNATURE_INPUT, "1735689900", "1735689901"), Err(AuthnError::Invalid));
    assert_eq!(change(&SIGNATURE_INPUT, "billing", "crm"), Err(AuthnError::Invalid));
    assert_eq!(change(&CONTENT_DIGEST, "X48E", "X48F"), Err(AuthnError::Invalid));
    let missing = Err(AuthnError::Signature("Signature has no byte sequence under its label"));
    let dictionary = "Signature is not a dictionary in which each label occurs once (RFC 9651 §3.2)";
    assert_eq!(change(&SIGNATURE, "mine=", "other="), missing);
    assert_eq!(change(&SIGNATURE, "mine=:", "mine=:!"), Err(AuthnError::Signature(dictionary)));
    assert_eq!(change(&SIGNATURE, "mine=", "mine=:AA==:, mine="), Err(AuthnError::Signature(dictionary)));
    let many = "more than one signature has the tag outgate";
    let twice = format!("again=();tag=\"outgate\", {}", good.get(&SIGNATURE_INPUT).unwrap().to_str().unwrap());
    assert_eq!(
        change(&SIGNATURE_INPUT, good.get(&SIGNATURE_INPUT).unwrap().to_str().unwrap(), &twice),
        Err(AuthnError::Signature(many))
    );
    let flood: String = (0..4000).map(|label| format!("s{label}=(), ")).collect();
    assert!(
        change(&SIGNATURE_INPUT, "mine=", &format!("{flood}mine=")).is_ok(),
        "labels of other signers are read and ignored"
    );
}

#[test]
fn message_signature_removal_keeps_other_members_byte_for_byte() {
    let theirs = r#"a=("date"  "x,y");k="\"outgate", b;c=2"#;
    let mut fields = fields(&[
        ("signature-input", theirs),
        ("signature-input", r#"x=("date");created=1 , mine=("@method");created=1;keyid="k";tag="outgate",   y=()"#),
        ("signature", "a=:AA==:,  x=:BB==:"),
        ("signature", "mine=:CC==:"),
        ("signature", "y=:DD==:"),
    ]);
    remove_outgate_signature(&mut fields);
    let lines = |name: &'static HeaderName| fields.get_all(name).map(|line| line.to_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(lines(&SIGNATURE_INPUT), [theirs, r#"x=("date");created=1, y=()"#]);
    assert_eq!(lines(&SIGNATURE), ["a=:AA==:,  x=:BB==:", "y=:DD==:"]);
    // Signatures without outgate's tag may be malformed.
    let mut strange = self::fields(&[("signature", r#"keyId="x",algorithm="hs2019""#), ("signature-input", "!")]);
    let before = strange.clone();
    remove_outgate_signature(&mut strange);
    assert_eq!(format!("{strange:?}"), format!("{before:?}"));
    assert!(find_outgate_signature(&strange).unwrap().is_none());
}
