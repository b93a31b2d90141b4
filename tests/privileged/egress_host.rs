//! `outgate egress verify` and `egress probe` in a network namespace, on hosts that are wrong in one respect.
//! Do they find the fault, and does the printed command correct it?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::process::Command;
use std::sync::Arc;

use serde_json::Value;

use crate::netns::{inside_namespace, run};
use crate::support::configuration::Replace;
use crate::support::pki::Pki;
use crate::support::receiver::{Reaction, Receiver};
use crate::support::{Folder, eventually};

fn inside(name: &str) -> bool {
    inside_namespace(&format!("egress_host::{name}"))
}

/// Returns the findings of the command, the exit code, and what it prints.
fn verify(folder: &Folder, more: &[&str]) -> (Vec<Value>, Option<i32>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
    command.args(["egress", "verify", "--json", "--config"]).arg(folder.path("config.toml")).args(more);
    let output = command.output().unwrap();
    let json: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    (json["findings"].as_array().unwrap().clone(), output.status.code())
}

/// Returns the findings of a check that are not fine.
fn faults(found: &[Value], check: &str) -> Vec<Value> {
    assert!(found.iter().any(|finding| finding["check"] == check), "{check}: {found:?}");
    found.iter().filter(|finding| finding["check"] == check && finding["level"] != "ok").cloned().collect()
}

/// Runs the commands that a finding prints.
fn correct(finding: &Value, gateway: &str) {
    for command in finding["fix"].as_str().unwrap().lines() {
        run(&command.split("GATEWAY").collect::<Vec<_>>().join(gateway));
    }
}

/// Creates two uplinks, each with an address of the host; the default route is by the first.
fn uplinks() {
    for (interface, address) in [("eth0", "192.0.2.10/24"), ("eth1", "203.0.113.10/24")] {
        run(&format!("ip link add {interface} type veth peer name peer-{interface}"));
        run(&format!("ip addr add {address} dev {interface}"));
        run(&format!("ip link set {interface} up"));
        run(&format!("ip link set peer-{interface} up"));
    }
    run("ip route add default via 192.0.2.1 dev eth0");
}

fn folder(ranges: &str) -> Folder {
    let folder = Folder::new();
    folder.write("config.toml", format!("[egress.default]\nranges = [{ranges}]\n"));
    folder
}

#[test]
fn verify_finds_missing_addresses_and_its_command_adds_them() {
    if !inside("verify_finds_missing_addresses_and_its_command_adds_them") {
        return;
    }
    uplinks();
    run("ip route add local 198.51.100.16/29 dev lo");
    let folder = folder("\"198.51.100.16/28\"");
    let (found, code) = verify(&folder, &[]);
    let missing = faults(&found, "addresses");
    assert_eq!((missing.len(), code), (1, Some(1)), "{found:?}");
    assert_eq!(missing[0]["fix"], "ip route add local 198.51.100.24/29 dev lo");
    correct(&missing[0], "");
    let (found, code) = verify(&folder, &[]);
    assert_eq!((faults(&found, "addresses"), code), (vec![], Some(0)), "{found:?}");
}

#[test]
fn verify_finds_the_wrong_interface_and_its_commands_add_the_rule() {
    if !inside("verify_finds_the_wrong_interface_and_its_commands_add_the_rule") {
        return;
    }
    uplinks();
    run("ip addr add 203.0.113.20/32 dev eth1");
    let folder = folder("\"203.0.113.20\"");
    let (found, code) = verify(&folder, &[]);
    let wrong = faults(&found, "routes");
    assert_eq!((wrong.len(), code), (1, Some(1)), "{found:?}");
    let message = wrong[0]["message"].as_str().unwrap();
    assert!(message.contains("from 203.0.113.20 leave by eth0, but the address is on eth1"), "{message}");
    correct(&wrong[0], "203.0.113.1");
    let (found, code) = verify(&folder, &[]);
    assert_eq!((faults(&found, "routes"), code), (vec![], Some(0)), "{found:?}");
}

/// The other end of the link has the address first.
#[test]
fn verify_finds_an_address_that_another_host_has() {
    if !inside("verify_finds_an_address_that_another_host_has") {
        return;
    }
    uplinks();
    run("ip -6 route add default dev eth0");
    run("ip -6 addr add 2001:db8:9::1/128 dev peer-eth0 nodad");
    run("ip -6 addr add 2001:db8:9::1/128 dev eth0");
    let folder = folder("\"2001:db8:9::1\"");
    let has_failed = || {
        let output = Command::new("ip").args(["-6", "addr", "show", "dev", "eth0"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).contains("dadfailed")
    };
    eventually("the duplicate is detected", has_failed);
    let (found, code) = verify(&folder, &[]);
    let duplicate = faults(&found, "addresses");
    assert_eq!((duplicate.len(), code), (1, Some(1)), "{found:?}");
    assert_eq!(
        duplicate[0]["message"],
        "another host on eth0 has 2001:db8:9::1, too: the kernel sends nothing from it"
    );
}

#[test]
fn verify_finds_a_range_without_a_route() {
    if !inside("verify_finds_a_range_without_a_route") {
        return;
    }
    uplinks();
    run("ip -6 route add local 2001:db8:5::/64 dev lo");
    let (found, code) = verify(&folder("\"2001:db8:5::/64\""), &[]);
    let wrong = faults(&found, "routes");
    assert_eq!((wrong.len(), code), (1, Some(1)), "{found:?}");
    assert!(wrong[0]["message"].as_str().unwrap().contains("no route to the Internet from 2001:db8:5::"), "{wrong:?}");
    assert!(wrong[0]["fix"].as_str().unwrap().contains("ip -6 rule add from 2001:db8:5::/64"), "{wrong:?}");
}

#[test]
fn verify_finds_a_strict_reverse_path_filter_with_two_uplinks() {
    if !inside("verify_finds_a_strict_reverse_path_filter_with_two_uplinks") {
        return;
    }
    uplinks();
    run("ip route add local 198.51.100.16/28 dev lo");
    run("ip route add local 203.0.113.64/28 dev lo");
    run("ip route add default via 203.0.113.1 dev eth1 table 100");
    run("ip rule add from 203.0.113.64/28 lookup 100");
    for (interface, mode) in [("all", "0"), ("eth0", "0"), ("eth1", "1")] {
        std::fs::write(format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter"), mode).unwrap();
    }
    let folder = folder("\"198.51.100.16/28\", \"203.0.113.64/28\"");
    let (found, code) = verify(&folder, &[]);
    let strict = faults(&found, "rp_filter");
    assert_eq!((strict.len(), code), (1, Some(0)), "a warning: {found:?}");
    assert_eq!(strict[0]["fix"], "sysctl -w net/ipv4/conf/eth1/rp_filter=2");
    correct(&strict[0], "");
    assert_eq!(faults(&verify(&folder, &[]).0, "rp_filter"), [] as [Value; 0]);
}

/// Responds with the address of the client, as echo services do.
fn echo() -> Reaction {
    Arc::new(|request| {
        let body = format!("{{\"ip\": \"{}\"}}\n", request.from);
        (format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes(), true)
    })
}

#[test]
fn verify_echo_finds_an_address_that_a_nat_replaces() {
    if !inside("verify_echo_finds_an_address_that_a_nat_replaces") {
        return;
    }
    run("ip addr add 203.0.113.5/32 dev lo");
    run("ip addr add 203.0.113.7/32 dev lo");
    run("ip route add local 198.51.100.16/30 dev lo");
    let pki = Pki::new();
    let folder = Folder::new();
    folder.write("ca.pem", &pki.pem);
    let service = Receiver::tls_at("203.0.113.5:0", pki.leaf(&["echo.example"]), echo());
    folder.write_config(
        "config.toml",
        "[egress.default]\nranges = [\"198.51.100.16/30\"]\n[guard]\nallow = [\"203.0.113.5\"]\n[resolver.hosts]\n\
         \"echo.example\" = [\"203.0.113.5\"]\n[trust.public]\nroots = [\"{dir}/ca.pem\"]\n",
    );
    let url = format!("https://echo.example:{}/ip", service.port());
    let (found, _) = verify(&folder, &["--echo", &url]);
    assert_eq!(faults(&found, "echo"), [] as [Value; 0]);
    assert_eq!(service.requests().len(), 4, "one for each address");
    assert!(service.requests().iter().all(|request| request.line == "GET /ip HTTP/1.1"));
    let rules = "table ip nat {\nchain post {\ntype nat hook postrouting priority srcnat\nip saddr 198.51.100.17 snat to \
                 203.0.113.7\n}\n}\n";
    let rules = folder.write("nat.nft", rules);
    run(&format!("nft -f {}", rules.display()));
    let (found, code) = verify(&folder, &["--echo", &url]);
    let replaced = faults(&found, "echo");
    assert_eq!((replaced.len(), code), (1, Some(1)), "{found:?}");
    let message = replaced[0]["message"].as_str().unwrap();
    assert!(message.contains("1 address under another address: 198.51.100.17 as 203.0.113.7"), "{message}");
    let text = std::fs::read_to_string(folder.path("config.toml")).unwrap();
    let range = "{ cidr = \"198.51.100.17\", seen_as = \"203.0.113.7\" }, \"198.51.100.16\", \"198.51.100.18/31\"";
    folder.write("config.toml", text.replace_one("\"198.51.100.16/30\"", range));
    assert_eq!(faults(&verify(&folder, &["--echo", &url]).0, "echo"), [] as [Value; 0], "the NAT is configured");
}

#[test]
fn bulk_probe_finds_the_firewall_that_lacks_a_new_range_of_both_families() {
    if !inside("bulk_probe_finds_the_firewall_that_lacks_a_new_range_of_both_families") {
        return;
    }
    run("ip addr add 203.0.113.5/32 dev lo");
    run("ip addr add 2001:db8:99::5/128 dev lo");
    for range in ["198.51.100.16/30", "198.51.100.32/30", "2001:db8:5::/126", "2001:db8:6::/126"] {
        run(&format!("ip route add local {range} dev lo"));
    }
    let pki = Pki::new();
    let folder = Folder::new();
    folder.write("ca.pem", &pki.pem);
    let target = Receiver::tls_at("[::]:0", pki.leaf(&["hook.example"]), echo());
    let config = "[egress.default]\nranges = [\"198.51.100.16/30\", \"2001:db8:5::/126\", { cidr = \"198.51.100.32/30\", \
         from = 2200-01-01T00:00:00Z }, { cidr = \"2001:db8:6::/126\", from = 2200-01-01T00:00:00Z }]\n[guard]\nallow = \
         [\"203.0.113.5\", \"2001:db8:99::5\"]\n[resolver.hosts]\n\"hook.example\" = [\"203.0.113.5\", \"2001:db8:99::5\"]\n\
         [trust.public]\nroots = [\"{dir}/ca.pem\"]\n[[routes]]\nname = \"hooks\"\nhosts = [\"hook.example\"]\nports = [PORT]\n";
    folder.write_config("config.toml", &config.replace_one("PORT", &target.port().to_string()));
    let targets = folder.write("targets", format!("hook.example:{} Acme\n", target.port()));
    let probe = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
        command.args(["egress", "probe", "--timeout", "2s", "--json", "--targets"]).arg(&targets);
        let output = command.arg("--config").arg(folder.path("config.toml")).output().unwrap();
        let json: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        (json["targets"][0].clone(), output.status.code())
    };
    let rules = "table inet firewall {\nchain in {\ntype filter hook input priority 0\nip saddr 198.51.100.32/30 tcp flags \
                 syn reject with tcp reset\nip6 saddr 2001:db8:6::/126 tcp flags syn drop\n}\n}\n";
    let rules = folder.write("firewall.nft", rules);
    run(&format!("nft -f {}", rules.display()));
    let (found, code) = probe();
    assert_eq!((&found["verdict"], code), (&"range_not_allowed".into(), Some(69)), "{found:#}");
    let new = ["198.51.100.32/30", "2001:db8:6::/126"];
    assert_eq!(found["lacking"], serde_json::json!(new), "{found:#}");
    let result = |target: &str, new: bool| {
        let results = found["results"].as_array().unwrap();
        let of = results.iter().find(|result| result["target"] == target && result["new"] == new).unwrap();
        (of["result"].as_str().unwrap(), of["count"].as_u64().unwrap(), of["sources"][0].as_str().unwrap())
    };
    assert_eq!(result("203.0.113.5", false), ("ok", 4, "198.51.100.16/30"));
    assert_eq!(result("203.0.113.5", true), ("connect_refused", 4, new[0]));
    assert_eq!(result("2001:db8:99::5", false), ("ok", 4, "2001:db8:5::/126"));
    assert_eq!(result("2001:db8:99::5", true), ("connect_timeout", 4, new[1]));
    run("nft delete table inet firewall");
    let (found, code) = probe();
    assert_eq!((&found["verdict"], code), (&"allowed".into(), Some(0)), "{found:#}");
    // A rule of this host is no fault of the customer. The table `local` has the target, so a rule must precede it.
    run("ip rule add pref 100 lookup local");
    run("ip rule del pref 0");
    for action in ["prohibit", "unreachable"] {
        run(&format!("ip rule add pref 10 from {} {action}", new[0]));
        let (found, code) = probe();
        assert_eq!((&found["verdict"], code), (&"unclear".into(), Some(69)), "{action}: {found:#}");
        run("ip rule del pref 10");
    }
}
