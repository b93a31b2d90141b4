//! The configuration in use: which one it is, and how another takes its place.
//! Which configuration runs, and what waits to be done about it?

pub mod active;
pub mod deferred_drop;
pub mod reload_queue;
pub mod status;
pub mod thread_priority;
pub mod warnings;
pub mod worker;

pub use active::ActiveConfig;
