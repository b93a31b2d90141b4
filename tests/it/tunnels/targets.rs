//! Tunnels to common receivers that accept one connection at a time and speak TLS themselves.
//! Does a CONNECT open to each of them, and does the webhook inside arrive?
//!
//! Needs what `tests/clients/install` installs: skipped where it is missing, required with `OUTGATE_TEST_ALL=1`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use support::clients::InstalledClients;
use support::pki::Pki;
use support::scene::folder;
use support::tunnel::tls_config_trusting;
use support::tunnel_scene::config;
use support::{Folder, Outgate, post};

/// A receiver's process. Dropping it ends it.
struct RunningServer(Child);

impl Drop for RunningServer {
    fn drop(&mut self) {
        // TERM lets gunicorn end its worker.
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

/// Starts a receiver, and returns its port.
fn start(installed: &InstalledClients, pki: &Pki, server: &str) -> (RunningServer, u16, Folder) {
    let (identity, files) = (pki.leaf(&["tunnel.example"]), Folder::new());
    let certificate = files.write("chain.pem", identity.chain_pem());
    let key = files.write("key.pem", identity.key_pem());
    let mut command = installed.python("serial_receiver");
    command.args([&certificate, &key]).arg(server).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut running = RunningServer(command.spawn().unwrap());
    let mut lines = BufReader::new(running.0.stderr.take().unwrap()).lines().map_while(Result::ok);
    let port = lines.find_map(|line| {
        let rest = line.split_once("https://127.0.0.1:")?.1;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    });
    // The rest of stderr is read, so that the receiver never blocks.
    std::thread::spawn(move || lines.for_each(drop));
    (running, port.unwrap_or_else(|| panic!("{server} does not say where it listens")), files)
}

#[test]
fn tunnel_opens_to_gunicorn_flask_and_http_server() {
    let Some(installed) = InstalledClients::open() else { return };
    for server in ["gunicorn", "flask", "http.server"] {
        let pki = Pki::new();
        let (_running, port, _files) = start(&installed, &pki, server);
        let outgate = Outgate::run(folder(&pki), &config(port, ""));
        // The first tunnel verifies the target. The others use the cached verification.
        for _ in 0..6 {
            let (client, response) = outgate.tunnel(&format!("tunnel.example:{port}"), "");
            assert_eq!(response.status, 200, "{server}: {response:?}");
            let (mut inside, _) = client.start_tls("tunnel.example", tls_config_trusting(&pki.pem)).unwrap();
            inside.send(post("/in", "Connection: close\r\n", server));
            assert_eq!(inside.response().text(), server);
        }
    }
}
