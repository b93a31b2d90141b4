//! Inspected tunnels: TLS that ends at outgate, with certificates of its own authority.
//! Is each request inside an ordinary delivery, limited to the client and the host of the CONNECT?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::process::Command;

use serde_json::Value;
use support::configuration::{Config, Replace, token_hash};
use support::pki::{Pki, self_signed};
use support::receiver::{Receiver, ok};
use support::scene::{SECRET, folder};
use support::signature::{verifies, verify};
use support::tenants::{new_key, write_key};
use support::tunnel::{
    PLAIN_REQUESTS, assert_recorded_as_plaintext, assert_refused_for_plaintext, client_hello, tls_config_trusting,
};
use support::{Client, Outgate, Response, eventually, post, required};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Basic `billing:t0ken`.
const CREDENTIALS: &str = "Proxy-Authorization: Basic YmlsbGluZzp0MGtlbg==\r\n";

struct Scene {
    /// The authority of outgate, which the clients trust.
    inspector: Pki,
    outgate: Outgate,
    target: Receiver,
    text: Config,
}

fn scene() -> Scene {
    let pki = Pki::new();
    let target = Receiver::tls(pki.leaf(&["inspect.example", "paths.example", "127.0.0.1"]), ok());
    scene_with_target(&pki, target)
}

fn scene_with_target(pki: &Pki, target: Receiver) -> Scene {
    let inspector = Pki::new();
    let folder = folder(pki);
    folder.write("inspector.pem", &inspector.pem);
    let key = folder.write("inspector.key", inspector.key_pem());
    std::fs::set_permissions(key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let text = config(target.port());
    Scene { inspector, outgate: Outgate::run(folder, &text), target, text }
}

fn config(port: u16) -> Config {
    let hash = token_hash("t0ken");
    Config::parse(&format!(
        r#"
[server]
listen = ["127.0.0.1:0"]
ca = {{ certificate = "{{dir}}/inspector.pem", key = "file:{{dir}}/inspector.key" }}
[admin]
listen = ["127.0.0.1:0"]
[egress.default]
ranges = ["127.0.7.0/30"]
[clients.billing]
tokens = ["{hash}"]
tenants = ["acme"]
[guard]
allow = ["127.0.0.0/8"]
[resolver.hosts]
"inspect.example" = ["127.0.0.1"]
"paths.example" = ["127.0.0.1"]
[trust.public]
roots = ["{{dir}}/ca.pem"]
[signers.platform]
scheme = "standard-webhooks"
keys = [{{ id = "k1", secret = "file:{{dir}}/key" }}]
[limits.two]
rate = "2/h"
burst = 2
[[routes]]
name = "inspect"
hosts = ["inspect.example", "127.0.0.1"]
ports = [{port}]
sign = ["platform"]
connect = "inspect"
[[routes]]
name = "refused"
hosts = ["paths.example"]
paths = ["/refused"]
ports = [{port}]
connect = "refuse"
[[routes]]
name = "signed"
hosts = ["paths.example"]
paths = ["/signed"]
ports = [{port}]
sign = ["platform"]
connect = "inspect"
limits = ["two"]
[[routes]]
name = "limited"
hosts = ["paths.example"]
paths = ["/unsigned"]
ports = [{port}]
connect = "inspect"
"#
    ))
}

impl Scene {
    fn authority(&self, host: &str) -> String {
        format!("{host}:{}", self.target.port())
    }

    /// Opens a tunnel to `host` and completes a TLS handshake with outgate inside it.
    fn open_inspected(&self, host: &str) -> Client {
        let (client, response) = self.outgate.tunnel(&self.authority(host), CREDENTIALS);
        assert_eq!((response.status, response.reason.as_str()), (200, "Connection established"), "{response:?}");
        client.start_tls(host, tls_config_trusting(&self.inspector.pem)).unwrap().0
    }

    /// Returns the text of a POST inside the tunnel.
    fn post(&self, host: &str, target: &str, fields: &str) -> String {
        post(target, fields, "{}").replace_one("ignored.example", &self.authority(host))
    }

    fn records(&self, count: usize, method: &str) -> Vec<Value> {
        self.outgate.records(count).into_iter().filter(|record| record["method"] == method).collect()
    }
}

#[test]
fn explain_states_that_inspected_requests_are_judged_one_by_one() {
    let scene = scene();
    let explain = |method: &str, target: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
        command.args(["explain", method, target, "--client", "billing", "--config"]);
        let output = command.arg(scene.outgate.folder.path("config.toml")).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = explain("CONNECT", &scene.authority("paths.example"));
    assert_eq!(code, Some(0), "{text}");
    let line = |step: &str| text.lines().find_map(|line| line.strip_prefix(step)).unwrap_or_default().trim();
    let expected = "limited: a request inside the tunnel could match this route, which inspects tunnels";
    assert_eq!(line("route"), expected, "no route is for all of its paths");
    assert_eq!(line("tunnel"), "inspected: outgate selects a route for each request inside, by its own URL");
    assert_eq!(line("egress"), "", "a CONNECT connects to no target");
    let (code, text) = explain("POST", &format!("https://{}/refused", scene.authority("paths.example")));
    assert_eq!((code, text.contains("route      refused: ")), (Some(0), true), "{text}");
}

#[test]
fn inspected_request_is_delivered_signed_and_recorded() {
    let scene = scene();
    let mut client = scene.open_inspected("inspect.example");
    assert_eq!(scene.target.connections(), 0, "no connection before there is a request");
    for path in ["/in?a=%2F", "/again"] {
        client.send(scene.post("inspect.example", path, ""));
        let response = client.response();
        assert_eq!((response.status, response.text().as_str()), (200, "ok"), "{response:?}");
        assert!(response.field("outgate-egress").starts_with("127.0.7.") && response.code().is_empty(), "{response:?}");
        let received = scene.target.requests().pop().unwrap();
        assert_eq!(received.line, format!("POST {path} HTTP/1.1"));
        assert_eq!(received.all("host"), [scene.authority("inspect.example")]);
        assert!(received.from.to_string().starts_with("127.0.7."));
        verify(&received, SECRET);
    }
    assert_eq!(scene.target.connections(), 1, "the same connection for both");
    drop(client);
    let delivered = scene.records(3, "POST");
    assert_eq!(delivered.len(), 2);
    for record in &delivered {
        assert_eq!((&record["client"], &record["route"]), (&"billing".into(), &"inspect".into()), "{record}");
        assert_eq!((&record["code"], &record["scheme"]), (&"delivered".into(), &"https".into()), "{record}");
        assert_eq!(record["signatures"][0], "k1", "{record}");
    }
    let connect = &scene.records(3, "CONNECT")[0];
    assert_eq!((&connect["status"], &connect["code"]), (&200.into(), &"delivered".into()), "{connect}");
    assert_eq!((&connect["host"], &connect["source"]), (&"inspect.example".into(), &Value::Null), "{connect}");
    assert!(connect["bytes_sent"].as_u64() > Some(500) && connect["bytes_received"].as_u64() > Some(500), "{connect}");
}

#[test]
fn unencoded_characters_of_a_url_are_percent_encoded_inside_an_inspected_tunnel() {
    let scene = scene();
    let mut client = scene.open_inspected("inspect.example");
    let url = format!("https://{}", scene.authority("inspect.example"));
    for target in ["", &url].map(|before| format!("{before}/<>\"{{}}|^`%7b?q=<>\"{{}}|^`")) {
        client.send(scene.post("inspect.example", &target, ""));
        assert_eq!(client.response().status, 200, "{target}");
        let received = scene.target.requests().pop().unwrap();
        let encoded = "%3C%3E%22%7B%7D%7C%5E%60";
        assert_eq!(received.line, format!("POST /{encoded}%7b?q={encoded} HTTP/1.1"), "{target}");
        verify(&received, SECRET);
    }
}

#[test]
fn inspected_request_in_absolute_form_equals_origin_form() {
    let scene = scene();
    let mut client = scene.open_inspected("inspect.example");
    let url = format!("https://{}/in", scene.authority("INSPECT.example."));
    client.send(scene.post("inspect.example", &url, ""));
    assert_eq!(client.response().status, 200);
    assert_eq!(scene.target.requests()[0].line, "POST /in HTTP/1.1");
    assert_eq!(scene.target.requests()[0].all("host"), [scene.authority("inspect.example")]);
}

#[test]
fn inspected_request_for_another_host_is_refused() {
    let scene = scene();
    let (port, authority) = (scene.target.port(), scene.authority("inspect.example"));
    let other = scene.authority("paths.example");
    let request = |target: &str, fields: &str| format!("POST {target} HTTP/1.1\r\n{fields}Content-Length: 0\r\n\r\n");
    let host = |host: &str| format!("Host: {host}\r\n");
    for sent in [
        request("/in", &host(&other)),
        request("/in", &host("inspect.example")),
        request("/in", &host(&format!("inspect.example:{}", port ^ 1))),
        request("/in", &host("")),
        request(&format!("https://{other}/signed"), &host(&authority)),
        request(&format!("https://{other}/signed"), &host(&other)),
        request("https://inspect.example/in", &host(&authority)),
        request(&format!("http://{authority}/in"), &host(&authority)),
        request("/in", &format!("{}Outgate-Target: https://{other}/signed\r\n", host(&authority))),
        request("/in", &format!("{}Outgate-Target: https://{authority}/in\r\n", host(&authority))),
        format!("CONNECT {authority} HTTP/1.1\r\n{}\r\n", host(&authority)),
        format!("CONNECT {other} HTTP/1.1\r\n{}\r\n", host(&other)),
    ] {
        let mut client = scene.open_inspected("inspect.example");
        client.send(&sent);
        let response = client.response();
        let expected = if sent.starts_with("CONNECT") { "tunnel_forbidden" } else { "request_malformed" };
        let code = response.code();
        assert!(code == expected || code == "request_malformed", "{sent}: {response:?}");
    }
    assert!(scene.target.requests().is_empty());
    assert_eq!(scene.target.connections(), 0);
}

#[test]
fn inspected_requests_keep_the_client_of_the_connect() {
    let scene = scene();
    let (mut refused, response) = scene.outgate.tunnel(&scene.authority("inspect.example"), "");
    assert_eq!((response.status, response.code()), (407, "client_unauthenticated"));
    assert!(refused.is_closed());
    let (_, response) =
        scene.outgate.tunnel(&scene.authority("inspect.example"), &format!("{CREDENTIALS}Outgate-Tenant: other\r\n"));
    assert_eq!(response.code(), "client_forbidden");

    let fields = format!("{CREDENTIALS}Outgate-Tenant: acme\r\n");
    let (client, response) = scene.outgate.tunnel(&scene.authority("inspect.example"), &fields);
    assert_eq!(response.status, 200);
    let mut client = client.start_tls("inspect.example", tls_config_trusting(&scene.inspector.pem)).unwrap().0;
    // Inside the tunnel, outgate ignores Proxy-Authorization and removes it.
    client.send(scene.post(
        "inspect.example",
        "/in",
        "Proxy-Authorization: Bearer wrong\r\nAuthorization: Bearer t\r\n",
    ));
    assert_eq!(client.response().status, 200);
    let received = &scene.target.requests()[0];
    assert_eq!((received.field("proxy-authorization"), received.field("authorization")), ("", "Bearer t"));
    let record = &scene.records(3, "POST")[0];
    assert_eq!((&record["client"], &record["tenant"]), (&"billing".into(), &"acme".into()), "{record}");
}

/// Clients that tunnel by default cannot add the field to the CONNECT.
#[test]
fn outgate_tenant_inside_an_inspected_tunnel_chooses_the_signing_key() {
    let scene = scene();
    let tenant_key = new_key("standard-webhooks");
    write_key(&scene.outgate.folder, "keys/acme/own.key", &tenant_key);
    scene.outgate.reconfigure(&scene.text.add("signers.platform.key_dir", "{dir}/keys"));
    let send_request = |connect_fields: &str, fields: &str| {
        let all_connect_fields = format!("{CREDENTIALS}{connect_fields}");
        let (client, response) = scene.outgate.tunnel(&scene.authority("inspect.example"), &all_connect_fields);
        assert_eq!(response.status, 200, "{response:?}");
        let mut client = client.start_tls("inspect.example", tls_config_trusting(&scene.inspector.pem)).unwrap().0;
        client.send(scene.post("inspect.example", "/in", fields));
        client.response()
    };
    let outcome = |response: &Response| (response.status, response.code().to_owned());
    let mut responses = Vec::new();
    let acme = "Outgate-Tenant: acme\r\n";
    for (connect_fields, fields) in [("", acme), (acme, ""), (acme, acme), ("", &format!("{acme}Outgate-TLS: 1\r\n"))] {
        let response = send_request(connect_fields, fields);
        assert_eq!(outcome(&response), (200, String::new()), "{connect_fields} {fields}");
        responses.push(response);
        let received = scene.target.requests().pop().unwrap();
        assert!(
            verifies(&received, tenant_key.trim()) && !verifies(&received, SECRET),
            "{connect_fields} {fields}: {received:?}"
        );
        assert_eq!((received.field("outgate-tenant"), received.field("outgate-tls")), ("", ""), "{received:?}");
    }
    responses.push(send_request("", ""));
    assert_eq!(outcome(&responses[4]), (200, String::new()));
    verify(&scene.target.requests().pop().unwrap(), SECRET);
    let delivered = scene.target.requests().len();
    for (connect_fields, fields, refused) in [
        ("", "Outgate-Tenant: globex\r\n", (403, "client_forbidden")),
        (acme, "Outgate-Tenant: globex\r\n", (400, "request_malformed")),
        ("", "Outgate-Tenant: acme\r\nOutgate-Tenant: acme\r\n", (400, "request_malformed")),
        ("", "Outgate-Tenant:\r\n", (400, "request_malformed")),
        ("", "Outgate-TLS: yes\r\n", (400, "request_malformed")),
    ] {
        let response = send_request(connect_fields, fields);
        assert_eq!(outcome(&response), (refused.0, refused.1.to_owned()), "{connect_fields} {fields}");
        responses.push(response);
    }
    assert_eq!(scene.target.requests().len(), delivered);
    let records: Vec<_> = responses.iter().map(|response| scene.outgate.record_of(response)).collect();
    let tenants: Vec<_> = records.iter().map(|record| record["tenant"].as_str().unwrap_or_default()).collect();
    assert_eq!(tenants[..5], ["acme", "acme", "acme", "acme", ""]);
    assert_eq!((tenants[5], &records[5]["code"]), ("globex", &"client_forbidden".into()), "{}", records[5]);
}

#[test]
fn inspected_requests_have_their_own_route_and_limits() {
    let scene = scene();
    let mut client = scene.open_inspected("paths.example");
    let mut send_request = |path: &str| {
        client.send(scene.post("paths.example", path, ""));
        client.response()
    };
    assert_eq!(send_request("/unsigned").status, 200);
    assert_eq!(send_request("/signed/x").status, 200);
    let received = scene.target.requests();
    assert_eq!(received[0].field("webhook-signature"), "");
    verify(&received[1], SECRET);
    assert_eq!(send_request("/elsewhere").code(), "no_route");
    assert_eq!(send_request("/signed/y").status, 200);
    assert_eq!(send_request("/signed/z").code(), "rate_limited");
    assert_eq!(send_request("/unsigned").status, 200);
    // The `connect` setting of a route does not apply to requests inside.
    assert_eq!(send_request("/refused").status, 200);
}

#[test]
fn reload_applies_to_inspected_requests() {
    let scene = scene();
    let mut client = scene.open_inspected("inspect.example");
    client.send(scene.post("inspect.example", "/1", ""));
    assert_eq!(client.response().status, 200);
    scene.outgate.reconfigure(&scene.text.set("routes.inspect.hosts", ["moved.example", "127.0.0.1"]));
    client.send(scene.post("inspect.example", "/2", ""));
    assert_eq!(client.response().code(), "no_route");
}

#[test]
fn inspected_request_verifies_the_target() {
    let pki = Pki::new();
    let scene = scene_with_target(&pki, Receiver::tls(self_signed(&["inspect.example"]), ok()));
    let mut client = scene.open_inspected("inspect.example");
    client.send(scene.post("inspect.example", "/in", ""));
    let response = client.response();
    assert_eq!((response.status, response.code()), (502, "certificate_untrusted"));
    assert_eq!(response.json()["details"], "self_signed");
    assert!(scene.target.requests().is_empty());
}

#[test]
fn inspected_tunnel_certificate_is_for_the_host_and_at_most_a_week() {
    let scene = scene();
    for host in ["inspect.example", "127.0.0.1"] {
        let (client, _) = scene.outgate.tunnel(&scene.authority(host), CREDENTIALS);
        let mut config = tls_config_trusting(&scene.inspector.pem);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let (mut inside, handshake) = client.start_tls(host, config).unwrap();
        assert_eq!(handshake.protocol.as_deref(), Some(&b"http/1.1"[..]));
        let (_, leaf) = X509Certificate::from_der(&handshake.chain[0]).unwrap();
        let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
        match (host, names.as_slice()) {
            ("127.0.0.1", [GeneralName::IPAddress([127, 0, 0, 1])]) => {}
            (host, [GeneralName::DNSName(name)]) => assert_eq!(*name, host),
            other => panic!("{other:?}"),
        }
        let validity = leaf.validity();
        let now = jiff::Timestamp::now().as_second();
        assert!(validity.not_before.timestamp() <= now - 600, "notBefore allows for clock skew");
        assert!((now..=now + 7 * 86_400).contains(&validity.not_after.timestamp()));
        assert!(!leaf.is_ca());
        inside.send(scene.post(host, "/in", ""));
        assert_eq!(inside.response().status, 200, "{host}");
    }
}

#[test]
fn inspected_tunnel_for_another_host_ends_with_a_tls_alert() {
    let scene = scene();
    let unrecognized_name: &[u8] = &[21, 3, 3, 0, 2, 2, 112];
    for (count, (host, first, end)) in [
        ("inspect.example", client_hello("other.example"), unrecognized_name),
        ("127.0.0.1", client_hello("inspect.example"), unrecognized_name),
        ("inspect.example", b"\x80\x2e\x01".to_vec(), b""),
    ]
    .into_iter()
    .enumerate()
    {
        let (mut client, response) = scene.outgate.tunnel(&scene.authority(host), CREDENTIALS);
        assert_eq!(response.status, 200);
        client.send(&first);
        assert_eq!(client.rest(), end, "{host} {first:?}");
        drop(client);
        let record = scene.outgate.records(count + 1)[count].clone();
        assert_eq!(record["code"], "tunnel_forbidden", "{host} {first:?}: {record}");
    }
    assert_eq!(scene.target.connections(), 0);
}

#[test]
fn plain_http_inside_an_inspected_tunnel_gets_a_readable_400() {
    let scene = scene();
    for (count, request) in PLAIN_REQUESTS.into_iter().enumerate() {
        let (mut client, connected) = scene.outgate.tunnel(&scene.authority("inspect.example"), CREDENTIALS);
        client.send(request);
        let response = client.response();
        assert_refused_for_plaintext(&response);
        client.shutdown_write();
        assert!(client.is_closed(), "{request:?}");
        let record = scene.outgate.records(count + 1)[count].clone();
        assert_recorded_as_plaintext(&record, &connected);
        assert_eq!(response.field("outgate-request-id"), connected.field("outgate-request-id"));
        assert!(record["bytes_sent"].as_u64() > Some(0) && record["bytes_received"].as_u64() > Some(100), "{record}");
    }
    assert_eq!(scene.target.connections(), 0);
    let mut inside = scene.open_inspected("inspect.example");
    inside.send(scene.post("inspect.example", "/in", ""));
    assert_eq!(inside.response().status, 200);
}

#[test]
fn curl_shows_the_400_of_plain_http_inside_an_inspected_tunnel() {
    if Command::new("curl").arg("--version").output().is_err() {
        assert!(!required(), "missing: curl");
        return;
    }
    let scene = scene();
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "20", "--proxytunnel", "-d", "{}", "-w", "%{http_code}", "-x"])
        .arg(format!("http://billing:t0ken@{}", scene.outgate.proxy))
        .arg(format!("http://{}/in", scene.authority("inspect.example")))
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(printed.ends_with("400") && printed.contains("this tunnel requires TLS"), "{printed} {output:?}");
}

#[test]
fn inspected_tunnel_takes_a_client_hello_without_server_name() {
    let scene = scene();
    let mut config = tls_config_trusting(&scene.inspector.pem);
    config.enable_sni = false;
    let (client, _) = scene.outgate.tunnel(&scene.authority("inspect.example"), CREDENTIALS);
    // The client verifies the certificate for the host of its CONNECT.
    let (mut inside, handshake) = client.start_tls("inspect.example", config).unwrap();
    assert_eq!(handshake.chain.len(), 2);
    inside.send(scene.post("inspect.example", "/in", ""));
    assert_eq!(inside.response().status, 200);
    verify(&scene.target.requests()[0], SECRET);
}

#[test]
fn inspected_tunnel_client_that_rejects_the_ca_sends_nothing() {
    let scene = scene();
    let (client, _) = scene.outgate.tunnel(&scene.authority("inspect.example"), CREDENTIALS);
    assert!(client.start_tls("inspect.example", tls_config_trusting(&Pki::new().pem)).is_err());
    let record = scene.outgate.records(1)[0].clone();
    assert_eq!((&record["method"], &record["status"]), (&"CONNECT".into(), &200.into()), "{record}");
    assert_eq!(record["detail"], "the client ended the TLS handshake: it does not trust server.ca", "{record}");
}

#[test]
fn drain_lets_an_inspected_request_finish() {
    let (release, wait) = std::sync::mpsc::channel();
    let wait = std::sync::Mutex::new(wait);
    let held = std::sync::Arc::new(move |_: &support::receiver::ReceivedRequest| {
        let _ = wait.lock().unwrap().recv_timeout(support::TEST_TIMEOUT);
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(), true)
    });
    let pki = Pki::new();
    let mut scene = scene_with_target(&pki, Receiver::tls(pki.leaf(&["inspect.example"]), held));
    let mut idle = scene.open_inspected("inspect.example");
    let mut busy = scene.open_inspected("inspect.example");
    busy.send(scene.post("inspect.example", "/in", ""));
    eventually("the request reaches the target", || scene.target.connections() > 0);
    scene.outgate.signal("TERM");
    assert!(idle.is_closed(), "the tunnel has no open request");
    release.send(()).unwrap();
    let response = busy.response();
    assert_eq!((response.status, response.field("connection")), (200, "close"));
    drop(busy);
    assert!(scene.outgate.wait().success());
}

#[test]
fn curl_works_through_an_inspected_tunnel() {
    if Command::new("curl").arg("--version").output().is_err() {
        assert!(!required(), "missing: curl");
        return;
    }
    let scene = scene();
    let ca = scene.outgate.folder.path("inspector.pem");
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "20", "-d", "{}", "-w", "%{http_version}", "-x"])
        .arg(format!("http://billing:t0ken@{}", scene.outgate.proxy))
        .arg("--cacert")
        .arg(&ca)
        .args([1, 2].map(|number| format!("https://{}/{number}", scene.authority("inspect.example"))))
        .output()
        .unwrap();
    // curl offers both versions, and outgate chooses HTTP/2.
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ok2ok2", "{}", String::from_utf8_lossy(&output.stderr));
    scene.target.requests().iter().for_each(|received| verify(received, SECRET));
    assert_eq!(scene.target.requests().len(), 2);
}

#[test]
fn inspected_tunnel_takes_no_request_after_its_lifetime() {
    let scene = scene();
    // The lifetime includes the handshakes of both tunnels and the first part of the request.
    scene.outgate.reconfigure(&format!("{}[timeouts]\ntunnel = \"5s\"\n", scene.text));
    let mut busy = scene.open_inspected("inspect.example");
    let request = scene.post("inspect.example", "/in", "");
    let (most, rest) = request.split_at(request.len() - 1);
    busy.send(most);
    // The lifetime of this tunnel ends later than that of the first.
    let mut idle = scene.open_inspected("inspect.example");
    assert!(idle.is_closed());
    busy.send(rest);
    let last = busy.response();
    assert_eq!((last.status, last.field("connection"), last.text().as_str()), (200, "close", "ok"));
    assert!(busy.is_closed());
    drop((idle, busy));
    scene.outgate.wait_for_metric("outgate_tunnels 0");
}

#[test]
fn inspected_connect_counts_against_the_limits_of_its_route() {
    let scene = scene();
    scene.outgate.reconfigure(&scene.text.add("routes.inspect.limits", ["two"]));
    let open = || scene.outgate.tunnel(&scene.authority("inspect.example"), CREDENTIALS);
    let (_first, response) = open();
    assert_eq!(response.status, 200);
    let (_second, response) = open();
    assert_eq!(response.status, 200);
    let (_, response) = open();
    assert_eq!((response.status, response.code()), (429, "rate_limited"));
}

#[test]
fn inspected_tunnel_records_a_silent_client_and_a_hang_up() {
    let scene = scene();
    let (client, _) = scene.outgate.tunnel(&scene.authority("inspect.example"), CREDENTIALS);
    drop(client);
    assert_eq!(scene.outgate.records(1)[0]["code"], "client_gone");
    scene.outgate.reconfigure(&scene.text.add("timeouts.tls", "300ms"));
    let (mut client, _) = scene.outgate.tunnel(&scene.authority("inspect.example"), CREDENTIALS);
    assert!(client.is_closed());
    assert_eq!(scene.outgate.records(2)[1]["code"], "body_timeout");
}

#[test]
fn inspected_tunnel_to_a_plaintext_port_serves_plaintext() {
    let target = Receiver::plain(ok());
    let inspector = Pki::new();
    let folder = folder(&Pki::new());
    folder.write("inspector.pem", &inspector.pem);
    folder.write("inspector.key", inspector.key_pem());
    let text = config(target.port()).add("routes.inspect.plaintext", "allow");
    let outgate = Outgate::run(folder, &text);
    let (mut client, response) = outgate.tunnel("inspect.example:80", CREDENTIALS);
    assert_eq!(response.status, 200, "{response:?}");
    // No program listens on port 80. The refusal and the record show that outgate tried to connect.
    client.send("OPTIONS * HTTP/1.1\r\nHost: inspect.example\r\n\r\n");
    let response = client.response();
    assert!(response.code().starts_with("connect_"), "{response:?}");
    let record = &outgate.records(1)[0];
    assert_eq!((&record["scheme"], &record["port"]), (&"http".into(), &80.into()), "{record}");
}

#[test]
fn inspected_options_in_asterisk_form_reaches_the_target() {
    let scene = scene();
    let mut client = scene.open_inspected("inspect.example");
    client.send(format!("OPTIONS * HTTP/1.1\r\nHost: {}\r\n\r\n", scene.authority("inspect.example")));
    assert_eq!(client.response_to("OPTIONS").status, 200);
    assert_eq!(scene.target.requests()[0].line, "OPTIONS * HTTP/1.1");
}
