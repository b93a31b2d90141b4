//! The operator's queries about a delivery: they judge a request as a delivery would, and send nothing.
//! What would happen to this webhook, and which source addresses does its target accept?

mod echo;
mod explain;
mod probe;

pub use explain::{ExplainRequest, Explanation, explain, explain_now};
pub use probe::{ProbeReport, ProbeRequest, ProbeResult, probe, probe_route};
