//! The scenarios of the demo.
//! Which webhooks are delivered and which are refused, and is each outcome as expected?

use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;

use super::Demonstration;
use super::client::DemoResponse;
use super::receivers::Receivers;
use crate::digest::sha256;

/// The file of delivery records, in the demo's folder.
pub(super) const RECORDS: &str = "deliveries.jsonl";
pub(super) const POOL: &str = "127.0.7.0/28";
/// The burst of deliveries to the valid receiver that the limit allows.
pub(super) const LIMIT: u32 = 8;
const BODY: &str = r#"{"type":"invoice.paid","data":{"id":"in_1"}}"#;
/// The time limit of a reload; the debounce time is far shorter.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn configuration(receivers: &Receivers, token: &str, burst: u32) -> String {
    let hash = HEXLOWER.encode(&sha256(token.as_bytes()));
    let ports = [receivers.valid.port(), receivers.self_signed.port(), receivers.expired.port()];
    format!(
        r#"# The demo's configuration. Edit it while the demo runs: outgate reloads it after each change.
[server]
listen = ["127.0.0.1:0"]
state = "state"                   # a folder of the demo, which is deleted at the end
allow_anonymous = true            # the listener is on loopback: only this host can connect

[admin]
listen = ["127.0.0.1:0"]

[clients.billing]                 # a client with a token may send for tenants
tokens = ["sha256:{hash}"]
tenants = ["*"]

[egress.default]
ranges = ["{POOL}"]

[guard]
allow = ["127.0.0.0/8"]           # the receivers are on loopback; production needs no such line
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

/// Runs every scenario and prints its outcome. Returns true if all passed.
pub(super) fn run_all(demo: &Demonstration) -> bool {
    let good = format!("https://good.example:{}/", demo.receivers.valid.port());
    let upgrade = good.replace("https:", "http:");
    let by_name = |name: &str, port: u16| format!("https://{name}:{port}/");
    let self_signed = by_name("self-signed.example", demo.receivers.self_signed.port());
    let expired = by_name("expired.example", demo.receivers.expired.port());
    let metadata = by_name("169.254.169.254", demo.receivers.valid.port());
    let credential = format!("Bearer {}", demo.token);
    let acme = [("Proxy-Authorization", credential.as_str()), ("Outgate-Tenant", "acme")];
    let mut passed = true;
    let mut report = |name: &str, result: Result<String, String>| {
        passed &= result.is_ok();
        match result {
            Ok(detail) => println!("  ok    {name:<44} {detail}"),
            Err(detail) => println!("  FAIL  {name:<44} {detail}"),
        }
    };

    println!("Delivered");
    report("absolute-form https://", expect_delivered(demo, &good, &[]));
    report("absolute-form http:// with Outgate-TLS: 1", expect_delivered(demo, &upgrade, &[("Outgate-TLS", "1")]));
    report("gateway form, Outgate-Target", expect_delivered(demo, "/", &[("Outgate-Target", &good)]));
    report("for tenant acme", expect_delivered(demo, &good, &acme));
    report("for tenant acme again: the same address", expect_same_source(demo, &good, &acme));

    println!("\nRefused");
    report(
        "a self-signed certificate",
        expect_refused(demo, &self_signed, &[], "certificate_untrusted", "self_signed"),
    );
    report("an expired certificate", expect_refused(demo, &expired, &[], "certificate_untrusted", "expired"));
    report("the cloud's metadata address", expect_refused(demo, &metadata, &[], "target_forbidden", ""));
    report("plaintext http://", expect_refused(demo, &upgrade, &[], "plaintext_forbidden", ""));
    report(
        "a port that no route names",
        expect_refused(demo, "https://good.example:22/", &[], "target_port_forbidden", ""),
    );
    report(
        "a wrong token",
        expect_refused(demo, &good, &[("Proxy-Authorization", "Bearer wrong")], "client_unauthenticated", ""),
    );

    println!("\nA rate limit, changed while the proxy runs");
    report(&format!("more than {LIMIT} a minute"), expect_rate_limited(demo, &good));
    report("a larger burst, written to the configuration", expect_reloaded(demo, &good));
    println!("\n{}", if passed { "Every scenario passed." } else { "At least one scenario failed." });
    passed
}

fn expect_delivered(demo: &Demonstration, target: &str, fields: &[(&str, &str)]) -> Result<String, String> {
    let before = demo.receivers.count();
    let response = post(demo, target, fields)?;
    let webhook = demo.receivers.last().filter(|_| demo.receivers.count() == before + 1);
    let webhook = webhook.ok_or_else(|| {
        format!("the receiver got no webhook: {} {}", response.status, response.field("outgate-error"))
    })?;
    let source_matches = response.field("outgate-egress") == webhook.from.to_string();
    let line = format!(
        "{}, from {}, signature {}",
        response.status,
        webhook.from,
        if webhook.verified { "verified" } else { "WRONG" }
    );
    if response.status == 200 && webhook.verified && source_matches { Ok(line) } else { Err(line) }
}

fn expect_same_source(demo: &Demonstration, target: &str, fields: &[(&str, &str)]) -> Result<String, String> {
    let before = demo.receivers.last().map(|webhook| webhook.from);
    let line = expect_delivered(demo, target, fields)?;
    if demo.receivers.last().map(|webhook| webhook.from) == before { Ok(line) } else { Err(line) }
}

fn expect_refused(
    demo: &Demonstration,
    target: &str,
    fields: &[(&str, &str)],
    code: &str,
    details: &str,
) -> Result<String, String> {
    let before = demo.receivers.count();
    let response = post(demo, target, fields)?;
    let line = format!("{} {} {details}", response.status, response.field("outgate-error"));
    let matches = response.field("outgate-error") == code && response.field("proxy-status").contains(details);
    if matches && demo.receivers.count() == before { Ok(line) } else { Err(line) }
}

/// The earlier scenarios used a part of the burst; this one uses the rest.
fn expect_rate_limited(demo: &Demonstration, target: &str) -> Result<String, String> {
    for _ in 0..=LIMIT {
        let response = post(demo, target, &[])?;
        if response.field("outgate-error") == "rate_limited" {
            return Ok(format!("{} rate_limited, Retry-After {}", response.status, response.field("retry-after")));
        }
    }
    Err("the limit did not refuse a request".to_owned())
}

fn expect_reloaded(demo: &Demonstration, target: &str) -> Result<String, String> {
    let text = configuration(&demo.receivers, &demo.token, 10 * LIMIT).replace("rate = \"1/m\"", "rate = \"100/s\"");
    std::fs::write(demo.dir.path("config.toml"), text).map_err(|error| error.to_string())?;
    let start = Instant::now();
    while start.elapsed() < RELOAD_TIMEOUT {
        if post(demo, target, &[])?.status == 200 {
            return Ok(format!("delivered again {} ms after the file was saved", start.elapsed().as_millis()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err("outgate did not adopt the change".to_owned())
}

fn post(demo: &Demonstration, target: &str, fields: &[(&str, &str)]) -> Result<DemoResponse, String> {
    demo.client.post(target, fields, BODY).map_err(|error| format!("no response from the proxy: {error}"))
}
