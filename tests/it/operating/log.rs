//! The formats of the log, and its changes by a reload.
//! Is the log correct for a terminal, for the journal and as JSON?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use support::configuration::Config;
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{config, folder};
use support::{Client, Folder, Outgate, eventually};

fn text(plain: &Receiver, log: &str) -> Config {
    config(plain, plain, &format!("[log]\n{log}\n"))
}

/// Runs a command of outgate on a terminal with this environment variable.
fn on_a_terminal(arguments: &str, variable: (&str, &str)) -> String {
    let command = format!("{} {arguments}", env!("CARGO_BIN_EXE_outgate"));
    let mut script = Command::new("script");
    script
        .args(["-qec", &command, "/dev/null"])
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .env(variable.0, variable.1);
    let output = script.stdin(Stdio::null()).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn no_color_turns_off_colours_on_a_terminal() {
    if Command::new("script").arg("--version").output().is_err() {
        assert!(!support::required(), "missing: script (bsdutils)");
        return;
    }
    let folder = Folder::new();
    let path = folder.write("config.toml", "[server]\n");
    let arguments = format!("check --config {}", path.display());
    assert!(on_a_terminal(&arguments, ("NO_COLOR", "")).contains("\x1b["));
    let plain = on_a_terminal(&arguments, ("NO_COLOR", "1"));
    assert!(plain.contains("warning") && !plain.contains('\x1b'), "{plain:?}");
}

#[test]
fn log_lines_carry_their_priority_where_stderr_is_the_journal() {
    let plain = Receiver::plain(ok());
    let folder = folder(&Pki::new());
    let path = folder.write_config("config.toml", &text(&plain, ""));
    for is_journal in [true, false] {
        let (reader, writer) = std::io::pipe().unwrap();
        let (mut reader, writer) = (File::from(OwnedFd::from(reader)), File::from(OwnedFd::from(writer)));
        let metadata = writer.metadata().unwrap();
        let inode = metadata.ino() + u64::from(!is_journal);
        let mut child = Command::new(env!("CARGO_BIN_EXE_outgate"))
            .args(["run", "--config"])
            .arg(&path)
            .env("JOURNAL_STREAM", format!("{}:{inode}", metadata.dev()))
            .env("STATE_DIRECTORY", folder.path("state"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(writer)
            .spawn()
            .unwrap();
        let mut lines = Vec::new();
        for line in BufReader::new(&mut reader).lines() {
            let line = line.unwrap();
            let is_last = line.ends_with("ready");
            lines.push(line);
            if is_last {
                break;
            }
        }
        let _ = child.kill();
        let _ = child.wait();
        reader.read_to_end(&mut Vec::new()).unwrap();
        let has_priority = |line: &String| line.as_bytes().first() == Some(&b'<') && line.as_bytes()[2] == b'>';
        assert_eq!(lines.iter().all(has_priority), is_journal, "{lines:#?}");
        assert_eq!(lines.iter().any(|line| line == "<6>ready"), is_journal, "{lines:#?}");
        assert_eq!(lines.iter().any(|line| line.starts_with("<4>warning[")), is_journal, "{lines:#?}");
    }
}

#[test]
fn log_format_level_and_deliveries_change_by_reload() {
    let plain = Receiver::plain(ok());
    let outgate = Outgate::run(folder(&Pki::new()), &text(&plain, "deliveries = \"file:{dir}/one\""));
    let (one, two) = (outgate.folder.path("one"), outgate.folder.path("two"));
    let url = format!("http://plain.example:{}/in", plain.port());
    assert_eq!(outgate.post(&url, "", "x").status, 200);
    outgate.reconfigure(&text(&plain, "deliveries = \"file:{dir}/two\"\nformat = \"json\"\nlevel = \"debug\""));
    assert_eq!(outgate.post(&url, "", "x").status, 200);
    outgate.log.wait_for("a line of JSON", |lines| {
        let line = lines.iter().find(|line| line.contains("configuration reloaded"))?;
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        (line["level"] == "info" && line["time"].is_string() && line["message"].is_string()).then_some(())
    });
    let count = |path: &std::path::Path| std::fs::read_to_string(path).unwrap_or_default().lines().count();
    eventually("each file has a record", || (count(&one), count(&two)) == (1, 1));
    assert!(!outgate.log.all().iter().any(|line| line.contains("next restart")));
    // A file that cannot be opened rejects the configuration, and nothing changes.
    outgate.reconfigure_to_rejection(&text(&plain, "deliveries = \"file:{dir}/missing/three\""));
    assert!(outgate.admin("/readyz").text().contains("cannot open the delivery log"));
    // This level does not log the adoption.
    outgate.replace_config(&text(&plain, "level = \"error\""));
    assert_eq!(outgate.records(0).len(), 0);
    // The adoption is complete when the record of a delivery is on stdout, and no longer in a file.
    let mut sent = Vec::new();
    eventually("a record on stdout", || {
        let response = outgate.post(&url, "", "x");
        assert_eq!(response.status, 200);
        sent.push(response);
        !outgate.records(0).is_empty()
    });
    assert!(!outgate.admin("/readyz").text().contains("cannot open the delivery log"));
    let last = outgate.post(&url, "", "x");
    outgate.record_of(&last);
    let first = &outgate.records(1)[0]["request_id"];
    assert!(sent.iter().any(|response| first == response.field("outgate-request-id")), "{first}");
    assert_eq!(outgate.reloads(), 1);
}

#[test]
fn metrics_are_openmetrics_for_a_scraper_that_names_it_and_text_for_others() {
    let plain = Receiver::plain(ok());
    let outgate = Outgate::run(folder(&Pki::new()), &text(&plain, ""));
    let url = format!("http://plain.example:{}/in", plain.port());
    assert_eq!(outgate.post(&url, "", "x").status, 200);
    outgate.records(1);
    let get_metrics = |accept: &str| {
        let mut client = Client::connect(outgate.admin);
        client.send(format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\n{accept}Connection: close\r\n\r\n"));
        client.response()
    };
    let accept =
        "Accept: application/openmetrics-text;version=1.0.0;q=0.6, text/plain;version=0.0.4;q=0.2, */*;q=0.1\r\n";
    let response = get_metrics(accept);
    assert_eq!(response.field("content-type"), "application/openmetrics-text; version=1.0.0; charset=utf-8");
    let text = response.text();
    assert!(text.contains("# TYPE outgate_deliveries counter\n") && text.ends_with("\n# EOF\n"), "{text}");
    for accept in ["", "Accept: */*\r\n", "Accept: text/plain\r\n"] {
        let response = get_metrics(accept);
        assert_eq!(response.field("content-type"), "text/plain; version=0.0.4; charset=utf-8", "{accept}");
        let text = response.text();
        assert!(text.contains("# TYPE outgate_deliveries_total counter\n") && !text.contains("# EOF"), "{text}");
        assert!(text.contains("\noutgate_deliveries_total{"), "{text}");
    }
}

#[test]
fn check_names_yaml_and_json_given_by_mistake() {
    let printed = |text: &str| {
        let folder = Folder::new();
        let path = folder.write("config", text);
        let output =
            Command::new(env!("CARGO_BIN_EXE_outgate")).args(["check", "--config"]).arg(path).output().unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    for (text, language) in [
        ("# mine\nserver:\n  listen: [\"127.0.0.1:1\"]\n", "YAML"),
        ("---\nserver: {}\n", "YAML"),
        ("{\"server\": {\"listen\": []}}\n", "JSON"),
    ] {
        let printed = printed(text);
        assert!(printed.contains(&format!("this file is {language}, not TOML")), "{printed}");
        assert!(printed.contains("not valid: 1 problem, 0 warnings"), "{printed}");
    }
    assert!(printed("[server]\nlisten: 1\n").contains("not TOML:"));
}

#[test]
fn check_suggests_the_host_of_a_url_or_port_in_hosts() {
    for (written, host) in [
        ("https://hooks.acme.example/in?x=1", "hooks.acme.example"),
        ("hooks.acme.example:443", "hooks.acme.example"),
        ("hooks.acme.example/in", "hooks.acme.example"),
    ] {
        let folder = Folder::new();
        let text = format!(
            "[egress.default]\nranges = [\"198.51.100.16/28\"]\n[[routes]]\nname = \"a\"\nhosts = [\"{written}\"]\n"
        );
        let path = folder.write("config.toml", text);
        let output =
            Command::new(env!("CARGO_BIN_EXE_outgate")).args(["check", "--config"]).arg(path).output().unwrap();
        let printed = String::from_utf8(output.stderr).unwrap();
        assert!(printed.contains(&format!("write the host alone, \"{host}\"")), "{printed}");
    }
}

#[test]
fn egress_verify_json_has_numbers_as_numbers() {
    let folder = Folder::new();
    let text = "[egress.default]\nranges = [\"127.0.7.0/30\"]\n[egress.six]\nranges = [\"2001:db8:5::/64\"]\n";
    let path = folder.write("config.toml", text);
    let verify = ["egress", "verify", "--json", "--config"];
    let output = Command::new(env!("CARGO_BIN_EXE_outgate")).args(verify).arg(path).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let pools = &json["pools"];
    assert_eq!((&pools[0]["configured"], &pools[0]["usable"]), (&4.into(), &4.into()), "{json}");
    assert!(pools[1]["configured"].as_f64().unwrap() > 1.8e19, "{json}");
}

#[test]
fn demo_leaves_nothing_behind_and_shows_a_record_and_a_metric() {
    let (home, state) = (Folder::new(), Folder::new());
    let output = Command::new(env!("CARGO_BIN_EXE_outgate"))
        .args(["demo", "--once"])
        .env("TMPDIR", home.path(""))
        .current_dir(state.path(""))
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{printed}");
    assert!(printed.contains("\"code\":\"delivered\"") && printed.contains("outgate_deliveries_total{"), "{printed}");
    for folder in [&home, &state] {
        assert_eq!(std::fs::read_dir(folder.path("")).unwrap().count(), 0);
    }
}
