//! Parses the arguments, runs one command, and returns its exit code.
//! Which command does the user run?

use std::process::ExitCode;

use outgate::cli::Arguments;

/// mimalloc suits deliveries: each makes a few dozen small allocations and frees them soon.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Of each huge page (2 MiB) the process touches a small part: with them it holds 20 MiB of heap at rest instead of 3,
    // and deliveries are not faster. The feature `no_thp` keeps mimalloc from asking for them, and this call refuses them
    // where the kernel gives them to all programs. It fails only on a kernel without huge pages.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    Arguments::of_process().run()
}
