//! Resolution against a name server of our own, over UDP and TCP on loopback.
//! Does every kind of answer lead to the right addresses, or to the right fault?

use std::collections::BTreeMap;
use std::sync::Mutex;

use hickory_resolver::proto::op::{Message, OpCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME, SOA};
use hickory_resolver::proto::rr::{RData, Record};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

use super::*;
use crate::config::{At, Place};

/// What the server says to one question.
enum Reply {
    Records(Vec<Record>),
    /// The same, but over UDP only that it does not fit.
    TooLong(Vec<Record>),
    NoSuchName,
    NoData,
    Code(ResponseCode),
    Silence,
}

type Zone = fn(&str, RecordType) -> Reply;

struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<(String, RecordType)>>>,
    /// Stops with the server.
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start(zone: Zone) -> Self {
        let (udp, tcp) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let address = tcp.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        let log = Arc::clone(&asked);
        tasks.spawn(async move {
            let mut buffer = [0; 4096];
            loop {
                let (length, peer) = udp.recv_from(&mut buffer).await.unwrap();
                if let Some(reply) = reply(zone, &buffer[..length], true, &log) {
                    udp.send_to(&reply, peer).await.unwrap();
                }
            }
        });
        let log = Arc::clone(&asked);
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                while let Ok(length) = stream.read_u16().await {
                    let mut question = vec![0; length.into()];
                    stream.read_exact(&mut question).await.unwrap();
                    let reply = reply(zone, &question, false, &log).unwrap();
                    stream.write_u16(reply.len().try_into().unwrap()).await.unwrap();
                    stream.write_all(&reply).await.unwrap();
                }
            }
        });
        Self { address, asked, _tasks: tasks }
    }

    fn resolver(&self) -> Resolver {
        resolver(&[self.address], &[])
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

fn reply(zone: Zone, question: &[u8], udp: bool, log: &Mutex<Vec<(String, RecordType)>>) -> Option<Vec<u8>> {
    let question = Message::from_vec(question).unwrap();
    let query = question.queries[0].clone();
    let name = query.name().to_ascii();
    log.lock().unwrap().push((name.clone(), query.query_type()));
    let mut message = Message::response(question.metadata.id, OpCode::Query);
    message.metadata.recursion_available = true;
    let soa = SOA::new(Name::root(), Name::root(), 1, 60, 60, 60, 20);
    let soa = Record::from_rdata(query.name().clone(), 20, RData::SOA(soa));
    message.add_query(query.clone());
    match zone(&name, query.query_type()) {
        Reply::Records(records) => drop(message.add_answers(records)),
        Reply::TooLong(_) if udp => message.metadata.truncation = true,
        Reply::TooLong(records) => drop(message.add_answers(records)),
        Reply::NoSuchName => {
            message.metadata.response_code = ResponseCode::NXDomain;
            message.add_authority(soa);
        }
        Reply::NoData => drop(message.add_authority(soa)),
        Reply::Code(code) => message.metadata.response_code = code,
        Reply::Silence => return None,
    }
    Some(message.to_vec().unwrap())
}

fn resolver(servers: &[SocketAddr], hosts: &[(&str, &str)]) -> Resolver {
    let place = Place { file: 0, start: 0, end: 0 };
    let mut names: BTreeMap<Host, Vec<IpAddr>> = BTreeMap::new();
    for (name, address) in hosts {
        names.entry(host(name)).or_default().push(address.parse().unwrap());
    }
    let servers = servers.iter().map(|server| At { value: *server, place }).collect();
    Resolver::new(Basis::read(&config::Resolver { servers, hosts: names }).unwrap()).unwrap()
}

fn host(name: &str) -> Host {
    Host::Name(name.into())
}

fn record(name: &str, ttl: u32, data: RData) -> Record {
    Record::from_rdata(Name::from_ascii(name).unwrap(), ttl, data)
}

fn address(name: &str, ttl: u32, address: &str) -> Record {
    match address.parse().unwrap() {
        IpAddr::V4(ip) => record(name, ttl, RData::A(A(ip))),
        IpAddr::V6(ip) => record(name, ttl, RData::AAAA(AAAA(ip))),
    }
}

fn alias(name: &str, to: &str) -> Record {
    record(name, 60, RData::CNAME(CNAME(Name::from_ascii(to).unwrap())))
}

const WAIT: Duration = Duration::from_secs(5);

/// One name for every kind of answer.
fn zone(name: &str, kind: RecordType) -> Reply {
    use RecordType::{A, AAAA};
    match (name, kind) {
        ("both.example.", A) => {
            Reply::Records(["192.0.2.2", "192.0.2.1", "192.0.2.2"].map(|ip| address(name, 60, ip)).into())
        }
        ("both.example.", AAAA) => Reply::Records(vec![address(name, 60, "2001:db8::1")]),
        ("four.example." | "half.example." | "sick.example.", A) => {
            Reply::Records(vec![address(name, 60, "192.0.2.4")])
        }
        ("six.example.", AAAA) => Reply::Records(vec![address(name, 60, "2001:db8::6")]),
        ("four.example.", _) | ("six.example.", _) | ("empty.example.", _) => Reply::NoData,
        ("half.example.", _) => Reply::Silence,
        ("sick.example.", _) => Reply::Code(ResponseCode::ServFail),
        ("alias.example.", A) => Reply::Records(vec![
            alias(name, "second.example."),
            alias("second.example.", "third.example."),
            address("third.example.", 60, "192.0.2.3"),
        ]),
        ("alias.example.", AAAA) => Reply::Records(vec![alias(name, "six.example.")]), // the rest is to be asked for
        ("long.example.", A) => Reply::TooLong((0..200).map(|n| address(name, 60, &format!("192.0.2.{n}"))).collect()),
        ("long.example.", AAAA) => Reply::NoData,
        ("stray.example.", A) => Reply::Records(vec![address("other.example.", 60, "192.0.2.66")]),
        ("stray.example.", AAAA) => Reply::NoData,
        ("broken.example.", _) => Reply::Code(ResponseCode::ServFail),
        ("refused.example.", _) => Reply::Code(ResponseCode::Refused),
        ("silent.example.", _) => Reply::Silence,
        _ => Reply::NoSuchName,
    }
}

#[tokio::test]
async fn every_address_of_both_families() {
    let server = Server::start(zone).await;
    let resolver = server.resolver();
    for (name, expected) in [
        ("both.example", &["2001:db8::1", "192.0.2.2", "192.0.2.1"][..]),
        ("four.example", &["192.0.2.4"]),
        ("six.example", &["2001:db8::6"]),
        ("alias.example", &["2001:db8::6", "192.0.2.3"]),
        ("sick.example", &["192.0.2.4"]),
    ] {
        let answers = resolver.resolve(&host(name), WAIT).await.unwrap();
        let addresses: Vec<String> = answers.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, expected, "{name}");
        assert!(!answers.cached);
        let asked = server.asked();
        let again = resolver.resolve(&host(name), WAIT).await.unwrap();
        assert_eq!(again, Answers { cached: true, ..answers });
        assert_eq!(server.asked(), asked, "nobody is asked again");
    }
    let asked = server.asked.lock().unwrap();
    for kind in [RecordType::A, RecordType::AAAA] {
        assert!(asked.contains(&("four.example.".into(), kind)), "both are always asked");
    }
}

#[tokio::test]
async fn a_long_answer_comes_over_tcp() {
    let server = Server::start(zone).await;
    let answers = server.resolver().resolve(&host("long.example"), WAIT).await.unwrap();
    assert_eq!(answers.addresses.len(), 200);
}

#[tokio::test]
async fn every_fault_is_told_and_remembered() {
    let server = Server::start(zone).await;
    let resolver = server.resolver();
    for (name, fault) in [
        ("nowhere.example", ResolveFault::NotFound),
        ("empty.example", ResolveFault::NotFound),
        ("stray.example", ResolveFault::NotFound),
        ("broken.example", ResolveFault::Failed("SERVFAIL")),
        ("refused.example", ResolveFault::Failed("REFUSED")),
    ] {
        assert_eq!(resolver.resolve(&host(name), WAIT).await.unwrap_err(), fault, "{name}");
        let asked = server.asked();
        assert_eq!(resolver.resolve(&host(name), WAIT).await.unwrap_err(), fault, "{name}");
        assert_eq!(server.asked(), asked, "{name}");
    }
}

#[tokio::test]
async fn silence_ends_at_the_deadline_with_what_was_answered() {
    let server = Server::start(zone).await;
    let resolver = server.resolver();
    let short = Duration::from_millis(100);
    assert_eq!(resolver.resolve(&host("silent.example"), short).await.unwrap_err(), ResolveFault::Timeout);
    let half = resolver.resolve(&host("half.example"), short).await.unwrap();
    assert_eq!(*half.addresses, ["192.0.2.4".parse::<IpAddr>().unwrap()]);
}

#[tokio::test]
async fn a_crowd_asks_once() {
    let server = Server::start(zone).await;
    let resolver = Arc::new(server.resolver());
    let mut crowd = JoinSet::new();
    for _ in 0..200 {
        let resolver = Arc::clone(&resolver);
        crowd.spawn(async move { resolver.resolve(&host("both.example"), WAIT).await.unwrap().addresses.len() });
    }
    assert!(crowd.join_all().await.into_iter().all(|addresses| addresses == 3));
    assert_eq!(server.asked(), 2, "one question a family");
}

#[tokio::test]
async fn one_who_gives_up_does_not_take_the_answer_along() {
    let server = Server::start(zone).await;
    let resolver = server.resolver();
    let both = host("both.example");
    let mut impatient = Box::pin(resolver.resolve(&both, WAIT));
    assert!(std::future::poll_fn(|cx| std::task::Poll::Ready(impatient.as_mut().poll(cx).is_pending())).await);
    drop(impatient);
    assert_eq!(resolver.resolve(&both, WAIT).await.unwrap().addresses.len(), 3);
    assert_eq!(server.asked(), 2);
}

#[tokio::test]
async fn static_names_and_addresses_ask_nobody() {
    let server = Server::start(zone).await;
    let resolver = resolver(&[server.address], &[("both.example", "10.0.0.1"), ("both.example", "10.0.0.2")]);
    let fixed = resolver.resolve(&host("both.example"), WAIT).await.unwrap();
    assert_eq!(fixed.addresses.len(), 2);
    let literal = resolver.resolve(&Host::Ip("192.0.2.9".parse().unwrap()), WAIT).await.unwrap();
    assert_eq!(*literal.addresses, ["192.0.2.9".parse::<IpAddr>().unwrap()]);
    assert!(fixed.cached && literal.cached);
    assert_eq!(server.asked(), 0);
}

#[tokio::test]
async fn no_server_at_all() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let nobody = socket.local_addr().unwrap();
    drop(socket);
    let fault = resolver(&[nobody], &[]).resolve(&host("both.example"), WAIT).await.unwrap_err();
    assert!(matches!(fault, ResolveFault::Failed(_) | ResolveFault::Timeout), "{fault:?}");
}

#[test]
fn what_two_halves_make() {
    let some = |ttl| Half::Addresses { addresses: vec!["192.0.2.1".parse().unwrap()], ttl: Duration::from_secs(ttl) };
    let none = |ttl| Half::Nothing { no_such_name: false, ttl: Duration::from_secs(ttl) };
    let gone = |ttl| Half::Nothing { no_such_name: true, ttl: Duration::from_secs(ttl) };
    let late = || Half::Fault(ResolveFault::Timeout);
    let sick = || Half::Fault(ResolveFault::Failed("SERVFAIL"));
    let fine = "found";
    for (v6, v4, expected, seconds) in [
        (some(60), some(40), fine, 40),
        (some(60), none(5), fine, 60),
        (none(5), some(60), fine, 60),
        (some(0), none(0), fine, 1),
        (some(86400), none(0), fine, 300),
        (some(60), late(), fine, 10),
        (sick(), some(5), fine, 5),
        (none(0), none(9), "the name has no address", 1),
        (gone(900), gone(900), "the name has no address", 30),
        (gone(9), late(), "the name has no address", 9),
        (none(9), late(), "no answer from the name servers in time", 1),
        (late(), none(9), "no answer from the name servers in time", 1),
        (late(), late(), "no answer from the name servers in time", 1),
        (late(), sick(), "the name servers gave no answer: SERVFAIL", 1),
        (sick(), late(), "the name servers gave no answer: SERVFAIL", 1),
    ] {
        let Found { outcome, ttl } = whole(v6, v4);
        let told = outcome.map_or_else(|fault| fault.to_string(), |_| fine.into());
        assert_eq!((told.as_str(), ttl), (expected, Duration::from_secs(seconds)));
    }
}

#[test]
fn the_hosts_file() {
    let hosts = hosts_file(
        "127.0.0.1\tlocalhost\n# a comment\n10.0.0.1 Box.Example box # the box\n2001:db8::1 box.example\n\nodd line\n",
    );
    let of = |name| hosts.get(name).map(|addresses| addresses.iter().map(ToString::to_string).collect::<Vec<_>>());
    assert_eq!(of("box.example").unwrap(), ["10.0.0.1", "2001:db8::1"]);
    assert_eq!(of("box").unwrap(), ["10.0.0.1"]);
    assert_eq!(of("line"), None);
}

#[test]
fn the_system_s_servers() {
    let of = |text| system_servers(text).iter().map(|server| server.ip.to_string()).collect::<Vec<_>>();
    assert_eq!(of("nameserver 192.0.2.53\nnameserver 2001:db8::53\n"), ["192.0.2.53", "2001:db8::53"]);
    assert_eq!(of(""), ["127.0.0.1"]);
}
