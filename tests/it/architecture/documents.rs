//! Rules of the documents: they exist, have no paths of a machine, and show existing commands.
//! Do the documents match the code?

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use super::reading::{root, snippets};

/// Documents that must exist.
const DOCUMENTS: &[&str] = &[
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "config.toml.example",
];

/// Returns the commands of a document that `outgate --help` does not list. `help` returns the help of a subcommand.
fn unknown_commands(document: &str, help: &dyn Fn(&[&str]) -> String) -> Vec<String> {
    let listed =
        |words: &[&str], name: &str| help(words).lines().any(|line| line.split_whitespace().next() == Some(name));
    let is_name =
        |word: &&str| word.starts_with(|c: char| c.is_ascii_lowercase()) && !word.contains(['.', ':', '/', '=']);
    let mut violations = BTreeSet::new();
    for snippet in snippets(document) {
        let mut words = snippet.trim_start_matches("$ ").trim_start_matches("sudo ").split_whitespace();
        match words.next() {
            Some("outgate") => {}
            Some("cargo") if snippet.contains("cargo run ") => drop(words.by_ref().find(|word| *word == "--")),
            _ => continue,
        }
        for alternative in words.next().filter(is_name).unwrap_or_default().split('|').filter(|name| !name.is_empty()) {
            if !listed(&[], alternative) {
                violations.insert(format!("outgate {alternative}"));
            } else if let Some(inner) = words.clone().next().filter(is_name)
                && help(&[alternative]).contains("\nCommands:")
                && !inner.split('|').all(|inner| listed(&[alternative], inner))
            {
                violations.insert(format!("outgate {alternative} {inner}"));
            }
        }
    }
    violations.into_iter().collect()
}

/// Returns the paths of a developer's machine in a text. The patterns are split because this file is checked too.
fn machine_paths(text: &str) -> Vec<String> {
    let paths = [concat!("/wo", "rk/"), concat!("/tmp/", "wt"), concat!("/root", "/"), concat!("../sha", "red")];
    paths.iter().filter(|path| text.contains(*path)).map(|path| format!("names {path}")).collect()
}

#[test]
fn the_documents_exist_and_name_no_machine() {
    for document in DOCUMENTS {
        assert!(root().join(document).is_file(), "{document} is missing");
    }
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output().expect("git runs");
    if !listed.status.success() {
        return; // a source archive has no tracked files
    }
    let names = String::from_utf8(listed.stdout).expect("names are UTF-8");
    let mut violations = Vec::new();
    for name in names.split_terminator('\0') {
        // Skips deleted files that are still tracked, and files that are not text.
        let text = fs::read_to_string(root().join(name)).unwrap_or_default();
        violations.extend(machine_paths(&text).into_iter().map(|problem| format!("{name}: {problem}")));
    }
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

#[test]
fn commands_in_the_documents_exist() {
    let help = |words: &[&str]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_outgate")).args(words).arg("--help").output().expect("outgate runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let pages = fs::read_dir(root().join("docs")).expect("docs").map(|entry| entry.expect("an entry").path());
    let pages = pages.filter(|page| page.extension().is_some_and(|extension| extension == "md"));
    let documents = ["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(|name| root().join(name));
    let examples =
        fs::read_dir(root().join("examples")).expect("examples").map(|entry| entry.expect("an entry").path());
    let examples = examples.map(|folder| folder.join("README.md")).filter(|readme| readme.exists());
    for document in pages.chain(documents).chain(examples) {
        let text = fs::read_to_string(&document).expect("a readable document");
        assert_eq!(unknown_commands(&text, &help), [""; 0], "{}", document.display());
    }
}

#[test]
fn commands_and_machine_paths_are_seen() {
    let help = |words: &[&str]| match words {
        [] => "Usage: outgate\n\nCommands:\n  run     x\n  egress  y\n".to_owned(),
        ["egress"] => "Usage\n\nCommands:\n  list  x\n".to_owned(),
        _ => "Usage\n".to_owned(),
    };
    let readme = "Try `outgate run` or `outgate fly`.\n```sh\n$ outgate egress list --pool p\nsudo outgate egress mend\n\
                  outgate run fast # outgate swims\ncargo run --release -- demo --once\ncargo test\n```\noutgate sinks";
    assert_eq!(unknown_commands(readme, &help), ["outgate demo", "outgate egress mend", "outgate fly"]);
    assert_eq!(machine_paths(concat!("see /wo", "rk/main")).len(), 1);
    assert_eq!(machine_paths("GET /works and /usr/bin"), [""; 0]);
}
