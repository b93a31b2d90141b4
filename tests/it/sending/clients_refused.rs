//! Client libraries in common use whose request is refused while they write a large body.
//! Does each library get the refusal, and can it respond to a challenge?
//!
//! Needs what `tests/clients/install` installs: skipped where it is missing, required with `OUTGATE_TEST_ALL=1`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::path::PathBuf;

use support::Outgate;
use support::clients::{ClientRequest, InstalledClients, Report};
use support::configuration::token_hash;
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{config, folder};

const CLIENTS: &[&str] = &[
    "curl",
    "wget",
    "requests",
    "httpx",
    "aiohttp",
    "urllib",
    "undici",
    "fetch",
    "axios",
    "got",
    "node_http",
    "go",
    "apache",
    "excon",
    "httpclient",
];

/// More bytes than the kernel buffers for a server that does not read.
const LARGE: usize = 2 << 20;
struct Scene {
    outgate: Outgate,
    plain: Receiver,
    good: Receiver,
    installed: InstalledClients,
}

fn scene() -> Option<Scene> {
    let installed = InstalledClients::open()?;
    let pki = Pki::new();
    let good = Receiver::tls(pki.leaf(&["hook.example"]), ok());
    let plain = Receiver::plain(ok());
    let hash = token_hash("t0ken");
    let text = config(&good, &plain, &format!("[clients.billing]\ntokens = [\"{hash}\"]\n"))
        .remove("server.allow_anonymous")
        // The signing route refuses the body for its size. The other route accepts it.
        .set("routes.plain.body_max", "32 MiB");
    Some(Scene { outgate: Outgate::run(folder(&pki), &text), plain, good, installed })
}

impl Scene {
    fn ca(&self) -> PathBuf {
        self.outgate.folder.path("ca.pem")
    }

    /// Sends a POST in the gateway form, which every client supports, directly to outgate.
    fn post(&self, client: &str, target: &str, credentials: Option<&str>) -> Report {
        let mut headers = vec![("Content-Type".to_owned(), "application/json".to_owned())];
        headers.push(("Outgate-Target".to_owned(), target.to_owned()));
        headers.extend(credentials.map(|value| ("Proxy-Authorization".to_owned(), value.to_owned())));
        let request = ClientRequest {
            method: "POST",
            url: format!("http://{}/in", self.outgate.proxy),
            headers,
            body: Some("x".repeat(LARGE)),
            // Without this option, curl waits for 100 Continue and sends no body.
            options: if client == "curl" { vec!["-H", "Expect:"] } else { Vec::new() },
        };
        self.installed.run(client, "", &self.ca(), "gateway", &[request]).remove(0)
    }
}

#[test]
fn refusal_of_a_large_body_reaches_every_client_library() {
    let Some(scene) = scene() else { return };
    let (signed, plain) = (format!("https://hook.example:{}/in", scene.good.port()), scene.plain.port());
    let plain = format!("http://plain.example:{plain}/in");
    let valid_token = Some("Bearer t0ken");
    std::thread::scope(|scope| {
        for client in CLIENTS.iter().filter(|client| scene.installed.has(client)) {
            let (scene, signed, plain) = (&scene, &signed, &plain);
            scope.spawn(move || {
                for (target, credentials, status, code) in [
                    (plain.as_str(), None, 407, "client_unauthenticated"),
                    ("https://unrouted.example/", valid_token, 403, "no_route"),
                    (signed, valid_token, 413, "body_too_large"),
                ] {
                    // The Fetch standard turns a 407 without a proxy into a network error.
                    if (*client, status) == ("fetch", 407) {
                        continue;
                    }
                    let report = scene.post(client, target, credentials);
                    assert_eq!((report.status, report.header("outgate-error")), (status, code), "{client}: {report:?}");
                }
            });
        }
    });
    assert!(scene.plain.requests().is_empty() && scene.good.requests().is_empty());
}

/// Apache HttpClient sends its body a first time without credentials.
#[test]
fn apache_http_client_answers_a_407_with_a_large_body() {
    let Some(scene) = scene() else { return };
    if !scene.installed.has("apache") {
        return;
    }
    let proxy = format!("http://billing:t0ken@{}", scene.outgate.proxy);
    let request = |size: &usize| ClientRequest {
        method: "POST",
        url: format!("http://plain.example:{}/in", scene.plain.port()),
        headers: vec![("Content-Type".into(), "application/json".into())],
        body: Some("x".repeat(*size)),
        options: Vec::new(),
    };
    // The last body exceeds the kernel's buffers for a request that is not read.
    let sizes = [LARGE, LARGE, LARGE, 6 * LARGE];
    let requests: Vec<_> = sizes.iter().map(request).collect();
    for report in scene.installed.run("apache", &proxy, &scene.ca(), "plain", &requests) {
        assert_eq!((report.status, report.body.as_str()), (200, "ok"), "{report:?}");
    }
    let received = scene.plain.requests();
    assert_eq!(received.iter().map(|received| received.body.len()).collect::<Vec<_>>(), sizes);
}
