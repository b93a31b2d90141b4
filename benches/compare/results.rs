//! The results: one line of JSON for each measurement.
//! What did a measurement find?

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Error;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Result {
    pub(crate) contender: String,
    pub(crate) workload: String,
    pub(crate) round: u32,
    /// Deliveries, or MiB of the workload `bulk`.
    pub(crate) deliveries: f64,
    /// CPU time of the proxy for one of them.
    pub(crate) cpu_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// Memory of one connection that waits, and of the proxy before.
    pub(crate) bytes: f64,
    pub(crate) at_rest: f64,
    /// Requests that succeeded for the clients, and that the receiver saw: in the warm-up and after the end, too.
    pub(crate) sent: f64,
    pub(crate) received: f64,
    pub(crate) errors: f64,
    pub(crate) error: String,
    /// The share of deliveries with a valid signature, and connections to the target for each delivery.
    pub(crate) signed: f64,
    pub(crate) new_connections: f64,
    /// The share of connections to the target that resumed a session.
    pub(crate) resumed: f64,
    pub(crate) sources: Vec<String>,
}

/// The measurements of a contender with a workload, by round.
pub(crate) type Results = BTreeMap<(String, String), BTreeMap<u32, Result>>;

/// Reads the lines. A later line replaces an earlier one of the same round.
pub(crate) fn read(file: &Path) -> std::result::Result<Results, Error> {
    let mut results = Results::new();
    for line in fs::read_to_string(file)?.lines() {
        let row: Result = serde_json::from_str(line)?;
        results.entry((row.contender.clone(), row.workload.clone())).or_default().insert(row.round, row);
    }
    Ok(results)
}

/// Returns the median, the least and the greatest of some numbers.
pub(crate) fn summary(mut numbers: Vec<f64>) -> Option<(f64, f64, f64)> {
    numbers.sort_by(f64::total_cmp);
    let (least, greatest) = (*numbers.first()?, *numbers.last()?);
    let (low, high) = (numbers[(numbers.len() - 1) / 2], numbers[numbers.len() / 2]);
    Some(((low + high) / 2.0, least, greatest))
}
