//! `outgate doctor` and `outgate support-bundle` beside a running proxy.
//! Does the doctor name each fault with its correction, and does a bundle leave out every secret?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::pki::Pki;
use crate::support::receiver::{Receiver, ok};
use crate::support::scene::{config, folder};
use crate::support::{Folder, Outgate};

/// Parts of every secret that the test plants.
const SECRETS: [&str; 10] = [
    "planted-in-key-file",
    "planted-in-credential",
    "planted-in-variable",
    "planted-in-comment",
    "planted-in-webhook",
    "planted-in-query",
    "planted-in-body",
    "planted-in-header",
    "T0000PLANTED",
    "planted-in-log",
];

fn outgate(arguments: &[&str], more: &[&OsStr]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_outgate")).args(arguments).args(more).output().unwrap()
}

fn findings(output: &Output) -> Vec<Value> {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}

#[test]
fn doctor_runs_every_check_and_its_exit_code_is_that_of_the_findings() {
    let folder = Folder::new();
    let text = "[server]\nlisten = [\"127.0.0.1:0\"]\n[egress.default]\nranges = [\"127.0.7.0/30\"]\n[resolver]\n\
                servers = [\"127.0.0.1:9\"]\n";
    let path = folder.write("config.toml", text);
    let output = outgate(&["doctor", "--json", "--config"], &[path.as_os_str()]);
    let found = findings(&output);
    let names: BTreeSet<&str> = found.iter().map(|finding| finding["check"].as_str().unwrap()).collect();
    let expected = [
        "addresses",
        "certificates",
        "configuration",
        "confinement",
        "conntrack",
        "entropy",
        "files",
        "listeners",
        "permissions",
        "ports",
        "resolver",
        "rp_filter",
        "unit",
    ];
    for name in expected {
        assert!(names.contains(name), "{name}: {names:?}");
    }
    for finding in &found {
        let is_fine = finding["level"] == "ok";
        assert_eq!(finding["fix"].is_null(), is_fine, "{finding}");
    }
    let resolver = found.iter().find(|finding| finding["check"] == "resolver").unwrap();
    assert_eq!(resolver["level"], "problem", "{resolver}");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(outgate(&["doctor", "--config"], &[path.as_os_str()]).stdout).unwrap();
    assert!(text.contains("PROBLEM  resolver      no name server responds (127.0.0.1:9)"), "{text}");
    assert!(text.contains("\n                       fix: write servers that respond into resolver.servers"), "{text}");
}

#[test]
fn doctor_reads_the_files_of_another_root() {
    let folder = Folder::new();
    let path = folder.write("config.toml", "[egress.default]\nranges = [\"127.0.7.0/30\"]\n");
    for (name, text) in [("nf_conntrack_count", "99\n"), ("nf_conntrack_max", "100\n")] {
        let place = folder.path("root/proc/sys/net/netfilter");
        std::fs::create_dir_all(&place).unwrap();
        std::fs::write(place.join(name), text).unwrap();
    }
    let root = folder.path("root");
    let output = outgate(&["doctor", "--json", "--root"], &[root.as_os_str(), "--config".as_ref(), path.as_os_str()]);
    let found = findings(&output);
    let conntrack = found.iter().find(|finding| finding["check"] == "conntrack").unwrap();
    assert_eq!(conntrack["fix"], "sysctl -w net.netfilter.nf_conntrack_max=40000", "{conntrack}");
}

#[test]
fn doctor_names_certificates_that_expire_soon() {
    let pki = Pki::new();
    let folder = folder(&pki);
    let leaf = pki.leaf_with(&["proxy.example"], |params| {
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 1, 2);
    });
    folder.write("listener.pem", leaf.chain_pem());
    folder.write("listener.key", leaf.key_pem());
    let text = "[server]\nlisten = [\"127.0.0.1:0\"]\ntls = { certificate = \"listener.pem\", key = \"listener.key\" }\n\
                [egress.default]\nranges = [\"127.0.7.0/30\"]\n";
    let path = folder.write("config.toml", text);
    let output = outgate(&["doctor", "--json", "--config"], &[path.as_os_str()]);
    let found = findings(&output);
    let expired = found.iter().find(|finding| finding["check"] == "certificates").unwrap();
    assert_eq!(expired["level"], "problem", "{expired}");
    assert!(expired["message"].as_str().unwrap().contains("expired at 2026-01-02"), "{expired}");
    assert_eq!(expired["fix"], "replace the file: outgate loads the new file at once");
}

/// Returns every file of a bundle with its text.
fn unpack(bundle: &Path, into: &Path) -> Vec<(String, String)> {
    std::fs::create_dir_all(into).unwrap();
    let tar = Command::new("tar").arg("xzf").arg(bundle).arg("-C").arg(into).output().unwrap();
    assert!(tar.status.success(), "{tar:?}");
    let listed = Command::new("find").arg(into).args(["-type", "f"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let mut files: Vec<_> = listed
        .lines()
        .map(|path| {
            let text = String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
            let inside = Path::new(path).strip_prefix(into).unwrap();
            (inside.iter().skip(1).collect::<std::path::PathBuf>().display().to_string(), text)
        })
        .collect();
    files.sort();
    files
}

#[test]
fn support_bundle_has_what_explains_a_fault_and_no_secret() {
    let pki = Pki::new();
    let place = folder(&pki);
    let good = Receiver::tls(pki.leaf(&["hook.example"]), ok());
    let plain = Receiver::plain(ok());
    place.write("token", "planted-in-key-file-0123456789");
    place.write("partner-token", "planted-in-credential-0123456789");
    let more = "[credentials.partner]\ntype = \"bearer\"\ntoken = \"credential:partner-token\"\nplaintext = \"allow\"\n\
                [credentials.other]\ntype = \"header\"\nname = \"X-Api-Key\"\nvalue = \"env:PLANTED\"\nplaintext = \"allow\"\n\
                [credentials.file]\ntype = \"bearer\"\ntoken = \"file:{dir}/token\"\n\
                [alerts]\nwebhook = \"https://hook.example/services/T0000PLANTED/planted-in-webhook\"\n\
                [redact]\npath = \"full\"\n[log]\ndeliveries = \"file:{dir}/deliveries.jsonl\"\nrotate = false\n";
    let text = config(&good, &plain, more)
        .push("admin.listen", "unix:{dir}/admin.sock")
        .add("routes.plain.credential", "partner")
        .to_string();
    let text = format!("# Once the token was planted-in-comment-0123456789.\n{text}");
    place.write_config("config.toml", &text);
    let path = place.path("config.toml");
    let environment = [("PLANTED", Path::new("planted-in-variable-0123")), ("CREDENTIALS_DIRECTORY", &place.path(""))];
    let proxy = Outgate::run_in_with(place, &environment);
    let url = format!("http://plain.example:{}/services/T0000PLANTED/x?key=planted-in-query", plain.port());
    let response = proxy.post(&url, "X-Api-Token: planted-in-header-0123\r\n", "planted-in-body-0123");
    assert_eq!(response.status, 200, "{}", response.text());
    crate::support::eventually("the record", || {
        std::fs::read_to_string(proxy.folder.path("deliveries.jsonl")).is_ok_and(|text| text.contains("T0000PLANTED"))
    });
    let log =
        "INFO ready\nWARN upstream said: Authorization: Bearer planted-in-log-0123456789abcdef?key=planted-in-query\n";
    let log = proxy.folder.write("outgate.log", log);
    let bundle = proxy.folder.path("bundle.tar.gz");
    let arguments = [
        "--config".as_ref(),
        path.as_os_str(),
        "--out".as_ref(),
        bundle.as_os_str(),
        "--log".as_ref(),
        log.as_os_str(),
    ];
    let output = Command::new(env!("CARGO_BIN_EXE_outgate"))
        .arg("support-bundle")
        .args(arguments)
        .envs(environment)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&bundle).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let files = unpack(&bundle, &proxy.folder.path("unpacked"));
    for (name, text) in &files {
        let found: Vec<_> = SECRETS.iter().filter(|secret| text.contains(**secret)).collect();
        assert!(found.is_empty(), "{name} has {found:?}: {text}");
    }
    let text_of = |wanted: &str| {
        let found = files.iter().find(|(name, _)| name == wanted);
        &found.unwrap_or_else(|| panic!("{wanted}: {:?}", files.iter().map(|(name, _)| name).collect::<Vec<_>>())).1
    };
    assert!(text_of("version.json").contains(env!("CARGO_PKG_VERSION")));
    assert!(text_of("doctor.json").contains("\"check\": \"addresses\""));
    assert!(text_of("config/0-config.toml").contains("name = \"signed\""), "{}", text_of("config/0-config.toml"));
    assert!(text_of("status.json").contains("\"pools\""));
    assert!(text_of("metrics.txt").contains("\noutgate_deliveries_total{"));
    assert!(text_of("deliveries.jsonl").contains("\"code\":\"delivered\""), "{}", text_of("deliveries.jsonl"));
    assert!(text_of("log.txt").starts_with("INFO ready\n"));
    assert!(text_of("host/os-release.txt").contains("NAME="));
    let again = Command::new(env!("CARGO_BIN_EXE_outgate")).arg("support-bundle").args(arguments).output().unwrap();
    assert_eq!(again.status.code(), Some(73), "it overwrites no file: {again:?}");
}

#[test]
fn support_bundle_of_a_configuration_that_is_not_valid_has_its_problems_and_no_text_of_it() {
    let folder = Folder::new();
    let text = "[signers.a]\nkeys = [{ secret = planted-in-key-file-012345 ]\n";
    let path = folder.write("config.toml", text);
    let bundle = folder.path("bundle.tar.gz");
    let more = [path.as_os_str(), "--out".as_ref(), bundle.as_os_str()];
    let output = outgate(&["support-bundle", "--config"], &more);
    assert!(output.status.success(), "{output:?}");
    let files = unpack(&bundle, &folder.path("unpacked"));
    assert!(files.iter().all(|(_, text)| !text.contains("planted-in-key-file")), "{files:?}");
    let problems = files.iter().find(|(name, _)| name == "config/problems.txt").unwrap();
    assert!(problems.1.contains("config.toml:2:"), "{problems:?}");
}

#[test]
fn support_bundle_is_refused_with_a_reason_where_it_cannot_be_written() {
    let output = outgate(&["support-bundle", "--out", "/nonexistent/bundle.tar.gz"], &[]);
    assert_eq!(output.status.code(), Some(73), "{output:?}");
    let printed = String::from_utf8(output.stderr).unwrap();
    assert!(printed.contains("cannot write /nonexistent/bundle.tar.gz"), "{printed}");
    assert!(printed.contains("name another file with --out"), "{printed}");
}
