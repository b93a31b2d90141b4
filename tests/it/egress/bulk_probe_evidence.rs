//! `outgate egress probe --targets` with targets, networks and ranges that give no clear evidence.
//! Does the probe blame a customer only if nothing else explains the failed connections?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use support::configuration::Replace;

use super::bulk_probe::{ACTIVE, Host, NEW, START, is_old, url, verdicts};

fn details(report: &Value) -> Vec<&str> {
    report["targets"].as_array().unwrap().iter().map(|target| target["detail"].as_str().unwrap()).collect()
}

/// The routes or the announcement of the range are wrong, and no customer must do anything.
#[test]
fn bulk_probe_does_not_blame_customers_if_no_target_answers_the_new_range() {
    let host = Host::new();
    let acme = host.receiver(is_old);
    let file = format!("{} a\n{} g\n", url("acme.example", &acme), url("globex.example", &acme));
    let (code, report) = host.json(&file, &[]);
    assert_eq!((code, verdicts(&report)), (69, BTreeMap::from([("a", "untested"), ("g", "untested")])), "{report:#}");
    let detail = format!("No target answers {NEW}: check the routes and the announcement of this range first.");
    assert_eq!(details(&report), [&detail, &detail]);
    assert_eq!((&report["messages"], &report["targets"][0]["allow"]), (&json!([]), &json!([])));
    // One target that answers the range shows that it works.
    let initech = host.receiver(|_| true);
    let file = format!("{file}{} i\n", url("initech.example", &initech));
    let (_, report) = host.json(&file, &[]);
    let expected = [("a", "range_not_allowed"), ("g", "range_not_allowed"), ("i", "allowed")];
    assert_eq!(verdicts(&report), BTreeMap::from(expected), "{report:#}");
}

/// A target that goes down, or limits the rate of connections, rejects active sources, too.
#[test]
fn bulk_probe_is_unclear_if_the_target_stops_answering_in_the_course_of_the_probe() {
    let host = Host::new();
    let count = AtomicUsize::new(0);
    let acme = host.receiver(move |_| count.fetch_add(1, Ordering::SeqCst) < 4);
    let (code, report) = host.json(&url("acme.example", &acme), &[]);
    assert_eq!((code, verdicts(&report)), (69, BTreeMap::from([("acme.example", "unclear")])), "{report:#}");
    assert!(details(&report)[0].contains("It no longer answers an address that it answered before."), "{report:#}");
    // The first connections are from both ranges.
    let answered = |new: bool| {
        let results = report["targets"][0]["results"].as_array().unwrap().iter();
        results.filter(|result| result["new"] == new && result["result"] == "ok").count()
    };
    assert_eq!((answered(true), answered(false), &report["messages"]), (1, 1, &json!([])));
}

#[test]
fn bulk_probe_is_unclear_if_the_target_ends_the_handshakes_of_the_new_range_alone() {
    const HANDSHAKE_FAILURE: &[u8] = &[21, 3, 3, 0, 2, 2, 40];
    let host = Host::new();
    let acme = host.receiver(|_| true);
    let front = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = host.permit(front.local_addr().unwrap().port());
    let behind = acme.address;
    std::thread::spawn(move || {
        for mut stream in front.incoming().map_while(Result::ok) {
            let from: IpAddr = stream.peer_addr().unwrap().ip();
            std::thread::spawn(move || {
                if !is_old(from) {
                    let _ = stream.read(&mut [0; 4096]);
                    let _ = stream.write_all(HANDSHAKE_FAILURE);
                    return;
                }
                let mut server = std::net::TcpStream::connect(behind).unwrap();
                let (mut from_server, mut to_client) = (server.try_clone().unwrap(), stream.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from_server, &mut to_client);
                });
                let _ = std::io::copy(&mut stream, &mut server);
                let _ = server.shutdown(std::net::Shutdown::Write);
            });
        }
    });
    let (code, report) = host.json(&format!("acme.example:{port}"), &[]);
    assert_eq!((code, verdicts(&report)), (69, BTreeMap::from([("acme.example", "unclear")])), "{report:#}");
    let detail = format!("The TLS handshake fails from {NEW} (tls_failed), but not from others.");
    assert_eq!(details(&report), [detail]);
}

#[test]
fn bulk_probe_reports_the_connections_that_ended_before_the_time_limit() {
    let host = Host::new();
    let acme = host.receiver(|_| true);
    acme.drop_packets_from(&["127.0.9.0", "127.0.9.1", "127.0.9.2", "127.0.9.3"]);
    let arguments = ["--timeout", "60s", "--target-timeout", "2s"];
    let (code, report) = host.json(&url("acme.example", &acme), &arguments);
    assert_eq!((code, verdicts(&report)), (69, BTreeMap::from([("acme.example", "unfinished")])), "{report:#}");
    let results = &report["targets"][0]["results"];
    assert_eq!((&results[0]["result"], &results[0]["range"]), (&json!("ok"), &json!(ACTIVE)), "{report:#}");
    assert!(details(&report)[0].ends_with(" of 8 connections."), "{report:#}");
}

#[test]
fn bulk_probe_tries_every_address_or_names_the_sample() {
    let host = Host::with_ranges("\"127.0.7.0/26\"");
    let acme = host.receiver(|_| true);
    let (code, report) = host.json(&url("acme.example", &acme), &[]);
    let numbers = |report: &Value| (report["targets"][0]["probed"].clone(), report["targets"][0]["usable"].clone());
    assert_eq!((code, numbers(&report)), (0, (json!(64), json!(64))), "{report:#}");
    assert_eq!(details(&report), ["The target answers 64 connections (ok)."]);
    let (_, report) = host.json(&url("acme.example", &acme), &["--sample", "8"]);
    assert_eq!(numbers(&report), (json!(8), json!(64)), "{report:#}");
    assert!(details(&report)[0].ends_with("The probe tried 8 of 64 addresses, a sample."), "{report:#}");
}

#[test]
fn bulk_probe_names_an_address_of_the_target_that_refuses_all() {
    let mut host = Host::new();
    host.config = host
        .config
        .replace_one("\"acme.example\" = [\"127.0.0.1\"]", "\"acme.example\" = [\"127.0.0.1\", \"127.0.0.2\"]");
    let acme = host.receiver(|_| true);
    let (code, report) = host.json(&url("acme.example", &acme), &[]);
    assert_eq!((code, verdicts(&report)), (0, BTreeMap::from([("acme.example", "allowed")])), "{report:#}");
    assert!(
        details(&report)[0].ends_with("No connection to its address 127.0.0.2 gets an answer (connect_refused)."),
        "{report:#}"
    );
}

#[test]
fn bulk_probe_reports_an_active_gap_although_the_new_range_is_untested() {
    let host = Host::with_ranges(&format!(r#""{ACTIVE}", {{ cidr = "::1/128", from = "{START}" }}"#));
    let acme = host.receiver(|from| from.to_string() != "127.0.7.2");
    let (_, report) = host.json(&url("acme.example", &acme), &[]);
    assert_eq!(verdicts(&report), BTreeMap::from([("acme.example", "address_not_allowed")]), "{report:#}");
    assert!(details(&report)[0].contains("This host has no address of the new range"), "{report:#}");
    assert_eq!(report["messages"].as_array().unwrap().len(), 1);
}

#[test]
fn bulk_probe_lists_a_range_with_several_periods_once() {
    let (first, second, end) = ("2100-01-01T00:00:00Z", "2200-01-01T00:00:00Z", "2300-01-01T00:00:00Z");
    let host = Host::with_ranges(&format!(
        r#""{ACTIVE}", {{ cidr = "{NEW}", from = "{first}", until = "{second}" }},
           {{ cidr = "{NEW}", from = "{second}", until = "{end}" }}"#
    ));
    let acme = host.receiver(is_old);
    let (_, report) = host.json(&url("acme.example", &acme), &[]);
    let range = json!([{ "cidr": NEW, "from": first, "until": end }]);
    assert_eq!((&report["new"], &report["targets"][0]["allow"]), (&range, &range), "{report:#}");
    let body = report["messages"][0]["body"].as_str().unwrap();
    assert!(body.contains(&format!("{NEW} (in use from {first} until {end})\n")), "{body}");
}

#[test]
fn bulk_probe_writes_one_mail_for_a_customer_with_the_contact_of_any_row() {
    let mut host = Host::new();
    let long = "4915112345678.acme.example";
    host.config =
        host.config.replace_one("\"acme.example\" =", &format!("\"{long}\" = [\"127.0.0.1\"]\n\"acme.example\" ="));
    let (acme, good) = (host.receiver(is_old), host.receiver(|_| true));
    let file = format!(
        "customer,url,contact,plan\n#1 Ltd,{},,\n#1 Ltd,{},ops@acme.example,\n#1 Ltd,{long}:{},,\nGood,{},,\n",
        url("acme.example", &acme),
        url("globex.example", &acme),
        good.port(),
        url("initech.example", &good)
    );
    let output = host.probe(file, &["--json"]);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("the command ignores the columns plan"), "{errors}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let messages = report["messages"].as_array().unwrap();
    assert_eq!((messages.len(), &messages[0]["contact"]), (1, &json!("ops@acme.example")), "{report:#}");
    assert_eq!(report["targets"][2]["target"], format!("https://{long}:{}", good.port()));
}

#[test]
fn bulk_probe_escapes_characters_in_json_that_reorder_text() {
    let host = Host::new();
    let acme = host.receiver(|_| true);
    let customer = "a\u{202e}b";
    let output = host.probe(format!("{} {customer}\n", url("acme.example", &acme)), &["--json"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    assert!(text.contains("a\\u202eb") && report["targets"][0]["customer"] == customer, "{text}");
}
