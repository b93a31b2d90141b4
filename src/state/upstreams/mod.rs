//! What is remembered of targets and of the source addresses towards them.
//! How is a target reached, and what does the proxy know of it?

pub mod breaker;
pub mod fair_share;
pub mod health;
pub mod http1_only;
pub mod keep_alive;
pub mod pool;
pub mod sources;
pub mod tokens;
pub mod verified;
