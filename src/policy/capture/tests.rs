//! Tables of what captures select, of recipients, and of the content of a capture.
//! Does a capture contain what it may, for those who may open it?

use http::{HeaderName, HeaderValue};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use super::{Capture, CapturedBody, CapturedExchange, CapturedMessage, Recipients, compile, select};
use crate::config::{self, Located, SourceSpan};
use crate::names::{CaptureName, RouteName, TenantName};
use crate::policy::fixture::{self, at, messages};
use crate::policy::redact::Redactor;

/// Public keys whose private keys are lost.
const X25519: &str = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";
const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsKLqeplhpW+uObz5dvMgjz1OxfM/XXUB+VHtZ6isGN alice@rust";

fn now() -> Timestamp {
    "2026-11-26T12:00:00Z".parse().expect("a time")
}

fn words(words: &[&str]) -> Vec<Located<String>> {
    words
        .iter()
        .map(|word| Located { value: (*word).to_owned(), span: SourceSpan { file: 0, start: 0, end: 0 } })
        .collect()
}

fn capture(name: &str, tenants: &[&str], recipients: &[&str]) -> Capture {
    let recipient = || Arc::new(Recipients::parse(X25519).expect("a recipient"));
    Capture {
        name: CaptureName::new(name),
        section: config::Capture {
            routes: words(&["acme"]),
            tenants: words(tenants),
            webhook_ids: Vec::new(),
            recipients: Default::default(),
            store: None,
            keep: Duration::from_secs(60),
            until: None,
            body_max: 1024,
            total_max: 1 << 20,
            headers: vec![HeaderName::from_static("x-customer")],
            pointers: Vec::new(),
        },
        store: "/captures".into(),
        until: now() + SignedDuration::from_hours(1),
        recipients: recipients.iter().map(|tenant| (TenantName::new(*tenant), recipient())).collect(),
    }
}

#[test]
fn captures_select_by_route_tenant_webhook_id_and_time() {
    let mut by_id = capture("by-id", &[], &["globex"]);
    by_id.section.webhook_ids = words(&["evt_1"]);
    let closed = capture("closed", &["acme"], &[]);
    let captures = [closed, capture("open", &["acme"], &["acme"]), by_id].map(Arc::new);
    let select = |route: &str, tenant: Option<&str>, webhook_id, at: Timestamp| {
        let tenant = tenant.map(TenantName::new);
        let (capture, recipients) = select(&captures, &RouteName::new(route), tenant.as_ref(), webhook_id, at)?;
        Some((capture.name.to_string(), recipients.is_some()))
    };
    let found = |name: &str, is_openable| Some((name.to_owned(), is_openable));
    // The first that the tenant can open.
    assert_eq!(select("acme", Some("acme"), None, now()), found("open", true));
    assert_eq!(select("acme", Some("acme"), None, now() + SignedDuration::from_hours(1)), None);
    assert_eq!(select("other", Some("acme"), None, now()), None);
    assert_eq!(select("acme", Some("globex"), None, now()), None);
    assert_eq!(select("acme", Some("globex"), Some("evt_2"), now()), None);
    assert_eq!(select("acme", Some("globex"), Some("evt_1"), now()), found("by-id", true));
    assert_eq!(select("acme", Some("initech"), Some("evt_1"), now()), found("by-id", false));
    assert_eq!(select("acme", None, Some("evt_1"), now()), found("by-id", false));
}

/// A file with a problem takes only its tenant out of the capture.
#[test]
fn captures_are_of_routes_that_exist_and_of_tenants_with_recipients() {
    let mut config = fixture::config();
    config.routes.push(fixture::route(100, "acme", "hooks.acme.example"));
    let recipients =
        [("acme", Ok(X25519.to_owned())), ("globex", Ok("age1x".to_owned())), ("x", Err("is a folder".into()))];
    let section = config::Capture {
        recipients: recipients.map(|(tenant, text)| (TenantName::new(tenant), ("r".into(), text))).into(),
        store: Some(at(7, "/captures".into())),
        until: Some(at(8, now())),
        ..capture("support", &[], &[]).section
    };
    config.captures.insert(CaptureName::new("support"), at(1, section.clone()));
    let mut problems = Vec::new();
    let captures = compile::compile(&config, &mut problems);
    assert_eq!(captures.len(), 1);
    assert_eq!(captures[0].recipients.keys().collect::<Vec<_>>(), [&TenantName::new("acme")]);
    assert!(captures[0].section.recipients.is_empty(), "the compiled ones replace them");
    assert!(messages(&problems).iter().all(|problem| problem.starts_with("warning: r ")) && problems.len() == 2);
    let unknown = config::Capture { routes: words(&["acme", "acne"]), store: None, ..section };
    config.captures.insert(CaptureName::new("support"), at(1, unknown));
    let mut problems = Vec::new();
    assert!(compile::compile(&config, &mut problems).is_empty(), "its store has a problem");
    assert_eq!(messages(&problems), ["no route is named \"acne\""]);
}

#[test]
fn captures_expire_after_keep() {
    let capture = capture("a", &[], &[]);
    assert!(!capture.is_expired(now(), now() + SignedDuration::from_secs(60)));
    assert!(capture.is_expired(now(), now() + SignedDuration::from_secs(61)));
    assert!(!capture.is_expired(now(), now() - SignedDuration::from_hours(24 * 365))); // the clock was set back
}

#[test]
fn recipients_are_x25519_and_ssh_keys_one_a_line() {
    let good = format!("# Acme's keys\n\n  {X25519}  \n{ED25519}\n");
    assert!(Recipients::parse(&good).is_ok());
    let line = |number: u32, reason: &str| format!("has no recipient in line {number}: {reason}");
    let private = "this is a private key, which only the tenant may have";
    let other = "write age1…, ssh-ed25519 …, or ssh-rsa … with 2048 to 4096 bits";
    for (text, error) in [
        ("", "has no recipient".to_owned()),
        ("# nothing\n", "has no recipient".to_owned()),
        (&format!("{X25519}\n").repeat(21), "has more than 20 recipients".to_owned()),
        (&format!("{X25519}\nage1abc"), line(2, "this is no X25519 recipient")),
        ("AGE-SECRET-KEY-1QQQ", line(1, private)),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", line(1, private)),
        ("ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTY=", line(1, other)),
        ("github:acme", line(1, other)),
    ] {
        assert_eq!(Recipients::parse(text).err(), Some(error), "{text}");
    }
}

#[test]
fn a_seal_opens_with_the_key_of_each_recipient_and_no_other() {
    let keys: Vec<_> = (0..3).map(|_| age::x25519::Identity::generate()).collect();
    let text = format!("{}\n{}\n", keys[0].to_public(), keys[1].to_public());
    let sealed = Recipients::parse(&text).expect("recipients").seal(b"private").expect("a seal");
    assert!(!sealed.windows(7).any(|window| window == b"private"));
    let open = |key: &age::x25519::Identity| {
        let decryptor = age::Decryptor::new(&sealed[..]).expect("an age file");
        let mut plaintext = Vec::new();
        let mut reader = decryptor.decrypt(std::iter::once(key as &dyn age::Identity)).ok()?;
        reader.read_to_end(&mut plaintext).ok()?;
        Some(plaintext)
    };
    assert_eq!(open(&keys[0]).as_deref(), Some(&b"private"[..]));
    assert_eq!(open(&keys[1]).as_deref(), Some(&b"private"[..]));
    assert_eq!(open(&keys[2]), None);
}

fn body(bytes: &[u8], length: u64, is_complete: bool) -> CapturedBody {
    CapturedBody { bytes: bytes.to_vec(), length, is_complete }
}

fn document(capture: &Capture, request: CapturedMessage) -> Value {
    let exchange = CapturedExchange { request, status: None, ..CapturedExchange::default() };
    serde_json::from_slice(&exchange.document(capture, &Redactor::default())).expect("JSON")
}

#[test]
fn captures_have_no_credentials_and_no_listed_fields() {
    let mut request = CapturedMessage::default();
    for (name, value) in [
        ("authorization", "Bearer s3cret"),
        ("cookie", "session=s3cret"),
        ("x-api-key", "s3cret"),
        ("x-customer", "s3cret"),
        ("webhook-signature", "v1,abc"),
        ("to", "+819012345678"),
    ] {
        request.fields.append(HeaderName::from_static(name), &HeaderValue::from_static(value));
    }
    let mut secret = HeaderValue::from_static("s3cret");
    secret.set_sensitive(true);
    request.fields.append(HeaderName::from_static("x-acme"), &secret);
    let document = document(&capture("a", &[], &[]), request);
    assert!(!document.to_string().contains("s3cret"), "{document}");
    assert_eq!(
        document["request"]["headers"],
        json!([
            ["authorization", "***"],
            ["cookie", "***"],
            ["x-api-key", "***"],
            ["x-customer", "***"],
            // The tenant checks signatures, and knows its customers' numbers.
            ["webhook-signature", "v1,abc"],
            ["to", "+819012345678"],
            ["x-acme", "***"],
        ])
    );
    assert_eq!(document["response"], Value::Null);
}

#[test]
fn captured_bodies_lose_the_values_at_pointers_or_are_omitted() {
    let mut capture = capture("a", &[], &[]);
    let body_of = |capture: &Capture, body: CapturedBody| {
        document(capture, CapturedMessage { body, ..CapturedMessage::default() })["request"]["body"].clone()
    };
    let text = body_of(&capture, body(b"{\"a\": 1.0}", 10, true));
    assert_eq!(text, json!({ "length": 10, "complete": true, "truncated": false, "text": "{\"a\": 1.0}" }));
    let cut = body_of(&capture, body(b"abc", 10, true));
    assert_eq!(cut, json!({ "length": 10, "complete": true, "truncated": true, "text": "abc" }));
    let binary = body_of(&capture, body(&[0xff, 0], 2, true));
    assert_eq!(binary["base64"], "/wA=");

    capture.section.pointers = vec!["/user/phone".to_owned(), "/items/1/a~1b".to_owned()];
    for (sent, kept) in [
        (r#"{"user":{"phone":"s3cret","name":"n"}}"#, Some(r#"{"user":{"name":"n","phone":"***"}}"#)),
        (r#"{"user":{"phone":{"home":"s3cret"}}}"#, Some(r#"{"user":{"phone":"***"}}"#)),
        (r#"{"items":[1,{"a/b":"s3cret"}]}"#, Some(r#"{"items":[1,{"a/b":"***"}]}"#)),
        // A parser may take the first of two equal names.
        (r#"{"user":{"phone":"s3cret"},"user":{}}"#, Some(r#"{"user":{}}"#)),
        ("{\"user\":{\"\\u0070hone\":\"s3cret\"}}", Some(r#"{"user":{"phone":"***"}}"#)),
        ("phone=s3cret", None),
        (r#"{"user":{"phone":"s3cret"}} trailing"#, None),
        ("", Some("")),
    ] {
        let body = body_of(&capture, body(sent.as_bytes(), sent.len() as u64, true));
        assert_eq!(body.get("text").and_then(Value::as_str), kept, "{sent}");
        assert_eq!(body.get("omitted").is_some(), kept.is_none(), "{sent}");
        assert!(!body.to_string().contains("s3cret"), "{body}");
    }
    let whole = br#"{"user":{"phone":"s3cret"}}"#;
    for part in [body(whole, 100, true), body(whole, whole.len() as u64, false)] {
        assert!(body_of(&capture, part)["omitted"].is_string());
    }
}
