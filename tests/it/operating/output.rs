//! Standard streams that are not read, full or closed.
//! Does a write to stdout or stderr ever stop or end outgate?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, PipeWriter, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, Stdio};

use support::configuration::Config;
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{config, folder};
use support::{Client, Folder, Response, eventually, post};

/// A proxy with one worker, whose stderr is a pipe. The test holds both ends.
struct PipedProxy {
    child: Child,
    proxy: SocketAddr,
    admin: SocketAddr,
    stderr: BufReader<File>,
    writer: File,
    folder: Folder,
    target: Receiver,
    plain: Receiver,
}

impl PipedProxy {
    fn run() -> Self {
        let (reader, writer) = std::io::pipe().unwrap();
        Self::run_with(OwnedFd::from(reader).into(), OwnedFd::from(writer).into())
    }

    fn run_with(reader: File, writer: File) -> Self {
        let pki = Pki::new();
        let (target, plain) = (Receiver::tls(pki.leaf(&["hook.example"]), ok()), Receiver::plain(ok()));
        let folder = folder(&pki);
        folder.write_config("config.toml", &text(&target, &plain, ""));
        let child = spawn(&folder, writer.try_clone().unwrap());
        let mut stderr = BufReader::new(reader);
        let (mut proxy, mut admin) = (None, None);
        for line in (&mut stderr).lines() {
            let line = line.unwrap();
            let address = |prefix| line.split_once(prefix).map(|(_, address)| address.trim().parse().unwrap());
            proxy = proxy.or_else(|| address("proxy listening on "));
            admin = admin.or_else(|| address("admin listening on "));
            if line.ends_with(" ready") {
                break;
            }
        }
        let (proxy, admin) = (proxy.unwrap(), admin.unwrap());
        Self { child, proxy, admin, stderr, writer, folder, target, plain }
    }

    fn deliver(&self) -> u16 {
        let mut client = Client::connect(self.proxy);
        client.send(post(&format!("https://hook.example:{}/in", self.target.port()), "Connection: close\r\n", "x"));
        client.response().status
    }

    fn admin(&self, path: &str) -> Response {
        let mut client = Client::connect(self.admin);
        client.send(format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.admin));
        client.response()
    }

    fn close_stderr(&mut self) {
        self.stderr = BufReader::new(File::open("/dev/null").unwrap());
    }

    /// Reloads another configuration, which writes to the log.
    fn reload(&self, number: usize) {
        let more = format!("[limits.l{number}]\nconcurrency = 1\n");
        let next = self.folder.write_config("next", &text(&self.target, &self.plain, &more));
        std::fs::rename(next, self.folder.path("config.toml")).unwrap();
        let adopted = format!("outgate_reloads_total{{result=\"adopted\"}} {number}");
        eventually("a reload", || self.admin("/metrics").text().lines().any(|line| line == adopted));
    }

    fn lost_lines(&self) -> u64 {
        let metrics = self.admin("/metrics").text();
        let count = metrics.lines().find_map(|line| line.strip_prefix("outgate_log_lines_lost_total "));
        count.unwrap().parse().unwrap()
    }
}

impl Drop for PipedProxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(folder: &Folder, stderr: impl Into<Stdio>) -> Child {
    Command::new(env!("CARGO_BIN_EXE_outgate"))
        .args(["run", "--config"])
        .arg(folder.path("config.toml"))
        .env("STATE_DIRECTORY", folder.path("state"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .unwrap()
}

fn text(target: &Receiver, plain: &Receiver, more: &str) -> Config {
    config(target, plain, more).add("log.deliveries", "off").add("server.workers", 1)
}

/// Writes to the pipe until it is full.
fn fill(writer: &impl AsRawFd) {
    // The child shares the open file description, so the test opens a new one for non-blocking writes.
    let own = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let mut own = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(own).unwrap();
    for size in [4096, 1] {
        while own.write_all(&b"\n".repeat(size)).is_ok() {}
    }
}

#[test]
fn log_to_a_full_stderr_holds_up_no_delivery() {
    let mut outgate = PipedProxy::run();
    fill(&outgate.writer);
    for number in 1..=3 {
        outgate.reload(number);
        assert_eq!(outgate.deliver(), 200);
    }
    // outgate writes the queued lines when stderr is read again.
    let mut line = String::new();
    while !line.contains("number 4") {
        line.clear();
        outgate.stderr.read_line(&mut line).unwrap();
    }
}

/// `outgate run 2>&1 | tee log` closes stderr like this when `tee` ends.
#[test]
fn log_to_a_closed_stderr_counts_lost_lines_and_the_process_goes_on() {
    let mut outgate = PipedProxy::run();
    assert_eq!(outgate.lost_lines(), 0);
    outgate.close_stderr();
    outgate.reload(1);
    assert_eq!(outgate.deliver(), 200);
    eventually("a log line is lost", || outgate.lost_lines() > 0);
    let ready = outgate.admin("/readyz");
    assert!(ready.status == 200 && ready.text().contains("the log cannot be written"), "{}", ready.text());
    let is_alert = |text: &str| text.contains("outgate_alerts{name=\"OutgateLogLinesLost\"} 1");
    eventually("the alert", || is_alert(&outgate.admin("/metrics").text()));
}

#[test]
fn log_reports_its_lost_lines_when_it_can_be_written_again() {
    let folder = Folder::new();
    let fifo = folder.path("stderr");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    // This descriptor has both ends, so that neither of the next two opens blocks.
    let both = OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    let reader = File::open(&fifo).unwrap();
    let writer = OpenOptions::new().write(true).open(&fifo).unwrap();
    drop(both);
    let mut outgate = PipedProxy::run_with(reader, writer);
    outgate.close_stderr();
    outgate.reload(1);
    eventually("a log line is lost", || outgate.lost_lines() > 0);
    outgate.stderr = BufReader::new(File::open(&fifo).unwrap());
    outgate.reload(2);
    let mut line = String::new();
    while !line.contains("stderr did not accept") {
        line.clear();
        assert_ne!(outgate.stderr.read_line(&mut line).unwrap(), 0);
    }
    eventually("the log is written again", || !outgate.admin("/readyz").text().contains("the log cannot be written"));
}

#[test]
fn log_to_a_full_stderr_holds_up_neither_start_nor_stop() {
    let pki = Pki::new();
    let (target, plain) = (Receiver::tls(pki.leaf(&["hook.example"]), ok()), Receiver::plain(ok()));
    let folder = folder(&pki);
    let socket = folder.path("admin.sock");
    folder.write_config("config.toml", &text(&target, &plain, "").push("admin.listen", "unix:{dir}/admin.sock"));
    let (_reader, writer) = std::io::pipe().unwrap();
    fill(&writer);
    let mut child = spawn(&folder, writer.try_clone().unwrap());
    eventually("the admin socket exists", || socket.exists());
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    let mut ended = None;
    eventually("the process ends", || {
        ended = child.try_wait().unwrap();
        ended.is_some()
    });
    let ended = ended.unwrap();
    assert!(ended.success(), "{ended}");
}

/// Returns commands that need no running proxy, and one that reports a missing proxy.
fn commands(folder: &Folder) -> Vec<Vec<String>> {
    let config = folder.path("config.toml").display().to_string();
    let argument = |argument: &str| match argument.strip_prefix("CONFIG") {
        Some(rest) => format!("{config}{rest}"),
        None => argument.to_owned(),
    };
    [
        "--help",
        "check --help",
        "check --config CONFIG",
        "check --config CONFIG --json",
        "check --config CONFIG.missing",
        "explain POST https://hook.example/ --config CONFIG",
        "egress list --config CONFIG",
        "egress verify --config CONFIG",
        "config schema",
        "doctor --config CONFIG",
        "token new",
        "keys new --scheme standard-webhooks",
        "keys list --config CONFIG",
        "status --config CONFIG",
        "history --config CONFIG",
        "demo --once",
    ]
    .map(|words| words.split(' ').map(argument).collect())
    .into()
}

fn run(words: &[String], stdout: impl Into<Stdio>, stderr: impl Into<Stdio>) -> std::process::ExitStatus {
    Command::new(env!("CARGO_BIN_EXE_outgate"))
        .args(words)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        .status()
        .unwrap()
}

fn closed() -> PipeWriter {
    std::io::pipe().unwrap().1
}

fn command_scene() -> Folder {
    let pki = Pki::new();
    let (target, plain) = (Receiver::tls(pki.leaf(&["hook.example"]), ok()), Receiver::plain(ok()));
    let folder = folder(&pki);
    folder.write_config("config.toml", &text(&target, &plain, ""));
    folder
}

#[test]
fn every_command_ends_quietly_on_a_closed_pipe() {
    let folder = command_scene();
    for words in commands(&folder) {
        let expected = run(&words, Stdio::null(), Stdio::null());
        let is_expected = expected.code().is_some_and(|code| ![2, 101].contains(&code));
        assert!(is_expected, "{words:?}: {expected}");
        let (reader, writer) = std::io::pipe().unwrap();
        let ended = run(&words, closed(), writer);
        let printed = std::io::read_to_string(reader).unwrap();
        assert_eq!(ended, expected, "{words:?}");
        assert!(!printed.contains("pipe"), "{words:?}: {printed}");
        assert_eq!(run(&words, Stdio::null(), closed()), expected, "{words:?}");
    }
}

#[test]
fn a_command_that_cannot_write_its_answer_exits_74() {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let ended = run(&["token".to_owned(), "new".to_owned()], full, Stdio::null());
    assert_eq!(ended.code(), Some(74));
}
