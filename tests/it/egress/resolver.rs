//! Name resolution of a real outgate: servers that fail, are slow or do not respond, and pools of one family.
//! Does a webhook arrive if any name server resolves its target, and which error does it get otherwise?
//!
//! One test needs dnsmasq and unbound: skipped where they are missing, required with `OUTGATE_TEST_ALL=1`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use support::configuration::Config;
use support::name_server::{A, AAAA, NameServer, Query, Reply};
use support::receiver::{Receiver, ok};
use support::{Folder, Outgate, Response, TEST_TIMEOUT, required};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const SERVFAIL: u8 = 2;
const NXDOMAIN: u8 = 3;

/// Replies with an IPv4 address for every name, and with no data for other types.
fn ipv4_zone(query: &Query) -> Reply {
    if query.kind == A { Reply::Address(HERE) } else { Reply::NoData }
}

struct Scene {
    outgate: Outgate,
    target: Receiver,
}

/// Starts a proxy with an IPv4 pool and these name servers, and a plaintext target. `change` may change the configuration.
fn scene_with(servers: &[SocketAddr], change: impl FnOnce(Config, u16) -> Config) -> Scene {
    let target = Receiver::plain(ok());
    let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
    let text = Config::parse(&format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\nallow_anonymous = true\n[admin]\nlisten = [\"127.0.0.1:0\"]\n\
         [egress.default]\nranges = [\"127.0.7.0/30\"]\n[guard]\nallow = [\"127.0.0.0/8\"]\n\
         [resolver]\nservers = {servers:?}\n[timeouts]\ndns = \"3s\"\n\
         [[routes]]\nname = \"all\"\nhosts = [\"*\"]\nports = [{}]\nplaintext = \"allow\"\n",
        target.port()
    ));
    Scene { outgate: Outgate::run(Folder::new(), &change(text, target.port())), target }
}

fn scene(servers: &[SocketAddr]) -> Scene {
    scene_with(servers, |text, _| text)
}

impl Scene {
    fn post(&self, host: &str) -> Response {
        self.outgate.post(&format!("http://{host}:{}/in", self.target.port()), "", "x")
    }
}

#[test]
fn failover_asks_the_next_name_server_after_an_error_response() {
    // This server is slower than the failing one.
    let ipv4_zone = NameServer::start(|query| match query.kind {
        A => Reply::After(Duration::from_millis(100), HERE),
        _ => Reply::NoData,
    });
    // FORMERR, SERVFAIL, NOTIMP, REFUSED and NOTAUTH.
    for code in [1, SERVFAIL, 4, 5, 9] {
        let failing = NameServer::start(move |_| Reply::Code(code));
        let scene = scene(&[failing.address, ipv4_zone.address]);
        for name in ["one.example.net", "two.example.net", "three.example.net"] {
            let response = scene.post(name);
            assert_eq!(response.status, 200, "{code}: {response:?}");
        }
        assert!(!failing.queries().is_empty());
    }
}

#[test]
fn nxdomain_of_one_name_server_is_final() {
    /// The time after which outgate also asks the next name server.
    const NEXT_SERVER: Duration = Duration::from_millis(300);
    let is_final = || {
        let first = NameServer::start(|_| Reply::Code(NXDOMAIN));
        let second = NameServer::start(|_| Reply::After(Duration::from_secs(2), HERE));
        let scene = scene(&[first.address, second.address]);
        let begun = Instant::now();
        let response = scene.post("gone.example.net");
        let is_in_time = begun.elapsed() < NEXT_SERVER;
        assert_eq!((response.status, response.code()), (502, "name_not_found"));
        assert!(!is_in_time || second.queries().is_empty());
        is_in_time
    };
    assert!((0..20).any(|_| is_final()), "no response took less than {NEXT_SERVER:?}");
}

#[test]
fn servfail_of_every_name_server_is_a_retryable_failure() {
    let failing = NameServer::start(|_| Reply::Code(SERVFAIL));
    let response = scene(&[failing.address]).post("sick.example.net");
    assert_eq!((response.status, response.code()), (504, "name_timeout"), "{response:?}");
    assert_eq!((&response.json()["blame"], &response.json()["retryable"]), (&"target".into(), &true.into()));
    assert!(response.field("proxy-status").contains("error=dns_error"), "{response:?}");
}

#[test]
fn formerr_to_a_query_with_edns_is_asked_once_more_without() {
    let old = NameServer::start(|query| if query.has_edns { Reply::Code(1) } else { ipv4_zone(query) });
    assert_eq!(scene(&[old.address]).post("old.example.net").status, 200);
    let edns: Vec<bool> = old.queries().iter().map(|query| query.has_edns).collect();
    // outgate sends a query again if the response is late, as it may be on a loaded machine.
    assert!(edns.is_sorted_by(|before, after| before >= after), "{edns:?}");
    assert_eq!((edns.first(), edns.last()), (Some(&true), Some(&false)));
}

#[test]
fn dns_timeout_of_one_route_does_not_end_the_query_of_another() {
    let slow = NameServer::start(|_| Reply::After(Duration::from_secs(1), HERE));
    let scene = scene_with(&[slow.address], |text, port| {
        let hasty = format!(
            "[[routes]]\nname = \"hasty\"\nhosts = [\"*\"]\npaths = [\"/hasty\"]\nports = [{port}]\n\
             plaintext = \"allow\"\ntimeouts = {{ dns = \"50ms\" }}\n"
        );
        text.set("timeouts.dns", "30s").and(&hasty)
    });
    std::thread::scope(|scope| {
        let url = format!("http://slow.example.net:{}/hasty", scene.target.port());
        let hasty = scene.outgate.post(&url, "", "x");
        assert_eq!(hasty.code(), "name_timeout", "{hasty:?}");
        // This delivery joins the query of the first one.
        let patient = scope.spawn(|| scene.post("slow.example.net"));
        assert_eq!(patient.join().unwrap().status, 200);
    });
    assert_eq!(scene.post("slow.example.net").status, 200);
}

#[test]
fn dns_timeout_above_four_seconds_takes_effect() {
    // Each query takes longer than the retry interval and longer than hickory's default of 1 s.
    let slow = NameServer::start(|_| Reply::After(Duration::from_millis(4500), HERE));
    let scene = scene_with(&[slow.address], |text, _| text.set("timeouts.dns", "60s"));
    assert_eq!(scene.post("slow.example.net").status, 200);
}

#[test]
fn dns_query_of_the_other_address_family_is_not_sent_for_a_pool_of_one() {
    let server = NameServer::start(ipv4_zone);
    assert_eq!(scene(&[server.address]).post("four.example.net").status, 200);
    assert!(server.queries().iter().all(|query| query.kind == A), "{:?}", server.queries());
}

/// Adds an IPv6 address to the pool.
fn dual(text: Config) -> Config {
    text.push("egress.default.ranges", "::1/128")
}

#[test]
fn aaaa_query_without_an_answer_costs_a_short_wait() {
    let server = NameServer::start(|query| if query.kind == AAAA { Reply::Timeout } else { ipv4_zone(query) });
    let scene = scene_with(&[server.address], |text, _| dual(text).set("timeouts.dns", "60s"));
    let start = Instant::now();
    for number in 0..6 {
        assert_eq!(scene.post(&format!("{number}.example.net")).status, 200);
    }
    assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
}

#[test]
fn aaaa_answer_that_is_late_and_private_is_not_dialled_and_forbids_the_name() {
    let private = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1));
    let (release, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let server = NameServer::start(move |query| match query.kind {
        AAAA => {
            let _ = wait.lock().unwrap().recv_timeout(TEST_TIMEOUT);
            Reply::Address(private)
        }
        _ => ipv4_zone(query),
    });
    let scene = scene_with(&[server.address], |text, _| dual(text).set("timeouts.dns", "60s"));
    // The first delivery uses the addresses that are known by then, which the guard allows.
    let first = scene.post("rebound.example.net");
    drop(release);
    let deadline = Instant::now() + TEST_TIMEOUT;
    let last = loop {
        let response = scene.post("rebound.example.net");
        if response.status != 200 {
            break response;
        }
        assert!(Instant::now() < deadline);
    };
    assert_eq!((first.status, last.code()), (200, "target_forbidden"));
    assert!(scene.target.requests().iter().all(|received| received.from.is_ipv4()));
}

#[test]
fn an_ipv6_target_behind_an_ipv4_pool_is_not_retryable() {
    let six = NameServer::start(|query| match query.kind {
        AAAA => Reply::Address(IpAddr::V6(Ipv6Addr::LOCALHOST)),
        _ => Reply::NoData,
    });
    let scene = scene_with(&[six.address], |text, _| text.push("guard.allow", "::1/128"));
    for host in ["six.example.net", "[::1]"] {
        let response = scene.post(host);
        assert_eq!((response.status, response.code()), (502, "connect_unreachable"), "{host}: {response:?}");
        let problem = response.json();
        assert_eq!(
            (&problem["retryable"], &problem["details"]),
            (&false.into(), &"address_family".into()),
            "{problem}"
        );
    }
}

#[test]
fn dns_outage_is_blamed_on_outgate_and_reported_until_it_ends() {
    let is_up = Arc::new(AtomicBool::new(false));
    let zone = Arc::clone(&is_up);
    let server = NameServer::start(move |query| match zone.load(Ordering::Relaxed) {
        true => ipv4_zone(query),
        false => Reply::Timeout,
    });
    let scene = scene(&[server.address]);
    assert!(!scene.outgate.admin("/readyz").text().contains("name server"));
    let response = scene.post("one.example.net");
    assert_eq!((response.status, response.code()), (504, "name_timeout"), "{response:?}");
    let problem = response.json();
    assert_eq!((&problem["blame"], &problem["retryable"]), (&"outgate".into(), &true.into()), "{problem}");
    let record = &scene.outgate.records(1)[0];
    assert_eq!((&record["code"], &record["details"]), (&"name_timeout".into(), &"no_server_responds".into()));

    scene.outgate.wait_for_metric("outgate_dns_outage 1");
    let ready = scene.outgate.admin("/readyz");
    let expected = format!("({})", server.address);
    assert!(ready.text().contains("no name server has responded") && ready.text().contains(&expected), "{ready:?}");
    let wait_for_log_line = |words: &str| {
        let has = |lines: &[String]| lines.iter().any(|line| line.contains(words)).then_some(());
        scene.outgate.log.wait_for(words, has);
    };
    wait_for_log_line("WARN no name server responds");
    scene.outgate.wait_for_metric("outgate_alerts{name=\"OutgateDnsOutage\"} 1");

    // outgate notices the end without a delivery.
    is_up.store(true, Ordering::Relaxed);
    scene.outgate.wait_for_metric("outgate_dns_outage 0");
    wait_for_log_line("a name server responds again");
    assert!(!scene.outgate.admin("/readyz").text().contains("name server"));
    assert_eq!(scene.post("one.example.net").status, 200);
}

#[test]
fn dns_outage_does_not_open_circuits() {
    let silent = NameServer::start(|_| Reply::Timeout);
    let scene = scene_with(&[silent.address], |text, _| text.set("timeouts.dns", "1s").add("circuit.failures", 2));
    let codes: Vec<String> = (0..5).map(|_| scene.post("one.example.net").code().to_owned()).collect();
    assert_eq!(codes, ["name_timeout"; 5]);
}

/// A resolver without an upstream responds with SERVFAIL to every query.
#[test]
fn circuits_stay_closed_while_the_resolver_answers_servfail() {
    let is_up = Arc::new(AtomicBool::new(false));
    let shared = Arc::clone(&is_up);
    let server = NameServer::start(move |query| match shared.load(Ordering::Relaxed) {
        true => ipv4_zone(query),
        false => Reply::Code(SERVFAIL),
    });
    let circuit = "[circuit]\nfailures = 1\nopen = \"1h\"\nopen_max = \"1h\"\n";
    let scene = scene_with(&[server.address], |text, _| text.and(circuit));
    let codes: Vec<String> = (0..3).map(|_| scene.post("one.example.net").code().to_owned()).collect();
    assert_eq!(codes, ["name_timeout"; 3]);
    is_up.store(true, Ordering::Relaxed);
    let deadline = Instant::now() + TEST_TIMEOUT;
    loop {
        let response = scene.post("one.example.net");
        if response.status == 200 {
            break;
        }
        assert_eq!(response.code(), "name_timeout", "the failure is remembered for a moment");
        assert!(Instant::now() < deadline, "{response:?}");
    }
}

/// The test replaces resolv.conf in a mount namespace of the command.
#[test]
fn check_warns_of_a_system_without_name_servers() {
    let scene = scene(&[]);
    let config = scene.outgate.folder.path("config.toml").display().to_string();
    let check = |resolv_conf: &str| {
        let file = scene.outgate.folder.write("resolv.conf", resolv_conf).display().to_string();
        let script = format!(
            "mount --bind {file} /etc/resolv.conf && exec {} check --config {config}",
            env!("CARGO_BIN_EXE_outgate")
        );
        let output = Command::new("unshare").args(["--mount", "sh", "-c", &script]).output().ok()?;
        let expected = String::from_utf8_lossy(&output.stderr).into_owned();
        expected.contains("valid").then_some(expected)
    };
    let Some(none) = check("options edns0\nsearch example.net\n") else {
        assert!(!required(), "this host cannot make mount namespaces");
        eprintln!("skipped: needs root, unshare and mount");
        return;
    };
    assert!(none.contains("no name server is configured") && none.contains("127.0.0.1:53"), "{none}");
    let some = check("unheard-of line\nnameserver 192.0.2.53\noptions x:y\n").unwrap();
    assert!(!some.contains("name server"), "{some}");
}

/// A name server program of Debian. Dropping it ends it.
struct Daemon(Child, SocketAddr);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The address of these programs. On a shared address, a name server of another test could take the port.
const DAEMONS: &str = "127.0.53.1";

/// Runs a program that knows `known.example.net`, on a port that was free a moment ago.
fn daemon(program: &str, arguments: impl Fn(u16) -> Vec<String>) -> Option<Daemon> {
    for _ in 0..20 {
        let port = UdpSocket::bind((DAEMONS, 0)).unwrap().local_addr().unwrap().port();
        let command = Command::new(program).args(arguments(port)).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut daemon = Daemon(command.ok()?, SocketAddr::new(DAEMONS.parse().unwrap(), port));
        let deadline = Instant::now() + TEST_TIMEOUT;
        // The program responds, or it has ended because another process took the port.
        while daemon.0.try_wait().unwrap().is_none() {
            if responds(daemon.1) {
                return Some(daemon);
            }
            assert!(Instant::now() < deadline, "{program} does not answer");
        }
    }
    panic!("{program} does not start");
}

fn responds(server: SocketAddr) -> bool {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    socket.connect(server).unwrap();
    let query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x05known\x07example\x03net\x00\x00\x01\x00\x01";
    socket.send(query).is_ok() && socket.recv(&mut [0; 512]).is_ok()
}

#[test]
fn failover_between_name_servers_works_with_debians_resolvers() {
    let folder = Folder::new();
    let dnsmasq = daemon("dnsmasq", |port| {
        let words = "--keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --bind-interfaces --user=root --pid-file \
                     --address=/known.example.net/127.0.0.1";
        let listen = [format!("--listen-address={DAEMONS}"), format!("--port={port}")];
        words.split_whitespace().map(str::to_owned).chain(listen).collect()
    });
    let unbound = daemon("unbound", |port| {
        let text = format!(
            "server:\n interface: {DAEMONS}\n port: {port}\n username: \"\"\n chroot: \"\"\n pidfile: \"\"\n \
             do-daemonize: no\n use-syslog: no\n module-config: iterator\n do-not-query-localhost: no\n \
             local-zone: \"known.example.net.\" static\n local-data: \"known.example.net. IN A 127.0.0.1\"\n\
             remote-control:\n control-enable: no\n"
        );
        vec!["-d".to_owned(), "-c".to_owned(), folder.write("unbound.conf", text).display().to_string()]
    });
    let (Some(dnsmasq), Some(unbound)) = (dnsmasq, unbound) else {
        assert!(!required(), "dnsmasq and unbound are required");
        eprintln!("skipped: needs dnsmasq and unbound");
        return;
    };
    for real in [&dnsmasq, &unbound] {
        for reply in [Reply::Code(SERVFAIL), Reply::Code(5), Reply::Timeout] {
            let faulty = NameServer::start(move |_| reply);
            let scene = scene(&[faulty.address, real.1]);
            let known = scene.post("known.example.net");
            assert_eq!(known.status, 200, "{reply:?}: {known:?}");
            let unknown = scene.post("unknown.known.example.net");
            assert!(matches!(unknown.code(), "" | "name_not_found"), "{reply:?}: {unknown:?}");
        }
    }
}
