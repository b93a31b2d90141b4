//! Authentication of clients over real sockets: tokens, signatures of both kinds, and required proofs.
//! Does each proof identify its client, and is each signature accepted only once?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

pub(crate) mod sign;
use crate::support;

use sign::{Key, digest, now};
use support::configuration::Replace;
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{Scene, config, folder};
use support::{Folder, Outgate, Response, post};

/// Its hash is b46c0967….
const BEARER: &str = "Proxy-Authorization: Bearer t0ken\r\n";

/// A scene with these clients only. `prepare` writes their keys into the folder.
fn scene(clients: &str, prepare: impl FnOnce(&Folder)) -> Scene {
    let pki = Pki::new();
    let (good, plain) = (Receiver::tls(pki.leaf(&["hook.example"]), ok()), Receiver::plain(ok()));
    let folder = folder(&pki);
    prepare(&folder);
    let text = config(&good, &plain, clients).remove("server.allow_anonymous");
    let outgate = Outgate::run(folder, &text);
    Scene { pki, outgate, good, plain }
}

fn scene_with_signer(key: &Key) -> Scene {
    scene("[clients.billing]\npublic_keys = [\"{dir}/billing.pem\"]\n", |folder| {
        folder.write("billing.pem", key.public_pem());
    })
}

fn assert_refused(response: &Response, detail: &str) {
    assert_eq!((response.status, response.code()), (407, "client_unauthenticated"), "{}", response.text());
    assert!(response.field("proxy-authenticate").starts_with("Basic realm="), "{response:?}");
    assert!(response.json()["detail"].as_str().unwrap().contains(detail), "{}", response.text());
}

#[test]
fn client_signature_is_accepted_and_not_forwarded() {
    for key in [Key::ed25519(), Key::p256(), Key::rsa()] {
        let scene = scene_with_signer(&key);
        for (url, receiver) in [(scene.good_url(), &scene.good), (scene.plain_url(), &scene.plain)] {
            let other_signature = "Signature-Input: theirs=(\"date\"  );created=1\r\nSignature: theirs=:AAAA:\r\n";
            let fields = format!(
                "{other_signature}Authorization: Bearer theirs\r\n{}",
                key.sign_request("POST", &url, "hello", "")
            );
            let response = scene.outgate.post(&url, &fields, "hello");
            assert_eq!((response.status, response.text().as_str()), (200, "ok"));
            let received = receiver.wait_for_requests(1).pop().unwrap();
            assert_eq!(
                (received.body.as_slice(), received.field("content-digest")),
                (&b"hello"[..], digest("hello").as_str())
            );
            assert_eq!(received.field("authorization"), "Bearer theirs");
            assert_eq!(received.all("signature-input"), ["theirs=(\"date\"  );created=1"]);
            assert_eq!(received.all("signature"), ["theirs=:AAAA:"]);
            assert_refused(&scene.outgate.post(&url, &fields, "hello"), "it was used before");
        }
        let records = scene.outgate.records(4);
        // A record is written after its response, so the order of records may differ.
        let known = records.iter().filter(|record| record["client"] == "billing" && record["proof"] == "signature");
        let unknown = records.iter().filter(|record| record["client"].is_null() && record["proof"].is_null());
        assert_eq!((known.count(), unknown.count()), (2, 2));
        assert_eq!((scene.good.requests().len(), scene.plain.requests().len()), (1, 1));
    }
}

/// The `Host` field does not matter.
#[test]
fn client_signature_of_a_connect_covers_its_authority() {
    let key = Key::ed25519();
    let scene = scene_with_signer(&key);
    let authority = format!("other.example:{}", scene.good.port());
    let send_connect = |host: &str, fields: &str| {
        let mut client = scene.outgate.connect();
        client.send(format!("CONNECT {authority} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n"));
        client.response_to("CONNECT")
    };
    let method = ("@method", "CONNECT");
    let fields = key.sign_components(&[method, ("@authority", &authority)], "");
    // The route signs, so it refuses tunnels after it has identified the client.
    assert_eq!(send_connect("whatever.example", &fields).code(), "tunnel_forbidden");
    assert_refused(&send_connect("whatever.example", &fields), "it was used before");
    let target = ("@request-target", authority.as_str());
    assert_eq!(send_connect(&authority, &key.sign_components(&[method, target], "")).code(), "tunnel_forbidden");
    let elsewhere = format!("other.example:{}", scene.good.port() ^ 1);
    let fields = key.sign_components(&[method, ("@authority", &elsewhere)], "");
    assert_eq!(send_connect(&elsewhere, &fields).code(), "client_unauthenticated");
    let fields = key.sign_components(&[method], "");
    assert_refused(&send_connect(&authority, &fields), "it covers neither @authority nor @request-target");
    let records = scene.outgate.records(5);
    assert_eq!(records.iter().filter(|record| record["proof"] == "signature").count(), 2);
}

#[test]
fn client_signature_replayed_in_its_other_ecdsa_form_is_refused() {
    let key = Key::p256();
    let scene = scene_with_signer(&key);
    let url = scene.good_url();
    let fields = key.sign_request("POST", &url, "hello", "");
    let other_form = sign::other_ecdsa_form(&fields);
    assert_ne!(fields, other_form);
    assert_eq!(scene.outgate.post(&url, &other_form, "hello").status, 200, "as good as the first");
    assert_refused(&scene.outgate.post(&url, &fields, "hello"), "it was used before");
}

#[test]
fn client_signature_with_another_body_is_refused_before_the_target() {
    let key = Key::ed25519();
    let scene = scene_with_signer(&key);
    for url in [scene.good_url(), scene.plain_url()] {
        for body in ["hellO", "", "hello hello"] {
            let fields = key.sign_request("POST", &url, "hello", &format!(";nonce=\"{}\"", body.len()));
            let response = scene.outgate.post(&url, &fields, body);
            assert_eq!(
                (response.status, response.code()),
                (407, "client_unauthenticated"),
                "{body}: {}",
                response.text()
            );
        }
        let chunked = |body: &str| {
            let fields = key.sign_request("POST", &url, "hello", &format!(";nonce=\"c{body}\""));
            let chunk = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
            let mut client = scene.outgate.connect();
            client.send(format!("POST {url} HTTP/1.1\r\nHost: h\r\n{fields}Transfer-Encoding: chunked\r\n\r\n{chunk}"));
            client.response()
        };
        assert_refused(&chunked("hullo"), "the body does not match Content-Digest");
        assert_eq!(chunked("hello").status, 200);
        // The limit applies to a body that is buffered only for its digest.
        let large = "x".repeat(1024 * 1024 + 1);
        let response = scene.outgate.post(&url, &key.sign_request("POST", &url, &large, ""), &large);
        assert_eq!(response.code(), "body_too_large");
    }
    assert_eq!((scene.good.requests().len(), scene.plain.requests().len()), (1, 1));
}

/// A signed body is buffered, so the memory limit applies instead of `body_max`.
#[test]
fn client_signature_bounds_the_buffered_body_whatever_body_max_is() {
    let key = Key::ed25519();
    let scene = scene_with_signer(&key);
    let text = config(&scene.good, &scene.plain, "[clients.billing]\npublic_keys = [\"{dir}/billing.pem\"]\n");
    scene.outgate.reconfigure(&text.set("routes.plain.body_max", "10 GiB"));
    let url = scene.plain_url();
    let fields = key.sign_request("POST", &url, "hello", "");
    let mut client = scene.outgate.connect();
    client.send(format!("POST {url} HTTP/1.1\r\nHost: h\r\n{fields}Content-Length: {}\r\n\r\n", (64 << 20) + 1));
    assert_eq!(client.response().code(), "body_too_large");
}

#[test]
fn client_signature_covers_one_target_and_one_tenant() {
    let key = Key::ed25519();
    let scene = scene_with_signer(&key);
    let (url, other) = (scene.good_url(), scene.good_url().replace_one("hook", "other"));
    let fields = key.sign_request("POST", &url, "hello", "");
    assert_refused(&scene.outgate.post(&other, &fields, "hello"), "does not identify a client");
    let more = format!("{fields}Outgate-Tenant: acme\r\n");
    assert_refused(&scene.outgate.post(&url, &more, "hello"), "it does not cover every Outgate- field");
    assert_eq!(scene.outgate.post(&url, &fields, "hello").status, 200);
    // In gateway form the target is in a field, which the signature must cover.
    let parts = [("@method", "POST"), ("@authority", "p.example"), ("@path", "/x"), ("@query", "?")];
    let digest = digest("hello");
    let covered = [&parts[..], &[("content-digest", &digest), ("outgate-target", &url)]].concat();
    let gateway = |covered: &[(&str, &str)], target: &str, nonce: &str| {
        let fields = key.sign_components(covered, &format!(";nonce=\"{nonce}\""));
        let head = format!("Host: p.example\r\nOutgate-Target: {target}\r\nContent-Digest: {digest}\r\n{fields}");
        let mut client = scene.outgate.connect();
        client.send(format!("POST /x HTTP/1.1\r\n{head}Content-Length: 5\r\n\r\nhello"));
        client.response()
    };
    assert_refused(&gateway(&covered[..5], &url, "a"), "it does not cover every Outgate- field");
    assert_refused(&gateway(&covered, &other, "b"), "does not identify a client");
    assert_eq!(gateway(&covered, &url, "c").status, 200);
}

#[test]
fn twilio_client_validation_is_accepted_once() {
    let key = Key::rsa();
    let scene = scene_with_signer(&key);
    let url = scene.plain_url();
    let host = format!("plain.example:{}", scene.plain.port());
    let send = |token: &str, host: &str, url: &str, body: &str| {
        let mut client = scene.outgate.connect();
        let fields = format!("Host: {host}\r\nAuthorization: Basic eDp5\r\nTwilio-Client-Validation: {token}\r\n");
        client.send(format!("POST {url} HTTP/1.1\r\n{fields}Content-Length: {}\r\n\r\n{body}", body.len()));
        client.response()
    };
    let token = |body: &str, exp: i64| key.twilio_token("billing", "/in", "a=1&b=2", &host, body, exp);
    let with_query = format!("{url}?a=1&b=2");
    let soon = now() + 300;
    let first = token("To=1", soon);
    assert_refused(&send(&first, &host, &with_query, "To=2"), "the request differs from the one that was signed");
    assert!(scene.plain.requests().is_empty());
    let second = token("To=1", soon - 1);
    assert_eq!(send(&second, &host, &with_query, "To=1").status, 200);
    assert_refused(&send(&second, &host, &with_query, "To=1"), "it was used before");
    let received = scene.plain.wait_for_requests(1).pop().unwrap();
    assert_eq!((received.field("twilio-client-validation"), received.field("authorization")), ("", "Basic eDp5"));
    assert_eq!(received.line, "POST /in?a=1&b=2 HTTP/1.1");
    // Equivalent spellings of the signed request are refused.
    let unsorted = "the query's parameters are not sorted";
    assert_refused(&send(&token("", soon - 5), &host, &format!("{url}?b=2&a=1"), ""), unsorted);
    let dotted = with_query.replace_one("/in", "/x/../in");
    assert_refused(&send(&token("", soon - 6), &host, &dotted, ""), "the request differs from the one that was signed");

    assert_refused(&send(&token("", now() - 1), &host, &with_query, ""), "it has expired");
    assert_refused(&send(&token("", now() + 3600), &host, &with_query, ""), "it expires later than in 300 seconds");
    let elsewhere = with_query.replace_one("plain.example", "other.example");
    assert_refused(&send(&token("", soon - 2), &host, &elsewhere, ""), "the signed Host differs");
    assert_refused(&send(&token("", soon - 3), &host, &format!("{url}?a=1"), ""), "the request differs from the one");
    assert_refused(&send("x.y.z", &host, &with_query, ""), "is not a JSON Web Token");
    let twice = format!("{0}\r\nTwilio-Client-Validation: {0}", token("", soon - 4));
    assert_eq!(send(&twice, &host, &with_query, "").code(), "request_malformed");
    assert_eq!(scene.plain.requests().len(), 1);
}

#[test]
fn client_proofs_must_agree_and_include_all_required() {
    let (key, other) = (Key::ed25519(), Key::ed25519());
    let clients = r#"
[clients.billing]
public_keys = ["{dir}/billing.pem"]
tokens = ["sha256:b46c09677343261f0b439a472422225e3a230c9c094d6ab16762e2036b597053"]
[clients.crm]
public_keys = ["{dir}/crm.pem"]
networks = ["127.0.0.0/8"]
"#;
    let prepare = |folder: &Folder| {
        folder.write("billing.pem", key.public_pem());
        folder.write("crm.pem", other.public_pem());
    };
    let scene = scene(clients, prepare);
    let url = scene.good_url();
    let sign = |key: &Key, keyid: &str, nonce: &str| {
        key.sign_request_as(keyid, "POST", &url, "x", &format!(";nonce=\"{nonce}\""))
    };
    let send = |fields: &str| scene.outgate.post(&url, fields, "x");
    assert_eq!(send(&format!("{BEARER}{}", sign(&key, "billing", "1"))).status, 200);
    assert_eq!(send(&sign(&other, "crm", "2")).status, 200);
    assert_refused(&send(&format!("{BEARER}{}", sign(&other, "crm", "3"))), "identify different clients");
    assert_refused(&send(&sign(&other, "billing", "4")), "does not identify a client");
    assert_refused(
        &send(&format!("Proxy-Authorization: Bearer wrong\r\n{}", sign(&key, "billing", "5"))),
        "does not identify",
    );
    assert_refused(&send(""), "Proxy-Authorization is missing");
    // A refusal for contradicting proofs does not use up the nonce.
    assert_eq!(send(&sign(&other, "crm", "3")).status, 200);

    let text = config(&scene.good, &scene.plain, clients).remove("server.allow_anonymous");
    let both = text.add("clients.billing.require", ["token", "signature"]);
    scene.outgate.reconfigure(&both);
    assert_refused(&send(BEARER), "the client must also authenticate by signature");
    assert_refused(&send(&sign(&key, "billing", "6")), "the client must also authenticate by token");
    // A second signature would differ in the second of its creation.
    let signed = format!("{BEARER}{}", sign(&key, "billing", "7"));
    assert_eq!(send(&signed).status, 200);
    // A reload keeps the used nonces.
    scene.outgate.reconfigure(&both.and("[timeouts]\nidle = \"7s\"\n"));
    assert_refused(&send(&signed), "it was used before");
    let proofs: Vec<_> = scene.outgate.records(11).iter().map(|record| record["proof"].clone()).collect();
    let count = |proof: &serde_json::Value| proofs.iter().filter(|found| *found == proof).count();
    assert_eq!((count(&"signature".into()), count(&().into())), (4, 7));
    scene.outgate.reconfigure(&text.set("clients.crm.networks", ["192.0.2.0/24"]));
    assert_eq!(send(&sign(&other, "crm", "8")).code(), "client_forbidden");
    assert_eq!(send(BEARER).status, 200);
    assert!(scene.outgate.records(13)[11..].iter().any(|record| record["proof"] == "token"));
}

/// The record must not have a token that was sent as the client's name.
#[test]
fn record_of_a_wrong_token_has_the_claimed_client_and_no_token() {
    use base64::Engine;
    let (key, other) = (Key::ed25519(), Key::ed25519());
    let clients = "[clients.billing]\npublic_keys = [\"{dir}/billing.pem\"]\ntokens = [\"sha256:b46c09677343261f0b439a472422225e3a230c9c094d6ab16762e2036b597053\"]\n\
                   [clients.far]\ntokens = [\"sha256:f79a1edeca2ab8e2a0c4ad8a2a8c5a8ec8fd6cbbbf1ef3d5d1b0cb0ec08fa3d1\"]\n";
    let scene = scene(clients, |folder| drop(folder.write("billing.pem", key.public_pem())));
    let url = scene.good_url();
    let basic =
        |text: &str| format!("Proxy-Authorization: Basic {}\r\n", base64::prelude::BASE64_STANDARD.encode(text));
    let cases = [
        (basic("billing:SECRET-1"), "billing".into()),
        (basic("far:t0ken"), "far".into()),
        (basic("SECRET-2:"), "unknown".into()),
        (basic("SECRET-3:x"), "unknown".into()),
        ("Proxy-Authorization: Bearer SECRET-4\r\n".to_owned(), ().into()),
        (other.sign_request("POST", &url, "x", ""), "billing".into()),
        (other.sign_request_as("SECRET-5", "POST", &url, "x", ""), "unknown".into()),
        (String::new(), serde_json::Value::Null),
    ];
    for (fields, _) in &cases {
        assert_eq!(scene.outgate.post(&url, fields, "x").code(), "client_unauthenticated", "{fields}");
    }
    for (record, (fields, claimed)) in scene.outgate.records(cases.len()).iter().zip(&cases) {
        assert_eq!((&record["claimed_client"], &record["client"]), (claimed, &().into()), "{fields}: {record}");
        assert!(!record.to_string().contains("SECRET"), "{record}");
    }
}

#[test]
fn client_public_key_is_replaced_when_its_file_changes() {
    let (old, new) = (Key::ed25519(), Key::p256());
    let scene = scene_with_signer(&old);
    let url = scene.good_url();
    let send = |key: &Key, nonce: &str| {
        let fields = key.sign_request("POST", &url, "x", &format!(";nonce=\"{nonce}\""));
        scene.outgate.post(&url, &fields, "x").status
    };
    assert_eq!((send(&old, "1"), send(&new, "2")), (200, 407));
    let replace = |text: String| scene.outgate.after_reload(|| drop(scene.outgate.folder.write("billing.pem", text)));
    replace(old.public_pem() + &new.public_pem());
    assert_eq!((send(&old, "3"), send(&new, "4")), (200, 200));
    replace(new.public_pem());
    assert_eq!((send(&old, "5"), send(&new, "6")), (407, 200));
}

#[test]
fn client_proofs_that_are_malformed_are_refused() {
    let key = Key::ed25519();
    let scene = scene_with_signer(&key);
    let url = scene.good_url();
    let good = key.sign_request("POST", &url, "x", "");
    let flood: String = (0..3000).map(|label| format!("s{label}=(), ")).collect();
    for fields in [
        good.replace_one("Signature: mine=:", "Signature: mine=:!"),
        good.replace_one("Signature: ", "X: "),
        good.replace_one("Signature-Input: ", &format!("Signature-Input: {}", "a=(), ".repeat(3000))),
        good.replace_one("Signature-Input: mine=", &format!("Signature-Input: {flood}mine=(), mine=")),
        format!("{good}{good}"),
        good.replace_one("keyid=\"billing\"", &format!("keyid=\"{}\"", "k".repeat(8000))),
        format!("Twilio-Client-Validation: {}\r\n", "a.".repeat(20_000)),
        "Twilio-Client-Validation: eyJhbGciOiJub25lIn0.e30.\r\n".into(),
        format!("{good}Twilio-Client-Validation: a.b.c\r\n"),
        "Signature-Input: x=();tag=\"outgate\"\r\n".into(),
        "Signature-Input: x=\"outgate\", (\r\n".into(),
    ] {
        let response = scene.outgate.post(&url, &fields, "x");
        assert_eq!((response.status, response.code()), (407, "client_unauthenticated"), "{fields:.200}");
    }
    assert!(scene.good.requests().is_empty());
    assert_eq!(scene.outgate.post(&url, &good, "x").status, 200, "the refused requests have not used up the signature");
}

#[test]
fn tenants_share_neither_target_connections_nor_limits() {
    let limit = "[limits.tight]\nrate = \"1/h\"\nburst = 2\nper = [\"tenant\"]\n";
    let clients = format!(
        "{limit}[clients.billing]\ntokens = [\"sha256:b46c09677343261f0b439a472422225e3a230c9c094d6ab16762e2036b597053\"]\ntenants = [\"acme\", \"globex\"]\n"
    );
    let scene = scene(&clients, |_| {});
    let text = config(&scene.good, &scene.plain, &clients).remove("server.allow_anonymous");
    let text = text.set("egress.default.ranges", ["127.0.7.1"]);
    let text = text.add("routes.signed.tenants", ["acme", "globex"]).add("routes.signed.limits", ["tight"]);
    scene.outgate.reconfigure(&text);
    let mut client = scene.outgate.connect();
    let mut send = |tenant: &str| {
        client.send(post(&scene.good_url(), &format!("{BEARER}{tenant}"), "x"));
        client.response()
    };
    let (acme, globex) = ("Outgate-Tenant: acme\r\n", "Outgate-Tenant: globex\r\n");
    for tenant in [acme, globex, acme, globex] {
        assert_eq!(send(tenant).status, 200, "{tenant}");
    }
    // The tenants share the source address and the target, and have separate connections.
    let connections: Vec<_> = scene.good.requests().iter().map(|received| received.connection).collect();
    assert_eq!(connections, [0, 1, 0, 1]);
    assert_eq!(send(acme).code(), "rate_limited");
    assert_eq!(send(globex).code(), "rate_limited");
    assert_eq!(send("Outgate-Tenant: initech\r\n").code(), "client_forbidden");
    assert_eq!(send("").code(), "no_route");
    let records = scene.outgate.records(8);
    assert_eq!((&records[0]["tenant"], &records[1]["tenant"]), (&"acme".into(), &"globex".into()));
    assert_eq!((&records[0]["reused"], &records[1]["reused"]), (&false.into(), &false.into()));
    assert_eq!((&records[2]["reused"], &records[3]["reused"]), (&true.into(), &true.into()));
}

#[test]
fn explain_shows_the_proofs_of_a_client() {
    let folder = Folder::new();
    folder.write("billing.pem", Key::ed25519().public_pem());
    let base =
        "[egress.default]\nranges = [\"127.0.7.1\"]\n[[routes]]\nname = \"r\"\nhosts = [\"*\"]\n[clients.billing]\n";
    for (client, expected) in [
        ("networks = [\"10.0.0.0/8\"]", "billing: authenticated by network"),
        (
            "tokens = [\"sha256:b46c09677343261f0b439a472422225e3a230c9c094d6ab16762e2036b597053\"]\npublic_keys = [\"billing.pem\"]",
            "billing: authenticated by token or signature",
        ),
        (
            "tokens = [\"sha256:b46c09677343261f0b439a472422225e3a230c9c094d6ab16762e2036b597053\"]\nnetworks = [\"10.0.0.0/8\"]\ncertificates = [\"a.internal\"]\nrequire = [\"token\", \"certificate\"]",
            "billing: authenticated by token and certificate, all of them required, from its networks only",
        ),
    ] {
        let file = folder.write("c.toml", format!("{base}{}\n", client));
        let run = std::process::Command::new(env!("CARGO_BIN_EXE_outgate"))
            .args(["explain", "POST", "https://hook.example/", "--client", "billing", "--config"])
            .arg(file)
            .output()
            .unwrap();
        let printed = String::from_utf8(run.stdout).unwrap();
        let line = printed.lines().find_map(|line| line.strip_prefix("client")).map(str::trim);
        assert_eq!(line, Some(expected), "{printed}{}", String::from_utf8_lossy(&run.stderr));
    }
}

/// RFC 9110 §7.6.1: a proxy removes the fields that `Connection` names.
#[test]
fn client_signature_covering_a_field_that_connection_names_is_refused() {
    let key = Key::ed25519();
    let scene = scene_with_signer(&key);
    let url = scene.plain_url();
    let covered = [("@method", "GET"), ("@target-uri", &*url), ("x-event", "paid")];
    let send = |more: &str, nonce: u8| {
        let fields = key.sign_components(&covered, &format!(";nonce=\"{nonce}\""));
        let mut client = scene.outgate.connect();
        client.send(format!("GET {url} HTTP/1.1\r\nHost: h\r\nX-Event: paid\r\n{more}{fields}\r\n"));
        client.response()
    };
    assert_refused(&send("Connection: close, X-Event\r\n", 1), "Connection names a field that it covers");
    assert_eq!(send("Connection: close, X-Other\r\n", 2).status, 200);
    assert_eq!(scene.plain.wait_for_requests(1)[0].field("x-event"), "paid");
}

/// If the signature did not cover the scheme, https and http could be exchanged.
#[test]
fn client_signature_of_an_absolute_form_request_covers_its_scheme() {
    let key = Key::ed25519();
    let scene = scene_with_signer(&key);
    let url = scene.plain_url();
    let authority = format!("plain.example:{}", scene.plain.port());
    let parts = [("@method", "GET"), ("@authority", &*authority), ("@path", "/in"), ("@query", "?")];
    let send = |covered: &[(&str, &str)]| {
        let mut client = scene.outgate.connect();
        client.send(format!("GET {url} HTTP/1.1\r\nHost: h\r\n{}\r\n", key.sign_components(covered, "")));
        client.response()
    };
    assert_refused(&send(&parts), "it covers neither @target-uri nor @scheme");
    assert_eq!(send(&[&parts[..], &[("@scheme", "http")]].concat()).status, 200);
}

#[test]
fn client_signature_covers_unencoded_characters_as_sent() {
    let key = Key::ed25519();
    let scene = scene_with_signer(&key);
    let url = scene.plain_url() + "{a}?b=<c>";
    let fields = key.sign_request("POST", &url, "hello", "");
    assert_eq!(scene.outgate.post(&url, &fields, "hello").status, 200);
    assert_eq!(scene.plain.wait_for_requests(1)[0].line, "POST /in%7Ba%7D?b=%3Cc%3E HTTP/1.1");
    // The encoded form is another request.
    let encoded = scene.plain_url() + "%7Bb%7D";
    let fields = key.sign_request("POST", &(scene.plain_url() + "{b}"), "hello", "");
    assert_refused(&scene.outgate.post(&encoded, &fields, "hello"), "does not identify a client");
}
