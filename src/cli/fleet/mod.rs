//! `outgate fleet`: the instances that share limits, signatures and ranges, as the store of the fleet knows them.
//! Does the fleet keep its promises, and what should an operator do?

mod status;

use std::process::ExitCode;

use clap::Subcommand;

#[derive(Subcommand)]
pub(super) enum FleetCommand {
    /// Show the live instances
    Status(status::Status),
}

impl FleetCommand {
    pub(super) fn run(self) -> ExitCode {
        match self {
            FleetCommand::Status(status) => status.run(),
        }
    }
}
