//! What the demo shows, scene by scene.
//! What is delivered, what is refused, and is each as it should be?

use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};

use super::super::hex;
use super::Demonstration;
use super::receivers::Receivers;
use super::sender::DemoResponse;

/// The file of delivery records, in the demo's folder.
pub(super) const RECORDS: &str = "deliveries.jsonl";
pub(super) const POOL: &str = "127.0.7.0/28";
/// Deliveries to the good receiver that the limit lets through at once.
pub(super) const LIMIT: u32 = 8;
const BODY: &str = r#"{"type":"invoice.paid","data":{"id":"in_1"}}"#;
/// A reload is seen within the debounce time and a moment.
const RELOAD_PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn configuration(receivers: &Receivers, token: &str, burst: u32) -> String {
    let hash = hex(digest(&SHA256, token.as_bytes()).as_ref());
    let ports = [receivers.good.port(), receivers.self_signed.port(), receivers.expired.port()];
    format!(
        r#"# The demo's configuration. Edit it while the demo runs: it is watched.
[server]
listen = ["127.0.0.1:0"]
state = "state"                   # everything is in this folder, which goes with the demo
allow_anonymous = true            # anyone on this host: the listener is on loopback

[admin]
listen = ["127.0.0.1:0"]

[clients.billing]                 # a client with a token may send for tenants
tokens = ["sha256:{hash}"]
tenants = ["*"]

[egress.default]
ranges = ["{POOL}"]

[guard]
allow = ["127.0.0.0/8"]           # the receivers are on loopback; a real one has no such line
ports = {ports:?}

[resolver.hosts]
"good.example" = ["127.0.0.1"]
"self-signed.example" = ["127.0.0.1"]
"expired.example" = ["127.0.0.1"]

[trust.public]
roots = ["ca.pem"]

[signers.platform]
scheme = "standard-webhooks"
keys = [{{ id = "demo", secret = "file:key" }}]

[limits.per-host]
rate = "1/m"
burst = {burst}
per = ["host"]

[log]
deliveries = "file:{RECORDS}"

[[routes]]
name = "customers"
hosts = ["*"]
sign = ["platform"]
limits = ["per-host"]
"#
    )
}

/// Plays every scene and prints what came of it. True if all went as they should.
pub(super) fn play(stage: &Demonstration) -> bool {
    let good = format!("https://good.example:{}/", stage.receivers.good.port());
    let upgrade = good.replace("https:", "http:");
    let by_name = |name: &str, port: u16| format!("https://{name}:{port}/");
    let self_signed = by_name("self-signed.example", stage.receivers.self_signed.port());
    let expired = by_name("expired.example", stage.receivers.expired.port());
    let metadata = by_name("169.254.169.254", stage.receivers.good.port());
    let credential = format!("Bearer {}", stage.token);
    let acme = [("Proxy-Authorization", credential.as_str()), ("Outgate-Tenant", "acme")];
    let mut passed = true;
    let mut scene = |what: &str, result: Result<String, String>| {
        passed &= result.is_ok();
        match result {
            Ok(seen) => println!("  ok    {what:<44} {seen}"),
            Err(seen) => println!("  FAIL  {what:<44} {seen}"),
        }
    };

    println!("Delivered");
    scene("absolute-form https://", delivered(stage, &good, &[]));
    scene("absolute-form http:// with Outgate-TLS: 1", delivered(stage, &upgrade, &[("Outgate-TLS", "1")]));
    scene("gateway form, Outgate-Target", delivered(stage, "/", &[("Outgate-Target", &good)]));
    scene("for tenant acme", delivered(stage, &good, &acme));
    scene("for tenant acme again: the same address", sticky(stage, &good, &acme));

    println!("\nRefused");
    scene("a self-signed certificate", refused(stage, &self_signed, &[], "certificate_untrusted", "self_signed"));
    scene("an expired certificate", refused(stage, &expired, &[], "certificate_untrusted", "expired"));
    scene("the cloud's metadata address", refused(stage, &metadata, &[], "target_forbidden", ""));
    scene("plaintext http://", refused(stage, &upgrade, &[], "plaintext_forbidden", ""));
    scene("a port that no route names", refused(stage, "https://good.example:22/", &[], "target_port_forbidden", ""));
    scene(
        "a wrong token",
        refused(stage, &good, &[("Proxy-Authorization", "Bearer wrong")], "client_unauthenticated", ""),
    );

    println!("\nLimited, and changed while it runs");
    scene(&format!("more than {LIMIT} a minute"), exhausted(stage, &good));
    scene("a larger burst, written to the configuration", reloaded(stage, &good));
    println!("\n{}", if passed { "Everything went as it should." } else { "Something did not go as it should." });
    passed
}

fn delivered(stage: &Demonstration, target: &str, fields: &[(&str, &str)]) -> Result<String, String> {
    let before = stage.receivers.count();
    let answer = post(stage, target, fields)?;
    let seen = stage.receivers.last().filter(|_| stage.receivers.count() == before + 1);
    let seen = seen.ok_or_else(|| format!("nothing arrived: {} {}", answer.status, answer.field("outgate-error")))?;
    let as_told = answer.field("outgate-egress") == seen.from.to_string();
    let line = format!(
        "{}, from {}, signature {}",
        answer.status,
        seen.from,
        if seen.verified { "verified" } else { "WRONG" }
    );
    if answer.status == 200 && seen.verified && as_told { Ok(line) } else { Err(line) }
}

fn sticky(stage: &Demonstration, target: &str, fields: &[(&str, &str)]) -> Result<String, String> {
    let before = stage.receivers.last().map(|seen| seen.from);
    let line = delivered(stage, target, fields)?;
    if stage.receivers.last().map(|seen| seen.from) == before { Ok(line) } else { Err(line) }
}

fn refused(
    stage: &Demonstration,
    target: &str,
    fields: &[(&str, &str)],
    code: &str,
    details: &str,
) -> Result<String, String> {
    let before = stage.receivers.count();
    let answer = post(stage, target, fields)?;
    let line = format!("{} {} {details}", answer.status, answer.field("outgate-error"));
    let told = answer.field("outgate-error") == code && answer.field("proxy-status").contains(details);
    if told && stage.receivers.count() == before { Ok(line) } else { Err(line) }
}

/// The deliveries above took some of the burst; this takes the rest.
fn exhausted(stage: &Demonstration, target: &str) -> Result<String, String> {
    for _ in 0..=LIMIT {
        let answer = post(stage, target, &[])?;
        if answer.field("outgate-error") == "rate_limited" {
            return Ok(format!("{} rate_limited, Retry-After {}", answer.status, answer.field("retry-after")));
        }
    }
    Err("the limit did not hold".to_owned())
}

fn reloaded(stage: &Demonstration, target: &str) -> Result<String, String> {
    let text = configuration(&stage.receivers, &stage.token, 10 * LIMIT).replace("rate = \"1/m\"", "rate = \"100/s\"");
    std::fs::write(stage.folder.path("config.toml"), text).map_err(|fault| fault.to_string())?;
    let start = Instant::now();
    while start.elapsed() < RELOAD_PATIENCE {
        if post(stage, target, &[])?.status == 200 {
            return Ok(format!("delivered again {} ms after the file was saved", start.elapsed().as_millis()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err("the change was not adopted".to_owned())
}

fn post(stage: &Demonstration, target: &str, fields: &[(&str, &str)]) -> Result<DemoResponse, String> {
    stage.sender.post(target, fields, BODY).map_err(|fault| format!("no answer from the proxy: {fault}"))
}
