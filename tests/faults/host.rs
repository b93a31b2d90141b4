//! Faults of the host: no descriptors left, a process that is stopped for a time, clients that are many and slow, and
//! an admin client that hangs.
//! Does traffic go on, and is what the fault closes or refuses counted?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::bystander::{Fault, for_a_period, pick};
use crate::support::http2::{END_HEADERS, GOAWAY, HEADERS, RST_STREAM, connect_http2, error_code, frame, frames, head};
use crate::support::pki::Pki;
use crate::support::receiver::{Receiver, ok};
use crate::support::scene::{config, folder, scene, scene_of};
use crate::support::{Client, Outgate, eventually};

/// ENHANCE_YOUR_CALM (RFC 9113 §7).
const ENHANCE_YOUR_CALM: u32 = 11;

/// Returns a connection from a loopback address, whose reads do not wait.
fn connect_from(source: [u8; 4], to: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

#[test]
fn exhausted_descriptors_close_idle_clients_and_no_delivery() {
    let plain = Receiver::plain(ok());
    // Connections of identified clients are closed last. The idle ones come from another address.
    let text =
        config(&plain, &plain, "").add("server.max_connections", 500).add("clients.local.networks", ["127.0.0.1/32"]);
    // RLIMIT_NOFILE: (316 - 256) / 4 = 15 connections.
    let outgate = Outgate::run_limited(folder(&Pki::new()), &text, 316);
    let fault = Fault {
        name: "descriptors exhausted",
        harmed: "idle clients beyond 15",
        reported: "outgate_client_connections_closed_total{reason=\"unidentified\"}",
    };
    let url = format!("http://plain.example:{}/in", plain.port());
    fault.run_by_law(&outgate, &url, &[], |_| {
        for_a_period(|| {
            let idle: Vec<Socket> = (0..40).map(|_| connect_from([127, 0, 0, 9], outgate.proxy)).collect();
            let is_closed = |socket: &Socket| matches!((&*socket).read(&mut [0]), Ok(0));
            eventually("idle clients are closed", || idle.iter().filter(|socket| is_closed(socket)).count() >= 25);
        });
    });
    assert_eq!(outgate.admin("/healthz").status, 200);
    let closed = "outgate_client_connections_closed_total{reason=\"unidentified\"} ";
    let metrics = outgate.admin("/metrics").text();
    let count = metrics.lines().find_map(|line| line.strip_prefix(closed)).unwrap();
    assert!(count.parse::<u64>().unwrap() >= 25, "{count}");
}

#[test]
fn stopped_process_delays_deliveries_and_loses_none() {
    let scene = scene();
    let fault = Fault { name: "SIGSTOP", harmed: "every delivery, until SIGCONT", reported: "nothing: nothing failed" };
    fault.run_by_law(&scene.outgate, &scene.plain_url(), &[], |_| {
        scene.outgate.signal("STOP");
        std::thread::sleep(pick(Duration::from_secs(1), Duration::from_secs(15))); // the fault
        scene.outgate.signal("CONT");
        assert_eq!(scene.outgate.admin("/readyz").status, 200);
    });
}

#[test]
fn many_slow_clients_harm_no_other_client() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    // outgate accepts a quarter of RLIMIT_NOFILE, less 64: 10,000 connections need a limit of 41,000.
    let most = usize::try_from(limit.maximum.unwrap_or(1 << 20) / 4).unwrap() - 128;
    let count = pick(300, 10_000).min(most);
    let scene = scene_of(&|config| config.add("server.max_connections_per_ip", 20_000));
    let fault = Fault {
        name: "many slow clients",
        harmed: "the slow clients (300; 10,000 in the long form where RLIMIT_NOFILE allows)",
        reported: "outgate_client_connections",
    };
    fault.run_by_law(&scene.outgate, &scene.plain_url(), &[], |_| {
        let mut slow: Vec<TcpStream> = (0..count).map(|_| TcpStream::connect(scene.outgate.proxy).unwrap()).collect();
        let mut text = "POST http://plain.example/ HTTP/1.1\r\nX: ".bytes().chain(std::iter::repeat(b'x'));
        // A byte from each client in turn.
        for_a_period(|| {
            let byte = [text.next().unwrap()];
            slow.iter_mut().for_each(|client| client.write_all(&byte).expect("a slow client stays connected"));
        });
        let metrics = scene.outgate.admin("/metrics").text();
        let open = metrics.lines().find_map(|line| line.strip_prefix("outgate_client_connections ")).unwrap();
        assert!(open.parse::<usize>().unwrap() >= count, "{open} of {count} connections are held");
        println!("{count} slow clients");
    });
    scene.outgate.wait_for_metric("outgate_client_connections 0");
}

#[test]
fn http2_rapid_reset_harms_its_own_connection_only() {
    let scene = scene();
    let fault = Fault {
        name: "HTTP/2 rapid reset",
        harmed: "the connection of the flood",
        reported: "GOAWAY(ENHANCE_YOUR_CALM)",
    };
    let one = |number: u32| {
        let stream = 2 * number + 1;
        let open = frame(HEADERS, END_HEADERS, stream, &head("https://nowhere.example/in"));
        [open, frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
    };
    let flood: Vec<u8> = (0..10_000).flat_map(one).collect();
    fault.run(scene.outgate.proxy, &scene.plain_url(), |_| {
        for_a_period(|| {
            let mut client = connect_http2(&scene.outgate);
            client.try_send(&flood);
            let received = frames(&client.rest());
            assert_eq!(error_code(&received, GOAWAY), Some(ENHANCE_YOUR_CALM), "{:?}", received.last());
        });
    });
    scene.outgate.wait_for_metric("outgate_client_connections 0");
}

#[test]
fn hanging_admin_clients_harm_no_delivery() {
    let scene = scene_of(&|config| config.clone());
    let fault = Fault {
        name: "admin clients hang",
        harmed: "no client",
        reported: "outgate reports nothing, because no delivery fails",
    };
    fault.run_by_law(&scene.outgate, &scene.plain_url(), &[], |_| {
        let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let mut hanging: Vec<Client> = (0..8).map(|_| Client::connect(scene.outgate.admin)).collect();
        for (number, client) in hanging.iter_mut().enumerate() {
            // Half of a request, or many requests whose responses stay unread.
            let text = if number % 2 == 0 { request[..20].to_owned() } else { request.repeat(20) };
            client.try_send(text);
        }
        for_a_period(|| assert_eq!(scene.outgate.admin("/healthz").status, 200));
    });
}
