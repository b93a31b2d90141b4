//! Targets that send TLS records of no use after the handshake.
//! Does such a target harm its own deliveries only, and what is recorded?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;

use rustls::{ServerConfig, ServerConnection};
use support::Outgate;
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::folder;

use super::policies::{ClientCertificate, ROOTS, server, text};

fn server_config(pki: &Pki) -> ServerConfig {
    server(pki.leaf(&["hook.example"]), ClientCertificate::NotRequested, pki)
}

#[test]
fn target_that_floods_session_tickets_loses_its_connection() {
    for (tickets, status) in [(100, 200), (1000, 502)] {
        let pki = Pki::new();
        let mut config = server_config(&pki);
        config.send_tls13_tickets = tickets;
        let (target, _) = Receiver::tls_with(config, ok());
        let outgate = Outgate::run(folder(&pki), &text(target.port(), &[("one", ROOTS)]));
        let response = outgate.post(&format!("https://hook.example:{}/one", target.port()), "", "x");
        assert_eq!(response.status, status, "{tickets} tickets: {response:?}");
        let record = &outgate.records(1)[0];
        let cause = record["cause"].as_str().unwrap_or_default();
        assert_eq!(cause.contains("too many TLS session tickets"), status == 502, "{record}");
    }
}

/// The target reads the whole request, and then reports that a record of the client is damaged. That is no rejection of the
/// handshake: the webhook may have arrived.
#[test]
fn alert_after_the_request_is_not_taken_for_a_rejected_handshake() {
    let pki = Pki::new();
    let (listener, config) = (TcpListener::bind("127.0.0.1:0").unwrap(), Arc::new(server_config(&pki)));
    let port = listener.local_addr().unwrap().port();
    let target = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut session = ServerConnection::new(config).unwrap();
        let (mut stream, mut received) = (rustls::Stream::new(&mut session, &mut socket), Vec::new());
        while !received.ends_with(b"\r\n\r\nx") {
            let mut piece = [0; 1024];
            let length = stream.read(&mut piece).unwrap();
            received.extend_from_slice(&piece[..length]);
        }
        let damaged_record = [&[23, 3, 3, 0, 32][..], &[0; 32]].concat();
        session.read_tls(&mut damaged_record.as_slice()).unwrap();
        session.process_new_packets().unwrap_err();
        let mut alert = Vec::new();
        session.write_tls(&mut alert).unwrap();
        socket.write_all(&alert).unwrap();
        let _ = socket.read_to_end(&mut Vec::new());
    });
    let outgate = Outgate::run(folder(&pki), &text(port, &[("one", ROOTS)]));
    let response = outgate.post(&format!("https://hook.example:{port}/one"), "", "x");
    assert_eq!((response.status, response.code()), (502, "connection_lost"), "{response:?}");
    let record = &outgate.records(1)[0];
    assert!(record["cause"].as_str().unwrap().contains("BadRecordMac"), "{record}");
    target.join().unwrap();
}
