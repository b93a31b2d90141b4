//! Writes the man pages and the shell completions of the packages: `cargo run --example manual -- DIR`.
//! What do man(1) and the shells know about the commands?
//!
//! It is a program of its own, so that the product does not contain the generator of man pages.

use std::path::PathBuf;

use clap_complete::Shell;
use outgate::cli::Arguments;

#[expect(clippy::disallowed_methods, reason = "a program that writes files")]
fn main() -> std::io::Result<()> {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        return Err(std::io::Error::other("usage: manual DIR"));
    };
    let (man, completions) = (folder.join("man"), folder.join("completions"));
    std::fs::create_dir_all(&man)?;
    std::fs::create_dir_all(&completions)?;
    clap_mangen::generate_to(Arguments::definition(), &man)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut Arguments::definition(), "outgate", &completions)?;
    }
    Ok(())
}
