//! The law of every request: it is answered, refused or abandoned, and counted once.
//! Do a client, the delivery log and the metrics count the same?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::io::Read;
use std::net::TcpListener;

use socket2::Socket;
use support::http2::{END_HEADERS, END_STREAM, HEADERS, connect_http2, frame, head, read_until_frame};
use support::law::{Counts, assert_law};
use support::pki::Pki;
use support::ports::refusing;
use support::receiver::{Receiver, ok};
use support::scene::folder;
use support::scrape::Scrape;
use support::tunnel::tls_config_trusting;
use support::{Outgate, TEST_TIMEOUT, post, read_to_end, tunnel_scene};

struct Place {
    pki: Pki,
    outgate: Outgate,
    port: u16,
    /// Accepts connections, and answers nothing.
    silent: TcpListener,
    /// A port that nothing listens on.
    closed: u16,
    _refusing: Socket,
    sent: Counts,
    _target: Receiver,
}

fn place() -> Place {
    let pki = Pki::new();
    let target = Receiver::tls(pki.leaf(&["tunnel.example", "plain.example"]), ok());
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (refusing, closed) = refusing();
    let (port, silent_port) = (target.address.port(), silent.local_addr().unwrap().port());
    let route = |name: &str, port: u16| {
        format!(
            "[[routes]]\nname = \"{name}\"\nhosts = [\"{name}.example\"]\nports = [{port}]\nplaintext = \"allow\"\n"
        )
    };
    let limit = "[limits.one]\nrate = \"1/h\"\nburst = 1\nper = [\"host\"]\n";
    let config = tunnel_scene::config(port, "")
        .and(&[limit, &route("silent", silent_port), &route("closed", closed), &route("limited", port)].concat())
        .add("routes.limited.limits", ["one"])
        .add("routes.tunnel.metrics", "own")
        .host("silent.example", "127.0.0.1")
        .host("closed.example", "127.0.0.1")
        .host("limited.example", "127.0.0.1");
    let outgate = Outgate::run(folder(&pki), &config);
    Place { pki, outgate, port, silent, closed, _refusing: refusing, sent: Counts::new(), _target: target }
}

impl Place {
    fn count(&mut self, code: &str) {
        *self.sent.entry(code.to_owned()).or_default() += 1;
    }

    /// Sends a request that outgate answers, and counts what the client is told.
    fn send(&mut self, url: &str) {
        let answer = self.outgate.post(url, "", "body");
        let code = if answer.code().is_empty() { "delivered" } else { answer.code() }.to_owned();
        self.count(&code);
    }

    /// Sends a request to the silent target, and hangs up when the target has got it.
    fn hang_up(&mut self) {
        let url = format!("http://silent.example:{}/in", self.silent.local_addr().unwrap().port());
        let mut client = self.outgate.connect();
        client.send(post(&url, "", "body"));
        let (mut target, _) = self.silent.accept().unwrap();
        target.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        let mut received = Vec::new();
        while !received.ends_with(b"body") {
            let mut byte = [0];
            target.read_exact(&mut byte).unwrap();
            received.extend(byte);
        }
        drop(client);
        read_to_end(&mut target);
        self.count("client_gone");
    }

    fn tunnel(&mut self) {
        let client = self.outgate.open_tunnel(&format!("tunnel.example:{}", self.port));
        let (mut inside, _) = client.start_tls("tunnel.example", tls_config_trusting(&self.pki.pem)).unwrap();
        inside.send(post("/in", "", "body"));
        assert_eq!(inside.response().text(), "ok");
        self.count("delivered");
    }

    /// Sends two webhooks and one that is refused on one HTTP/2 connection.
    fn http2(&mut self) {
        let mut client = connect_http2(&self.outgate);
        let delivered = format!("https://tunnel.example:{}/in", self.port);
        for (stream, url) in [(1, &*delivered), (3, &*delivered), (5, "https://nowhere.example/in")] {
            client.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, &head(url)));
            read_until_frame(&mut client, &[HEADERS]);
            self.count(if stream == 5 { "no_route" } else { "delivered" });
        }
        self.outgate.records(self.sent.values().sum::<u64>() as usize);
    }
}

#[test]
fn sent_equals_answered_plus_refused_plus_abandoned_in_client_log_and_metrics() {
    let mut place = place();
    let port = place.port;
    for _ in 0..3 {
        place.send(&format!("https://tunnel.example:{port}/in"));
        place.send(&format!("https://plain.example:{port}/in"));
        place.hang_up();
        place.tunnel();
        place.http2();
        place.send("https://tunnel.example:9/in");
        place.send("https://nowhere.example/in");
        place.send(&format!("https://signed.example:{port}/in"));
        place.send(&format!("http://closed.example:{}/in", place.closed));
        place.send(&format!("http://limited.example:{port}/in"));
        let (_, refused) = place.outgate.tunnel(&format!("refused.example:{port}"), "");
        place.count(refused.code());
        let mut client = place.outgate.connect();
        client.send("GET /in HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n");
        let malformed = client.response();
        place.count(malformed.code());
    }

    let sent: u64 = place.sent.values().sum();
    let codes = [
        "certificate_untrusted",
        "client_gone",
        "connect_refused",
        "delivered",
        "no_route",
        "rate_limited",
        "request_malformed",
        "target_port_forbidden",
        "tunnel_forbidden",
    ];
    assert!(codes.iter().all(|code| place.sent.contains_key(*code)), "{:?}", place.sent);
    assert_law(&place.outgate, &place.sent);
    let records = place.outgate.records(sent as usize);
    // Each delivery that is no tunnel has a duration.
    let scrape = Scrape::of(&place.outgate);
    let tunnels = records.iter().filter(|record| record["method"] == "CONNECT").count() as u64;
    assert_eq!(scrape.sum("outgate_delivery_duration_seconds_count", &[]) as u64, sent - tunnels);
}
