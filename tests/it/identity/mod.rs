//! Identification of clients, and listeners.

mod connections;
mod listener_tls;
mod listeners;
pub(crate) mod proofs;
mod proxy_protocol;
