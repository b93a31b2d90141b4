//! The pool of idle connections to targets, when it is full.
//! Which connection is evicted, does each client keep its share, and how long does a connection stay?

use crate::support;

use std::time::Duration;

use support::configuration::token_hash;
use support::pki::Pki;
use support::receiver::{Receiver, ok, respond_with};
use support::scene::{config, folder};
use support::{Outgate, post};

/// The idle connections that this descriptor limit allows: a quarter of the descriptors beyond the reserve of 256.
const KEPT: usize = 8;
const FILES: u32 = 256 + 4 * KEPT as u32;

struct Scene {
    outgate: Outgate,
    plain: Receiver,
}

fn scene() -> Scene {
    let plain = Receiver::plain(ok());
    let client = |name: &str| {
        let hash = token_hash(name);
        format!("[clients.{name}]\ntokens = [\"{hash}\"]\ntenants = [\"*\"]\n")
    };
    let text = config(&plain, &plain, &(client("quiet") + &client("busy")));
    let text = text.set("server.allow_anonymous", false);
    Scene { outgate: Outgate::run_limited(folder(&Pki::new()), &text, FILES), plain }
}

impl Scene {
    /// Delivers a webhook, and returns whether it reused a connection. Each client and tenant has its own.
    fn is_reused(&self, client: &str, tenant: usize) -> bool {
        let before = self.plain.connections();
        let url = format!("http://plain.example:{}/in", self.plain.port());
        let fields =
            format!("Proxy-Authorization: Bearer {client}\r\nOutgate-Tenant: t{tenant}\r\nConnection: close\r\n");
        let mut connection = self.outgate.connect();
        connection.send(post(&url, &fields, "x"));
        assert_eq!(connection.response().status, 200);
        // The connection is back in the pool when the client's connection has ended.
        assert!(connection.is_closed());
        self.plain.connections() == before
    }
}

#[test]
fn kept_connections_evict_the_least_recently_used_for_a_new_one() {
    let scene = scene();
    for tenant in 0..KEPT {
        assert!(!scene.is_reused("busy", tenant));
    }
    assert!(scene.is_reused("busy", 0), "all are kept");
    assert!(!scene.is_reused("busy", KEPT));
    assert!(scene.is_reused("busy", KEPT), "a new one is kept");
    assert!(scene.is_reused("busy", 0), "and evicts none that was used lately");
    assert!(!scene.is_reused("busy", 1), "but the least recently used");
}

#[test]
fn kept_connections_of_one_client_leave_others_their_share() {
    let scene = scene();
    for tenant in 0..3 {
        assert!(!scene.is_reused("quiet", tenant));
    }
    for tenant in 0..3 * KEPT {
        assert!(!scene.is_reused("busy", tenant));
    }
    for tenant in 0..3 {
        assert!(scene.is_reused("quiet", tenant), "of tenant {tenant}");
    }
    assert!(scene.is_reused("busy", 3 * KEPT - 1));
}

/// Delivers twice with a pause to a target that responds with this field. Returns the number of connections.
fn connections(field: &str, timeouts: &str, pause: Duration) -> usize {
    let target = Receiver::plain(respond_with(&format!("HTTP/1.1 200 OK\r\n{field}Content-Length: 2\r\n\r\nok")));
    let text = config(&target, &target, "")
        .set("egress.default.ranges", ["127.0.7.1/32"])
        .add("routes.plain.client_connections", "shared");
    let text = match timeouts {
        "" => text,
        _ => text.remove("routes.plain.timeouts").route("plain", timeouts),
    };
    let outgate = Outgate::run(folder(&Pki::new()), &text);
    let url = format!("http://plain.example:{}/in", target.port());
    for _ in 0..2 {
        let mut client = outgate.connect();
        client.send(post(&url, "Connection: close\r\n", "x"));
        let response = client.response();
        assert_eq!((response.status, response.field("keep-alive")), (200, ""), "{response:?}");
        assert!(client.is_closed());
        std::thread::sleep(pause); // the idle time of the connection
    }
    target.connections()
}

#[test]
fn keep_alive_timeout_of_the_target_ends_the_reuse_of_a_connection() {
    let now = Duration::ZERO;
    for (field, pause, expected) in [
        ("", now, 1),
        ("Keep-Alive: timeout=60, max=1000\r\n", now, 1),
        ("Keep-Alive: timeout=99999999999999999999\r\n", now, 1),
        ("Keep-Alive: timeout=-1, max=x\r\n", now, 1),
        ("Keep-Alive: timeout=0\r\n", now, 2),
        ("Keep-Alive: max=0\r\n", now, 2),
        ("Keep-Alive: timeout=60\r\nKeep-Alive: timeout=0\r\n", now, 2),
        // outgate does not reuse a connection shortly before the target closes it.
        ("Keep-Alive: timeout=1\r\n", Duration::from_millis(600), 2),
    ] {
        assert_eq!(connections(field, "", pause), expected, "{field:?}");
    }
}

#[test]
fn idle_timeout_of_a_route_ends_the_reuse_of_a_connection() {
    let pause = Duration::from_millis(100);
    for (timeouts, expected) in [("timeouts = { idle = \"50ms\" }", 2), ("timeouts = { idle = \"1h\" }", 1)] {
        assert_eq!(connections("", timeouts, pause), expected, "{timeouts}");
    }
    // The Keep-Alive field of the target does not extend the idle timeout.
    assert_eq!(connections("Keep-Alive: timeout=60\r\n", "timeouts = { idle = \"50ms\" }", pause), 2);
}
