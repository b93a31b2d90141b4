//! Plaintext tunnels to port 80 of a route that upgrades, as undici, hpagent and `curl -p` open them.
//! Is each request inside forwarded like the upgrade form: signed, over TLS, to port 443?
//!
//! Needs the right to listen on port 443: skipped without it, required with `OUTGATE_TEST_ALL=1`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::process::Command;

use bytes::Bytes;
use http::{Request, Version};
use support::configuration::Config;
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{SECRET, config, folder};
use support::signature::{verifies, verify};
use support::tenants::{new_key, write_key};
use support::{Client, Outgate, TEST_TIMEOUT};

struct Scene {
    outgate: Outgate,
    target: Receiver,
    text: Config,
    /// The key of the tenant `acme`.
    tenant_key: String,
}

/// Starts a scene. `up.example` upgrades plaintext and signs. So does `/up` of `mixed.example`, which has other routes.
fn scene() -> Option<Scene> {
    let (pki, unused) = (Pki::new(), Receiver::plain(ok()));
    let target = Receiver::tls_on_443(pki.leaf(&["up.example", "mixed.example", "asks.example"]), ok())?;
    let address = target.address.ip();
    let address = address.to_string();
    let client = "[clients.billing]\nnetworks = [\"127.0.0.0/8\"]\ntenants = [\"acme\"]\n";
    let route = |name: &str, host: &str, rest: &str| {
        format!("[[routes]]\nname = \"{name}\"\nhosts = [\"{host}.example\"]\nsign = [\"platform\"]\n{rest}\n")
    };
    let routes = [
        route("up", "up", "plaintext = \"upgrade\""),
        route("mixed-up", "mixed", "plaintext = \"upgrade\"\npaths = [\"/up\"]"),
        route("mixed-longer", "mixed", "paths = [\"/longer\"]"),
        route("mixed", "mixed", "connect = \"tunnel\""),
        route("asks", "asks", ""),
    ];
    let text = config(&unused, &unused, client)
        .add("signers.platform.key_dir", "{dir}/keys")
        .host("up.example", &address)
        .host("mixed.example", &address)
        .host("asks.example", &address)
        .and(&routes.concat());
    let (folder, tenant_key) = (folder(&pki), new_key("standard-webhooks"));
    write_key(&folder, "keys/acme/own.key", &tenant_key);
    Some(Scene { outgate: Outgate::run(folder, &text), target, text, tenant_key })
}

fn request(target: &str, host: &str, fields: &str) -> String {
    format!("POST {target} HTTP/1.1\r\nHost: {host}\r\n{fields}Content-Length: 2\r\n\r\n{{}}")
}

impl Scene {
    fn open_tunnel(&self, host: &str) -> Client {
        let (client, response) = self.outgate.tunnel(&format!("{host}:80"), "");
        assert_eq!((response.status, response.reason.as_str()), (200, "Connection established"), "{response:?}");
        client
    }

    /// Sends a request inside a tunnel over an HTTP/2 stream, and returns the response.
    fn send_over_http2_tunnel(&self, host: &str, request: String) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let exchange = async {
            let stream = tokio::net::TcpStream::connect(self.outgate.proxy).await.unwrap();
            let (sender, connection) = h2::client::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            let connect = Request::connect(format!("{host}:80")).version(Version::HTTP_2).body(()).unwrap();
            let mut sender: h2::client::SendRequest<Bytes> = sender.ready().await.unwrap();
            let (response, mut outgoing) = sender.send_request(connect, false).unwrap();
            let mut incoming = response.await.unwrap().into_body();
            outgoing.send_data(request.into(), false).unwrap();
            let mut response = Vec::new();
            while let Some(Ok(data)) = incoming.data().await {
                incoming.flow_control().release_capacity(data.len()).unwrap();
                response.extend_from_slice(&data);
            }
            String::from_utf8(response).unwrap()
        };
        runtime.block_on(async { tokio::time::timeout(TEST_TIMEOUT, exchange).await.unwrap() })
    }

    fn explain(&self, method: &str, target: &str) -> (String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
        command.args(["explain", method, target, "--json", "--config"]).arg(self.outgate.folder.path("config.toml"));
        let json: serde_json::Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
        let steps = json["steps"].as_array().unwrap().iter();
        let tunnel =
            steps.filter(|step| step["step"] == "tunnel").map(|step| step["what"].as_str().unwrap().to_owned());
        (json["refusal"].as_str().unwrap_or_default().to_owned(), tunnel.collect())
    }
}

#[test]
fn upgrade_tunnel_to_port_80_sends_plaintext_requests_signed_over_tls() {
    let Some(scene) = scene() else { return };
    for (round, connect) in ["", "connect = \"refuse\"\n", "connect = \"tunnel\"\n"].into_iter().enumerate() {
        if !connect.is_empty() {
            scene.outgate.reconfigure(&scene.text.route("up", connect));
        }
        let mut client = scene.open_tunnel("up.example");
        assert_eq!(
            scene.target.connections(),
            usize::from(round > 0),
            "outgate opens no connection before the first request"
        );
        for host in ["up.example", "up.example:80", "UP.example."] {
            client.send(request("/in?a=%2F", host, ""));
            let response = client.response();
            assert_eq!((response.status, response.text().as_str()), (200, "ok"), "{connect}{host}: {response:?}");
            assert!(response.field("outgate-egress").starts_with("127.0.7."), "{response:?}");
            let received = scene.target.requests().pop().unwrap();
            assert_eq!((received.line.as_str(), received.all("host")), ("POST /in?a=%2F HTTP/1.1", vec!["up.example"]));
            verify(&received, SECRET);
        }
        client.send(request("http://up.example/absolute", "up.example", ""));
        assert_eq!(client.response().status, 200);
        drop(client);
        let records = scene.outgate.records((round + 1) * 5);
        let connects: Vec<_> = records.iter().filter(|record| record["method"] == "CONNECT").collect();
        assert_eq!(connects.len(), round + 1);
        assert_eq!((&connects[round]["route"], &connects[round]["status"]), (&"up".into(), &200.into()));
        for record in records.iter().filter(|record| record["method"] == "POST") {
            assert_eq!((&record["code"], &record["scheme"]), (&"delivered".into(), &"https".into()), "{record}");
            assert_eq!((&record["route"], &record["port"]), (&"up".into(), &443.into()), "{record}");
        }
    }
}

#[test]
fn unencoded_characters_of_a_url_are_percent_encoded_in_upgrade_tunnels_and_the_upgrade_form() {
    let Some(scene) = scene() else { return };
    let (mut inside, mut outside) = (scene.open_tunnel("up.example"), scene.outgate.connect());
    let (path, encoded) = ("/<>\"{}|^`%7b?q=<>\"{}|^`", "%3C%3E%22%7B%7D%7C%5E%60");
    let url = format!("http://up.example{path}");
    for (is_inside, target) in [(true, path), (true, &url), (false, &url)] {
        let client = if is_inside { &mut inside } else { &mut outside };
        client.send(request(target, "up.example", ""));
        assert_eq!(client.response().status, 200, "{target}");
        let received = scene.target.requests().pop().unwrap();
        assert_eq!(received.line, format!("POST /{encoded}%7b?q={encoded} HTTP/1.1"), "{target}");
        verify(&received, SECRET);
    }
}

#[test]
fn upgrade_tunnel_reaches_no_other_host_and_no_other_tunnel() {
    let Some(scene) = scene() else { return };
    for sent in [
        request("/in", "mixed.example", ""),
        request("/in", "up.example:8080", ""),
        request("/in", "up.example:443", ""),
        request("/in", "", ""),
        request("http://mixed.example/up", "up.example", ""),
        request("https://up.example/in", "up.example", ""),
        request("/in", "up.example", "Outgate-Target: https://mixed.example/up\r\n"),
        "CONNECT up.example:80 HTTP/1.1\r\nHost: up.example:80\r\n\r\n".to_owned(),
        // A TLS record on a plaintext port.
        String::from_utf8(vec![22, 3, 1, 0, 5, 1, 0, 0, 1, 0]).unwrap(),
    ] {
        let mut client = scene.open_tunnel("up.example");
        client.send(&sent);
        let response = client.response();
        let expected = if sent.starts_with("CONNECT") { "tunnel_forbidden" } else { "request_malformed" };
        assert_eq!(response.code(), expected, "{sent}: {response:?}");
    }
    assert_eq!(scene.target.connections(), 0);
}

#[test]
fn upgrade_tunnel_gives_each_request_inside_its_own_route() {
    let Some(scene) = scene() else { return };
    let mut client = scene.open_tunnel("mixed.example");
    for (path, code) in [("/up/x", ""), ("/longer", "plaintext_forbidden"), ("/", "plaintext_forbidden"), ("/up", "")] {
        client.send(request(path, "mixed.example", ""));
        assert_eq!(client.response().code(), code, "{path}");
        assert_eq!(scene.explain("POST", &format!("http://mixed.example{path}")).0, code, "{path}");
    }
    assert_eq!(scene.target.requests().len(), 2);
    scene.target.requests().iter().for_each(|received| verify(received, SECRET));
}

#[test]
fn upgrade_tunnel_is_for_port_80_alone_and_explain_says_so() {
    let Some(scene) = scene() else { return };
    let served = "served: outgate selects a route for each plaintext request inside, and sends it over TLS";
    for (authority, code, words) in [
        ("up.example:80", "", served),
        ("mixed.example:80", "", served),
        ("up.example:443", "tunnel_forbidden", ""),
        ("mixed.example:443", "tunnel_forbidden", ""),
        ("up.example:8080", "target_port_forbidden", ""),
        ("asks.example:80", "target_port_forbidden", ""),
        ("unrouted.example:80", "no_route", ""),
    ] {
        let (_, response) = scene.outgate.tunnel(authority, "");
        assert_eq!(response.code(), code, "{authority}");
        assert_eq!(scene.explain("CONNECT", authority), (code.to_owned(), words.to_owned()), "{authority}");
    }
    assert_eq!(scene.target.connections(), 0);
}

#[test]
fn upgrade_tunnel_opens_on_a_stream_of_http2() {
    let Some(scene) = scene() else { return };
    let response =
        scene.send_over_http2_tunnel("up.example", self::request("/in", "up.example", "Connection: close\r\n"));
    assert!(response.starts_with("HTTP/1.1 200 OK\r\n") && response.ends_with("\r\n\r\nok"), "{response}");
    verify(&scene.target.requests()[0], SECRET);
}

/// undici sends the field with the request, and only the authority with the CONNECT.
#[test]
fn outgate_tenant_inside_an_upgrade_tunnel_chooses_the_signing_key() {
    let Some(scene) = scene() else { return };
    let fields = "Outgate-Tenant: acme\r\nOutgate-TLS: 1\r\nConnection: close\r\n";
    let request = request("/in", "up.example", fields);
    let mut client = scene.open_tunnel("up.example");
    client.send(&request);
    assert_eq!(client.response().status, 200);
    let response = scene.send_over_http2_tunnel("up.example", request.clone());
    assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
    for received in scene.target.requests() {
        assert!(verifies(&received, scene.tenant_key.trim()) && !verifies(&received, SECRET), "{received:?}");
    }
    for (fields, code) in
        [("Outgate-Tenant: globex\r\n", "client_forbidden"), ("Outgate-TLS: 2\r\n", "request_malformed")]
    {
        let mut client = scene.open_tunnel("up.example");
        client.send(self::request("/in", "up.example", fields));
        assert_eq!(client.response().code(), code);
    }
    assert_eq!(scene.target.requests().len(), 2);
}

/// RFC 9110 §4.2.3: Ruby's httpclient and excon write the default port into every URL.
#[test]
fn http_url_with_port_80_is_upgraded_like_one_without_a_port() {
    let Some(scene) = scene() else { return };
    for (line, host, fields) in [
        ("http://up.example:80/in", "up.example:80", ""),
        ("http://up.example:80/in", "up.example", "Outgate-TLS: 1\r\n"),
        ("http://asks.example:80/in", "asks.example:80", "Outgate-TLS: 1\r\n"),
        ("http://asks.example:080/in", "asks.example:80", "Outgate-TLS: 1\r\n"),
        ("/in", "proxy", "Outgate-Target: http://up.example:80/in\r\n"),
        ("https://asks.example:443/in", "asks.example:443", ""),
    ] {
        let mut client = scene.outgate.connect();
        client.send(request(line, host, fields));
        let response = client.response();
        assert_eq!((response.status, response.code()), (200, ""), "{line} {fields}: {response:?}");
        let received = scene.target.requests().pop().unwrap();
        assert!(["up.example", "asks.example"].contains(&received.field("host")), "{received:?}");
        verify(&received, SECRET);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let exchange = async {
        let stream = tokio::net::TcpStream::connect(scene.outgate.proxy).await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let request = Request::post("http://up.example:80/in").version(Version::HTTP_2).body(()).unwrap();
        let mut sender: h2::client::SendRequest<Bytes> = sender.ready().await.unwrap();
        sender.send_request(request, true).unwrap().0.await.unwrap().status()
    };
    let status = runtime.block_on(async { tokio::time::timeout(TEST_TIMEOUT, exchange).await.unwrap() });
    assert_eq!((status, scene.target.requests().len()), (http::StatusCode::OK, 7));
    assert_eq!(scene.explain("POST", "http://up.example:80/in").0, "");
    let mut client = scene.outgate.connect();
    client.send(request("https://up.example:80/in", "up.example", ""));
    assert_eq!(client.response().code(), "target_port_forbidden", "of https, 80 is no default");
}
