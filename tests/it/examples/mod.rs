//! The folders below `examples`, used as their READMEs say.
//! Does each one deliver a webhook? The only changes are addresses, ports and paths, and a receiver on this host.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod bank;
mod compose;
mod kubernetes;
mod load_balancers;
mod platform;
mod senders;

use std::path::{Path, PathBuf};
use std::process::Command;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use serde_json::Value;

use crate::support::configuration::Config;
use crate::support::pki::Pki;
use crate::support::receiver::{ReceivedRequest, Receiver};
use crate::support::{Folder, required};

/// Returns the path of a file below `examples`.
fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(file)
}

fn config(file: &str) -> Config {
    Config::parse(&std::fs::read_to_string(path(file)).unwrap())
}

/// Returns the sections that lead webhooks for a name to a receiver on this host.
fn receiver_on_this_host(receiver: &Receiver, name: &str) -> String {
    format!(
        "[guard]\nallow = [\"127.0.0.0/8\"]\nports = [{}]\n[resolver.hosts]\n{name:?} = [\"127.0.0.1\"]\n",
        receiver.port()
    )
}

/// Returns a folder with the authority of the test, in place of the public ones.
fn folder_with(pki: &Pki) -> Folder {
    let folder = Folder::new();
    folder.write("ca.pem", &pki.pem);
    folder
}

/// Writes a file that only its owner may read.
fn write_secret(folder: &Folder, name: &str, text: &str) {
    let path = folder.write(name, text);
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
}

/// Runs `outgate check` on the configuration of a folder, which must be valid. Returns the codes of the warnings.
fn checked(folder: &Folder, file: &str) -> Vec<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
    command.args(["check", "--json", "--config"]).arg(folder.path(file));
    let output = command.env("CREDENTIALS_DIRECTORY", folder.path("")).output().unwrap();
    let found: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!(output.status.code(), Some(0), "{found:#?}");
    found.iter().map(|warning| warning["code"].as_str().unwrap().to_owned()).collect()
}

/// Returns whether a program runs. It must, with `OUTGATE_TEST_ALL=1`.
fn has(program: &str, argument: &str) -> bool {
    let is_there = Command::new(program).arg(argument).output().is_ok();
    assert!(is_there || !required(), "{program} is missing");
    if !is_there {
        eprintln!("skipped: {program} is missing");
    }
    is_there
}

/// Runs curl with these words, and returns what it prints: the body, and the status on a line of its own.
fn curl(arguments: &[&str]) -> String {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "20", "--noproxy", "", "--write-out", "\n%{http_code}"]);
    let output = command.args(["--header", "Outgate-TLS: 1", "--data", "{\"type\":\"ping\"}"]).args(arguments).output();
    let output = output.unwrap();
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

/// Makes an Ed25519 key, readable by its owner only.
fn new_key(folder: &Folder, name: &str) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
    command.args(["keys", "new", "--scheme", "rfc9421", "--algorithm", "ed25519", "--out"]);
    assert!(command.arg(folder.path(name)).status().unwrap().success());
}

/// Verifies the signature of a POST (RFC 9421) with the only key that `outgate keys public` prints.
fn verify_with_public_key(received: &ReceivedRequest, folder: &Folder) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
    command.args(["keys", "public", "--config"]).arg(folder.path("config.toml"));
    let output = command.env("CREDENTIALS_DIRECTORY", folder.path("")).output().unwrap();
    let set: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let [key] = set["keys"].as_array().unwrap().as_slice() else { panic!("{set}") };
    let parameters = received.field("signature-input").strip_prefix("sig1=").unwrap();
    assert!(parameters.contains(&format!("keyid={}", key["kid"])), "{received:?}");
    let names = parameters.split_once('(').unwrap().1.split_once(')').unwrap().0;
    let mut base = String::new();
    for name in names.split(' ').map(|name| name.trim_matches('"')) {
        let value = match name {
            "@method" => "POST",
            "@authority" => received.field("host"),
            "@path" => received.line.split(' ').nth(1).unwrap(),
            "@query" => "?",
            field => received.field(field),
        };
        base.push_str(&format!("{name:?}: {value}\n"));
    }
    base.push_str(&format!("\"@signature-params\": {parameters}"));
    let x = BASE64_URL_SAFE_NO_PAD.decode(key["x"].as_str().unwrap()).unwrap();
    let signature =
        BASE64_STANDARD.decode(received.field("signature").strip_prefix("sig1=").unwrap().trim_matches(':'));
    UnparsedPublicKey::new(&ED25519, x).verify(base.as_bytes(), &signature.unwrap()).expect("the signature verifies");
    let digest = BASE64_STANDARD.encode(digest(&SHA256, &received.body));
    assert_eq!(received.field("content-digest"), format!("sha-256=:{digest}:"));
}
