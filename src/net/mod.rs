//! The network I/O: listeners, DNS, connections to targets, TLS and HTTP. It applies no policy.
//! How do bytes arrive, and how do they leave from the chosen source address?

pub mod body_framing;
pub mod client_hello;
pub mod clock;
pub mod collector;
pub mod connection;
pub mod deadline;
pub mod dial;
pub mod fd_limit;
pub mod field_filter;
mod filter_output;
pub mod frame;
pub mod frame_budget;
pub mod head_end;
pub mod hpack;
pub mod http_client;
pub mod leaky_bucket;
pub mod listen;
pub mod local;
pub mod log_server;
pub mod memory_limit;
mod netlink;
pub mod peer;
pub mod resolve;
#[cfg(test)]
pub(crate) mod simulated;
pub mod socket_diag;
mod sockopt;
pub mod splice;
pub mod store;
mod ticket_meter;
pub mod tls;
pub mod tunnel;
