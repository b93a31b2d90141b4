//! The table of `docs/clients.md`: the refusals as each client shows them to its developer.
//! Does the developer learn the cause from the client alone?
//!
//! Needs what `tests/clients/install` installs: skipped where it is missing, required with `OUTGATE_TEST_ALL=1`. With BLESS=1
//! in the environment the table is written instead of compared.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::fmt::Write;
use std::path::Path;

use support::Outgate;
use support::clients::{ClientRequest, InstalledClients, Report};
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{bad_receiver, folder};
use support::{required, scene};

/// The tunnel support of a client, and the part of a refused CONNECT that it shows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tunnel {
    Never,
    ShowsReason,
    ShowsStatus,
    ShowsNothing,
}
use Tunnel::{Never, ShowsNothing, ShowsReason, ShowsStatus};

const CLIENTS: &[(&str, &str, Tunnel)] = &[
    ("curl", "curl", ShowsStatus),
    ("wget", "Wget", ShowsReason),
    ("requests", "Python requests", ShowsReason),
    ("httpx", "Python HTTPX", ShowsReason),
    ("aiohttp", "Python aiohttp", ShowsReason),
    ("urllib", "Python urllib", ShowsReason),
    ("undici", "Node undici", ShowsStatus),
    ("fetch", "Node fetch, with undici's ProxyAgent", ShowsStatus),
    ("axios", "Node axios", ShowsStatus),
    ("got", "Node got, with hpagent", ShowsStatus),
    ("node_http", "Node http", Never),
    ("go", "Go net/http", ShowsReason),
    ("apache", "Apache HttpClient", ShowsStatus),
    ("excon", "Ruby excon", ShowsNothing),
    ("httpclient", "Ruby httpclient", ShowsReason),
];

const HEAD: &str = "# What clients show of a refusal

A target shows a self-signed certificate, so outgate refuses the webhook: `502 Bad Gateway (certificate_untrusted:
self_signed)`. The table has what each client gives its developer: a response, or the text of the exception. The programs in
`tests/clients` produced it.

The response to a refused request has `Outgate-Error` and a problem in its body. Most clients hide the response to a refused
CONNECT; the record of outgate has the reason.

`tests/it/sending/clients_shown.rs` makes this page. To write it again: `OUTGATE_TEST_ALL=1 BLESS=1 cargo test --test it sending::clients_shown::`.

| client | a refused request | a refused CONNECT |
| --- | --- | --- |
";

struct Scene {
    outgate: Outgate,
    untrusted: Receiver,
    installed: InstalledClients,
}

impl Scene {
    fn run_client(&self, client: &str, form: &str, url: String, fields: Vec<(String, String)>) -> Report {
        let proxy = if form == "gateway" { String::new() } else { format!("http://{}", self.outgate.proxy) };
        let request = ClientRequest { method: "GET", url, headers: fields, body: None, options: Vec::new() };
        self.installed.run(client, &proxy, &self.outgate.folder.path("ca.pem"), form, &[request]).remove(0)
    }

    /// Returns the cell of the table, without the parts that differ between runs.
    fn table_cell(&self, report: &Report) -> String {
        let code = report.header("outgate-error");
        if report.status > 0 {
            let body =
                if report.body.contains("\"code\":\"certificate_untrusted\"") { "and the problem" } else { "no body" };
            let field = if code.is_empty() { String::new() } else { format!("`Outgate-Error: {code}`, ") };
            return format!("status {}, {field}{body}", report.status);
        }
        let mut text = report.error.replace(&self.outgate.proxy.port().to_string(), "PROXY");
        text = text.replace(&self.untrusted.port().to_string(), "PORT");
        // An address in memory.
        while let Some(at) = text.find(" at 0x") {
            let digits = text[at + 6..].find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(text.len() - at - 6);
            text.replace_range(at..at + 6 + digits, "");
        }
        format!("`{}`", text.replace(['|', '`', '\n'], " "))
    }
}

#[test]
fn clients_show_a_refusal_as_the_table_says() {
    let Some(installed) = InstalledClients::open() else { return };
    let (pki, untrusted, unused) = (Pki::new(), bad_receiver(&["untrusted.example"]), Receiver::plain(ok()));
    let text = scene::config(&unused, &unused, "").host("untrusted.example", "127.0.0.1");
    let route = "[[routes]]\nname = \"untrusted\"\nhosts = [\"untrusted.example\"]\n";
    let text = text.and(&format!("{route}ports = [{}]\n", untrusted.port()));
    let scene = Scene { outgate: Outgate::run(folder(&pki), &text), untrusted, installed };
    let target = format!("https://untrusted.example:{}/", scene.untrusted.port());
    let mut table = HEAD.to_owned();
    let mut is_whole = true;
    for &(client, name, tunnel) in CLIENTS {
        if !scene.installed.has(client) {
            is_whole = false;
            continue;
        }
        let fields = vec![("Outgate-Target".to_owned(), target.clone())];
        let request = scene.run_client(client, "gateway", format!("http://{}/in", scene.outgate.proxy), fields);
        assert_eq!((request.status, request.header("outgate-error")), (502, "certificate_untrusted"), "{client}");
        let connect = (tunnel != Never).then(|| scene.run_client(client, "tunnel", target.clone(), Vec::new()));
        let error = connect.as_ref().map(|report| if report.status > 0 { "502" } else { report.error.as_str() });
        match tunnel {
            Never => {}
            ShowsReason => {
                assert!(error.unwrap().contains("(certificate_untrusted: self_signed)"), "{client}: {error:?}")
            }
            ShowsStatus => assert!(error.unwrap().contains("502"), "{client}: {error:?}"),
            ShowsNothing => assert!(!error.unwrap().contains("502"), "{client} has got better: {error:?}"),
        }
        let connect = connect.map_or("opens no tunnels".to_owned(), |report| scene.table_cell(&report));
        writeln!(table, "| {name} | {} | {connect} |", scene.table_cell(&request)).unwrap();
    }
    assert_eq!(scene.untrusted.requests().len(), 0);
    // Other versions of the clients may word the errors differently, so only Debian's are compared.
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/clients.md");
    if is_whole && std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all(committed.parent().unwrap()).unwrap();
        std::fs::write(committed, table).unwrap();
    } else if required() {
        let committed = std::fs::read_to_string(committed).unwrap_or_default();
        assert_eq!(committed, table, "docs/clients.md is out of date: its text has the command that writes it");
    }
}
