//! Each check against the files of a host that is wrong in one respect.
//! Does the check find it, and does the correction name the right command?

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::finding::Level;
use super::uplink::Exit;
use super::*;
use crate::names::PoolName;
use crate::{config, policy};

const CONFIG: &str = r#"
[server]
listen = ["127.0.0.1:443", "127.0.0.1:40000"]
allow_anonymous = true
max_connections = 20000
[publish]
listen = ["127.0.0.1:40001"]
[egress.default]
ranges = ["127.0.7.0/30"]
[resolver]
servers = ["127.0.0.1:9"]
[[routes]]
name = "all"
hosts = ["*"]
egress = "default"
"#;

/// A host in a folder, which is removed on drop.
struct Fixture {
    root: PathBuf,
    configuration: Result<ValidConfig, InvalidConfig>,
}

impl Fixture {
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let root = std::env::temp_dir().join(format!("outgate-doctor-{name}-{}", std::process::id()));
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        fs::create_dir_all(&root).unwrap();
        let config = config::parse(CONFIG, &root.join("config.toml")).unwrap().config;
        let (plan, warnings) = policy::compile(&config, Timestamp::now()).unwrap();
        let valid = ValidConfig { path: None, config, plan, warnings, acknowledged: 0 };
        Self { root, configuration: Ok(valid) }
    }

    fn subject(&self) -> Examination<'_> {
        Examination::read(Host::new(Some(&self.root)), &self.configuration)
    }

    /// Returns the findings of one check that are not fine.
    fn faults(&self, check: &str) -> Vec<Finding> {
        faults(&self.subject(), check)
    }

    fn config(&mut self) -> &mut Config {
        &mut self.configuration.as_mut().ok().unwrap().config
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

fn faults(subject: &Examination<'_>, check: &str) -> Vec<Finding> {
    let checks = [EGRESS_CHECKS, HOST_CHECKS].concat();
    let chosen: Vec<Check> = checks.into_iter().filter(|Check(name, _)| *name == check).collect();
    assert_eq!(chosen.len(), 1, "{check}");
    subject.run(&chosen).into_iter().filter(|finding| finding.level > Level::Ok).collect()
}

/// Asserts that there is one fault, with these words in the message and in the correction.
#[track_caller]
fn assert_fault(found: &[Finding], level: Level, message: &str, fix: &str) {
    let [one] = found else { panic!("{found:?}") };
    assert_eq!(one.level, level, "{one:?}");
    assert!(one.message.contains(message), "{one:?}");
    assert!(one.fix.as_ref().unwrap().contains(fix), "{one:?}");
}

fn uplink(source: &str, interface: &str, home: Option<&str>) -> Uplink {
    Uplink {
        pool: PoolName::new("default"),
        range: source.parse().unwrap(),
        source: source.split('/').next().unwrap().parse().unwrap(),
        exit: Ok(Exit { interface: interface.to_owned(), mtu: 1500 }),
        address_interface: home.map(str::to_owned),
    }
}

#[test]
fn connection_tracker_that_is_nearly_full_is_a_problem() {
    let tracker = |count, max| {
        let folder = "proc/sys/net/netfilter";
        let files = [(format!("{folder}/nf_conntrack_count"), count), (format!("{folder}/nf_conntrack_max"), max)];
        Fixture::new("conntrack", &files.each_ref().map(|(path, text)| (path.as_str(), *text))).faults("conntrack")
    };
    let sysctl = "sysctl -w net.netfilter.nf_conntrack_max=";
    assert_fault(
        &tracker("90000\n", "100000\n"),
        Level::Problem,
        "90000 of at most 100000",
        &format!("{sysctl}200000"),
    );
    assert_fault(&tracker("7\n", "8192\n"), Level::Warning, "holds 8192", &format!("{sysctl}40000"));
    assert!(tracker("7\n", "262144\n").is_empty());
    assert!(Fixture::new("conntrack", &[]).faults("conntrack").is_empty(), "a host without the module");
}

#[test]
fn few_ports_and_listeners_in_their_range_are_warnings() {
    let range = "proc/sys/net/ipv4/ip_local_port_range";
    let reserved = "proc/sys/net/ipv4/ip_local_reserved_ports";
    let found = Fixture::new("ports", &[(range, "32768\t60999\n")]).faults("ports");
    assert_fault(&found, Level::Warning, "port 40000, 40001", "ip_local_reserved_ports=40000");
    let found = Fixture::new("ports", &[(range, "32768\t60999\n"), (reserved, "8000,39990-40010\n")]).faults("ports");
    assert_eq!(found, []);
    let found = Fixture::new("ports", &[(range, "50000\t50999\n")]).faults("ports");
    assert_fault(&found, Level::Warning, "1000 ports", "ip_local_port_range=");
}

#[test]
fn strict_reverse_path_filter_is_a_warning_with_two_uplinks_only() {
    let fixture = Fixture::new(
        "rp_filter",
        &[("proc/sys/net/ipv4/conf/all/rp_filter", "0\n"), ("proc/sys/net/ipv4/conf/eth1.7/rp_filter", "1\n")],
    );
    let mut subject = fixture.subject();
    subject.uplinks = vec![uplink("192.0.2.1/32", "eth1.7", None)];
    assert_eq!(faults(&subject, "rp_filter"), []);
    subject.uplinks.push(uplink("198.51.100.0/28", "eth0", None));
    let fix = "sysctl -w net/ipv4/conf/eth1.7/rp_filter=2";
    assert_fault(&faults(&subject, "rp_filter"), Level::Warning, "eth1.7 is strict", fix);
}

#[test]
fn range_without_a_route_or_with_another_interface_is_a_problem() {
    let fixture = Fixture::new("routes", &[]);
    let mut subject = fixture.subject();
    subject.uplinks = vec![uplink("192.0.2.0/28", "eth0", Some("eth0")), uplink("198.51.100.0/28", "eth0", None)];
    assert_eq!(faults(&subject, "routes"), []);
    subject.uplinks[0].address_interface = Some("eth1".to_owned());
    let fix = "default via GATEWAY dev eth1 table 100\nip rule add from 192.0.2.0/28 lookup 100";
    assert_fault(&faults(&subject, "routes"), Level::Problem, "leave by eth0, but the address is on eth1", fix);
    subject.uplinks = vec![Uplink { exit: Err("Network is unreachable".into()), ..uplink("2001:db8::/64", "", None) }];
    assert_fault(
        &faults(&subject, "routes"),
        Level::Problem,
        "Network is unreachable",
        "ip -6 rule add from 2001:db8::/64",
    );
}

#[test]
fn missing_addresses_are_a_problem_with_the_exact_prefix() {
    let mut fixture = Fixture::new("addresses", &[]);
    assert_eq!(fixture.faults("addresses"), [], "127.0.7.0/30 is on every host");
    let text = CONFIG.replace("\"127.0.7.0/30\"", "\"127.0.7.0/30\", \"192.0.2.64/29\"");
    let config = config::parse(&text, Path::new("config.toml")).unwrap().config;
    fixture.configuration.as_mut().ok().unwrap().plan = policy::compile(&config, Timestamp::now()).unwrap().0;
    let fix = "ip route add local 192.0.2.64/29 dev lo";
    assert_fault(&fixture.faults("addresses"), Level::Problem, "4 usable of 12 addresses", fix);
}

#[test]
fn file_limits_of_the_unit_and_the_kernel_are_compared_with_max_connections() {
    let unit = "usr/lib/systemd/system/outgate.service";
    let found = Fixture::new("files", &[(unit, "[Service]\nLimitNOFILE=1024:4096\n")]).faults("files");
    assert_fault(&found, Level::Warning, "outgate.service may open 4096 files", "LimitNOFILE=80256");
    let drop_in = ("etc/systemd/system/outgate.service.d/limits.conf", "[Service]\nLimitNOFILE=131072\n");
    let units = [(unit, "[Service]\nLimitNOFILE=1024\n"), drop_in];
    assert_eq!(Fixture::new("files", &units).faults("files"), []);
    let found = Fixture::new("files", &[("proc/sys/fs/nr_open", "65536\n")]).faults("files");
    assert_fault(&found, Level::Warning, "fs.nr_open is 65536", "sysctl -w fs.nr_open=80256");
}

#[test]
fn listener_on_a_privileged_port_needs_a_capability_or_a_socket_unit() {
    let unit = |capability: &str| {
        let text = format!("[Service]\nUser=outgate\nAmbientCapabilities={capability}\n");
        let files = [("etc/systemd/system/outgate.service", text.as_str())];
        Fixture::new("listeners", &files).faults("listeners")
    };
    assert_fault(&unit(""), Level::Problem, "may not listen on 127.0.0.1:443", "ListenStream=127.0.0.1:443");
    assert_eq!(unit("CAP_NET_BIND_SERVICE"), []);
    assert_eq!(Fixture::new("listeners", &[]).faults("listeners"), [], "no unit: perhaps root runs outgate");
}

#[test]
fn name_server_that_does_not_respond_is_a_problem() {
    let found = Fixture::new("resolver", &[]).faults("resolver");
    assert_fault(&found, Level::Problem, "no name server responds (127.0.0.1:9)", "resolver.servers");
}

#[test]
fn unusual_mtu_is_a_warning_without_probing() {
    let probing = |mode: &str| {
        let fixture = Fixture::new("mtu", &[("proc/sys/net/ipv4/tcp_mtu_probing", mode)]);
        let mut subject = fixture.subject();
        let mut tunnel = uplink("2001:db8::/64", "wg0", None);
        tunnel.exit.as_mut().unwrap().mtu = 1420;
        subject.uplinks = vec![tunnel.clone()];
        let found = faults(&subject, "mtu");
        tunnel.exit.as_mut().unwrap().mtu = 1200;
        subject.uplinks = vec![tunnel];
        assert_fault(&faults(&subject, "mtu"), Level::Problem, "wg0 is 1200", "ip link set wg0 mtu 1280");
        found
    };
    assert_fault(&probing("0\n"), Level::Warning, "wg0 is 1420", "tcp_mtu_probing=1");
    assert_eq!(probing("1\n"), []);
}

#[test]
fn kernel_without_entropy_is_a_problem() {
    let entropy = |bits| Fixture::new("entropy", &[("proc/sys/kernel/random/entropy_avail", bits)]).faults("entropy");
    assert_fault(&entropy("12\n"), Level::Problem, "12 bits", "rng-tools");
    assert_eq!(entropy("256\n"), []);
}

#[test]
fn files_that_others_may_change_are_a_problem() {
    let mut fixture = Fixture::new("permissions", &[("keys/a.pem", "x")]);
    let key = fixture.root.join("keys/a.pem");
    fixture.config().files = vec![key.clone()];
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(fixture.faults("permissions"), []);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o646)).unwrap();
    let fix = format!("chmod o-w {}", key.display());
    assert_fault(&fixture.faults("permissions"), Level::Problem, "every user of this host can change", &fix);
}

#[test]
fn configuration_with_problems_is_a_problem_and_the_other_checks_run() {
    let mut fixture = Fixture::new("configuration", &[]);
    let rejected = config::parse("[server]\nlissten = []\n", Path::new("config.toml")).unwrap_err();
    let problems = policy::all_problems(&rejected, Timestamp::now());
    fixture.configuration = Err(InvalidConfig { problems, sources: rejected.sources, partial: rejected.partial });
    let found = fixture.faults("configuration");
    let unknown = found.iter().find(|finding| finding.message.contains("config.toml:2:1: unknown key"));
    assert_eq!(unknown.map(|finding| finding.level), Some(Level::Problem), "{found:?}");
    assert_eq!(fixture.subject().run(HOST_CHECKS).iter().filter(|finding| finding.check == "unit").count(), 1);
}

#[test]
fn overrides_of_the_unit_that_break_the_service_are_found() {
    let unit = |text: &str| {
        let text = format!("[Service]\n{text}\n");
        let files = [
            ("usr/lib/systemd/system/outgate.service", "[Service]\nUser=outgate\nLimitCORE=0\n"),
            ("etc/systemd/system/outgate.service.d/local.conf", text.as_str()),
        ];
        Fixture::new("unit", &files).faults("unit")
    };
    assert_eq!(unit("LimitNOFILE=200000"), []);
    assert_fault(&unit("PrivateNetwork=yes"), Level::Warning, "reaches no network", "without the line PrivateNetwork=");
    assert_fault(&unit("LimitCORE=infinity"), Level::Warning, "signing keys", "without the line LimitCORE=");
    let families = "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX";
    assert_fault(&unit(families), Level::Problem, "lacks AF_NETLINK", "RestrictAddressFamilies=AF_NETLINK");
    let copy = [
        ("usr/lib/systemd/system/outgate.service", "[Service]\n"),
        ("etc/systemd/system/outgate.service", "[Service]\n"),
    ];
    assert_fault(&Fixture::new("copy", &copy).faults("unit"), Level::Warning, "do not change it", "rm ");
}

#[test]
fn denials_of_security_modules_are_found_in_their_logs() {
    let log =
        |path, line| Fixture::new("denials", &[(path, line), ("sys/fs/selinux/enforce", "1")]).faults("confinement");
    let selinux =
        "type=AVC msg=audit(1.2:3): avc:  denied  { read } for  pid=7 comm=\"outgate\" name=\"config.toml\"\n";
    assert_fault(
        &log("var/log/audit/audit.log", selinux),
        Level::Problem,
        "denied outgate",
        "restorecon -Rv /etc/outgate",
    );
    let apparmor =
        "kernel: audit: apparmor=\"DENIED\" operation=\"open\" profile=\"/usr/bin/outgate\" name=\"/etc/x\"\n";
    assert_fault(&log("var/log/kern.log", apparmor), Level::Problem, "denied outgate", "aa-logprof");
    assert_eq!(log("var/log/kern.log", "kernel: apparmor=\"DENIED\" profile=\"/usr/bin/other\"\n"), []);
}
