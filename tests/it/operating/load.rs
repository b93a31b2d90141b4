//! The load that outgate reports to load balancers: the agent listener, `/loadz` and the metrics.
//! Does the weight fall before outgate refuses, and does it state the reason?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use support::configuration::Config;
use support::control::{run, with_admin_socket};
use support::namespace::{self, inside_namespace};
use support::pki::Pki;
use support::scene::{Scene, folder, scene_of};
use support::tunnel_scene::{self, ManualScene};
use support::{Client, Outgate, TEST_TIMEOUT, eventually, limited};

const PREFIX: &str = "agent listening on ";

fn with_agent(config: &Config) -> Config {
    config.add("admin.agent", ["127.0.0.1:0"])
}

/// Returns the address of the last agent listener that was opened.
fn agent(outgate: &Outgate) -> SocketAddr {
    let address = |line: &String| line.split_once(PREFIX).map(|(_, address)| address.trim().parse().unwrap());
    outgate.log.wait_for("agent listener", |lines| lines.iter().rev().find_map(address))
}

/// Checks the agent as HAProxy does: connects, sends `text`, and reads until the end.
fn check(outgate: &Outgate, text: &str) -> String {
    let mut stream = TcpStream::connect(agent(outgate)).unwrap();
    stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    let mut line = String::new();
    stream.read_to_string(&mut line).unwrap();
    line
}

fn loadz(outgate: &Outgate) -> Value {
    outgate.admin("/loadz").json()
}

/// Starts a delivery that is in flight until its client sends the body.
fn in_flight(scene: &Scene) -> Client {
    scene.outgate.start_upload(&scene.plain_url(), 1)
}

#[test]
fn load_lowers_the_weight_before_a_delivery_is_refused() {
    let scene = scene_of(&|config| with_admin_socket(&with_agent(config)).add("server.max_deliveries", 8));
    let outgate = &scene.outgate;
    let idle = loadz(outgate);
    assert_eq!((&idle["weight"], &idle["limited_by"], &idle["addresses"]), (&json!(100), &json!(null), &json!(1.0)));
    assert_eq!(check(outgate, ""), "100%\n");
    let mut clients: Vec<_> = (0..6).map(|_| in_flight(&scene)).collect();
    let load = loadz(outgate);
    assert_eq!((&load["weight"], &load["limited_by"]), (&json!(50), &json!("deliveries")), "{load}");
    assert_eq!(load["used"]["deliveries"], json!(0.75), "{load}");
    assert_eq!(outgate.admin("/loadz").field("x-envoy-degraded"), "");
    let status = run(&scene, &["status"]);
    let shown = String::from_utf8_lossy(&status.stdout);
    assert!(shown.contains("\nweight         50%, limited by deliveries\n"), "{shown}");
    clients.push(in_flight(&scene));
    assert_eq!(check(outgate, "backend outgate\n"), "25%\n", "haproxy sends a text (agent-send)");
    let degraded = outgate.admin("/loadz");
    assert_eq!((degraded.status, degraded.field("x-envoy-degraded")), (200, "true"));
    for (path, expected) in [("?min=25", 200), ("?min=26", 503), ("?min=0", 400), ("?min=101", 400), ("?min=x", 400)] {
        assert_eq!(outgate.admin(&format!("/loadz{path}")).status, expected, "{path}");
    }
    clients.push(in_flight(&scene));
    assert_eq!((check(outgate, ""), outgate.admin("/loadz").status), ("1%\n".to_owned(), 200));
    assert!(outgate.has_metric("outgate_load_weight 1"));
    assert!(
        outgate.has_metric("outgate_load_used_ratio{resource=\"deliveries\"} 1.0"),
        "{}",
        outgate.admin("/metrics").text()
    );
    assert!(outgate.has_metric("outgate_deliveries_shed_total 0"), "no delivery was refused so far");
    for client in &mut clients {
        client.send("x");
        assert_eq!(client.response().status, 200);
    }
    eventually("the weight is full again", || check(outgate, "") == "100%\n");
}

#[test]
fn load_of_a_drain_is_the_weight_zero_until_the_undrain() {
    let scene = scene_of(&|config| with_agent(&with_admin_socket(config)));
    assert_eq!(run(&scene, &["drain", "--grace", "1h"]).status.code(), Some(0));
    assert_eq!(check(&scene.outgate, ""), "0%\n");
    let drained = scene.outgate.admin("/loadz");
    assert_eq!((drained.status, &drained.json()["limited_by"]), (503, &json!("draining")));
    assert_eq!(run(&scene, &["undrain"]).status.code(), Some(0));
    assert_eq!((check(&scene.outgate, ""), scene.outgate.admin("/loadz").status), ("100%\n".to_owned(), 200));
}

#[test]
fn load_counts_open_tunnels() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let config = with_agent(&tunnel_scene::config(listener.local_addr().unwrap().port(), ""));
    let folder = folder(&Pki::new());
    folder.write_config("config.toml", &config);
    // (288 - 256) / 4 tunnels.
    let mut command = limited(288);
    command.args(["run", "--config"]).arg(folder.path("config.toml"));
    let scene = ManualScene { outgate: Outgate::start(command, folder), listener };
    let mut tunnels: Vec<_> = (0..6).map(|_| scene.open()).collect();
    let load = loadz(&scene.outgate);
    assert_eq!((&load["weight"], &load["limited_by"]), (&json!(50), &json!("tunnels")), "{load}");
    tunnels.truncate(4);
    eventually("the weight is full again", || check(&scene.outgate, "") == "100%\n");
}

#[test]
fn agent_listener_comes_and_goes_with_a_reload() {
    let scene = scene_of(&Config::clone);
    assert!(!scene.outgate.log.all().iter().any(|line| line.contains(PREFIX)), "there is none by default");
    let without = scene.outgate.config();
    scene.outgate.reconfigure(&with_agent(&without));
    let address = agent(&scene.outgate);
    assert_eq!(check(&scene.outgate, ""), "100%\n");
    scene.outgate.reconfigure(&without);
    eventually("the listener is closed", || TcpStream::connect(address).is_err());
}

#[test]
fn load_reports_lost_addresses_and_ports() {
    if !inside_namespace("operating::load::load_reports_lost_addresses_and_ports") {
        return;
    }
    namespace::run("ip route add local 198.51.100.16/28 dev lo");
    namespace::run("ip addr add 192.0.2.1/32 dev lo");
    let ranges = "[egress.default]\nranges = [\"198.51.100.16/28\"]\nnotice = \"0s\"\n[[routes]]\nname = \"all\"\nhosts = [\"*\"]\n";
    let text = namespace::config(ranges).add("admin.agent", ["127.0.0.1:0"]);
    let outgate = Outgate::run(folder(&Pki::new()), &text);
    // One connection: the ports of the namespace are few.
    let mut admin = Client::connect(outgate.admin);
    let mut loadz = || {
        admin.send("GET /loadz HTTP/1.1\r\nHost: localhost\r\n\r\n");
        admin.response_to("GET").json()
    };
    assert_eq!(check(&outgate, ""), "100%\n");

    // The test process takes the ports: the kernel lists the sockets of all processes.
    std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "20000 20099").unwrap();
    let target = TcpListener::bind("192.0.2.1:443").unwrap();
    let connect = |_| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([198, 51, 100, 17], 0)).into()).unwrap();
        socket.connect(&target.local_addr().unwrap().into()).unwrap();
        (socket, target.accept().unwrap())
    };
    let sockets: Vec<_> = (0..80).map(connect).collect();
    // outgate may have counted the ports while the test took them.
    eventually("the ports lower the weight", || {
        let load = loadz();
        load["limited_by"] == json!("ports") && (1..60).contains(&load["weight"].as_u64().unwrap())
    });
    for (client, (server, _)) in sockets {
        // Without TIME_WAIT, which keeps the port for a minute.
        client.set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop((client, server));
    }
    eventually("the ports are free again", || loadz()["weight"] == json!(100));
    let mut is_weight = |weight: u8, factor: &str| {
        let load = loadz();
        load["weight"] == json!(weight) && load["limited_by"] == json!(factor)
    };

    namespace::run("ip route del local 198.51.100.16/28 dev lo");
    namespace::run("ip route add local 198.51.100.16/29 dev lo");
    eventually("half of the addresses are lost", || is_weight(50, "addresses"));
    assert_eq!(outgate.admin("/readyz").status, 200);
    namespace::run("ip route del local 198.51.100.16/29 dev lo");
    eventually("all addresses are lost", || is_weight(0, "addresses"));
    assert_eq!((check(&outgate, ""), outgate.admin("/loadz").status), ("0%\n".to_owned(), 503));
    let listed = Command::new("ip").args(["route", "show", "table", "local"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&listed.stdout).contains("198.51.100"), "{listed:?}");
}
