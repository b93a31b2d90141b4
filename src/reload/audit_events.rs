//! The audit records of starts and changes of the configuration.
//! Who changed what, and which keys, tokens and verifications are concerned?

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::Requester;
use crate::audit::{
    ADDRESS_FORCED, AUDIT_UPDATED, Actor, CAPTURE_UPDATED, CONFIGURATION_REJECTED, CONFIGURATION_ROLLED_BACK,
    CONFIGURATION_UPDATED, CONFIGURATION_WITHDRAWN, Event, KEY_UPDATED, LOG_UPDATED, PROCESS_STARTED, Source,
    TOKEN_UPDATED, VERIFICATION_DISABLED, VERIFICATION_ENABLED,
};
use crate::config::difference::{Difference, ResourceChanges, Sensitivity};
use crate::host;
use crate::names::pluralize;
use crate::policy::Plan;
use crate::policy::audit::AuditPlan;
use crate::policy::egress::notice::{Announcements, EarlyRange};
use crate::policy::rollout::approval::{UnverifiedRoutes, unverified_routes};
use crate::state::config::status::{AdoptedConfig, ReloadSource};

/// The bytes of changes in one record. A longer difference takes several records, because syslog servers cut messages
/// of more than 8 KiB (RFC 5425 §4.3.1).
const CHANGES_BYTES_MAX: usize = 4096;
/// The names or lines that one record lists. It counts the others.
const LISTED_MAX: usize = 20;

/// Returns the actor of a reload. A user who requests one comes before a file change or a signal.
pub(super) fn actor(sources: &[ReloadSource]) -> Actor {
    let user = |source: &ReloadSource| match source {
        ReloadSource::User { name, uid, .. } => Some(name.clone().unwrap_or_else(|| format!("uid {uid}"))),
        ReloadSource::RemoteUser { name, .. } => Some(name.clone()),
        ReloadSource::Rollout { author, approver: Some(approver), .. } => Some(format!("{author}, {approver}")),
        ReloadSource::Rollout { author, .. } => Some(author.clone()),
        ReloadSource::FileChange | ReloadSource::Signal => None,
    };
    let users: BTreeSet<String> = sources.iter().filter_map(user).collect();
    let source = match () {
        () if sources.iter().any(|source| matches!(source, ReloadSource::Rollout { .. })) => Source::Fleet,
        () if !users.is_empty() => Source::Admin,
        () if sources.contains(&ReloadSource::Signal) => Source::Signal,
        () => Source::File,
    };
    let name = (!users.is_empty()).then(|| users.into_iter().collect::<Vec<_>>().join(", "));
    let address = match sources {
        [ReloadSource::RemoteUser { address, .. }] => Some(*address),
        _ => None,
    };
    Actor { source, name, address }
}

/// Returns who requested a reload, with the origin of each request.
fn requested_by(sources: &[ReloadSource]) -> Vec<Value> {
    let origin = |source: &ReloadSource| match source {
        ReloadSource::FileChange => json!({ "source": "file" }),
        ReloadSource::Signal => json!({ "source": "signal" }),
        ReloadSource::User { name, uid, pid } => json!({ "source": "admin", "user": name, "uid": uid, "pid": pid }),
        ReloadSource::RemoteUser { name, address } => json!({ "source": "admin", "user": name, "address": address }),
        ReloadSource::Rollout { number, author, approver, .. } => {
            json!({ "source": "fleet", "rollout": number, "author": author, "approver": approver })
        }
    };
    sources.iter().take(LISTED_MAX).map(origin).collect()
}

/// Returns the records of a start: the process, and what its configuration does not verify.
pub fn started(adopted: &AdoptedConfig, plan: &Plan, announcements: &Announcements, at: Timestamp) -> Vec<Event> {
    let version = env!("CARGO_PKG_VERSION");
    let process = Event::new(PROCESS_STARTED, "outgate", at, format!("outgate {version} started"))
        .with("version", version)
        .with("pid", std::process::id())
        .with("uid", rustix::process::getuid().as_raw())
        .with("host", host::own_name())
        .with("file", adopted.snapshot.main_path().display().to_string())
        .with("number", adopted.number)
        .with("digest", adopted.snapshot.digest.as_str())
        .with("verifier", verifier(plan.audit.as_deref()));
    let verification = verification_events(&BTreeMap::new(), &unverified_routes(plan), at);
    let captures = plan.captures.iter().filter(|capture| at < capture.until).map(|capture| {
        let what = format!("outgate captures webhooks until {}, sealed, to {}", capture.until, capture.store.display());
        Event::new(CAPTURE_UPDATED, format!("captures.{}", capture.name), at, what)
    });
    // Those that this start has announced: the files changed while outgate did not run.
    let former = announcements.before(at);
    let forced = forced_ranges(&former, announcements, plan, at);
    std::iter::once(process).chain(verification).chain(captures).chain(forced).collect()
}

/// Returns the records of a change that is about to take effect.
pub(super) fn changed(
    before: &Plan,
    after: &Plan,
    former: &AdoptedConfig,
    adopted: &AdoptedConfig,
    requester: &Requester,
    announcements: &Announcements,
) -> Vec<Event> {
    let (at, actor) = (adopted.adopted_at, actor(&requester.sources));
    let mut events = configuration_events(former, adopted, requester);
    events.extend(resource_events(&adopted.difference, at).into_iter().map(|event| match event.event_type {
        AUDIT_UPDATED => event.with("verifier", verifier(after.audit.as_deref())),
        _ => event,
    }));
    events.extend(verification_events(&unverified_routes(before), &unverified_routes(after), at));
    let next = announcements.adopt(&after.pools, at);
    events.extend(forced_ranges(announcements, &next, after, at));
    events.into_iter().map(|event| event.by(actor.clone())).collect()
}

/// Returns a record for each range of a plan that starts before its notice ends, unless it did so before.
fn forced_ranges(before: &Announcements, after: &Announcements, plan: &Plan, at: Timestamp) -> Vec<Event> {
    let mut events = Vec::new();
    for (name, pool) in &plan.pools {
        let known: Vec<_> = before.early(pool, at).map(|range| (range.cidr, range.starts)).collect();
        for EarlyRange { cidr, starts, notice_end } in after.early(pool, at) {
            if !known.contains(&(cidr, starts)) {
                let what = format!("the pool {name} sends from {cidr} before its notice ends on {notice_end:.0}");
                let event = Event::new(ADDRESS_FORCED, cidr.to_string(), at, what).with("pool", name.as_str());
                events.push(event.with("starts", starts.to_string()).with("notice_end", notice_end.to_string()));
            }
        }
    }
    events
}

/// Returns the public half of the checkpoint key.
fn verifier(plan: Option<&AuditPlan>) -> Option<String> {
    Some(plan?.settings.verifier()?.to_string())
}

fn configuration_events(former: &AdoptedConfig, adopted: &AdoptedConfig, requester: &Requester) -> Vec<Event> {
    let AdoptedConfig { number, adopted_at, cause, difference, snapshot, restart_required, .. } = adopted;
    let event_type = if cause.starts_with("rollback") { CONFIGURATION_ROLLED_BACK } else { CONFIGURATION_UPDATED };
    let file = snapshot.main_path().display().to_string();
    let mut parts: Vec<Vec<&str>> = vec![Vec::new()];
    let mut bytes = 0;
    for change in &difference.changes {
        bytes += change.len();
        if bytes > CHANGES_BYTES_MAX {
            bytes = change.len();
            parts.push(Vec::new());
        }
        if let Some(part) = parts.last_mut() {
            part.push(change);
        }
    }
    let count = parts.len();
    let event = |(index, changes): (usize, Vec<&str>)| {
        let what =
            format!("configuration {number}: {}, by {}", pluralize(difference.count() as u64, "change"), requester.by);
        Event::new(event_type, file.as_str(), *adopted_at, what)
            .with("number", *number)
            .with("cause", cause.as_str())
            .with("requested_by", requested_by(&requester.sources))
            .with("previous", json!({ "number": former.number, "digest": former.snapshot.digest }))
            .with("updated", json!({ "number": number, "digest": snapshot.digest }))
            .with("part", json!({ "number": index + 1, "of": count }))
            .with("changes", changes)
            .with("more_changes", difference.more)
            .with("restart_required", restart_required.clone())
    };
    parts.into_iter().enumerate().map(event).collect()
}

/// Returns a record for each resource whose keys, tokens or logs change.
fn resource_events(difference: &Difference, at: Timestamp) -> Vec<Event> {
    let event = |((kind, resource), changes): (&(Sensitivity, String), &ResourceChanges)| {
        let event_type = match kind {
            Sensitivity::Key => KEY_UPDATED,
            Sensitivity::Token => TOKEN_UPDATED,
            Sensitivity::Log => LOG_UPDATED,
            Sensitivity::Audit => AUDIT_UPDATED,
            Sensitivity::Capture => CAPTURE_UPDATED,
        };
        let what = format!("{resource} changes: {}", changes.listed.first().map_or("", String::as_str));
        Event::new(event_type, resource, at, what)
            .with("changes", changes.listed.clone())
            .with("more_changes", changes.more)
    };
    difference.sensitive.iter().map(event).collect()
}

/// Returns the records of the routes that verify no target any more, or again.
fn verification_events(before: &UnverifiedRoutes, after: &UnverifiedRoutes, at: Timestamp) -> Vec<Event> {
    let none = BTreeSet::new();
    let mut events = Vec::new();
    for setting in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
        let [before, after] = [before, after].map(|routes| routes.get(setting).unwrap_or(&none));
        for (event_type, routes) in [(VERIFICATION_DISABLED, after - before), (VERIFICATION_ENABLED, before - after)] {
            if routes.is_empty() {
                continue;
            }
            let count = pluralize(routes.len() as u64, "route");
            let what = match event_type {
                VERIFICATION_DISABLED => format!("{setting} now turns the verification of targets off for {count}"),
                _ => format!("{setting} no longer turns the verification of targets off for {count}"),
            };
            let listed: Vec<String> = routes.iter().take(LISTED_MAX).cloned().collect();
            let event = Event::new(event_type, setting, at, what).with("count", routes.len());
            events.push(event.with("routes", listed));
        }
    }
    events
}

/// Returns the record of a configuration that was rejected.
pub(super) fn rejected(file: &str, problems: &[String], requester: &Requester, at: Timestamp) -> Event {
    let first = problems.first().map_or("", String::as_str);
    Event::new(CONFIGURATION_REJECTED, file, at, format!("rejected, requested by {}: {first}", requester.by))
        .by(actor(&requester.sources))
        .with("requested_by", requested_by(&requester.sources))
        .with("problems", problems.iter().take(LISTED_MAX).cloned().collect::<Vec<_>>())
        .with("more_problems", problems.len().saturating_sub(LISTED_MAX))
}

/// Returns the record of a change that was recorded and did not take effect.
pub(super) fn withdrawn(adopted: &AdoptedConfig) -> Event {
    let (file, number) = (adopted.snapshot.main_path().display().to_string(), adopted.number);
    let what = format!("configuration {number} did not take effect: its record was not on the disk in time");
    let event = Event::new(CONFIGURATION_WITHDRAWN, file, adopted.adopted_at, what);
    event.with("number", number).with("digest", adopted.snapshot.digest.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verification_is_recorded_when_a_route_begins_or_ends_to_go_without() {
        let routes = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let before = UnverifiedRoutes::from([("trust.a".to_owned(), routes(&["one", "two"]))]);
        let after = UnverifiedRoutes::from([("trust.a".to_owned(), routes(&["two", "three"]))]);
        let events = verification_events(&before, &after, Timestamp::UNIX_EPOCH);
        let found: Vec<_> = events.iter().map(|event| (event.event_type.name, &event.data["routes"])).collect();
        assert_eq!(found, [("verification.disabled", &json!(["three"])), ("verification.enabled", &json!(["one"]))]);
        assert!(verification_events(&after, &after, Timestamp::UNIX_EPOCH).is_empty());
    }
}
