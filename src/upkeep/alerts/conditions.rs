//! The conditions that an operator should look at, found in the state that the proxy keeps.
//! What is wrong now?

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

use crate::config::VerifyMode;
use crate::names::pluralize;
use crate::net::socket_diag;
use crate::panics;
use crate::policy::Plan;
use crate::policy::egress::notice::EarlyRange;
use crate::policy::expiry::CertificateUse;
use crate::policy::fleet::status::{FleetProblem, FleetProblemKind};
use crate::state::Runtime;
use crate::state::alerts::{self, AlertKind, Condition};
use crate::state::observability::log;
use crate::state::observability::traffic::BLAMES;

/// The minutes over which refusals are counted.
const REFUSAL_MINUTES: usize = 5;
/// The share of refusals that concerns an operator, as a divisor, and the least deliveries for a share.
const REFUSAL_DIVISOR: u64 = 5;
const DELIVERIES_MIN: u64 = 30;
/// The part of its ports, as a divisor, that a source address must have left towards a target.
const PORTS_DIVISOR: u32 = 10;
/// The time after which an operator must know that the store is away. A start, and a new connection, take less.
const STORE_AWAY_MIN: Duration = Duration::from_secs(5);
/// The time for which the alert of a panic lasts.
const PANIC_PERIOD: Duration = Duration::from_secs(3600);
/// The time before a signer has no key.
const KEY_NOTICE: SignedDuration = SignedDuration::from_hours(14 * 24);

/// The conditions that are found so far.
#[derive(Default)]
struct Conditions(Vec<Condition>);

impl Conditions {
    fn add(&mut self, kind: &'static AlertKind, subject: impl ToString, what: impl Into<String>) {
        self.0.push(Condition { kind, subject: subject.to_string(), key: String::new(), what: what.into() });
    }

    /// Adds a condition whose subject has passed redaction. `key`: what the subject was before.
    fn add_redacted(&mut self, kind: &'static AlertKind, key: &str, subject: &str, what: &str) {
        self.0.push(Condition { kind, subject: subject.to_owned(), key: key.to_owned(), what: what.to_owned() });
    }

    fn add_all(&mut self, kind: &'static AlertKind, reasons: impl IntoIterator<Item = String>) {
        reasons.into_iter().for_each(|reason| self.add(kind, "", reason));
    }
}

/// Returns the conditions that hold. This may take some milliseconds, so it runs on a worker thread.
pub(super) fn find(runtime: &Runtime, now: Timestamp, instant: Instant) -> Vec<Condition> {
    let (active, mut found) = (runtime.active_config(), Conditions::default());
    find_verification(&active.plan, &mut found);
    find_sources(runtime, &active.plan, now, &mut found);
    find_early_ranges(runtime, &active.plan, now, &mut found);
    find_refusals(runtime, instant, &mut found);
    for (tenant, count) in runtime.failing_tenants.review(instant) {
        let shown = active.plan.redactor.tenant(&tenant, true);
        let what = format!("the last {} for the tenant {} failed", pluralize(count, "webhook"), shown.as_str());
        found.add_redacted(&alerts::TENANT_FAILS, tenant.as_str(), shown.as_str(), &what);
    }
    for (target, gap) in runtime.source_health.gaps() {
        let redactor = &active.plan.redactor;
        let (subject, what) = (redactor.text(&target), redactor.text(&gap));
        found.add_redacted(&alerts::ALLOW_LIST_GAP, &target, subject.as_str(), what.as_str());
    }
    if let Some(outage) = active.resolver.outage() {
        let what =
            format!("no name server has responded for {} s ({})", outage.as_secs(), active.resolver.server_list());
        found.add(&alerts::DNS_OUTAGE, "", what);
    }
    let away = runtime.fleet.get().filter(|fleet| fleet.away_for() >= STORE_AWAY_MIN);
    if let Some(reason) = away.and_then(|fleet| fleet.degraded_reason()) {
        found.add(&alerts::FLEET_STORE_AWAY, "", reason);
    }
    let problems = runtime.fleet.get().and_then(|fleet| fleet.observed_problems());
    for FleetProblem { problem, subject, what } in problems.unwrap_or_default() {
        let kind = match problem {
            FleetProblemKind::RangeWithoutHost => &alerts::FLEET_RANGE_WITHOUT_HOST,
            FleetProblemKind::InstanceLost => &alerts::FLEET_INSTANCE_LOST,
            FleetProblemKind::RangeClaimedTwice => &alerts::FLEET_RANGE_CLAIMED_TWICE,
            FleetProblemKind::RangeNotOnHost => &alerts::FLEET_RANGE_NOT_ON_HOST,
            FleetProblemKind::BundleUnreadable => &alerts::FLEET_BUNDLE_UNREADABLE,
            FleetProblemKind::RolloutFailed => &alerts::FLEET_ROLLOUT_FAILED,
            FleetProblemKind::RolloutWaiting => &alerts::FLEET_ROLLOUT_WAITS,
            _ => &alerts::FLEET_INSTANCE_DIFFERS,
        };
        found.add(kind, subject, what);
    }
    if panics::occurred_within(PANIC_PERIOD) {
        let what = format!("outgate survived {} since its start", pluralize(panics::count() as usize, "panic"));
        found.add(&alerts::PANICKED, "", what);
    }
    find_expiries(&active.plan, now, &mut found);
    find_drift(runtime, &mut found);
    find_logs(runtime, &mut found);
    found.0
}

fn find_verification(plan: &Plan, found: &mut Conditions) {
    for (name, trust) in plan.trusts.iter().filter(|(_, trust)| trust.verify == VerifyMode::None) {
        if plan.routes.enforced().any(|route| route.trust.name == trust.name) {
            found.add(&alerts::VERIFICATION_OFF, name, format!("the trust {name} verifies no certificate of a target"));
        }
    }
}

fn find_sources(runtime: &Runtime, plan: &Plan, now: Timestamp, found: &mut Conditions) {
    let snapshot = runtime.sources.snapshot();
    for (name, pool) in &plan.pools {
        let count = snapshot.count(pool, now);
        if count.usable < count.configured || count.usable == 0 {
            let kind = if count.usable == 0 { &alerts::POOL_EMPTY } else { &alerts::ADDRESS_LOST };
            let note = snapshot.withheld_note(pool, now);
            let what = format!("the pool {name} has {} usable addresses of {}{note}", count.usable, count.configured);
            found.add(kind, name, what);
        }
    }
    for source in runtime.source_health.ejected() {
        found.add(&alerts::ADDRESS_CUT_OFF, source, format!("no target responds to the source address {source}"));
    }
    let usage = socket_diag::port_usage(|address| plan.has_source(address, now)).unwrap_or_default();
    runtime.note_ports(&usage);
    let ports = usage.available;
    for (source, usage) in usage.sources {
        let left = usage.ports_left(ports);
        if left < ports.div_ceil(PORTS_DIVISOR) {
            let what = format!("the source address {source} has {left} of {ports} ports left towards one target");
            found.add(&alerts::PORTS_NEARLY_OUT, source, what);
        }
    }
}

/// Finds ranges that an operator has forced, or that were changed while outgate did not run.
fn find_early_ranges(runtime: &Runtime, plan: &Plan, now: Timestamp, found: &mut Conditions) {
    let announcements = runtime.config_status.announcements();
    for (name, pool) in &plan.pools {
        for EarlyRange { cidr, starts, notice_end } in announcements.early(pool, now) {
            let what = format!(
                "the pool {name} sends from {cidr} from {starts:.0} on, before its notice ends on {notice_end:.0}"
            );
            found.add(&alerts::UNANNOUNCED_RANGE, cidr, what);
        }
    }
}

fn find_refusals(runtime: &Runtime, instant: Instant, found: &mut Conditions) {
    let minutes = runtime.traffic.minutes(instant);
    let lately = &minutes[minutes.len().saturating_sub(REFUSAL_MINUTES)..];
    let count = |party: usize| lately.iter().map(|minute| minute[party]).sum::<u64>();
    let all: u64 = (0..BLAMES.len()).map(count).sum();
    for (party, blame) in BLAMES.iter().enumerate() {
        let (ended, is_share) = (count(party), all >= DELIVERIES_MIN && count(party) * REFUSAL_DIVISOR > all);
        let (kind, what) = match *blame {
            "outgate" if ended > 0 => (&alerts::REFUSES_WEBHOOKS, "outgate itself refused"),
            "target" if is_share => (&alerts::TARGETS_FAIL, "targets failed"),
            "client" if is_share => (&alerts::CLIENTS_REFUSED, "clients were refused or hung up in"),
            _ => continue,
        };
        found.add(kind, "", format!("{what} {ended} of {} in {REFUSAL_MINUTES} minutes", pluralize(all, "delivery")));
    }
}

fn find_expiries(plan: &Plan, now: Timestamp, found: &mut Conditions) {
    // An authority in `roots` counts by its name and key, and not by its dates (RFC 5280 §6.1.1).
    for expiry in plan.expiries.iter().filter(|expiry| expiry.usage != CertificateUse::Roots) {
        if let Some(warning) = expiry.warning(now) {
            found.add(&alerts::CERTIFICATE_ENDS, expiry.path.display(), warning);
        }
    }
    for (name, signer) in &plan.signers {
        if let Some(end) = signer.next_gap(now).filter(|end| end.duration_since(now) < KEY_NOTICE) {
            found.add(&alerts::SIGNING_KEY_ENDS, name, format!("the signer {name} has no key from {end}"));
        }
    }
}

/// Finds differences between the files on disk and what runs.
fn find_drift(runtime: &Runtime, found: &mut Conditions) {
    let status = &runtime.config_status;
    if let Some(rejected) = status.rejected() {
        let problem = rejected.problems.first().map_or("", String::as_str);
        found.add(&alerts::RELOAD_FAILED, "", format!("the configuration on disk is rejected: {problem}"));
    } else if let Some(drift) = status.drift() {
        found.add(&alerts::CONFIG_DRIFT, "", format!("the files on disk are not what runs: {}", drift.what));
    }
    for key in &status.adopted().restart_required {
        found.add(&alerts::RESTART_PENDING, key, format!("{key} changed and takes effect at the next restart"));
    }
    found.add_all(&alerts::HISTORY_FAILED, status.history_error());
}

fn find_logs(runtime: &Runtime, found: &mut Conditions) {
    let (records, audit) = (&runtime.records, runtime.audit.status());
    match records.lost_since_recovery() {
        0 => {}
        lost => {
            let what = format!("{} lost since the last successful write", pluralize(lost, "delivery record"));
            found.add(&alerts::RECORDS_LOST, "", what);
        }
    }
    found.add_all(&alerts::LOG_NOT_REOPENED, records.reopen_error());
    match log::unreported() {
        0 => {}
        lost => found.add(&alerts::LOG_LINES_LOST, "", format!("stderr did not accept {}", pluralize(lost, "line"))),
    }
    found.add_all(&alerts::AUDIT_UNWRITABLE, audit.error());
    found.add_all(&alerts::AUDIT_DEGRADED, audit.lateness().into_iter().next());
}
