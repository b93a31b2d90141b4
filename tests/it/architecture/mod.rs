//! Rules of the source text that no compiler checks.

mod black_box;
mod delivery;
mod documents;
mod imports;
mod names;
mod reading;
mod rules;

use reading::{File, sources};

/// A rule, which returns the violations in a file.
type Rule = fn(&File) -> Vec<String>;

/// Asserts that every source file keeps the rules.
fn assert_kept(rules: &[Rule]) {
    let files = sources();
    assert!(files.len() > 20, "only {} files were found", files.len());
    let violations = files.iter().flat_map(|file| {
        rules.iter().flat_map(|rule| rule(file)).map(|violation| format!("{}: {violation}", file.path))
    });
    let violations: Vec<String> = violations.collect();
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

/// Asserts how many violations each rule finds in the text of a file.
fn assert_found(cases: &[(Rule, &str, &str, usize)]) {
    for (rule, path, text, count) in cases {
        let found = rule(&File::new(path, text));
        assert_eq!(found.len(), *count, "{path}: {text}: {found:?}");
    }
}
