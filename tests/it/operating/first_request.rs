//! The unchanged first section of README.
//! Do its commands deliver a signed webhook?
//!
//! The request needs curl: skipped where it is missing, required with `OUTGATE_TEST_ALL=1`.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::process::Command;

use support::configuration::Replace;
use support::process::Process;
use support::{Folder, Outgate, required};

/// Returns the configuration and the commands of the section.
struct Section {
    toml: String,
    commands: Vec<String>,
}

fn section() -> Section {
    let readme = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md"));
    let section = readme.split("## The first ten minutes").nth(1).unwrap().split("\n## ").next().unwrap();
    let blocks: Vec<&str> = section.split("```").skip(1).step_by(2).collect();
    let toml = blocks.iter().find_map(|block| block.strip_prefix("toml\n")).unwrap();
    let commands = blocks.iter().filter_map(|block| block.strip_prefix('\n'));
    Section { toml: toml.to_owned(), commands: commands.map(|block| block.trim().to_owned()).collect() }
}

impl Section {
    fn command(&self, start: &str) -> &str {
        self.commands.iter().find(|command| command.starts_with(start)).unwrap()
    }
}

/// Runs the binary with the arguments of a command in README.
fn outgate(command: &str, folder: &Folder) -> Command {
    let mut words = command.split(' ');
    assert_eq!(words.next(), Some("outgate"));
    let mut process = Command::new(env!("CARGO_BIN_EXE_outgate"));
    process.args(words).current_dir(folder.path(""));
    process
}

#[test]
fn first_request_of_the_readme_is_delivered_and_signed() {
    if Command::new("curl").arg("--version").output().is_err() {
        assert!(!required(), "curl is missing");
        return;
    }
    let (section, folder) = (section(), Folder::new());
    // The only changes are free ports.
    let receiver = section.command("outgate demo");
    let mut receiver = Process::start(outgate(receiver, &folder).args(["--listen", "127.0.0.1:0"]));
    let port = receiver.lines.wait_for("the receiver's address", |lines| {
        let line = lines
            .iter()
            .find_map(|line| line.strip_prefix("The receiver hooks.customer.example listens on 127.0.0.1:"))?;
        line.split(' ').next().map(str::to_owned)
    });
    let toml = section.toml.replace_one("127.0.0.1:4750", "127.0.0.1:0").replace_all("8443", &port);
    folder.write("outgate.toml", toml.replace_one("[server]", "[admin]\nlisten = []\n[server]"));

    let check = outgate("outgate check --config outgate.toml", &folder).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    let running = Outgate::start(outgate(section.command("outgate run"), &folder), Folder::linked(&folder));

    let curl =
        section.command("curl -x").replace_one("127.0.0.1:4750", &running.proxy.to_string()).replace_all("8443", &port);
    let response = Command::new("sh").args(["-c", &format!("{curl} --silent --show-error")]).output().unwrap();
    let response = String::from_utf8_lossy(&response.stdout).into_owned();
    assert!(response.starts_with("from 127.0.7.") && response.ends_with(": signature verified\n"), "{response}");
    let received = receiver.lines.wait_for("what the receiver saw", |lines| {
        lines.iter().find(|line| line.starts_with("POST /in from 127.0.7.")).cloned()
    });
    assert!(received.ends_with(": signature verified"), "{received}");
    assert_eq!(running.records(1)[0]["signatures"], serde_json::json!(["first"]));

    receiver.signal("INT");
    assert!(receiver.wait().success());
    assert!(!folder.path("first").exists(), "the receiver takes its folder along");
}

#[test]
fn readiness_requires_a_usable_source_address() {
    let folder = Folder::new();
    let toml =
        section().toml.replace_one("127.0.0.1:4750", "127.0.0.1:0").replace_one("127.0.7.0/28", "198.51.100.16/28");
    let toml = toml.split("# The receiver is on this host").next().unwrap();
    let toml = toml.split("[signers.platform]").next().unwrap();
    folder.write("config.toml", format!("[admin]\nlisten = []\n{toml}[[routes]]\nname = \"all\"\nhosts = [\"*\"]\n[resolver.hosts]\n\"hooks.example.com\" = [\"93.184.215.14\"]\n"));
    let running = Outgate::run_in(folder);
    let log = running.log.all();
    assert!(!log.iter().any(|line| line.ends_with("INFO ready")), "{log:?}");
    assert!(log.iter().any(|line| line.contains("WARN not ready: no source address is usable")), "{log:?}");
    let response = running.post("https://hooks.example.com/in", "", "x");
    assert_eq!(response.code(), "no_egress", "{response:?}");
}

#[test]
fn demo_receiver_refuses_a_folder_that_it_did_not_make() {
    let folder = Folder::new();
    folder.write("notes", "mine");
    let output = outgate("outgate demo --receiver . --listen 127.0.0.1:0", &folder).output().unwrap();
    assert_eq!(output.status.code(), Some(69));
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(printed.contains("cannot create the directory .: File exists"), "{printed}");
    assert_eq!(std::fs::read_to_string(folder.path("notes")).unwrap(), "mine");
}
