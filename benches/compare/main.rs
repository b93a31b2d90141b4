//! The load generator, the receiver, the bare relay and the report of `benches/compare/run`.
//! What does a delivery cost in outgate, and what does it cost in other proxies?
//!
//! Each role runs on one thread, so that the caller can pin it to a core.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on ends"
)]

mod authority;
mod client;
mod http1;
mod idle;
mod load;
mod pace;
mod plot;
mod process;
mod receiver;
mod relay;
mod report;
mod results;
mod workload;

use clap::Parser;

/// The allocator of the proxy, for the relay.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Error = Box<dyn std::error::Error>;

#[derive(Parser)]
enum Role {
    /// Writes the certificate authority and the certificates of the receiver into a folder.
    Authority { folder: std::path::PathBuf },
    /// Prints the names of the workloads.
    Workloads,
    /// Receives webhooks and sends them through a proxy that runs. Prints one line of JSON.
    Measure(load::Arguments),
    /// Relays with hyper's server and client, and does nothing else.
    Relay(relay::Arguments),
    /// Writes the tables and the plot between the markers of a document.
    Report(report::Arguments),
}

fn main() -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tasks = tokio::task::LocalSet::new();
    match Role::parse() {
        Role::Authority { folder } => authority::write(&folder),
        Role::Workloads => workload::print_names(),
        Role::Measure(arguments) => tasks.block_on(&runtime, load::run(arguments)),
        Role::Relay(arguments) => tasks.block_on(&runtime, relay::run(arguments)),
        Role::Report(arguments) => report::write(&arguments),
    }
}
