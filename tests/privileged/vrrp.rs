//! `examples/vrrp`: two hosts with keepalived and outgate, each in a network namespace, and a network between them.
//! Does the other host send from the same addresses after a drain, and after a crash?
//!
//! Needs root, keepalived and curl: skipped where they are missing, required with `OUTGATE_TEST_ALL=1`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::netns::{Host, inside_namespace, run};
use crate::network_files::{libraries, program};
use crate::support::configuration::{Config, Replace, token_hash};
use crate::support::pki::Pki;
use crate::support::process::{signal, wait};
use crate::support::receiver::{Receiver, ok};
use crate::support::{Folder, Lines, Outgate, eventually};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/vrrp");
pub(crate) const HOST: &str = "hooks.acme.example";
/// The shared address of the senders.
const SENDERS: &str = "http://billing:TOKEN@10.0.0.20:4750";

fn file(name: &str) -> String {
    std::fs::read_to_string(format!("{FOLDER}/{name}")).unwrap()
}

/// A host of the pair.
pub(crate) struct Egress {
    pub(crate) host: Host,
    /// The last number of its addresses.
    pub(crate) number: u8,
    keepalived: Option<Child>,
    pub(crate) outgate: Option<Outgate>,
}

impl Drop for Egress {
    fn drop(&mut self) {
        self.stop_keepalived();
    }
}

impl Egress {
    /// Creates a host with `eth0` at 192.0.2.NUMBER and `eth1` at 10.0.0.NUMBER.
    pub(crate) fn new(number: u8) -> Self {
        let host = Host::new();
        for (interface, network, bridge) in [("eth0", "192.0.2", "outside"), ("eth1", "10.0.0", "inside")] {
            let peer = format!("{bridge}{number}");
            run(&format!("ip link add {peer} type veth peer name {interface} netns {}", host.id()));
            run(&format!("ip link set {peer} master {bridge} up"));
            host.run(&format!("ip addr add {network}.{number}/24 dev {interface}"));
            host.run(&format!("ip link set {interface} up"));
        }
        host.run("ip route add default via 192.0.2.1");
        Self { host, number, keepalived: None, outgate: None }
    }

    pub(crate) fn start_outgate(&mut self, folder: Folder) {
        let mut command = self.host.command(env!("CARGO_BIN_EXE_outgate"));
        command.args(["run", "--config"]).arg(folder.path("config.toml"));
        self.outgate = Some(Outgate::start(command, folder));
    }

    pub(crate) fn start_keepalived(&mut self, keepalived: &Path, name: &str, folder: &Folder) {
        let mut command = with_script(self.host.command("unshare"), keepalived);
        command.args(["--dont-fork", "--vrrp", "--log-console", "--config-id", name, "--use-file"]);
        command.arg(folder.path("keepalived.conf"));
        for process in ["pid", "vrrp_pid"] {
            command.arg(format!("--{process}")).arg(folder.path(&format!("{name}.{process}")));
        }
        let log = std::fs::File::create(folder.path(&format!("{name}.log"))).unwrap();
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
        self.keepalived = Some(child.unwrap());
    }

    pub(crate) fn stop_keepalived(&mut self) {
        // keepalived ends its own children on TERM only.
        if let Some(mut keepalived) = self.keepalived.take() {
            signal(&keepalived, "TERM");
            wait(&mut keepalived, &Lines::default());
        }
    }

    pub(crate) fn outgate(&self) -> &Outgate {
        self.outgate.as_ref().unwrap()
    }

    /// Returns the number of webhooks that this host has delivered, by its records.
    pub(crate) fn deliveries(&self) -> usize {
        self.outgate().records(0).iter().filter(|record| record["status"] == 200).count()
    }

    /// Runs a command of an operator on this host.
    pub(crate) fn command(&self, words: &[&str]) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
        command.args(words).arg("--admin").arg(format!("unix:{}", self.outgate().folder.path("admin.sock").display()));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
    }
}

/// Runs keepalived in a mount namespace with the script in a folder that only root can write: keepalived runs no other
/// script as root. `unshare` is a command that starts this program.
fn with_script(mut unshare: Command, keepalived: &Path) -> Command {
    let script = "mount -t tmpfs -o mode=755 none /mnt && install -m 755 \"$0\" /mnt/ && exec \"$@\"";
    unshare.args(["--mount", "sh", "-c", script]).arg(format!("{FOLDER}/may-hold-addresses.sh")).arg(keepalived);
    unshare.env("LD_LIBRARY_PATH", libraries());
    unshare
}

/// Returns keepalived's file with that folder in place of `/etc/keepalived`.
pub(crate) fn keepalived_file() -> String {
    file("keepalived.conf").replace_one("/etc/keepalived/", "/mnt/")
}

/// Creates the network of the hosts, with a router at 192.0.2.1 and a receiver at 203.0.113.5.
pub(crate) fn network() {
    for (bridge, address) in [("outside", "192.0.2.1/24"), ("inside", "10.0.0.1/24")] {
        run(&format!("ip link add {bridge} type bridge"));
        run(&format!("ip addr add {address} dev {bridge}"));
        run(&format!("ip link set {bridge} up"));
    }
    run("ip addr add 203.0.113.5/32 dev lo");
    run("ip route add 198.51.100.16/28 via 192.0.2.20");
}

/// Returns a new key, which both hosts have.
pub(crate) fn key() -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
    String::from_utf8(command.args(["keys", "new", "--scheme", "rfc9421"]).output().unwrap().stdout).unwrap()
}

/// Returns a folder with the configuration of a host, and its key.
pub(crate) fn folder(pki: &Pki, key: &str) -> Folder {
    let folder = Folder::new();
    folder.write("ca.pem", &pki.pem);
    let path = folder.write("key.pem", key);
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let file_of_key = toml::toml! {
        id = "2026-11"
        secret = "file:{dir}/key.pem"
    };
    let text = Config::parse(&file("config.toml"))
        .set("signers.platform.keys", [file_of_key])
        .set("admin.listen", ["127.0.0.1:4751", "unix:{dir}/admin.sock"]);
    folder.write_config("config.toml", &text);
    let mut check = Command::new(env!("CARGO_BIN_EXE_outgate"));
    let output = check.args(["check", "--json", "--config"]).arg(folder.path("config.toml")).output().unwrap();
    let warnings: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.success() && !warnings.is_empty(), "{output:?}");
    assert!(warnings.iter().all(|warning| warning["code"] == "not_public"), "addresses of documentation: {warnings:?}");
    let text = text
        .set("clients.billing.tokens", [token_hash("TOKEN")])
        .add("guard.allow", ["203.0.113.5"])
        .and(&format!("[resolver.hosts]\n{HOST:?} = [\"203.0.113.5\"]\n"))
        .and("[trust.public]\nroots = [\"{dir}/ca.pem\"]\n");
    folder.write_config("config.toml", &text);
    folder
}

#[test]
fn other_host_sends_from_the_same_addresses_after_a_drain_and_after_a_crash() {
    let Some(keepalived) = program("keepalived") else { return };
    if !inside_namespace("vrrp::other_host_sends_from_the_same_addresses_after_a_drain_and_after_a_crash") {
        return;
    }
    network();
    let pki = Pki::new();
    let receiver = Receiver::tls_at("203.0.113.5:443", pki.leaf(&[HOST]), ok());
    let key = key();
    let shared = Folder::new();
    shared.write("keepalived.conf", keepalived_file());
    let mut hosts = [Egress::new(10), Egress::new(11)];
    for (host, name) in hosts.iter_mut().zip(["egress-1", "egress-2"]) {
        host.start_outgate(folder(&pki, &key));
        host.start_keepalived(&keepalived, name, &shared);
    }
    let [first, second] = &mut hosts;

    // A sender repeats a webhook that got no response: in a move, no host has the address for a moment.
    let send_until = |host: &Egress, why: &str| {
        let before = host.deliveries();
        eventually(why, || {
            let mut curl = Command::new("curl");
            curl.args(["--silent", "--output", "/dev/null", "--max-time", "1", "--proxy", SENDERS, "--data", "{}"]);
            curl.args(["--header", "Outgate-TLS: 1", &format!("http://{HOST}/in")]).status().unwrap();
            host.deliveries() > before
        });
    };
    send_until(first, "egress-1 has the higher priority and sends");
    assert_eq!(second.deliveries(), 0, "the host that waits sends nothing");

    first.command(&["drain"]);
    send_until(second, "egress-2 sends after the drain of egress-1");
    first.command(&["undrain"]);
    let before = first.deliveries();

    second.outgate = None;
    send_until(first, "egress-1 sends after the end of egress-2");
    assert!(first.deliveries() > before);

    let ranges: [ipnet::IpNet; 2] = ["192.0.2.20/31".parse().unwrap(), "198.51.100.16/28".parse().unwrap()];
    let received = receiver.requests();
    for request in &received {
        let from: IpAddr = request.from;
        assert!(ranges.iter().any(|range| range.contains(&from)), "{request:?}");
        assert!(request.field("signature-input").contains("alg=\"ed25519\""), "{request:?}");
    }
    assert!(received.len() >= 3, "{received:?}");
}

/// The example runs on two hosts. Each half of the file must be valid by itself.
#[test]
fn keepalived_file_is_accepted_on_both_hosts_and_a_wrong_one_is_not() {
    let Some(keepalived) = program("keepalived") else { return };
    if !inside_namespace("vrrp::keepalived_file_is_accepted_on_both_hosts_and_a_wrong_one_is_not") {
        return;
    }
    for interface in ["eth0", "eth1"] {
        run(&format!("ip link add {interface} type veth peer name peer-{interface}"));
    }
    let folder = Folder::new();
    let right = folder.write("keepalived.conf", keepalived_file());
    let wrong = folder.write("wrong.conf", keepalived_file().replace_one("advert_int 1", "advert_interval 1"));
    for name in ["egress-1", "egress-2"] {
        let test = |file: &PathBuf| {
            let mut command = with_script(Command::new("unshare"), &keepalived);
            command.args(["--config-test", "--config-id", name, "--use-file"]).arg(file).output().unwrap()
        };
        assert!(test(&right).status.success(), "{name}: {:?}", test(&right));
        assert!(!test(&wrong).status.success(), "{name}");
    }
}
