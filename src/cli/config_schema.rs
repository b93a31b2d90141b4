//! `outgate config schema`: prints the JSON Schema of the configuration, for editors.
//! Which keys and values may a configuration have?

use std::process::ExitCode;

use clap::{Args, Subcommand};

#[derive(Subcommand)]
pub(super) enum ConfigFormat {
    /// Print the JSON Schema (draft 7) of the configuration, for editors and their language servers
    Schema(PrintSchema),
}

#[derive(Args)]
#[command(after_help = "Examples:
  outgate config schema > /etc/outgate/config.schema.json
  taplo check --schema file:///etc/outgate/config.schema.json /etc/outgate/config.toml

An editor with taplo or Tombi completes and checks a file whose first line is `#:schema ./config.schema.json`. The schema
has the keys, types, words and ranges that outgate reads. `outgate check` reports everything else, such as a route that
names a pool that does not exist.")]
pub(super) struct PrintSchema {}

impl ConfigFormat {
    pub(super) fn run(self) -> ExitCode {
        match self {
            ConfigFormat::Schema(PrintSchema {}) => print!("{}", include_str!("../../config.schema.json")),
        }
        ExitCode::SUCCESS
    }
}
