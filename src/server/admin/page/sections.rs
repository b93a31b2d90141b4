//! The sections of the status page: one table or list each.
//! Which facts does each section show?

use std::net::IpAddr;

use jiff::Timestamp;
use maud::{Markup, html};

use super::super::limits::fullest_keys;
use super::super::readiness::Readiness;
use super::time;
use crate::history::HistoryEntry;
use crate::state::Runtime;
use crate::state::alerts::AlertSeverity;

/// Limits the certificates that the page lists, those that expire first.
const EXPIRIES_MAX: usize = 20;
/// Limits the changes of one configuration that the page lists.
const CHANGES_MAX: usize = 20;
/// Limits the keys of limits that the page lists, those with the largest share.
const LIMIT_KEYS_MAX: usize = 10;
/// The share from which a limit counts as near full, as in the metrics.
const NEAR_FULL: f64 = 0.9;
const SECONDS_PER_DAY: i64 = 24 * 60 * 60;

/// The reasons why outgate serves no traffic, or why an operator should look.
pub(super) fn attention(readiness: &Readiness) -> Markup {
    html! {
        @if !(readiness.blocked.is_empty() && readiness.degraded.is_empty()) {
            section .wide aria-labelledby="attention" {
                h2 #attention .bad { "Needs attention" }
                ul {
                    @for reason in &readiness.blocked { li { strong { "not ready: " } (reason) } }
                    @for reason in &readiness.degraded { li { (reason) } }
                }
            }
        }
    }
}

/// The active alerts.
pub(super) fn alerts(runtime: &Runtime, now: Timestamp) -> Markup {
    let alerts = runtime.alerts.active();
    html! {
        @if !alerts.is_empty() {
            section .wide aria-labelledby="alerts" {
                h2 #alerts .bad { "Alerts" }
                div .scroll tabindex="0" role="group" aria-labelledby="alerts" {
                    table {
                        thead { tr {
                            th scope="col" { "alert" } th scope="col" { "since" } th scope="col" { "what happened" } th scope="col" { "next step" }
                        } }
                        tbody {
                            @for alert in &alerts {
                                tr {
                                    th scope="row" .bad[alert.kind.severity == AlertSeverity::Critical] { (alert.kind.name) }
                                    td { (ago(alert.since, now)) }
                                    td { (alert.what) "; " (alert.kind.consequence) }
                                    td { (alert.kind.next) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

pub(super) fn configuration(runtime: &Runtime, now: Timestamp) -> Markup {
    let (adopted, rejected) = (runtime.config_status.adopted(), runtime.config_status.rejected());
    let changes = &adopted.difference.changes;
    let left_out = changes.len().saturating_sub(CHANGES_MAX) + adopted.difference.more;
    html! {
        section aria-labelledby="configuration" {
            h2 #configuration { "Configuration" }
            dl {
                dt { "process" } dd { "started " (time(runtime.started_at)) ", " (ago(runtime.started_at, now)) }
                dt { "number" } dd { (adopted.number) ", since " (time(adopted.adopted_at)) ", " (ago(adopted.adopted_at, now)) }
                dt { "cause" } dd { (adopted.cause) @if adopted.cause != adopted.adopted_by { ", by " (adopted.adopted_by) } }
                dt { "file" } dd { (adopted.snapshot.main_path().display()) }
                dt { "changes" } dd {
                    @if changes.is_empty() { "none" }
                    @else { ul { @for change in changes.iter().take(CHANGES_MAX) { li { (change) } } } }
                    @if left_out > 0 { "and " (left_out) " more" }
                }
            }
            @if let Some(rejected) = rejected {
                h2 .bad { "Rejected " (time(rejected.rejected_at)) ", by " (rejected.requested_by) }
                ul { @for problem in rejected.problems.iter().take(CHANGES_MAX) { li { (problem) } } }
            }
        }
    }
}

pub(super) fn egress(runtime: &Runtime, now: Timestamp) -> Markup {
    let (snapshot, active) = (runtime.sources.snapshot(), runtime.active_config());
    let (ejected, gaps) = (runtime.source_health.ejected(), runtime.source_health.gaps());
    html! {
        section aria-labelledby="egress" {
            h2 #egress { "Source addresses" }
            table {
                thead { tr {
                    th scope="col" { "pool" } th .number scope="col" { "usable" } th .number scope="col" { "configured" }
                } }
                tbody {
                    @for (name, pool) in &active.plan.pools {
                        @let count = snapshot.count(pool, now);
                        tr {
                            th scope="row" { (name) }
                            td .number .bad[count.usable < count.configured] { (count.usable) }
                            td .number { (count.configured) }
                        }
                    }
                }
            }
            @if !ejected.is_empty() {
                p .bad { "No target answers these source addresses: " (ejected.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ")) }
            }
            h2 { "Suspected allow-list gaps" }
            @if gaps.is_empty() { p { "none" } }
            @else { ul { @for (_, gap) in &gaps { li { (gap) } } } }
        }
    }
}

pub(super) fn load(runtime: &Runtime) -> Markup {
    let (in_flight, waiting) = runtime.admission.count();
    let rows = [
        ("deliveries in flight", in_flight.to_string()),
        ("deliveries waiting for admission", waiting.to_string()),
        ("tunnels", runtime.metrics.tunnels.get().to_string()),
        ("connections of clients", runtime.metrics.client_connections.get().to_string()),
        ("idle connections to targets", runtime.connection_pool.connection_count().to_string()),
        ("open circuits", runtime.circuit_breakers.open_count().to_string()),
        ("delivery records lost", runtime.records.lost_count().to_string()),
    ];
    html! {
        section aria-labelledby="load" {
            h2 #load { "Now" }
            table { tbody { @for (name, count) in &rows { tr { th scope="row" { (name) } td .number { (count) } } } } }
        }
    }
}

/// The changes of earlier configurations, the newest first.
pub(super) fn history(entries: &[HistoryEntry]) -> Markup {
    html! {
        section .wide aria-labelledby="history" {
            h2 #history { "Earlier changes" }
            @if entries.is_empty() { p { "The history has no entry that can be read." } }
            @else {
                div .scroll tabindex="0" role="group" aria-labelledby="history" {
                    table {
                        thead { tr { @for name in ["number", "time", "cause", "by", "changes"] { th scope="col" { (name) } } } }
                        tbody {
                            @for entry in entries {
                                tr {
                                    th scope="row" { (entry.number) }
                                    td { (time(entry.at)) }
                                    td { (entry.how) }
                                    td { (entry.by) }
                                    td {
                                        @if let Some(first) = entry.difference.changes.first() { (first) } @else { "none" }
                                        @if entry.difference.count() > 1 { " and " (entry.difference.count() - 1) " more" }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The keys that use most of their limits.
pub(super) fn limits(runtime: &Runtime) -> Markup {
    let mut used: Vec<_> = fullest_keys(runtime)
        .into_iter()
        .flat_map(|(limit, keys)| keys.into_iter().map(move |found| (limit.clone(), found)))
        .collect();
    used.sort_by(|(_, one), (_, other)| other.share.total_cmp(&one.share));
    html! {
        section .wide aria-labelledby="limits" {
            h2 #limits { "Limits near full" }
            p .muted { "of the keys of the recent deliveries" }
            @if used.is_empty() { p { "none is in use" } }
            @else {
                table {
                    thead { tr { th scope="col" { "limit" } th scope="col" { "key" } th .number scope="col" { "used" } } }
                    tbody {
                        @for (limit, found) in used.iter().take(LIMIT_KEYS_MAX) {
                            tr {
                                th scope="row" { (limit) }
                                td {
                                    @for (name, value) in &found.key { (name) " " (value.as_deref().unwrap_or("-")) " " }
                                    @if found.key.is_empty() { "all deliveries" }
                                }
                                td .number .bad[found.share >= NEAR_FULL] { (format!("{:.0} %", found.share * 100.0)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

pub(super) fn audit(runtime: &Runtime) -> Markup {
    let audit = runtime.audit.status();
    html! {
        section aria-labelledby="audit" {
            h2 #audit { "Audit log" }
            @if !audit.is_on() { p { "The configuration has no [audit]: changes have no audit records." } }
            @else {
                dl {
                    dt { "state" }
                    dd {
                        @match audit.error() {
                            None => "records are written",
                            Some(error) => strong .bad { (error) },
                        }
                    }
                    dt { "records" } dd { (audit.written_count()) " written since the start, " (audit.lost_count()) " lost" }
                    @for sink in audit.sinks() {
                        dt { "sink" } dd { (sink.name) ": " (sink.dropped_count()) " records dropped" }
                    }
                }
            }
        }
    }
}

pub(super) fn expiries(runtime: &Runtime, now: Timestamp) -> Markup {
    let active = runtime.active_config();
    let mut expiries: Vec<_> = active.plan.expiries.iter().collect();
    expiries.sort_by_key(|expiry| expiry.expires_at);
    html! {
        section .wide aria-labelledby="expiries" {
            h2 #expiries { "Certificates and revocation lists" }
            @if expiries.is_empty() { p { "The configuration names no certificate file." } }
            @else {
                div .scroll tabindex="0" role="group" aria-labelledby="expiries" {
                    table {
                        thead { tr {
                            th scope="col" { "file" } th scope="col" { "use" } th scope="col" { "expires" } th .number scope="col" { "days left" }
                        } }
                        tbody {
                            @for expiry in expiries.iter().take(EXPIRIES_MAX) {
                                @let days = expiry.expires_at.duration_since(now).as_secs().div_euclid(SECONDS_PER_DAY);
                                tr {
                                    td { (expiry.path.display()) }
                                    td { (expiry.usage.as_str()) @if !expiry.trust.is_empty() { " of " (expiry.trust) } }
                                    td { (time(expiry.expires_at)) }
                                    td .number .bad[expiry.warning(now).is_some()] { (days) }
                                }
                            }
                        }
                    }
                }
                @if expiries.len() > EXPIRIES_MAX { p { "and " (expiries.len() - EXPIRIES_MAX) " that expire later" } }
            }
        }
    }
}

/// Returns the time since `then` in its largest unit.
fn ago(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(then).as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / SECONDS_PER_DAY),
    }
}
