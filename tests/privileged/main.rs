//! Tests that need root and their own network or mount namespace. Each runs this program again in the namespace.
//!
//! Skipped where namespaces cannot be made, and required with `OUTGATE_TEST_ALL=1`.

#![allow(clippy::disallowed_methods, clippy::print_stderr, reason = "tests play clients, targets and operators")]

#[path = "../it/support/mod.rs"]
mod support;

mod audit_disk;
mod egress_host;
mod fleet_moves;
mod journal;
mod key_dir_faults;
mod netns;
mod network_files;
mod sandbox;
mod service_user;
mod vrrp;
mod whole_host;
