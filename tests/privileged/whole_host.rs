//! A whole egress host: ranges of both families, a second host that takes the floating address over, and load.
//! Does the target see allowed sources only, and does a move lose no webhook but those on the wire?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::{IpAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::netns::{Host, inside_namespace, run};
use crate::support::namespace;
use crate::support::pki::Pki;
use crate::support::receiver::{Receiver, ok};
use crate::support::scene::folder;
use crate::support::{Outgate, Response, eventually};

const FLOATING: &str = "192.0.2.20";
const TARGET: (&str, &str) = ("192.0.2.5", "2001:db8:99::5");
const SENDERS_PER_HOST: usize = 2;
const MOVES: usize = 10;

/// Returns the packets that the counter `name` of a host has counted.
fn packets(host: &Host, name: &str) -> u64 {
    let json = host.output(&["nft", "-j", "list", "counter", "inet", "watch", name]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    json["nftables"].as_array().unwrap().iter().find_map(|object| object["counter"]["packets"].as_u64()).unwrap()
}

/// Ends the senders, also if the test fails.
struct EndOfLoad<'a>(&'a AtomicBool);

impl Drop for EndOfLoad<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Three hosts on one network: this namespace with outgate, its peer, and the target with the bridge between them.
struct Network {
    target: Host,
    peer: Host,
}

impl Network {
    fn new() -> Self {
        let (target, peer) = (Host::new(), Host::new());
        target.run("ip link add br0 type bridge");
        for (port, holder) in [("own", None), ("peer", Some(&peer))] {
            let end = match holder {
                None => format!("netns {}", std::process::id()),
                Some(host) => format!("netns {}", host.id()),
            };
            target.run(&format!("ip link add {port} type veth peer name eth0 {end}"));
            target.run(&format!("ip link set {port} master br0 up"));
        }
        target.run(&format!("ip addr add {}/24 dev br0", TARGET.0));
        target.run(&format!("ip -6 addr add {}/64 dev br0 nodad", TARGET.1));
        target.run("ip link set br0 up");
        for command in ["ip addr add 192.0.2.2/24 dev eth0", "ip link set eth0 up"] {
            peer.run(command);
        }
        run("ip addr add 192.0.2.1/24 dev eth0");
        run("ip -6 addr add 2001:db8:99::1/64 dev eth0 nodad");
        run("ip link set eth0 up");
        // The ranges of outgate: AnyIP routes, to which the router of the target's network sends what belongs to them.
        run("ip route add local 198.51.100.16/28 dev lo");
        run("ip -6 route add local 2001:db8:5::/64 dev lo");
        target.run("ip route add 198.51.100.16/28 via 192.0.2.1");
        target.run("ip -6 route add 2001:db8:5::/64 via 2001:db8:99::1");
        let network = Self { target, peer };
        network.return_floating_address();
        network
    }

    /// The peer takes the address over, as the VRRP router that becomes active: it has the address and announces it.
    fn move_floating_address_away(&self) {
        run(&format!("ip addr del {FLOATING}/32 dev eth0"));
        self.peer.run(&format!("ip addr add {FLOATING}/32 dev eth0"));
        self.announce(&self.peer.output(&["ip", "-json", "link", "show", "eth0"]));
    }

    fn return_floating_address(&self) {
        // The peer does not have it at the first call.
        let _ = Command::new("nsenter")
            .arg(format!("--net={}", self.peer.namespace()))
            .args(["ip", "addr", "del", &format!("{FLOATING}/32"), "dev", "eth0"])
            .output();
        run(&format!("ip addr add {FLOATING}/32 dev eth0"));
        let own = Command::new("ip").args(["-json", "link", "show", "eth0"]).output().unwrap();
        self.announce(&String::from_utf8(own.stdout).unwrap());
    }

    /// Does what the gratuitous ARP of this link does at the target.
    fn announce(&self, link: &str) {
        let links: serde_json::Value = serde_json::from_str(link).unwrap();
        let address = links[0]["address"].as_str().unwrap();
        self.target.run(&format!("ip neigh replace {FLOATING} lladdr {address} dev br0"));
    }

    /// Counts the TCP packets to the receivers, and those from a source that is not of the pool.
    fn watch(&self, port: u16) {
        let rules = format!(
            "table inet watch {{\ncounter arrived {{ }}\ncounter foreign {{ }}\nchain arriving {{\n\
             type filter hook prerouting priority raw\n\
             tcp dport {port} counter name arrived\n\
             tcp dport {port} ip saddr != {{ 198.51.100.16/28, {FLOATING} }} counter name foreign\n\
             tcp dport {port} ip6 saddr != 2001:db8:5::/64 counter name foreign\n}}\n}}\n"
        );
        let folder = crate::support::Folder::new();
        self.target.run(&format!("nft -f {}", folder.write("watch.nft", rules).display()));
    }
}

#[test]
fn moved_address_loses_no_webhook_but_those_on_the_wire() {
    if !inside_namespace("whole_host::moved_address_loses_no_webhook_but_those_on_the_wire") {
        return;
    }
    let network = Network::new();
    let pki = Pki::new();
    let names = ["v4.example", "v6.example"];
    let receiver = |address: String| network.target.with(|| Receiver::tls_at(&address, pki.leaf(&names), ok()));
    let v4 = receiver(format!("{}:0", TARGET.0));
    let v6 = receiver(format!("[{}]:{}", TARGET.1, v4.port()));
    network.watch(v4.port());
    let config = namespace::config(&format!(
        r#"
[egress.default]
ranges = ["198.51.100.16/28", "{FLOATING}", "2001:db8:5::/64"]
select = "spread"
[guard]
allow = ["192.0.2.5", "2001:db8:99::5"]
ports = [{port}]
[resolver.hosts]
"v4.example" = ["192.0.2.5"]
"v6.example" = ["2001:db8:99::5"]
[[routes]]
name = "all"
hosts = ["*"]
timeouts = {{ connect = "3s", response = "1s" }}
"#,
        port = v4.port()
    ));
    let outgate = Outgate::run(folder(&pki), &config);
    let floating: IpAddr = FLOATING.parse().unwrap();
    let with_it = || v4.requests().iter().filter(|request| request.from == floating).count();
    for host in names {
        let response = outgate.post(&format!("https://{host}:{}/", v4.port()), "", "x");
        assert_eq!(response.status, 200, "{}", response.text());
    }
    let is_over = AtomicBool::new(false);
    let responses: Vec<Response> = std::thread::scope(|scope| {
        let send = |host: &'static str| {
            let (outgate, is_over, port) = (&outgate, &is_over, v4.port());
            move || {
                let mut responses = Vec::new();
                while !is_over.load(Ordering::Relaxed) {
                    responses.push(outgate.post(&format!("https://{host}:{port}/"), "", "x"));
                }
                responses
            }
        };
        let end = EndOfLoad(&is_over);
        let hosts = names.iter().flat_map(|host| [host; SENDERS_PER_HOST]);
        let senders: Vec<_> = hosts.map(|host| scope.spawn(send(host))).collect();
        for _ in 0..MOVES {
            let before = with_it();
            eventually("webhooks from the floating address", || with_it() > before + 2);
            network.move_floating_address_away();
            let before = (v4.requests().len(), v6.requests().len());
            let goes_on = || v4.requests().len() > before.0 + 20 && v6.requests().len() > before.1 + 20;
            eventually("webhooks of both families without it", goes_on);
            network.return_floating_address();
        }
        drop(end);
        senders.into_iter().flat_map(|sender| sender.join().unwrap()).collect()
    });
    let lost: Vec<_> = responses.iter().filter(|response| response.status != 200).collect();
    eprintln!("{} of {} lost in {MOVES} moves", lost.len(), responses.len());
    // What a sender had on the wire when the address went: one webhook each.
    assert!(lost.len() <= SENDERS_PER_HOST * MOVES, "{} lost", lost.len());
    for response in lost {
        let record = outgate.record_of(response);
        assert_eq!(record["source"].as_str(), Some(FLOATING), "{record}");
    }
    assert_eq!(packets(&network.target, "foreign"), 0);
    assert!(packets(&network.target, "arrived") > responses.len() as u64, "every webhook has several packets");
    // The counter does see a foreign source: this host's own address.
    drop(TcpStream::connect((TARGET.0, v4.port())).unwrap());
    eventually("the packets of this connection", || packets(&network.target, "foreign") > 0);
}
