//! Metrics, delivery records and the log.
//! What does an operator read of the running proxy?

pub mod archives;
pub mod captures;
pub mod delivery_line;
pub mod failing_tenants;
mod file_log;
pub mod journald;
pub mod line_queue;
mod line_sink;
pub mod log;
pub mod metrics;
pub mod recent;
pub mod records;
pub mod traces;
pub mod traffic;
