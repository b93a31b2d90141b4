//! The limits with their decisions, and the keys that are nearest to a limit.
//! Which client, tenant or host will outgate refuse soon?
//!
//! The tables of limits know a key by its hash only. The names of the fullest keys come from the recent deliveries.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::deliveries::recent;
use crate::host;
use crate::names::{ClientName, LimitName, TenantName};
use crate::policy::limits::{Limit, LimitDescriptor};
use crate::policy::redact::Redacted;
use crate::state::Runtime;
use crate::state::limits::LimitUsage;

/// Limits the keys of one limit.
const KEYS_MAX: usize = 10;

/// A key of a limit, and how much of the limit it uses.
pub(super) struct UsedKey {
    /// The dimensions, as they may be written.
    pub(super) key: BTreeMap<&'static str, Option<String>>,
    pub(super) usage: LimitUsage,
    /// The share of the burst or of the concurrency that is in use, from 0 to 1.
    pub(super) share: f64,
}

/// Returns the fullest keys of each limit, of those that the recent deliveries used.
pub(super) fn fullest_keys(runtime: &Runtime) -> BTreeMap<LimitName, Vec<UsedKey>> {
    let active = runtime.active_config();
    let deliveries = recent(runtime);
    let names: HashSet<&str> = deliveries.iter().filter_map(|delivery| delivery.route.as_deref()).collect();
    let routes = active.plan.routes.enforced().map(|route| (route.name.as_str(), route));
    let routes: HashMap<&str, _> = routes.filter(|(name, _)| names.contains(name)).collect();
    let (mut seen, mut fullest) = (BTreeSet::new(), BTreeMap::<LimitName, Vec<UsedKey>>::new());
    for delivery in &deliveries {
        let (Some(client), Some(route), Some(host)) = (&delivery.client, &delivery.route, &delivery.host) else {
            continue;
        };
        let (Some(route), Ok(host)) = (routes.get(route.as_str()), host::canonical(host)) else { continue };
        let client = ClientName::new(client.as_str());
        let tenant = delivery.tenant.as_deref().map(TenantName::new);
        let (tenant, egress) = (tenant.as_ref(), route.pool.name());
        let descriptor = LimitDescriptor { client: &client, tenant, route: &route.name, host: &host, egress };
        for limit in &route.limits {
            let dimensions = limit.key(&descriptor).dimensions(&active.plan.redactor);
            let text = |value: Option<Redacted<'_>>| value.map(|text| text.as_str().to_owned());
            let key: BTreeMap<_, _> = dimensions.into_iter().map(|(name, value)| (name, text(value))).collect();
            if !seen.insert((limit.name.clone(), key.clone())) {
                continue;
            }
            let usage = runtime.limits.usage(limit, &descriptor);
            let share = share(limit, &usage);
            if share > 0.0 {
                fullest.entry(limit.name.clone()).or_default().push(UsedKey { key, usage, share });
            }
        }
    }
    for keys in fullest.values_mut() {
        keys.sort_by(|one, other| other.share.total_cmp(&one.share).then_with(|| one.key.cmp(&other.key)));
        keys.truncate(KEYS_MAX);
    }
    fullest
}

fn share(limit: &Limit, usage: &LimitUsage) -> f64 {
    let rate = limit
        .quota
        .zip(usage.rate)
        .map(|(quota, rate)| 1.0 - f64::from(rate.remaining.min(quota.burst.get())) / f64::from(quota.burst.get()));
    let concurrency = limit.concurrency.map(|most| f64::from(usage.in_flight) / f64::from(most.max(1)));
    rate.unwrap_or(0.0).max(concurrency.unwrap_or(0.0))
}

/// Describes every limit.
pub(super) fn report(runtime: &Runtime, _: Timestamp) -> Value {
    let (active, mut fullest) = (runtime.active_config(), fullest_keys(runtime));
    let limits = &active.plan.limits;
    let instances = runtime.fleet.get().map(|fleet| if fleet.is_up() { 1 } else { fleet.live().max(1) });
    let mut reports: HashMap<_, _> = runtime.limits.report(|limit| limits.contains_key(limit)).into_iter().collect();
    let limit = |(name, limit): (&LimitName, &Arc<Limit>)| {
        let report = reports.remove(name).unwrap_or_default();
        let rate = limit.quota.map(
            |quota| json!({ "count": quota.count, "period_seconds": quota.period.as_secs_f64(), "burst": quota.burst }),
        );
        let fullest = fullest.remove(name).unwrap_or_default().into_iter().map(|found| {
            json!({
                "key": found.key, "percent": (found.share * 100.0).round(), "in_flight": found.usage.in_flight,
                "waiting": found.usage.waiting, "tokens_left": found.usage.rate.map(|rate| rate.remaining),
            })
        });
        json!({
            "limit": name.as_str(), "rate": rate, "concurrency": limit.concurrency, "bandwidth": limit.bandwidth,
            "scope": if limit.is_fleet_wide { "fleet" } else { "host" },
            "divided_by": instances.filter(|_| limit.is_fleet_wide).unwrap_or(1),
            "per": limit.per.iter().map(|per| per.as_str()).collect::<Vec<_>>(), "report_only": limit.report_only,
            "allowed": report.allowed, "paced": report.paced, "refused": report.refused, "keys": report.keys,
            "keys_near_full": report.keys_near_full, "fullest": fullest.collect::<Vec<_>>(),
        })
    };
    json!({ "limits": limits.iter().map(limit).collect::<Vec<_>>() })
}
