//! A proxy whose tenants have their own keys, in a directory that a test changes as an operator does.
//! With which tenant's key is a webhook signed?

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::Value;

use super::configuration::Config;
use super::pki::Pki;
use super::receiver::{ReceivedRequest, Receiver, ok};
use super::scene::{config, folder};
use super::signature::verifies;
use super::{Folder, Outgate, Response};

pub const NAMES: [&str; 3] = ["acme", "globex", "initech"];

pub struct Scene {
    pub outgate: Outgate,
    pub receiver: Receiver,
}

pub fn new_key(scheme: &str) -> String {
    let output =
        Command::new(env!("CARGO_BIN_EXE_outgate")).args(["keys", "new", "--scheme", scheme]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Writes a key file with mode 0600 and renames it, so that no partial file is visible.
pub fn write_key(folder: &Folder, name: &str, secret: &str) {
    let (path, elsewhere) = (folder.path(name), Folder::new());
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let new = elsewhere.write("new", secret);
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(new, path).unwrap();
}

/// Returns a configuration whose signer `platform` has a `key_dir` and the keys in `more`. The client may send for any
/// tenant.
pub fn text(receiver: &Receiver, more: &str) -> Config {
    let client = "[clients.billing]\nnetworks = [\"127.0.0.0/8\"]\ntenants = [\"*\"]\n";
    config(receiver, receiver, client)
        .remove("signers.platform.keys")
        .add("signers.platform.key_dir", "{dir}/keys")
        .and(&format!("[signers.platform]\n{more}"))
}

impl Scene {
    /// Starts a scene in which each tenant has one key, `k1`.
    pub fn new(more: &str) -> Self {
        let pki = Pki::new();
        let receiver = Receiver::tls(pki.leaf(&["hook.example"]), ok());
        let folder = folder(&pki);
        for name in NAMES {
            write_key(&folder, &format!("keys/{name}/k1.key"), &new_key("standard-webhooks"));
        }
        let outgate = Outgate::run(folder, &text(&receiver, more));
        Self { outgate, receiver }
    }

    pub fn folder(&self) -> &Folder {
        &self.outgate.folder
    }

    pub fn secret(&self, file: &str) -> String {
        fs::read_to_string(self.folder().path("keys").join(file)).unwrap().trim().to_owned()
    }

    /// Returns the secret of each tenant, in the order of `NAMES`.
    pub fn secrets(&self) -> Vec<String> {
        NAMES.iter().map(|name| self.secret(&format!("{name}/k1.key"))).collect()
    }

    pub fn try_post(&self, tenant: Option<&str>) -> Response {
        let url = format!("https://hook.example:{}/in", self.receiver.port());
        let tenant = tenant.map_or(String::new(), |tenant| format!("Outgate-Tenant: {tenant}\r\n"));
        self.outgate.post(&url, &tenant, "{}")
    }

    pub fn deliver(&self, tenant: Option<&str>) -> ReceivedRequest {
        let response = self.try_post(tenant);
        assert_eq!(response.status, 200, "{tenant:?}: {response:?}");
        self.receiver.requests().pop().unwrap()
    }

    pub fn refused(&self, tenant: Option<&str>) -> (u16, String, Value) {
        let before = self.receiver.requests().len();
        let response = self.try_post(tenant);
        assert_eq!(self.receiver.requests().len(), before, "{tenant:?}: {response:?}");
        (response.status, response.code().to_owned(), response.json()["details"].clone())
    }

    /// Makes a change, and returns the log lines up to the outcome of the reload.
    pub fn log_after(&self, change: impl FnOnce(&Folder)) -> Vec<String> {
        let before = self.outgate.log.all().len();
        change(self.folder());
        let is_outcome = |line: &String| line.contains("configuration reloaded") || line.contains("not adopted");
        let outcome = |lines: &[String]| lines[before..].iter().any(is_outcome).then(|| lines[before..].to_vec());
        self.outgate.log.wait_for("the outcome of a reload", outcome)
    }

    /// Makes a change, and waits until outgate notices it and has adopted it. A reload that began before the change may
    /// still be rejected, or may have read a part of it. The reload by signal reads all of it.
    pub fn change_and_adopt(&self, change: impl FnOnce(&Folder)) {
        self.outgate.after_reload(|| change(self.folder()));
        self.outgate.reload_by_signal();
    }
}

/// Returns the indices of the secrets with which a webhook verifies.
pub fn signed_by(received: &ReceivedRequest, secrets: &[String]) -> Vec<usize> {
    (0..secrets.len()).filter(|i| verifies(received, &secrets[*i])).collect()
}

/// Exchanges the names of two folders atomically.
pub fn swap(folder: &Folder, one: &str, other: &str) {
    let path = |name: &str| folder.path("keys").join(name);
    renameat_with(CWD, path(one), CWD, path(other), RenameFlags::EXCHANGE).unwrap();
}

/// Runs `outgate check`, and returns whether it succeeds and its stderr.
pub fn check(folder: &Folder) -> (bool, String) {
    let file = folder.path("config.toml");
    let output = Command::new(env!("CARGO_BIN_EXE_outgate")).args(["check", "--config"]).arg(file).output().unwrap();
    (output.status.success(), String::from_utf8(output.stderr).unwrap())
}

pub fn run(arguments: &[&str], folder: &Folder) -> (String, String) {
    let file = folder.path("config.toml");
    let output =
        Command::new(env!("CARGO_BIN_EXE_outgate")).args(arguments).arg("--config").arg(file).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr))
}
