//! Rules of names and doc comments: standard terms, one module for a name, sentences with the subject first.
//! Does a newcomer understand the names and the first words of each comment?

use std::collections::{BTreeMap, BTreeSet};

use super::reading::{File, find, sources};
use super::{assert_found, assert_kept};

/// The modules that may define a type of one name: its form in the configuration, and its compiled form.
const MODULES_OF_A_TYPE_MAX: usize = 2;

/// Names that an engineer of the field does not know. The glossary has a standard term for each.
const PRIVATE_NAMES: &[&str] = &[
    "Aside",
    "Attended",
    "Crowd",
    "Desk",
    "Door",
    "Doorkeeper",
    "Errand",
    "Farewell",
    "Fuse",
    "InForce",
    "Live",
    "Meters",
    "NotFresh",
    "Passage",
    "Pledge",
    "Proven",
    "Rarely",
    "Reach",
    "Reminders",
    "Retired",
    "Reuse",
    "Shown",
    "Stay",
    "Toll",
    "Tolls",
    "Turned",
];

/// Words that no doc comment begins with: a comment names its subject first.
const NOT_A_SUBJECT: &[&str] = &[
    "about",
    "above",
    "across",
    "after",
    "against",
    "among",
    "at",
    "before",
    "behind",
    "below",
    "beneath",
    "beside",
    "besides",
    "between",
    "beyond",
    "by",
    "despite",
    "during",
    "except",
    "for",
    "from",
    "in",
    "into",
    "nobody",
    "of",
    "off",
    "on",
    "onto",
    "over",
    "per",
    "since",
    "through",
    "to",
    "towards",
    "under",
    "until",
    "upon",
    "what",
    "whatever",
    "whichever",
    "who",
    "whoever",
    "whom",
    "whose",
    "with",
    "within",
    "without",
];

fn private_names(file: &File) -> Vec<String> {
    let found = PRIVATE_NAMES.iter().flat_map(|name| find(&file.code, name).map(move |line| (line, name)));
    found.map(|(line, name)| format!("line {line}: `{name}` is a private name: use the field's term")).collect()
}

fn subject_first(file: &File) -> Vec<String> {
    let mut violations = Vec::new();
    let mut previous = "";
    for (line, text) in file.text.lines().map(str::trim_start).enumerate() {
        let comment = match text.strip_prefix("///") {
            Some(comment) if !previous.starts_with("///") => Some(comment),
            None if line == 0 => text.strip_prefix("//!"),
            _ => None,
        };
        let first = comment.and_then(|comment| comment.split_whitespace().next()).unwrap_or_default();
        let word = first.trim_end_matches([',', ':', '.']).to_ascii_lowercase();
        if NOT_A_SUBJECT.contains(&&*word) {
            violations
                .push(format!("line {}: the doc comment begins with {first:?}: name its subject first", line + 1));
        }
        previous = text;
    }
    violations
}

/// Returns the type names that more than [`MODULES_OF_A_TYPE_MAX`] modules define.
fn shared_names(files: &[File]) -> Vec<String> {
    let mut modules: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for file in files {
        for line in file.production.lines() {
            let declaration = line.strip_prefix("pub").unwrap_or(line);
            let declaration = match declaration.strip_prefix('(') {
                Some(scope) => scope.split_once(')').map_or("", |(_, declaration)| declaration),
                None => declaration,
            };
            let mut words =
                declaration.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty());
            // An associated type is indented.
            let kinds: &[&str] =
                if line.starts_with(' ') { &[] } else { &["struct", "enum", "trait", "type", "union"] };
            if words.next().is_some_and(|kind| kinds.contains(&kind))
                && let Some(name) = words.next()
            {
                modules.entry(name).or_default().insert(&file.path);
            }
        }
    }
    modules.retain(|_, files| files.len() > MODULES_OF_A_TYPE_MAX);
    modules.into_iter().map(|(name, files)| format!("{name}: {files:?}")).collect()
}

#[test]
fn names_and_doc_comments_use_standard_terms() {
    assert_kept(&[private_names, subject_first]);
    assert_eq!(shared_names(&sources()), [""; 0]);
}

#[test]
fn names_find_each_violation() {
    assert_found(&[
        (private_names, "src/host.rs", "struct Farewell(Desk); // Reach\nenum Reachability { Stays }", 2),
        (subject_first, "src/host.rs", "//! What a host is.\n//! What is it?\n\n/// Of a host.\nstruct A;", 2),
        (subject_first, "src/host.rs", "//! Hosts.\n//! In which form?\n\n/// A host\n/// of a target.\nstruct A;", 0),
        (subject_first, "src/host.rs", "mod a {\n    /// Whoever.\n    // Of\n    fn f() {}\n}", 1),
        (subject_first, "src/host.rs", "/// Offers, `with` care.\nfn f() {}\n/// Forwards.\nfn g() {}", 0),
    ]);
    let count_of = |one: &str, two: &str, three: &str| {
        let files = [("src/a.rs", one), ("src/b.rs", two), ("src/c.rs", three)];
        shared_names(&files.map(|(path, text)| File::new(path, text))).len()
    };
    assert_eq!(count_of("pub struct A;", "enum A {}", "pub(in crate::a) type A = u8;"), 1);
    assert_eq!(count_of("pub struct A;", "enum A {}", "impl T for U {\n    type A = u8;\n}\n/* struct A; */"), 0);
}
