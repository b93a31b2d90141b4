//! A network namespace in which a test runs again.
//! How does a test get addresses, routes and port ranges of its own?

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

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

/// A network namespace for another host. It ends with its process.
pub struct Host(Child);

impl Host {
    pub fn new() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "ip link set lo up && echo ready && exec cat"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }

    /// The process of the namespace, as `ip link` names it.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    pub fn namespace(&self) -> String {
        format!("/proc/{}/ns/net", self.id())
    }

    /// Returns a command that runs a program in the namespace.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.namespace())).arg(program);
        command
    }

    pub fn run(&self, command: &str) {
        run(&format!("nsenter --net={} {command}", self.namespace()));
    }

    pub fn output(&self, command: &[&str]) -> String {
        let out = self.command(command[0]).args(&command[1..]).output().unwrap();
        assert!(out.status.success(), "{command:?}: {out:?}");
        String::from_utf8(out.stdout).unwrap()
    }

    /// Runs `make` on a thread in this namespace: its sockets belong to this host, whichever thread uses them.
    pub fn with<T: Send>(&self, make: impl FnOnce() -> T + Send) -> T {
        let namespace = std::fs::File::open(self.namespace()).unwrap();
        std::thread::scope(|scope| {
            let enter = || {
                let network = rustix::thread::LinkNameSpaceType::Network;
                rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(network)).unwrap();
                make()
            };
            scope.spawn(enter).join().unwrap()
        })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
