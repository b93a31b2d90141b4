//! Tests that need root, and network or mount namespaces of their own: each runs this program again inside of one.
//!
//! Skipped where namespaces cannot be made, and required with `OUTGATE_TEST_ALL=1`.

#![allow(clippy::disallowed_methods, clippy::print_stderr, reason = "tests play clients, targets and operators")]

#[path = "../it/support/mod.rs"]
mod support;

mod key_dir_faults;
mod netns;
mod service_user;
