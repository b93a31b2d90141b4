//! The readiness of this process for traffic, and the degradations that an operator should look at.
//! What does `/readyz` report?

use jiff::Timestamp;

use crate::config::Severity;
use crate::names::pluralize;
use crate::state::Runtime;
use crate::state::observability::log;
use crate::state::upstreams::sources::AddressCount;

/// The reasons, as text for operators.
pub struct Readiness {
    /// Not empty: a load balancer should send traffic elsewhere.
    pub blocked: Vec<String>,
    /// The proxy serves traffic, and an operator should look.
    pub degraded: Vec<String>,
}

impl Readiness {
    pub fn of(runtime: &Runtime, now: Timestamp) -> Self {
        let (blocked, mut degraded) = (runtime.blocked(now), Vec::new());
        let (snapshot, active) = (runtime.sources.snapshot(), runtime.active_config());
        for (name, pool) in &active.plan.pools {
            let AddressCount { configured, usable } = snapshot.count(pool, now);
            let note = snapshot.withheld_note(pool, now);
            match usable {
                0 => degraded.push(format!("pool {name} has no usable source address{note}")),
                few if few < configured.div_ceil(2) => {
                    degraded.push(format!("pool {name} has {few} usable source addresses of {configured}{note}"));
                }
                _ => {}
            }
        }
        let problems = active.plan.signers.values().flat_map(|signer| signer.problems(now));
        let problems = problems.filter(|problem| problem.severity == Severity::Problem);
        degraded.extend(problems.map(|problem| problem.message));
        degraded.extend(runtime.config_status.degraded_reasons());
        degraded.extend(runtime.audit.status().degraded_reasons());
        degraded.extend(runtime.alerts.degraded_reasons());
        for (name, signer) in &active.plan.signers {
            let mut broken = signer.broken_tenants();
            if let Some(first) = broken.next() {
                let tenants = pluralize(1 + broken.count(), "tenant");
                degraded.push(format!(
                    "signer {name}: the key folders of {tenants} have problems (the first is {first}); these tenants \
                     keep their previous keys, if they had any: run `outgate check`"
                ));
            }
        }
        if let ejected @ [first, ..] = runtime.source_health.ejected().as_slice() {
            degraded.push(format!("no target responds to {} source addresses, {first} among them", ejected.len()));
        }
        if let Some(outage) = active.resolver.outage() {
            degraded.push(format!(
                "no name server has responded for {} s ({}): names that are not cached fail with name_timeout",
                outage.as_secs(),
                active.resolver.server_list()
            ));
        }
        degraded.extend(runtime.fleet.get().and_then(|fleet| fleet.degraded_reason()));
        let rollout_error = runtime.fleet.get().and_then(|fleet| fleet.rollout().state_error.clone());
        degraded.extend(rollout_error.map(|reason| format!("this instance follows no rollout: {reason}")));
        if runtime.sources.are_stale() {
            degraded.push(
                "the kernel does not list the addresses of this host: outgate uses the last list that it read"
                    .to_owned(),
            );
        }
        if runtime.records.is_waiting_for_file() {
            degraded.push("the delivery log is not open yet: records wait in memory for the disk".to_owned());
        }
        match runtime.records.lost_since_recovery() {
            0 => {}
            lost => {
                let lost = pluralize(lost, "delivery record");
                degraded.push(format!("{lost} could not be written since the last successful write"))
            }
        }
        degraded.extend(runtime.records.reopen_error());
        degraded.extend(runtime.records.rotation_error());
        match log::unreported() {
            0 => {}
            lost => {
                degraded.push(format!("the log cannot be written: stderr did not accept {}", pluralize(lost, "line")))
            }
        }
        Self { blocked, degraded }
    }
}
