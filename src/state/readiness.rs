//! Whether this process is fit for traffic, and what else is amiss.
//! What does `/readyz` say?

use jiff::Timestamp;

use crate::config::Severity;
use crate::state::Runtime;
use crate::state::observability::log;
use crate::state::upstreams::sources;

/// Reasons, in words.
pub struct Readiness {
    /// Traffic should go elsewhere.
    pub blocked: Vec<String>,
    /// Traffic is served; somebody should look.
    pub degraded: Vec<String>,
}

impl Runtime {
    pub fn readiness(&self) -> Readiness {
        let (mut blocked, mut degraded) = (Vec::new(), Vec::new());
        if self.is_draining() {
            blocked.push("draining".to_owned());
        }
        let (now, view, active) = (Timestamp::now(), self.sources.view(), self.active_config());
        let mut usable = 0;
        for (name, pool) in &active.plan.pools {
            let ranges = pool.active_ranges(now);
            let (count, configured) = (view.count(&ranges), sources::total(&ranges));
            usable += count;
            match count {
                0 => degraded.push(format!("pool {name} has no usable source address")),
                few if few < configured.div_ceil(2) => {
                    degraded.push(format!("pool {name} has {few} usable source addresses of {configured}"));
                }
                _ => {}
            }
        }
        if usable == 0 {
            blocked.push("no source address is usable".to_owned());
        }
        let faults = active.plan.signers.values().flat_map(|signer| signer.problems(now));
        let faults = faults.filter(|fault| fault.severity == Severity::Problem);
        degraded.extend(faults.map(|fault| fault.message));
        degraded.extend(self.config_status.degraded());
        for (name, signer) in &active.plan.signers {
            let mut broken = signer.broken_tenants();
            if let Some(first) = broken.next() {
                let count = 1 + broken.count();
                degraded.push(format!(
                    "signer {name}: the folders of {count} tenants are broken ({first} the first), they keep the keys from before, if they had any"
                ));
            }
        }
        if let resting @ [first, ..] = self.source_health.ejected().as_slice() {
            degraded.push(format!("{} source addresses get no answer from anybody, {first} among them", resting.len()));
        }
        if let Some(outage) = active.resolver.outage() {
            degraded.push(format!(
                "no name server responds for {} s ({}): names that are not cached fail with name_timeout",
                outage.as_secs(),
                active.resolver.server_list()
            ));
        }
        if self.sources.are_stale() {
            degraded.push("the kernel does not tell this host's addresses: the last known ones count".to_owned());
        }
        if self.records.is_waiting_for_file() {
            degraded.push("the delivery log is not open yet: records wait in memory for the disk".to_owned());
        }
        match self.records.lost_since_recovery() {
            0 => {}
            lost => degraded.push(format!("{lost} delivery records could not be written since the last that could")),
        }
        degraded.extend(self.records.reopen_fault());
        match log::unreported() {
            0 => {}
            lost => degraded.push(format!("the log cannot be written: stderr did not take {lost} lines")),
        }
        Readiness { blocked, degraded }
    }
}
