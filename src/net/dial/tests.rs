//! Tests of dialling over real sockets of 127.0.0.0/8.
//! Does the target see the chosen source address?

use std::fs;
use std::net::{Ipv4Addr, TcpListener};

use socket2::{Domain, Socket as RawSocket, Type};

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn hop(from: &str, to: SocketAddr) -> Hop {
    Hop::for_test(ip(from), to)
}

fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Returns a port without a listener. The socket is bound, so that no other process takes the port.
fn closed_port() -> (RawSocket, SocketAddr) {
    let socket = RawSocket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

/// Returns a listener whose queue is full, so that the kernel drops every further SYN.
fn black_hole() -> (Vec<RawSocket>, SocketAddr) {
    let (socket, address) = closed_port();
    socket.listen(0).unwrap();
    let mut held = vec![socket];
    for _ in 0..2 {
        let filler = RawSocket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        filler.set_nonblocking(true).unwrap();
        drop(filler.connect(&address.into()));
        held.push(filler);
    }
    (held, address)
}

/// Every source is still in the pool.
fn any_source(_: IpAddr) -> bool {
    true
}

fn deadline_in(milliseconds: u64) -> Instant {
    Instant::now() + Duration::from_millis(milliseconds)
}

#[tokio::test]
async fn dial_connects_from_the_chosen_source() {
    let (listener, to) = listen();
    for from in ["127.0.7.3", "127.200.1.1", "127.0.0.1"] {
        let connected = dial(&[hop(from, to)], any_source, deadline_in(2000)).await.outcome.unwrap();
        let (accepted, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip(), ip(from));
        assert_eq!(connected.socket.local_addr().unwrap(), peer);
        assert_eq!(accepted.local_addr().unwrap(), connected.hop.to());
    }
}

#[tokio::test]
async fn dial_connects_from_the_chosen_ipv6_source() {
    let Ok(listener) = TcpListener::bind("[::1]:0") else { return };
    let to = listener.local_addr().unwrap();
    let connected = dial(&[hop("::1", to)], any_source, deadline_in(2000)).await.outcome.unwrap();
    assert_eq!(connected.socket.local_addr().unwrap().ip(), ip("::1"));
}

#[tokio::test]
async fn dial_tries_the_next_hop_at_once_after_a_refused_connect() {
    let (_closed, refused) = closed_port();
    let (_listener, to) = listen();
    let start = Instant::now();
    let connected =
        dial(&[hop("127.0.0.2", refused), hop("127.0.0.3", to)], any_source, deadline_in(5000)).await.outcome.unwrap();
    assert_eq!(connected.hop, hop("127.0.0.3", to));
    assert!(start.elapsed() < ATTEMPT_DELAY, "a refused connect must not wait for the delay");
    let report = dial(&[hop("127.0.0.2", refused)], any_source, deadline_in(5000)).await;
    assert!(matches!(report.outcome, Err((DialError::Refused, _))));
    assert!(report.unusable_sources.is_empty());
}

#[tokio::test]
async fn dial_times_out_at_the_deadline() {
    let (_held, silent) = black_hole();
    let start = Instant::now();
    let report = dial(&[hop("127.0.0.2", silent)], any_source, deadline_in(100)).await;
    assert!(matches!(report.outcome, Err((DialError::Timeout, _))));
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn dial_starts_the_next_hop_after_the_attempt_delay_and_closes_the_loser() {
    let (_held, silent) = black_hole();
    let (_listener, to) = listen();
    let start = Instant::now();
    let connected =
        dial(&[hop("127.99.0.2", silent), hop("127.99.0.3", to)], any_source, deadline_in(5000)).await.outcome.unwrap();
    assert_eq!(connected.hop, hop("127.99.0.3", to));
    assert!(start.elapsed() >= ATTEMPT_DELAY);
    // /proc/net/tcp has addresses in hexadecimal, the local one first. The port of the target distinguishes this test's
    // connections from those of another run on the same host.
    let seen = |from: Ipv4Addr, to: SocketAddr| {
        let [from, host] = [from, Ipv4Addr::LOCALHOST].map(|address| u32::from_ne_bytes(address.octets()));
        let (local, remote) = (format!("{from:08X}:"), format!("{host:08X}:{:04X}", to.port()));
        let table = fs::read_to_string("/proc/self/net/tcp").unwrap();
        table.lines().any(|line| {
            let mut words = line.split_whitespace().skip(1);
            words.next().is_some_and(|word| word.starts_with(&local)) && words.next() == Some(&remote)
        })
    };
    assert!(!seen(Ipv4Addr::new(127, 99, 0, 2), silent), "the loser is closed");
    assert!(seen(Ipv4Addr::new(127, 99, 0, 3), to), "and the table would have shown it");
}

#[tokio::test]
async fn dial_reports_an_unusable_source_and_never_replaces_it() {
    let (listener, to) = listen();
    listener.set_nonblocking(true).unwrap();
    let report = dial(&[hop("192.0.2.77", to), hop("192.0.2.77", to)], any_source, deadline_in(2000)).await;
    assert!(matches!(report.outcome, Err((DialError::NoSource, _))));
    assert_eq!(report.unusable_sources, [ip("192.0.2.77")]);
    assert!(listener.accept().is_err(), "nothing has reached the target");

    let report = dial(&[hop("192.0.2.77", to), hop("127.0.0.4", to)], any_source, deadline_in(2000)).await;
    assert_eq!(report.outcome.unwrap().hop.from(), ip("127.0.0.4"));
    assert_eq!(report.unusable_sources, [ip("192.0.2.77")]);
}

#[tokio::test]
async fn dial_returns_the_most_specific_error() {
    let (_closed, refused) = closed_port();
    let (_held, silent) = black_hole();
    let (_listener, to) = listen();
    let error_of = async |hops: &[Hop]| dial(hops, any_source, deadline_in(400)).await.outcome.unwrap_err().0;
    let [absent, closed, silent_hop] = [hop("192.0.2.77", to), hop("127.0.0.2", refused), hop("127.0.0.2", silent)];
    assert!(matches!(error_of(&[absent, closed]).await, DialError::Refused));
    assert!(matches!(error_of(&[closed, silent_hop]).await, DialError::Refused));
    assert!(matches!(error_of(&[silent_hop, absent]).await, DialError::Timeout));
    assert!(matches!(error_of(&[]).await, DialError::NoSource));
}

#[tokio::test]
async fn dial_reports_every_attempt_and_the_decisive_hop() {
    let (_closed, refused) = closed_port();
    let (_held, silent) = black_hole();
    let (_listener, to) = listen();
    let [absent, closed, silent_hop, good] =
        [hop("192.0.2.77", to), hop("127.0.0.2", refused), hop("127.0.0.3", silent), hop("127.0.0.4", to)];
    for (hops, decisive, expected) in [
        (&[absent, closed, silent_hop][..], Some(closed), &["no_source", "refused", "timeout"][..]),
        (&[silent_hop, absent], Some(silent_hop), &["no_source", "timeout"]),
        (&[silent_hop, good], Some(good), &["connected", "abandoned"]),
        (&[closed, closed], Some(closed), &["refused", "refused"]),
        (&[], None, &[]),
    ] {
        let report = dial(hops, any_source, deadline_in(400)).await;
        let outcomes: Vec<_> = report.attempts.iter().map(|attempt| attempt.outcome).collect();
        assert_eq!((report.hop(), outcomes.as_slice()), (decisive, expected), "{hops:?}");
    }
}

#[tokio::test]
async fn dial_makes_no_attempt_from_a_source_that_was_removed_since() {
    let (_held, silent) = black_hole();
    let (listener, to) = listen();
    listener.set_nonblocking(true).unwrap();
    let hops = [hop("127.0.0.2", silent), hop("127.0.0.3", to)];
    // The second source is not in the pool any more when its attempt would start.
    let report = dial(&hops, |source| source == ip("127.0.0.2"), deadline_in(400)).await;
    let outcomes: Vec<_> = report.attempts.iter().map(|attempt| (attempt.hop, attempt.outcome)).collect();
    assert_eq!((report.hop(), outcomes), (Some(hops[0]), vec![(hops[0], "timeout")]));
    let report = dial(&hops, |_| false, deadline_in(400)).await;
    assert!(matches!(report.outcome, Err((DialError::NoSource, None))), "{:?}", report.outcome);
    assert!(report.attempts.is_empty() && report.unusable_sources.is_empty(), "the kernel has refused no source");
    assert!(listener.accept().is_err(), "nothing has reached the target");
}

#[tokio::test]
async fn dial_rejects_a_source_of_the_other_family() {
    let (listener, to) = listen();
    listener.set_nonblocking(true).unwrap();
    let mapped = SocketAddr::new(Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(), to.port());
    for hops in [[hop("::1", mapped)], [hop("::1", to)], [hop("127.0.0.2", mapped)]] {
        assert!(dial(&hops, any_source, deadline_in(2000)).await.outcome.is_err(), "{hops:?}");
    }
    assert!(listener.accept().is_err(), "nothing has reached the target");
}

#[test]
fn connect_errors_are_classified_by_errno() {
    let cases = [
        (libc::ECONNREFUSED, "Refused"),
        (libc::ETIMEDOUT, "Timeout"),
        (libc::ENETUNREACH, "Unreachable"),
        (libc::EHOSTUNREACH, "Unreachable"),
        (libc::EACCES, "Prohibited"),
        (libc::EPERM, "Prohibited"),
        (libc::EADDRNOTAVAIL, "NoSource"),
        (libc::EMFILE, "Other"),
    ];
    for (errno, error) in cases {
        let actual = format!("{:?}", classify_connect_error(io::Error::from_raw_os_error(errno)));
        assert!(actual.starts_with(error), "{errno}: {actual}");
    }
}

#[tokio::test]
async fn check_source_accepts_local_addresses_only() {
    assert!(check_source(ip("127.1.2.3")).is_ok());
    for absent in ["192.0.2.77", "2001:db8::77"] {
        assert!(check_source(ip(absent)).is_err(), "{absent}");
    }
}
