//! Clients that hang up while their request waits, with a body and without.
//! Does outgate detect the hang-up in every wait, and does it send nothing for the request?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::io::Write;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use socket2::SockRef;
use support::pki::Pki;
use support::receiver::{Reaction, Receiver, ok};
use support::scene::folder;
use support::{Client, Outgate, TEST_TIMEOUT, eventually, post};

/// Far longer than `TEST_TIMEOUT`, so that only the hang-up can end a delivery.
const LONG_TIMEOUT: &str = "60s";

/// A proxy with silent targets, a silent token endpoint and a silent resolver, and a target that responds when it is
/// released.
struct Scene {
    outgate: Outgate,
    held_target: Receiver,
    /// The request lines that `held_target` has received.
    arrived: Arc<Mutex<Vec<String>>>,
    release: Sender<()>,
    silent: TcpListener,
    /// The connections of `silent`, which the target must not close.
    accepted: Mutex<Vec<TcpStream>>,
    _token_endpoint: TcpListener,
    resolver: UdpSocket,
    /// A target whose SYN packets are dropped.
    unreachable: Receiver,
}

fn scene() -> Scene {
    let pki = Pki::new();
    let (release, wait) = channel();
    let wait = Mutex::new(wait);
    let arrived: Arc<Mutex<Vec<String>>> = Arc::default();
    let lines = Arc::clone(&arrived);
    let reaction: Reaction = Arc::new(move |received| {
        lines.lock().unwrap().push(received.line.clone());
        let _ = wait.lock().unwrap().recv_timeout(TEST_TIMEOUT);
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(), true)
    });
    let held_target = Receiver::plain(reaction);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let token_endpoint = TcpListener::bind("127.0.0.1:0").unwrap();
    let resolver = UdpSocket::bind("127.0.0.1:0").unwrap();
    resolver.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    let unreachable = Receiver::plain(ok());
    unreachable.drop_packets_from(&["127.0.7.0", "127.0.7.1", "127.0.7.2", "127.0.7.3"]);
    let ports = [held_target.port(), silent.local_addr().unwrap().port(), unreachable.port()];
    let text = format!(
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
[timeouts]
total = "{LONG_TIMEOUT}"
[resolver]
servers = ["{resolver}"]
[resolver.hosts]
"limited.example" = ["127.0.0.1"]
"target.example" = ["127.0.0.1"]
"signed.example" = ["127.0.0.1"]
"token.example" = ["127.0.0.1"]
"login.example" = ["127.0.0.1"]
"tunnel.example" = ["127.0.0.1"]
[trust.public]
roots = ["{{dir}}/ca.pem"]
[signers.platform]
scheme = "standard-webhooks"
keys = [{{ id = "k1", secret = "file:{{dir}}/key" }}]
[credentials.oauth]
type = "oauth2"
token_url = "https://login.example:{endpoint}/token"
client_id = "us"
client_secret = "file:{{dir}}/key"
[limits.one]
concurrency = 1
wait = "{LONG_TIMEOUT}"
"#,
        resolver = resolver.local_addr().unwrap(),
        endpoint = token_endpoint.local_addr().unwrap().port(),
    );
    let route = |host: &str, more: &str| {
        let name = host.replace(['*', '.'], "");
        format!(
            "[[routes]]\nname = \"{name}\"\nhosts = [\"{host}\"]\nports = {ports:?}\n\
             timeouts = {{ dns = \"{LONG_TIMEOUT}\", connect = \"{LONG_TIMEOUT}\", tls = \"{LONG_TIMEOUT}\", response = \"{LONG_TIMEOUT}\" }}\n{more}\n"
        )
    };
    let routes = [
        route("limited.example", "plaintext = \"allow\"\nlimits = [\"one\"]"),
        route("target.example", "plaintext = \"allow\""),
        route("signed.example", "sign = [\"platform\"]"),
        route("token.example", "credential = \"oauth\""),
        route("*.unresolved.net", ""),
        route("tunnel.example", "connect = \"tunnel\""),
    ];
    let outgate = Outgate::run(folder(&pki), &(text + &routes.concat()));
    let accepted = Mutex::default();
    Scene {
        outgate,
        held_target,
        arrived,
        release,
        silent,
        accepted,
        _token_endpoint: token_endpoint,
        resolver,
        unreachable,
    }
}

/// Returns when the request of this number has reached its wait.
type WaitReached<'p> = Box<dyn Fn(usize) + 'p>;

impl Scene {
    /// Returns the name of each wait, the URL that leads to it, and a function that observes the wait, if there is one.
    fn wait_points(&self) -> Vec<(&'static str, String, Option<WaitReached<'_>>)> {
        let silent = self.silent.local_addr().unwrap().port();
        let accept_silent: fn(&Self) -> WaitReached<'_> =
            |scene| Box::new(|_| scene.accepted.lock().unwrap().push(scene.silent.accept().unwrap().0));
        vec![
            ("limit", format!("http://limited.example:{}/gone", self.held_target.port()), None),
            ("token", format!("https://token.example:{}/gone", self.held_target.port()), None),
            (
                "name",
                format!("https://gone-NUMBER.unresolved.net:{}/gone", self.held_target.port()),
                Some(Box::new(|number| self.wait_for_query(&format!("gone-{number}")))),
            ),
            ("connect", format!("http://target.example:{}/gone", self.unreachable.port()), None),
            ("handshake", format!("https://target.example:{silent}/gone"), Some(accept_silent(self))),
            ("signed", format!("https://signed.example:{silent}/gone"), Some(accept_silent(self))),
        ]
    }

    /// Starts a delivery that holds the only permit of the limit.
    fn start_first_delivery(&self) -> Client {
        let mut client = self.outgate.connect();
        client.send(post(&format!("http://limited.example:{}/first", self.held_target.port()), "", "{}"));
        eventually("the first delivery arrives", || !self.arrived().is_empty());
        client
    }

    /// Waits for a query of this name. Each delivery sends two.
    fn wait_for_query(&self, label: &str) {
        let label = format!("{label}\x0aunresolved");
        let mut query = [0; 512];
        loop {
            let (length, _) = self.resolver.recv_from(&mut query).unwrap();
            if query[..length].windows(label.len()).any(|part| part == label.as_bytes()) {
                return;
            }
        }
    }

    fn arrived(&self) -> Vec<String> {
        let mut lines = self.arrived.lock().unwrap().clone();
        lines.sort_unstable();
        lines
    }

    fn assert_client_gone(&self, records: usize, label: &str) {
        let record = self.outgate.records(records)[records - 1].clone();
        assert_eq!((record["code"].as_str(), record["bytes_sent"].as_u64()), (Some("client_gone"), Some(0)), "{label}");
    }
}

/// Returns the bytes that a client sends before it hangs up.
fn requests(url: &str) -> Vec<String> {
    let large = "x".repeat(60_000);
    let chunked = format!("POST {url} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n");
    vec![
        format!("GET {url} HTTP/1.1\r\nHost: h\r\n\r\n"),
        post(url, "", "{}"),
        post(url, "", &large),
        chunked.clone() + "0\r\n\r\n",
        // Half of a body, and a second request after a complete one.
        chunked,
        post(url, "", "{}") + &post(url, "", "{}"),
        // A body that exceeds the read-ahead and fits into the kernel's buffer, and one that exceeds that buffer.
        post(url, "", &"x".repeat(75_000)),
        post(url, "", &"x".repeat(200_000)),
    ]
}

#[test]
fn hang_up_is_noticed_wherever_a_request_waits() {
    let scene = scene();
    let _first = scene.start_first_delivery();
    let mut records = 0;
    for (label, url, wait_reached) in scene.wait_points() {
        for (number, request) in requests(&url).into_iter().enumerate() {
            let request = request.replace("NUMBER", &records.to_string());
            let socket = TcpStream::connect(scene.outgate.proxy).unwrap();
            (&socket).write_all(request.as_bytes()).unwrap();
            // A signed request first waits for its body, so the target gets no connection here.
            if (label, number) != ("signed", 4)
                && let Some(wait_reached) = &wait_reached
            {
                wait_reached(records);
            }
            // Even numbers close with FIN, odd numbers with RST.
            if number % 2 == 1 {
                SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
            }
            drop(socket);
            records += 1;
            scene.assert_client_gone(records, &format!("{label} {number}"));
        }
    }
    assert_eq!(scene.arrived(), ["POST /first HTTP/1.1"]);
}

#[test]
fn hang_up_is_noticed_in_the_queue_of_max_deliveries() {
    let scene = scene();
    scene.outgate.reconfigure(&scene.outgate.config().add("server.max_deliveries", 1));
    let _first = scene.start_first_delivery();
    let url = format!("http://target.example:{}/gone", scene.held_target.port());
    for (records, request) in requests(&url).into_iter().enumerate() {
        let socket = TcpStream::connect(scene.outgate.proxy).unwrap();
        (&socket).write_all(request.as_bytes()).unwrap();
        if records % 2 == 1 {
            SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
        }
        drop(socket);
        scene.assert_client_gone(records + 1, &format!("max_deliveries {records}"));
    }
    assert_eq!(scene.arrived(), ["POST /first HTTP/1.1"]);
}

#[test]
fn hang_up_ends_a_tunnel_that_waits_for_its_target() {
    let scene = scene();
    let authority = format!("tunnel.example:{}", scene.silent.local_addr().unwrap().port());
    for (records, early) in ["", "\x16\x03\x01 and so on"].into_iter().enumerate() {
        let mut client = scene.outgate.connect();
        client.send(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n{early}"));
        let target = scene.silent.accept().unwrap();
        drop(client);
        scene.assert_client_gone(records + 1, early);
        drop(target);
    }
}

#[test]
fn hang_up_over_http2_is_noticed_wherever_a_request_waits() {
    let scene = scene();
    let _first = scene.start_first_delivery();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut records = 0;
    for (label, url, _) in scene.wait_points() {
        // The client resets the stream or closes the connection, after a complete body or a part of it.
        for (resets, ends) in [(true, true), (false, true), (true, false), (false, false)] {
            // The name is unique, so that no other request waits for its query.
            let url = url.replace("NUMBER", &records.to_string());
            let (sender, connection, mut stream) = runtime.block_on(async {
                let socket = tokio::net::TcpStream::connect(scene.outgate.proxy).await.unwrap();
                let (sender, connection) = h2::client::handshake(socket).await.unwrap();
                let connection = tokio::spawn(connection);
                let request = http::Request::builder().method("POST").uri(&url).body(()).unwrap();
                let mut sender = sender.ready().await.unwrap();
                let (response, mut stream) = sender.send_request(request, false).unwrap();
                stream.send_data(Bytes::from_static(b"{}"), ends).unwrap();
                (sender, connection, (response, stream))
            });
            // The refusal of a later request shows that outgate has read the request before it.
            let answered = runtime.block_on(async {
                let request = http::Request::builder().method("GET").uri("http://unrouted.example/");
                let mut sender = sender.clone().ready().await.unwrap();
                sender.send_request(request.body(()).unwrap(), true).unwrap().0.await.unwrap().status()
            });
            assert_eq!(answered, 403);
            records += 1;
            scene.outgate.records(records);
            if resets {
                stream.1.send_reset(h2::Reason::CANCEL);
            } else {
                connection.abort();
            }
            records += 1;
            scene.assert_client_gone(records, &format!("{label} resets={resets} ends={ends}"));
            drop((sender, stream));
            connection.abort();
        }
    }
    assert_eq!(scene.arrived(), ["POST /first HTTP/1.1"]);
}

/// Regression: each retry of a client with a short timeout was one more webhook for the target.
#[test]
fn hang_up_leaves_one_delivery_of_a_client_that_retries() {
    let scene = scene();
    let mut first = scene.start_first_delivery();
    let url = |event: usize| format!("http://limited.example:{}/event{event}", scene.held_target.port());
    for attempt in 0..5 {
        let clients: Vec<_> = (0..6)
            .map(|event| {
                let mut client = scene.outgate.connect();
                client.send(post(&url(event), "", "{}"));
                client
            })
            .collect();
        drop(clients);
        for record in &scene.outgate.records(6 * (attempt + 1)) {
            assert_eq!(record["code"], "client_gone");
        }
    }
    let mut last: Vec<_> = (0..6)
        .map(|event| {
            let mut client = scene.outgate.connect();
            client.send(post(&url(event), "", "{}"));
            client
        })
        .collect();
    (0..7).for_each(|_| scene.release.send(()).unwrap());
    assert_eq!(first.response().status, 200);
    for client in &mut last {
        assert_eq!(client.response().status, 200);
    }
    let mut expected: Vec<_> = (0..6).map(|event| format!("POST /event{event} HTTP/1.1")).collect();
    expected.push("POST /first HTTP/1.1".into());
    assert_eq!(scene.arrived(), expected);
}
