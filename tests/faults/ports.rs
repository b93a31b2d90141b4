//! Source addresses that run out of ports towards one target, or that the host loses.
//! Does outgate report the shortage early, take another source, and refuse without a wait when none is left?
//!
//! Needs root and `unshare`, `ip`, `python3`: skipped where they are missing, required with `OUTGATE_TEST_ALL=1`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::IpAddr;
use std::process::Command;

use crate::bystander::{Fault, for_a_period};
use crate::support::namespace::{inside_namespace, run};
use crate::support::pki::Pki;
use crate::support::process::Process;
use crate::support::receiver::{Receiver, ok, respond_and_close};
use crate::support::scene::folder;
use crate::support::scrape::Scrape;
use crate::support::{Outgate, eventually, required};

const SOURCES: [[u8; 4]; 2] = [[198, 51, 100, 16], [198, 51, 100, 17]];
/// The pool of the bystander.
const OTHER: &str = "198.51.100.32";
const CLOSING: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
/// The ports of the namespace. Those of its few listeners lead to no target, and outgate counts them as left.
const PORTS: usize = 256;

/// Connects from a source until no port is left, and then frees some. IP_BIND_ADDRESS_NO_PORT (24, ip(7)): a port that
/// is taken at `bind` would be taken towards every target. A connection without linger frees its port at once.
const OCCUPY: &str = r#"
import socket, struct, sys, time
sockets = []
try:
    while len(sockets) < 1000:
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        s.setsockopt(socket.IPPROTO_IP, 24, 1)
        s.bind((sys.argv[1], 0))
        s.connect(("203.0.113.5", int(sys.argv[2])))
        sockets.append(s)
except OSError:
    pass
for s in sockets[len(sockets) - int(sys.argv[3]):]:
    s.close()
print("occupied", flush=True)
time.sleep(120)
"#;

struct Scene {
    outgate: Outgate,
    target: Receiver,
    healthy: Receiver,
}

/// A pool of two sources for `busy.example`, and a pool of another source for the healthy target.
fn scene() -> Scene {
    run("ip addr add 203.0.113.5/32 dev lo");
    run("ip route add local 198.51.100.16/31 dev lo");
    run(&format!("ip route add local {OTHER}/32 dev lo"));
    let pki = Pki::new();
    // The target closes first: an idle connection of outgate, or TIME_WAIT, would free a port when the test expects none.
    let target = Receiver::tls_at("203.0.113.5:0", pki.leaf(&["busy.example"]), respond_and_close(CLOSING));
    let healthy = Receiver::tls_at("203.0.113.5:0", pki.leaf(&["healthy.example"]), ok());
    let config = format!(
        r#"
[server]
listen = ["127.0.0.1:0"]
allow_anonymous = true
[admin]
listen = ["127.0.0.1:0"]
[egress.default]
ranges = ["198.51.100.16/31"]
notice = "0s"
[egress.other]
ranges = ["{OTHER}/32"]
notice = "0s"
[guard]
allow = ["203.0.113.0/24"]
[circuit]
failures = 0
[resolver.hosts]
"busy.example" = ["203.0.113.5"]
"healthy.example" = ["203.0.113.5"]
[trust.public]
roots = ["{{dir}}/ca.pem"]
[[routes]]
name = "busy"
hosts = ["busy.example"]
ports = [{busy}]
[[routes]]
name = "healthy"
hosts = ["healthy.example"]
ports = [{healthy}]
egress = "other"
"#,
        busy = target.port(),
        healthy = healthy.port(),
    );
    Scene { outgate: Outgate::run(folder(&pki), &config), target, healthy }
}

impl Scene {
    fn url(&self) -> String {
        format!("https://busy.example:{}/in", self.target.port())
    }

    fn healthy_url(&self) -> String {
        format!("https://healthy.example:{}/in", self.healthy.port())
    }

    /// Occupies ports of a source towards the target until `left` are free. The process holds them until it is dropped.
    fn occupy(&self, source: [u8; 4], left: usize) -> Process {
        let mut command = Command::new("python3");
        command.args(["-c", OCCUPY, &IpAddr::from(source).to_string(), &self.target.port().to_string()]);
        let process = Process::start(command.arg(left.to_string()));
        process.lines.wait_for_lines(1, &["occupied"]);
        process
    }

    fn ports_left(&self, source: [u8; 4]) -> Option<f64> {
        let address = IpAddr::from(source).to_string();
        Scrape::of(&self.outgate).value("outgate_egress_ports_left", &[("address", &*address)])
    }
}

#[test]
fn exhausted_ports_lead_to_another_source_and_then_to_no_egress_without_a_wait() {
    let name = "exhausted_ports_lead_to_another_source_and_then_to_no_egress_without_a_wait";
    if !inside_namespace(&format!("ports::{name}")) {
        return;
    }
    if Command::new("python3").arg("--version").output().is_err() {
        assert!(!required(), "missing: python3");
        eprintln!("skipped: python3 is missing");
        return;
    }
    std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", format!("40000 {}", 40000 + PORTS - 1)).unwrap();
    let scene = scene();
    let fault = Fault {
        name: "ports exhausted",
        harmed: "clients of this target, once no source has a port",
        reported: "outgate_egress_ports_left, OutgatePortsNearlyOut, no_egress",
    };
    fault.run_by_law(&scene.outgate, &scene.healthy_url(), &[], |harm| {
        // The alert comes while deliveries succeed.
        let nearly = SOURCES.map(|source| scene.occupy(source, 3));
        for source in SOURCES {
            let alert = format!("{} has ", IpAddr::from(source));
            scene.outgate.log.wait_for_lines(1, &["ERROR", "alert OutgatePortsNearlyOut", &alert, "ports left"]);
        }
        assert_eq!(harm.send(scene.outgate.proxy, &scene.url()).status, 200);
        drop(nearly);

        // One source has no port: the other one delivers, whichever is the first choice.
        for (full, free) in [(SOURCES[0], SOURCES[1]), (SOURCES[1], SOURCES[0])] {
            let occupied = scene.occupy(full, 0);
            eventually("the metric shows the shortage", || {
                scene.ports_left(full).is_some_and(|left| left < PORTS as f64 / 10.0)
            });
            let before = scene.target.requests().len();
            for _ in 0..8 {
                assert_eq!(harm.send(scene.outgate.proxy, &scene.url()).status, 200);
            }
            let received = scene.target.requests().split_off(before);
            assert!(received.iter().all(|request| request.from == IpAddr::from(free)), "{received:?}");
            drop(occupied);
        }

        // No source has a port: a refusal that names the cause.
        let occupied = SOURCES.map(|source| scene.occupy(source, 0));
        for_a_period(|| {
            let response = harm.send(scene.outgate.proxy, &scene.url());
            assert_eq!((response.status, response.code()), (503, "no_egress"), "{response:?}");
            assert_eq!(scene.outgate.record_of(&response)["attempts"].as_array().unwrap().len(), 2);
        });
        drop(occupied);
        assert_eq!(harm.send(scene.outgate.proxy, &scene.url()).status, 200, "the ports are free again");
    });
}

#[test]
fn source_address_that_is_lost_harms_no_delivery_from_another() {
    if !inside_namespace("ports::source_address_that_is_lost_harms_no_delivery_from_another") {
        return;
    }
    let scene = scene();
    let fault = Fault {
        name: "source addresses removed",
        harmed: "clients of the pool, while no address is left",
        reported: "OutgatePoolEmpty, no_egress",
    };
    fault.run_by_law(&scene.outgate, &scene.healthy_url(), &[], |harm| {
        assert_eq!(harm.send(scene.outgate.proxy, &scene.url()).status, 200);
        run("ip route del local 198.51.100.16/31 dev lo");
        scene.outgate.log.wait_for_lines(1, &[": 0 usable addresses, "]);
        for_a_period(|| {
            let response = harm.send(scene.outgate.proxy, &scene.url());
            assert_eq!((response.status, response.code()), (503, "no_egress"), "{response:?}");
        });
        scene.outgate.log.wait_for_lines(1, &["alert OutgatePoolEmpty"]);
        run("ip route add local 198.51.100.16/31 dev lo");
        scene.outgate.log.wait_for_lines(1, &["2 usable addresses, 0 before"]);
        assert_eq!(harm.send(scene.outgate.proxy, &scene.url()).status, 200);
    });
}
