//! Audit records at rsyslog and syslog-ng, two independent parsers of RFC 5424, RFC 5425 and RFC 6587.
//! Do these servers read each field as outgate means it?
//!
//! Skipped where the servers are missing, required with `OUTGATE_TEST_ALL=1`. `.ci/run` installs them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::audit::{audit_file, audited, try_reload};
use support::eventually;
use support::process::Process;
use support::scene::Scene;

/// The fields as each server writes them again.
const FIELDS: usize = 6;

/// A syslog server that runs, and the file that it writes.
struct Server {
    _process: Process,
    port: u16,
    out: PathBuf,
}

/// Whether a program runs; it must where everything is tested.
fn is_there(program: &Path, library: Option<&Path>) -> bool {
    let mut command = Command::new(program);
    command.env("LD_LIBRARY_PATH", library.unwrap_or(Path::new("")));
    // rsyslogd and syslog-ng print their version by -v and -V.
    let version = if program.ends_with("rsyslogd") { "-v" } else { "-V" };
    let is_there = command.arg(version).output().is_ok_and(|output| output.status.success());
    assert!(is_there || !support::required(), "missing: {}", program.display());
    if !is_there {
        eprintln!("skipped: {} is missing", program.display());
    }
    is_there
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Starts a server on a free port. Another process may take the port before the server listens; then the server ends, and
/// gets another port.
fn start(mut command: impl FnMut(u16) -> Command, out: PathBuf) -> Server {
    const ATTEMPTS: usize = 5;
    let attempt = |_| {
        let port = free_port();
        let mut process = Process::start(&mut command(port));
        let mut has_ended = false;
        eventually("the server listens, or has ended", || {
            has_ended = process.has_ended();
            has_ended || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        (!has_ended).then(|| Server { _process: process, port, out: out.clone() })
    };
    (0..ATTEMPTS).find_map(attempt).expect("a server that listens")
}

/// Starts rsyslogd, with TLS if `tls` is true.
fn rsyslog(scene: &Scene, tls: bool) -> Option<Server> {
    if !is_there(Path::new("/usr/sbin/rsyslogd"), None) {
        return None;
    }
    let folder = &scene.outgate.folder;
    let identity = scene.pki.leaf(&["hook.example"]);
    folder.write("siem.pem", identity.chain_pem());
    folder.write("siem.key", identity.key_pem());
    let (mode, driver) = if tls { (1, "ossl") } else { (0, "ptcp") };
    let config = |port: u16| {
        format!(
            "global(workDirectory=\"{{dir}}\" maxMessageSize=\"64k\" DefaultNetstreamDriver=\"{driver}\"\n\
         DefaultNetstreamDriverCAFile=\"{{dir}}/ca.pem\" DefaultNetstreamDriverCertFile=\"{{dir}}/siem.pem\"\n\
         DefaultNetstreamDriverKeyFile=\"{{dir}}/siem.key\")\n\
         module(load=\"imtcp\" StreamDriver.Name=\"{driver}\" StreamDriver.Mode=\"{mode}\" StreamDriver.AuthMode=\"anon\")\n\
         template(name=\"fields\" type=\"string\" string=\"%pri%|%hostname%|%app-name%|%procid%|%msgid%|%msg%\\n\")\n\
         input(type=\"imtcp\" address=\"127.0.0.1\" port=\"{port}\")\n\
         action(type=\"omfile\" file=\"{{dir}}/rsyslog.out\" template=\"fields\")\n"
        )
    };
    let command = |port| {
        let config = folder.write("rsyslog.conf", folder.placed(&config(port)));
        let mut command = Command::new("/usr/sbin/rsyslogd");
        command.arg("-n").arg("-f").arg(config).arg("-i").arg(folder.path("rsyslog.pid"));
        command
    };
    Some(start(command, folder.path("rsyslog.out")))
}

fn syslog_ng(scene: &Scene) -> Option<Server> {
    let root = std::env::var_os("OUTGATE_TEST_SYSLOG_NG")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/syslog-ng"), PathBuf::from);
    let (program, library) = (root.join("usr/sbin/syslog-ng"), root.join("usr/lib/syslog-ng"));
    if !is_there(&program, Some(&library)) {
        return None;
    }
    let folder = &scene.outgate.folder;
    let config = |port: u16| {
        format!(
            "@version: 3.38\noptions {{ keep-hostname(yes); }};\n\
         source s {{ syslog(ip(\"127.0.0.1\") port({port}) transport(\"tcp\")); }};\n\
         destination d {{ file(\"{{dir}}/ng.out\" template(\"$PRI|$HOST|$PROGRAM|$PID|$MSGID|$MSG\\n\")); }};\n\
         log {{ source(s); destination(d); }};\n"
        )
    };
    let command = |port| {
        let config = folder.write("ng.conf", folder.placed(&config(port)));
        let mut command = Command::new(&program);
        command.env("LD_LIBRARY_PATH", &library).args(["--foreground", "--no-caps", "--cfgfile"]).arg(config);
        for (option, name) in [("--persist-file", "ng.persist"), ("--pidfile", "ng.pid"), ("--control", "ng.ctl")] {
            command.arg(option).arg(folder.path(name));
        }
        command.arg("--module-path").arg(library.join("3.38"));
        command
    };
    Some(start(command, folder.path("ng.out")))
}

/// Sends the records of a reload to the server, and compares what it wrote with the log.
fn compare(scene: &Scene, server: &Server, url: &str) {
    let next = scene.outgate.config().and(&format!(
        "[audit]\nsyslog = [{{ url = \"{url}\"{} }}]\n[trust.siem]\nroots = [\"{{dir}}/ca.pem\"]\n",
        if url.starts_with("tcp+tls") { ", trust = \"siem\"" } else { "" }
    ));
    let (code, _, err) = try_reload(scene, &next);
    assert_eq!(code, 0, "{err}");
    // A value that is not ASCII, and quotes.
    let more = "[limits.x]\n\"müller\" = 1\n";
    let (code, _, err) = try_reload(scene, &next.and(more));
    assert!(code == 78 && err.contains("müller"), "{err}");
    let (code, _, err) = try_reload(scene, &next.and("[limits.l]\nrate = \"1/s\"\n"));
    assert_eq!(code, 0, "{err}");
    let log = std::fs::read_to_string(audit_file(&scene.outgate)).unwrap();
    let expected: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("configuration.") && line.contains("limits.l") || line.contains("müller"))
        .collect();
    assert!(expected.len() >= 2, "{log}");
    let mut found = String::new();
    eventually("the records at the server", || {
        found = std::fs::read_to_string(&server.out).unwrap_or_default();
        expected.iter().all(|line| found.contains(line))
    });
    for line in found.lines().filter(|line| expected.iter().any(|expected| line.ends_with(expected))) {
        let fields: Vec<&str> = line.splitn(FIELDS, '|').collect();
        let host = rustix::system::uname().nodename().to_str().unwrap().to_owned();
        let process = scene.outgate.pid().to_string();
        assert!(["110", "108", "107"].contains(&fields[0]), "{line}");
        assert_eq!((fields[1], fields[2], fields[3]), (&*host, "outgate", &*process), "{line}");
        assert!(fields[4].starts_with("configuration."), "{line}");
    }
}

#[test]
fn rsyslog_reads_audit_records_over_tcp() {
    let scene = audited();
    let Some(server) = rsyslog(&scene, false) else { return };
    compare(&scene, &server, &format!("tcp://127.0.0.1:{}", server.port));
}

#[test]
fn rsyslog_reads_audit_records_over_tls() {
    let scene = audited();
    let Some(server) = rsyslog(&scene, true) else { return };
    compare(&scene, &server, &format!("tcp+tls://hook.example:{}", server.port));
}

#[test]
fn syslog_ng_reads_audit_records_over_tcp() {
    let scene = audited();
    let Some(server) = syslog_ng(&scene) else { return };
    compare(&scene, &server, &format!("tcp://127.0.0.1:{}", server.port));
}
