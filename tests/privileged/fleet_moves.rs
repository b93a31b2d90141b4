//! A fleet of two hosts whose ranges VRRP or BGP moves, each host in a network namespace.
//! Does the store of the fleet follow a move, and does each webhook leave from an address of the pool meanwhile?
//!
//! Needs root, keepalived, BIRD, curl and redis-server: skipped where they are missing, required with `OUTGATE_TEST_ALL=1`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use ipnet::IpNet;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde_json::Value;

use crate::netns::{Host, inside_namespace, run};
use crate::network_files::{libraries, program};
use crate::support::configuration::{Config, Replace, token_hash};
use crate::support::control::get;
use crate::support::pki::Pki;
use crate::support::process::Process;
use crate::support::receiver::{Receiver, ok};
use crate::support::store::{self, StoreServer};
use crate::support::{Folder, Outgate, eventually};
use crate::vrrp::{self, Egress, HOST};

/// The ranges of `examples/vrrp/config.toml`.
const RANGES: [&str; 2] = ["192.0.2.20/31", "198.51.100.16/28"];

const NAMES: [&str; 2] = ["egress-1", "egress-2"];
/// The ranges of `examples/network/bird`.
const V4: &str = "198.51.100.16/28";
const V6: &str = "2001:db8:5::/64";

/// Returns the instances whose hosts have addresses of each range, as an instance shows them.
fn hosts_of_ranges(shown_by: &Outgate) -> Vec<Vec<String>> {
    let status = get(shown_by, "/v1/fleet").json();
    let ranges = status["ranges"].as_array().map_or(&[][..], Vec::as_slice);
    let names = |range: &Value| {
        let hosts = range["hosts"].as_array().unwrap().iter();
        hosts.map(|host| host["instance"].as_str().unwrap().to_owned()).collect()
    };
    ranges.iter().map(names).collect()
}

fn wait_for_state(shown_by: &Outgate, instance: &str, range: &str, state: &str) {
    eventually(&format!("{range} is {state} at {instance}"), || {
        let status = get(shown_by, "/v1/fleet").json();
        let found = status["ranges"].as_array().into_iter().flatten().find(|found| found["range"] == range);
        let mut hosts = found.and_then(|found| found["hosts"].as_array()).into_iter().flatten();
        hosts.any(|host| host["instance"] == instance && host["state"] == state)
    });
}

fn wait_for_host(shown_by: &Outgate, instance: &str) {
    eventually(&format!("{instance} alone has all ranges"), || hosts_of_ranges(shown_by) == [[instance], [instance]]);
    eventually("a host that waits for its ranges is no problem", || {
        let status = get(shown_by, "/v1/fleet").json();
        let mut problems = status["problems"].as_array().unwrap_or_else(|| panic!("{status}")).iter();
        problems.all(|found| !found["problem"].as_str().unwrap().starts_with("range_"))
    });
}

/// Shows when a host gets addresses, and when its instance announces them to the store.
struct Watch {
    addresses: Process,
    calls: Process,
}

impl Watch {
    fn start(host: &Host, store: &StoreServer) -> Self {
        let mut ip = host.command("ip");
        let addresses = Process::start(ip.env("TZ", "UTC").args(["-tshort", "-oneline", "monitor", "address"]));
        eventually("ip shows changes of addresses", || {
            host.run("ip address add 127.0.0.9/32 dev lo");
            host.run("ip address del 127.0.0.9/32 dev lo");
            !addresses.lines.all().is_empty()
        });
        let calls = Process::start(Command::new("redis-cli").args(["-p", &store.port.to_string(), "monitor"]));
        calls.lines.wait_for_lines(1, &["OK"]);
        Self { addresses, calls }
    }

    /// Waits for an announcement of all addresses. Prints the time since the host got the first one.
    fn wait_for_announcement(&self, instance: &str) {
        let is_gained = |line: &&String| line.contains(" 192.0.2.20/32 ") && !line.contains("Deleted");
        let gained = self.addresses.lines.wait_for("address", |lines| lines.iter().find(is_gained).cloned());
        let gained: DateTime = gained.trim_start_matches('[').split(']').next().unwrap().parse().unwrap();
        let gained = gained.to_zoned(TimeZone::UTC).unwrap().timestamp();
        let has_all = |line: &&String| {
            let call: String = line.split('\\').collect();
            let has = |range: &str| call.contains(&format!("\"parts\":[\"{range}\"]"));
            call.contains(&format!("\"instance\":\"{instance}\"")) && RANGES.into_iter().all(has)
        };
        let call = self.calls.lines.wait_for("announcement", |lines| lines.iter().find(has_all).cloned());
        let time: String = call.split(' ').next().unwrap().split('.').collect();
        let announced = Timestamp::from_microsecond(time.parse().unwrap()).unwrap();
        let delay = announced.duration_since(gained).as_millis();
        eprintln!("{instance} announced its addresses {delay} ms after the host got the first one");
    }
}

/// Sends webhooks to a proxy, one after another. Dropping it ends this.
struct Sender {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sender {
    fn start(proxy: String) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let is_over_there = Arc::clone(&is_over);
        let send = move || {
            while !is_over_there.load(Ordering::Relaxed) {
                let mut curl = Command::new("curl");
                curl.args(["--silent", "--output", "/dev/null", "--max-time", "1", "--proxy", &proxy, "--data", "{}"]);
                curl.args(["--header", "Outgate-TLS: 1", &format!("http://{HOST}/in")]).status().unwrap();
            }
        };
        Self { is_over, thread: Some(std::thread::spawn(send)) }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

/// Starts senders to the own address of each host.
fn senders() -> [Sender; 2] {
    [10, 11].map(|number| Sender::start(format!("http://billing:TOKEN@10.0.0.{number}:4750")))
}

/// Starts the outgate of a host as an instance of the fleet.
fn start_instance(host: &mut Egress, name: &str, folder: Folder, store: &StoreServer) {
    let config = std::fs::read_to_string(folder.path("config.toml")).unwrap();
    let fleet = format!("[fleet]\ninstance = {name:?}\nstore = \"redis://10.0.0.1:{}\"\n", store.port);
    folder.write_config("config.toml", &format!("{config}{fleet}"));
    host.start_outgate(folder);
}

fn assert_no_foreign_source(receiver: &Receiver, ranges: &[&str]) {
    let ranges: Vec<IpNet> = ranges.iter().map(|range| range.parse().unwrap()).collect();
    let received = receiver.requests();
    let foreign = received.iter().find(|request| !ranges.iter().any(|range| range.contains(&request.from)));
    assert!(foreign.is_none() && !received.is_empty(), "{foreign:?}");
}

fn wait_for_delivery(host: &Egress) {
    let before = host.deliveries();
    eventually("the host that has the addresses sends", || host.deliveries() > before);
}

/// Each host gets webhooks all the time at its own address, also while it has no address to send from.
#[test]
fn fleet_follows_ranges_that_keepalived_moves() {
    let Some(keepalived) = program("keepalived").filter(|_| store::is_installed()) else { return };
    if !inside_namespace("fleet_moves::fleet_follows_ranges_that_keepalived_moves") {
        return;
    }
    vrrp::network();
    let store = StoreServer::start_with(&["--bind", "127.0.0.1", "10.0.0.1", "--protected-mode", "no"], &[]);
    let (pki, key, shared) = (Pki::new(), vrrp::key(), Folder::new());
    let receiver = Receiver::tls_at("203.0.113.5:443", pki.leaf(&[HOST]), ok());
    shared.write("keepalived.conf", vrrp::keepalived_file());
    let mut hosts = [Egress::new(10), Egress::new(11)];
    for (host, name) in hosts.iter_mut().zip(NAMES) {
        start_instance(host, name, vrrp::folder(&pki, &key), &store);
    }
    let _senders = senders();
    let watch = Watch::start(&hosts[0].host, &store);
    for (host, name) in hosts.iter_mut().zip(NAMES) {
        host.start_keepalived(&keepalived, name, &shared);
    }
    watch.wait_for_announcement("egress-1");
    let [first, second] = &mut hosts;
    wait_for_host(second.outgate(), "egress-1");
    wait_for_delivery(first);
    assert_eq!(second.deliveries(), 0, "the host that waits sends nothing");

    let watch = Watch::start(&second.host, &store);
    first.stop_keepalived();
    watch.wait_for_announcement("egress-2");
    wait_for_host(first.outgate(), "egress-2");
    wait_for_delivery(second);
    for host in [&*first, second] {
        let refused = host.outgate().records(0).iter().filter(|record| record["code"] == "no_egress").count();
        assert!(refused > 0, "a host without addresses refuses webhooks");
    }

    first.start_keepalived(&keepalived, "egress-1", &shared);
    let watch = Watch::start(&first.host, &store);
    second.outgate = None;
    watch.wait_for_announcement("egress-1");
    wait_for_host(first.outgate(), "egress-1");
    wait_for_delivery(first);

    assert_no_foreign_source(&receiver, &RANGES);
}

/// BIRD and health.sh of a host. They have a folder `/run` of their own, in which BIRD has its control socket.
fn start_bird(host: &Host, bird: &Path, config: &Path, curl_config: &Path, ipv6: &str) -> Process {
    let script = "mount -t tmpfs none /run && mkdir /run/bird && \"$0\" -f -c \"$1\" & \
                  exec sh examples/network/bird/health.sh egress4=198.51.100.16/28 \"$2\" 2>&1";
    // The processes end with the first one of their namespace.
    let mut command = host.command("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script]).arg(bird).arg(config).arg(ipv6);
    let path = format!("{}:{}", bird.parent().unwrap().display(), std::env::var("PATH").unwrap());
    Process::start(command.env("LD_LIBRARY_PATH", libraries()).env("PATH", path).env("CURL_CONFIG", curl_config))
}

/// BIRD of the router, which accepts the routes of both hosts.
fn start_router(folder: &Folder, bird: &Path) -> Process {
    let mut config = "router id 192.0.2.1;\nprotocol device {}\n".to_owned();
    for family in ["ipv4", "ipv6"] {
        config += &format!("protocol kernel {{ {family} {{ export all; }}; }}\n");
    }
    for number in [10, 11] {
        for (prefix, own, family) in [("192.0.2.", "192.0.2.1", "ipv4"), ("2001:db8:1::", "2001:db8:1::1", "ipv6")] {
            config += &format!(
                "protocol bgp {{ local {own} as 64511; neighbor {prefix}{number} as 64512; hold time 9; \
                 connect retry time 1; error wait time 1, 1; {family} {{ import all; export none; }}; }}\n"
            );
        }
    }
    let mut command = Command::new(bird);
    command.arg("-f").arg("-c").arg(folder.write("router.conf", config));
    command.arg("-s").arg(folder.path("router.ctl")).env("LD_LIBRARY_PATH", libraries());
    Process::start(&mut command)
}

/// Waits until the router sends the packets of a range to a host. `None`: to none.
fn wait_for_route(range: &str, via: Option<&str>) {
    let family = if range.contains(':') { "-6" } else { "-4" };
    eventually(&format!("the router sends {range} to {via:?}"), || {
        let output = Command::new("ip").args([family, "route", "show", range]).output().unwrap();
        let routes = String::from_utf8(output.stdout).unwrap();
        via.map_or(routes.is_empty(), |via| routes.contains(&format!(" via {via} ")))
    });
}

/// Both hosts have both ranges, and an assignment states which one sends from a range. Each host gets webhooks all the time.
#[test]
fn routes_of_bird_follow_ranges_that_the_fleet_moves() {
    let Some(bird) = program("bird").filter(|_| store::is_installed()) else { return };
    if !inside_namespace("fleet_moves::routes_of_bird_follow_ranges_that_the_fleet_moves") {
        return;
    }
    vrrp::network();
    run("ip route del 198.51.100.16/28");
    run("ip address add 2001:db8:1::1/64 dev outside nodad");
    let store = StoreServer::start_with(&["--bind", "127.0.0.1", "10.0.0.1", "--protected-mode", "no"], &[]);
    let (pki, key, shared) = (Pki::new(), vrrp::key(), Folder::new());
    let receiver = Receiver::tls_at("203.0.113.5:443", pki.leaf(&[HOST]), ok());
    let mut hosts = [Egress::new(10), Egress::new(11)];
    for (host, name) in hosts.iter_mut().zip(NAMES) {
        host.host.run("ip route add local 198.51.100.16/28 dev lo");
        host.host.run("ip -6 route add local 2001:db8:5::/64 dev lo");
        let folder = vrrp::folder(&pki, &key);
        let config = std::fs::read_to_string(folder.path("config.toml")).unwrap();
        let config = Config::parse(&config).set("egress.default.ranges", [V4, V6]);
        let config =
            config.add("admin.users.bird.role", "viewer").add("admin.users.bird.tokens", [token_hash("VIEWER")]);
        folder.write_config("config.toml", &config);
        start_instance(host, name, folder, &store);
    }
    let [first, second] = &mut hosts;
    for range in [V4, V6] {
        first.command(&["fleet", "move", range, "--to", "egress-1"]);
        wait_for_state(second.outgate(), "egress-2", range, "free");
        wait_for_state(second.outgate(), "egress-1", range, "active");
    }
    let _router = start_router(&shared, &bird);
    let file = std::fs::read_to_string("examples/network/bird/bird.conf").unwrap();
    let of_second = file.replace_all("192.0.2.10", "192.0.2.11").replace_all("2001:db8:1::10", "2001:db8:1::11");
    let write_token =
        |token: &str| shared.write("bird-health.curl", format!("header = \"Authorization: Bearer {token}\"\n"));
    let curl_config = write_token("VIEWER");
    // The range that does not move follows the readiness of the first host alone.
    let all = [(&*first, file, "egress6".to_owned()), (&*second, of_second, format!("egress6={V6}"))];
    let birds = all.map(|(host, file, ipv6)| {
        host.host.run(&format!("ip address add 2001:db8:1::{}/64 dev eth0 nodad", host.number));
        start_bird(&host.host, &bird, &shared.write(&format!("{}.conf", host.number), file), &curl_config, &ipv6)
    });
    let _senders = senders();
    wait_for_route(V4, Some("192.0.2.10"));
    wait_for_route(V6, Some("2001:db8:1::10"));
    wait_for_delivery(first);
    assert_eq!(second.deliveries(), 0, "the other host has no range");

    // Two answers in a row would decide. The other host has no source address, so it is not ready, and not asked for its ranges.
    write_token("WRONG");
    birds[0].lines.wait_for_lines(3, &["is ready, and does not answer /v1/egress"]);
    wait_for_route(V4, Some("192.0.2.10"));
    write_token("VIEWER");

    first.command(&["fleet", "move", V4, "--to", "egress-2"]);
    wait_for_route(V4, Some("192.0.2.11"));
    wait_for_delivery(second);
    wait_for_route(V6, Some("2001:db8:1::10"));

    second.command(&["drain"]);
    wait_for_route(V4, None);
    second.command(&["undrain"]);
    wait_for_route(V4, Some("192.0.2.11"));

    second.outgate = None;
    wait_for_route(V4, None);
    first.command(&["fleet", "move", V4, "--to", "egress-1"]);
    wait_for_route(V4, Some("192.0.2.10"));
    wait_for_delivery(first);
    first.command(&["drain"]);
    wait_for_route(V6, None);
    assert_no_foreign_source(&receiver, &[V4, V6]);
}
