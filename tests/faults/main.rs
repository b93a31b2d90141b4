//! Fault runs: one thing fails, and a healthy target beside it has steady traffic.
//! Which parties does a fault harm, for how long, and what does outgate report?
//!
//! The short form runs with `cargo test`. `OUTGATE_FAULTS=long` measures longer periods, and writes a table to
//! `target/tmp/faults.md`.

#![allow(clippy::disallowed_methods, clippy::print_stdout, clippy::print_stderr, reason = "tests play every party")]

#[path = "../it/support/mod.rs"]
mod support;

mod bad_target;
mod bystander;
mod clock;
mod disk;
mod dns;
mod fleet;
mod host;
mod http2_clients;
mod http2_targets;
mod memory;
mod ports;
mod soak;
mod targets;
mod tls_targets;
