//! The destinations of alerts as configured, compiled.
//! Can outgate deliver an alert to this webhook?

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use jiff::Timestamp;

use super::audit::compile_syslog;
use super::guard::Guard;
use super::route::Route;
use super::trust::Trust;
use crate::config::{Config, Located, Problem, SyslogServer, parse_url};
use crate::names::{ClientName, Scheme, Target, TrustName};

/// The client of outgate's own webhooks, in records.
const OWN_CLIENT: &str = "outgate";

/// Size limit of the response to an alert, in bytes.
const RESPONSE_MAX: u64 = 64 << 10;

/// A compiled section `[alerts]`.
pub struct AlertsPlan {
    pub webhook: Option<AlertWebhook>,
    pub syslog: Vec<SyslogServer>,
    pub journald: bool,
    /// The time between two messages about one alert that lasts.
    pub remind: Duration,
    /// The time for which a condition must be gone before its alert is resolved.
    pub hold: Duration,
}

/// The webhook that gets alerts.
pub struct AlertWebhook {
    pub url: String,
    pub client: ClientName,
    /// Its ports are those of the URL.
    pub route: Arc<Route>,
}

/// Compiles `[alerts]`. `route`: its route, without a port.
pub(super) fn compile(
    config: &Config,
    trusts: &BTreeMap<TrustName, Arc<Trust>>,
    route: Option<&Route>,
    guard: &Guard,
    now: Timestamp,
    problems: &mut Vec<Problem>,
) -> AlertsPlan {
    let written = &config.alerts;
    let webhook = written.webhook.as_ref().zip(route);
    AlertsPlan {
        webhook: webhook.and_then(|(url, route)| compile_webhook(url, route, guard, now, problems)),
        syslog: compile_syslog(&written.syslog, trusts, problems),
        journald: written.journald,
        remind: written.remind,
        hold: written.hold,
    }
}

fn compile_webhook(
    url: &Located<String>,
    route: &Route,
    guard: &Guard,
    now: Timestamp,
    problems: &mut Vec<Problem>,
) -> Option<AlertWebhook> {
    let mut refuse = |message: String, help: &str| problems.push(Problem::at(url.span, message).help(help));
    let https = |(target, _): (Target, PathAndQuery)| match target.scheme {
        Scheme::Https => Ok(target),
        Scheme::Http => Err("the URL must be https"),
    };
    let target = match parse_url(url).and_then(https) {
        Ok(target) => target,
        Err(reason) => {
            let help = "write \"https://ops.platform.example/outgate\"";
            refuse(format!("this is not the URL of a webhook: {reason}"), help);
            return None;
        }
    };
    // The operator has configured the webhook, and thereby allowed its port.
    if guard.check_name(&target, &[target.port], false).is_err() || guard.denies(&target.host).is_some() {
        let help = "to permit it, add its address to guard.allow, or its name to resolver.hosts";
        refuse("the guard refuses this webhook".to_owned(), help);
        return None;
    }
    let families = route.pool.families(now);
    let addresses = guard.pinned_addresses(&target.host);
    if addresses.is_some_and(|all| all.iter().all(|to| !(if to.is_ipv6() { families.v6 } else { families.v4 }))) {
        let message = format!("the egress pool {} has no address that can reach this webhook", route.pool.name());
        refuse(message, "write alerts.egress with a pool that has addresses of the webhook's IP version");
        return None;
    }
    let route = Arc::new(Route { ports: vec![target.port], response_max: RESPONSE_MAX, ..route.clone() });
    Some(AlertWebhook { url: url.value.clone(), client: ClientName::new(OWN_CLIENT), route })
}
