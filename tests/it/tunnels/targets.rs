//! Tunnels to common receivers that accept one connection at a time and speak TLS themselves.
//! Does a CONNECT open to each of them, and does the webhook inside arrive?
//!
//! Needs what `tests/clients/install` installs: skipped where it is missing, required with `OUTGATE_TEST_ALL=1`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use support::clients::Workshop;
use support::pki::Pki;
use support::scene::folder;
use support::tunnel::trusting;
use support::tunnel_scene::config;
use support::{Folder, Outgate, post};

/// A receiver's process. Dropping it ends it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // By TERM: gunicorn ends its worker.
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

/// Starts a receiver, and gives its port.
fn start(workshop: &Workshop, pki: &Pki, how: &str) -> (Running, u16, Folder) {
    let (identity, files) = (pki.leaf(&["tunnel.example"]), Folder::new());
    let certificate = files.write("chain.pem", identity.chain_pem());
    let key = files.write("key.pem", identity.key_pem());
    let mut command = workshop.python("serial_receiver");
    command.args([&certificate, &key]).arg(how).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut running = Running(command.spawn().unwrap());
    let mut lines = BufReader::new(running.0.stderr.take().unwrap()).lines().map_while(Result::ok);
    let port = lines.find_map(|line| {
        let rest = line.split_once("https://127.0.0.1:")?.1;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    });
    // Whatever else it says is read, so that it never waits for us.
    std::thread::spawn(move || lines.for_each(drop));
    (running, port.unwrap_or_else(|| panic!("{how} does not say where it listens")), files)
}

#[test]
fn tunnel_opens_to_gunicorn_flask_and_http_server() {
    let Some(workshop) = Workshop::open() else { return };
    for how in ["gunicorn", "flask", "http.server"] {
        let pki = Pki::new();
        let (_running, port, _files) = start(&workshop, &pki, how);
        let outgate = Outgate::run(folder(&pki), &config(port, ""));
        // The first verifies the target, the others do not.
        for _ in 0..6 {
            let (client, answer) = outgate.tunnel(&format!("tunnel.example:{port}"), "");
            assert_eq!(answer.status, 200, "{how}: {answer:?}");
            let (mut inside, _) = client.secure("tunnel.example", trusting(&pki.pem)).unwrap();
            inside.send(post("/in", "Connection: close\r\n", how));
            assert_eq!(inside.answer().text(), how);
        }
    }
}
