//! `outgate completions`: prints the completion script of a shell.
//! What does a shell offer after `outgate` and the Tab key?

use std::process::ExitCode;

use clap::Args;
use clap_complete::Shell;

#[derive(Args)]
#[command(after_help = "Examples:
  outgate completions bash >~/.local/share/bash-completion/completions/outgate
  outgate completions fish >~/.config/fish/completions/outgate.fish

The packages install the completions of bash, zsh and fish.")]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> ExitCode {
        let mut script = Vec::new();
        let mut command = super::Arguments::definition();
        clap_complete::generate(self.shell, &mut command, "outgate", &mut script);
        print!("{}", String::from_utf8_lossy(&script));
        ExitCode::SUCCESS
    }
}
