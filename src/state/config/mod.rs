//! The active configuration, and the requests to replace it.
//! Which configuration is active, and how does another one take its place?

pub mod active;
pub mod deferred_drop;
pub mod reload_queue;
pub mod status;
pub mod thread_priority;
pub mod warnings;
pub mod worker;

pub use active::ActiveConfig;
