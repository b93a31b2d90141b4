//! Tests of the resolver against fake name servers, over UDP and TCP on loopback.
//! Does each kind of response lead to the right addresses, or to the right error?

mod answers;
mod server;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{Name, RData, Record};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use super::*;
use crate::config::{Located, SourceSpan};
use server::{FakeNameServer, FakeReply};

impl FakeNameServer {
    fn resolver(&self) -> Resolver {
        resolver(&[self.address], &[])
    }
}

fn resolver(servers: &[SocketAddr], hosts: &[(&str, &str)]) -> Resolver {
    let place = SourceSpan { file: 0, start: 0, end: 0 };
    let mut names: BTreeMap<Host, Vec<IpAddr>> = BTreeMap::new();
    for (name, address) in hosts {
        names.entry(host(name)).or_default().push(address.parse().unwrap());
    }
    let servers = servers.iter().map(|server| Located { value: *server, span: place }).collect();
    Resolver::new(ResolverConfig::read(&config::Resolver { servers, hosts: names }).unwrap())
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

const WAIT: Duration = Duration::from_secs(20);
const BOTH: Families = Families { v4: true, v6: true };
const V4: Families = Families { v4: true, v6: false };
const V6: Families = Families { v4: false, v6: true };

/// One name for every kind of answer.
fn zone(name: &str, kind: RecordType) -> FakeReply {
    use RecordType::{A, AAAA};
    match (name, kind) {
        ("both.example.", A) => {
            FakeReply::Records(["192.0.2.2", "192.0.2.1", "192.0.2.2"].map(|ip| address(name, 60, ip)).into())
        }
        ("both.example.", AAAA) => FakeReply::Records(vec![address(name, 60, "2001:db8::1")]),
        ("four.example." | "half.example." | "sick.example.", A) => {
            FakeReply::Records(vec![address(name, 60, "192.0.2.4")])
        }
        ("six.example.", AAAA) => FakeReply::Records(vec![address(name, 60, "2001:db8::6")]),
        ("four.example.", _) | ("six.example.", _) | ("empty.example.", _) => FakeReply::NoData,
        ("half.example.", _) => FakeReply::Silence,
        ("late.example.", A) => FakeReply::Records(vec![address(name, 60, "192.0.2.4")]),
        ("late.example.", _) => FakeReply::Late(Duration::from_millis(500), vec![address(name, 60, "2001:db8::4")]),
        ("slow.example.", _) => FakeReply::Late(Duration::from_millis(500), vec![address(name, 60, "192.0.2.4")]),
        ("sick.example.", _) => FakeReply::Code(ResponseCode::ServFail),
        ("alias.example.", A) => FakeReply::Records(vec![
            alias(name, "second.example."),
            alias("second.example.", "third.example."),
            address("third.example.", 60, "192.0.2.3"),
        ]),
        ("alias.example.", AAAA) => FakeReply::Records(vec![alias(name, "six.example.")]), // the rest is to be asked for
        ("long.example.", A) => {
            FakeReply::TooLong((0..200).map(|n| address(name, 60, &format!("192.0.2.{n}"))).collect())
        }
        ("long.example.", AAAA) => FakeReply::NoData,
        ("stray.example.", A) => FakeReply::Records(vec![address("other.example.", 60, "192.0.2.66")]),
        ("stray.example.", AAAA) => FakeReply::NoData,
        ("broken.example.", _) => FakeReply::Code(ResponseCode::ServFail),
        ("refused.example.", _) => FakeReply::Code(ResponseCode::Refused),
        ("silent.example.", _) => FakeReply::Silence,
        _ => FakeReply::NoSuchName,
    }
}

#[tokio::test]
async fn resolver_returns_all_addresses_of_both_families() {
    let server = FakeNameServer::start(zone).await;
    let resolver = server.resolver();
    for (name, expected) in [
        ("both.example", &["2001:db8::1", "192.0.2.2", "192.0.2.1"][..]),
        ("four.example", &["192.0.2.4"]),
        ("six.example", &["2001:db8::6"]),
        ("alias.example", &["2001:db8::6", "192.0.2.3"]),
        ("sick.example", &["192.0.2.4"]),
    ] {
        // One after the other: on a busy machine one of them may take longer than the other waits.
        let first = resolver.resolve(&host(name), V6, WAIT).await;
        let second = resolver.resolve(&host(name), V4, WAIT).await;
        assert!(!first.or(second).unwrap().cached);
        let asked = server.asked();
        let answers = resolver.resolve(&host(name), BOTH, WAIT).await.unwrap();
        let addresses: Vec<String> = answers.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, expected, "{name}");
        assert!(answers.cached);
        assert_eq!(server.asked(), asked, "the cache answers: no query is sent");
    }
}

#[tokio::test]
async fn resolver_repeats_a_truncated_response_over_tcp() {
    let server = FakeNameServer::start(zone).await;
    let answers = server.resolver().resolve(&host("long.example"), BOTH, WAIT).await.unwrap();
    assert_eq!(answers.addresses.len(), 200);
}

#[tokio::test]
async fn resolver_reports_and_caches_each_error() {
    let server = FakeNameServer::start(zone).await;
    let resolver = server.resolver();
    for (name, error) in [
        ("nowhere.example", ResolveError::NotFound),
        ("empty.example", ResolveError::NotFound),
        ("stray.example", ResolveError::Failed("records of other names")),
        ("broken.example", ResolveError::Failed("SERVFAIL")),
        ("refused.example", ResolveError::Failed("REFUSED")),
    ] {
        assert_eq!(resolver.resolve(&host(name), BOTH, WAIT).await.unwrap_err(), error, "{name}");
        let asked = server.asked();
        assert_eq!(resolver.resolve(&host(name), BOTH, WAIT).await.unwrap_err(), error, "{name}");
        assert_eq!(server.asked(), asked, "{name}");
    }
}

#[tokio::test]
async fn resolver_returns_the_answered_family_at_the_deadline() {
    let server = FakeNameServer::start(zone).await;
    let resolver = server.resolver();
    let short = Duration::from_millis(100);
    assert_eq!(resolver.resolve(&host("silent.example"), BOTH, short).await.unwrap_err(), ResolveError::Timeout);
    let half = resolver.resolve(&host("half.example"), BOTH, short).await.unwrap();
    assert_eq!(*half.addresses, ["192.0.2.4".parse::<IpAddr>().unwrap()]);
}

#[tokio::test]
async fn resolution_delay_limits_the_wait_for_an_unanswered_family() {
    let server = FakeNameServer::start(zone).await;
    let resolver = server.resolver();
    let start = Instant::now();
    for _ in 0..20 {
        let half = resolver.resolve(&host("half.example"), BOTH, WAIT).await.unwrap();
        assert_eq!(*half.addresses, ["192.0.2.4".parse::<IpAddr>().unwrap()]);
    }
    // The first waits for 50 ms, and no other: the question has had its time.
    assert!(start.elapsed() < WAIT / 4, "{:?}", start.elapsed());
}

#[tokio::test]
async fn resolver_caches_a_late_answer_of_the_other_family() {
    let server = FakeNameServer::start(zone).await;
    let resolver = server.resolver();
    let first = resolver.resolve(&host("late.example"), BOTH, WAIT).await.unwrap();
    assert_eq!(*first.addresses, ["192.0.2.4".parse::<IpAddr>().unwrap()]);
    let deadline = Instant::now() + WAIT;
    while resolver.resolve(&host("late.example"), BOTH, WAIT).await.unwrap().addresses.len() < 2 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn resolver_queries_only_the_requested_family() {
    let server = FakeNameServer::start(zone).await;
    let resolver = server.resolver();
    let both = resolver.resolve(&host("both.example"), V4, WAIT).await.unwrap();
    assert!(both.addresses.iter().all(IpAddr::is_ipv4));
    assert_eq!(resolver.resolve(&host("six.example"), V4, WAIT).await.unwrap_err(), ResolveError::NoFamily);
    assert_eq!(resolver.resolve(&host("nowhere.example"), V4, WAIT).await.unwrap_err(), ResolveError::NotFound);
    assert!(server.asked.lock().unwrap().iter().all(|(_, kind)| *kind == RecordType::A));
}

#[tokio::test]
async fn resolver_applies_each_callers_timeout_and_caches_a_late_response() {
    let server = FakeNameServer::start(zone).await;
    let resolver = Arc::new(server.resolver());
    let (slow, short) = (host("slow.example"), Duration::from_millis(20));
    assert_eq!(resolver.resolve(&slow, V4, short).await.unwrap_err(), ResolveError::Timeout);
    // Joins the question that the first caller began, and outlives it.
    assert_eq!(resolver.resolve(&slow, V4, WAIT).await.unwrap().addresses.len(), 1);
    assert!(resolver.resolve(&slow, V4, short).await.unwrap().cached);
}

/// Every answer takes longer than it takes until the question is repeated.
#[tokio::test]
async fn resolver_accepts_a_late_response() {
    let server = FakeNameServer::start(|name, _| {
        FakeReply::Late(Duration::from_millis(2500), vec![address(name, 60, "192.0.2.4")])
    })
    .await;
    let answers = server.resolver().resolve(&host("slow.example"), V4, WAIT).await.unwrap();
    assert_eq!(answers.addresses.len(), 1);
}

#[tokio::test]
async fn resolver_queries_the_next_server_after_a_failure() {
    let good = FakeNameServer::start(zone).await;
    for code in [ResponseCode::ServFail, ResponseCode::Refused, ResponseCode::NotImp, ResponseCode::FormErr] {
        let bad = FakeNameServer::start(match code {
            ResponseCode::ServFail => |_, _| FakeReply::Code(ResponseCode::ServFail),
            ResponseCode::Refused => |_, _| FakeReply::Code(ResponseCode::Refused),
            ResponseCode::NotImp => |_, _| FakeReply::Code(ResponseCode::NotImp),
            _ => |_, _| FakeReply::Code(ResponseCode::FormErr),
        })
        .await;
        let resolver = resolver(&[bad.address, good.address], &[]);
        assert_eq!(resolver.resolve(&host("both.example"), V4, WAIT).await.unwrap().addresses.len(), 2, "{code}");
        // From now on the good one is asked first.
        let asked = bad.asked();
        assert_eq!(resolver.resolve(&host("nowhere.example"), V4, WAIT).await, Err(ResolveError::NotFound));
        assert_eq!(bad.asked(), asked, "{code}");
    }
}

#[tokio::test]
async fn resolver_queries_the_next_server_beside_one_that_is_silent_or_closed() {
    let (good, silent) = (FakeNameServer::start(zone).await, FakeNameServer::start(|_, _| FakeReply::Silence).await);
    for first in [silent.address, closed_port().await] {
        let resolver = resolver(&[first, good.address], &[]);
        assert_eq!(resolver.resolve(&host("both.example"), V4, WAIT).await.unwrap().addresses.len(), 2);
    }
}

#[tokio::test]
async fn resolver_takes_nxdomain_as_final() {
    let (first, second) =
        (FakeNameServer::start(|_, _| FakeReply::NoSuchName).await, FakeNameServer::start(zone).await);
    let resolver = resolver(&[first.address, second.address], &[]);
    assert_eq!(resolver.resolve(&host("four.example"), V4, WAIT).await, Err(ResolveError::NotFound));
    assert_eq!(second.asked(), 0);
}

#[tokio::test]
async fn resolver_takes_nxdomain_with_addresses_as_final() {
    let zone: server::FakeZone = |name, _| match name {
        "alias.example." => {
            FakeReply::NoSuchNameBeside(vec![alias(name, "gone.example."), address("gone.example.", 60, "192.0.2.4")])
        }
        _ => FakeReply::NoSuchNameBeside(vec![address(name, 60, "192.0.2.4")]),
    };
    let (first, second) = (FakeNameServer::start(zone).await, FakeNameServer::start(self::zone).await);
    let resolver = resolver(&[first.address, second.address], &[]);
    for name in ["four.example", "alias.example"] {
        assert_eq!(resolver.resolve(&host(name), V4, WAIT).await, Err(ResolveError::NotFound));
    }
    assert_eq!(second.asked(), 0);
}

#[tokio::test]
async fn resolver_repeats_a_query_without_edns() {
    let formerr: server::FakeZone =
        |name, _| FakeReply::NoEdns(ResponseCode::FormErr, vec![address(name, 60, "192.0.2.4")]);
    let notimp: server::FakeZone =
        |name, _| FakeReply::NoEdns(ResponseCode::NotImp, vec![address(name, 60, "192.0.2.4")]);
    for zone in [formerr, notimp] {
        let server = FakeNameServer::start(zone).await;
        let answers = server.resolver().resolve(&host("old.example"), V4, WAIT).await.unwrap();
        assert_eq!((answers.addresses.len(), server.asked()), (1, 2));
    }
}

#[tokio::test]
async fn resolver_distinguishes_an_outage_from_a_slow_name() {
    let silent = FakeNameServer::start(|_, _| FakeReply::Silence).await;
    let half_second = Duration::from_millis(500);
    for servers in [&[silent.address][..], &[closed_port().await]] {
        let resolver = resolver(servers, &[]);
        let error = resolver.resolve(&host("four.example"), V4, half_second).await.unwrap_err();
        assert_eq!(error, ResolveError::Outage);
        let deadline = Instant::now() + WAIT;
        while resolver.outage().is_none() {
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    // The probe for the root is answered.
    let server = FakeNameServer::start(zone).await;
    let resolver = server.resolver();
    let error = resolver.resolve(&host("silent.example"), V4, 2 * half_second).await.unwrap_err();
    assert_eq!((error, resolver.outage()), (ResolveError::Timeout, None));
}

/// A port that no server listens on.
async fn closed_port() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn resolver_sends_one_query_for_many_callers() {
    let server = FakeNameServer::start(zone).await;
    let resolver = Arc::new(server.resolver());
    let mut crowd = JoinSet::new();
    for _ in 0..200 {
        let resolver = Arc::clone(&resolver);
        crowd.spawn(async move { resolver.resolve(&host("both.example"), V4, WAIT).await.unwrap().addresses.len() });
    }
    assert!(crowd.join_all().await.into_iter().all(|addresses| addresses == 2));
    assert_eq!(server.asked(), 1);
}

#[tokio::test]
async fn resolver_answers_other_callers_after_one_gives_up() {
    let server = FakeNameServer::start(zone).await;
    let resolver = server.resolver();
    let both = host("both.example");
    let mut impatient = Box::pin(resolver.resolve(&both, V4, WAIT));
    assert!(std::future::poll_fn(|cx| std::task::Poll::Ready(impatient.as_mut().poll(cx).is_pending())).await);
    drop(impatient);
    assert_eq!(resolver.resolve(&both, V4, WAIT).await.unwrap().addresses.len(), 2);
    assert_eq!(server.asked(), 1);
}

#[tokio::test]
async fn resolver_sends_no_query_for_static_names_and_addresses() {
    let server = FakeNameServer::start(zone).await;
    let resolver = resolver(&[server.address], &[("both.example", "10.0.0.1"), ("both.example", "10.0.0.2")]);
    let fixed = resolver.resolve(&host("both.example"), BOTH, WAIT).await.unwrap();
    assert_eq!(fixed.addresses.len(), 2);
    let literal = resolver.resolve(&Host::Ip("192.0.2.9".parse().unwrap()), BOTH, WAIT).await.unwrap();
    assert_eq!(*literal.addresses, ["192.0.2.9".parse::<IpAddr>().unwrap()]);
    assert!(fixed.cached && literal.cached);
    assert_eq!(server.asked(), 0);
}

#[tokio::test]
async fn resolver_combines_the_answers_of_both_families() {
    let some = || FamilyState::Answered(FamilyAnswer::Addresses(["192.0.2.1".parse().unwrap()].into()), Instant::now());
    let none = || FamilyState::Answered(FamilyAnswer::NoData { no_such_name: false }, Instant::now());
    let gone = || FamilyState::Answered(FamilyAnswer::NoData { no_such_name: true }, Instant::now());
    let late = || FamilyState::Failed(ResolveError::Timeout);
    let outage = || FamilyState::Failed(ResolveError::Outage);
    let sick = || FamilyState::Answered(FamilyAnswer::Failed("SERVFAIL"), Instant::now());
    let failed = Err(ResolveError::Failed("SERVFAIL"));
    for (v6, v4, expected) in [
        (some(), some(), Ok(2)),
        (some(), none(), Ok(1)),
        (none(), some(), Ok(1)),
        (some(), late(), Ok(1)),
        (sick(), some(), Ok(1)),
        (gone(), some(), Ok(1)),
        (FamilyState::NotRequested, some(), Ok(1)),
        (none(), none(), Err(ResolveError::NotFound)),
        (gone(), late(), Err(ResolveError::NotFound)),
        (FamilyState::NotRequested, gone(), Err(ResolveError::NotFound)),
        (FamilyState::NotRequested, none(), Err(ResolveError::NoFamily)),
        (none(), FamilyState::NotRequested, Err(ResolveError::NoFamily)),
        (none(), late(), Err(ResolveError::Timeout)),
        (late(), none(), Err(ResolveError::Timeout)),
        (FamilyState::NotRequested, outage(), Err(ResolveError::Outage)),
        (late(), sick(), failed),
        (sick(), late(), failed),
        (sick(), none(), failed),
    ] {
        assert_eq!(combine(&v6, &v4).map(|addresses| addresses.len()), expected);
    }
}
