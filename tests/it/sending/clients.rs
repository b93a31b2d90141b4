//! Client libraries in common use, in every request form that each supports.
//! Is the webhook of each library delivered, signed and complete, and does the library report a refusal?
//!
//! Needs what `tests/clients/install` installs: skipped where it is missing, required with `OUTGATE_TEST_ALL=1`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa;
use aws_lc_rs::signature::KeyPair;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use support::Outgate;
use support::clients::{ClientRequest, InstalledClients, Report};
use support::configuration::Replace;
use support::pki::Pki;
use support::receiver::{ReceivedRequest, Receiver, ok};
use support::scene::{SECRET, billing, config, folder};
use support::signature::verify;
use support::tenants::{new_key, write_key};
use support::wiretap::Wiretap;

/// How a client names its target to outgate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `http://` in absolute-form, on a route with `plaintext = "allow"`.
    Plain,
    /// The same with `Outgate-TLS: 1`.
    Upgrade,
    /// `https://` in absolute-form.
    Absolute,
    /// `Outgate-Target`, and no proxy at all.
    Gateway,
    /// `CONNECT`.
    Tunnel,
    /// `CONNECT` on a route with `connect = "inspect"`.
    Inspect,
    /// `http://` without a port in absolute-form, on a route with `plaintext = "upgrade"`.
    Upgraded,
    /// The same by clients that ask for a tunnel to port 80.
    UpgradedTunnel,
}
use Form::{Absolute, Gateway, Inspect, Plain, Tunnel, Upgrade, Upgraded, UpgradedTunnel};

impl Form {
    fn is_tunnel(self) -> bool {
        matches!(self, Tunnel | Inspect | UpgradedTunnel)
    }

    /// Outgate serves the requests inside the tunnel: they name a tenant, which has a key of its own.
    fn is_served(self) -> bool {
        matches!(self, Inspect | UpgradedTunnel)
    }
}

/// Which requests of a session share a connection.
#[derive(Clone, Copy)]
enum Sharing {
    All,
    /// All, except where the client opens a second connection before it knows that the first is free.
    Nearly,
    /// Requests of the same method, as wget does for the URLs of one command line.
    Alike,
    None,
}

/// The request forms of each client. undici and fetch send `http://` in absolute-form if `proxyTunnel` is off. Otherwise
/// they tunnel it, as got with hpagent and `curl -p` do. Ruby's clients write the port 80 explicitly.
const CLIENTS: &[(&str, Sharing, &[Form])] = &[
    ("curl", Sharing::All, &[Plain, Upgrade, Absolute, Gateway, Tunnel, Inspect, Upgraded, UpgradedTunnel]),
    ("wget", Sharing::Alike, &[Plain, Upgrade, Tunnel, Inspect, Upgraded]),
    ("wget", Sharing::None, &[Gateway]),
    ("requests", Sharing::All, &[Plain, Upgrade, Gateway, Tunnel, Inspect]),
    ("httpx", Sharing::All, &[Plain, Upgrade, Gateway, Tunnel, Inspect]),
    ("aiohttp", Sharing::All, &[Plain, Upgrade, Gateway, Tunnel, Inspect]),
    ("urllib", Sharing::None, &[Plain, Upgrade, Gateway, Tunnel, Inspect]),
    // Twilio's client signs Host and not Outgate-Target, so its signature proves nothing in the gateway form.
    ("twilio", Sharing::All, &[Plain, Upgrade, Tunnel, Inspect]),
    ("undici", Sharing::Nearly, &[Plain, Upgrade, Gateway, Tunnel, Inspect, Upgraded, UpgradedTunnel]),
    ("fetch", Sharing::Nearly, &[Plain, Upgrade, Gateway, Tunnel, Inspect, Upgraded, UpgradedTunnel]),
    ("axios", Sharing::All, &[Plain, Upgrade, Gateway]),
    ("axios", Sharing::None, &[Tunnel, Inspect]),
    ("got", Sharing::All, &[Gateway, Tunnel, Inspect, UpgradedTunnel]),
    ("node_http", Sharing::All, &[Plain, Upgrade, Absolute, Gateway]),
    ("go", Sharing::Nearly, &[Plain, Upgrade, Gateway, Tunnel, Inspect]),
    // Apache HttpClient sends credentials only after a 407, and a refused CONNECT costs the connection.
    ("apache", Sharing::All, &[Plain, Upgrade, Gateway]),
    ("apache", Sharing::Nearly, &[Tunnel, Inspect]),
    ("excon", Sharing::All, &[Plain, Upgrade, Gateway, Tunnel, Inspect, Upgraded]),
    ("httpclient", Sharing::All, &[Plain, Upgrade, Gateway, Tunnel, Inspect, Upgraded]),
];

const PARALLEL_ROWS: usize = 8;

const JSON: &str = r#"{"event":"payment.captured","note":"Größe ½ \u0000","list":[1,2.50,null]}"#;
/// Basic `billing:t0ken`.
const CREDENTIALS: &str = "Basic YmlsbGluZzp0MGtlbg==";

struct Scene {
    outgate: Outgate,
    tls: Receiver,
    plain: Receiver,
    /// `None` if the test may not listen on port 443.
    upgraded: Option<Receiver>,
    installed: InstalledClients,
    /// The key of the tenant `acme`.
    tenant_key: String,
}

/// Returns whether the client authenticates with its signature and has no other credential.
fn signs_requests(client: &str, form: Form) -> bool {
    client == "twilio" && (form == Plain || form == Upgrade)
}

fn scene() -> Option<Scene> {
    InstalledClients::open().map(Scene::new)
}

impl Scene {
    fn new(installed: InstalledClients) -> Self {
        let (pki, inspector) = (Pki::new(), Pki::new());
        let tls = Receiver::tls(pki.leaf(&["hook.example", "tunnel.example", "inspect.example"]), ok());
        let plain = Receiver::plain(ok());
        let upgraded = Receiver::tls_on_443(pki.leaf(&["upgraded.example"]), ok());
        let folder = folder(&pki);
        folder.write("inspector.pem", &inspector.pem);
        folder.write("inspector.key", inspector.key_pem());
        let tenant_key = new_key("standard-webhooks");
        write_key(&folder, "keys/acme/own.key", &tenant_key);
        let key = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).unwrap();
        let pem = |label: &str, der: &[u8]| {
            format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", BASE64_STANDARD.encode(der))
        };
        folder.write("twilio.pem", pem("PRIVATE KEY", AsDer::<Pkcs8V1Der<'_>>::as_der(&key).unwrap().as_ref()));
        let public = AsDer::<PublicKeyX509Der<'_>>::as_der(key.public_key()).unwrap();
        folder.write("twilio-public.pem", pem("PUBLIC KEY", public.as_ref()));

        let twilio = format!("SK{}", "0".repeat(32));
        let clients = format!(
            "{}[clients.{twilio}]\npublic_keys = [\"{{dir}}/twilio-public.pem\"]\ntenants = [\"acme\"]\n",
            billing("t0ken")
        );
        let mut text = config(&tls, &plain, &clients)
            .remove("server.allow_anonymous")
            .add("signers.platform.key_dir", "{dir}/keys")
            .set("routes.signed.body_max", "4 MiB")
            .set("routes.plain.body_max", "4 MiB")
            .host("tunnel.example", "127.0.0.1")
            .host("inspect.example", "127.0.0.1")
            .and("[server]\nca = { certificate = \"{dir}/inspector.pem\", key = \"file:{dir}/inspector.key\" }")
            .and(&route("tunnel", tls.port(), ""))
            .and(&route("inspect", tls.port(), "sign = [\"platform\"]\nbody_max = \"4 MiB\""));
        if let Some(upgraded) = &upgraded {
            let upgrade = "hosts = [\"upgraded.example\"]\nsign = [\"platform\"]\nplaintext = \"upgrade\"";
            text = text
                .host("upgraded.example", &upgraded.address.ip().to_string())
                .and(&format!("[[routes]]\nname = \"upgraded\"\n{upgrade}\n"));
        }
        Self { outgate: Outgate::run(folder, &text), tls, plain, upgraded, installed, tenant_key }
    }

    /// Returns the URL of the target that the client requests in this form.
    fn target(&self, form: Form, path: &str) -> String {
        let (tls, plain) = (self.tls.port(), self.plain.port());
        match form {
            Plain => format!("http://plain.example:{plain}{path}"),
            Upgrade => format!("http://hook.example:{tls}{path}"),
            Absolute | Gateway => format!("https://hook.example:{tls}{path}"),
            Tunnel => format!("https://tunnel.example:{tls}{path}"),
            Inspect => format!("https://inspect.example:{tls}{path}"),
            Upgraded | UpgradedTunnel => format!("http://upgraded.example{path}"),
        }
    }

    fn request(
        &self,
        form: Form,
        method: &'static str,
        url: String,
        body: Option<&str>,
        tap: &Wiretap,
    ) -> ClientRequest {
        let mut headers: Vec<(String, String)> = Vec::new();
        let mut header = |name: &str, value: &str| headers.push((name.to_owned(), value.to_owned()));
        if body.is_some() {
            header("Content-Type", "application/json");
        }
        if form.is_served() {
            header("Outgate-Tenant", "acme");
        }
        let url = match form {
            Upgrade => {
                header("Outgate-TLS", "1");
                url
            }
            Gateway => {
                header("Outgate-Target", &url);
                header("Proxy-Authorization", CREDENTIALS);
                // wget names its files by the URL, and groups requests whose headers are equal.
                let path = &url[url.rfind('/').unwrap()..];
                format!("http://{}{path}", tap.address)
            }
            Plain | Absolute | Tunnel | Inspect | Upgraded | UpgradedTunnel => url,
        };
        // Only curl needs an option for this form.
        let options = if form == UpgradedTunnel { vec!["-p"] } else { Vec::new() };
        ClientRequest { method, url, headers, body: body.map(str::to_owned), options }
    }

    fn run(&self, client: &str, form: Form, tap: &Wiretap, requests: &[ClientRequest]) -> Vec<Report> {
        let proxy = match form {
            Gateway => String::new(),
            _ if signs_requests(client, form) => format!("http://{}", tap.address),
            _ => format!("http://billing:t0ken@{}", tap.address),
        };
        let ca = if form == Inspect { "inspector.pem" } else { "ca.pem" };
        self.installed.run(client, &proxy, &self.outgate.folder.path(ca), &format!("{form:?}").to_lowercase(), requests)
    }

    fn requests(&self, prefix: &str) -> Vec<ReceivedRequest> {
        let upgraded = self.upgraded.as_ref().map(Receiver::requests).unwrap_or_default();
        let all = [self.tls.requests(), self.plain.requests(), upgraded].concat();
        all.into_iter().filter(|received| received.line.contains(prefix)).collect()
    }
}

/// Runs `test` for every client and each selected form. Each row starts processes, so only a few rows run in parallel.
fn for_each(scene: &Scene, is_selected: impl Fn(Form) -> bool, test: impl Fn(&'static str, Sharing, Form) + Sync) {
    let rows = CLIENTS.iter().flat_map(|(client, sharing, forms)| forms.iter().map(|form| (*client, *sharing, *form)));
    let is_runnable = |form| scene.upgraded.is_some() || !matches!(form, Upgraded | UpgradedTunnel);
    let rows = rows.filter(|(client, _, form)| is_selected(*form) && is_runnable(*form) && scene.installed.has(client));
    let rows: Vec<_> = rows.collect();
    for some in rows.chunks(PARALLEL_ROWS) {
        std::thread::scope(|scope| {
            for &(client, sharing, form) in some {
                let test = &test;
                scope.spawn(move || test(client, sharing, form));
            }
        });
    }
}

fn route(connect: &str, port: u16, sign: &str) -> String {
    format!(
        "[[routes]]\nname = {connect:?}\nhosts = [\"{connect}.example\"]\nports = [{port}]\nconnect = {connect:?}\n{sign}\n"
    )
}

#[test]
fn every_client_library_delivers_in_every_request_form() {
    let Some(scene) = scene() else { return };
    for_each(&scene, |_| true, |client, sharing, form| session(&scene, client, sharing, form));
}

/// Sends a GET, three POSTs and, without a tunnel, a request that is refused, in one session.
fn session(scene: &Scene, client: &str, sharing: Sharing, form: Form) {
    let label = format!("{client} {form:?}");
    let tap = Wiretap::before(scene.outgate.proxy);
    let prefix = format!("/{client}/{form:?}/");
    let to = |name: &str| scene.target(form, &format!("{prefix}{name}"));
    let mut requests = vec![scene.request(form, "GET", to("get"), None, &tap)];
    requests.extend((1..=3).map(|number| scene.request(form, "POST", to(&number.to_string()), Some(JSON), &tap)));
    let is_tunnel = form.is_tunnel();
    if !is_tunnel {
        let scheme = if matches!(form, Plain | Upgrade | Upgraded) { "http" } else { "https" };
        // The URL differs by form: equal requests in one second have one signature, which is accepted only once.
        requests.push(scene.request(form, "GET", format!("{scheme}://unrouted.example/{form:?}"), None, &tap));
    }
    let reports = scene.run(client, form, &tap, &requests);
    for report in &reports[..4] {
        assert_eq!(
            (report.status, report.body.as_str(), report.error.as_str()),
            (200, "ok", ""),
            "{label}: {report:?}"
        );
        // In an opaque tunnel, the response comes from the target alone.
        let egress = report.header("outgate-egress");
        assert_eq!(egress.starts_with("127.0.7."), form != Tunnel, "{label}: {report:?}");
    }
    if let Some(refused) = reports.get(4) {
        assert_eq!((refused.status, refused.header("outgate-error")), (403, "no_route"), "{label}: {refused:?}");
        let problem: serde_json::Value = serde_json::from_str(&refused.body).unwrap();
        assert_eq!((&problem["code"], &problem["retryable"]), (&"no_route".into(), &false.into()), "{label}");
    }
    check_received(scene, client, form, &prefix);

    // The wiretap shows that the client used the intended form.
    let traffic = tap.traffic();
    let expected_connections = match sharing {
        Sharing::All => 1..=1,
        Sharing::Nearly => 1..=2,
        Sharing::Alike => 2..=2,
        Sharing::None => 4..=4,
    };
    let connections = traffic.iter().filter(|one| contains_text(&one.sent, &prefix) || is_tunnel).count();
    assert!(expected_connections.contains(&connections), "{label}: {connections} connections");
    let sent: String = traffic.iter().map(|one| String::from_utf8_lossy(&one.sent)).collect();
    let target = to("1");
    let authority = target.split('/').nth(2).unwrap();
    let line = match form {
        Upgraded if matches!(client, "excon" | "httpclient") => {
            format!("POST {} HTTP/1.1\r\n", target.replace_one(".example/", ".example:80/"))
        }
        Plain | Upgrade | Absolute | Upgraded => format!("POST {target} HTTP/1.1\r\n"),
        Gateway => "POST /1 HTTP/1.1\r\n".to_owned(),
        Tunnel | Inspect => format!("CONNECT {authority} HTTP/1."),
        UpgradedTunnel => "CONNECT upgraded.example:80 HTTP/1.".to_owned(),
    };
    assert!(sent.contains(&line), "{label}: no {line} in {sent}");
    let credentials = format!("proxy-authorization: {CREDENTIALS}").to_lowercase();
    assert_eq!(sent.to_lowercase().contains(&credentials), !signs_requests(client, form), "{label}: {sent}");
}

fn contains_text(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Checks the requests that the receiver got: each body once and unchanged, and signed unless the tunnel is opaque.
fn check_received(scene: &Scene, client: &str, form: Form, prefix: &str) {
    let received = scene.requests(prefix);
    assert_eq!(received.len(), 4, "{prefix}: {received:?}");
    for received in &received {
        let is_get = received.line.starts_with("GET ");
        assert_eq!(received.body, if is_get { b"" } else { JSON.as_bytes() }, "{received:?}");
        // httpclient also sends its proxy credentials to the target of a tunnel.
        if (client, form) != ("httpclient", Tunnel) {
            assert_eq!(received.field("proxy-authorization"), "", "{received:?}");
        }
        assert!(received.from.to_string().starts_with("127.0.7."), "{received:?}");
        match form {
            Plain | Tunnel => assert_eq!(received.field("webhook-signature"), "", "{received:?}"),
            Inspect | UpgradedTunnel => verify(received, scene.tenant_key.trim()),
            Upgrade | Absolute | Gateway | Upgraded => verify(received, SECRET),
        }
        // outgate removes the client's credential, except inside an opaque tunnel.
        let signed_for_target = client == "twilio" && form == Tunnel;
        assert_eq!(!received.field("twilio-client-validation").is_empty(), signed_for_target, "{received:?}");
    }
}

#[test]
fn refused_tunnel_is_a_clear_failure_in_every_client_library() {
    let Some(scene) = scene() else { return };
    for_each(
        &scene,
        |form| form == Tunnel,
        |client, _, form| {
            let tap = Wiretap::before(scene.outgate.proxy);
            let request = scene.request(form, "GET", "https://unrouted.example/".into(), None, &tap);
            let report = &scene.run(client, form, &tap, &[request])[0];
            // axios returns the response of the proxy. The others report an error with the status of the CONNECT.
            let is_clear = match report.status {
                // excon stores the response in `response`, and its error message lacks the status.
                0 if client == "excon" => report.error.contains("proxy connection could not be established"),
                0 => report.error.contains("403") || report.error.contains("Forbidden"),
                status => status == 403 && !report.header("outgate-error").is_empty(),
            };
            assert!(is_clear, "{client} reports only: {report:?}");
            // Apache HttpClient gets a challenge first, so the last response is the refusal.
            let response = String::from_utf8(tap.traffic().pop().unwrap().received).unwrap();
            assert!(
                response.starts_with("HTTP/1.1 403 ") && response.contains("outgate-error: "),
                "{client}: {response}"
            );
        },
    );
}

#[test]
fn curl_answers_the_challenge_of_a_407() {
    let Some(scene) = scene() else { return };
    for form in [Plain, Upgrade] {
        let tap = Wiretap::before(scene.outgate.proxy);
        let prefix = format!("/challenge/{form:?}/");
        let url = scene.target(form, &format!("{prefix}1"));
        let mut request = scene.request(form, "POST", url, Some(JSON), &tap);
        request.options.push("--proxy-anyauth");
        let report = &scene.run("curl", form, &tap, &[request.clone()])[0];
        assert_eq!((report.status, report.body.as_str()), (200, "ok"), "{report:?}");
        let received: String = tap.traffic().iter().map(|one| String::from_utf8_lossy(&one.received)).collect();
        assert!(received.starts_with("HTTP/1.1 407 "), "{received}");
        assert_eq!(scene.requests(&prefix).len(), 1);
        // Without credentials, curl reports the 407.
        let ca = scene.outgate.folder.path("ca.pem");
        let report = &scene.installed.run("curl", &format!("http://{}", tap.address), &ca, "", &[request])[0];
        assert_eq!((report.status, report.header("outgate-error")), (407, "client_unauthenticated"), "{report:?}");
        assert!(report.header("proxy-authenticate").contains("Basic"), "{report:?}");
    }
}

#[test]
fn curl_waits_for_continue_before_two_mebibytes() {
    let Some(scene) = scene() else { return };
    let body = "0123456789abcdef".repeat(2 * 1024 * 1024 / 16);
    // In an opaque tunnel, the target sends 100 Continue.
    for form in [Plain, Upgrade, Absolute, Gateway, Inspect] {
        let tap = Wiretap::before(scene.outgate.proxy);
        let prefix = format!("/large/{form:?}/");
        let url = scene.target(form, &format!("{prefix}1"));
        let mut request = scene.request(form, "POST", url, Some(&body), &tap);
        request.options.extend(["-H", "Expect: 100-continue", "--expect100-timeout", "15"]);
        let report = &scene.run("curl", form, &tap, &[request])[0];
        assert_eq!((report.status, report.body.as_str()), (200, "ok"), "{form:?}: {report:?}");
        let received = scene.requests(&prefix).pop().unwrap();
        assert!(received.body == body.as_bytes(), "{form:?}: {} bytes arrived", received.body.len());
        if form != Plain {
            verify(&received, if form.is_served() { scene.tenant_key.trim() } else { SECRET });
        }
        if form != Inspect {
            let received = String::from_utf8(tap.traffic()[0].received.clone()).unwrap();
            assert!(received.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 "), "{form:?}: {received}");
        }
    }
}

#[test]
fn curl_gets_body_too_large_while_it_uploads() {
    let Some(scene) = scene() else { return };
    let body = "0123456789abcdef".repeat(5 * 1024 * 1024 / 16);
    for form in [Plain, Upgrade, Absolute, Gateway, Inspect] {
        let tap = Wiretap::before(scene.outgate.proxy);
        let url = scene.target(form, "/too-large");
        let mut request = scene.request(form, "POST", url, Some(&body), &tap);
        request.options.extend(["-H", "Expect:"]);
        let report = &scene.run("curl", form, &tap, &[request])[0];
        assert_eq!((report.status, report.header("outgate-error")), (413, "body_too_large"), "{form:?}: {report:?}");
    }
}
