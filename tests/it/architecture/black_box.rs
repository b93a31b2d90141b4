//! Rules of the black-box tests: no silent replacement, no sleep without a reason.
//! Does every test fail if the text that it replaces or the event that it waits for is missing?

use std::fs;
use std::path::Path;

use super::reading::{File, find, root};

/// Files that may replace text that does not exist, and the reason.
const MAY_MATCH_NOTHING: &[(&str, &str)] = &[
    ("tests/it/sending/differential.rs", "a case has some of the placeholders"),
    ("tests/it/sending/hang_ups.rs", "some of the requests have a number in their name"),
    ("tests/it/sending/clients_shown.rs", "a client may or may not name the port"),
    ("tests/it/configuration/example.rs", "a section may or may not have a name of its own"),
    ("tests/it/trust/certificates/verdicts.rs", "escapes the cells of a table"),
];

/// The parts of the tests that offer the replacements and the waits.
const SUPPORT: &str = "tests/it/support/";

/// Finds replacements that may match nothing, so that the test would pass without the change.
fn silent_replacements(file: &File) -> Vec<String> {
    if file.path.starts_with(SUPPORT) || MAY_MATCH_NOTHING.iter().any(|(path, _)| *path == file.path) {
        return Vec::new();
    }
    let found = ["replace", "replacen"].into_iter().flat_map(|name| calls(file, name));
    found.map(|line| format!("line {line}: use Config, replace_one or replace_all, which must match")).collect()
}

/// Finds sleeps without a comment. A test waits with `eventually`, and a comment states why a test must sleep.
fn sleeps_without_a_reason(file: &File) -> Vec<String> {
    let lines: Vec<&str> = file.text.lines().collect();
    let has_reason = |line: usize| {
        let before = line.checked_sub(2).map_or("", |before| lines[before].trim_start());
        lines[line - 1].contains("//") || before.starts_with("//")
    };
    let found = find(&file.code, "sleep").filter(|line| !has_reason(*line));
    match file.path.starts_with(SUPPORT) {
        true => Vec::new(),
        false => found.map(|line| format!("line {line}: use eventually, or state why the test sleeps")).collect(),
    }
}

/// Returns the lines that call a method with this name.
fn calls<'a>(file: &'a File, name: &'a str) -> impl Iterator<Item = usize> + 'a {
    let method = format!(".{name}(");
    file.code.lines().enumerate().filter(move |(_, line)| line.contains(&method)).map(|(index, _)| index + 1)
}

fn read(folder: &Path, files: &mut Vec<File>) {
    for entry in fs::read_dir(folder).expect("a folder of tests") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            read(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root()).expect("below the root").display().to_string();
            files.push(File::new(&name, &fs::read_to_string(&path).expect("a readable file")));
        }
    }
}

#[test]
fn every_test_file_keeps_the_rules() {
    let mut files = Vec::new();
    read(&root().join("tests"), &mut files);
    assert!(files.len() > 50, "only {} files were found", files.len());
    for (path, _) in MAY_MATCH_NOTHING {
        let file = files.iter().find(|file| file.path == *path);
        let replaces = |file: &File| calls(file, "replace").chain(calls(file, "replacen")).next().is_some();
        assert!(file.is_some_and(replaces), "{path} needs no exception");
    }
    let violations: Vec<String> = files
        .iter()
        .flat_map(|file| {
            let violations = silent_replacements(file).into_iter().chain(sleeps_without_a_reason(file));
            violations.map(|problem| format!("{}: {problem}", file.path))
        })
        .collect();
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

#[test]
fn rules_of_the_black_box_tests_tell_right_from_wrong() {
    let replacements = |text: &str| silent_replacements(&File::new("tests/it/limits/running.rs", text)).len();
    assert_eq!(replacements("let text = text.replace(\"a\", \"b\").replacen(\"c\", \"d\", 1);"), 2);
    assert_eq!(replacements("let text = text.replace_one(\"a\", \"b\"); std::mem::replace(a, b); // .replace(\n"), 0);
    let sleeps = |text: &str| sleeps_without_a_reason(&File::new("tests/it/limits/running.rs", text)).len();
    assert_eq!(sleeps("//! Limits.\nstd::thread::sleep(LONG);\n\nsleep(SHORT);\n"), 1);
    assert_eq!(sleeps("sleep(LONG); // the pause\n// a slow client\nsleep(SHORT);\n"), 0);
    assert_eq!(sleeps("fn f() {}\nsleep(LONG);\n"), 1);
}
