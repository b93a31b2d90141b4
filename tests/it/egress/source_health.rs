//! Detection of targets that answer only some source addresses.
//! Does outgate report an incomplete allow-list, and a source address that is cut off?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::sync::Arc;
use std::time::Instant;

use support::pki::Pki;
use support::receiver::{Reaction, Receiver, ok};
use support::scene::folder;
use support::{Outgate, TEST_TIMEOUT};

/// Starts a proxy with four sources in rotation and without failover, so that each delivery uses a known source. The
/// timeout suffices for a connection on a loaded machine.
fn run(targets: &[(&str, &Receiver)], pki: &Pki) -> Outgate {
    run_with(targets, pki, IN_TURN, "1s")
}

const IN_TURN: &str = "ranges = [\"127.0.7.0/30\"]\nselect = \"spread\"\nfailover = false";

fn run_with(targets: &[(&str, &Receiver)], pki: &Pki, pool: &str, connect: &str) -> Outgate {
    let hosts: String = targets.iter().map(|(name, receiver)| host(name, receiver)).collect();
    let ports: Vec<_> = targets.iter().map(|(_, receiver)| receiver.port().to_string()).collect();
    let ports = ports.join(", ");
    Outgate::run(
        folder(pki),
        &format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\nallow_anonymous = true\n[clients.platform]\nnetworks = [\"127.0.0.1/32\"]\ntenants = [\"*\"]\n[admin]\nlisten = [\"127.0.0.1:0\"]\n\
             [egress.default]\n{pool}\n\
             [guard]\nallow = [\"127.0.0.0/8\"]\n[resolver.hosts]\n{hosts}[trust.public]\nroots = [\"{{dir}}/ca.pem\"]\n\
             [circuit]\nfailures = 0\n[timeouts]\nconnect = \"{connect}\"\n\
             [[routes]]\nname = \"all\"\nhosts = [\"*\"]\nports = [{ports}]\n"
        ),
    )
}

fn host(name: &str, receiver: &Receiver) -> String {
    format!("\"{name}\" = [\"{}\"]\n", receiver.address.ip())
}

const GAPS: &str = "outgate_suspected_allow_list_gaps";
const CUT_OFF: &str = "outgate_egress_addresses_cut_off";

const NAMES: [&str; 4] = ["a.example", "b.example", "c.example", "d.example"];

/// Starts four targets in different networks.
fn four_networks(pki: &Pki) -> [Receiver; 4] {
    let mut number = 20;
    NAMES.map(|name| {
        number += 1;
        Receiver::tls_at(&format!("127.0.{number}.1:0"), pki.leaf(&[name]), respond_ok_and_close())
    })
}

fn urls(targets: &[(&str, &Receiver)]) -> Vec<String> {
    targets.iter().map(|(name, target)| format!("https://{name}:{}/", target.port())).collect()
}

/// Waits until the timeouts to each of these hosts are recorded, reviewed and reported.
fn wait_for_review(outgate: &Outgate, names: &[&str]) {
    outgate.log.wait_for("a log line for each gap", |lines| {
        let is_reported =
            |name: &&str| lines.iter().any(|line| line.contains(*name) && line.contains("but not to 127.0.7.1"));
        names.iter().all(is_reported).then_some(())
    });
}

/// Responds and closes the connection, so that each delivery must connect again.
fn respond_ok_and_close() -> Reaction {
    Arc::new(|_| (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok".to_vec(), false))
}

fn gauge(outgate: &Outgate, name: &str, value: u32) -> bool {
    outgate.admin("/metrics").text().lines().any(|line| line == format!("{name} {value}"))
}

/// Sends to each URL from each source at once: a gap needs several timeouts, which would take too long one by one.
fn send_to_all(outgate: &Outgate, urls: &[String], fields: &str) {
    const SOURCES: usize = 4;
    std::thread::scope(|scope| {
        // One more request than a multiple of the sources, so that each target gets requests from each source.
        for url in urls.iter().cycle().take(SOURCES * urls.len() + 1) {
            scope.spawn(move || outgate.post(url, &format!("Connection: close\r\n{fields}"), "x"));
        }
    });
}

/// Sends to each URL in rotation until the condition holds.
fn send_until(outgate: &Outgate, urls: &[String], label: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {label}\n{}", outgate.log.all().join("\n"));
        send_to_all(outgate, urls, "");
    }
}

#[test]
fn source_health_reports_a_source_that_one_target_does_not_answer_and_its_recovery() {
    let pki = Pki::new();
    let target = Receiver::tls(pki.leaf(&["hook.example"]), respond_ok_and_close());
    let outgate = run(&[("hook.example", &target)], &pki);
    let url = [format!("https://hook.example:{}/in", target.port())];
    target.drop_packets_from(&["127.0.7.2"]);
    let gaps = |count| gauge(&outgate, "outgate_suspected_allow_list_gaps", count);
    send_until(&outgate, &url, "a gap", || gaps(1));
    let words = format!(
        "hook.example:{} at 127.0.0.1 responds to 127.0.7.0/31 and 127.0.7.3, but not to 127.0.7.2: its allow-list may \
         lack that address",
        target.port()
    );
    // The alert about the gap has a line of its own.
    let is_report = |line: &&String| line.contains(&words) && !line.contains("alert ");
    let reported = || outgate.log.all().iter().filter(is_report).count();
    send_until(&outgate, &url, "the log line", || reported() > 0);
    let is_alert = || outgate.has_metric("outgate_alerts{name=\"OutgateAllowListGap\"} 1");
    send_until(&outgate, &url, "the alert", is_alert);
    target.drop_packets_from(&[]);
    send_until(&outgate, &url, "no gap", || gaps(0));
    send_until(&outgate, &url, "the log line of the recovery", || {
        outgate.log.all().iter().any(|line| line.contains("is no longer suspected to lack a source address"))
    });
    assert_eq!(reported(), 1, "once is enough");
}

#[test]
fn source_health_reports_no_gap_for_a_target_that_is_down() {
    let pki = Pki::new();
    let target = Receiver::tls(pki.leaf(&["hook.example"]), respond_ok_and_close());
    let outgate = run(&[("hook.example", &target)], &pki);
    let url = format!("https://hook.example:{}/in", target.port());
    assert_eq!(outgate.post(&url, "", "x").status, 200);
    target.drop_packets_from(&["127.0.7.0", "127.0.7.1", "127.0.7.2", "127.0.7.3"]);
    for _ in 0..4 {
        assert_eq!(outgate.post(&url, "", "x").code(), "connect_timeout");
    }
    assert!(gauge(&outgate, "outgate_suspected_allow_list_gaps", 0));
}

#[test]
fn a_source_that_four_networks_do_not_answer_is_ejected() {
    let pki = Pki::new();
    let targets = four_networks(&pki);
    let list: Vec<_> = NAMES.into_iter().zip(&targets).collect();
    let (outgate, urls) = (run(&list, &pki), urls(&list));
    targets.iter().for_each(|target| target.drop_packets_from(&["127.0.7.1"]));
    send_until(&outgate, &urls, "a source that is cut off", || gauge(&outgate, CUT_OFF, 1));
    let ready = outgate.admin("/readyz");
    assert!(ready.status == 200 && ready.text().contains("127.0.7.1 among them"), "{}", ready.text());
    outgate.log.wait_for("the log line", |lines| {
        lines.iter().any(|line| line.contains("source 127.0.7.1 timed out to targets in 4 networks")).then_some(())
    });
    outgate.wait_for_metric("outgate_alerts{name=\"OutgateAddressCutOff\"} 1");
    for url in urls.iter().cycle().take(16) {
        assert_eq!(outgate.post(url, "Connection: close\r\n", "x").status, 200, "{url}");
    }
}

#[test]
fn a_source_is_not_ejected_for_four_names_of_one_address() {
    let pki = Pki::new();
    let targets = NAMES.map(|name| Receiver::tls(pki.leaf(&[name]), respond_ok_and_close()));
    let list: Vec<_> = NAMES.into_iter().zip(&targets).collect();
    let (outgate, urls) = (run(&list, &pki), urls(&list));
    targets.iter().for_each(|target| target.drop_packets_from(&["127.0.7.1"]));
    send_until(&outgate, &urls, "four gaps", || gauge(&outgate, GAPS, 4));
    wait_for_review(&outgate, &NAMES);
    assert!(gauge(&outgate, CUT_OFF, 0));
}

#[test]
fn a_source_is_not_ejected_while_responses_come_on_a_kept_connection() {
    let pki = Pki::new();
    let targets = four_networks(&pki);
    let kept = Receiver::tls_at("127.0.30.1:0", pki.leaf(&["kept.example"]), ok());
    let mut list: Vec<_> = NAMES.into_iter().zip(&targets).collect();
    list.push(("kept.example", &kept));
    let (outgate, mut urls) = (run(&list, &pki), urls(&list));
    let kept_url = urls.pop().unwrap();
    // Each of the four sources opens a connection.
    (0..4).for_each(|_| assert_eq!(outgate.post(&kept_url, "", "x").status, 200));
    targets.iter().for_each(|target| target.drop_packets_from(&["127.0.7.1"]));
    send_until(&outgate, &urls, "four gaps", || {
        (0..4).for_each(|_| assert_eq!(outgate.post(&kept_url, "", "x").status, 200));
        gauge(&outgate, GAPS, 4)
    });
    wait_for_review(&outgate, &NAMES);
    assert!(gauge(&outgate, CUT_OFF, 0));
    assert_eq!(kept.connections(), 4, "nothing was dialled for this");
}

#[test]
fn a_source_is_not_ejected_by_one_tenant_of_several() {
    let pki = Pki::new();
    let targets = four_networks(&pki);
    let list: Vec<_> = NAMES.into_iter().zip(&targets).collect();
    let (outgate, urls) = (run(&list, &pki), urls(&list));
    targets.iter().for_each(|target| target.drop_packets_from(&["127.0.7.1"]));
    outgate.post(&urls[0], "Connection: close\r\nOutgate-Tenant: other\r\n", "x");
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !gauge(&outgate, GAPS, 4) {
        assert!(Instant::now() < deadline, "no four gaps");
        send_to_all(&outgate, &urls, "Outgate-Tenant: one\r\n");
    }
    wait_for_review(&outgate, &NAMES);
    assert!(gauge(&outgate, CUT_OFF, 0));
    // Two of the four networks for each of two tenants are enough.
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !gauge(&outgate, CUT_OFF, 1) {
        assert!(Instant::now() < deadline, "never ejected");
        send_to_all(&outgate, &urls, "Outgate-Tenant: other\r\n");
    }
}

/// The failover shows in the source address of the response.
#[test]
fn failover_tries_the_next_source_after_a_connect_without_an_answer() {
    let pki = Pki::new();
    let target = Receiver::tls(pki.leaf(&["hook.example"]), respond_ok_and_close());
    let outgate =
        run_with(&[("hook.example", &target)], &pki, "ranges = [\"127.0.7.0/30\"]\nselect = \"sticky\"", "2s");
    let url = format!("https://hook.example:{}/in", target.port());
    let usual = outgate.post(&url, "", "x").field("outgate-egress").to_owned();
    target.drop_packets_from(&[&usual]);
    for _ in 0..3 {
        let response = outgate.post(&url, "Connection: close\r\n", "x");
        assert_eq!(response.status, 200, "{response:?}");
        assert_ne!(response.field("outgate-egress"), usual);
    }
    assert!(gauge(&outgate, "outgate_suspected_allow_list_gaps", 1));
    assert_eq!(target.requests().len(), 4, "none was sent twice");
}

#[test]
fn source_health_reports_a_pool_with_few_usable_addresses() {
    let pki = Pki::new();
    let target = Receiver::tls(pki.leaf(&["hook.example"]), respond_ok_and_close());
    let absent = "exclude = [\"127.0.7.0\"]\nranges = [\"127.0.7.0/30\", \"203.0.113.0/28\"]\n";
    let outgate = run_with(&[("hook.example", &target)], &pki, absent, "2s");
    let ready = outgate.admin("/readyz");
    assert!(ready.text().contains("pool default has 3 usable source addresses of 19"), "{}", ready.text());
}
