//! The unchanged programs of `examples/senders`.
//! Does each one deliver a signed webhook, and does it show why outgate refuses one?
//!
//! Needs what `.ci/run` installs: skipped where it is missing, required with `OUTGATE_TEST_ALL=1`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::clients::InstalledClients;
use support::configuration::Replace;
use support::pki::Pki;
use support::process::Process;
use support::receiver::{Receiver, ok};
use support::scene::{SECRET, billing, config, folder};
use support::signature::verify;
use support::{Folder, Outgate, required};

/// What a sender can do, and where it shows the refusal of a CONNECT.
struct Sender {
    file: &'static str,
    /// Sends an `http://` URL in absolute-form.
    upgrades: bool,
    /// Speaks TLS to outgate.
    speaks_tls: bool,
    shows: Shows,
}

#[derive(Clone, Copy, PartialEq)]
enum Shows {
    /// On standard output, with the fields of outgate.
    Fields,
    /// In an error with the reason phrase of outgate.
    Reason,
    /// In an error with the status.
    Status,
    /// In an error that has no more than the fact.
    Fact(&'static str),
}
use Shows::{Fact, Fields, Reason, Status};

const SENDERS: &[Sender] = &[
    Sender { file: "send_curl.sh", upgrades: true, speaks_tls: true, shows: Fields },
    Sender { file: "send_requests.py", upgrades: true, speaks_tls: true, shows: Reason },
    Sender { file: "send_httpx.py", upgrades: true, speaks_tls: true, shows: Reason },
    Sender { file: "send_aiohttp.py", upgrades: true, speaks_tls: true, shows: Reason },
    Sender { file: "send_fetch.mjs", upgrades: true, speaks_tls: false, shows: Status },
    Sender { file: "send_axios.mjs", upgrades: true, speaks_tls: false, shows: Fields },
    Sender { file: "send_got.mjs", upgrades: false, speaks_tls: false, shows: Status },
    Sender { file: "send.go", upgrades: true, speaks_tls: true, shows: Reason },
    Sender { file: "SendHttpClient.java", upgrades: true, speaks_tls: false, shows: Status },
    Sender { file: "SendOkHttp.java", upgrades: true, speaks_tls: false, shows: Status },
    Sender { file: "SendApache.java", upgrades: true, speaks_tls: false, shows: Fields },
    Sender { file: "send.rb", upgrades: true, speaks_tls: false, shows: Reason },
    Sender { file: "send.php", upgrades: true, speaks_tls: true, shows: Fields },
    Sender { file: "rust/src/main.rs", upgrades: true, speaks_tls: true, shows: Fact("TunnelUnsuccessful") },
    Sender { file: "dotnet/Program.cs", upgrades: true, speaks_tls: false, shows: Fields },
];

/// Files without a program of their own.
const BESIDE: &[&str] = &["README.md", "config.toml", "dotnet/send.csproj", "rust/Cargo.lock", "rust/Cargo.toml"];

const PARALLEL: usize = 4;
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/senders");

#[test]
fn every_file_of_the_senders_is_run() {
    let mut found = BTreeSet::new();
    let mut folders = vec![PathBuf::from(FOLDER)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            match entry.path() {
                path if path.ends_with("rust/target") => {}
                path if path.is_dir() => folders.push(path),
                path => drop(found.insert(path.strip_prefix(FOLDER).unwrap().to_str().unwrap().to_owned())),
            }
        }
    }
    let listed = SENDERS.iter().map(|sender| sender.file);
    let listed: BTreeSet<String> = listed.chain(BESIDE.iter().copied()).map(str::to_owned).collect();
    assert_eq!(found, listed);
    let readme = std::fs::read_to_string(Path::new(FOLDER).join("README.md")).unwrap();
    for sender in SENDERS {
        let row = readme.lines().find(|line| line.contains(&format!("`{}`", sender.file)));
        let row = row.unwrap_or_else(|| panic!("README.md lacks {}", sender.file));
        let yes_or_no = |is_so: bool| if is_so { " yes " } else { " no " };
        let cells: Vec<&str> = row.split('|').skip(3).take(2).collect();
        assert_eq!(cells, [yes_or_no(sender.upgrades), yes_or_no(sender.speaks_tls)], "{row}");
    }
}

struct Scene {
    outgate: Outgate,
    receiver: Receiver,
    installed: InstalledClients,
    /// Java's form of the authorities.
    trust_store: Option<PathBuf>,
}

/// The status and fields that a sender prints, and its error.
#[derive(Debug)]
struct Shown {
    lines: Vec<String>,
    error: String,
    succeeded: bool,
}

impl Shown {
    fn has(&self, line: &str) -> bool {
        self.lines.iter().any(|shown| shown.eq_ignore_ascii_case(line))
    }
    fn egress(&self) -> bool {
        self.lines.iter().any(|shown| shown.to_lowercase().starts_with("outgate-egress: 127.0.7."))
    }
}

impl Scene {
    fn open() -> Option<Self> {
        let installed = InstalledClients::open()?;
        let (pki, inspector) = (Pki::new(), Pki::new());
        let receiver = Receiver::tls(pki.leaf(&["hook.example", "inspect.example", "paths.example"]), ok());
        let folder = folder(&pki);
        let listener = pki.leaf(&["127.0.0.2"]);
        folder.write("listener.pem", listener.chain_pem());
        folder.write("listener.key", listener.key_pem());
        folder.write("inspector.pem", &inspector.pem);
        folder.write("inspector.key", inspector.key_pem());
        folder.write("authorities.pem", format!("{}{}", pki.pem, inspector.pem));
        let trust_store = trust_store(&folder.path("inspector.pem"), &folder.path("outgate.p12"));
        let text = config(&receiver, &receiver, &billing("TOKEN"))
            .remove("server.allow_anonymous")
            .host("inspect.example", "127.0.0.1")
            .host("paths.example", "127.0.0.1")
            .push(
                "server.listen",
                toml::toml! {
                    address = "127.0.0.2:0"
                    alpn = ["http/1.1"]
                    tls = { certificate = "listener.pem", key = "listener.key" }
                },
            )
            .and("[server]\nca = { certificate = \"inspector.pem\", key = \"inspector.key\" }")
            .and(&inspecting("inspect", "/", receiver.port()))
            .and(&inspecting("paths", "/in", receiver.port()));
        Some(Self { outgate: Outgate::run(folder, &text), receiver, installed, trust_store })
    }

    fn target(&self, scheme: &str, host: &str, path: &str) -> String {
        format!("{scheme}://{host}:{}/{path}", self.receiver.port())
    }

    fn command(&self, sender: &Sender, proxy: &str, target: &str) -> Option<Command> {
        let mut command = self.installed.sender(sender.file)?;
        command.env("OUTGATE_PROXY", proxy).env("TARGET", target);
        command.env("OUTGATE_CA", self.outgate.folder.path("authorities.pem"));
        if sender.file.ends_with(".cs") {
            command.env("XDG_CONFIG_HOME", mono_trust(&self.outgate.folder));
        }
        if let Some(store) = self.trust_store.as_ref().filter(|_| sender.file.ends_with(".java")) {
            let store = format!("-Djavax.net.ssl.trustStore={}", store.display());
            command.env("JDK_JAVA_OPTIONS", format!("{store} -Djavax.net.ssl.trustStorePassword=changeit"));
        }
        Some(command)
    }

    /// Runs a sender. `None`: its client is not installed.
    fn run(&self, sender: &Sender, scheme: &str, target: &str) -> Option<Shown> {
        let proxy = if scheme == "https" { self.tls_listener() } else { self.outgate.proxy.to_string() };
        let command = self.command(sender, &format!("{scheme}://billing:TOKEN@{proxy}"), target)?;
        Some(run(command))
    }

    fn tls_listener(&self) -> String {
        let lines = self.outgate.log.all();
        let mut addresses = lines.iter().filter_map(|line| line.split_once("proxy listening on "));
        addresses.nth(1).expect("a second listener").1.trim().to_owned()
    }

    /// Checks that one signed webhook arrived at this path.
    fn check_received(&self, path: &str) {
        let mut received = self.receiver.requests();
        received.retain(|request| request.line == format!("POST /{path} HTTP/1.1"));
        assert_eq!(received.len(), 1, "{path}: {received:?}");
        let body: serde_json::Value = serde_json::from_slice(&received[0].body).unwrap();
        assert_eq!(body, serde_json::json!({"type": "ping"}), "{path}");
        assert!(received[0].field("content-type").starts_with("application/json"), "{path}: {received:?}");
        assert_eq!(received[0].field("outgate-tenant"), "", "{path}: {received:?}");
        verify(&received[0], SECRET);
    }
}

fn inspecting(name: &str, path: &str, port: u16) -> String {
    format!(
        "[[routes]]\nname = {name:?}\nhosts = [\"{name}.example\"]\nports = [{port}]\npaths = [{path:?}]\n\
         sign = [\"platform\"]\nconnect = \"inspect\"\n"
    )
}

/// Makes the folder in which Mono looks for authorities, each in a file with the hash of its name. (.NET reads the file of
/// `SSL_CERT_FILE` instead.)
fn mono_trust(folder: &Folder) -> PathBuf {
    let home = folder.path("mono");
    let trust = home.join(".mono/new-certs/Trust");
    std::fs::create_dir_all(&trust).unwrap();
    let pem = folder.path("inspector.pem");
    let output = Command::new("openssl").args(["x509", "-noout", "-subject_hash", "-in"]).arg(&pem).output().unwrap();
    let hash = String::from_utf8(output.stdout).unwrap();
    std::fs::copy(pem, trust.join(format!("{}.0", hash.trim()))).unwrap();
    home
}

/// Makes a trust store of a PEM file. `None`: Java is not installed.
fn trust_store(pem: &Path, store: &Path) -> Option<PathBuf> {
    let mut command = Command::new("keytool");
    command.args(["-importcert", "-noprompt", "-alias", "outgate", "-storepass", "changeit"]);
    let output = command.arg("-file").arg(pem).arg("-keystore").arg(store).output().ok()?;
    assert!(output.status.success(), "{output:?}");
    Some(store.to_owned())
}

fn run(mut command: Command) -> Shown {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let lines = text(&output.stdout).lines().map(|line| line.trim_end().to_owned()).collect();
    Shown { lines, error: text(&output.stderr), succeeded: output.status.success() }
}

/// Runs `test` for every sender. Each starts a process, so only a few run in parallel.
fn for_each(test: impl Fn(&Scene, &Sender) + Sync) {
    let Some(scene) = Scene::open() else { return };
    for some in SENDERS.chunks(PARALLEL) {
        std::thread::scope(|scope| {
            for sender in some {
                let (scene, test) = (&scene, &test);
                scope.spawn(move || test(scene, sender));
            }
        });
    }
}

#[test]
fn every_sender_delivers_a_signed_webhook_to_an_http_url() {
    for_each(|scene, sender| {
        if !sender.upgrades {
            return;
        }
        let path = format!("upgrade/{}", sender.file);
        let Some(shown) = scene.run(sender, "http", &scene.target("http", "hook.example", &path)) else { return };
        assert!(shown.has("200") && shown.egress() && shown.succeeded, "{}: {shown:?}", sender.file);
        scene.check_received(&path);
    });
}

#[test]
fn every_sender_delivers_a_signed_webhook_through_an_inspected_tunnel() {
    for_each(|scene, sender| {
        let path = format!("tunnel/{}", sender.file);
        let Some(shown) = scene.run(sender, "http", &scene.target("https", "inspect.example", &path)) else { return };
        assert!(shown.has("200") && shown.egress() && shown.succeeded, "{}: {shown:?}", sender.file);
        scene.check_received(&path);
    });
}

#[test]
fn senders_that_speak_tls_to_outgate_deliver_over_it() {
    for_each(|scene, sender| {
        if !sender.speaks_tls {
            return;
        }
        for (scheme, host) in [("http", "hook.example"), ("https", "inspect.example")] {
            let path = format!("tls/{scheme}/{}", sender.file);
            let Some(shown) = scene.run(sender, "https", &scene.target(scheme, host, &path)) else { return };
            assert!(shown.has("200") && shown.egress() && shown.succeeded, "{}: {shown:?}", sender.file);
            scene.check_received(&path);
        }
    });
}

#[test]
fn every_sender_shows_the_code_of_a_refused_webhook() {
    for_each(|scene, sender| {
        // A tunnel shows no path, so outgate refuses only the request inside.
        let (scheme, host) = if sender.upgrades { ("http", "unrouted.example") } else { ("https", "paths.example") };
        let Some(shown) = scene.run(sender, "http", &scene.target(scheme, host, "other")) else { return };
        assert!(shown.has("403") && shown.has("Outgate-Error: no_route"), "{}: {shown:?}", sender.file);
        assert!(shown.has("Outgate-Egress: none") && shown.succeeded, "{}: {shown:?}", sender.file);
    });
}

#[test]
fn every_sender_shows_a_refused_tunnel() {
    for_each(|scene, sender| {
        let Some(shown) = scene.run(sender, "http", "https://unrouted.example/") else { return };
        let is_shown = match sender.shows {
            Fields => shown.has("Outgate-Error: no_route"),
            Reason => !shown.succeeded && shown.error.contains("no_route"),
            Status => !shown.succeeded && shown.error.contains("403"),
            Fact(word) => !shown.succeeded && shown.error.contains(word),
        };
        assert!(is_shown, "{}: {shown:?}", sender.file);
    });
}

#[test]
fn http_client_of_the_jdk_needs_its_flag_for_tunnels() {
    let Some(scene) = Scene::open() else { return };
    let sender = SENDERS.iter().find(|sender| sender.file == "SendHttpClient.java").unwrap();
    let target = scene.target("https", "inspect.example", "flag");
    let proxy = format!("http://billing:TOKEN@{}", scene.outgate.proxy);
    let Some(command) = scene.command(sender, &proxy, &target) else { return };
    let mut without = Command::new(command.get_program());
    without.args(command.get_args().filter(|argument| !argument.to_string_lossy().contains("disabledSchemes")));
    without.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let shown = run(without);
    assert!(shown.has("407") && shown.has("Outgate-Error: client_unauthenticated"), "{shown:?}");
    assert!(scene.receiver.requests().is_empty());
}

/// The section "Try one" of the README. The only changes are free ports.
#[test]
fn sender_of_the_try_delivers_with_the_configuration_beside_it() {
    if Command::new("curl").arg("--version").output().is_err() {
        assert!(!required(), "curl is missing");
        return;
    }
    let folder = Folder::new();
    let outgate = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
        command.args(words).current_dir(folder.path(""));
        command
    };
    let receiver = Process::start(&mut outgate(&["demo", "--receiver", "first", "--listen", "127.0.0.1:0"]));
    let port = receiver.lines.wait_for("the receiver's address", |lines| {
        let starts = "The receiver hooks.customer.example listens on 127.0.0.1:";
        let line = lines.iter().find_map(|line| line.strip_prefix(starts))?;
        line.split(' ').next().map(str::to_owned)
    });
    let text = std::fs::read_to_string(Path::new(FOLDER).join("config.toml")).unwrap();
    let text = text.replace_one("127.0.0.1:4750", "127.0.0.1:0").replace_one("8443", &port);
    folder.write("config.toml", text.replace_one("[server]", "[admin]\nlisten = []\n[server]"));
    let running = Outgate::start(outgate(&["run", "--config", "config.toml"]), Folder::linked(&folder));

    let readme = std::fs::read_to_string(Path::new(FOLDER).join("README.md")).unwrap();
    let exports = readme.split("```\n").find(|block| block.starts_with("export OUTGATE_PROXY")).unwrap();
    let script = exports.replace_one("127.0.0.1:4750", &running.proxy.to_string()).replace_one("8443", &port);
    let shown = Command::new("sh").args(["-c", &script]).current_dir(FOLDER).output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.ends_with("\n200\n"), "{shown}");
    let received = receiver.lines.wait_for("what the receiver saw", |lines| {
        lines.iter().find(|line| line.starts_with("POST /in from 127.0.7.")).cloned()
    });
    assert!(received.ends_with(": signature verified"), "{received}");
    let record = running.records(1).remove(0);
    assert_eq!((&record["client"], &record["tenant"]), (&"billing".into(), &"acme".into()), "{record}");
}
