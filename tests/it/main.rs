//! Black-box tests of the binary over real sockets, and property tests of the library. They are one program, which is linked
//! once.
//!
//! Tests that need other programs are skipped if these are missing, and required with `OUTGATE_TEST_ALL=1`. Tests that need
//! namespaces are in `tests/privileged`.

#![allow(clippy::disallowed_methods, clippy::print_stderr, reason = "tests play clients, targets and operators")]

mod support;

mod architecture;
mod configuration;
mod credentials;
mod documents;
mod egress;
mod examples;
mod fleet;
mod http2;
mod identity;
mod limits;
mod operating;
mod sending;
mod signatures;
mod targets;
mod trust;
mod tunnels;
