//! Parses the arguments, runs one command, returns its exit code.
//! Which command was meant?

use std::process::ExitCode;

use clap::Parser;
use outgate::cli::Arguments;

/// A delivery makes a few dozen small allocations and frees them soon: what this allocator is made for.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    Arguments::parse().run()
}
