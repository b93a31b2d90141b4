//! The files of `examples/network`, as the programs that they are for read them.
//! Does each file load, and does it give the host the addresses and routes that it promises?
//!
//! Needs root and the programs: a test is skipped where they are missing, and required with `OUTGATE_TEST_ALL=1`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::netns::{inside_namespace, run};
use crate::support::configuration::Replace;
use crate::support::{Folder, eventually, required};

const FILES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/network");

const TOOLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/network-tools");

fn file(name: &str) -> String {
    format!("{FILES}/{name}")
}

/// Finds a program that `.ci/run` has unpacked below target/network-tools, or an installed one.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let folders = ["usr/sbin", "sbin", "usr/bin", "usr/libexec/netplan", "lib/systemd"];
    let roots = [Path::new(TOOLS), Path::new("/")];
    let mut paths = roots.iter().flat_map(|root| folders.map(|folder| root.join(folder).join(name)));
    let found = paths.find(|path| path.exists());
    assert!(found.is_some() || !required(), "missing: {name}; .ci/run unpacks it");
    if found.is_none() {
        eprintln!("skipped: {name} is missing");
    }
    found
}

/// Returns the libraries that `.ci/run` has unpacked beside the programs, as LD_LIBRARY_PATH.
pub(crate) fn libraries() -> String {
    let folders = ["usr/lib", "lib"].map(|folder| format!("{TOOLS}/{folder}/{}-linux-gnu", std::env::consts::ARCH));
    folders.join(":")
}

fn output(program: &Path, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).env("LD_LIBRARY_PATH", libraries()).output().unwrap()
}

#[track_caller]
fn accepted(program: &Path, arguments: &[&str]) -> String {
    let output = output(program, arguments);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{} {arguments:?}: {text}", program.display());
    text
}

#[test]
fn bird_file_is_accepted_and_a_wrong_one_is_not() {
    let Some(bird) = program("bird") else { return };
    accepted(&bird, &["-p", "-c", &file("bird/bird.conf")]);
    let folder = Folder::new();
    let wrong = std::fs::read_to_string(file("bird/bird.conf")).unwrap().replace_one("router id", "router identity");
    let wrong = folder.write("bird.conf", wrong);
    assert!(!output(&bird, &["-p", "-c", wrong.to_str().unwrap()]).status.success());
}

#[test]
fn netplan_file_makes_the_local_routes_and_the_rule() {
    let Some(generate) = program("generate") else { return };
    let folder = Folder::new();
    let place = folder.path("etc/netplan");
    std::fs::create_dir_all(&place).unwrap();
    std::fs::copy(file("netplan/60-egress.yaml"), place.join("60-egress.yaml")).unwrap();
    accepted(&generate, &["--root-dir", folder.path("").to_str().unwrap()]);
    let made = |name: &str| std::fs::read_to_string(folder.path(&format!("run/systemd/network/{name}"))).unwrap();
    let (first, second) = (made("10-netplan-eth0.network"), made("10-netplan-eth1.network"));
    assert!(first.contains("Destination=198.51.100.16/28\nScope=host\nType=local\nTable=255\n"), "{first}");
    assert!(first.contains("Destination=2001:db8:5::/64\nScope=host\nType=local\nTable=255\n"), "{first}");
    assert!(second.contains("[RoutingPolicyRule]\nFrom=203.0.113.64/28\nTable=100\n"), "{second}");
}

#[test]
fn ifupdown_file_is_accepted() {
    let Some(ifquery) = program("ifquery") else { return };
    let listed = accepted(&ifquery, &["-i", &file("ifupdown/egress"), "--list"]);
    assert!(listed.contains("eth0\neth1\n"), "{listed}");
    let second = accepted(&ifquery, &["-i", &file("ifupdown/egress"), "eth1"]);
    assert!(second.contains("ip rule add from 203.0.113.64/28 lookup 100"), "{second}");
}

#[test]
fn unit_of_the_ranges_is_accepted() {
    let Some(analyze) = program("systemd-analyze") else { return };
    let printed = accepted(&analyze, &["verify", &file("outgate-ranges.service")]);
    assert!(!printed.contains("outgate-ranges"), "{printed}");
}

/// The test puts programs that exist in place of the script's place and of BIRD's, which the test does not install.
#[test]
fn unit_of_the_announcement_is_accepted() {
    let (Some(analyze), Some(birdc)) = (program("systemd-analyze"), program("birdc")) else { return };
    let unit = std::fs::read_to_string(file("bird/outgate-bird.service")).unwrap();
    let unit = unit
        .replace_one(
            "\nExecStart=/usr/local/libexec/outgate-bird-health",
            &format!("\nExecStart={}", file("bird/health.sh")),
        )
        .replace_one("/usr/sbin/birdc", birdc.to_str().unwrap());
    let folder = Folder::new();
    let printed = accepted(&analyze, &["verify", folder.write("outgate-bird.service", unit).to_str().unwrap()]);
    assert!(!printed.contains("outgate-bird"), "{printed}");
}

#[test]
fn shell_scripts_are_accepted_by_shellcheck() {
    let Some(shellcheck) = program("shellcheck") else { return };
    let scripts = ["cloud/aws.sh", "cloud/gcp.sh", "cloud/azure.sh", "bird/health.sh", "policy-routing.sh"].map(file);
    accepted(&shellcheck, &scripts.each_ref().map(String::as_str));
}

#[test]
fn networkd_files_give_the_host_its_ranges_and_the_rule() {
    let Some(networkd) = program("systemd-networkd") else { return };
    if !inside_namespace("network_files::networkd_files_give_the_host_its_ranges_and_the_rule") {
        return;
    }
    for (interface, peer) in [("eth0", "peer0"), ("eth1", "peer1")] {
        run(&format!("ip link add {interface} type veth peer name {peer}"));
        run(&format!("ip link set {peer} up"));
    }
    // networkd waits for udev unless /sys is read-only, as in a container.
    let script = format!(
        "mount -t tmpfs none /run && mount -t sysfs -o ro none /sys && mkdir -p /run/systemd/network \
         /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp && chown -R systemd-network: \
         /run/systemd/netif && cp {FILES}/networkd/*.network /run/systemd/network/ && exec {}",
        networkd.display()
    );
    let mut daemon = Command::new("unshare").args(["--mount", "sh", "-c", &script]).spawn().unwrap();
    let ip = |words: &str| {
        let output = Command::new("ip").args(words.split(' ')).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let has = |words: &'static str, text: &'static str| eventually(text, || ip(words).contains(text));
    has("-4 route show table local", "local 198.51.100.16/28 dev eth0");
    has("-4 route show table local", "local 203.0.113.64/28 dev eth1");
    has("-6 route show table local", "local 2001:db8:5::/64 dev eth0");
    has("rule", "from 203.0.113.64/28 lookup 100");
    has("route show table 100", "default via 203.0.113.1 dev eth1");
    has("-br addr show eth0", "192.0.2.21/32");
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}

#[test]
fn policy_routing_script_sends_each_range_by_its_uplink() {
    if !inside_namespace("network_files::policy_routing_script_sends_each_range_by_its_uplink") {
        return;
    }
    for (interface, address) in [("eth0", "192.0.2.10/24"), ("eth1", "203.0.113.10/24")] {
        run(&format!("ip link add {interface} type veth peer name peer-{interface}"));
        run(&format!("ip addr add {address} dev {interface}"));
        run(&format!("ip link set {interface} up"));
    }
    run(&format!("sh {}", file("policy-routing.sh")));
    let route = |source: &str| {
        let words = ["route", "get", "198.41.0.4", "from", source];
        String::from_utf8(Command::new("ip").args(words).output().unwrap().stdout).unwrap()
    };
    assert!(route("198.51.100.17").contains("via 192.0.2.1 dev eth0"), "{}", route("198.51.100.17"));
    assert!(route("203.0.113.65").contains("via 203.0.113.1 dev eth1"), "{}", route("203.0.113.65"));
}

/// The test puts the user `nobody`, which every host has, in place of outgate's user. `daemon` is any other user.
#[test]
fn nftables_file_lets_only_the_user_of_outgate_send_from_the_pool() {
    if !inside_namespace("network_files::nftables_file_lets_only_the_user_of_outgate_send_from_the_pool") {
        return;
    }
    let rules = std::fs::read_to_string(file("outgate.nft")).unwrap().replace_all("\"outgate\"", "\"nobody\"");
    let folder = Folder::new();
    run(&format!("nft -f {}", folder.write("outgate.nft", rules).display()));
    run("ip addr add 203.0.113.5/32 dev lo");
    run("ip route add local 198.51.100.16/28 dev lo");
    let listener = std::net::TcpListener::bind("203.0.113.5:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let connects = |user: &str, source: &str| {
        let program = "import socket, sys; \
                       socket.create_connection(('203.0.113.5', int(sys.argv[1])), 2, (sys.argv[2], 0))";
        // Another Python may be in the folder of a user.
        let arguments = ["--reuid", user, "--clear-groups", "/usr/bin/python3", "-c", program, &port, source];
        Command::new("setpriv").args(arguments).output().unwrap().status.success()
    };
    assert!(connects("nobody", "198.51.100.17"), "the user of outgate");
    assert!(!connects("daemon", "198.51.100.17"), "another user");
    assert!(!connects("root", "198.51.100.17"), "even root");
    assert!(connects("daemon", "203.0.113.5"), "from an address that is not of the pool");
}
