//! The state of targets, and of the source addresses that connect to them.
//! How does the proxy reach a target, and what has it observed of the target?

pub mod breaker;
pub mod fair_share;
pub mod health;
pub mod http1_only;
pub mod http2_dials;
pub mod keep_alive;
pub mod pool;
pub mod sources;
pub mod tokens;
pub mod verified;
