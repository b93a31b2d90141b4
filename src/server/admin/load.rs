//! The load of this instance as JSON, for load balancers that read a status and a body.
//! What does `/loadz` report?

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::policy::load::{Load, LoadFactor};

/// Describes the weight, and the facts of which it is made.
pub(super) fn report(load: &Load) -> Value {
    let weight = load.weight();
    let used = load.usages().map(|(factor, usage)| (factor.as_str(), rounded(usage.share())));
    json!({
        "weight": weight.percent,
        "degraded": weight.is_degraded(),
        "limited_by": weight.limited_by.map(LoadFactor::as_str),
        "used": used.into_iter().collect::<BTreeMap<_, _>>(),
        "addresses": rounded(load.addresses),
    })
}

fn rounded(share: f64) -> f64 {
    (share * 1000.0).round() / 1000.0
}
