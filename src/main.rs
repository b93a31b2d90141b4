//! Parses the arguments, runs one command, and returns its exit code.
//! Which command does the user run?

use std::process::ExitCode;

use clap::Parser;
use outgate::cli::Arguments;

/// mimalloc suits deliveries: each makes a few dozen small allocations and frees them soon.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    Arguments::parse().run()
}
