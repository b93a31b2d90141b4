//! The invariants of every seed.
//! Was everything returned, recorded once, sent once, and completed or visibly broken off?

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::ledger::Facts;
use super::world::World;
use crate::server::Connections;
use crate::state::Runtime;
use crate::state::observability::delivery_line::{DeliveryLine, LogLine};

/// The time after which nothing is kept: it exceeds the idle timeouts and the refill of every limit.
const IDLE_TIME: Duration = Duration::from_secs(900);
/// The time by which a delivery may exceed the total timeout: the slack of the timers.
const SLACK_MS: f64 = 5.0;
/// The status of the responses that targets send without a request, as servers do before they close an idle connection.
const STRAY_STATUS: u16 = 408;

/// Checks every invariant after the last client has gone. `total_max`: the longest total timeout of the configurations. Returns
/// the number of webhooks that were delivered, and the violations.
pub(super) async fn check(
    world: &Arc<World>,
    runtime: &Arc<Runtime>,
    connections: &Connections,
    total_max: Duration,
) -> (usize, Vec<String>) {
    let mut violations = std::mem::take(&mut world.ledger().violations);
    let records = records(runtime, &mut violations);
    check_durations(&records, total_max, &mut violations);
    check_messages(world, &records, &mut violations);
    check_metrics(runtime, records.len(), &mut violations);
    check_places(world, runtime, connections, &mut violations).await;
    (records.iter().filter(|record| record.code == "delivered").count(), violations)
}

fn records(runtime: &Runtime, violations: &mut Vec<String>) -> Vec<DeliveryLine> {
    let lines = runtime.records.drain();
    let parse = |line: &[u8]| match LogLine::parse(line) {
        Some(LogLine::Delivery(record)) => Some(*record),
        _ => {
            violations.push(format!("no record: {}", String::from_utf8_lossy(line)));
            None
        }
    };
    lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).filter_map(parse).collect()
}

fn check_durations(records: &[DeliveryLine], total_max: Duration, violations: &mut Vec<String>) {
    let longest = total_max.as_millis() as f64 + SLACK_MS;
    let too_long = records.iter().filter(|record| record.ms.total > longest);
    violations
        .extend(too_long.map(|record| format!("a delivery took {} ms of {longest}: {record:?}", record.ms.total)));
}

fn check_messages(world: &World, records: &[DeliveryLine], violations: &mut Vec<String>) {
    let mut by_request: BTreeMap<u32, Vec<&DeliveryLine>> = BTreeMap::new();
    for record in records {
        let id = record.path.as_deref().and_then(|path| path.rsplit('/').next()?.parse().ok());
        match id {
            Some(id) => by_request.entry(id).or_default().push(record),
            None => violations.push(format!("a record names no request: {record:?}")),
        }
    }
    let ledger = world.ledger();
    for (id, facts) in &ledger.requests {
        let records = by_request.remove(id).unwrap_or_default();
        let mut violate = |violation: String| violations.push(format!("request {id}: {violation}"));
        // outgate cannot distinguish bytes that a target sends by itself from the response that they precede.
        let has_code = facts.seen.as_ref().is_some_and(|seen| seen.code.is_some());
        let is_stray = records.iter().any(|record| record.status == Some(STRAY_STATUS)) && !has_code
            || ledger.has_late_stray && facts.seen.as_ref().is_none_or(|seen| seen.target != Some(*id));
        if !is_stray {
            check_response(*id, facts, &records, &mut violate);
        }
        check_request(facts, &records, &mut violate);
    }
    violations.extend(by_request.keys().map(|id| format!("request {id} has a record, and no client sent it")));
    let deliveries = records.len();
    if ledger.exchanges as usize > deliveries {
        violations.push(format!("{} exchanges began for {deliveries} deliveries", ledger.exchanges));
    }
}

fn check_request(facts: &Facts, records: &[&DeliveryLine], violate: &mut impl FnMut(String)) {
    let was_read = facts.head_end.as_ref().is_some_and(|(link, end)| link.bytes_read() >= *end);
    let must_have_record = (was_read && facts.follows_complete) || facts.seen.is_some() || facts.arrivals > 0;
    match records.len() {
        0 if must_have_record => violate("has no record".to_owned()),
        0 | 1 if was_read => {}
        0 => {}
        count => violate(format!("has {count} records; its head was read: {was_read}")),
    }
    if facts.arrivals > 1 {
        violate(format!("arrived {} times", facts.arrivals));
    }
    if let Some(arrived) = &facts.arrived
        && *arrived != facts.body
    {
        violate(format!("arrived with {} bytes of {}, or others", arrived.len(), facts.body.len()));
    }
}

fn check_response(id: u32, facts: &Facts, records: &[&DeliveryLine], violate: &mut impl FnMut(String)) {
    let is_delivered = records.iter().any(|record| record.code == "delivered");
    if is_delivered && !facts.answer.as_ref().is_some_and(|answer| answer.is_complete) {
        violate(format!("is recorded as delivered, and its target sent {:?}", facts.answer.as_ref().map(|a| a.status)));
    }
    let (Some(seen), record) = (&facts.seen, records.first()) else { return };
    // A client that has closed its sending direction counts as gone, and may still read its response.
    if record.is_some_and(|record| record.code == "client_gone" && seen.status == 400) {
        return;
    }
    if record.is_some_and(|record| record.status != Some(seen.status)) {
        violate(format!("the client saw {}, and the record has {:?}", seen.status, record.map(|r| r.status)));
    }
    if let Some(code) = &seen.code {
        if seen.target.is_some() || record.is_some_and(|record| record.code != *code) {
            violate(format!("the client saw {code}, and the record has {:?}", record.map(|record| &record.code)));
        }
        return;
    }
    let Some(answer) = facts.answer.as_ref().filter(|_| seen.target == Some(id)) else {
        return violate(format!("got a response that its target did not send: {seen:?}"));
    };
    if answer.status != seen.status || !answer.body.starts_with(&seen.body) {
        violate(format!("got another response than its target sent, {} bytes", seen.body.len()));
    }
    if seen.is_complete && (!answer.is_complete || seen.body.len() != answer.body.len()) {
        violate(format!("got {} bytes as a complete response; sent: {} bytes", seen.body.len(), answer.body.len()));
    }
    // The record is written before the client has the last byte, so a client that has gone may have `delivered`.
    if seen.is_complete && record.is_some_and(|record| record.code != "delivered") {
        violate(format!("got a complete response, and the record has {:?}", record.map(|record| &record.code)));
    }
}

fn check_metrics(runtime: &Runtime, deliveries: usize, violations: &mut Vec<String>) {
    let text = runtime.metrics.render();
    let counts = text.lines().filter(|line| line.starts_with("outgate_deliveries_total{"));
    let total: f64 = counts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
    if total != deliveries as f64 {
        violations.push(format!("the metrics count {total} deliveries, and the log has {deliveries}"));
    }
}

/// Checks that every place, permit, connection and task was returned.
async fn check_places(world: &World, runtime: &Arc<Runtime>, connections: &Connections, violations: &mut Vec<String>) {
    let mut expect = |what: &str, count: usize, expected: usize| {
        if count != expected {
            violations.push(format!("{what}: {count}, and not {expected}"));
        }
    };
    let (in_flight, waiting) = runtime.admission.count();
    expect("deliveries in flight", in_flight, 0);
    expect("deliveries that wait for a place", waiting, 0);
    expect("slots of deliveries that wait for a limit", runtime.limits.waiting_count(), 0);
    expect("open client connections", connections.count(), 0);
    expect("connections of outgate beside the pool", world.open_links(), runtime.connection_pool.connection_count());
    sleep(IDLE_TIME).await;
    runtime.sweep_connections();
    expect("idle connections after their timeout", runtime.connection_pool.connection_count(), 0);
    expect("connections of outgate at the end", world.open_links(), 0);
    runtime.limits.sweep().await;
    expect("keys of limits that nothing uses", runtime.limits.key_count(), 0);
    expect("attempts to contact a target", runtime.circuit_breakers.attempt_count(), 0);
    expect("uses of the runtime", Arc::strong_count(runtime), 1);
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    expect("tasks", tasks, 0);
}
