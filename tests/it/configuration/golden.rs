//! Configurations and the exact text of their problems: `tests/golden/NAME.toml` and `NAME.txt`.
//! Which problems does an operator read? With BLESS=1 the test writes the golden files instead of comparing them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use outgate::config;
use proptest::prelude::*;

/// The environment variables of these configurations.
pub(super) fn environment(name: &str) -> Option<OsString> {
    match name {
        "KEY" => Some("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD\n".into()),
        "BLANK" => Some(" \n".into()),
        "LONG" => Some("x".repeat(65_537).into()),
        _ => None,
    }
}

pub(super) fn cases(extension: &str) -> Vec<PathBuf> {
    let paths = fs::read_dir("tests/golden").unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    paths.sort();
    paths
}

fn render(path: &Path) -> String {
    let (problems, sources) = match config::load_with_environment(path, &environment) {
        Ok(loaded) if loaded.warnings.is_empty() => return "no problems\n".into(),
        Ok(loaded) => (loaded.warnings, loaded.config.sources),
        Err(rejected) => (rejected.problems, rejected.sources),
    };
    config::render(&problems, &sources, false)
}

#[test]
fn golden_configurations_have_the_problems_of_their_golden_files() {
    let bless = std::env::var_os("BLESS").is_some();
    let mut different = Vec::new();
    for path in cases("toml") {
        let (found, file) = (render(&path), path.with_extension("txt"));
        if bless {
            fs::write(&file, found).unwrap();
        } else if fs::read_to_string(&file).unwrap_or_default() != found {
            different.push(format!("{}:\n{found}", path.display()));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

#[test]
fn golden_files_have_a_configuration_each() {
    for path in cases("txt") {
        assert!(path.with_extension("toml").exists(), "{}", path.display());
    }
}

#[test]
fn golden_files_show_no_secret() {
    for path in cases("toml") {
        let rendered = match config::load_with_environment(&path, &environment) {
            Ok(loaded) => config::to_json(&loaded.warnings, &loaded.config.sources).to_string(),
            Err(rejected) => config::to_json(&rejected.problems, &rejected.sources).to_string(),
        };
        for text in [rendered, render(&path)] {
            assert!(!text.contains("hunter2") && !text.contains("whsec_"), "{}:\n{text}", path.display());
        }
    }
}

#[test]
fn configuration_path_that_is_a_folder_is_a_problem() {
    for (path, message) in [
        ("tests/golden/missing/config.toml", "tests/golden/missing/config.toml does not exist"),
        ("tests/golden", "tests/golden is a directory"),
        ("/dev/null", "/dev/null is not a regular file"),
    ] {
        let rejected = config::load(Path::new(path)).unwrap_err();
        assert_eq!(rejected.problems[0].message, message);
        // A new configuration file is a change, and so is a rollback folder.
        assert!(rejected.files.contains(&PathBuf::from(path)), "{:?}", rejected.files);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Partial and corrupted files cause no panic.
    #[test]
    fn no_damage_is_fatal(which: prop::sample::Index, cut: prop::sample::Index, length in 0..40_usize, scrap in "[\\[\\]{}=\"'#,.\\na1é\\x00-]{0,6}") {
        let paths = cases("toml");
        let path = which.get(&paths);
        let mut text: Vec<char> = fs::read_to_string(path).unwrap().chars().collect();
        let start = cut.index(text.len() + 1);
        let end = text.len().min(start + length);
        text.splice(start..end, scrap.chars());
        let text: String = text.into_iter().collect();
        if let Err(rejected) = config::parse(&text, path) {
            prop_assert!(!config::render(&rejected.problems, &rejected.sources, true).is_empty());
            prop_assert_eq!(config::to_log_lines(&rejected.problems, &rejected.sources).len(), rejected.problems.len());
            config::to_json(&rejected.problems, &rejected.sources);
        }
    }
}
