//! The formats of `outgate egress list`, read by the programs that Debian provides.
//! Does the firewall, proxy or name server that a format is for accept it?
//!
//! Needs nftables, ipset, iptables, ufw, nginx, HAProxy, Apache httpd and BIND: skipped where one is missing, required with
//! `OUTGATE_TEST_ALL=1`. The filters are tried in a network namespace of their own.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use support::configuration::Replace;
use support::{Folder, required};

/// Both families, an excluded address, announced and retiring ranges, and more ranges than one TXT record has.
fn folder() -> Folder {
    let folder = Folder::new();
    let hosts: Vec<String> = (0..25).map(|index| format!("\"203.0.113.{}\"", 2 * index + 1)).collect();
    let config = format!(
        "[egress.default]\nranges = [\"198.51.100.16/28\", \"2001:db8:5::/64\", \"2001:db8:6::1\"]\nexclude = [\"198.51.100.16\"]\n\
         [egress.\"EU.West_1\"]\nranges = [{}, {{ cidr = \"192.0.2.0/28\", from = \"2200-01-01T00:00:00Z\" }}, \
         {{ cidr = \"192.0.2.32/28\", until = \"2200-01-01T00:00:00Z\" }}]\n\
         [egress.only6]\nranges = [\"2001:db8:7::/64\"]\n",
        hosts.join(", ")
    );
    folder.write("config.toml", config);
    folder
}

/// Writes a format of the list of `pool`, or of all pools, and returns its text.
fn write_list(folder: &Folder, format: &str, pool: Option<&str>) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
    command.args(["egress", "list", "--format", format, "--config"]).arg(folder.path("config.toml"));
    let output = command.args(pool.map(|pool| ["--pool", pool]).into_iter().flatten()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    folder.write("list", &text);
    text
}

/// Runs a script in the folder. `None`: a program is missing, and none is required.
fn sh(folder: &Folder, program: &str, script: &str) -> Option<Output> {
    let run = |script: &str| {
        let script = format!("PATH=$PATH:/usr/sbin:/sbin; cd {}; {script}", folder.path("").display());
        Command::new("sh").args(["-c", &script]).output().unwrap()
    };
    if !run(&format!("command -v {program}")).status.success() {
        assert!(!required(), "{program} is missing");
        return None;
    }
    Some(run(script))
}

/// Runs a script in a network namespace of its own, as its root.
fn sh_in_namespace(folder: &Folder, program: &str, script: &str) -> Option<Output> {
    folder.write("script", format!("set -e\n{script}"));
    let may_unshare =
        Command::new("unshare").args(["-rn", "true"]).output().is_ok_and(|output| output.status.success());
    if !may_unshare {
        assert!(!required(), "unshare -rn fails");
        return None;
    }
    sh(folder, program, "unshare -rn sh ./script")
}

fn assert_accepted(output: &Output, list: &str) -> String {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}\n{list}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The lists that each program reads: all pools, a pool with a name that no format allows, and a pool of one family.
const POOLS: [Option<&str>; 3] = [None, Some("EU.West_1"), Some("only6")];

/// Returns the CIDRs of the list without comments.
fn cidrs(folder: &Folder, pool: Option<&str>) -> BTreeSet<String> {
    write_list(folder, "text", pool).lines().map(str::to_owned).collect()
}

/// Asserts that the sets of a ruleset have these CIDRs. nft shows a single address without its length.
fn assert_has_elements(ruleset: &str, expected: &BTreeSet<String>) {
    let words: BTreeSet<&str> = ruleset.split(|c: char| c.is_whitespace() || ",{}".contains(c)).collect();
    for cidr in expected {
        let shown = cidr.strip_suffix("/32").or(cidr.strip_suffix("/128")).unwrap_or(cidr);
        assert!(words.contains(shown), "{cidr}: {ruleset}");
    }
}

#[test]
fn nftables_accepts_the_sets_in_a_table_and_the_ruleset() {
    let folder = folder();
    for pool in POOLS {
        let expected = cidrs(&folder, pool);
        let list = write_list(&folder, "nftables", pool);
        let set = list.lines().find_map(|line| line.strip_prefix("set ")).unwrap();
        let name = set.trim_end_matches("_v4 {");
        let table = format!(
            "table inet filter {{\ninclude \"./list\"\nchain input {{\ntype filter hook input priority 0;\n\
             ip saddr @{name}_v4 accept\nip6 saddr @{name}_v6 accept\n}}\n}}\n"
        );
        folder.write("table", table);
        let Some(output) = sh_in_namespace(&folder, "nft", "nft -c -f ./table; nft -f ./table; nft list ruleset")
        else {
            return;
        };
        let ruleset = assert_accepted(&output, &list);
        assert_has_elements(&ruleset, &expected);
        let list = write_list(&folder, "nftables-ruleset", pool);
        // A second load replaces the first.
        let output =
            sh_in_namespace(&folder, "nft", "nft -c -f ./list; nft -f ./list; nft -f ./list; nft list ruleset");
        let ruleset = assert_accepted(&output.unwrap(), &list);
        assert_eq!(ruleset.matches("tcp dport 443 drop").count(), 1, "{ruleset}");
        assert_has_elements(&ruleset, &expected);
    }
}

#[test]
fn ipset_restores_exactly_the_list() {
    let folder = folder();
    for pool in POOLS {
        let expected = cidrs(&folder, pool);
        let list = write_list(&folder, "ipset", pool);
        let script = "ipset restore < ./list; ipset restore < ./list; ipset save";
        let Some(output) = sh_in_namespace(&folder, "ipset", script) else { return };
        let saved = assert_accepted(&output, &list);
        let members = saved.lines().filter(|line| line.starts_with("add ")).map(|line| {
            let member = line.split(' ').nth(2).unwrap();
            let length = if member.contains(':') { 128 } else { 32 };
            if member.contains('/') { member.to_owned() } else { format!("{member}/{length}") }
        });
        assert_eq!(members.collect::<BTreeSet<_>>(), expected, "{saved}");
    }
}

#[test]
fn iptables_restores_each_family_from_one_file() {
    let folder = folder();
    for pool in POOLS {
        let expected = cidrs(&folder, pool);
        let list = write_list(&folder, "iptables", pool);
        let script = "iptables-restore -t ./list; ip6tables-restore -t ./list\n\
                      iptables-restore --noflush ./list; ip6tables-restore --noflush ./list\n\
                      iptables-restore --noflush ./list; iptables-save; ip6tables-save";
        let Some(output) = sh_in_namespace(&folder, "iptables-restore", script) else { return };
        let saved = assert_accepted(&output, &list);
        let sources: Vec<_> = saved.lines().filter_map(|line| line.split_once(" -s ")?.1.split(' ').next()).collect();
        assert_eq!(sources.iter().map(|source| (*source).to_owned()).collect::<BTreeSet<_>>(), expected, "{saved}");
        assert_eq!(sources.len(), expected.len(), "a second load replaces the first: {saved}");
    }
}

#[test]
fn ufw_accepts_every_command() {
    let folder = folder();
    for pool in POOLS {
        let expected = cidrs(&folder, pool).len();
        let list = write_list(&folder, "ufw", pool);
        // Each command prints the rules that it would add.
        let commands = list.lines().filter(|line| line.starts_with("ufw ")).take(4).collect::<Vec<_>>().join("\n");
        assert_eq!(list.lines().filter(|line| line.starts_with("ufw ")).count(), expected);
        folder.write("commands", format!("set -e\nufw() {{ command ufw --dry-run \"$@\"; }}\n{commands}\n"));
        if !rustix::process::geteuid().is_root() {
            assert!(!required(), "ufw needs root");
            return;
        }
        let Some(output) = sh(&folder, "ufw", "sh ./commands") else { return };
        let text = assert_accepted(&output, &list);
        assert!(text.contains("allow tcp 443"), "{text}");
    }
}

#[test]
fn nginx_haproxy_and_apache_accept_the_list() {
    let folder = folder();
    let dir = folder.path("").display().to_string();
    let dir = Path::new(&dir).display();
    folder.write(
        "nginx.conf",
        format!(
            "pid {dir}/nginx.pid;\nerror_log {dir}/error.log;\nevents {{}}\nhttp {{\naccess_log off;\nserver {{\n\
             listen unix:{dir}/nginx.sock;\nlocation / {{\ninclude {dir}/list;\ndeny all;\n}}\n}}\n}}\n"
        ),
    );
    folder.write(
        "haproxy.cfg",
        format!(
            "defaults\n    mode http\n    timeout client 1s\n    timeout connect 1s\n    timeout server 1s\n\
             frontend hooks\n    bind unix@{dir}/haproxy.sock\n    acl from_outgate src -f {dir}/list\n\
             \x20   http-request deny unless from_outgate\n"
        ),
    );
    let modules = "/usr/lib/apache2/modules";
    folder.write(
        "apache.conf",
        format!(
            "ServerRoot {dir}\nServerName hooks.example\nDefaultRuntimeDir {dir}\nPidFile {dir}/apache.pid\nErrorLog {dir}/error.log\n\
             LoadModule mpm_event_module {modules}/mod_mpm_event.so\nLoadModule authz_core_module {modules}/mod_authz_core.so\n\
             LoadModule authz_host_module {modules}/mod_authz_host.so\n\
             <Location \"/\">\n<RequireAny>\nInclude {dir}/list\n</RequireAny>\n</Location>\n"
        ),
    );
    for (format, program, script, wrong) in [
        ("nginx", "nginx", "nginx -t -c $PWD/nginx.conf", "allow 2001:zz::/64;"),
        ("haproxy", "haproxy", "haproxy -c -f haproxy.cfg", "2001:zz::/64"),
        ("apache", "apache2", "apache2 -t -f $PWD/apache.conf", "Require ip 2001:zz::/64"),
    ] {
        for pool in POOLS {
            let list = write_list(&folder, format, pool);
            let Some(output) = sh(&folder, program, script) else { break };
            assert_accepted(&output, &list);
            // A program that ignored the list would accept this, too.
            folder.write("list", format!("{list}{wrong}\n"));
            assert!(!sh(&folder, program, script).unwrap().status.success(), "{program} reads no list");
        }
    }
}

#[test]
fn bind_loads_the_records_in_a_zone() {
    let folder = folder();
    for pool in POOLS {
        let expected = cidrs(&folder, pool);
        let list = write_list(&folder, "bind", pool);
        let zone =
            "$TTL 300\n@ IN SOA ns hostmaster 1 3600 600 86400 300\n@ IN NS ns\nns IN A 192.0.2.1\n$INCLUDE list\n";
        folder.write("zone", zone);
        let Some(output) = sh(&folder, "named-checkzone", "named-checkzone -D -o - platform.example zone") else {
            return;
        };
        let loaded = assert_accepted(&output, &list);
        // The strings of a record are one text (RFC 7208 §3.3).
        let records: Vec<(&str, String)> = loaded
            .lines()
            .filter_map(|line| {
                line.split_once("IN TXT").map(|(owner, text)| {
                    (owner.split_whitespace().next().unwrap(), text.chars().filter(|c| *c != '"').collect::<String>())
                })
            })
            .collect();
        let name = if pool.is_none() {
            "_outgate.platform.example."
        } else {
            &*format!("_outgate-{}.platform.example.", slug(&list))
        };
        let mut found = BTreeSet::new();
        let mut domains = vec![name.to_owned()];
        while let Some(domain) = domains.pop() {
            let (_, text) =
                records.iter().find(|(owner, _)| *owner == domain).unwrap_or_else(|| panic!("{domain} in {records:?}"));
            let words: Vec<_> = text.split_whitespace().collect();
            assert_eq!((words.first(), words.last()), (Some(&"v=spf1"), Some(&"-all")), "{text}");
            for word in &words[1..words.len() - 1] {
                match word.split_once(':').unwrap() {
                    ("include", target) => domains.push(target.replace_all("%{d}", &domain)),
                    ("ip4" | "ip6", cidr) => drop(found.insert(cidr.to_owned())),
                    _ => panic!("{word}"),
                }
            }
        }
        assert_eq!(found, expected);
    }
}

/// Returns the name of the pool in the list's identifiers.
fn slug(list: &str) -> &str {
    let owner = list.lines().find_map(|line| line.strip_prefix("_outgate-")).unwrap();
    &owner[..owner.find(' ').unwrap()]
}

#[test]
fn egress_list_names_its_formats_and_pools() {
    let folder = folder();
    let list = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
        command.args(["egress", "list", "--config"]).arg(folder.path("config.toml")).args(arguments).output().unwrap()
    };
    let unknown = list(&["--format", "juniperr"]);
    assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("juniper"));
    let unknown = list(&["--pool", "west"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(
        String::from_utf8_lossy(&unknown.stderr).contains("the pools are EU.West_1, default, only6"),
        "{unknown:?}"
    );
    assert_eq!(list(&[]).stdout, list(&["--format", "text"]).stdout);
    let modified = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_767_323_045);
    std::fs::File::options().append(true).open(folder.path("config.toml")).unwrap().set_modified(modified).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&list(&["--format", "json"]).stdout).unwrap();
    assert_eq!((&json["syncToken"], &json["creationTime"]), (&"1767323045".into(), &"2026-01-02T03:04:05Z".into()));
}
