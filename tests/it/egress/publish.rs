//! The publish listener and `outgate egress publish`, as a customer and a web server see them.
//! Does a customer get exactly the current ranges, and can it verify them?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use outgate::policy::egress::list::format::FORMATS;
use serde_json::{Value, json};
use support::audit::checkpoint_key;
use support::configuration::Config;
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{config, folder};
use support::{Client, Folder, Outgate, Response, required};

const RANGES: [&str; 2] = ["127.0.7.0/30", "2001:db8:5::/64"];

/// A folder with a key, and the usual configuration with a publish listener and a second pool.
fn published(change: &dyn Fn(&Config) -> Config) -> (Folder, Config) {
    let folder = folder(&Pki::new());
    folder.write("ranges.pem", checkpoint_key());
    let config = config(&Receiver::plain(ok()), &Receiver::plain(ok()), "")
        .set("egress.default.ranges", RANGES)
        .add("server.state", "{dir}/state")
        .and(
            "[egress.EU_West]\nranges = [\"127.0.8.0/31\", { cidr = \"127.0.8.4/30\", from = \"2200-01-01T00:00:00Z\" }, \
             { cidr = \"127.0.8.8/30\", until = \"2201-01-01T00:00:00Z\" }]\n\
             [publish]\nlisten = [\"127.0.0.1:0\"]\nsign = \"{dir}/ranges.pem\"\norigin = \"platform.example/ranges\"\n",
        );
    (folder, change(&config))
}

struct Published {
    outgate: Outgate,
    address: SocketAddr,
}

impl Published {
    fn start() -> Self {
        let (folder, config) = published(&Clone::clone);
        let outgate = Outgate::run(folder, &config);
        let address = outgate.log.wait_for("publish listener", |lines| {
            lines.iter().find_map(|line| line.split_once("publish listening on ")?.1.trim().parse().ok())
        });
        Self { outgate, address }
    }

    fn request(&self, method: &str, path: &str, fields: &str) -> Response {
        let mut client = Client::connect(self.address);
        client.send(format!(
            "{method} {path} HTTP/1.1\r\nHost: ranges.platform.example\r\n{fields}Connection: close\r\n\r\n"
        ));
        client.response_to(method)
    }

    fn get(&self, path: &str) -> Response {
        self.request("GET", path, "")
    }
}

fn outgate(words: &[&str], config: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_outgate")).arg("egress").args(words).arg("--config").arg(config).output().unwrap()
}

#[test]
fn publish_listener_has_the_bytes_of_every_list_and_of_the_static_site() {
    let published = Published::start();
    let file = published.outgate.folder.path("config.toml");
    for format in FORMATS.iter() {
        for (folder, pool) in
            [("all", None), ("pools/default", Some("default")), ("pools/eu-west-278e", Some("EU_West"))]
        {
            let arguments: Vec<_> = pool.into_iter().flat_map(|pool| ["--pool", pool]).collect();
            let list = outgate(&[&["list", "--format", &*format.name][..], &arguments].concat(), &file);
            let response = published.get(&format!("/{folder}/{}", format.file));
            assert_eq!((response.status, response.field("content-type")), (200, format.media_type()));
            assert_eq!(response.text(), String::from_utf8_lossy(&list.stdout), "{folder} {}", format.name);
        }
    }
    let site = published.outgate.folder.path("site");
    let written = outgate(&["publish", "--out", site.to_str().unwrap()], &file);
    assert!(written.status.success(), "{written:?}");
    let files = files_of(&site);
    assert!(files.len() > 3 * FORMATS.len());
    for (path, bytes) in files {
        assert_eq!(published.get(&format!("/{path}")).body, bytes, "{path}");
    }
}

/// Returns the files below a folder by their paths.
fn files_of(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let (mut files, mut folders) = (BTreeMap::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => drop(files.insert(
                    path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned(),
                    std::fs::read(&path).unwrap(),
                )),
            }
        }
    }
    files
}

#[test]
fn publish_listener_answers_conditional_requests() {
    let published = Published::start();
    let first = published.get("/all/ranges.txt");
    let (etag, modified) = (first.field("etag").to_owned(), first.field("last-modified").to_owned());
    assert_eq!(first.field("cache-control"), "public, max-age=300");
    assert!(etag.len() > 10 && modified.ends_with(" GMT"), "{first:?}");
    let head = published.request("HEAD", "/all/ranges.txt", "");
    assert_eq!((head.status, head.body.len()), (200, 0));
    for name in ["etag", "last-modified", "content-type", "content-length", "cache-control"] {
        assert_eq!(head.field(name), first.field(name), "{name}");
    }
    let (past, future) = ("Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 01 Jan 2100 00:00:00 GMT");
    for (fields, status) in [
        (format!("If-None-Match: {etag}\r\n"), 304),
        (format!("If-None-Match: W/{etag}\r\n"), 304),
        (format!("If-None-Match: \"a\", {etag}\r\n"), 304),
        ("If-None-Match: *\r\n".to_owned(), 304),
        ("If-None-Match: \"a\"\r\n".to_owned(), 200),
        (format!("If-Modified-Since: {modified}\r\n"), 304),
        (format!("If-Modified-Since: {future}\r\n"), 304),
        (format!("If-Modified-Since: {past}\r\n"), 200),
        ("If-Modified-Since: yesterday\r\n".to_owned(), 200),
        (format!("If-None-Match: \"a\"\r\nIf-Modified-Since: {modified}\r\n"), 200),
        (format!("If-Match: {etag}\r\n"), 200),
        ("If-Match: *\r\n".to_owned(), 200),
        ("If-Match: \"a\"\r\n".to_owned(), 412),
        (format!("If-Match: W/{etag}\r\n"), 412),
        (format!("If-Unmodified-Since: {modified}\r\n"), 200),
        (format!("If-Unmodified-Since: {past}\r\n"), 412),
        (format!("If-Match: {etag}\r\nIf-Unmodified-Since: {past}\r\n"), 200),
        (format!("If-Match: {etag}\r\nIf-None-Match: {etag}\r\n"), 304),
    ] {
        let response = published.request("GET", "/all/ranges.txt", &fields);
        assert_eq!(response.status, status, "{fields}");
        assert_eq!(response.body.is_empty(), status != 200, "{fields}");
        assert_eq!(response.field("etag"), etag, "{fields}");
    }
}

#[test]
fn publish_listener_serves_scripts_of_any_site_and_nothing_else() {
    let published = Published::start();
    let preflight = published.request(
        "OPTIONS",
        "/all/ranges.json",
        "Origin: https://a.example\r\nAccess-Control-Request-Method: GET\r\n",
    );
    assert_eq!((preflight.status, preflight.field("access-control-allow-origin")), (204, "*"));
    assert!(preflight.field("access-control-allow-headers").contains("If-None-Match"));
    let response = published.get("/.well-known/egress-ranges.json");
    assert_eq!(response.body, published.get("/all/ranges.json").body);
    assert_eq!(response.field("access-control-allow-origin"), "*");
    assert_eq!(response.field("x-content-type-options"), "nosniff");
    for path in [
        "/metrics",
        "/healthz",
        "/readyz",
        "/v1/status",
        "/v1/openapi.json",
        "/status",
        "/all",
        "/all/",
        "//",
        "/../config.toml",
        "/all/../key",
        "/%2e%2e/ranges.pem",
        "/config.toml",
        "/ranges.pem",
        "/pools/EU_West/ranges.txt",
        "/ALL/ranges.txt",
        "/all/ranges.txt/",
        "/?x",
    ] {
        let response = published.get(path);
        assert_eq!(response.status, if path == "/?x" { 200 } else { 404 }, "{path}");
    }
    for method in ["POST", "PUT", "DELETE", "PATCH", "TRACE"] {
        let response = published.request(method, "/all/ranges.txt", "Content-Length: 0\r\n");
        assert_eq!((response.status, response.field("allow")), (405, "GET, HEAD, OPTIONS"), "{method}");
    }
    let connect = published.request("CONNECT", "hook.example:443", "");
    assert!(connect.status >= 400, "{connect:?}");
    let absolute = published.get("http://hook.example/all/ranges.txt");
    assert_eq!(absolute.status, 200, "the listener is no proxy: the authority has no meaning");
}

#[test]
fn a_reload_shows_in_every_format_within_a_second() {
    let published = Published::start();
    let (serial, before) =
        (published.get("/all/ranges.json").json()["syncToken"].clone(), published.get("/SHA256SUMS"));
    let config = published.outgate.config().push("egress.default.ranges", "127.0.9.64/29");
    published.outgate.reconfigure(&config);
    let adopted = Instant::now();
    for format in FORMATS.iter() {
        let text = published.get(&format!("/all/{}", format.file)).text();
        let shown = ["127.0.9.64/29", "127.0.9.64 255.255.255.248"].iter().any(|range| text.contains(range));
        assert_eq!(shown, format.name != "aws-ipv6", "{}: {text}", format.name);
    }
    assert!(published.get("/").text().contains("127.0.9.64/29"));
    assert!(adopted.elapsed() < Duration::from_secs(1), "{:?}", adopted.elapsed());
    let after = published.get("/all/ranges.json").json();
    let number = |serial: &Value| serial.as_str().unwrap().parse::<i64>().unwrap();
    assert!(number(&after["syncToken"]) > number(&serial));
    assert_ne!(published.get("/SHA256SUMS").field("etag"), before.field("etag"));
    // A reload that changes no range keeps the list, its serial and its date.
    published.outgate.reconfigure(&config.set("server.drain_timeout", "6s"));
    assert_eq!(published.get("/all/ranges.json").json(), after);
    let restarted = Published { address: published.address, outgate: published.outgate.restarted() };
    let address = restarted.outgate.log.wait_for("publish listener", |lines| {
        lines.iter().find_map(|line| line.split_once("publish listening on ")?.1.trim().parse().ok())
    });
    assert_eq!(Published { address, ..restarted }.get("/all/ranges.json").json(), after, "a restart keeps them, too");
}

#[test]
fn a_range_begins_and_ends_without_a_reload() {
    let published = Published::start();
    let now = jiff::Timestamp::now();
    let at = |seconds: i64| (now + jiff::SignedDuration::from_secs(seconds)).to_string();
    let upcoming = json!({ "cidr": "127.0.9.0/30", "from": at(8), "until": at(12) });
    let config = published.outgate.config().push("egress.default.ranges", upcoming);
    // A range stays in the list until the longest delivery that began before its end has ended.
    let config = config.add("routes.*.timeouts.total", "2s").add("routes.*.timeouts.tunnel", "2s");
    published.outgate.reconfigure(&config);
    let json = || published.get("/all/ranges.json").json();
    let serial = |json: &Value| json["syncToken"].as_str().unwrap().parse::<i64>().unwrap();
    let state = |json: &Value| {
        let prefixes = json["prefixes"].as_array().unwrap();
        let range = prefixes.iter().find(|range| range["ipv4Prefix"] == "127.0.9.0/30");
        range.map_or("absent".to_owned(), |range| range["state"].as_str().unwrap().to_owned())
    };
    let announced = json();
    assert_eq!(state(&announced), "announced");
    let max_age: u64 =
        published.get("/all/ranges.json").field("cache-control").rsplit('=').next().unwrap().parse().unwrap();
    assert!(max_age <= 8, "{max_age}");
    support::eventually("the range begins", || state(&json()) == "retiring");
    let begun = json();
    assert!(serial(&begun) > serial(&announced));
    support::eventually("the range ends", || state(&json()) == "absent");
    assert!(serial(&json()) > serial(&begun));
}

#[test]
fn published_files_verify_with_openssl_sha256sum_and_go() {
    let (folder, config) = published(&Clone::clone);
    let file = folder.write_config("config.toml", &config);
    let site = folder.path("site");
    let written = outgate(&["publish", "--out", site.to_str().unwrap()], &file);
    assert!(written.status.success(), "{written:?}");
    let sh = |script: &str| Command::new("sh").args(["-c", script]).current_dir(&site).output().unwrap();
    let verify = "openssl pkeyutl -verify -pubin -inkey key.pem -rawin -in SHA256SUMS -sigfile SHA256SUMS.sig && sha256sum --check --quiet SHA256SUMS";
    let page = std::fs::read_to_string(site.join("index.html")).unwrap();
    assert!(
        page.contains("openssl pkeyutl -verify -pubin -inkey key.pem -rawin -in SHA256SUMS -sigfile SHA256SUMS.sig")
    );
    let verified = sh(verify);
    assert!(verified.status.success(), "{verified:?}");
    // The manifest has every file but itself and its signed forms.
    let manifest = std::fs::read_to_string(site.join("SHA256SUMS")).unwrap();
    let listed = manifest.lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(listed, files_of(&site).len() - 3, "{manifest}");
    verify_note(&folder, &site);
    let ranges = std::fs::read(site.join("all/ranges.txt")).unwrap();
    std::fs::write(site.join("all/ranges.txt"), "0.0.0.0/0\n").unwrap();
    assert!(!sh(verify).status.success(), "a changed file");
    std::fs::write(site.join("all/ranges.txt"), ranges).unwrap();
    assert!(sh(verify).status.success(), "the file as it was");
    std::fs::write(site.join("SHA256SUMS"), format!("{manifest}# more\n")).unwrap();
    assert!(!sh(verify).status.success(), "a changed manifest");
}

/// Opens the signed note with Go's own package.
fn verify_note(folder: &Folder, site: &Path) {
    let package = "/usr/share/gocode/src/golang.org/x/mod/sumdb/note";
    if !Path::new(package).exists() {
        assert!(!required(), "golang-golang-x-mod-dev is missing");
        return;
    }
    let program = folder.write(
        "note.go",
        "package main\n\nimport (\n\t\"fmt\"\n\t\"os\"\n\t\"strings\"\n\n\t\"golang.org/x/mod/sumdb/note\"\n)\n\nfunc main() {\n\
         \tkey, _ := os.ReadFile(\"key.txt\")\n\tverifier, err := note.NewVerifier(strings.TrimSpace(string(key)))\n\
         \tif err != nil {\n\t\tpanic(err)\n\t}\n\tmessage, _ := os.ReadFile(\"SHA256SUMS.note\")\n\
         \topened, err := note.Open(message, note.VerifierList(verifier))\n\tif err != nil {\n\t\tpanic(err)\n\t}\n\
         \tfmt.Print(opened.Text)\n}\n",
    );
    let go = Command::new("go")
        .args(["run", program.to_str().unwrap()])
        .current_dir(site)
        .envs([("GO111MODULE", "off"), ("GOPATH", "/usr/share/gocode"), ("GOFLAGS", "")])
        .env("GOCACHE", folder.path("gocache"))
        .output()
        .unwrap();
    assert!(go.status.success(), "{go:?}");
    assert_eq!(go.stdout, std::fs::read(site.join("SHA256SUMS")).unwrap());
}

#[test]
fn page_loads_nothing_and_has_every_range_and_file() {
    let published = Published::start();
    let response = published.get("/");
    let text = response.text();
    let style = &text[text.find("<style>").unwrap() + 7..text.find("</style>").unwrap()];
    let hash = BASE64_STANDARD.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, style.as_bytes()));
    let policy = response.field("content-security-policy");
    assert!(policy.starts_with(&format!("default-src 'none'; style-src 'sha256-{hash}';")), "{policy}");
    assert!(
        text.contains(&format!("style-src &#39;sha256-{hash}&#39;"))
            || text.contains(&format!("style-src 'sha256-{hash}'"))
    );
    for forbidden in ["style=", "<script", "http:", "https:", "src="] {
        assert!(!text.contains(forbidden), "{forbidden} in {text}");
    }
    for range in ["127.0.7.0/30", "2001:db8:5::/64", "127.0.8.4/30"] {
        assert!(text.contains(range), "{range}");
    }
    assert!(text.contains("From 2200-01-01T00:00:00Z, webhooks of pool EU_West come from 1 range"), "{text}");
    assert!(text.contains("From 2201-01-01T00:00:00Z, webhooks of pool EU_West no longer come from 1 range"));
    let links: Vec<&str> = text.split("href=\"").skip(1).map(|rest| &rest[..rest.find('"').unwrap()]).collect();
    assert!(links.len() > 3 * FORMATS.len());
    for link in links.into_iter().filter(|link| !link.starts_with("data:")) {
        assert_eq!(published.get(&format!("/{link}")).status, 200, "{link}");
    }
}

#[test]
fn feeds_have_the_dated_changes() {
    let published = Published::start();
    let feed = published.get("/feed.json");
    assert_eq!(feed.field("content-type"), "application/feed+json");
    let feed = feed.json();
    assert_eq!(feed["version"], "https://jsonfeed.org/version/1.1");
    let changes: Vec<_> = feed["items"].as_array().unwrap().iter().map(|item| item["_egress"].clone()).collect();
    let change =
        |change: &str, at: &str, cidr: &str| json!({ "pool": "EU_West", "change": change, "at": at, "cidrs": [cidr] });
    assert_eq!(
        changes,
        [
            change("until", "2201-01-01T00:00:00Z", "127.0.8.8/30"),
            change("from", "2200-01-01T00:00:00Z", "127.0.8.4/30")
        ]
    );
    let atom = published.get("/feed.atom");
    assert_eq!(atom.field("content-type"), "application/atom+xml");
    let program = "import sys, json, xml.etree.ElementTree as tree\nns = '{http://www.w3.org/2005/Atom}'\n\
        feed = tree.parse(sys.stdin).getroot()\nassert feed.tag == ns + 'feed', feed.tag\n\
        for name in ['id', 'title', 'updated', 'author', 'link']: assert feed.find(ns + name) is not None, name\n\
        print(json.dumps([[e.find(ns + name).text for name in ['id', 'title', 'updated', 'content']] for e in feed.findall(ns + 'entry')]))";
    published.outgate.folder.write("feed.atom", &atom.body);
    let Ok(python) = Command::new("python3")
        .args(["-c", program])
        .stdin(std::fs::File::open(published.outgate.folder.path("feed.atom")).unwrap())
        .output()
    else {
        assert!(!required(), "python3 is missing");
        return;
    };
    assert!(python.status.success(), "{python:?}");
    let entries: Vec<[String; 4]> = serde_json::from_slice(&python.stdout).unwrap();
    let items = feed["items"].as_array().unwrap();
    assert_eq!(entries.len(), items.len());
    for ([id, title, updated, content], item) in entries.iter().zip(items) {
        assert_eq!(
            (&json!(id), &json!(title), &json!(updated), &json!(content)),
            (&item["id"], &item["title"], &item["date_modified"], &item["content_text"])
        );
    }
    // An entry keeps its id when its ranges change.
    let more = json!({ "cidr": "127.0.8.16/30", "from": "2200-01-01T00:00:00Z" });
    published.outgate.reconfigure(&published.outgate.config().push("egress.EU_West.ranges", more));
    let changed = published.get("/feed.json").json();
    assert_eq!(changed["items"][1]["id"], items[1]["id"]);
    assert_eq!(changed["items"][1]["_egress"]["cidrs"], json!(["127.0.8.4/30", "127.0.8.16/30"]));
}

#[test]
fn publish_replaces_a_former_publication_and_nothing_else() {
    let (folder, config) = published(&Clone::clone);
    let file = folder.write_config("config.toml", &config);
    let site = folder.path("site");
    let publish = |out: &PathBuf| outgate(&["publish", "--out", out.to_str().unwrap()], &file);
    assert!(publish(&site).status.success());
    std::fs::write(site.join("old"), "x").unwrap();
    std::os::unix::fs::symlink(&site, folder.path("link")).unwrap();
    folder.write_config("config.toml", &config.push("egress.default.ranges", "127.0.9.64/29"));
    assert!(publish(&folder.path("link")).status.success());
    assert!(!site.join("old").exists(), "the former files are gone");
    assert!(std::fs::read_to_string(site.join("all/ranges.txt")).unwrap().contains("127.0.9.64/29"));
    let left: Vec<_> = std::fs::read_dir(folder.path(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_str().unwrap().starts_with(".site"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    let other = folder.path("other");
    std::fs::create_dir(&other).unwrap();
    assert!(publish(&other).status.success(), "an empty folder");
    let home = folder.path("home");
    std::fs::create_dir(&home).unwrap();
    std::fs::write(home.join("letter"), "x").unwrap();
    let refused = publish(&home);
    assert_eq!(refused.status.code(), Some(73));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("it has other files"), "{refused:?}");
    assert!(home.join("letter").exists());
}

#[test]
fn check_reports_what_the_publish_section_lacks() {
    let check = |change: &dyn Fn(&Config) -> Config| {
        let (folder, config) = published(change);
        folder.write("p256.pem", {
            let words = ["keys", "new", "--scheme", "rfc9421", "--algorithm", "ecdsa-p256-sha256"];
            Command::new(env!("CARGO_BIN_EXE_outgate")).args(words).output().unwrap().stdout
        });
        let file = folder.write_config("config.toml", &config);
        let output =
            Command::new(env!("CARGO_BIN_EXE_outgate")).args(["check", "--config"]).arg(file).output().unwrap();
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
    };
    for (change, expected) in [
        (
            &(|config: &Config| config.set("publish.sign", "{dir}/p256.pem")) as &dyn Fn(&Config) -> Config,
            "the key of `publish.sign` is of the algorithm",
        ),
        (&|config| config.set("publish.sign", "{dir}/nowhere.pem"), "`publish.sign` has no secret"),
        (&|config| config.set("publish.listen", ["systemd"]), "`publish.listen` takes no socket of systemd"),
        (
            &|config| config.set("publish.listen", ["127.0.0.1:4751"]).set("admin.listen", ["127.0.0.1:4751"]),
            "two listeners have the socket 127.0.0.1:4751",
        ),
        (&|config| config.set("publish.origin", "a b"), "`publish.origin` is not the name of a log"),
        (
            &|config| config.set("publish.listen", json!([{ "address": "127.0.0.1:0", "alpn": ["h2"] }])),
            "unknown key `publish.listen.alpn`",
        ),
    ] {
        let report = check(change);
        assert!(report.contains(expected), "{expected}: {report}");
    }
}
