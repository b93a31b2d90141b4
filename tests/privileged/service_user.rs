//! Keys that root creates for a service that runs as another user.
//! Can the service read the keys, and does `check` report if it cannot?
//!
//! Needs root and `unshare`: skipped where they are missing, required with `OUTGATE_TEST_ALL=1`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::process::Command;

/// An environment variable of the process in the namespace.
const INSIDE: &str = "OUTGATE_TEST_INSIDE";
/// The group of the service, and a group that a drop-in adds.
const SERVICE: u32 = 4242;
const EXTRA: u32 = 4343;

/// Runs the test `name` again in a namespace with its own `/etc`. Returns true inside the namespace.
fn inside(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let mut unshare = Command::new("unshare");
    let can = unshare.args(["--mount", "mount", "-t", "tmpfs", "tmpfs", "/etc"]).output();
    if !can.is_ok_and(|output| output.status.success()) {
        let is_required = std::env::var_os("OUTGATE_TEST_ALL").is_some();
        assert!(!is_required, "this host cannot make mount namespaces");
        eprintln!("skipped: needs root and unshare");
        return false;
    }
    let status = Command::new("unshare")
        .args(["--mount", "sh", "-c", "mount -t tmpfs tmpfs /etc && exec \"$0\" \"$@\" --exact --nocapture"])
        .arg(std::env::current_exe().unwrap())
        .arg(format!("service_user::{name}"))
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{name} failed inside its namespace");
    false
}

/// Creates the user and the folders of the package.
fn install() {
    fs::write("/etc/passwd", format!("root:x:0:0::/root:/bin/sh\noutgate:x:{SERVICE}:{SERVICE}::/:/bin/false\n"))
        .unwrap();
    fs::write("/etc/group", format!("root:x:0:\noutgate:x:{SERVICE}:\nextra:x:{EXTRA}:\n")).unwrap();
    fs::create_dir_all("/etc/outgate/keys").unwrap();
    chown("/etc/outgate/keys", None, Some(SERVICE)).unwrap();
    fs::set_permissions("/etc/outgate/keys", Permissions::from_mode(0o750)).unwrap();
    fs::create_dir_all("/etc/systemd/system/outgate.service.d").unwrap();
    fs::write("/etc/systemd/system/outgate.service", "[Service]\nUser=outgate\nGroup=outgate\n").unwrap();
    let config = "[egress.default]\nranges = [\"198.51.100.16/28\"]\n[[routes]]\nname = \"all\"\nhosts = [\"*\"]\n\
        sign = [\"platform\"]\n[signers.platform]\nscheme = \"standard-webhooks\"\n\
        keys = [{ id = \"k\", secret = \"file:/etc/outgate/keys/k\" }]\n[clients.local]\nnetworks = [\"127.0.0.0/8\"]\n";
    fs::write("/etc/outgate/config.toml", config).unwrap();
}

/// Returns the exit code and the output.
fn outgate(arguments: &str) -> (i32, String) {
    let output = Command::new("sh")
        .args(["-c", "umask 077; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_outgate")])
        .args(arguments.split(' '))
        .output()
        .unwrap();
    let printed = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(printed).unwrap())
}

fn owners(path: &str) -> (u32, u32, u32) {
    let metadata = fs::metadata(path).unwrap();
    (metadata.uid(), metadata.gid(), metadata.mode() & 0o777)
}

#[test]
fn keys_new_below_etc_outgate_makes_keys_that_the_service_reads() {
    if !inside("keys_new_below_etc_outgate_makes_keys_that_the_service_reads") {
        return;
    }
    install();
    assert_eq!(outgate("keys new --out /etc/outgate/keys/k"), (0, String::new()));
    assert_eq!(owners("/etc/outgate/keys/k"), (0, SERVICE, 0o640));
    let (key, (code, printed)) =
        (fs::read("/etc/outgate/keys/k").unwrap(), outgate("keys new --out /etc/outgate/keys/k"));
    assert!(code == 73 && printed.contains("the file already exists"), "{printed}");
    assert_eq!(fs::read("/etc/outgate/keys/k").unwrap(), key);

    assert_eq!(outgate("ca new /etc/outgate/keys/ca.pem /etc/outgate/keys/ca.key"), (0, String::new()));
    assert_eq!(owners("/etc/outgate/keys/ca.key"), (0, SERVICE, 0o640));
    assert_eq!(owners("/etc/outgate/keys/ca.pem"), (0, SERVICE, 0o644));
    assert_eq!(outgate("ca new /etc/outgate/keys/ca.pem /etc/outgate/keys/other.key").0, 73);
    assert!(!fs::exists("/etc/outgate/keys/other.key").unwrap());

    fs::create_dir("/etc/elsewhere").unwrap();
    chown("/etc/elsewhere", None, Some(SERVICE)).unwrap();
    assert_eq!(outgate("keys new --out /etc/elsewhere/k"), (0, String::new()));
    assert_eq!(owners("/etc/elsewhere/k").2, 0o600);

    let (code, printed) = outgate("check");
    assert!(code == 0 && printed.contains("as user outgate"), "{printed}");
}

#[test]
fn check_judges_files_as_the_user_of_the_service() {
    if !inside("check_judges_files_as_the_user_of_the_service") {
        return;
    }
    install();
    let key = "/etc/outgate/keys/k";
    assert_eq!(outgate("keys new --out /etc/outgate/keys/k").0, 0);
    // The shell makes such a file for root.
    chown(key, None, Some(0)).unwrap();
    fs::set_permissions(key, Permissions::from_mode(0o600)).unwrap();
    let (code, printed) = outgate("check");
    assert!(code == 1 && printed.contains("permission denied") && printed.contains(key), "{printed}");
    assert!(printed.contains("as user outgate"), "{printed}");
    assert_eq!(outgate("check --as root").0, 0);
    assert_eq!(outgate("check --as outgate").0, 1);
    let (code, printed) = outgate("check --as missing");
    assert!(code == 67 && printed.contains("no user \"missing\""), "{printed}");
    // A configuration elsewhere belongs to the user of the command.
    fs::copy("/etc/outgate/config.toml", "/etc/elsewhere.toml").unwrap();
    assert_eq!(outgate("check --config /etc/elsewhere.toml").0, 0);
    // Groups that a drop-in adds count.
    chown(key, None, Some(EXTRA)).unwrap();
    fs::set_permissions(key, Permissions::from_mode(0o640)).unwrap();
    assert_eq!(outgate("check").0, 1);
    let drop_in = "/etc/systemd/system/outgate.service.d/groups.conf";
    fs::write(drop_in, "[Service]\nSupplementaryGroups=extra\n").unwrap();
    let (code, printed) = outgate("check");
    assert_eq!(code, 0, "{printed}");
}
