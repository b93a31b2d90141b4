//! TLS sessions with targets through the whole proxy.
//! Is a stored session resumed where many connections to a target begin together?

use crate::support;

use std::sync::{Arc, Barrier};

use support::Outgate;
use support::pki::Pki;
use support::receiver::{Reaction, Receiver};
use support::scene::folder;

use super::policies::{CLOSING, ClientCertificate, ROOTS, send, server, text};

/// The target issues two tickets in each handshake, and a delivery uses one. A response waits until all deliveries have a
/// connection.
#[test]
fn tls_sessions_are_resumed_by_many_deliveries_at_once() {
    const PARALLEL: usize = 16;
    let together = Arc::new(Barrier::new(PARALLEL));
    let reaction: Reaction = Arc::new(move |request| {
        if request.body == b"together" {
            together.wait();
        }
        (CLOSING.into(), false)
    });
    let pki = Pki::new();
    let (target, handshakes) =
        Receiver::tls_with(server(pki.leaf(&["hook.example"]), ClientCertificate::NotRequested, &pki), reaction);
    let outgate = Outgate::run(folder(&pki), &text(target.port(), &[("one", ROOTS)]));
    for _ in 0..PARALLEL {
        assert_eq!(send(&outgate, target.port(), "/one", "").status, 200);
    }
    let resumed = || handshakes.lock().unwrap().iter().filter(|handshake| handshake.resumed).count();
    assert_eq!(resumed(), PARALLEL - 1);
    let url = format!("https://hook.example:{}/one", target.port());
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| assert_eq!(outgate.post(&url, "", "together").status, 200));
        }
    });
    assert_eq!(resumed(), PARALLEL - 1 + PARALLEL);
}
