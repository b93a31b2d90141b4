//! Common HTTP/2 implementations on both sides: clients with prior knowledge, and targets that choose HTTP/2 by ALPN.
//! Does each client get each response completely?
//!
//! Needs what `tests/clients/install` installs: skipped where it is missing, required with `OUTGATE_TEST_ALL=1`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use support::clients::{ClientRequest, InstalledClients, Language};
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{config, folder};
use support::{Folder, Outgate};

/// Some programs end a response in one of two ways, depending on timing.
const REQUESTS: usize = 25;

struct Target {
    child: Child,
    port: u16,
}

impl Target {
    fn start(mut command: Command, folder: &Folder) -> Self {
        command.args([folder.path("chain.pem"), folder.path("target.key")]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the target runs");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().parse().expect("a port");
        Self { child, port }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn http2_clients_get_whole_responses_of_http2_targets() {
    let Some(installed) = InstalledClients::open() else { return };
    for language in [Language::Node, Language::Python] {
        let pki = Pki::new();
        let files = folder(&pki);
        let identity = pki.leaf(&["hook.example"]);
        files.write("chain.pem", identity.chain_pem());
        files.write("target.key", identity.key_pem());
        let target = Target::start(installed.origin(language, "http2_target"), &files);
        let other = Receiver::plain(ok());
        let text = config(&other, &other, "").set("routes.signed.ports", [target.port]);
        let outgate = Outgate::run(files, &text.set("egress.default.ranges", ["127.0.7.1/32"]));

        let mut count = 0;
        // curl 7.88 fails if it reuses a connection with prior knowledge, so each of its runs sends one request.
        for (client, at_once) in [("curl", 1), ("httpx_http2", REQUESTS), ("node_http2", REQUESTS)] {
            let requests: Vec<_> = (0..REQUESTS)
                .map(|number| ClientRequest {
                    method: "POST",
                    url: format!("http://{}/", outgate.proxy),
                    headers: vec![
                        ("outgate-target".into(), format!("https://hook.example:{}/in", target.port)),
                        ("content-type".into(), "application/json".into()),
                    ],
                    body: Some(format!("{{\"number\":{number}}}")),
                    options: vec!["--http2-prior-knowledge"],
                })
                .collect();
            let ca = outgate.folder.path("ca.pem");
            let run = |requests: &[ClientRequest]| installed.run(client, "", &ca, "gateway", requests);
            for (number, report) in requests.chunks(at_once).flat_map(run).enumerate() {
                let label = format!("request {number} of {client} to {language:?}: {report:?}");
                assert_eq!((report.status, report.body.as_str()), (200, "ok"), "{label}");
                assert_eq!(report.header("via"), "2 outgate", "{label}");
            }
            count += REQUESTS;
        }
        for record in outgate.records(count) {
            assert_eq!((&record["code"], &record["http"]), (&"delivered".into(), &"2".into()), "{record}");
        }
    }
}
