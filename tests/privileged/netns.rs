//! Real ranges, IPv6 prefixes and AnyIP routes in a network namespace.
//! Does the target only ever get connections from addresses of the pool?
//!
//! Needs root and `unshare`, `ip`: skipped where they are missing, required with `OUTGATE_TEST_ALL=1`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use socket2::{Domain, Socket, Type};
use support::audit::until_recorded;
use support::configuration::Replace;
use support::namespace;
pub(crate) use support::namespace::{Host, inside_namespace, run};
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::folder;
use support::{Client, Outgate};

/// Runs the test `name` of this file again in a new network namespace. Returns true inside the namespace.
fn inside(name: &str) -> bool {
    inside_namespace(&format!("netns::{name}"))
}

struct Scene {
    outgate: Outgate,
    v4: Receiver,
    v6: Receiver,
}

/// Creates addresses for receivers on 203.0.113.5 and 2001:db8:99::5, and routes for 198.51.100.16/28 and
/// 2001:db8:5::/64 to this host.
fn scene(select: &str) -> Scene {
    run("ip addr add 203.0.113.5/32 dev lo");
    run("ip -6 addr add 2001:db8:99::5/128 dev lo nodad");
    run("ip route add local 198.51.100.16/28 dev lo");
    run("ip -6 route add local 2001:db8:5::/64 dev lo");
    let pki = Pki::new();
    let names = ["v4.example", "v6.example", "both.example"];
    let v4 = Receiver::tls_at("203.0.113.5:0", pki.leaf(&names), ok());
    let v6 = Receiver::tls_at(&format!("[2001:db8:99::5]:{}", v4.port()), pki.leaf(&names), ok());
    let config = namespace::config(&format!(
        r#"
[audit]
file = "{{dir}}/audit.jsonl"
[egress.default]
ranges = ["198.51.100.16/28", "2001:db8:5::/64"]
notice = "0s"
select = "{select}"
[guard]
allow = ["203.0.113.0/24", "2001:db8:99::/48"]
ports = [{port}]
[resolver.hosts]
"v4.example" = ["203.0.113.5"]
"v6.example" = ["2001:db8:99::5"]
"both.example" = ["203.0.113.5", "2001:db8:99::5"]
[[routes]]
name = "all"
hosts = ["*"]
timeouts = {{ connect = "3s" }}
"#,
        port = v4.port()
    ));
    let outgate = Outgate::run(folder(&pki), &config);
    Scene { outgate, v4, v6 }
}

impl Scene {
    fn url(&self, host: &str) -> String {
        format!("https://{host}:{}/", self.v4.port())
    }

    fn post(&self, host: &str) -> support::Response {
        self.outgate.post(&self.url(host), "", "x")
    }

    /// Sets the range of local ports to `count` ports, and waits until outgate has read it. `admin` is a connection from
    /// before: outgate has read the former range for it, and each new connection would take a port.
    fn set_ports(&self, admin: &mut Client, count: u16) {
        let mut metrics = || {
            admin.send("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
            admin.response_to("GET").text()
        };
        let line = format!("\noutgate_egress_ports {count}\n");
        assert!(!metrics().contains(&line));
        let range = format!("20000 {}", 20000 + count - 1);
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", range).unwrap();
        support::eventually(&line, || metrics().contains(&line));
    }

    /// Opens `count` connections from 198.51.100.`last` to the receiver.
    fn occupy(&self, last: u8, count: usize) -> Vec<Socket> {
        let connect = |_| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::from(([198, 51, 100, last], 0)).into()).unwrap();
            socket.connect(&SocketAddr::from(([203, 0, 113, 5], self.v4.port())).into()).unwrap();
            socket
        };
        (0..count).map(connect).collect()
    }
}

#[test]
fn every_source_is_of_the_pool() {
    if !inside("every_source_is_of_the_pool") {
        return;
    }
    let scene = scene("spread");
    let count = 64;
    for _ in 0..count {
        assert_eq!(scene.post("v4.example").status, 200);
        assert_eq!(scene.post("v6.example").status, 200);
    }
    let sources =
        |receiver: &Receiver| receiver.requests().iter().map(|received| received.from).collect::<BTreeSet<IpAddr>>();
    let (v4, v6) = (sources(&scene.v4), sources(&scene.v6));
    let nets: [IpNet; 2] = ["198.51.100.16/28".parse().unwrap(), "2001:db8:5::/64".parse().unwrap()];
    assert!(v4.iter().all(|source| nets[0].contains(source)), "{v4:?}");
    assert!(v6.iter().all(|source| nets[1].contains(source)), "{v6:?}");
    assert_eq!(v4.len(), 16, "a spread pool uses every address, network and broadcast address too");
    assert!(v6.len() > count / 2, "a /64 is used without being listed: {}", v6.len());
    let metrics = scene.outgate.admin("/metrics").text();
    assert!(metrics.contains(r#"outgate_egress_addresses{pool="default",state="usable"}"#), "{metrics}");
}

#[test]
fn an_address_that_is_lost_is_not_replaced_by_another_host_address() {
    if !inside("an_address_that_is_lost_is_not_replaced_by_another_host_address") {
        return;
    }
    let scene = scene("sticky");
    assert_eq!(scene.post("v4.example").status, 200);
    assert_eq!(scene.post("v6.example").status, 200);
    let before = (scene.v4.requests().len(), scene.v6.requests().len());
    run("ip route del local 198.51.100.16/28 dev lo");
    run("ip -6 route del local 2001:db8:5::/64 dev lo");
    scene.outgate.log.wait_for("the log line of the loss", |lines| {
        lines.iter().any(|line| line.contains(": 0 usable addresses, ")).then_some(())
    });
    for host in ["v4.example", "v6.example"] {
        let response = scene.post(host);
        assert_eq!((response.status, response.code()), (503, "no_egress"), "{host}");
    }
    assert_eq!((scene.v4.requests().len(), scene.v6.requests().len()), before);
    assert_eq!(scene.outgate.admin("/readyz").status, 503);
    run("ip route add local 198.51.100.16/28 dev lo");
    scene.outgate.log.wait_for("the log line of the return", |lines| {
        lines.iter().any(|line| line.contains("16 usable addresses, 0 before")).then_some(())
    });
    assert_eq!(scene.post("v4.example").status, 200);
    assert_eq!(scene.outgate.admin("/readyz").status, 200);
    let lost = until_recorded(&scene.outgate, "address.lost", 1).pop().unwrap();
    assert_eq!((&lost["resource_sid"], &lost["kind"]), (&"default".into(), &"address".into()), "{lost}");
    assert!(lost["description"].as_str().unwrap().contains(": 0 usable addresses, "), "{lost}");
    let found = &until_recorded(&scene.outgate, "address.found", 1)[0];
    assert!(found["description"].as_str().unwrap().contains("16 usable addresses, 0 before"), "{found}");
}

/// The test measures from the end of the command `ip` to the metric that shows the change.
#[test]
fn added_and_removed_addresses_are_followed_within_100_ms() {
    if !inside("added_and_removed_addresses_are_followed_within_100_ms") {
        return;
    }
    let scene = scene("sticky");
    let usable = |count: u32| format!("outgate_egress_addresses{{pool=\"v4\",state=\"usable\"}} {count}.0");
    let text = std::fs::read_to_string(scene.outgate.folder.path("config.toml")).unwrap();
    let pool = "[egress.v4]\nranges = [\"198.51.100.16/28\", \"2001:db8:7::1\"]\nnotice = \"0s\"\n[egress.default]";
    scene.outgate.reconfigure(&text.replace_one("[egress.default]", pool));
    scene.outgate.wait_for_metric(&usable(16));
    run("ip link add veth0 type veth peer name veth1");
    let (mut times, mut now) = (Vec::new(), 16);
    for (command, count) in [
        ("ip route del local 198.51.100.16/28 dev lo", 0),
        ("ip addr add 198.51.100.17/32 dev lo", 1),
        ("ip addr add 198.51.100.18/24 dev veth0", 2),
        ("ip -6 addr add 2001:db8:7::1/128 dev lo nodad", 3),
        ("ip link set veth0 up", 3),
        ("ip addr del 198.51.100.18/24 dev veth0", 2),
        ("ip -6 addr del 2001:db8:7::1/128 dev lo", 1),
        ("ip route add local 198.51.100.16/28 dev lo", 16),
    ] {
        run(command);
        if count == now {
            continue; // nothing shows when outgate has seen this change
        }
        now = count;
        let since = Instant::now();
        scene.outgate.wait_for_metric(&usable(count));
        let elapsed = since.elapsed();
        eprintln!("{command}: {} ms", elapsed.as_millis());
        times.push(elapsed);
    }
    times.sort();
    // Another process of this machine may delay a single look.
    assert!(times[times.len() / 2] < Duration::from_millis(100), "{times:?}");
    assert!(times[times.len() - 1] < Duration::from_secs(1), "{times:?}");
    assert_eq!(scene.post("v4.example").status, 200);
}

#[test]
fn families_are_matched_and_the_better_one_wins() {
    if !inside("families_are_matched_and_the_better_one_wins") {
        return;
    }
    let scene = scene("sticky");
    let response = scene.post("both.example");
    assert_eq!(response.status, 200);
    // On a loaded machine outgate may also try IPv4, after 250 ms. Then the record has both attempts in their order.
    let record = scene.outgate.record_of(&response);
    let first = record["attempts"][0]["address"].as_str();
    let is_ipv6 = first.map_or(scene.v6.requests().len() == 1, |address| address.contains("2001:db8:99::5"));
    assert!(is_ipv6, "IPv6 is tried first (RFC 8305 §4): {record}");
    let before = (scene.v4.requests().len(), scene.v6.requests().len());
    let text = std::fs::read_to_string(scene.outgate.folder.path("config.toml")).unwrap();
    scene.outgate.reconfigure(&text.replace_one(r#", "2001:db8:5::/64""#, ""));
    assert_eq!(scene.post("both.example").status, 200);
    assert_eq!((scene.v4.requests().len(), scene.v6.requests().len()), (before.0 + 1, before.1));
    let response = scene.post("v6.example");
    assert_eq!((response.status, response.code()), (502, "connect_unreachable"));
}

#[test]
fn verify_and_list_know_the_ranges() {
    if !inside("verify_and_list_know_the_ranges") {
        return;
    }
    let scene = scene("sticky");
    let egress = |arguments: &[&str]| {
        let config = scene.outgate.folder.path("config.toml");
        let out = Command::new(env!("CARGO_BIN_EXE_outgate"))
            .arg("egress")
            .args(arguments)
            .arg("--config")
            .arg(config)
            .output()
            .unwrap();
        (out.status.code(), String::from_utf8(out.stdout).unwrap())
    };
    assert_eq!(egress(&["list"]), (Some(0), "198.51.100.16/28\n2001:db8:5::/64\n".into()));
    let addresses = || {
        let report: serde_json::Value = serde_json::from_str(&egress(&["verify", "--json"]).1).unwrap();
        let findings = report["findings"].as_array().unwrap().clone();
        let found = findings.into_iter().find(|finding| finding["check"] == "addresses").unwrap();
        (found["level"].as_str().unwrap().to_owned(), report["pools"][0]["missing"].clone())
    };
    assert_eq!(addresses(), ("ok".to_owned(), serde_json::json!([])));
    run("ip route del local 198.51.100.16/28 dev lo");
    run("ip route add local 198.51.100.16/29 dev lo");
    let (level, missing) = addresses();
    let expected: Vec<String> = (24..32).map(|last| format!("198.51.100.{last}")).collect();
    assert_eq!((level.as_str(), missing), ("problem", serde_json::json!(expected)));
    assert_eq!(egress(&["verify"]).0, Some(1));
}

/// The test occupies 19 of 20 ports of one source address towards the receiver. The range excludes the ports of the
/// listeners, which opened before.
#[test]
fn source_address_with_few_ports_left_raises_an_alert() {
    if !inside("source_address_with_few_ports_left_raises_an_alert") {
        return;
    }
    let scene = scene("sticky");
    scene.set_ports(&mut Client::connect(scene.outgate.admin), 20);
    let _occupied = scene.occupy(17, 19);
    scene
        .outgate
        .log
        .wait_for_lines(1, &["ERROR", "alert OutgatePortsNearlyOut", "198.51.100.17 has 1 of 20 ports left"]);
}

/// A host that has no port left has one as soon as an operator widens the range of local ports.
#[test]
fn wider_range_of_local_ports_holds_without_a_restart() {
    if !inside("wider_range_of_local_ports_holds_without_a_restart") {
        return;
    }
    let scene = scene("sticky");
    // The occupied ports are missing to new connections of the test, too.
    let (mut client, mut admin) = (scene.outgate.connect(), Client::connect(scene.outgate.admin));
    let mut post = || {
        client.send(support::post(&scene.url("v4.example"), "", "x"));
        client.response()
    };
    scene.set_ports(&mut admin, 20);
    let _occupied: Vec<_> = (16..32).map(|last| scene.occupy(last, 20)).collect();
    let response = post();
    assert_eq!((response.status, response.code()), (503, "no_egress"));
    scene.set_ports(&mut admin, 200);
    assert_eq!(post().status, 200);
}
