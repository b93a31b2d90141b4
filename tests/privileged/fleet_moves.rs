//! A fleet of two hosts whose ranges VRRP or BGP moves, each host in a network namespace.
//! Does the store of the fleet follow a move, and does each webhook leave from an address of the pool meanwhile?
//!
//! Needs root, keepalived, BIRD, curl and redis-server: skipped where they are missing, required with `OUTGATE_TEST_ALL=1`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use ipnet::IpNet;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde_json::Value;

use crate::netns::{Host, inside_namespace};
use crate::network_files::program;
use crate::support::control::get;
use crate::support::pki::Pki;
use crate::support::process::Process;
use crate::support::receiver::{Receiver, ok};
use crate::support::store::{self, StoreServer};
use crate::support::{Folder, Outgate, eventually};
use crate::vrrp::{self, Egress, HOST};

/// The ranges of `examples/vrrp/config.toml`.
const RANGES: [&str; 2] = ["192.0.2.20/31", "198.51.100.16/28"];

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

fn wait_for_host(shown_by: &Outgate, instance: &str) {
    eventually(&format!("{instance} alone has all ranges"), || hosts_of_ranges(shown_by) == [[instance], [instance]]);
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
    let pki = Pki::new();
    let receiver = Receiver::tls_at("203.0.113.5:443", pki.leaf(&[HOST]), ok());
    let (key, shared) = (vrrp::key(), Folder::new());
    shared.write("keepalived.conf", vrrp::keepalived_file());
    let names = ["egress-1", "egress-2"];
    let mut hosts = [Egress::new(10), Egress::new(11)];
    for (host, name) in hosts.iter_mut().zip(names) {
        let folder = vrrp::folder(&pki, &key);
        let config = std::fs::read_to_string(folder.path("config.toml")).unwrap();
        let fleet = format!("[fleet]\ninstance = {name:?}\nstore = \"redis://10.0.0.1:{}\"\n", store.port);
        folder.write_config("config.toml", &format!("{config}{fleet}"));
        host.start_outgate(folder);
    }
    let _senders = [10, 11].map(|number| Sender::start(format!("http://billing:TOKEN@10.0.0.{number}:4750")));
    let watch = Watch::start(&hosts[0].host, &store);
    for (host, name) in hosts.iter_mut().zip(names) {
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

    let ranges = RANGES.map(|range| range.parse::<IpNet>().unwrap());
    let received = receiver.requests();
    let foreign = received.iter().find(|request| !ranges.iter().any(|range| range.contains(&request.from)));
    assert!(foreign.is_none(), "{foreign:?}");
}
