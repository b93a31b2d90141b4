//! Deliveries to targets that work, fail or violate the protocol.

mod circuit_breaker;
mod delivery;
mod hostile_targets;
mod kept_connections;
mod response_heads;
mod stuck_targets;
