//! The completion scripts of shells.
//! Does a shell complete the commands of outgate?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::process::Command;

fn script(shell: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_outgate")).args(["completions", shell]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Asks bash for the words that complete a command line, as the Tab key does.
fn complete(words: &[&str]) -> String {
    let line = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
    let program = format!(
        "{}\nCOMP_WORDS=({line}) COMP_CWORD={}\n_outgate outgate '{}' '{}'\necho \"${{COMPREPLY[@]}}\"",
        script("bash"),
        words.len() - 1,
        words[words.len() - 1],
        words[words.len() - 2],
    );
    let output = Command::new("bash").args(["-c", &program]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn completions_of_bash_know_commands_and_options() {
    assert_eq!(complete(&["outgate", "undr"]), "undrain");
    assert_eq!(complete(&["outgate", "egress", "ver"]), "verify");
    assert!(complete(&["outgate", "check", "--co"]).contains("--config"));
    assert_eq!(complete(&["outgate", "no-such"]), "");
}

#[test]
fn completions_exist_for_zsh_and_fish() {
    assert!(script("zsh").starts_with("#compdef outgate"));
    assert!(script("fish").contains("complete -c outgate"));
}
