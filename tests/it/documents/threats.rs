//! A comparison of the threat model in `SECURITY.md` with the tests.
//! Does every threat name a test, and does every named test exist?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const SECURITY_LINES_MAX: usize = 250;
const HEADER: &str = "| threat | what outgate does | tests |";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the names of the tests in a file, in the form that `cargo test` prints.
fn tests_in(module: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let (mut is_test, mut is_inner) = (false, false);
    for line in text.lines() {
        let code = line.trim_start();
        is_inner |= line == "mod tests {";
        is_test |= code == "#[test]" || code.starts_with("#[tokio::test");
        let Some(name) = code.trim_start_matches("async ").strip_prefix("fn ").and_then(|rest| rest.split('(').next())
        else {
            continue;
        };
        if std::mem::take(&mut is_test) {
            found.push(if is_inner { format!("{module}::tests::{name}") } else { format!("{module}::{name}") });
        }
    }
    found
}

/// Returns the names of the tests in the files below a folder.
fn tests_below(folder: &str) -> BTreeSet<String> {
    let (folder, mut found) = (root().join(folder), BTreeSet::new());
    let mut folders = vec![folder.clone()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let module = path.strip_prefix(&folder).unwrap().with_extension("").display().to_string();
                let module = module.trim_end_matches("/mod").split('/').collect::<Vec<_>>().join("::");
                found.extend(tests_in(&module, &fs::read_to_string(path).unwrap()));
            }
        }
    }
    found
}

/// Returns the number of threats in the tables of a page, and the rows without a test or with an unknown one.
fn check(page: &str, tests: &BTreeSet<String>) -> (usize, Vec<String>) {
    let (mut threats, mut problems) = (0, Vec::new());
    for table in page.split(HEADER).skip(1) {
        for row in table.lines().skip(2).take_while(|line| line.starts_with('|')) {
            threats += 1;
            let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
            let [threat, _, named] = cells[..] else {
                problems.push(format!("{row}: not three cells"));
                continue;
            };
            let names: Vec<&str> = named.split(", ").map(|name| name.trim_matches('`')).collect();
            let unknown = names.into_iter().filter(|name| !tests.contains(*name));
            problems.extend(unknown.map(|name| format!("{threat}: there is no test {name:?}")));
        }
    }
    (threats, problems)
}

#[test]
fn every_threat_of_the_security_page_names_tests_that_exist() {
    let page = fs::read_to_string(root().join("SECURITY.md")).unwrap();
    assert!(page.lines().count() <= SECURITY_LINES_MAX, "{} lines", page.lines().count());
    let tests = ["tests/it", "tests/privileged", "tests/faults", "src"].into_iter().flat_map(tests_below).collect();
    let (threats, problems) = check(&page, &tests);
    assert!(threats > 50, "only {threats} threats");
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
    // The scan finds the same names as the test harness.
    let own = concat!(module_path!(), "::every_threat_of_the_security_page_names_tests_that_exist");
    assert!(tests.contains(own.trim_start_matches("it::")), "{own}");
}

#[test]
fn threats_with_a_misspelt_test_or_without_one_are_found() {
    let text = "#[test]\nfn one() {}\nfn helper() {}\nmod tests {\n    #[tokio::test]\n    async fn two() {}\n}\n";
    let tests: BTreeSet<String> = tests_in("a::b", text).into_iter().collect();
    assert_eq!(tests.iter().collect::<Vec<_>>(), ["a::b::one", "a::b::tests::two"]);
    let of = |named: &str| check(&format!("{HEADER}\n| --- | --- | --- |\n| t | d | {named} |\n\n| x |\n"), &tests);
    assert_eq!(of("`a::b::one`, `a::b::tests::two`"), (1, vec![]));
    for wrong in ["", "`a::b::on`", "`one`", "`a::b::helper`", "`a::b::two`", "`a::b::one`, `a::b::ones`"] {
        assert_eq!(of(wrong).1.len(), 1, "{wrong:?}");
    }
}
