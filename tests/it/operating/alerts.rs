//! Alerts: conditions that begin, last and end, and who learns of them.
//! Does the operator's receiver get each alert once, signed, with its end?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use support::audit::{audit_file, records_in, try_reload};
use support::configuration::{Config, token_hash};
use support::control::{exit_code_and_output, get, run, status, with_admin_socket};
use support::pki::Pki;
use support::receiver::{Reaction, ReceivedRequest, Receiver, ok};

use support::scene::{SECRET, Scene, billing, config, folder};
use support::{Outgate, eventually, signature};

/// A scene whose alerts go to a receiver of their own.
struct Alerting {
    scene: Scene,
    operator: Receiver,
}

fn alerting(reaction: Reaction, change: impl FnOnce(&Config) -> Config) -> Alerting {
    let pki = Pki::new();
    let (good, plain) = (Receiver::tls(pki.leaf(&["hook.example"]), ok()), Receiver::plain(ok()));
    let operator = Receiver::tls(pki.leaf(&["ops.example"]), reaction);
    let text = with_admin_socket(&config(&good, &plain, ""))
        .host("ops.example", "127.0.0.1")
        .add("audit.file", "{dir}/audit.jsonl")
        .add("alerts.webhook", format!("https://ops.example:{}/alerts", operator.port()))
        .add("alerts.sign", ["platform"])
        .add("alerts.hold", "1s");
    let outgate = Outgate::run(folder(&pki), &change(&text));
    Alerting { scene: Scene { pki, outgate, good, plain }, operator }
}

fn message(request: &ReceivedRequest) -> Value {
    serde_json::from_slice(&request.body).unwrap()
}

impl Alerting {
    /// The messages so far, each with its type and the name of its alert.
    fn messages(&self) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let messages = self.operator.requests().iter().map(message).collect::<Vec<_>>();
        messages.iter().map(|message| (text(&message["type"]), text(&message["data"]["name"]))).collect()
    }

    /// Waits for a message of this type about this alert.
    fn until(&self, event: &str, name: &str) -> ReceivedRequest {
        let is_it = |request: &ReceivedRequest| {
            let message = message(request);
            message["type"] == event && message["data"]["name"] == name
        };
        let mut found = None;
        eventually(&format!("{event} {name}"), || {
            found = self.operator.requests().into_iter().find(is_it);
            found.is_some()
        });
        found.unwrap()
    }

    fn reject(&self) {
        let broken = self.scene.outgate.config().and("[limits.broken]\nrat = 1\n");
        assert_eq!(try_reload(&self.scene, &broken).0, 78);
    }
}

#[test]
fn alert_is_one_signed_webhook_when_it_begins_and_one_when_it_is_resolved() {
    let alerting = alerting(ok(), Config::clone);
    let scene = &alerting.scene;
    let good = scene.outgate.config();
    alerting.reject();
    let began = alerting.until("alert.began", "OutgateReloadFailed");
    signature::verify(&began, SECRET);
    assert_eq!((&*began.line, began.field("content-type")), ("POST /alerts HTTP/1.1", "application/json"));
    assert!(began.from.to_string().starts_with("127.0.7."), "it leaves from the pool: {}", began.from);
    let body = message(&began);
    let data = &body["data"];
    assert_eq!((&data["severity"], &data["resolved"], &data["subject"]), (&json!("warning"), &Value::Null, &json!("")));
    assert!(data["what"].as_str().unwrap().contains("limits.broken.rat"), "{data}");
    for field in ["since", "consequence", "next"] {
        assert!(data[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {data}");
    }
    assert!(body["host"].is_string() && body["timestamp"].is_string(), "{body}");
    // The same alert wherever an operator looks.
    let alerts = status(scene)["alerts"].clone();
    assert_eq!(alerts[0], *data);
    let (_, out, _) = exit_code_and_output(&run(scene, &["status"]));
    assert!(out.contains("alert ") && out.contains("OutgateReloadFailed, since"), "{out}");
    assert!(scene.outgate.has_metric("outgate_alerts{name=\"OutgateReloadFailed\"} 1"));
    assert!(scene.outgate.has_metric("outgate_alerts{name=\"OutgatePoolEmpty\"} 0"));
    assert!(get(&scene.outgate, "/").text().contains("OutgateReloadFailed"));
    scene.outgate.log.wait_for_lines(1, &["WARN", "alert OutgateReloadFailed", "outgate check"]);
    let record = scene.outgate.records(1).remove(0);
    assert_eq!(
        (&record["route"], &record["client"], &record["code"]),
        (&json!("alerts"), &json!("outgate"), &json!("delivered"))
    );
    assert_eq!(try_reload(scene, &good).0, 0);
    let resolved = alerting.until("alert.resolved", "OutgateReloadFailed");
    signature::verify(&resolved, SECRET);
    assert!(message(&resolved)["data"]["resolved"].is_string());
    assert_eq!(message(&resolved)["data"]["since"], data["since"]);
    assert_ne!(began.field("webhook-id"), resolved.field("webhook-id"));
    let about: Vec<_> = alerting.messages().into_iter().filter(|(_, name)| name == "OutgateReloadFailed").collect();
    assert_eq!(about.len(), 2, "{about:?}");
    assert!(scene.outgate.has_metric("outgate_alerts{name=\"OutgateReloadFailed\"} 0"));
    let types: Vec<_> =
        records_in(&audit_file(&scene.outgate)).iter().map(|record| record["event_type"].clone()).collect();
    assert!(types.contains(&json!("alert.began")) && types.contains(&json!("alert.resolved")), "{types:?}");
}

#[test]
fn alerts_go_on_after_a_drain_that_has_ended() {
    let alerting = alerting(ok(), Config::clone);
    let scene = &alerting.scene;
    assert_eq!(run(scene, &["drain", "--grace", "0s"]).status.code(), Some(0));
    eventually("refusing", || status(scene)["drain"]["stage"] == "refusing");
    // What a drain refuses concerns no operator afterwards, neither.
    assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").code(), "draining");
    // Longer than the interval of the looks for conditions, of which none can be seen during a drain.
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(run(scene, &["undrain"]).status.code(), Some(0));
    alerting.reject();
    alerting.until("alert.began", "OutgateReloadFailed");
    // The refusal is older than this alert, and conditions are found together.
    assert_eq!(alerting.messages(), [("alert.began".to_owned(), "OutgateReloadFailed".to_owned())]);
    assert_eq!(status(scene)["ended_deliveries"]["outgate"], 1, "the total has it");
}

#[test]
fn tenants_that_redaction_makes_equal_raise_an_alert_each() {
    let tenants = ["+819012345678", "+819012345679"];
    let (_refusing, port) = support::ports::refusing();
    let alerting = alerting(ok(), |text| {
        text.and(&format!("[clients.billing]\ntokens = [\"{}\"]\ntenants = {tenants:?}\n", token_hash("TOKEN")))
            .and("[circuit]\nfailures = 0\n")
            .host("away.example", "127.0.0.1")
            .and(&format!("[[routes]]\nname = \"away\"\nhosts = [\"away.example\"]\nports = [{port}]\n"))
    });
    let post = |tenant: &str, url: &str| {
        let fields = format!("Proxy-Authorization: Bearer TOKEN\r\nOutgate-Tenant: {tenant}\r\n");
        alerting.scene.outgate.post(url, &fields, "x")
    };
    for tenant in tenants.iter().cycle().take(20) {
        assert_eq!(post(tenant, &format!("https://away.example:{port}/")).code(), "connect_refused");
    }
    let messages = |event: &str| {
        let messages = alerting.operator.requests().iter().map(message).collect::<Vec<_>>();
        messages
            .into_iter()
            .filter(|message| message["type"] == event && message["data"]["name"] == "OutgateTenantFails")
            .collect::<Vec<_>>()
    };
    eventually("an alert for each tenant", || messages("alert.began").len() == 2);
    let subjects: Vec<_> = messages("alert.began").iter().map(|message| message["data"]["subject"].clone()).collect();
    assert!(subjects[0] == subjects[1] && !subjects[0].to_string().contains("12345678"), "{subjects:?}");
    // Each is resolved by its own tenant's success.
    for (resolved, tenant) in tenants.iter().enumerate() {
        assert_eq!(post(tenant, &alerting.scene.good_url()).status, 200);
        eventually("the tenant's alert is resolved", || messages("alert.resolved").len() == resolved + 1);
    }
}

#[test]
fn alert_that_lasts_is_reminded_of() {
    let alerting = alerting(ok(), |text| text.add("alerts.remind", "4s"));
    alerting.reject();
    alerting.until("alert.began", "OutgateReloadFailed");
    let reminder = alerting.until("alert.reminded", "OutgateReloadFailed");
    assert_eq!(message(&reminder)["data"]["resolved"], Value::Null);
}

#[test]
fn alerts_wait_for_a_receiver_that_is_away_and_arrive_in_order() {
    let refused = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&refused);
    let reaction: Reaction = Arc::new(move |_| {
        let status =
            if counter.fetch_add(1, Ordering::SeqCst) < 3 { "503 Service Unavailable" } else { "204 No Content" };
        (format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").into_bytes(), true)
    });
    let alerting = alerting(reaction, Config::clone);
    let scene = &alerting.scene;
    let good = scene.outgate.config();
    alerting.reject();
    alerting.until("alert.began", "OutgateReloadFailed");
    scene.outgate.log.wait_for_lines(1, &["cannot send alerts to alerts.webhook", "503", "alerts wait for it"]);
    assert!(scene.outgate.admin("/readyz").text().contains("alerts do not reach alerts.webhook"));
    assert_eq!(try_reload(scene, &good).0, 0);
    alerting.until("alert.resolved", "OutgateReloadFailed");
    scene.outgate.log.wait_for_lines(1, &["alerts are sent to alerts.webhook again"]);
    let requests = alerting.operator.requests();
    // A receiver knows the copies of a message by its id.
    let ids: Vec<_> = requests.iter().map(|request| request.field("webhook-id").to_owned()).collect();
    assert!(ids[..4].iter().all(|id| *id == ids[0]) && ids[4] != ids[0], "{ids:?}");
    requests.iter().for_each(|request| signature::verify(request, SECRET));
    assert!(!scene.outgate.admin("/readyz").text().contains("alerts do not reach"));
}

#[test]
fn removed_webhook_gets_no_alert_and_the_log_still_does() {
    let alerting = alerting(ok(), Config::clone);
    let scene = &alerting.scene;
    let without = scene.outgate.config().remove("alerts.webhook").remove("alerts.sign");
    let (code, out, err) = try_reload(scene, &without);
    assert_eq!(code, 0, "{err}");
    // The path of a webhook may be a secret.
    let recorded = fs::read_to_string(audit_file(&scene.outgate)).unwrap();
    assert!(out.contains("alerts: webhook") && recorded.contains("alerts: webhook"), "{out}{recorded}");
    assert!(!out.contains("ops.example") && !recorded.contains("ops.example"), "{out}{recorded}");
    alerting.reject();
    scene.outgate.log.wait_for_lines(1, &["alert OutgateReloadFailed"]);
    assert_eq!(try_reload(scene, &without).0, 0);
    scene.outgate.log.wait_for_lines(1, &["alert OutgateReloadFailed", "is resolved"]);
    assert_eq!(alerting.messages(), []);
}

/// The settings that cause a condition from the start, with the alert and its subject.
#[test]
fn each_condition_of_the_configuration_raises_its_alert() {
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(72);
    let key = format!("keys = [{{ id = \"k1\", secret = \"file:{{dir}}/key\", until = \"{soon}\" }}]\n");
    let ending = format!("[signers.ending]\nscheme = \"standard-webhooks\"\n{key}");
    let more = "[egress.partial]\nranges = [\"127.0.8.0/31\", \"198.51.100.0/31\"]\n\
                [egress.empty]\nranges = [\"198.51.100.8/31\"]\n[trust.lax]\nverify = \"none\"\n";
    let alerting = alerting(ok(), |text| {
        let route = "[[routes]]\nname = \"lax\"\nhosts = [\"lax.example\"]\ntrust = \"lax\"\n";
        text.and(more).and(&ending).and(route)
    });
    for (name, subject) in [
        ("OutgateAddressLost", "partial"),
        ("OutgatePoolEmpty", "empty"),
        ("OutgateVerificationOff", "lax"),
        ("OutgateSigningKeyEnds", "ending"),
    ] {
        assert_eq!(message(&alerting.until("alert.began", name))["data"]["subject"], subject);
    }
    let scene = &alerting.scene;
    assert_eq!(try_reload(scene, &scene.outgate.config().add("server.workers", 1)).0, 0);
    let pending = alerting.until("alert.began", "OutgateRestartPending");
    assert_eq!(message(&pending)["data"]["subject"], "server.workers");
}

#[test]
fn certificate_near_its_end_raises_an_alert() {
    let alerting = alerting(ok(), Config::clone);
    let scene = &alerting.scene;
    let ends = jiff::Zoned::now().date().saturating_add(jiff::ToSpan::days(3));
    let leaf = |name: &str| {
        scene.pki.leaf_with(&[name], |params| {
            params.not_after = rcgen::date_time_ymd(ends.year().into(), ends.month() as u8, ends.day() as u8);
        })
    };
    let identity = leaf("client");
    scene.outgate.folder.write("client.pem", identity.chain_pem());
    let key = scene.outgate.folder.write("client.key", identity.key_pem());
    fs::set_permissions(key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let trust = "[trust.mutual]\nidentity = { certificate = \"{dir}/client.pem\", key = \"{dir}/client.key\" }\n";
    let (code, _, err) = try_reload(scene, &scene.outgate.config().and(trust));
    assert_eq!(code, 0, "{err}");
    let began = message(&alerting.until("alert.began", "OutgateCertificateEnds"));
    assert!(began["data"]["subject"].as_str().unwrap().ends_with("client.pem"), "{began}");
    // A certificate that is trusted for itself alone ends with its dates; an authority does not (RFC 5280 §6.1.1).
    scene.outgate.folder.write("trusted.pem", leaf("pinned.example").chain_pem());
    let trust = "[trust.pinned]\nroots = [\"{dir}/trusted.pem\"]\n";
    let (code, _, err) = try_reload(scene, &scene.outgate.config().and(trust));
    assert_eq!(code, 0, "{err}");
    let is_trusted =
        |event: &Value| event["data"]["subject"].as_str().is_some_and(|name| name.ends_with("trusted.pem"));
    eventually("an alert on it", || alerting.operator.requests().iter().map(message).any(|event| is_trusted(&event)));
}

#[test]
fn refusals_raise_an_alert_by_the_party_at_fault_and_a_failing_tenant_one_of_its_own() {
    let (_refusing, port) = support::ports::refusing();
    let alerting = alerting(ok(), |text| {
        text.and(&billing("TOKEN"))
            .and("[egress.empty]\nranges = [\"198.51.100.8/31\"]\n[circuit]\nfailures = 0\n")
            .host("away.example", "127.0.0.1")
            .and(&format!("[[routes]]\nname = \"away\"\nhosts = [\"away.example\"]\nports = [{port}]\n"))
            .and("[[routes]]\nname = \"homeless\"\nhosts = [\"homeless.example\"]\negress = \"empty\"\n")
            .host("homeless.example", "127.0.0.1")
    });
    let outgate = &alerting.scene.outgate;
    let acme = "Proxy-Authorization: Bearer TOKEN\r\nOutgate-Tenant: acme\r\n";
    for _ in 0..20 {
        assert_eq!(outgate.post(&format!("https://away.example:{port}/"), acme, "x").code(), "connect_refused");
        assert_eq!(outgate.post("https://nowhere.example/", "", "x").code(), "no_route");
    }
    let tenant = message(&alerting.until("alert.began", "OutgateTenantFails"));
    assert_eq!(tenant["data"]["subject"], "acme", "{tenant}");
    alerting.until("alert.began", "OutgateTargetsFail");
    alerting.until("alert.began", "OutgateClientsRefused");
    assert_eq!(outgate.post("https://homeless.example/", "", "x").code(), "no_egress");
    assert_eq!(message(&alerting.until("alert.began", "OutgateRefusesWebhooks"))["data"]["severity"], "critical");
    // A success ends the tenant's alert.
    assert_eq!(outgate.post(&alerting.scene.good_url(), acme, "x").status, 200);
    alerting.until("alert.resolved", "OutgateTenantFails");
}

#[test]
fn logs_that_cannot_be_written_raise_an_alert() {
    let alerting = alerting(ok(), |text| text.add("log.deliveries", "file:{dir}/deliveries.jsonl"));
    let scene = &alerting.scene;
    let (audit, deliveries) = (scene.outgate.folder.path("audit"), scene.outgate.folder.path("deliveries.jsonl"));
    fs::create_dir(&audit).unwrap();
    let moved = scene.outgate.config().set("audit.file", "{dir}/audit/audit.jsonl");
    assert_eq!(try_reload(scene, &moved).0, 0);
    fs::remove_dir_all(&audit).unwrap();
    let (code, _, err) = try_reload(scene, &moved.and("[limits.l]\nrate = \"1/s\"\n"));
    assert!(code == 78 && err.contains("audit_unwritable"), "{err}");
    let unwritable = message(&alerting.until("alert.began", "OutgateAuditUnwritable"));
    assert!(unwritable["data"]["what"].as_str().unwrap().contains("No such file"), "{unwritable}");
    fs::create_dir(&audit).unwrap();
    alerting.until("alert.resolved", "OutgateAuditUnwritable");
    // A folder in the place of the log after a rotation.
    fs::remove_file(&deliveries).unwrap();
    fs::create_dir(&deliveries).unwrap();
    scene.outgate.signal("USR1");
    alerting.until("alert.began", "OutgateLogNotReopened");
    fs::remove_dir(&deliveries).unwrap();
    alerting.until("alert.resolved", "OutgateLogNotReopened");
    assert_eq!(try_reload(scene, &moved.set("log.deliveries", "file:/dev/full")).0, 0);
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").status, 200);
    alerting.until("alert.began", "OutgateRecordsLost");
}

#[test]
fn check_refuses_a_webhook_for_alerts_that_cannot_get_any() {
    let alerting = alerting(ok(), Config::clone);
    let scene = &alerting.scene;
    let good = scene.outgate.config();
    let webhook = |url: &str| good.set("alerts.webhook", url);
    for (config, expected) in [
        (good.set("alerts.sign", ["nobody"]), "no signer is named \"nobody\""),
        (good.add("alerts.egress", "away"), "no egress pool is named \"away\""),
        (good.add("alerts.trust", "away"), "no trust is named \"away\""),
        (webhook("http://ops.example/"), "this is not the URL of a webhook: the URL must be https"),
        (webhook("https://10.0.0.1/"), "the guard refuses this webhook"),
        (webhook("https://ops.internal/"), "the guard refuses this webhook"),
        (
            webhook("https://six.example/")
                .host("six.example", "2001:db8::1")
                .set("guard.allow", ["127.0.0.0/8", "2001:db8::/32"]),
            "the egress pool default has no address that can reach this webhook",
        ),
        (good.remove("alerts.webhook"), "`alerts.sign` has no effect without `alerts.webhook`"),
        (good.add("alerts.remind", "0s"), "`alerts.remind` is not"),
        (good.add("alerts.syslog", ["tcp://siem"]), "no port"),
    ] {
        let path = scene.outgate.folder.write_config("other.toml", &config);
        let (code, _, err) = exit_code_and_output(&run(scene, &["check", "--config", path.to_str().unwrap()]));
        assert!(code == 1 && err.contains(expected), "{expected}: {err}");
    }
}
