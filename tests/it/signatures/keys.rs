//! Generation and publication of signing keys, and schemes that change more than headers.
//! Which keys does an operator get, and which signatures does a receiver get?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use support::configuration::Replace;
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{config, folder};
use support::{Folder, Outgate};

fn outgate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_outgate")).args(arguments).output().unwrap()
}

fn text(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn keys_new_generates_a_key_for_every_scheme_and_overwrites_no_file() {
    for (scheme, algorithm, prefix) in [
        ("standard-webhooks", "", "whsec_"),
        ("standard-webhooks", "ed25519", "whsk_"),
        ("rfc9421", "", "-----BEGIN PRIVATE KEY-----\n"),
        ("rfc9421", "ecdsa-p256-sha256", "-----BEGIN PRIVATE KEY-----\n"),
        ("rfc9421", "hmac-sha256", ""),
        ("twilio", "", ""),
        ("sendgrid", "", "-----BEGIN PRIVATE KEY-----\n"),
        ("stripe", "", "whsec_"),
        ("github", "", ""),
        ("slack", "", ""),
        ("shopify", "", "shpss_"),
        ("hmac", "hmac-sha512", ""),
    ] {
        let mut arguments = vec!["keys", "new", "--scheme", scheme];
        if !algorithm.is_empty() {
            arguments.extend(["--algorithm", algorithm]);
        }
        let (one, other) = (text(&outgate(&arguments)), text(&outgate(&arguments)));
        assert_eq!((one.0, one.2.as_str()), (Some(0), ""), "{scheme}");
        assert!(one.1.starts_with(prefix) && one.1.len() > 40 && one.1 != other.1, "{scheme}");
    }
    let (code, _, error) = text(&outgate(&["keys", "new", "--scheme", "slak"]));
    assert_eq!(code, Some(2));
    assert!(error.contains("did you mean \"slack\"?"), "{error}");
    let (code, _, error) = text(&outgate(&["keys", "new", "--scheme", "sendgrid", "--algorithm", "ed25519"]));
    assert_eq!(code, Some(2));
    assert!(error.ends_with("it supports ecdsa-p256-sha256"), "{error}");

    let folder = Folder::new();
    let path = folder.path("key");
    let arguments = ["keys", "new", "--scheme", "rfc9421", "--out", path.to_str().unwrap()];
    assert_eq!(text(&outgate(&arguments)), (Some(0), String::new(), String::new()));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let before = std::fs::read(&path).unwrap();
    assert_eq!(outgate(&arguments).status.code(), Some(73));
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

/// Returns a configuration with RFC 9421 keys (one announced, one ended), a SendGrid key, an asymmetric Standard Webhooks
/// key, and a shared secret.
struct Scene {
    outgate: Outgate,
    receiver: Receiver,
}

const MORE: &str = r#"
[signers.messages]
scheme = "rfc9421"
keys = [
  { id = "was", secret = "file:{dir}/messages-was", until = "2020-01-01T00:00:00Z" },
  { id = "is", secret = "file:{dir}/messages-is" },
  { id = "will", secret = "file:{dir}/messages-will", from = "2090-01-01T00:00:00Z" },
  { id = "shared", secret = "file:{dir}/messages-shared" },
]
[signers.events]
scheme = "sendgrid"
keys = [{ id = "is", secret = "file:{dir}/events-is" }]
[signers.pairs]
scheme = "standard-webhooks"
keys = [{ id = "pair", secret = "file:{dir}/pairs-pair" }]
[signers.voice]
scheme = "twilio"
keys = [
  { id = "old", secret = "file:{dir}/voice" },
  { id = "new", secret = "file:{dir}/voice", from = "2026-01-01T00:00:00Z" },
]
[signers.acme]
scheme = "hmac"
algorithm = "hmac-sha512"
message = "{timestamp}.{id}.{body}"
encoding = "base64"
headers = ["X-Acme-Signature: t={timestamp},s={signature}", "X-Acme-Delivery: {id}"]
keys = [{ id = "k", secret = "file:{dir}/voice" }]
[signers.github]
scheme = "github"
keys = [{ id = "k", secret = "file:{dir}/voice" }]
"#;

fn scene() -> Scene {
    let pki = Pki::new();
    let receiver = Receiver::tls(pki.leaf(&["hook.example", "voice.example", "acme.example"]), ok());
    let folder = folder(&pki);
    for (file, scheme, algorithm) in [
        ("messages-was", "rfc9421", "ed25519"),
        ("messages-is", "rfc9421", "ed25519"),
        ("messages-will", "rfc9421", "rsa-pss-sha512"),
        ("messages-shared", "rfc9421", "hmac-sha256"),
        ("events-is", "sendgrid", "ecdsa-p256-sha256"),
        ("pairs-pair", "standard-webhooks", "ed25519"),
        ("voice", "twilio", "hmac-sha1"),
    ] {
        let path = folder.path(file);
        let arguments = ["keys", "new", "--scheme", scheme, "--algorithm", algorithm, "--out", path.to_str().unwrap()];
        assert!(outgate(&arguments).status.success(), "{file}");
    }
    let route = |name: &str, sign: &str| {
        let port = receiver.port();
        format!("[[routes]]\nname = {name:?}\nhosts = [\"{name}.example\"]\nports = [{port}]\nsign = [{sign}]\n")
    };
    let text = config(&receiver, &receiver, MORE)
        .host("voice.example", "127.0.0.1")
        .host("acme.example", "127.0.0.1")
        .set("routes.signed.sign", ["messages"])
        .and(&route("voice", "\"messages\", \"voice\""))
        .and(&route("acme", "\"acme\", \"github\""));
    Scene { outgate: Outgate::run(folder, &text), receiver }
}

fn kids(set: &Value) -> Vec<&str> {
    set["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap()).collect()
}

#[test]
fn keys_are_listed_and_public_keys_are_published() {
    let scene = scene();
    let file = scene.outgate.folder.path("config.toml");
    let command = |words: &[&str]| {
        let (code, out, error) = text(&outgate(&[&["keys"], words, &["--config", file.to_str().unwrap()]].concat()));
        assert_eq!(code, Some(0), "{words:?}: {error}");
        out
    };
    let list: Value = serde_json::from_str(&command(&["list", "--json"])).unwrap();
    let states: Vec<String> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|key| ["signer", "id", "algorithm", "state"].map(|name| key[name].as_str().unwrap()).join(" "))
        .collect();
    let expected = [
        "acme k hmac-sha512 active",
        "events is ecdsa-p256-sha256 active",
        "github k hmac-sha256 active",
        "messages will rsa-pss-sha512 announced",
        "messages was ed25519 ended",
        "messages is ed25519 active",
        "messages shared hmac-sha256 active",
        "pairs pair ed25519 active",
        "platform k1 hmac-sha256 active",
        "voice new hmac-sha1 active",
        "voice old hmac-sha1 replaced",
    ];
    assert_eq!(states, expected);
    let table = command(&["list"]);
    assert_eq!(table.lines().count(), 1 + expected.len());
    assert!(table.starts_with("SIGNER    SCHEME             TENANT  KEY     ALGORITHM"), "{table}");

    let jwks: Value = serde_json::from_str(&command(&["public"])).unwrap();
    // The order is by signer, with the newest key first. Keys with the same identifier are listed separately.
    let entry = |signer: &str, id: &str| {
        let key = list.as_array().unwrap().iter().find(|key| key["signer"] == signer && key["id"] == id).unwrap();
        key["thumbprint"].as_str().unwrap()
    };
    let expected = [entry("events", "is"), entry("messages", "will"), entry("messages", "is"), entry("pairs", "pair")];
    assert_eq!(kids(&jwks), expected);
    assert_eq!((&jwks["keys"][0]["kty"], &jwks["keys"][0]["alg"]), (&json!("EC"), &json!("ES256")));
    assert_eq!((&jwks["keys"][1]["kty"], &jwks["keys"][1]["alg"]), (&json!("RSA"), &json!("PS512")));
    let directory: Value = serde_json::from_str(&command(&["public", "--format", "directory"])).unwrap();
    let thumbprints: Vec<&str> = list
        .as_array()
        .unwrap()
        .iter()
        .filter(|key| key["scheme"] == "rfc9421" && key["state"] != "ended")
        .filter_map(|key| key["thumbprint"].as_str())
        .collect();
    assert_eq!(kids(&directory), thumbprints);
    assert_eq!(directory["keys"][0]["nbf"], 3_786_912_000_i64);
    let pem = command(&["public", "--format", "pem", "--signer", "pairs"]);
    assert!(pem.starts_with("pairs pair ed25519 whpk_") && pem.contains("\n-----BEGIN PUBLIC KEY-----\n"), "{pem}");
    let (code, _, error) =
        text(&outgate(&["keys", "public", "--signer", "nobody", "--config", file.to_str().unwrap()]));
    assert_eq!((code, error.as_str()), (Some(2), "outgate: there is no signer \"nobody\""));

    for (path, media_type, expected) in [
        ("/keys", "application/jwk-set+json", &jwks),
        (
            "/.well-known/http-message-signatures-directory",
            "application/http-message-signatures-directory+json",
            &directory,
        ),
    ] {
        let response = scene.outgate.admin(path);
        assert_eq!((response.status, response.field("content-type")), (200, media_type));
        assert_eq!(response.field("access-control-allow-origin"), "*");
        assert_eq!(&response.json(), expected);
        assert!(response.json()["keys"].as_array().unwrap().iter().all(|key| key.get("d").is_none()), "{response:?}");
    }
}

#[test]
fn twilio_hashes_a_body_that_is_no_form_into_the_query_before_signers_sign() {
    let scene = scene();
    let port = scene.receiver.port();
    let post = |path: &str, fields: &str, body: &str| {
        scene.outgate.post(&format!("https://voice.example:{port}{path}"), fields, body)
    };
    assert_eq!(post("/in?a=1", "Content-Type: application/json\r\n", "{}").status, 200);
    let received = scene.receiver.requests().pop().unwrap();
    let hash = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
    assert_eq!(received.line, format!("POST /in?a=1&bodySHA256={hash} HTTP/1.1"));
    assert!(received.field("signature-input").contains("\"@query\""), "{received:?}");
    assert_eq!(post("/in?a=1", "Content-Type: application/x-www-form-urlencoded\r\n", "a=1").status, 200);
    assert_eq!(scene.receiver.requests().pop().unwrap().line, "POST /in?a=1 HTTP/1.1");
    let response = post("/in?bodySHA256=00", "Content-Type: application/json\r\n", "{}");
    assert_eq!((response.status, response.code()), (400, "request_malformed"));
    let settings = "X-Twilio-Webhooks-Signature-Settings: algorithm=HMAC_SHA256\r\nX-Twilio-Signature: forged\r\n";
    assert_eq!(post("/", settings, "").status, 200);
    let received = scene.receiver.requests().pop().unwrap();
    assert_eq!(received.field("x-twilio-webhooks-signature-settings"), "", "{received:?}");
    assert!(
        received.all("x-twilio-signature").len() == 1 && received.field("x-twilio-signature") != "forged",
        "{received:?}"
    );
    let used: Vec<_> = scene.outgate.records(1)[0]["signatures"].as_array().unwrap().clone();
    assert_eq!(used, ["is", "shared", "new"]);
}

#[test]
fn message_signatures_of_clients_are_kept_and_malformed_ones_refused() {
    let scene = scene();
    let url = format!("https://hook.example:{}/", scene.receiver.port());
    let foreign = "Signature-Input: theirs=(\"@method\");created=1\r\nSignature: theirs=:AAAA:\r\n";
    assert_eq!(scene.outgate.post(&url, foreign, "{}").status, 200);
    let received = scene.receiver.requests().pop().unwrap();
    assert!(received.field("signature-input").starts_with("theirs=(\"@method\");created=1, sig1=("), "{received:?}");
    assert!(received.field("signature").starts_with("theirs=:AAAA:, sig1=:"), "{received:?}");
    let response = scene.outgate.post(&url, "Signature: keyId=\"x\",signature=\"y\"\r\n", "{}");
    assert_eq!((response.status, response.code()), (400, "request_malformed"), "{response:?}");
    assert_eq!(scene.receiver.requests().len(), 1);
}

#[test]
fn hmac_scheme_signs_as_a_platform_configures_it() {
    let scene = scene();
    let url = format!("https://acme.example:{}/", scene.receiver.port());
    assert_eq!(scene.outgate.post(&url, "Webhook-Id: evt_1\r\nX-Acme-Delivery: forged\r\n", "{}").status, 200);
    let received = scene.receiver.requests().pop().unwrap();
    assert_eq!(received.all("x-acme-delivery"), ["evt_1"]);
    assert_eq!(received.all("webhook-id"), ["evt_1"]);
    let (timestamp, signature) = received.field("x-acme-signature").split_once(",s=").unwrap();
    let timestamp = timestamp.strip_prefix("t=").unwrap();
    let secret = std::fs::read_to_string(scene.outgate.folder.path("voice")).unwrap();
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA512, secret.trim().as_bytes());
    let expected = aws_lc_rs::hmac::sign(&key, format!("{timestamp}.evt_1.{{}}").as_bytes());
    assert_eq!(signature, BASE64_STANDARD.encode(expected));
    assert!(received.field("x-hub-signature-256").starts_with("sha256="), "{received:?}");
}

#[test]
fn two_signers_of_a_route_must_not_own_the_same_header() {
    let scene = scene();
    let file = scene.outgate.folder.path("config.toml");
    let written = std::fs::read_to_string(&file).unwrap();
    let clash = written.replace_one("X-Acme-Delivery: {id}", "x-hub-signature-256: {id}");
    let file = scene.outgate.folder.write("clash.toml", clash);
    let (code, out, error) = text(&outgate(&["check", "--config", file.to_str().unwrap()]));
    assert_eq!(code, Some(1), "{out}{error}");
    assert!(format!("{out}{error}").contains("acme and github write the same headers"), "{out}{error}");
}
