//! A network namespace in which a test runs again.
//! How does a test get addresses, routes and port ranges of its own?

use std::process::Command;

use super::configuration::Config;
use super::required;

/// An environment variable of the process in the namespace.
const INSIDE: &str = "OUTGATE_TEST_INSIDE";

/// Runs the test with this path again in a new network namespace. Returns true inside the namespace.
pub fn inside_namespace(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        run("ip link set lo up");
        return true;
    }
    let can = Command::new("unshare").args(["--net", "ip", "link"]).output().is_ok_and(|out| out.status.success());
    if !can {
        assert!(!required(), "this host cannot make network namespaces");
        eprintln!("skipped: needs root, unshare and ip");
        return false;
    }
    let exe = std::env::current_exe().unwrap();
    let status = Command::new("unshare")
        .arg("--net")
        .arg(exe)
        .args([name, "--exact", "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{name} failed inside its namespace");
    false
}

pub fn run(command: &str) {
    let mut words = command.split(' ');
    let out = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(out.status.success(), "{command}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Returns a configuration of an outgate in the namespace. `more` has the pools, the guard, the names and the routes.
pub fn config(more: &str) -> Config {
    let common = r#"
[server]
listen = ["127.0.0.1:0"]
allow_anonymous = true
[admin]
listen = ["127.0.0.1:0"]
[trust.public]
roots = ["{dir}/ca.pem"]
"#;
    Config::parse(common).and(more)
}
