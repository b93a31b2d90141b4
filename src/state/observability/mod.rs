//! Metrics, delivery records, captures, spans and the log.
//! What does an operator read of the running proxy?

pub mod archives;
pub mod captures;
pub mod delivery_line;
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
