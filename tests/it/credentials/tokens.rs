//! Credentials for targets that demand them, against a real token endpoint.
//! Does the target get the credential, and do records and logs never have it?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use socket2::{Domain, Socket, Type};
use support::configuration::{Config, Replace};
use support::pki::{Pki, self_signed};
use support::ports::refusing;
use support::receiver::{Reaction, Receiver, ok, respond_with};
use support::scene::{SECRET, folder};
use support::signature::verify;
use support::{Folder, Outgate, TEST_TIMEOUT, eventually, post};

/// A word that every secret of these tests contains.
const SECRET_WORD: &str = "hunter2";

/// A proxy, the target `hook.example`, and the token endpoint `login.example`.
struct Scene {
    pki: Pki,
    outgate: Outgate,
    target: Receiver,
    endpoint: Receiver,
}

fn secrets(pki: &Pki) -> Folder {
    let folder = folder(pki);
    for (name, text) in [("password", "hunter2 é"), ("token", "hunter2.t-o_k~e+n/="), ("client", "hunter2+/%")] {
        let path = folder.write(name, text);
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    }
    folder
}

/// Returns a configuration with these keys in `[credentials.acme]` and in the route.
fn config(ports: &[u16], credential: &str, route: &str) -> Config {
    Config::parse(&format!(
        r#"
[server]
listen = ["127.0.0.1:0"]
allow_anonymous = true
[admin]
listen = ["127.0.0.1:0"]
[egress.default]
ranges = ["127.0.7.0/30"]
[guard]
allow = ["127.0.0.0/8"]
[resolver.hosts]
"hook.example" = ["127.0.0.1"]
"login.example" = ["127.0.0.1"]
"private.example" = ["10.1.2.3"]
[trust.public]
roots = ["{{dir}}/ca.pem"]
[signers.platform]
scheme = "standard-webhooks"
keys = [{{ id = "k1", secret = "file:{{dir}}/key" }}]
[credentials.acme]
{credential}
[log]
level = "trace"
[[routes]]
name = "acme"
hosts = ["hook.example"]
ports = {ports:?}
credential = "acme"
sign = ["platform"]
timeouts = {{ response = "1m", connect = "1m", tls = "1m" }}
{route}
"#
    ))
}

fn oauth2(endpoint: u16, more: &str) -> String {
    format!(
        "type = \"oauth2\"\ntoken_url = \"https://login.example:{endpoint}/token?v=2\"\nclient_id = \"us: and\"\n\
         client_secret = \"file:{{dir}}/client\"\n{more}"
    )
}

fn scene(target: Reaction, endpoint: Reaction, credential: &str, route: &str) -> Scene {
    let pki = Pki::new();
    let target = Receiver::tls(pki.leaf(&["hook.example"]), target);
    let endpoint = Receiver::tls(pki.leaf(&["login.example"]), endpoint);
    let text = config(&[target.port()], &oauth2(endpoint.port(), credential), route);
    let outgate = Outgate::run(secrets(&pki), &text);
    Scene { pki, outgate, target, endpoint }
}

impl Scene {
    fn url(&self) -> String {
        format!("https://hook.example:{}/in", self.target.port())
    }
    fn post(&self, fields: &str) -> support::Response {
        self.outgate.post(&self.url(), fields, "{}")
    }
    /// Returns the credentials that the target has received.
    fn credentials(&self) -> Vec<String> {
        self.target.requests().iter().map(|received| received.all("authorization").join(" and ")).collect()
    }
}

fn json(status: u16, body: &str) -> Vec<u8> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
    (head + body).into_bytes()
}

fn token(number: usize, lifetime: &str) -> Vec<u8> {
    let expires = if lifetime.is_empty() { String::new() } else { format!(r#","expires_in":{lifetime}"#) };
    json(200, &format!(r#"{{"access_token":"{SECRET_WORD}-{number}","token_type":"Bearer"{expires}}}"#))
}

/// Returns a token endpoint that grants hunter2-1, hunter2-2 and so on.
fn grant_tokens(lifetime: &str) -> Reaction {
    let (count, lifetime) = (AtomicUsize::new(0), lifetime.to_owned());
    Arc::new(move |_| (token(1 + count.fetch_add(1, Ordering::SeqCst), &lifetime), true))
}

fn bearer(number: usize) -> String {
    format!("Bearer {SECRET_WORD}-{number}")
}

fn assert_log_without_secrets(outgate: &Outgate) {
    let printed = outgate.log.all().join("\n");
    // TLS and HTTP libraries log bytes in hexadecimal, in base64 or escaped, and text unchanged.
    for secret in [SECRET_WORD, "dXM6IGFuZDpodW50ZXIy", "dXMlM0EraHVudGVyM", "dXMlM0ErYW5kOmh1bnRlcjI"] {
        let line = printed.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "{secret}: {line:?}");
    }
}

#[test]
fn credential_replaces_the_header_of_the_client() {
    let pki = Pki::new();
    let target = Receiver::tls(pki.leaf(&["hook.example"]), ok());
    let basic = "type = \"basic\"\nusername = \"platform\"\npassword = \"file:{dir}/password\"";
    let outgate = Outgate::run(secrets(&pki), &config(&[target.port()], &basic.replace_one("platform", "first"), ""));
    let url = format!("https://hook.example:{}/in", target.port());
    for (credential, name, expected) in [
        (basic, "authorization", "Basic cGxhdGZvcm06aHVudGVyMiDDqQ=="),
        ("type = \"bearer\"\ntoken = \"file:{dir}/token\"", "authorization", "Bearer hunter2.t-o_k~e+n/="),
        ("type = \"header\"\nname = \"X-Api-Key\"\nvalue = \"file:{dir}/token\"", "x-api-key", "hunter2.t-o_k~e+n/="),
    ] {
        outgate.reconfigure(&config(&[target.port()], credential, ""));
        let own = "Authorization: Bearer theirs\r\nauthorization: Bearer again\r\nX-Api-Key: theirs\r\n";
        for fields in ["", own] {
            assert_eq!(outgate.post(&url, fields, "{}").status, 200);
            let received = target.requests().pop().unwrap();
            assert_eq!(received.all(name), [expected]);
            verify(&received, SECRET);
        }
    }
    let received = target.requests().pop().unwrap();
    assert_eq!(received.all("authorization").len(), 2, "another header than the credential's is the client's");
    for record in outgate.records(6) {
        assert!(!record.to_string().contains(SECRET_WORD) && !record.to_string().contains("theirs"), "{record}");
    }
    assert_log_without_secrets(&outgate);
}

#[test]
fn oauth2_token_is_fetched_once_from_the_pool_and_reused() {
    let credential = "scopes = [\"send\", \"x:y\"]\naudience = \"https://hook.example/\"\nparameters = { a = \"b c\" }";
    let scene = scene(ok(), grant_tokens("3600"), credential, "");
    for _ in 0..10 {
        assert_eq!(scene.post("Authorization: Bearer theirs\r\n").status, 200);
    }
    assert_eq!(scene.credentials(), vec![bearer(1); 10]);
    scene.target.requests().iter().for_each(|received| verify(received, SECRET));
    let token_requests = scene.endpoint.requests();
    assert_eq!(token_requests.len(), 1);
    assert!(
        (0..4).any(|last| token_requests[0].from == std::net::IpAddr::from([127, 0, 7, last])),
        "{:?}",
        token_requests[0]
    );
    assert_eq!(token_requests[0].line, "POST /token?v=2 HTTP/1.1");
    assert_eq!(token_requests[0].field("host"), format!("login.example:{}", scene.endpoint.port()));
    assert_eq!(token_requests[0].field("content-type"), "application/x-www-form-urlencoded");
    assert_eq!(token_requests[0].field("accept"), "application/json");
    // printf 'us%%3A+and:hunter2%%2B%%2F%%25' | base64
    assert_eq!(token_requests[0].field("authorization"), "Basic dXMlM0ErYW5kOmh1bnRlcjIlMkIlMkYlMjU=");
    let form = "grant_type=client_credentials&scope=send+x%3Ay&audience=https%3A%2F%2Fhook.example%2F&a=b+c";
    assert_eq!(String::from_utf8(token_requests[0].body.clone()).unwrap(), form);

    let records = scene.outgate.records(10);
    assert_eq!(records.len(), 10, "a request for a token has no record of its own");
    assert!(records.iter().all(|record| record["code"] == "delivered" && !record.to_string().contains(SECRET_WORD)));
    assert!(records[0]["ms"]["token"].is_number() && records[0]["ms"]["resolve"].is_number(), "{}", records[0]);
    let metrics = scene.outgate.admin("/metrics").text();
    assert!(metrics.contains("outgate_token_requests_total{credential=\"acme\",result=\"granted\"} 1"), "{metrics}");
    assert!(!metrics.contains(SECRET_WORD));
    assert_log_without_secrets(&scene.outgate);
}

#[test]
fn oauth2_client_auth_body_sends_the_secret_in_the_form() {
    let scene = scene(ok(), grant_tokens(""), "client_auth = \"body\"", "");
    assert_eq!(scene.post("").status, 200);
    let token_requests = &scene.endpoint.requests()[0];
    assert_eq!(token_requests.field("authorization"), "");
    let form = "grant_type=client_credentials&client_id=us%3A+and&client_secret=hunter2%2B%2F%25";
    assert_eq!(String::from_utf8(token_requests.body.clone()).unwrap(), form);
    assert_log_without_secrets(&scene.outgate);
}

#[test]
fn oauth2_deliveries_at_once_share_one_token_request() {
    let (release, wait) = mpsc::channel();
    let wait = Mutex::new(wait);
    let held: Reaction = Arc::new(move |_| {
        let _ = wait.lock().unwrap().recv_timeout(TEST_TIMEOUT);
        (token(1, "3600"), true)
    });
    let scene = scene(ok(), held, "", "");
    let mut clients: Vec<_> = (0..50).map(|_| scene.outgate.connect()).collect();
    // The client that caused the token request hangs up. The other deliveries still get the token.
    let mut first = scene.outgate.connect();
    first.send(post(&scene.url(), "", "{}"));
    eventually("outgate fetches a token", || scene.endpoint.connections() > 0);
    drop(first);
    clients.iter_mut().for_each(|client| client.send(post(&scene.url(), "", "{}")));
    release.send(()).unwrap();
    for client in &mut clients {
        assert_eq!(client.response().status, 200);
    }
    assert_eq!((scene.endpoint.requests().len(), scene.credentials()), (1, vec![bearer(1); 50]));
}

#[test]
fn oauth2_token_is_refreshed_before_it_expires() {
    let scene = scene(ok(), grant_tokens("2"), "", "");
    let deadline = std::time::Instant::now() + TEST_TIMEOUT;
    while scene.credentials().last() != Some(&bearer(3)) {
        assert!(std::time::Instant::now() < deadline, "{:?}", scene.credentials().last());
        assert_eq!(scene.post("").status, 200);
    }
    let credentials = scene.credentials();
    let mut sorted = credentials.clone();
    sorted.sort();
    assert_eq!(credentials, sorted, "no token comes back");
    assert!(scene.endpoint.requests().len() <= 4);
}

#[test]
fn oauth2_token_without_a_lifetime_serves_the_waiting_deliveries() {
    let scene = scene(ok(), grant_tokens("0"), "", "");
    for number in 1..=3 {
        assert_eq!(scene.post("").status, 200);
        assert_eq!(scene.credentials().last(), Some(&bearer(number)));
    }
}

#[test]
fn oauth2_endpoint_failures_have_their_codes_and_details() {
    let pki = Pki::new();
    let target = Receiver::tls(pki.leaf(&["hook.example"]), ok());
    let login = |reaction| Receiver::tls(pki.leaf(&["login.example"]), reaction);
    let (_closed, refused) = refusing();
    let html = json(200, "<html>");
    let login_responding = |bytes: Vec<u8>| login(Arc::new(move |_| (bytes.clone(), true)));
    let denied = json(401, r#"{"error":"invalid_client","error_description":"hunter2"}"#);
    let bad = json(200, r#"{"access_token":"hunter2 x","token_type":"bearer"}"#);
    let long =
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n11000\r\n{}\r\n0\r\n\r\n", "x".repeat(0x11000));
    let half = "HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{\"access_token\":";
    let silent: Reaction = Arc::new(|_| {
        std::thread::park_timeout(TEST_TIMEOUT);
        (Vec::new(), false)
    });
    let cases = [
        (
            login_responding(denied),
            500,
            "internal",
            "invalid_client",
            "it responded with status 401 and granted no token",
        ),
        (login_responding(json(400, "{}")), 500, "internal", "", "it responded with status 400 and granted no token"),
        (login_responding(json(503, "")), 503, "target_circuit_open", "", "it responded with status 503"),
        (login_responding(json(429, "")), 503, "target_circuit_open", "", "it responded with status 429"),
        (
            login_responding(json(302, "")),
            502,
            "response_malformed",
            "",
            "it returned a redirection, which outgate does not follow",
        ),
        (
            login_responding(html),
            502,
            "response_malformed",
            "",
            "it returned a body that is not the JSON of RFC 6749 §5.1",
        ),
        (login_responding(bad), 502, "response_malformed", "", "it returned a token that a header field cannot carry"),
        (login_responding(b"what?\r\n\r\n".to_vec()), 502, "response_malformed", "", "its response violates HTTP"),
        (login(respond_with(&long)), 502, "response_too_large", "", "its response is longer than 65536 bytes"),
        (login_responding(json(200, &"x".repeat(70_000))), 502, "response_too_large", "", "its response is longer"),
        (
            login(respond_with(half)),
            504,
            "response_timeout",
            "",
            "it sent no complete response within the response timeout",
        ),
        (login(silent), 504, "response_timeout", "", "it sent no response within the response timeout"),
        (
            Receiver::tls(self_signed(&["login.example"]), ok()),
            502,
            "certificate_untrusted",
            "self_signed",
            "its certificate is refused",
        ),
        (
            Receiver::tls(pki.leaf(&["hook.example"]), ok()),
            502,
            "certificate_untrusted",
            "name_mismatch",
            "its certificate is refused",
        ),
        (Receiver::plaintext_greeting(), 502, "tls_failed", "plaintext", "its port does not speak TLS"),
    ];
    let outgate = Outgate::run(secrets(&pki), &config(&[target.port()], &oauth2(refused, ""), ""));
    let url = format!("https://hook.example:{}/in", target.port());
    let mut count = 0;
    let mut check = |text: &Config, (status, code, details, detail): (u16, &str, &str, &str)| {
        let response_timeout = if code == "response_timeout" { "300ms" } else { "1m" };
        outgate.reconfigure(&text.set("routes.*.timeouts.response", response_timeout));
        for _ in 0..2 {
            let response = outgate.post(&url, "", "{}");
            count += 1;
            assert_eq!((response.status, response.code()), (status, code), "{detail} {}", response.text());
            let problem = response.json();
            let printed = problem["detail"].as_str().unwrap();
            assert!(printed.starts_with("no token from the token endpoint: ") && printed.contains(detail), "{printed}");
            assert_eq!(problem["details"].as_str().unwrap_or_default(), details);
            let record = outgate.records(count).pop().unwrap();
            assert_eq!(record["code"], code);
            assert!(record["cause"].as_str().unwrap().contains("token endpoint https://"), "{record}");
            assert!(!record.to_string().contains(SECRET_WORD) && !response.text().contains(SECRET_WORD), "{record}");
        }
    };
    for (endpoint, status, code, details, detail) in &cases {
        let text = config(&[target.port()], &oauth2(endpoint.port(), ""), "");
        check(&text, (*status, code, details, detail));
        assert!(endpoint.requests().len() <= 1, "an endpoint that fails is left alone: {detail}");
    }
    let text = config(&[target.port()], &oauth2(refused, ""), "");
    check(&text.set("credentials.acme.client_id", "others"), (502, "connect_refused", "", "it refused the connection"));
    let private = text.set("credentials.acme.token_url", format!("https://private.example:{refused}/token"));
    check(&private, (500, "internal", "", "it is not a public address"));
    let own = text.set("credentials.acme.token_url", format!("https://login.example:{}/token", outgate.proxy.port()));
    check(&own, (500, "internal", "", "it is this proxy itself"));

    assert!(target.requests().is_empty());
    assert_eq!(outgate.records(count).len(), count, "one record a delivery");
    let metrics = outgate.admin("/metrics").text();
    assert!(
        metrics.contains("outgate_token_requests_total{credential=\"acme\",result=\"certificate_untrusted\"} 2"),
        "{metrics}"
    );
    assert_log_without_secrets(&outgate);
}

/// The record of a delivery that fails for a token request has its details, also during the pause after it.
#[test]
fn record_of_a_failed_oauth2_token_request_has_endpoint_source_and_address() {
    let pki = Pki::new();
    let target = Receiver::tls(pki.leaf(&["hook.example"]), ok());
    let denying =
        Receiver::tls(pki.leaf(&["login.example"]), respond_with(std::str::from_utf8(&json(401, "{}")).unwrap()));
    let untrusted = Receiver::tls(self_signed(&["login.example"]), ok());
    // The socket reserves the port and does not listen.
    let held = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    held.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let closed = held.local_addr().unwrap().as_socket().unwrap().port();
    let outgate = Outgate::run(secrets(&pki), &config(&[target.port()], &oauth2(target.port(), ""), ""));
    let url = format!("https://hook.example:{}/in", target.port());
    let mut count = 0;
    let mut evidence = |port: u16| {
        let text = config(&[target.port()], &oauth2(port, ""), "");
        outgate.reconfigure(&text);
        let both = [0, 1].map(|_| {
            assert!(outgate.post(&url, "", "{}").status >= 500);
            count += 1;
            let record = outgate.records(count).pop().unwrap();
            assert!(record["source"].is_null() && record["address"].is_null(), "the target was not reached: {record}");
            record["token_endpoint"].clone()
        });
        assert_eq!(both[0], both[1]);
        let endpoint = both[0].clone();
        assert_eq!((&endpoint["credential"], &endpoint["scheme"]), (&"acme".into(), &"https".into()), "{endpoint}");
        assert_eq!((&endpoint["host"], &endpoint["port"]), (&"login.example".into(), &port.into()), "{endpoint}");
        assert!(endpoint["source"].as_str().unwrap().starts_with("127.0.7."), "{endpoint}");
        assert_eq!(endpoint["address"], "127.0.0.1", "{endpoint}");
        assert!(endpoint["ms"]["connect"].is_number() && endpoint["ms"]["total"].is_number(), "{endpoint}");
        endpoint
    };
    let refused = evidence(closed);
    assert_eq!(refused["attempts"][0]["outcome"], "refused", "{refused}");
    assert!(refused["http"].is_null() && refused["status_class"].is_null(), "{refused}");
    let self_signed_endpoint = evidence(untrusted.port());
    assert_eq!(self_signed_endpoint["certificate"]["verdict"], "self_signed", "{self_signed_endpoint}");
    let denied = evidence(denying.port());
    assert_eq!((&denied["status_class"], &denied["tls"]["verified"]), (&"4xx".into(), &true.into()), "{denied}");
    assert!(denied["ms"]["response"].is_number() && denied.get("attempts").is_none(), "{denied}");
    assert_log_without_secrets(&outgate);
}

#[test]
fn record_of_a_delivery_with_an_oauth2_token_has_no_token_endpoint() {
    let scene = scene(ok(), grant_tokens("300"), "", "");
    assert_eq!(scene.post("").status, 200);
    assert!(scene.outgate.records(1)[0].get("token_endpoint").is_none());
}

#[test]
fn oauth2_endpoint_is_asked_again_after_its_pause() {
    let count = AtomicUsize::new(0);
    let failing_first: Reaction = Arc::new(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => (json(503, ""), true),
        number => (token(number, "60"), true),
    });
    let scene = scene(ok(), failing_first, "", "");
    let response = scene.post("");
    assert_eq!((response.code(), response.field("retry-after")), ("target_circuit_open", "1"));
    let deadline = std::time::Instant::now() + TEST_TIMEOUT;
    while scene.post("").status != 200 {
        assert!(std::time::Instant::now() < deadline, "no token");
    }
    assert_eq!(scene.endpoint.requests().len(), 2, "the pause sends no token request");
}

#[test]
fn oauth2_token_that_the_target_rejects_is_not_reused() {
    let challenge = |number: usize| {
        let refused = bearer(number);
        let reaction: Reaction = Arc::new(move |received| {
            let response = match received.field("authorization") == refused {
                true => {
                    "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"a\", error=\"invalid_token\"\r\nContent-Length: 4\r\n\r\ngone"
                }
                false => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            };
            (response.as_bytes().to_vec(), true)
        });
        reaction
    };
    let scene_one = scene(challenge(1), grant_tokens("3600"), "", "");
    let response = scene_one.post("");
    assert_eq!(
        (response.status, response.code(), response.text().as_str()),
        (401, "", "gone"),
        "the answer is the client's"
    );
    assert_eq!(scene_one.target.requests().len(), 1, "a webhook is never sent twice");
    assert_eq!(scene_one.post("").status, 200);
    assert_eq!(scene_one.credentials(), [bearer(1), bearer(2)]);

    // If a target rejects every token, outgate does not fetch one for each webhook. Other errors keep the token.
    let always = "HTTP/1.1 401 No\r\nWWW-Authenticate: Bearer error=\"invalid_token\"\r\nContent-Length: 0\r\n\r\n";
    for (response, fetches) in [(always, 2), (&always.replace_one("invalid_token", "insufficient_scope"), 1)] {
        let scene = scene(respond_with(response), grant_tokens("3600"), "", "");
        (0..5).for_each(|_| assert_eq!(scene.post("").status, 401));
        assert_eq!(scene.endpoint.requests().len(), fetches);
    }
}

#[test]
fn oauth2_token_of_a_tenant_is_its_own_on_a_route_for_tenants() {
    for (route, fetches) in [("tenants = [\"a\", \"b\"]", 2), ("", 1)] {
        let scene = scene(ok(), grant_tokens("3600"), "", "");
        let text = config(&[scene.target.port()], &oauth2(scene.endpoint.port(), ""), route);
        let clients = "[clients.us]\nnetworks = [\"127.0.0.0/8\"]\ntenants = [\"*\"]\n";
        scene.outgate.reconfigure(&text.set("server.allow_anonymous", false).and(clients));
        for tenant in ["a", "b", "a", "b"] {
            assert_eq!(scene.post(&format!("Outgate-Tenant: {tenant}\r\n")).status, 200);
        }
        assert_eq!(scene.endpoint.requests().len(), fetches, "{route}");
        let credentials = scene.credentials();
        assert_eq!((&credentials[0], &credentials[1]), (&credentials[2], &credentials[3]));
    }
}

#[test]
fn oauth2_token_survives_a_reload_that_does_not_change_its_request() {
    let scene = scene(ok(), grant_tokens("3600"), "", "");
    assert_eq!(scene.post("").status, 200);
    let text = config(&[scene.target.port()], &oauth2(scene.endpoint.port(), ""), "");
    scene.outgate.reconfigure(&text.set("routes.*.timeouts.response", "6s"));
    assert_eq!(scene.post("").status, 200);
    assert_eq!(scene.credentials(), vec![bearer(1); 2]);
    // Another pool or another client secret makes another token request.
    let pool = text.add("egress.eu.ranges", ["127.0.8.1"]).add("egress.eu.notice", "0s");
    scene.outgate.reconfigure(&pool.add("routes.acme.egress", "eu"));
    assert_eq!(scene.post("").status, 200);
    assert_eq!(scene.endpoint.requests().pop().unwrap().from, std::net::IpAddr::from([127, 0, 8, 1]));
    scene.outgate.reconfigure(&text);
    scene.outgate.after_reload(|| drop(scene.outgate.folder.write("client", "hunter2-too")));
    assert_eq!(scene.post("").status, 200);
    assert_eq!(scene.credentials(), [bearer(1), bearer(1), bearer(2), bearer(3)]);
    let proofs: Vec<_> =
        scene.endpoint.requests().iter().map(|received| received.field("authorization").to_owned()).collect();
    assert!(proofs[0] == proofs[1] && proofs[1] != proofs[2]);
    drop(scene.pki);
}

#[test]
fn credential_on_a_route_refuses_tunnels() {
    let scene = scene(ok(), grant_tokens("3600"), "", "");
    let text = config(&[scene.target.port()], &oauth2(scene.endpoint.port(), ""), "");
    scene.outgate.reconfigure(&text.remove("routes.acme.sign"));
    let mut client = scene.outgate.connect();
    client.send(format!("CONNECT hook.example:{} HTTP/1.1\r\nHost: x\r\n\r\n", scene.target.port()));
    assert_eq!(client.response_to("CONNECT").code(), "tunnel_forbidden");
    assert!(scene.endpoint.requests().is_empty());
}

#[test]
fn credential_secrets_are_in_neither_explain_nor_check() {
    let pki = Pki::new();
    let folder = secrets(&pki);
    let text = config(&[443], &oauth2(443, ""), "");
    let file = folder.write_config("config.toml", &text);
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_outgate")).args(arguments).arg("--config").arg(&file).output();
        let output = output.unwrap();
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    let printed = run(&["explain", "POST", "https://hook.example/in"]);
    assert!(printed.contains("credential acme: oauth2\n"), "{printed}");
    assert!(!printed.contains(SECRET_WORD) && !printed.contains("login.example"), "{printed}");
    folder.write_config("config.toml", &text.remove("routes.acme.sign").add("routes.acme.plaintext", "allow"));
    let printed = run(&["check"]);
    assert!(printed.contains("the credential acme would be sent in plaintext"), "{printed}");
    assert!(!printed.contains(SECRET_WORD), "{printed}");
}

/// A report-only denial must count token endpoints, before an enforced one blocks them.
#[test]
fn report_only_guard_deny_counts_oauth2_endpoints() {
    let pki = Pki::new();
    let target = Receiver::tls(pki.leaf(&["hook.example"]), ok());
    let endpoint = Receiver::tls_at("127.0.0.9:0", pki.leaf(&["login.example"]), grant_tokens("3600"));
    let text = config(&[target.port()], &oauth2(endpoint.port(), ""), "")
        .host("login.example", "127.0.0.9")
        .and("[guard]\ndeny = [{ cidr = \"127.0.0.9/32\", report_only = true }]");
    let outgate = Outgate::run(secrets(&pki), &text);
    let url = format!("https://hook.example:{}/in", target.port());
    assert_eq!(outgate.post(&url, "", "{}").status, 200);
    let metrics = outgate.admin("/metrics").text();
    let line = "outgate_report_only_total{kind=\"guard\",name=\"127.0.0.9/32\",code=\"target_forbidden\"} 1";
    assert!(metrics.contains(line), "{metrics}");
    let record = outgate.records(1).pop().unwrap();
    assert!(record.get("would_refuse").is_none(), "the webhook itself would not be refused: {record}");
}
