//! Name servers that do not answer, answer with addresses of special purpose, or flap.
//! Do only the names that need DNS fail, and does outgate connect to no false address?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::bystander::{Fault, Harm};
use crate::support::configuration::Config;
use crate::support::name_server::{A, NameServer, Query, Reply};
use crate::support::scene::{Scene, scene_of};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const SERVFAIL: u8 = 2;
/// The longest wait of a client, on a busy machine. The timeout of a query is 300 ms.
const WAIT_MAX: Duration = Duration::from_secs(15);

/// The usual scene with a name server. The names of the healthy target are pinned. Those below `example.net` are not.
fn scene(server: &NameServer) -> Scene {
    let server = [server.address.to_string()];
    scene_of(&|config: &Config| {
        config
            .and("[circuit]\nfailures = 0\n[timeouts]\ndns = \"300ms\"\n")
            .push("routes.plain.hosts", "*.example.net")
            .add("resolver.servers", server.clone())
    })
}

/// Delivers to names that no delivery used before, beside the healthy target. Returns the outcomes.
fn run(name: &'static str, zone: impl Fn(&Query) -> Reply + Send + Sync + 'static) -> (Scene, Harm) {
    run_with(name, NameServer::start(zone))
}

fn run_with(name: &'static str, server: NameServer) -> (Scene, Harm) {
    let scene = scene(&server);
    let fault = Fault { name, harmed: "clients of names that are not cached", reported: "records, metrics" };
    let port = scene.plain.port();
    let harm = fault.run_by_law(&scene.outgate, &scene.plain_url(), &[], |harm| {
        let number = AtomicUsize::new(0);
        let next = || format!("http://n{}.example.net:{port}/in", number.fetch_add(1, Ordering::Relaxed));
        harm.send_for_a_period(scene.outgate.proxy, &next);
    });
    assert!(harm.longest < WAIT_MAX, "a client waited {:?}", harm.longest);
    assert!(!server.queries().is_empty(), "the name server was asked");
    (scene, harm)
}

fn codes(harm: &Harm) -> BTreeSet<&str> {
    harm.counts.keys().map(String::as_str).collect()
}

#[test]
fn name_server_that_does_not_answer_harms_names_that_need_it_only() {
    let (_scene, harm) = run("DNS times out", |_| Reply::Timeout);
    assert_eq!(codes(&harm), BTreeSet::from(["name_timeout"]));
}

/// The name server says over UDP that its answer is too long, takes the connection, and sends nothing.
#[test]
fn name_server_that_hangs_over_tcp_harms_names_that_need_it_only() {
    let (tcp, udp) = loop {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()) {
            break (tcp, udp);
        }
    };
    let accepted = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&accepted);
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for stream in tcp.incoming().map_while(Result::ok) {
            counted.fetch_add(1, Ordering::Relaxed);
            held.push(stream);
        }
    });
    let (_scene, harm) = run_with("DNS hangs over TCP", NameServer::on_socket(udp, |_| Reply::Truncated));
    assert_eq!(codes(&harm), BTreeSet::from(["name_timeout"]));
    assert!(accepted.load(Ordering::Relaxed) > 0, "outgate asked over TCP");
}

/// RFC 6890: this network, private, shared, link-local with the metadata service, documentation, multicast.
#[test]
fn false_dns_answers_are_refused_and_never_connected_to() {
    const FALSE: [[u8; 4]; 7] = [
        [0, 0, 0, 0],
        [10, 0, 0, 1],
        [100, 64, 0, 1],
        [169, 254, 169, 254],
        [192, 0, 2, 1],
        [192, 168, 0, 1],
        [224, 0, 0, 1],
    ];
    let next = AtomicUsize::new(0);
    let (scene, harm) = run("DNS gives addresses of special purpose", move |query| match query.kind {
        A => Reply::Address(IpAddr::from(FALSE[next.fetch_add(1, Ordering::Relaxed) % FALSE.len()])),
        _ => Reply::NoData,
    });
    assert_eq!(codes(&harm), BTreeSet::from(["target_forbidden"]));
    let refused = scene.outgate.records(0).into_iter().filter(|record| record["code"] == "target_forbidden");
    for record in refused {
        assert!(record["attempts"].as_array().is_none_or(Vec::is_empty), "an attempt to connect: {record}");
    }
}

#[test]
fn flapping_name_server_fails_only_what_it_does_not_answer() {
    let (right, wrong) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (answered, failed) = (Arc::clone(&right), Arc::clone(&wrong));
    // A name is answered by its number: outgate may ask for one name several times.
    let (_scene, harm) = run("DNS flaps", move |query| {
        let number: usize = query.name[1..].split('.').next().unwrap().parse().unwrap();
        let is_up = (number / 5).is_multiple_of(2);
        if is_up { &answered } else { &failed }.fetch_add(1, Ordering::Relaxed);
        match (is_up, query.kind) {
            (false, _) => Reply::Code(SERVFAIL),
            (true, A) => Reply::Address(HERE),
            (true, _) => Reply::NoData,
        }
    });
    assert!(codes(&harm).is_subset(&BTreeSet::from(["delivered", "name_timeout"])), "{:?}", harm.counts);
    assert!(harm.counts.contains_key("delivered"), "{:?}", harm.counts);
    let has_failed = wrong.load(Ordering::Relaxed) > 0;
    assert!(right.load(Ordering::Relaxed) > 0 && (!has_failed || harm.counts.contains_key("name_timeout")));
}
