//! Names to addresses through a real outgate: servers that fail, are slow or are gone, and pools of one family.
//! Does a webhook arrive if any name server knows its target, and what is to blame if none does?
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
use support::name_server::{A, AAAA, NameServer, Question, Reply};
use support::receiver::{Receiver, ok};
use support::{Answer, Folder, Outgate, PATIENCE, required};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const SERVFAIL: u8 = 2;
const NXDOMAIN: u8 = 3;

/// Has an IPv4 address for every name, and nothing else.
fn good(question: &Question) -> Reply {
    if question.kind == A { Reply::Address(HERE) } else { Reply::NoData }
}

struct Place {
    outgate: Outgate,
    target: Receiver,
}

/// A plaintext target that every name leads to, from an IPv4 pool, unless `change` has the configuration otherwise.
fn place_with(servers: &[SocketAddr], change: impl FnOnce(Config, u16) -> Config) -> Place {
    let target = Receiver::plain(ok());
    let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
    let text = Config::parse(&format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\nallow_anonymous = true\n[admin]\nlisten = [\"127.0.0.1:0\"]\n\
         [egress.default]\nranges = [\"127.0.7.0/30\"]\n[guard]\nallow = [\"127.0.0.0/8\"]\n\
         [resolver]\nservers = {servers:?}\n[timeouts]\ndns = \"3s\"\n\
         [[routes]]\nname = \"all\"\nhosts = [\"*\"]\nports = [{}]\nplaintext = \"allow\"\n",
        target.port()
    ));
    Place { outgate: Outgate::run(Folder::new(), &change(text, target.port())), target }
}

fn place(servers: &[SocketAddr]) -> Place {
    place_with(servers, |text, _| text)
}

impl Place {
    fn post(&self, host: &str) -> Answer {
        self.outgate.post(&format!("http://{host}:{}/in", self.target.port()), "", "x")
    }
}

#[test]
fn failover_asks_the_next_name_server_after_an_error_response() {
    // Slower than the other one.
    let good = NameServer::start(|question| match question.kind {
        A => Reply::After(Duration::from_millis(100), HERE),
        _ => Reply::NoData,
    });
    // FORMERR, SERVFAIL, NOTIMP, REFUSED and NOTAUTH.
    for code in [1, SERVFAIL, 4, 5, 9] {
        let bad = NameServer::start(move |_| Reply::Code(code));
        let place = place(&[bad.address, good.address]);
        for name in ["one.example.net", "two.example.net", "three.example.net"] {
            let answer = place.post(name);
            assert_eq!(answer.status, 200, "{code}: {answer:?}");
        }
        assert!(!bad.asked().is_empty());
    }
}

#[test]
fn nxdomain_of_one_name_server_is_final() {
    let (first, second) = (NameServer::start(|_| Reply::Code(NXDOMAIN)), NameServer::start(good));
    let answer = place(&[first.address, second.address]).post("gone.example.net");
    assert_eq!((answer.status, answer.code()), (502, "name_not_found"));
    assert!(second.asked().is_empty());
}

#[test]
fn servfail_of_every_name_server_is_a_retryable_failure() {
    let bad = NameServer::start(|_| Reply::Code(SERVFAIL));
    let answer = place(&[bad.address]).post("sick.example.net");
    assert_eq!((answer.status, answer.code()), (504, "name_timeout"), "{answer:?}");
    assert_eq!((&answer.json()["blame"], &answer.json()["retryable"]), (&"target".into(), &true.into()));
    assert!(answer.field("proxy-status").contains("error=dns_error"), "{answer:?}");
}

#[test]
fn formerr_to_a_query_with_edns_is_asked_once_more_without() {
    let old = NameServer::start(|question| if question.has_edns { Reply::Code(1) } else { good(question) });
    assert_eq!(place(&[old.address]).post("old.example.net").status, 200);
    let edns: Vec<bool> = old.asked().iter().map(|question| question.has_edns).collect();
    assert_eq!(edns, [true, false]);
}

#[test]
fn dns_timeout_of_one_route_does_not_end_the_query_of_another() {
    let slow = NameServer::start(|_| Reply::After(Duration::from_secs(1), HERE));
    let place = place_with(&[slow.address], |text, port| {
        let hasty = format!(
            "[[routes]]\nname = \"hasty\"\nhosts = [\"*\"]\npaths = [\"/hasty\"]\nports = [{port}]\n\
             plaintext = \"allow\"\ntimeouts = {{ dns = \"50ms\" }}\n"
        );
        text.set("timeouts.dns", "30s").and(&hasty)
    });
    std::thread::scope(|scope| {
        let url = format!("http://slow.example.net:{}/hasty", place.target.port());
        let hasty = place.outgate.post(&url, "", "x");
        assert_eq!(hasty.code(), "name_timeout", "{hasty:?}");
        // Joins the question that the hasty one has begun.
        let patient = scope.spawn(|| place.post("slow.example.net"));
        assert_eq!(patient.join().unwrap().status, 200);
    });
    assert_eq!(place.post("slow.example.net").status, 200);
}

#[test]
fn dns_timeout_above_four_seconds_takes_effect() {
    // Each question takes longer than it takes until it is repeated, and longer than hickory's 1 s.
    let slow = NameServer::start(|_| Reply::After(Duration::from_millis(4500), HERE));
    let place = place_with(&[slow.address], |text, _| text.set("timeouts.dns", "60s"));
    assert_eq!(place.post("slow.example.net").status, 200);
}

#[test]
fn dns_query_of_the_other_address_family_is_not_sent_for_a_pool_of_one() {
    let server = NameServer::start(good);
    assert_eq!(place(&[server.address]).post("four.example.net").status, 200);
    assert!(server.asked().iter().all(|question| question.kind == A), "{:?}", server.asked());
}

/// A pool of both families.
fn dual(text: Config) -> Config {
    text.push("egress.default.ranges", "::1/128")
}

#[test]
fn aaaa_query_without_an_answer_costs_a_short_wait() {
    let server = NameServer::start(|question| if question.kind == AAAA { Reply::Silence } else { good(question) });
    let place = place_with(&[server.address], |text, _| dual(text).set("timeouts.dns", "60s"));
    let start = Instant::now();
    for number in 0..6 {
        assert_eq!(place.post(&format!("{number}.example.net")).status, 200);
    }
    assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
}

#[test]
fn aaaa_answer_that_is_late_and_private_is_not_dialled_and_forbids_the_name() {
    let private = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1));
    let server = NameServer::start(move |question| match question.kind {
        AAAA => Reply::After(Duration::from_millis(700), private),
        _ => good(question),
    });
    let place = place_with(&[server.address], |text, _| dual(text));
    // Every address that was known then was public.
    let first = place.post("rebound.example.net");
    let deadline = Instant::now() + PATIENCE;
    let last = loop {
        let answer = place.post("rebound.example.net");
        if answer.status != 200 {
            break answer;
        }
        assert!(Instant::now() < deadline);
    };
    assert_eq!((first.status, last.code()), (200, "target_forbidden"));
    assert!(place.target.seen().iter().all(|seen| seen.from.is_ipv4()));
}

#[test]
fn an_ipv6_target_behind_an_ipv4_pool_is_not_retryable() {
    let six = NameServer::start(|question| match question.kind {
        AAAA => Reply::Address(IpAddr::V6(Ipv6Addr::LOCALHOST)),
        _ => Reply::NoData,
    });
    let place = place_with(&[six.address], |text, _| text.push("guard.allow", "::1/128"));
    for host in ["six.example.net", "[::1]"] {
        let answer = place.post(host);
        assert_eq!((answer.status, answer.code()), (502, "connect_unreachable"), "{host}: {answer:?}");
        let problem = answer.json();
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
    let server = NameServer::start(move |question| match zone.load(Ordering::Relaxed) {
        true => good(question),
        false => Reply::Silence,
    });
    let place = place(&[server.address]);
    assert!(!place.outgate.admin("/readyz").text().contains("name server"));
    let answer = place.post("one.example.net");
    assert_eq!((answer.status, answer.code()), (504, "name_timeout"), "{answer:?}");
    let problem = answer.json();
    assert_eq!((&problem["blame"], &problem["retryable"]), (&"outgate".into(), &true.into()), "{problem}");
    let record = &place.outgate.records(1)[0];
    assert_eq!((&record["code"], &record["details"]), (&"name_timeout".into(), &"no_server_responds".into()));

    place.outgate.until_metric("outgate_dns_outage 1");
    let ready = place.outgate.admin("/readyz");
    let told = format!("({})", server.address);
    assert!(ready.text().contains("no name server responds") && ready.text().contains(&told), "{ready:?}");
    let logged = |words: &str| {
        let has = |lines: &[String]| lines.iter().any(|line| line.contains(words)).then_some(());
        place.outgate.log.until(words, has);
    };
    logged("WARN no name server responds");

    // outgate notices the end without a delivery.
    is_up.store(true, Ordering::Relaxed);
    place.outgate.until_metric("outgate_dns_outage 0");
    logged("a name server responds again");
    assert!(!place.outgate.admin("/readyz").text().contains("name server"));
    assert_eq!(place.post("one.example.net").status, 200);
}

#[test]
fn dns_outage_does_not_open_circuits() {
    let silent = NameServer::start(|_| Reply::Silence);
    let place = place_with(&[silent.address], |text, _| text.set("timeouts.dns", "1s").add("circuit.failures", 2));
    let codes: Vec<String> = (0..5).map(|_| place.post("one.example.net").code().to_owned()).collect();
    assert_eq!(codes, ["name_timeout"; 5]);
}

/// A resolver that has lost its upstream answers this for every name.
#[test]
fn circuits_stay_closed_while_the_resolver_answers_servfail() {
    let is_up = Arc::new(AtomicBool::new(false));
    let theirs = Arc::clone(&is_up);
    let server = NameServer::start(move |question| match theirs.load(Ordering::Relaxed) {
        true => good(question),
        false => Reply::Code(SERVFAIL),
    });
    let circuit = "[circuit]\nfailures = 1\nopen = \"1h\"\nopen_max = \"1h\"\n";
    let place = place_with(&[server.address], |text, _| text.and(circuit));
    let codes: Vec<String> = (0..3).map(|_| place.post("one.example.net").code().to_owned()).collect();
    assert_eq!(codes, ["name_timeout"; 3]);
    is_up.store(true, Ordering::Relaxed);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = place.post("one.example.net");
        if answer.status == 200 {
            break;
        }
        assert_eq!(answer.code(), "name_timeout", "the failure is remembered for a moment");
        assert!(Instant::now() < deadline, "{answer:?}");
    }
}

/// The system's resolv.conf is replaced in a mount namespace of the command's own.
#[test]
fn check_warns_of_a_system_without_name_servers() {
    let place = place(&[]);
    let config = place.outgate.folder.path("config.toml").display().to_string();
    let check = |resolv_conf: &str| {
        let file = place.outgate.folder.write("resolv.conf", resolv_conf).display().to_string();
        let script = format!(
            "mount --bind {file} /etc/resolv.conf && exec {} check --config {config}",
            env!("CARGO_BIN_EXE_outgate")
        );
        let output = Command::new("unshare").args(["--mount", "sh", "-c", &script]).output().ok()?;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        told.contains("valid").then_some(told)
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

/// A name server of Debian's. Dropping it ends it.
struct Daemon(Child, SocketAddr);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An address of these programs alone. On a shared one, a name server of another test could take the port.
const DAEMONS: &str = "127.0.53.1";

/// Runs a program that knows `known.example.net`, on a port that was free a moment ago.
fn daemon(program: &str, arguments: impl Fn(u16) -> Vec<String>) -> Option<Daemon> {
    for _ in 0..20 {
        let port = UdpSocket::bind((DAEMONS, 0)).unwrap().local_addr().unwrap().port();
        let command = Command::new(program).args(arguments(port)).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut daemon = Daemon(command.ok()?, SocketAddr::new(DAEMONS.parse().unwrap(), port));
        let deadline = Instant::now() + PATIENCE;
        // The program answers, or it has ended because the port was taken meanwhile.
        while daemon.0.try_wait().unwrap().is_none() {
            if answers(daemon.1) {
                return Some(daemon);
            }
            assert!(Instant::now() < deadline, "{program} does not answer");
        }
    }
    panic!("{program} does not start");
}

fn answers(server: SocketAddr) -> bool {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    socket.connect(server).unwrap();
    let question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x05known\x07example\x03net\x00\x00\x01\x00\x01";
    socket.send(question).is_ok() && socket.recv(&mut [0; 512]).is_ok()
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
        for reply in [Reply::Code(SERVFAIL), Reply::Code(5), Reply::Silence] {
            let faulty = NameServer::start(move |_| reply);
            let place = place(&[faulty.address, real.1]);
            let known = place.post("known.example.net");
            assert_eq!(known.status, 200, "{reply:?}: {known:?}");
            let unknown = place.post("unknown.known.example.net");
            assert!(matches!(unknown.code(), "" | "name_not_found"), "{reply:?}: {unknown:?}");
        }
    }
}
