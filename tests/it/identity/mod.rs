//! Which client calls, and over which listener.

mod connections;
mod listener_tls;
mod listeners;
mod proofs;
mod proxy_protocol;
