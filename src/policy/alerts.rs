//! The destinations of alerts as configured, compiled.
//! Where do alerts go?

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::audit::compile_syslog;
use super::guard::Guard;
use super::own_webhook::{self, OwnWebhook};
use super::route::Route;
use super::trust::Trust;
use crate::config::{Config, Problem, SyslogServer};
use crate::names::TrustName;

/// A compiled section `[alerts]`.
pub struct AlertsPlan {
    pub webhook: Option<OwnWebhook>,
    pub syslog: Vec<SyslogServer>,
    pub journald: bool,
    /// The time between two messages about one alert that lasts.
    pub remind: Duration,
    /// The time for which a condition must be gone before its alert is resolved.
    pub hold: Duration,
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
        webhook: webhook.and_then(|(url, route)| own_webhook::compile("alerts", url, route, guard, now, problems)),
        syslog: compile_syslog(&written.syslog, trusts, problems),
        journald: written.journald,
        remind: written.remind,
        hold: written.hold,
    }
}
