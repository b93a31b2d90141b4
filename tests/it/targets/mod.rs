//! What targets do, and what becomes of the webhook.

mod circuit_breaker;
mod delivery;
mod hostile_targets;
mod kept_connections;
mod response_heads;
mod stuck_targets;
