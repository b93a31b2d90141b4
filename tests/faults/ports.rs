//! Source addresses that run out of ports towards one target, or that the host loses.
//! Does outgate report the shortage early, take another source, and refuse without a wait when none is left?
//!
//! Needs root and `unshare`, `ip`, `python3`: skipped where they are missing, required with `OUTGATE_TEST_ALL=1`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::bystander::{Fault, Harm, for_a_period};
use crate::support::namespace::{self, inside_namespace, run};
use crate::support::pki::Pki;
use crate::support::process::Process;
use crate::support::receiver::{Reaction, Receiver, ok, respond_and_close};
use crate::support::scene::folder;
use crate::support::scrape::Scrape;
use crate::support::{Outgate, eventually, required};

const SOURCES: [[u8; 4]; 2] = [[198, 51, 100, 16], [198, 51, 100, 17]];
/// The pool of the bystander.
const OTHER: &str = "198.51.100.32";
const CLOSING: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
/// The ports of the namespace.
const PORTS: usize = 256;
/// The longest wait of a client for a refusal, on a busy machine.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// The response timeout of the busy target.
const RESPONSE: Duration = Duration::from_secs(2);

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

/// A pool of two sources for `busy.example` and `beside.example`, and a pool of another source for the healthy target.
fn scene(reaction: Reaction) -> Scene {
    run("ip addr add 203.0.113.5/32 dev lo");
    SOURCES.iter().for_each(|source| route("add", *source));
    run(&format!("ip route add local {OTHER}/32 dev lo"));
    let pki = Pki::new();
    // The target closes first: an idle connection of outgate, or TIME_WAIT, would free a port when the test expects none.
    let target = Receiver::tls_at("203.0.113.5:0", pki.leaf(&["busy.example"]), reaction);
    let healthy = Receiver::tls_at("203.0.113.5:0", pki.leaf(&["healthy.example", "beside.example"]), ok());
    let config = namespace::config(&format!(
        r#"
[egress.default]
ranges = ["198.51.100.16/31"]
notice = "0s"
select = "spread"
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
"beside.example" = ["203.0.113.5"]
[[routes]]
name = "busy"
hosts = ["busy.example"]
ports = [{busy}]
timeouts = {{ response = "{RESPONSE:?}" }}
[[routes]]
name = "beside"
hosts = ["beside.example"]
ports = [{healthy}]
[[routes]]
name = "healthy"
hosts = ["healthy.example"]
ports = [{healthy}]
egress = "other"
"#,
        busy = target.port(),
        healthy = healthy.port(),
    ));
    Scene { outgate: Outgate::run(folder(&pki), &config), target, healthy }
}

/// Adds the source address to the host, or removes it.
fn route(verb: &str, source: [u8; 4]) {
    run(&format!("ip route {verb} local {}/32 dev lo", IpAddr::from(source)));
}

impl Scene {
    fn url(&self) -> String {
        format!("https://busy.example:{}/in", self.target.port())
    }

    /// The URL of the healthy target, from the sources of the busy one.
    fn beside_url(&self) -> String {
        format!("https://beside.example:{}/in", self.healthy.port())
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

    /// Returns the number of ports without a listener. Listeners at different addresses may share one.
    fn available_ports(&self) -> usize {
        let listeners = [self.outgate.proxy, self.outgate.admin, self.target.address, self.healthy.address];
        PORTS - listeners.map(|address| address.port()).into_iter().collect::<BTreeSet<_>>().len()
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
    let scene = scene(respond_and_close(CLOSING));
    let fault = Fault {
        name: "ports exhausted",
        harmed: "clients of this target, once no source has a port",
        reported: "outgate_egress_ports_left, OutgatePortsNearlyOut, no_egress",
    };
    let harm = fault.run_by_law(&scene.outgate, &scene.healthy_url(), &[], |harm| {
        // The alert comes while deliveries succeed, and the metric is exact.
        scene.outgate.wait_for_metric(&format!("outgate_egress_ports {}", scene.available_ports()));
        let nearly = SOURCES.map(|source| scene.occupy(source, 3));
        for source in SOURCES {
            let alert = format!("{} has ", IpAddr::from(source));
            let left = format!("has 3 of {} ports left", scene.available_ports());
            scene.outgate.log.wait_for_lines(1, &["ERROR", "alert OutgatePortsNearlyOut", &alert, &left]);
            eventually("the metric counts three", || scene.ports_left(source) == Some(3.0));
        }
        assert_eq!(harm.send(scene.outgate.proxy, &scene.url()).status, 200);
        drop(nearly);

        // One source has no port: the other one delivers, whichever is the first choice.
        for (full, free) in [(SOURCES[0], SOURCES[1]), (SOURCES[1], SOURCES[0])] {
            let occupied = scene.occupy(full, 0);
            eventually("the metric counts none", || scene.ports_left(full) == Some(0.0));
            let before = scene.target.requests().len();
            for _ in 0..8 {
                assert_eq!(harm.send(scene.outgate.proxy, &scene.url()).status, 200);
            }
            let received = scene.target.requests().split_off(before);
            assert!(received.iter().all(|request| request.from == IpAddr::from(free)), "{received:?}");
            drop(occupied);
        }

        // The last port of the last source delivers.
        let last = [scene.occupy(SOURCES[0], 0), scene.occupy(SOURCES[1], 1)];
        assert_eq!(harm.send(scene.outgate.proxy, &scene.url()).status, 200);
        drop(last);

        // No source has a port: a refusal that names the cause. Another target has all ports of the same sources.
        let occupied = SOURCES.map(|source| scene.occupy(source, 0));
        for_a_period(|| {
            let response = harm.send(scene.outgate.proxy, &scene.url());
            assert_eq!((response.status, response.code()), (503, "no_egress"), "{response:?}");
            assert_eq!(scene.outgate.record_of(&response)["attempts"].as_array().unwrap().len(), 2);
            assert_eq!(harm.send(scene.outgate.proxy, &scene.beside_url()).status, 200);
        });
        drop(occupied);
        assert_eq!(harm.send(scene.outgate.proxy, &scene.url()).status, 200, "the ports are free again");
    });
    assert!(harm.longest < WAIT_MAX, "a client waited {:?}", harm.longest);
}

#[test]
fn source_address_that_is_lost_harms_no_delivery_from_another() {
    if !inside_namespace("ports::source_address_that_is_lost_harms_no_delivery_from_another") {
        return;
    }
    let scene = scene(respond_and_close(CLOSING));
    let fault = Fault {
        name: "source addresses removed",
        harmed: "clients of the pool, while no address is left",
        reported: "OutgatePoolEmpty, no_egress",
    };
    fault.run_by_law(&scene.outgate, &scene.healthy_url(), &[], |harm| {
        assert_eq!(harm.send(scene.outgate.proxy, &scene.url()).status, 200);
        SOURCES.iter().for_each(|source| route("del", *source));
        scene.outgate.log.wait_for_lines(1, &[": 0 usable addresses, "]);
        for_a_period(|| {
            let response = harm.send(scene.outgate.proxy, &scene.url());
            assert_eq!((response.status, response.code()), (503, "no_egress"), "{response:?}");
        });
        scene.outgate.log.wait_for_lines(1, &["alert OutgatePoolEmpty"]);
        SOURCES.iter().for_each(|source| route("add", *source));
        scene.outgate.log.wait_for_lines(1, &["2 usable addresses, 0 before"]);
        assert_eq!(harm.send(scene.outgate.proxy, &scene.url()).status, 200);
    });
}

/// The connections of the removed address stay open, and the response to them finds no way back.
#[test]
fn source_address_that_is_removed_in_flight_harms_its_own_deliveries_until_the_response_timeout() {
    const IN_FLIGHT: usize = 16;
    let name = "source_address_that_is_removed_in_flight_harms_its_own_deliveries_until_the_response_timeout";
    if !inside_namespace(&format!("ports::{name}")) {
        return;
    }
    let (begun, held) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(true)));
    let (sources, wait) = (Arc::clone(&begun), Arc::clone(&held));
    let scene = scene(Arc::new(move |request| {
        sources.lock().unwrap().push(request.from);
        eventually("the address is removed", || !wait.load(Ordering::Relaxed));
        (CLOSING.into(), false)
    }));
    let fault = Fault {
        name: "source address removed in flight",
        harmed: "deliveries in flight from this address, until the response timeout",
        reported: "response_timeout, OutgateAddressLost",
    };
    let removed = SOURCES[0];
    let harm = fault.run_by_law(&scene.outgate, &scene.healthy_url(), &[], |harm| {
        std::thread::scope(|scope| {
            let send = || {
                let mut harm = Harm::default();
                let response = harm.send(scene.outgate.proxy, &scene.url());
                (harm, scene.outgate.record_of(&response))
            };
            let senders: Vec<_> = (0..IN_FLIGHT).map(|_| scope.spawn(send)).collect();
            eventually("the target has the requests", || begun.lock().unwrap().len() == IN_FLIGHT);
            let lost = begun.lock().unwrap().iter().filter(|from| **from == IpAddr::from(removed)).count();
            assert!((1..IN_FLIGHT).contains(&lost), "{lost} of {IN_FLIGHT} from {removed:?}");
            route("del", removed);
            held.store(false, Ordering::Relaxed);
            for sender in senders {
                let (of_sender, record) = sender.join().unwrap();
                let (code, source) = (record["code"].as_str().unwrap(), record["source"].as_str().unwrap());
                let is_lost = source == IpAddr::from(removed).to_string();
                assert_eq!(code, if is_lost { "response_timeout" } else { "delivered" }, "{record}");
                harm.longest = harm.longest.max(of_sender.longest);
                harm.add(code, 1);
            }
            assert_eq!(harm.counts.get("response_timeout"), Some(&(lost as u64)));
        });
        // Later deliveries leave from the other address.
        scene.outgate.log.wait_for_lines(1, &[": 1 usable address, 2 before"]);
        let before = scene.target.requests().len();
        for_a_period(|| assert_eq!(harm.send(scene.outgate.proxy, &scene.url()).status, 200));
        let received = scene.target.requests().split_off(before);
        assert!(received.iter().all(|request| request.from == IpAddr::from(SOURCES[1])), "{received:?}");
        scene.outgate.log.wait_for_lines(1, &["alert OutgateAddressLost"]);
        route("add", removed);
        scene.outgate.log.wait_for_lines(1, &[": 2 usable addresses, 1 before"]);
    });
    assert!((RESPONSE..WAIT_MAX).contains(&harm.longest), "{:?}", harm.longest);
}
