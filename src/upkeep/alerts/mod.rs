//! Alerts: looks for conditions every few seconds, and tells the operator when one begins, lasts or ends.
//! Who learns of a condition, and when?

mod conditions;

use std::io;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tracing::{error, info, warn};

use super::own_webhooks::{WebhookMessage, WebhookQueue};
use crate::audit::{ALERT_BEGAN, ALERT_RESOLVED, Event};
use crate::host;
use crate::names::SyslogSeverity;
use crate::policy::alerts::AlertsPlan;
use crate::state::Runtime;
use crate::state::alerts::{AUDIT_UNWRITABLE, Alert, AlertEvent, AlertKind, AlertSeverity};
use crate::state::sinks::{Facility, JournalFields, SinkMessage, Sinks};

const MESSAGES: &str = "alerts";

/// Looks for conditions until the process ends.
pub async fn run(runtime: Arc<Runtime>) {
    let mut ticks = super::ticks();
    let mut destinations = Destinations::new(&runtime);
    loop {
        ticks.tick().await;
        if runtime.is_draining() {
            continue; // what a drain causes concerns no operator
        }
        let (active, observed) = (runtime.active_config(), Arc::clone(&runtime));
        let finding = runtime.metrics_worker.run(move || conditions::find(&observed, Timestamp::now(), Instant::now()));
        let Ok(found) = finding.await else { continue };
        let plan = &active.plan.alerts;
        destinations.follow(plan);
        let now = (Timestamp::now(), Instant::now());
        for (event, alert) in runtime.alerts.update(found, now, (plan.remind, plan.hold)) {
            log(event, &alert);
            record(&runtime, event, &alert, now.0);
            destinations.send(plan, event, &alert, now.0);
        }
    }
}

fn log(event: AlertEvent, alert: &Alert) {
    let Alert { kind: AlertKind { name, severity, consequence, next }, since, what, .. } = alert;
    match (event, severity) {
        (AlertEvent::Resolved, _) => info!("alert {name}, since {since}, is resolved: {what}"),
        (_, AlertSeverity::Critical) => error!("alert {name}, since {since}: {what}; {consequence}; {next}"),
        (_, AlertSeverity::Warning) => warn!("alert {name}, since {since}: {what}; {consequence}; {next}"),
    }
}

/// Records the begin or the end of an alert in the audit log. A gap record states that the audit log itself failed.
fn record(runtime: &Runtime, event: AlertEvent, alert: &Alert, now: Timestamp) {
    let event_type = match event {
        _ if alert.kind == &AUDIT_UNWRITABLE => return,
        AlertEvent::Began => ALERT_BEGAN,
        AlertEvent::Reminded => return,
        AlertEvent::Resolved => ALERT_RESOLVED,
    };
    let resource = if alert.subject.is_empty() { alert.kind.name } else { &alert.subject };
    let event = Event::new(event_type, resource, now, alert.what.as_str());
    runtime.audit.record(event.with("name", alert.kind.name).with("since", alert.since.to_string()));
}

/// The open destinations of alerts, besides the log.
struct Destinations {
    runtime: Arc<Runtime>,
    sinks: Sinks,
    webhook: WebhookQueue,
    host: String,
}

impl Destinations {
    fn new(runtime: &Arc<Runtime>) -> Self {
        let webhook =
            WebhookQueue::open(runtime, MESSAGES, "alerts.webhook", Box::new(|plan| plan.alerts.webhook.as_ref()));
        let sinks = Sinks::new(MESSAGES, Arc::downgrade(runtime), Handle::current());
        Self { runtime: Arc::clone(runtime), sinks, webhook, host: host::own_name() }
    }

    /// Opens the destinations of the active configuration and closes the others.
    fn follow(&mut self, plan: &AlertsPlan) {
        let mut status = self.sinks.set(&plan.syslog, plan.journald);
        status.extend(plan.webhook.as_ref().map(|_| Arc::clone(self.webhook.status())));
        self.runtime.alerts.set_sinks(status);
    }

    fn send(&self, plan: &AlertsPlan, event: AlertEvent, alert: &Alert, now: Timestamp) {
        let data = json!(alert);
        let message = json!({ "type": event.as_str(), "timestamp": now, "host": self.host, "data": data }).to_string();
        if !self.sinks.is_empty() {
            self.sinks.send(&Arc::new(SinkMessage {
                at: now,
                facility: Facility::Alert,
                severity: severity(event, alert),
                id: event.as_str(),
                line: message.clone().into_bytes(),
                journal_fields,
            }));
        }
        if plan.webhook.is_some() {
            let id = format!("msg_{}", self.runtime.next_request_id());
            self.webhook.send(WebhookMessage { id, body: message.into(), queued: Instant::now() });
        }
    }
}

fn severity(event: AlertEvent, alert: &Alert) -> SyslogSeverity {
    match (event, alert.kind.severity) {
        (AlertEvent::Resolved, _) => SyslogSeverity::Informational,
        (_, AlertSeverity::Critical) => SyslogSeverity::Error,
        (_, AlertSeverity::Warning) => SyslogSeverity::Warning,
    }
}

fn journal_fields(line: &[u8]) -> io::Result<JournalFields> {
    let message: Value = serde_json::from_slice(line)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let data = &message["data"];
    Ok(vec![
        ("MESSAGE", format!("{} {}: {}", text(&message["type"]), text(&data["name"]), text(&data["what"]))),
        ("OUTGATE_ALERT", text(&data["name"])),
        ("OUTGATE_ALERT_EVENT", text(&message["type"])),
        ("OUTGATE_ALERT_SUBJECT", text(&data["subject"])),
        ("OUTGATE_ALERT_RECORD", String::from_utf8_lossy(line).into_owned()),
    ])
}
