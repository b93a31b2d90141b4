//! `outgate fleet`: the instances that share limits, signatures and ranges, as the store of the fleet knows them.
//! Does the fleet keep its promises, and what should an operator do?

mod approve;
mod forget;
mod move_range;
mod rollout;
mod status;

use std::process::ExitCode;

use clap::Subcommand;

#[derive(Subcommand)]
pub(super) enum FleetCommand {
    /// Show the instances, the ranges that they have, and the problems
    Status(status::Status),
    /// Roll one signed bundle of configuration files out to all instances, in waves
    Rollout(rollout::Rollout),
    /// Approve the rollout of another operator
    Approve(approve::Approve),
    /// Stop a rollout: every instance returns to its former bundle
    Abort(approve::Abort),
    /// Assign a range to one instance, or end the assignment
    Move(move_range::MoveRange),
    /// Forget an instance that was lost and does not return
    Forget(forget::Forget),
}

impl FleetCommand {
    pub(super) fn run(self) -> ExitCode {
        let done = match self {
            FleetCommand::Status(status) => status.run(),
            FleetCommand::Rollout(rollout) => rollout.run(),
            FleetCommand::Approve(approve) => approve.run(),
            FleetCommand::Abort(abort) => abort.run(),
            FleetCommand::Move(range) => range.run(),
            FleetCommand::Forget(forget) => forget.run(),
        };
        done.unwrap_or_else(|code| code)
    }
}
