//! Records in a real journal: systemd-journald in namespaces of the test's own.
//! Does `journalctl OUTGATE_TENANT=acme` find a delivery?
//!
//! Needs root, `unshare` and systemd: skipped where they are missing, required with `OUTGATE_TEST_ALL=1`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::process::Command;

use outgate::state::observability::journald::Journal;
use serde_json::Value;

use crate::support::pki::Pki;
use crate::support::receiver::{Receiver, ok};
use crate::support::scene::{config, folder};
use crate::support::{Outgate, eventually, required};

/// Set in the process that runs inside the namespaces.
const INSIDE: &str = "OUTGATE_TEST_INSIDE";
const JOURNALD: &str = "/lib/systemd/systemd-journald";

/// Runs the test named `name` again beside a journal of its own. True inside, where the test goes on.
fn inside(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let unshare = |shell: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", shell]);
        command
    };
    let can = unshare(&format!("mount -t tmpfs tmpfs /run && test -x {JOURNALD} && test -s /etc/machine-id")).output();
    if !can.is_ok_and(|output| output.status.success()) {
        assert!(!required(), "this host has no namespaces, or no systemd-journald");
        eprintln!("skipped: needs root, unshare and systemd-journald");
        return false;
    }
    let shell = format!(
        "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal \"/run/log/journal/$(cat /etc/machine-id)\" && \
         {{ {JOURNALD} & }} && exec \"$0\" \"$@\" --exact --nocapture"
    );
    let mut command = unshare(&shell);
    command.arg(std::env::current_exe().unwrap()).arg(format!("journal::{name}")).env(INSIDE, "1");
    assert!(command.status().unwrap().success(), "{name} failed inside its namespaces");
    false
}

/// The entries that match, as `journalctl -o json` prints them.
fn entries(matching: &str) -> Vec<Value> {
    let mut command = Command::new("journalctl");
    command.args(["--directory", "/run/log/journal", "--no-pager", "--all", "-o", "json", matching]);
    let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn journalctl_finds_a_delivery_by_its_tenant() {
    if !inside("journalctl_finds_a_delivery_by_its_tenant") {
        return;
    }
    eventually("a journal", || Journal::open().is_ok());
    let plain = Receiver::plain(ok());
    let client = "[clients.local]\nnetworks = [\"127.0.0.0/8\"]\ntenants = [\"acme\", \"other\"]\n\
                  [log]\ndeliveries = \"journald\"\n";
    let outgate = Outgate::run(folder(&Pki::new()), &config(&plain, &plain, client));
    let url = format!("http://plain.example:{}/in", plain.port());
    for tenant in ["acme", "other"] {
        assert_eq!(outgate.post(&url, &format!("Outgate-Tenant: {tenant}\r\n"), "x").status, 200);
    }
    eventually("the entry", || entries("OUTGATE_TENANT=acme").len() == 1);
    let entry = &entries("OUTGATE_TENANT=acme")[0];
    assert_eq!((&entry["OUTGATE_CODE"], &entry["PRIORITY"]), (&"delivered".into(), &"6".into()));
    assert_eq!(entry["SYSLOG_IDENTIFIER"], "outgate");
    let record: Value = serde_json::from_str(entry["OUTGATE_RECORD"].as_str().unwrap()).unwrap();
    assert_eq!((&record["tenant"], &record["request_id"]), (&"acme".into(), &entry["OUTGATE_REQUEST_ID"]));
}

#[test]
fn journal_takes_an_entry_that_is_larger_than_a_datagram() {
    if !inside("journal_takes_an_entry_that_is_larger_than_a_datagram") {
        return;
    }
    eventually("a journal", || Journal::open().is_ok());
    let value = "x".repeat(2 << 20);
    Journal::open().unwrap().send(&[("MESSAGE", "large\nentry"), ("OUTGATE_RECORD", &value)]).unwrap();
    eventually("the entry", || entries("MESSAGE=large\nentry").len() == 1);
    assert_eq!(entries("MESSAGE=large\nentry")[0]["OUTGATE_RECORD"].as_str().map(str::len), Some(value.len()));
}
