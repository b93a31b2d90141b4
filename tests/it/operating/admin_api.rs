//! The admin API: who may call, what each resource shows, and how a wrong call is refused.
//! Can a user over TCP do what the role allows, and nothing else?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;

use rcgen::ExtendedKeyUsagePurpose;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use support::audit::{audited_with, until_recorded};
use support::configuration::{Config, Replace, token_hash};
use support::control::{exit_code_and_output, get, run, with_admin_socket};
use support::pki::{Identity, Pki};
use support::receiver::{Receiver, ok};
use support::scene::{Scene, config, folder, scene_of};
use support::{Client, Outgate, Response, eventually};

const VIEWER: &str = "Bearer viewer-token";
const OPERATOR: &str = "Bearer operator-token";

/// Adds a viewer and an operator.
fn and_users(config: &Config) -> Config {
    let user = |name: &str| {
        let hash = token_hash(&format!("{name}-token"));
        format!("[admin.users.{name}]\nrole = \"{name}\"\ntokens = [\"{hash}\"]\n")
    };
    config.and(&user("viewer")).and(&user("operator"))
}

/// Adds an admin socket, a viewer and an operator.
pub(super) fn with_users(config: &Config) -> Config {
    and_users(&with_admin_socket(config))
}

fn scene() -> Scene {
    scene_of(&with_users)
}

fn head(method: &str, path: &str, credential: Option<&str>) -> String {
    let credential = credential.map(|credential| format!("Authorization: {credential}\r\n")).unwrap_or_default();
    format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{credential}")
}

/// Calls over TCP.
fn call(outgate: &Outgate, method: &str, path: &str, credential: Option<&str>) -> Response {
    let mut client = Client::connect(outgate.admin);
    let content =
        if method == "POST" { "Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}" } else { "\r\n" };
    client.send(head(method, path, credential) + content);
    client.response_to(method)
}

#[test]
fn admin_api_over_tcp_requires_a_credential_and_the_role_of_the_call() {
    let scene = scene();
    let outgate = &scene.outgate;
    for path in ["/healthz", "/readyz", "/metrics", "/keys", "/.well-known/http-message-signatures-directory"] {
        assert_eq!(call(outgate, "GET", path, None).status, 200, "{path}");
        assert_eq!(call(outgate, "GET", path, Some("Bearer wrong")).status, 200, "{path} needs none");
    }
    let reads = ["/", "/v1/openapi.json", "/v1/status", "/v1/plan", "/v1/egress", "/v1/limits", "/v1/circuits"];
    for path in reads.into_iter().chain(["/v1/deliveries", "/v1/history", "/v1/diff"]) {
        for wrong in [None, Some("Bearer wrong"), Some("Basic dmlld2VyOndyb25n"), Some("Bearer"), Some("Digest x")] {
            let refused = call(outgate, "GET", path, wrong);
            assert_eq!((refused.status, refused.field("content-type")), (401, "application/problem+json"), "{path}");
            let challenge = refused.field("www-authenticate").to_owned();
            assert!(challenge.contains("Basic realm=") && challenge.contains("Bearer realm="), "{challenge}");
        }
        // A browser sends the name and the token.
        for right in [VIEWER, OPERATOR, "Basic dmlld2VyOnZpZXdlci10b2tlbg=="] {
            assert_eq!(call(outgate, "GET", path, Some(right)).status, 200, "{path}");
        }
    }
    for path in ["/v1/reload", "/v1/rollback?number=1", "/v1/drain", "/v1/undrain", "/v1/diff"] {
        assert_eq!(call(outgate, "POST", path, None).status, 401, "{path}");
        let refused = call(outgate, "POST", path, Some(VIEWER));
        assert_eq!((refused.status, &refused.json()["role"]), (403, &json!("operator")), "{path}");
    }
    assert_eq!(call(outgate, "POST", "/v1/reload", Some(OPERATOR)).json()["outcome"], "unchanged");
    // A stranger does not learn which other resources there are.
    assert_eq!(call(outgate, "GET", "/nothing", None).status, 401);
    assert_eq!(call(outgate, "GET", "/nothing", Some(VIEWER)).status, 404);
    // Without users, only a unix socket serves the API.
    outgate.reconfigure(&with_admin_socket(&config(&scene.good, &scene.plain, "")));
    let refused = call(outgate, "GET", "/v1/status", Some(OPERATOR));
    assert_eq!(refused.status, 401);
    assert!(call(outgate, "GET", "/v1/status", None).text().contains("call a unix socket"));
    assert_eq!(get(outgate, "/v1/status").status, 200);
}

#[test]
fn admin_api_refuses_commands_that_a_page_of_another_site_could_send() {
    let scene = scene();
    for content in ["", "Content-Type: text/plain\r\n", "Content-Type: application/x-www-form-urlencoded\r\n"] {
        let mut client = Client::connect(scene.outgate.admin);
        client
            .send(format!("{}{content}Content-Length: 0\r\n\r\n", head("POST", "/v1/drain?grace=0s", Some(OPERATOR))));
        assert_eq!(client.response().status, 415, "{content}");
    }
    let mut client = Client::connect(scene.outgate.admin);
    let rebound = head("POST", "/v1/drain", Some(OPERATOR)).replace_one("Host: localhost", "Host: rebound.example");
    client.send(format!("{rebound}Content-Type: application/json\r\nContent-Length: 0\r\n\r\n"));
    assert_eq!(client.response().status, 421);
    assert_eq!(call(&scene.outgate, "GET", "/v1/drain?grace=0s", Some(OPERATOR)).status, 405, "a link changes nothing");
    assert_eq!(call(&scene.outgate, "GET", "/v1/status", Some(VIEWER)).json()["drain"]["stage"], "serving");
}

#[test]
fn admin_api_names_the_wrong_parameter_method_or_body() {
    let scene = scene();
    let field = |path: &str| {
        let refused = call(&scene.outgate, "GET", path, Some(VIEWER));
        assert_eq!(refused.status, 400, "{path}: {}", refused.text());
        refused.json()["field"].as_str().unwrap().to_owned()
    };
    assert_eq!(field("/v1/status?x=1"), "x");
    assert_eq!(field("/v1/deliveries?source=10.0.0"), "source");
    assert_eq!(field("/v1/deliveries?since=yesterday"), "since");
    assert_eq!(field("/v1/deliveries?after=-1"), "after");
    assert_eq!(field("/v1/deliveries?code=a&code=b"), "code");
    assert_eq!(field("/v1/diff?number=x"), "number");
    for (method, path, allow) in [
        ("DELETE", "/v1/status", "GET, HEAD"),
        ("PUT", "/v1/diff", "GET, HEAD, POST"),
        ("GET", "/v1/reload", "POST"),
        ("TRACE", "/healthz", "GET, HEAD"),
        ("OPTIONS", "/", "GET, HEAD"),
    ] {
        let refused = call(&scene.outgate, method, path, Some(OPERATOR));
        assert_eq!((refused.status, refused.field("allow")), (405, allow), "{method} {path}");
    }
    let post = |path: &str, body: &str| {
        let mut client = Client::connect(scene.outgate.admin);
        let head = head("POST", path, Some(OPERATOR));
        client.send(format!("{head}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len()));
        client.try_send(body);
        client.response().status
    };
    for body in ["[]", "{\"x\":1}", "null", "{", "\u{0}", "{}{}"] {
        assert_eq!(post("/v1/reload", body), 400, "{body}");
    }
    assert_eq!(post("/v1/explain", "{\"method\":\"POST\",\"url\":\"https://a.example/\"}"), 400);
    assert_eq!(post("/v1/explain", &format!("{{\"url\":\"{}\"", "x".repeat(1 << 17))), 413);
    assert_eq!(post("/v1/rollback", "{}"), 400);
    assert_eq!(post("/v1/drain?grace=8d", "{}"), 400);
    assert_eq!(post("/v1/rollback?number=77", "{}"), 404);
}

/// Requests that a client library would not send.
#[test]
fn admin_api_survives_hostile_requests() {
    let scene = scene();
    let long = "x".repeat(15_000);
    let deep = "[".repeat(50_000);
    let requests = [
        format!("GET /v1/deliveries?{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "tenant=%00%ff&".repeat(800)),
        format!("GET /v1/deliveries/{long} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        "GET /v1/deliveries/..%2f..%2fetc HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
        "GET //v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
        "GET http://localhost/v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
        "GET * HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
        format!("GET /v1/status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic {long}\r\n\r\n"),
        "GET /v1/status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic OjpAQEA=\r\nAuthorization: Bearer x\r\n\r\n".to_owned(),
        format!(
            "{}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{deep}",
            head("POST", "/v1/explain", Some(VIEWER)),
            deep.len()
        ),
        format!("{}Content-Type: application/json\r\nContent-Length: 9\r\n\r\n", head("POST", "/v1/reload", Some(OPERATOR))),
    ];
    for request in requests {
        let mut client = Client::connect(scene.outgate.admin);
        client.send(&request);
        client.shutdown_write();
        let answer = String::from_utf8_lossy(&client.rest()).into_owned();
        let is_refused = answer.is_empty() || answer.starts_with("HTTP/1.1 4");
        assert!(is_refused && !answer.contains("\"version\""), "{request:.80}: {answer}");
    }
    assert_eq!(call(&scene.outgate, "GET", "/v1/status", Some(VIEWER)).status, 200);
}

#[test]
fn admin_api_shows_egress_limits_circuits_and_one_delivery() {
    let more = "[limits.few]\nrate = \"4/h\"\nconcurrency = 5\nper = [\"host\", \"tenant\"]\n[circuit]\nfailures = 1\nopen = \"1h\"\n\
                open_max = \"1h\"\n";
    let scene = scene_of(&|text| with_users(&text.and(more).add("routes.signed.limits", ["few"])));
    let outgate = &scene.outgate;
    let read = |path: &str| call(outgate, "GET", path, Some(VIEWER)).json();
    let sent = outgate.post(&scene.good_url(), "", "x");
    assert_eq!(sent.status, 200);
    assert_eq!(outgate.post(&scene.good_url(), "", "x").status, 200);
    let silent = format!("https://plain.example:{}/", scene.plain.port());
    assert_eq!(outgate.post(&silent, "", "x").code(), "connect_timeout");
    eventually("three deliveries", || read("/v1/deliveries")["count"] == 3);

    let egress = read("/v1/egress");
    assert_eq!((&egress["pools"][0]["pool"], &egress["pools"][0]["usable"]), (&json!("default"), &json!("4")));
    assert_eq!(egress["pools"][0]["usable_ranges"], json!(["127.0.7.0/30"]), "{egress}");
    let limit = read("/v1/limits")["limits"][0].clone();
    assert_eq!((&limit["limit"], &limit["allowed"], &limit["keys"]), (&json!("few"), &json!(2), &json!(1)), "{limit}");
    let fullest = &limit["fullest"][0];
    assert_eq!(fullest["key"], json!({ "host": "hook.example", "tenant": null }), "{limit}");
    assert_eq!((&fullest["percent"], &fullest["tokens_left"]), (&json!(50.0), &json!(2)), "{limit}");
    let circuits = read("/v1/circuits");
    assert_eq!(circuits["count"], 1, "{circuits}");
    let circuit = &circuits["circuits"][0];
    assert_eq!((&circuit["state"], &circuit["host"]), (&json!("open"), &json!("plain.example")), "{circuits}");
    assert!(circuit["retry_after_seconds"].as_f64().is_some_and(|wait| wait > 3000.0), "{circuits}");
    let plan = read("/v1/plan");
    assert_eq!((&plan["routes"], &plan["limits"]), (&json!(2), &json!(["few"])), "{plan}");
    let id = sent.field("outgate-request-id");
    let delivery = read(&format!("/v1/deliveries/{id}"));
    assert_eq!((&delivery["delivery"]["request_id"], &delivery["delivery"]["code"]), (&json!(id), &json!("delivered")));
    let steps = delivery["steps"].as_array().unwrap();
    assert!(
        steps.iter().any(|step| step["step"] == "fault" && step["what"].as_str().unwrap().starts_with("none")),
        "{delivery}"
    );
    assert_eq!(call(outgate, "GET", "/v1/deliveries/00", Some(VIEWER)).status, 404);
    let filtered = read("/v1/deliveries?code=connect_timeout&host=plain.example");
    assert_eq!(filtered["deliveries"].as_array().unwrap().len(), 1, "{filtered}");
    let history = read("/v1/history");
    assert_eq!((&history["entries"][0]["number"], &history["entries"][0]["active"]), (&json!(1), &json!(true)));
    let explained = support::control::call(
        outgate,
        "POST",
        "/v1/explain",
        &json!({ "method": "POST", "url": scene.good_url(), "client": "anonymous" }).to_string(),
    );
    assert_eq!(explained.json()["refusal"], Value::Null, "{}", explained.text());
}

#[test]
fn admin_api_rolls_back_until_the_next_reload_and_reports_the_drift() {
    let scene = scene();
    let outgate = &scene.outgate;
    let first = outgate.config();
    outgate.reconfigure(&first.set("routes.plain.hosts", ["moved.example"]));
    assert_eq!(outgate.post(&scene.plain_url(), "", "x").code(), "no_route");
    let back = call(outgate, "POST", "/v1/rollback?number=1", Some(OPERATOR));
    assert_eq!((back.status, &back.json()["outcome"]), (200, &json!("adopted")), "{}", back.text());
    assert_eq!(outgate.post(&scene.plain_url(), "", "x").status, 200);
    let status = get(outgate, "/v1/status").json();
    assert_eq!(
        (&status["configuration"]["number"], &status["configuration"]["how"]),
        (&json!(3), &json!("rollback to 1"))
    );
    assert!(status["configuration"]["by"].as_str().unwrap().contains("user operator at 127.0.0.1"), "{status}");
    assert!(status["drift"]["what"].as_str().unwrap().contains("outgate rollback 1"), "{status}");
    assert!(outgate.has_metric("outgate_config_drift 1"));
    let on_disk = std::fs::read_to_string(outgate.folder.path("config.toml")).unwrap();
    assert!(on_disk.contains("moved.example"), "the files stay");
    // The command on the host writes the files, and the drift ends.
    let (code, _, err) = exit_code_and_output(&run(&scene, &["rollback", "1"]));
    assert_eq!(code, 0, "{err}");
    assert!(outgate.has_metric("outgate_config_drift 0"));
    assert_eq!(call(outgate, "POST", "/v1/rollback?number=1", Some(OPERATOR)).json()["outcome"], "unchanged");
}

#[test]
fn admin_api_calls_and_failures_are_in_the_audit_log_with_user_and_address() {
    let mut scene = audited_with(&and_users);
    for _ in 0..3 {
        assert_eq!(call(&scene.outgate, "GET", "/v1/status", Some("Bearer wrong")).status, 401);
    }
    assert_eq!(call(&scene.outgate, "GET", "/v1/status", Some(VIEWER)).status, 200);
    assert_eq!(call(&scene.outgate, "POST", "/v1/reload", Some(VIEWER)).status, 403);
    let grown = scene.outgate.config().and("[limits.l]\nrate = \"1/s\"\n");
    scene.outgate.replace_config(&grown);
    assert_eq!(call(&scene.outgate, "POST", "/v1/reload", Some(OPERATOR)).json()["outcome"], "adopted");
    let updated = &until_recorded(&scene.outgate, "configuration.updated", 1)[0];
    assert_eq!((&updated["actor_sid"], &updated["source_ip_address"]), (&json!("operator"), &json!("127.0.0.1")));
    let requested_by = json!([{ "source": "admin", "user": "operator", "address": "127.0.0.1" }]);
    assert_eq!(updated["event_data"]["requested_by"], requested_by, "{updated}");
    scene.outgate.signal("TERM");
    assert!(scene.outgate.wait().success());
    let called = until_recorded(&scene.outgate, "admin.called", 1);
    let [called] = &called[..] else { panic!("{called:?}") };
    assert_eq!((&called["actor_sid"], &called["resource_sid"]), (&json!("viewer"), &json!("/v1/status")));
    assert_eq!(called["source_ip_address"], "127.0.0.1", "{called}");
    let failed = until_recorded(&scene.outgate, "authentication.failed", 2);
    let of = |path: &str| failed.iter().find(|record| record["resource_sid"] == path).unwrap();
    assert_eq!((&of("/v1/status")["event_data"]["count"], &of("/v1/status")["actor_sid"]), (&json!(3), &Value::Null));
    assert_eq!(of("/v1/reload")["actor_sid"], "viewer", "the role is missing");
}

/// Calls over TLS, with a client certificate or without one.
fn call_tls(ca: &Pki, to: SocketAddr, identity: Option<Identity>, path: &str, credential: Option<&str>) -> u16 {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    let config = match identity {
        Some(Identity { chain, key }) => builder.with_client_auth_cert(chain, key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    let name = ServerName::try_from("admin.internal").unwrap();
    let tcp = TcpStream::connect(to).unwrap();
    tcp.set_read_timeout(Some(support::TEST_TIMEOUT)).unwrap();
    let mut stream = StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), tcp);
    stream.write_all((head("GET", path, credential) + "\r\n").as_bytes()).unwrap();
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes); // the peer may end without close_notify
    Response::parse(&bytes).status
}

#[test]
fn admin_api_over_tls_takes_client_certificates_and_tokens() {
    let (pki, clients) = (Pki::new(), Pki::new());
    let plain = Receiver::plain(ok());
    let folder = folder(&pki);
    let server = pki.leaf(&["admin.internal"]);
    folder.write("admin.pem", server.chain_pem());
    folder.write("admin.key", server.key_pem());
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(folder.path("admin.key"), mode).unwrap();
    folder.write("clients.pem", &clients.pem);
    let listen = "[[admin.listen]]\naddress = \"127.0.0.2:0\"\n[admin.listen.tls]\ncertificate = \"{dir}/admin.pem\"\n\
                  key = \"{dir}/admin.key\"\nclient_ca = \"{dir}/clients.pem\"\n";
    let user = "[admin.users.alice]\nrole = \"operator\"\ncertificates = [\"alice@acme.example\"]\n";
    let text = with_users(&config(&plain, &plain, "")).remove("admin.listen").and(listen).and(user);
    let outgate = Outgate::run(folder, &text);
    let to = outgate.admin;
    let alice = |pki: &Pki| {
        Some(pki.leaf_with(&[], |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            params.subject_alt_names = vec![rcgen::SanType::Rfc822Name("alice@acme.example".try_into().unwrap())];
        }))
    };
    assert_eq!(call_tls(&pki, to, alice(&clients), "/v1/status", None), 200);
    assert_eq!(call_tls(&pki, to, None, "/v1/status", None), 401);
    assert_eq!(call_tls(&pki, to, None, "/healthz", None), 200, "a probe needs no certificate");
    assert_eq!(call_tls(&pki, to, None, "/v1/status", Some(VIEWER)), 200);
    assert_eq!(call_tls(&pki, to, alice(&clients), "/v1/status", Some(VIEWER)), 401, "of two users");
    // Another reload changes the listener's trust: a removed user loses access at the next call.
    outgate.reconfigure(&text.remove("admin.users.alice"));
    assert_eq!(call_tls(&pki, to, alice(&clients), "/v1/status", None), 401);
}

#[test]
fn check_refuses_admin_tokens_that_would_cross_a_network_in_plaintext() {
    let folder = support::Folder::new();
    let check = |listen: &str, user: &str| {
        let plain = Receiver::plain(ok());
        let base = config(&plain, &plain, "").remove("signers").remove("routes").remove("trust");
        let text = base.set("admin.listen", [listen]).and(user);
        let path = folder.write_config("config.toml", &text);
        let output =
            Command::new(env!("CARGO_BIN_EXE_outgate")).args(["check", "--config"]).arg(path).output().unwrap();
        let (code, out, err) = exit_code_and_output(&output);
        (code, format!("{out}{err}"))
    };
    let token = format!("[admin.users.alice]\nrole = \"viewer\"\ntokens = [\"{}\"]\n", token_hash("x"));
    for exposed in ["0.0.0.0:4751", "10.0.0.1:4751", "[::]:4751"] {
        let (code, printed) = check(exposed, &token);
        assert!(code == 1 && printed.contains("would send tokens in plaintext"), "{exposed}: {printed}");
        let certificate = token.replace_one("tokens = [", "certificates = [\"alice.internal\"]\n#");
        let (_, printed) = check(exposed, &certificate);
        assert!(printed.contains("no admin listener has client_ca") && !printed.contains("plaintext to"), "{printed}");
    }
    for local in ["127.0.0.1:4751", "[::1]:4751", "unix:/run/outgate-test/admin.sock"] {
        let (code, printed) = check(local, &token);
        assert_eq!(code, 0, "{local}: {printed}");
    }
    for (user, expected) in [
        ("[admin.users.a]\ntokens = []\n", "`admin.users.a` has no `role`"),
        ("[admin.users.a]\nrole = \"root\"\n", "unknown value for `admin.users.a.role`"),
        ("[admin.users.a]\nrole = \"viewer\"\n", "has no means of authentication"),
        ("[admin.users.a]\nrole = \"viewer\"\ncertificates = [\"*.internal\"]\n", "not a subject alternative name"),
        ("[admin.users.a]\nrole = \"viewer\"\ntokens = [\"secret\"]\n", "`admin.users.a.tokens` is not"),
        ("[admin.users.a]\nrole = \"viewer\"\npassword = \"x\"\n", "this is called `tokens`"),
    ] {
        let (code, printed) = check("127.0.0.1:4751", user);
        assert!(code == 1 && printed.contains(expected), "{user}: {printed}");
    }
    let two = token.clone() + &token.replace_one("alice", "bob");
    let (code, printed) = check("127.0.0.1:4751", &two);
    assert!(code == 1 && printed.contains("two users of the admin listener have the same token"), "{printed}");
}
