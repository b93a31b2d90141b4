//! Targets that flood a connection with TLS records which carry no data.
//! Do only the deliveries to that target fail?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use rustls::ServerConfig;

use crate::bystander::{Fault, Processor, circuit, pin};
use crate::support::Outgate;
use crate::support::pki::Pki;
use crate::support::receiver::{Receiver, ok, respond_and_close};
use crate::support::scene::{config, folder};

/// Starts a target that sends as many session tickets after each handshake.
fn target(pki: &Pki, tickets: usize) -> Receiver {
    let identity = pki.leaf(&["hook.example"]);
    let mut server = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(identity.chain, identity.key)
        .unwrap();
    server.send_tls13_tickets = tickets;
    let response = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
    Receiver::tls_with(server, respond_and_close(response)).0
}

#[test]
fn target_that_floods_session_tickets_harms_its_own_clients_only() {
    let pki = Pki::new();
    let (good, plain) = (Receiver::tls(pki.leaf(&["hook.example"]), ok()), Receiver::plain(ok()));
    let of_the_fault = pin(Processor::Fault);
    let targets = [2, 5000].map(|tickets| target(&pki, tickets));
    drop(of_the_fault);
    let own = pin(Processor::Own);
    let [control, bad] = targets.each_ref().map(Receiver::port);
    let text =
        config(&good, &plain, "").push("routes.signed.ports", control).push("routes.signed.ports", bad).and(circuit());
    let outgate = Outgate::run(folder(&pki), &text);
    let fault = Fault {
        name: "target floods TLS session tickets",
        harmed: "clients of this target",
        reported: "records, outgate_deliveries_total",
    };
    let healthy = format!("http://plain.example:{}/in", plain.port());
    let [control, bad] = [control, bad].map(|port| format!("https://hook.example:{port}/in"));
    let lost = ("connection_lost", "connection_lost");
    let harm = fault.run_load_by_law(&outgate, &healthy, &[lost], [&control, &bad]);
    drop(own);
    assert!(!harm.counts.is_empty(), "{:?}", harm.counts);
    outgate.wait_for_metric("outgate_client_connections 0");
}
