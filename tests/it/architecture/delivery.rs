//! Rules of the delivery: its main functions are short, and no file imports private names of a module above.
//! Is each main function short, and can each file move independently?

use std::collections::{BTreeMap, BTreeSet};

use super::reading::{File, sources};
use super::{assert_found, assert_kept};

/// The main functions of a delivery.
const STORIES: &[(&str, &[&str])] = &[
    ("src/delivery/mod.rs", &["deliver", "forward", "exchange"]),
    ("src/delivery/tunnel/mod.rs", &["connect", "open"]),
];

const MAX_STORY_LINES: usize = 39;

fn stories(file: &File) -> Vec<String> {
    let names = STORIES.iter().filter(|(path, _)| *path == file.path).flat_map(|(_, names)| *names);
    let length = |name: &str| {
        let start = format!("fn {name}(");
        let lines = file.code.lines().skip_while(|line| line.starts_with(' ') || !line.contains(&start));
        lines.take_while(|line| *line != "}").count() + 1
    };
    let lengths = names.map(|name| (name, length(name)));
    let violations = lengths.filter(|(_, length)| !(2..=MAX_STORY_LINES).contains(length));
    violations
        .map(|(name, length)| format!("`{name}` has {length} lines: a story has 2 to {MAX_STORY_LINES}"))
        .collect()
}

/// Returns the names that other modules may import from a file: its modules, and its `pub` items and imports.
fn exports(file: &File) -> BTreeSet<String> {
    const ITEMS: &[&str] = &["fn", "struct", "enum", "union", "const", "static", "type", "trait", "mod"];
    let reexports = file.reexports().into_iter().filter_map(|(mut name, _)| name.pop());
    let declared = file.production.lines().filter_map(|line| {
        let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_').skip_while(|word| !ITEMS.contains(word));
        let (item, name) = (words.next()?, words.find(|word| !ITEMS.contains(word))?);
        (line.starts_with("pub") || (item == "mod" && line.starts_with("mod"))).then(|| name.to_owned())
    });
    reexports.chain(declared).collect()
}

/// Returns the private names that files of the delivery import from the modules above them.
fn private_imports(files: &[File]) -> Vec<String> {
    let exports: BTreeMap<_, _> = files.iter().map(|file| (file.module(), exports(file))).collect();
    let mut violations = Vec::new();
    for file in files.iter().filter(|file| file.top_module() == "delivery") {
        let module = file.module();
        for (line, path) in file.uses(&file.production) {
            let shared = module.iter().zip(&path).take_while(|(own, used)| own == used).count();
            let above = &path[..shared.min(module.len() - 1)];
            if let (Some(exports), Some(name)) = (exports.get(above), path.get(above.len()))
                && !exports.contains(name)
            {
                violations.push(format!("{}: line {line}: `{name}` of {} is private", file.path, above.join("::")));
            }
        }
    }
    violations
}

#[test]
fn delivery_stories_are_short_and_import_no_private_name() {
    let files = sources();
    for (path, _) in STORIES {
        assert!(files.iter().any(|file| file.path == *path), "{path} is missing");
    }
    assert_kept(&[stories]);
    let found = private_imports(&files);
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn delivery_rules_find_each_violation() {
    let long = format!("fn connect() {{\n{}}}\nfn open() {{\n}}\n", "\n".repeat(MAX_STORY_LINES - 1));
    assert_found(&[
        (stories, "src/delivery/tunnel/mod.rs", "pub async fn connect(\n) {\n}\nasync fn open() {\n}\n", 0),
        (stories, "src/delivery/tunnel/mod.rs", &long, 1),
        (stories, "src/delivery/tunnel/mod.rs", "fn connect() {\n}\n", 1),
    ]);
    let count_of = |child: &str| {
        private_imports(&[
            File::new(
                "src/delivery/mod.rs",
                "mod record;\nmod tunnel;\nuse crate::names::Host;\npub use record::{Line, Step};\nconst SLACK: u8 = 2;\n\
                 pub(crate) async fn deliver() {}\nstruct Guards;\n",
            ),
            File::new("src/delivery/tunnel/mod.rs", "mod open;\npub(super) struct Setup;\nfn reply() {}\n"),
            File::new("src/delivery/tunnel/open.rs", child),
        ])
        .len()
    };
    assert_eq!(count_of("use super::Setup; use crate::delivery::{Line, deliver, record::Inner};"), 0);
    assert_eq!(count_of("use super::super::{Step, Guards, SLACK}; fn f() { super::reply() }"), 3);
    assert_eq!(count_of("use crate::delivery::{Host, tunnel::open::own};"), 1);
}
