//! The sampling of successes, the text of records on a terminal, and records in the journal.
//! Which deliveries does the log have, and in which form?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use support::configuration::Config;
use support::law::{assert_law, delivered};
use support::pki::Pki;
use support::receiver::{Receiver, ok, respond_with};
use support::scene::{config, folder, scene_of};
use support::{Outgate, TEST_TIMEOUT, required};

fn sampled(rate: f64) -> impl Fn(&Config) -> Config {
    move |config: &Config| config.add("log.sample", rate)
}

#[test]
fn sampling_leaves_successes_out_and_keeps_every_refusal() {
    let scene = scene_of(&sampled(0.0));
    for _ in 0..5 {
        assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").status, 200);
    }
    assert_eq!(scene.outgate.post("http://nowhere.example/", "", "x").code(), "no_route");
    let records = scene.outgate.records(1);
    assert_eq!((records.len(), &records[0]["code"]), (1, &"no_route".into()));
    assert!(records[0].get("sample").is_none(), "{}", records[0]);
    // Metrics are exact, and count what the log has not.
    assert_law(&scene.outgate, &[("delivered".to_owned(), 5), ("no_route".to_owned(), 1)].into());
    assert!(scene.outgate.has_metric("outgate_records_sampled_out_total 5"));
}

#[test]
fn sampled_records_carry_their_rate_and_a_reload_changes_it() {
    let scene = scene_of(&sampled(0.5));
    let mut sent = 0;
    // Two sampled records are there after some deliveries, by the hash of their ids.
    support::eventually("two records", || {
        assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").status, 200);
        sent += 1;
        scene.outgate.records(0).len() >= 2
    });
    assert!(scene.outgate.records(2).iter().all(|record| record["sample"] == 0.5));
    scene.outgate.reconfigure(&scene.outgate.config().set("log.sample", 1.0));
    let response = scene.outgate.post(&scene.plain_url(), "", "x");
    let is_last = |record: &serde_json::Value| record["request_id"] == response.field("outgate-request-id");
    let last = || scene.outgate.records(0).into_iter().find(is_last);
    support::eventually("the record after the reload", || last().is_some());
    assert!(last().unwrap().get("sample").is_none(), "{:?}", last());
    assert_law(&scene.outgate, &delivered(sent + 1));
}

/// A target's error, and a rule that only reports, are what an operator looks for.
#[test]
fn sampling_keeps_errors_of_targets_and_hits_of_report_only_rules() {
    let failing = Receiver::plain(respond_with("HTTP/1.1 500 E\r\nContent-Length: 0\r\n\r\n"));
    let good = Receiver::plain(ok());
    let text = config(&good, &failing, "[limits.few]\nrate = \"1/h\"\nreport_only = true\n").add("log.sample", 0);
    let text = text.add("routes.plain.limits", ["few"]);
    let outgate = Outgate::run(folder(&Pki::new()), &text);
    let records = [(failing, 500), (good, 200)].map(|(target, status)| {
        let response = outgate.post(&format!("http://plain.example:{}/", target.port()), "", "x");
        assert_eq!(response.status, status);
        outgate.record_of(&response)
    });
    let classes: Vec<_> = records.iter().map(|record| record["status_class"].as_str().unwrap()).collect();
    assert_eq!(classes, ["5xx", "2xx"]);
    assert_eq!(records[1]["would_refuse"][0]["name"], "few", "{}", records[1]);
}

#[test]
fn records_on_a_terminal_are_lines_of_text() {
    let pty = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&pty).unwrap();
    unlockpt(&pty).unwrap();
    let name = ptsname(&pty, Vec::new()).unwrap().into_string().unwrap();
    let terminal = OpenOptions::new().read(true).write(true).open(name).unwrap();
    let plain = Receiver::plain(ok());
    let folder = folder(&Pki::new());
    folder.write_config("config.toml", &config(&plain, &plain, ""));
    let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
    command.args(["run", "--config"]).arg(folder.path("config.toml"));
    let outgate = Outgate::start_with_output(command, folder, Stdio::from(terminal));
    assert_eq!(outgate.post(&format!("http://plain.example:{}/in", plain.port()), "", "x").status, 200);
    let mut line = String::new();
    BufReader::new(std::fs::File::from(pty)).read_line(&mut line).unwrap();
    let expected = format!("Z delivered 200 POST http://plain.example:{}/in from 127.0.7.", plain.port());
    assert!(line.contains(&expected) && line.contains(", route plain, id "), "{line}");
}

/// The journal's socket has a fixed path, so this needs a mount namespace: skipped where none can be made, required with
/// `OUTGATE_TEST_ALL=1`.
#[test]
fn records_reach_the_journal_with_fields_of_their_own() {
    let plain = Receiver::plain(ok());
    let folder = folder(&Pki::new());
    let shell = "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal && ln -s \"$0\" /run/systemd/journal/socket && \
                 exec \"$@\"";
    let path = folder.path("journal");
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", shell]).arg(&path);
        command
    };
    if !unshare().arg("true").output().is_ok_and(|output| output.status.success()) {
        assert!(!required(), "this host cannot make mount namespaces");
        return;
    }
    let journal = UnixDatagram::bind(&path).unwrap();
    journal.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    let client = "[clients.local]\nnetworks = [\"127.0.0.0/8\"]\ntenants = [\"acme\"]\n";
    folder.write_config("config.toml", &config(&plain, &plain, client).add("log.deliveries", "journald"));
    let mut command = unshare();
    command.args([env!("CARGO_BIN_EXE_outgate"), "run", "--config"]).arg(folder.path("config.toml"));
    let outgate = Outgate::start(command, folder);
    let next = || {
        let mut entry = vec![0; 64 * 1024];
        let length = journal.recv(&mut entry).unwrap();
        String::from_utf8(entry[..length].to_vec()).unwrap()
    };
    let url = format!("http://plain.example:{}/in", plain.port());
    let response = outgate.post(&url, "Outgate-Tenant: acme\r\n", "x");
    assert_eq!(response.status, 200, "{response:?}");
    let entry = next();
    let id = response.field("outgate-request-id");
    for field in [
        "PRIORITY=6",
        "SYSLOG_IDENTIFIER=outgate",
        "OUTGATE_TENANT=acme",
        "OUTGATE_ROUTE=plain",
        "OUTGATE_HOST=plain.example",
        "OUTGATE_CODE=delivered",
        "OUTGATE_BLAME=none",
        &format!("OUTGATE_REQUEST_ID={id}"),
        &format!("OUTGATE_SOURCE={}", response.field("outgate-egress")),
    ] {
        assert!(entry.lines().any(|line| line == field), "no {field} in {entry}");
    }
    assert!(entry.starts_with(&format!("MESSAGE=delivered 200 POST {url} from 127.0.7.")), "{entry}");
    let record = entry.lines().find_map(|line| line.strip_prefix("OUTGATE_RECORD=")).unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(record).unwrap()["request_id"], id);

    assert_eq!(outgate.post("http://nowhere.example/", "", "x").code(), "no_route");
    assert!(next().contains("\nPRIORITY=4\n"));

    // The journal goes away and comes back: the traffic goes on, and the journal gets the gap.
    drop(journal);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(outgate.post(&url, "", "x").status, 200);
    outgate.wait_for_metric("outgate_records_lost_total 1");
    let journal = UnixDatagram::bind(&path).unwrap();
    journal.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    let mut entry = vec![0; 64 * 1024];
    let length = journal.recv(&mut entry).unwrap();
    let entry = String::from_utf8_lossy(&entry[..length]);
    assert!(entry.starts_with("MESSAGE=1 delivery record lost between "), "{entry}");
    assert!(entry.contains("\nPRIORITY=3\n") && entry.contains("OUTGATE_RECORD={\"time\":"), "{entry}");
}
