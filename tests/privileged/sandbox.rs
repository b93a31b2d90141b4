//! A proxy that another user than root starts with the capability for ports below 1024.
//! Does outgate listen on port 443, keep no capability, and hide its memory from its own user?
//!
//! Needs root, `unshare`, `ip` and `setpriv`: skipped where they are missing, required with `OUTGATE_TEST_ALL=1`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::process::Command;

use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{config, folder};
use support::{Outgate, required};

/// An environment variable of the process in the namespace.
const INSIDE: &str = "OUTGATE_TEST_INSIDE";
/// A user without an entry in /etc/passwd.
const USER: u32 = 4242;

/// Runs the test `name` again in a new network namespace. Returns true inside the namespace.
fn inside(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        return true;
    }
    let can = Command::new("unshare").args(["--net", "setpriv", "--reuid", "1", "ip", "link"]).output();
    if !can.is_ok_and(|output| output.status.success()) {
        assert!(!required(), "this host cannot make network namespaces");
        eprintln!("skipped: needs root, unshare, ip and setpriv");
        return false;
    }
    let mut unshare = Command::new("unshare");
    unshare.arg("--net").arg(std::env::current_exe().unwrap());
    unshare.args([&format!("sandbox::{name}"), "--exact", "--nocapture"]).env(INSIDE, "1");
    assert!(unshare.status().unwrap().success(), "{name} failed inside its namespace");
    false
}

#[test]
fn sandbox_binds_a_privileged_port_and_then_holds_no_capability() {
    if !inside("sandbox_binds_a_privileged_port_and_then_holds_no_capability") {
        return;
    }
    let receiver = Receiver::plain(ok());
    let folder = folder(&Pki::new());
    let config = config(&receiver, &receiver, "").set("server.listen", ["127.0.0.1:443"]);
    folder.write_config("config.toml", &config);
    // The user reaches the binary, which stands in a folder of root, by a copy.
    fs::copy(env!("CARGO_BIN_EXE_outgate"), folder.path("outgate")).unwrap();
    for name in ["", "config.toml", "ca.pem", "key", "outgate"] {
        let path = folder.path(name);
        chown(&path, Some(USER), Some(USER)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
    }
    let mut command = Command::new("setpriv");
    let user = USER.to_string();
    command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]);
    command.args(["--inh-caps", "+net_bind_service", "--ambient-caps", "+net_bind_service"]);
    command.arg(folder.path("outgate")).args(["run", "--config"]).arg(folder.path("config.toml"));
    let outgate = Outgate::start(command, folder);
    assert_eq!(outgate.proxy.port(), 443);
    let response = outgate.post(&format!("http://plain.example:{}/in", receiver.port()), "", "x");
    assert_eq!(response.status, 200, "{}", response.text());
    for task in fs::read_dir(format!("/proc/{}/task", outgate.pid())).unwrap() {
        let Ok(status) = fs::read_to_string(task.unwrap().path().join("status")) else { continue };
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert!(status.contains(&format!("{set}:\t0000000000000000")), "{set}: {status}");
        }
    }
    // A process that its user may read and trace belongs to that user (proc(5)).
    let owner = fs::metadata(format!("/proc/{}/mem", outgate.pid())).unwrap().uid();
    assert_eq!(owner, 0, "the process is dumpable");
    // The port of the next reload needs the capability again.
    outgate.reconfigure_to_rejection(&config.set("server.listen", ["127.0.0.1:443", "127.0.0.1:444"]));
    outgate.log.wait_for_lines(1, &["restart outgate, which drops the capability for ports below 1024"]);
}
