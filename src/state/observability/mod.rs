//! Metrics, delivery records and the log.
//! What does an operator read of the running proxy?

pub mod journald;
pub mod line_queue;
pub mod log;
pub mod metrics;
pub mod records;
