//! Identification of clients, and listeners.

mod connections;
mod listener_tls;
mod listeners;
mod proofs;
mod proxy_protocol;
