//! What touches the network: no opinions.
//! How do bytes come in, and how do they leave from the address that was chosen?

pub mod client_hello;
pub mod connection;
pub mod descriptors;
pub mod dial;
pub mod exchange;
pub mod field_filter;
pub mod hpack;
pub mod leaky;
pub mod listen;
pub mod local;
mod output;
pub mod peer;
pub mod pipe;
pub mod resolve;
mod sockopt;
pub mod tls;
