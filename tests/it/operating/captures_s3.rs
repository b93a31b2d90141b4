//! Captures in a bucket of a real S3-compatible server, which also fails.
//! Does the bucket have the sealed captures, and do deliveries go on without it?
//!
//! Needs `s3s-fs` and Debian's `age`: skipped where one is missing, required with `OUTGATE_TEST_ALL=1`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use support::pki::Pki;
use support::process::Process;
use support::receiver::{Receiver, ok};
use support::scene::folder;
use support::{Folder, Outgate, Response};

use super::captures::{files, is_age_installed, list, new_recipient, run, text, wait_for_result};

const SECRET: &str = "s3-secret";

/// A running server with the bucket `captures`. Dropping it kills it.
pub(crate) struct Server {
    _process: Process,
    port: u16,
}

impl Server {
    /// `port`: 0 for any.
    pub(crate) fn start(root: &Path, port: u16) -> Self {
        let mut command = Command::new("s3s-fs");
        command.args(["--host", "127.0.0.1", "--access-key", "outgate", "--secret-key", SECRET, "--port"]);
        let process = Process::start(command.arg(port.to_string()).arg(root).env("RUST_LOG", "info"));
        let port = process.lines.wait_for("the address of s3s-fs", |lines| {
            lines.iter().find_map(|line| line.split_once("http://127.0.0.1:")?.1.trim().parse().ok())
        });
        Self { _process: process, port }
    }
}

pub(crate) fn is_installed() -> bool {
    let command = Command::new("s3s-fs").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(command.is_ok() || !support::required(), "s3s-fs is missing");
    is_age_installed() && command.is_ok()
}

/// Returns the variables with which a program reaches the server.
pub(crate) fn environment(server: &Server) -> [(&'static str, String); 5] {
    environment_with(server, SECRET)
}

fn environment_with(server: &Server, secret: &str) -> [(&'static str, String); 5] {
    [
        ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", server.port)),
        ("AWS_ALLOW_HTTP", "true".to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("AWS_ACCESS_KEY_ID", "outgate".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", secret.to_owned()),
    ]
}

struct Scene {
    outgate: Outgate,
    receiver: Receiver,
    keys: Folder,
    root: Folder,
}

impl Scene {
    fn start(server: &Server, root: Folder, secret: &str) -> Self {
        let (receiver, keys, folder) = (Receiver::plain(ok()), Folder::new(), folder(&Pki::new()));
        fs::create_dir(folder.path("recipients")).unwrap();
        fs::create_dir(folder.path("audit")).unwrap();
        folder.write("recipients/acme", new_recipient(&keys, "acme"));
        folder.write("recipients/a%2Fb", new_recipient(&keys, "a-b"));
        let config = text(&receiver, "").set("captures.support.store", "s3://captures/eu/outgate");
        folder.write_config("config.toml", &config);
        let environment = environment_with(server, secret);
        let variables: Vec<_> = environment.iter().map(|(name, value)| (*name, Path::new(value))).collect();
        let outgate = Outgate::run_in_with(folder, &variables);
        Self { outgate, receiver, keys, root }
    }

    fn post(&self, tenant: &str) -> Response {
        let url = format!("http://plain.example:{}/in", self.receiver.port());
        let response = self.outgate.post(&url, &format!("Outgate-Tenant: {tenant}\r\n"), "x");
        assert_eq!(response.status, 200);
        response
    }

    fn objects(&self) -> Vec<PathBuf> {
        files(&self.root.path("captures/eu/outgate/support"))
    }
}

fn root() -> Folder {
    let root = Folder::new();
    fs::create_dir(root.path("captures")).unwrap();
    root
}

#[test]
fn captures_in_a_bucket_are_listed_opened_and_erased_by_tenant() {
    if !is_installed() {
        return;
    }
    let root = root();
    let server = Server::start(&root.path(""), 0);
    let scene = Scene::start(&server, root, SECRET);
    let id = scene.post("acme").field("outgate-request-id").to_owned();
    scene.post("a/b");
    wait_for_result(&scene.outgate, "stored", 2);
    assert_eq!(scene.objects().len(), 2);
    assert_eq!(list(&scene.outgate, &[]).len(), 2);
    assert_eq!(list(&scene.outgate, &["--tenant", "a/b"])[0]["tenant"], "a/b");
    assert_eq!(list(&scene.outgate, &["--tenant", "a"]), [Value::Null; 0]);

    let out = Folder::new();
    let exported = run(&scene.outgate, &["export", "--tenant", "acme", "--out", &out.path("").display().to_string()]);
    let mut age = Command::new("age");
    age.args(["--decrypt", "--identity"]).arg(scene.keys.path("acme"));
    age.arg(String::from_utf8(exported.stdout).unwrap().trim_end());
    let captured: Value = serde_json::from_slice(&age.output().unwrap().stdout).unwrap();
    assert_eq!(captured["request_id"], id);

    let erased = String::from_utf8(run(&scene.outgate, &["erase", "--tenant", "acme"]).stdout).unwrap();
    assert!(erased.contains("erased: 1; audit records: "), "{erased}");
    assert_eq!(scene.objects().len(), 1);
    assert_eq!(list(&scene.outgate, &[])[0]["tenant"], "a/b");
}

#[test]
fn deliveries_go_on_while_the_bucket_is_gone_or_refuses() {
    if !is_installed() {
        return;
    }
    let root = root();
    let path = root.path("");
    let server = Server::start(&path, 0);
    let port = server.port;
    let scene = Scene::start(&server, root, SECRET);
    scene.post("acme");
    wait_for_result(&scene.outgate, "stored", 1);
    drop(server);
    scene.post("acme");
    scene.post("acme");
    wait_for_result(&scene.outgate, "failed", 2);
    scene.outgate.log.wait_for_lines(1, &["cannot use the store s3://captures/eu/outgate", "deliveries go on"]);
    assert_eq!(run(&scene.outgate, &["list"]).status.code(), Some(69));
    let lines: Vec<_> = scene.outgate.log.all().into_iter().filter(|line| line.contains("HTTP error")).collect();
    assert_eq!(lines.len(), 1, "one line for a failure that lasts: {lines:?}");
    let _server = Server::start(&path, port);
    scene.post("acme");
    wait_for_result(&scene.outgate, "stored", 2);
    scene.outgate.log.wait_for_lines(1, &["the store s3://captures/eu/outgate works again"]);
    assert_eq!(scene.receiver.requests().len(), 4);
}

#[test]
fn captures_are_lost_and_reported_if_the_bucket_refuses_the_secret() {
    if !is_installed() {
        return;
    }
    let root = root();
    let server = Server::start(&root.path(""), 0);
    let scene = Scene::start(&server, root, "wrong");
    scene.post("acme");
    wait_for_result(&scene.outgate, "failed", 1);
    let lines = scene
        .outgate
        .log
        .wait_for("the failure", |lines| lines.iter().find(|line| line.contains("cannot use the store")).cloned());
    assert!(lines.contains("SignatureDoesNotMatch") && !lines.contains("wrong"), "{lines}");
    assert!(scene.objects().is_empty());
}
