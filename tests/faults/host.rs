//! Faults of the host: no descriptors left, a process that is stopped for a time, clients that are many and slow, and
//! an admin client that hangs.
//! Does traffic go on, and is what the fault closes or refuses counted?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::bystander::{Fault, for_a_period, pick};
use crate::support::pki::Pki;
use crate::support::receiver::{Receiver, ok};
use crate::support::scene::{config, folder, scene_of};
use crate::support::scrape::Scrape;
use crate::support::{Client, Outgate, TEST_TIMEOUT, eventually, post};

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

/// The process stops for longer than the timeouts of deliveries in flight and of idle clients. Responses and requests that
/// have arrived meanwhile count, although the timeouts have ended.
#[test]
fn stopped_process_delays_deliveries_and_loses_none() {
    const IN_FLIGHT: usize = 20;
    const TIMEOUT: &str = "4s";
    // A delivery that outgate has not sent when it is stopped may still be sent.
    const TOTAL: &str = "3m";
    let (stopped, held) = (pick(Duration::from_secs(5), Duration::from_secs(60)), Arc::new(AtomicBool::new(true)));
    let begun = Arc::new(AtomicUsize::new(0));
    let (wait, count) = (Arc::clone(&held), Arc::clone(&begun));
    let pki = Pki::new();
    let slow = Receiver::tls(
        pki.leaf(&["hook.example"]),
        Arc::new(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            eventually("the process is stopped", || !wait.load(Ordering::Relaxed));
            (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(), true)
        }),
    );
    let plain = Receiver::plain(ok());
    let text = config(&slow, &plain, &format!("[timeouts]\nidle = \"{TIMEOUT}\"\ntotal = \"{TOTAL}\"\n"));
    let text = text.set("routes.signed.timeouts.response", TIMEOUT);
    let outgate = Outgate::run(folder(&pki), &text);
    let fault = Fault { name: "SIGSTOP", harmed: "every delivery, until SIGCONT", reported: "nothing: nothing failed" };
    let url = format!("http://plain.example:{}/in", plain.port());
    let signed = format!("https://hook.example:{}/in", slow.port());
    let harm = fault.run_by_law(&outgate, &url, &[], |harm| {
        let deliver = || {
            let mut client = Client::connect(outgate.proxy);
            client.set_patience(stopped + TEST_TIMEOUT);
            client.send(post(&signed, "", "x"));
            client
        };
        let mut in_flight: Vec<Client> = (0..IN_FLIGHT).map(|_| deliver()).collect();
        eventually("the target has the requests", || begun.load(Ordering::Relaxed) == IN_FLIGHT);
        let mut idle = Client::connect(outgate.proxy);
        idle.send(post(&url, "", "x"));
        assert_eq!(idle.response().status, 200);
        outgate.signal("STOP");
        harm.wait_for(|| {
            held.store(false, Ordering::Relaxed);
            idle.send(post(&url, "", "x"));
            std::thread::sleep(stopped); // the fault
            outgate.signal("CONT");
            for client in in_flight.iter_mut().chain([&mut idle]) {
                let response = client.response();
                assert_eq!((response.status, response.code()), (200, ""), "{response:?}");
            }
        });
        harm.add("delivered", IN_FLIGHT as u64 + 2);
        assert_eq!(outgate.admin("/readyz").status, 200);
    });
    assert!(harm.longest >= stopped, "{:?}", harm.longest);
}

/// Raises the limit of descriptors of this process, and of those that it starts, as far as the user may.
fn raise_descriptor_limit() -> usize {
    let limit = |count| rustix::process::Rlimit { current: count, maximum: count };
    let now = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let wanted = now.map(|now| now.max(1 << 16));
    if rustix::process::setrlimit(rustix::process::Resource::Nofile, limit(wanted)).is_err() {
        rustix::process::setrlimit(rustix::process::Resource::Nofile, limit(now)).unwrap();
    }
    let raised = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    usize::try_from(raised.unwrap_or(1 << 16)).unwrap()
}

/// The slow clients are more than outgate holds where RLIMIT_NOFILE is below 41,000: it holds a quarter of the limit. For
/// each further one it closes the oldest.
#[test]
fn many_slow_clients_harm_no_other_client() {
    let limit = raise_descriptor_limit();
    // This process has descriptors of its own, for the bystander and its target.
    let count = 10_000.min(limit - 1000);
    let scene = scene_of(&|config| config.add("server.max_connections_per_ip", 20_000));
    // outgate holds (limit - 256) / 4 connections. Up to 100 of them are those of the bystander.
    let held = count.min((limit - 256) / 4 - 100);
    let fault = Fault {
        name: "many slow clients",
        harmed: "the oldest of 10,000 slow clients, where outgate may not hold them all",
        reported: "outgate_client_connections, outgate_client_connections_closed_total{reason=\"unidentified\"}",
    };
    fault.run_by_law(&scene.outgate, &scene.plain_url(), &[], |_| {
        let mut slow: Vec<Socket> = (0..count).map(|_| connect_from([127, 0, 0, 9], scene.outgate.proxy)).collect();
        let mut text = "POST http://plain.example/ HTTP/1.1\r\nX: ".bytes().chain(std::iter::repeat(b'x'));
        // A byte from each client in turn, about twice a second.
        for_a_period(|| {
            let byte = [text.next().unwrap()];
            slow.retain(|client| (&*client).write(&byte).is_ok_and(|written| written == 1));
            std::thread::sleep(Duration::from_millis(500)); // the clients are slow
        });
        let open = || Scrape::of(&scene.outgate).sum("outgate_client_connections", &[]) as usize;
        eventually("as many slow connections are held as outgate may hold", || open() >= held);
        println!("outgate holds {} of {count} slow clients", open());
        assert!(slow.len() >= held, "outgate closed all but {} of {held}", slow.len());
    });
    scene.outgate.wait_for_metric("outgate_client_connections 0");
    let closed =
        Scrape::of(&scene.outgate).sum("outgate_client_connections_closed_total", &[("reason", "unidentified")]);
    assert_eq!(closed > 0.0, count > held + 100, "{closed}");
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
