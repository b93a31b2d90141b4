//! `outgate egress probe --targets`, as an operator runs it before a new range goes live.
//! Does the report name exactly the customers whose firewall rejects the new range?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::{IpAddr, TcpListener};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use support::configuration::Replace;
use support::pki::Pki;
use support::process::Process;
use support::receiver::{Receiver, ok};
use support::scene::folder;
use support::{Folder, eventually, required};

pub(super) const ACTIVE: &str = "127.0.7.0/30";
pub(super) const NEW: &str = "127.0.9.0/30";
pub(super) const START: &str = "2200-01-01T00:00:00Z";

/// A host with an active range and an announced one.
pub(super) struct Host {
    pub(super) folder: Folder,
    pki: Pki,
    pub(super) config: String,
    /// The ports that the route permits.
    ports: RefCell<Vec<u16>>,
}

impl Host {
    pub(super) fn new() -> Self {
        Self::with_ranges(&format!(r#""{ACTIVE}", {{ cidr = "{NEW}", from = "{START}" }}"#))
    }

    pub(super) fn with_ranges(ranges: &str) -> Self {
        let pki = Pki::new();
        let folder = folder(&pki);
        let dir = folder.path("").display().to_string();
        let config = format!(
            r#"
[server]
listen = ["127.0.0.1:0"]
[egress.default]
ranges = [{ranges}]
[egress.other]
ranges = ["127.0.8.0/31"]
[guard]
allow = ["127.0.0.0/8", "::1/128"]
[resolver.hosts]
"acme.example" = ["127.0.0.1"]
"globex.example" = ["127.0.0.1"]
"initech.example" = ["127.0.0.1"]
"six.example" = ["::1"]
"private.example" = ["10.0.0.1"]
[trust.public]
roots = ["{dir}ca.pem"]
[[routes]]
name = "hooks"
hosts = ["*.example"]
ports = [PORTS]
timeouts = {{ connect = "5s", tls = "5s" }}
"#
        );
        Self { folder, pki, config, ports: RefCell::new(vec![443]) }
    }

    /// Permits a port in the route, and returns it.
    pub(super) fn permit(&self, port: u16) -> u16 {
        self.ports.borrow_mut().push(port);
        port
    }

    pub(super) fn receiver(&self, accepts: impl Fn(IpAddr) -> bool + Send + Sync + 'static) -> Receiver {
        let names = ["acme.example", "globex.example", "initech.example", "six.example"];
        let receiver = Receiver::tls_for("127.0.0.1:0", self.pki.leaf(&names), ok(), accepts);
        self.permit(receiver.port());
        receiver
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let ports: Vec<String> = self.ports.borrow().iter().map(u16::to_string).collect();
        self.folder.write("config.toml", self.config.replace_one("PORTS", &ports.join(", ")));
        let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
        command.args(["egress", "probe", "--config"]).arg(self.folder.path("config.toml")).args(arguments);
        command.current_dir(self.folder.path(""));
        command
    }

    /// Probes the targets of a file with this text.
    pub(super) fn probe(&self, targets: impl AsRef<[u8]>, arguments: &[&str]) -> Output {
        let mut command = self.command(&[&["--targets", "-"], arguments].concat());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(targets.as_ref()).unwrap();
        child.wait_with_output().unwrap()
    }

    pub(super) fn json(&self, targets: &str, arguments: &[&str]) -> (i32, Value) {
        let output = self.probe(targets, &[arguments, &["--json"]].concat());
        let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        (output.status.code().unwrap(), json)
    }
}

pub(super) fn is_old(from: IpAddr) -> bool {
    from.to_string().starts_with("127.0.7.")
}

pub(super) fn url(host: &str, receiver: &Receiver) -> String {
    format!("https://{host}:{}/in?token=secret", receiver.port())
}

/// Returns a port on which nothing listens.
fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(super) fn verdicts(report: &Value) -> BTreeMap<&str, &str> {
    let targets = report["targets"].as_array().unwrap().iter();
    targets.map(|target| (target["customer"].as_str().unwrap(), target["verdict"].as_str().unwrap())).collect()
}

#[test]
fn bulk_probe_names_the_customers_that_have_not_allowed_the_new_range() {
    let host = Host::new();
    let (acme, globex) = (host.receiver(is_old), host.receiver(|_| true));
    let file = format!(
        "\u{feff}Customer,URL,Plan,Contact\r\n\"Acme, Inc.\",{},gold,ops@acme.example\r\nGlobex,{},,\r\n\
         Initech,initech.example:{},,\r\nHooli,https://private.example/secret,,\r\nPied,https://pied.test/secret?a=secret,,\r\n",
        url("acme.example", &acme),
        url("globex.example", &globex),
        host.permit(closed_port()),
    );
    let (code, report) = host.json(&file, &["--list-url", "https://ranges.example.com/", "--sender", "Example Ltd"]);
    assert_eq!(code, 69);
    let expected = [
        ("Acme, Inc.", "range_not_allowed"),
        ("Globex", "allowed"),
        ("Hooli", "refused"),
        ("Initech", "unreachable"),
        ("Pied", "refused"),
    ];
    assert_eq!(verdicts(&report), BTreeMap::from(expected), "{report:#}");
    assert_eq!(report["new"], json!([{ "cidr": NEW, "from": START, "until": null }]));
    assert_eq!(report["summary"], json!({ "allowed": 1, "range_not_allowed": 1, "refused": 2, "unreachable": 1 }));
    let target = &report["targets"][0];
    let shown = format!("https://acme.example:{}", acme.port());
    assert_eq!(
        (&target["line"], &target["contact"], &target["target"]),
        (&json!(2), &json!("ops@acme.example"), &json!(shown))
    );
    assert_eq!(
        (&target["lacking"], &target["allow"]),
        (&json!([NEW]), &json!([{ "cidr": NEW, "from": START, "until": null }]))
    );
    assert_eq!(
        target["results"],
        json!([
            { "target": "127.0.0.1", "range": ACTIVE, "new": false, "result": "ok", "count": 4, "sources": [ACTIVE],
              "answer": "answered", "lacking": false },
            { "target": "127.0.0.1", "range": NEW, "new": true, "result": "connection_lost", "count": 4, "sources": [NEW],
              "answer": "rejected", "lacking": true },
        ])
    );
    let detail = |index: usize| report["targets"][index]["detail"].as_str().unwrap();
    assert!(
        detail(2).contains("connect_refused") && detail(2).contains("from none of the 8 addresses"),
        "{}",
        detail(2)
    );
    assert!(detail(3).starts_with("target_forbidden: "), "{}", detail(3));

    let messages = report["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 1, "only Acme must do something");
    assert_eq!(messages[0]["contact"], "ops@acme.example");
    assert_eq!(messages[0]["subject"], format!("Please allow our source addresses: {shown}"));
    let body = messages[0]["body"].as_str().unwrap();
    for part in [
        "Hello Acme, Inc.,\n\nExample Ltd sends webhooks to your servers".to_owned(),
        format!(
            "Please allow inbound TCP connections to these hosts and ports:\n\n  acme.example port {}\n",
            acme.port()
        ),
        format!("\n  {NEW} (in use from {START} on)\n"),
        format!("Please do so before {START}:"),
        format!("{shown} at {}", target["probed_at"].as_str().unwrap()),
        format!("127.0.0.1: answered connections from {ACTIVE}\n"),
        format!("127.0.0.1: accepted and then closed connections from {NEW}\n"),
        "Your allow-list probably lacks some of them.".to_owned(),
        "compare the addresses with our published list:\nhttps://ranges.example.com/\n".to_owned(),
    ] {
        assert!(body.contains(&part), "{part} is not in\n{body}");
    }
    assert!(!report.to_string().contains("secret"), "a path may be a secret");
    acme.wait_until_closed(4);
    globex.wait_until_closed(8);
    assert_eq!(acme.connections(), 8 + 2 + 1, "two rejected sources try again, and one that got an answer");
    assert!(acme.requests().is_empty() && globex.requests().is_empty(), "a probe sends no webhook");
}

#[test]
fn bulk_probe_writes_a_mail_for_each_customer_concerned() {
    let host = Host::new();
    let (acme, globex) = (host.receiver(is_old), host.receiver(|_| true));
    acme.drop_packets_from(&["127.0.9.0", "127.0.9.1", "127.0.9.2", "127.0.9.3"]);
    // Acme has two targets, and a list names customers by the rest of the line.
    let file = format!(
        "# customers\n{} Acme Ltd\n\nglobex.example:{}\n{}\tAcme  Ltd\n",
        url("acme.example", &acme),
        globex.port(),
        url("initech.example", &acme)
    );
    let arguments = ["--mail", "mails", "--timeout", "2s"];
    let output = host.probe(&file, &arguments);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(69));
    let shown = format!("https://acme.example:{}", acme.port());
    let line = format!(
        "  Acme Ltd: {shown}: The target answers {ACTIVE}, but not {NEW} (connect_timeout). Its allow-list probably lacks these \
         addresses."
    );
    assert!(text.lines().any(|found| found == line), "{text}");
    assert!(text.contains(&format!("    to allow: {NEW} (in use from {START} on)\n")), "{text}");
    assert!(text.starts_with("3 targets, probed from ") && text.contains("     2  range_not_allowed"), "{text}");
    assert!(!text.contains("secret"), "{text}");
    let mails: Vec<_> = fs::read_dir(host.folder.path("mails")).unwrap().map(|file| file.unwrap().path()).collect();
    let [mail] = &mails[..] else { panic!("{mails:?}") };
    assert!(mail.ends_with("0001-acme-ltd.txt"), "{mail:?}");
    let mail = fs::read_to_string(mail).unwrap();
    assert!(
        mail.starts_with(&format!(
            "Subject: Please allow our source addresses: {shown} and 1 other\nMIME-Version: 1.0\n"
        ))
    );
    assert!(mail.contains("; charset=utf-8\n") && mail.contains("\n\nHello Acme Ltd,\n"), "{mail}");
    assert!(mail.contains(&format!("no answer in time to connections from {NEW}\n")), "{mail}");
    assert!(!mail.contains("globex") && !mail.contains("secret"), "{mail}");
    // The mails of a former probe must not be sent again.
    let connections = globex.connections();
    let again = host.probe(&file, &arguments);
    assert_eq!((again.status.code(), globex.connections()), (Some(73), connections));
}

#[test]
fn bulk_probe_shows_customers_the_addresses_behind_nat() {
    let ranges = format!(
        r#"{{ cidr = "{ACTIVE}", seen_as = "203.0.113.0/30" }},
           {{ cidr = "{NEW}", seen_as = "203.0.113.16/30", from = "{START}" }}"#
    );
    let host = Host::with_ranges(&ranges);
    let acme = host.receiver(is_old);
    for range in [NEW, "203.0.113.16/30"] {
        let (_, report) = host.json(&url("acme.example", &acme), &["--range", range]);
        assert_eq!(report["targets"][0]["lacking"], json!(["203.0.113.16/30"]), "{report:#}");
        assert!(!report.to_string().contains("127.0.9."), "{report:#}");
    }
}

#[test]
fn bulk_probe_compares_active_addresses_if_no_range_is_new() {
    let host = Host::with_ranges(&format!("\"{ACTIVE}\""));
    let acme = host.receiver(|from| from.to_string() != "127.0.7.2");
    let (code, report) = host.json(&url("acme.example", &acme), &[]);
    assert_eq!((code, verdicts(&report)), (69, BTreeMap::from([("acme.example", "address_not_allowed")])));
    let target = &report["targets"][0];
    assert_eq!(
        (&target["lacking"], &target["allow"]),
        (&json!(["127.0.7.2"]), &json!([{ "cidr": ACTIVE, "from": null, "until": null }]))
    );
    assert!(report["messages"][0]["body"].as_str().unwrap().contains("Please do so now"), "{report:#}");
}

#[test]
fn bulk_probe_makes_no_statement_without_a_connection_from_the_new_range() {
    let host = Host::with_ranges(&format!(r#""{ACTIVE}", {{ cidr = "::1/128", from = "{START}" }}"#));
    let four = host.receiver(|_| true);
    let six = Receiver::tls_at("[::1]:0", host.pki.leaf(&["six.example"]), ok());
    host.permit(six.port());
    let file = format!("{} four\n{} six\n", url("acme.example", &four), url("six.example", &six));
    let (code, report) = host.json(&file, &[]);
    assert_eq!(
        (code, verdicts(&report)),
        (69, BTreeMap::from([("four", "untested"), ("six", "allowed")])),
        "{report:#}"
    );
    assert_eq!(report["targets"][1]["results"][0]["sources"], json!(["::1"]));
    // Deliveries to the target leave from another pool than that of the range.
    let (_, report) = host.json(&url("acme.example", &four), &["--pool", "other", "--range", ACTIVE]);
    assert_eq!(verdicts(&report), BTreeMap::from([("acme.example", "untested")]));
    assert_eq!(report["messages"], json!([]));
}

#[test]
fn bulk_probe_names_the_ranges_of_which_the_host_lacks_addresses() {
    let absent = "192.0.2.0/30";
    let host = Host::with_ranges(&format!(
        r#""{ACTIVE}", {{ cidr = "{NEW}", from = "{START}" }}, {{ cidr = "{absent}", from = "{START}" }}"#
    ));
    let acme = host.receiver(|_| true);
    let (code, report) = host.json(&url("acme.example", &acme), &[]);
    assert_eq!((code, &report["incomplete"]), (69, &json!([absent])), "{report:#}");
    assert_eq!(verdicts(&report), BTreeMap::from([("acme.example", "allowed")]));
    let text = String::from_utf8(host.probe(url("acme.example", &acme), &[]).stdout).unwrap();
    assert!(text.contains(&format!("not probed: addresses of {absent} that this host lacks")), "{text}");
    let (code, report) = host.json(&url("acme.example", &acme), &["--range", NEW]);
    assert_eq!((code, &report["incomplete"]), (0, &json!([])), "{report:#}");
}

#[test]
fn bulk_probe_tries_a_failed_connection_twice() {
    let host = Host::new();
    let count = AtomicUsize::new(0);
    let acme = host.receiver(move |from| is_old(from) || count.fetch_add(1, Ordering::SeqCst) >= 4);
    let (code, report) = host.json(&url("acme.example", &acme), &[]);
    assert_eq!((code, verdicts(&report)), (0, BTreeMap::from([("acme.example", "allowed")])), "{report:#}");
    // Two of the four try again, then one that got an answer, and then the other two.
    assert_eq!(acme.connections(), 8 + 2 + 1 + 2);
}

#[test]
fn bulk_probe_probes_a_shared_target_once_and_a_few_connections_at_a_time() {
    let host = Host::with_ranges("\"127.0.7.0/28\"");
    let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = host.permit(listener.local_addr().unwrap().port());
    let (is_open, is_most) = (Arc::clone(&open), Arc::clone(&most));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            is_most.fetch_max(is_open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let open = Arc::clone(&is_open);
            // The target never answers the handshake: the probe closes the connection.
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
                open.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    let shared = host.receiver(|_| true);
    let file = format!(
        "acme.example:{port} slow\n{} one\n{} two\n",
        url("globex.example", &shared),
        url("globex.example", &shared).replace_one("secret", "other")
    );
    let (_, report) = host.json(&file, &["--timeout", "2s"]);
    let expected = [("slow", "unreachable"), ("one", "allowed"), ("two", "allowed")];
    assert_eq!(verdicts(&report), BTreeMap::from(expected), "{report:#}");
    assert_eq!(shared.connections(), 16);
    // The listener may learn of a close after the next connection: that adds one round at most.
    assert!((1..=8).contains(&most.load(Ordering::SeqCst)), "{most:?}");
    // The time of one target is limited, too.
    let (code, report) = host.json(&file, &["--timeout", "60s", "--target-timeout", "1s"]);
    assert_eq!((code, verdicts(&report)["slow"]), (69, "unfinished"), "{report:#}");
}

#[test]
fn bulk_probe_reports_what_it_knows_when_interrupted() {
    let host = Host::new();
    let good = host.receiver(|_| true);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = host.permit(silent.local_addr().unwrap().port());
    // The targets of one host are probed in turn.
    host.folder.write("targets", format!("{} good\nacme.example:{port} silent\n", url("acme.example", &good)));
    let mut process = Process::start(&mut host.command(&["--targets", "targets", "--json", "--timeout", "1h"]));
    silent.set_nonblocking(true).unwrap();
    eventually("a connection", || silent.accept().is_ok());
    process.signal("INT");
    assert_eq!(process.wait().code(), Some(69));
    eventually("the report", || process.lines.all().last().is_some_and(|line| line == "}"));
    let report: Value = serde_json::from_str(&process.lines.all().join("\n")).unwrap();
    assert_eq!(verdicts(&report), BTreeMap::from([("good", "allowed"), ("silent", "unfinished")]), "{report:#}");

    let arguments = ["--total-timeout", "500ms", "--timeout", "1h"];
    let (code, report) = host.json(&format!("acme.example:{port} silent"), &arguments);
    assert_eq!((code, verdicts(&report)), (69, BTreeMap::from([("silent", "unfinished")])), "{report:#}");
}

#[test]
fn bulk_probe_csv_is_safe_in_a_spreadsheet() {
    let host = Host::new();
    let (acme, initech) = (host.receiver(is_old), host.receiver(|_| true));
    let customer = "=HYPERLINK(\"\"http://x.example\"\",\"\"a\"\")";
    let file = format!(
        "url,customer\n{},\"{customer}\"\n{},@SUM\n{},\n",
        url("acme.example", &acme),
        url("globex.example", &acme),
        url("initech.example", &initech)
    );
    let output = host.probe(&file, &["--csv"]);
    assert_eq!(output.status.code(), Some(69));
    host.folder.write("report.csv", &output.stdout);
    let program =
        "import csv, json, sys\nprint(json.dumps(list(csv.DictReader(open(sys.argv[1], newline=''), strict=True))))";
    let Ok(python) = Command::new("python3").args(["-c", program]).arg(host.folder.path("report.csv")).output() else {
        assert!(!required(), "python3 is missing");
        return;
    };
    let rows: Vec<BTreeMap<String, String>> =
        serde_json::from_slice(&python.stdout).unwrap_or_else(|_| panic!("{python:?}"));
    assert_eq!(rows.len(), 3);
    let row = &rows[0];
    assert_eq!(
        (row["customer"].as_str(), rows[1]["customer"].as_str()),
        ("'=HYPERLINK(\"http://x.example\",\"a\")", "'@SUM")
    );
    let cells = ["line", "verdict", "new_connections", "new_answered", "active_answered", "lacking", "allow"];
    let expected = ["2", "range_not_allowed", "4", "0", "4", NEW, NEW];
    assert_eq!(cells.map(|cell| row[cell].as_str()), expected);
    assert!(row["detail"].contains("(connection_lost)"), "{row:?}");
}

#[test]
fn bulk_probe_reports_every_bad_line_before_it_connects() {
    let host = Host::new();
    let acme = host.receiver(|_| true);
    let good = url("acme.example", &acme);
    let lines = [
        good.as_str(),
        "https://user:secret@acme.example/",
        "acme.example:0",
        "ftp://acme.example/",
        "\x1b[2Jacme.example",
        &format!("acme.example/{}", "a".repeat(5000)),
        "acme.example#secret",
    ];
    let mut file = lines.join("\n").into_bytes();
    file.extend(b"\nacme.example \xff\n");
    let output = host.probe(&file, &[]);
    let errors = String::from_utf8(output.stderr).unwrap();
    let found: Vec<_> = errors.lines().map(|line| line.split(": ").nth(2).unwrap_or(line)).collect();
    assert_eq!(output.status.code(), Some(65), "{errors}");
    assert_eq!(found, ["line 2", "line 3", "line 4", "line 5", "line 6", "line 7", "line 8"], "{errors}");
    assert!(!errors.contains("secret") && !errors.contains('\x1b'), "{errors}");

    let rejects = |file: &[u8], reason: &str| {
        let output = host.probe(file, &[]);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(65), "{errors}");
        assert!(errors.contains(reason), "{errors}");
        assert!(output.stdout.is_empty());
    };
    rejects(b"", "the file has no target");
    rejects(b"# none\n\n  # none\nurl,customer\n\n", "the file has no target");
    rejects(b"customer,url\n# 1 Ltd,ftp://acme.example\n", "line 2: ");
    rejects(b"https://acme.example/,Acme\n", "write the header `customer,url,contact`");
    rejects("b\u{fc}cher.example\n".as_bytes(), "write the host in ASCII");
    rejects(format!("url,customer\n{good},Acme, Inc.\n").as_bytes(), "line 2: the line has another number of cells");
    rejects(format!("url,contact\n{good},\"a@x.example, b@y.example\"\n").as_bytes(), "line 2: the contact is not one");
    rejects(format!("url,customer\n{good},\"Acme\n").as_bytes(), "line 2: a quoted cell has no end");
    rejects("a.example\n".repeat(10_001).as_bytes(), "line 10001: the file has more than 10000 targets");
    rejects(&vec![b'\n'; (16 << 20) + 1], "longer than 16 MiB");
    assert_eq!(acme.connections(), 0);
}

#[test]
fn bulk_probe_exit_codes_distinguish_usage_from_files() {
    let host = Host::new();
    let acme = host.receiver(|_| true);
    host.folder.write("targets", url("acme.example", &acme));
    let code = |arguments: &[&str]| host.command(arguments).output().unwrap().status.code().unwrap();
    assert_eq!(code(&["--targets", "targets"]), 0);
    assert_eq!(code(&["--targets", "targets", "--range", ACTIVE]), 0);
    assert_eq!(code(&["--targets", "absent"]), 66);
    assert_eq!(code(&["--targets", "targets", "--range", "192.0.2.0/28"]), 2);
    assert_eq!(code(&["--targets", "targets", "https://acme.example/"]), 2);
    assert_eq!(code(&["--targets", "targets", "--json", "--csv"]), 2);
    assert_eq!(code(&["--targets", "targets", "--list-url", "ranges"]), 2);
    assert_eq!(code(&["--csv", "https://acme.example/"]), 2);
    assert_eq!(code(&[]), 2);
}

#[test]
fn egress_probe_of_one_target_takes_a_new_range() {
    let host = Host::new();
    let acme = host.receiver(is_old);
    let output = host.command(&[&url("acme.example", &acme), "--range", NEW, "--json"]).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["probed"], &report["gaps"][0]["lacks"]), (&json!(8), &json!([NEW])), "{report:#}");
}
