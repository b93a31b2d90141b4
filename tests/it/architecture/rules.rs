//! Rules of the sources: layers, module docs, sizes, names, and which files may use the network or the disk.
//! Does every file keep what ARCHITECTURE.md and CONTRIBUTING.md say?
//!
//! A rule is a function from a file to what is wrong with it; below each other: the rules, the tests that run them
//! over the tree, the tests that run them over violations.

mod reading;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use reading::{File, find, root, snippets, sources};

const MAX_LINES: usize = 400;

/// The layer of each module. A module may use lower layers, and its own.
const LAYERS: &[(&str, u8)] = &[
    ("names", 0),
    ("host", 0),
    ("lru", 0),
    ("single_flight", 0),
    ("config", 1),
    ("policy", 2),
    ("history", 2),
    ("net", 3),
    ("state", 4),
    ("delivery", 5),
    ("server", 6),
    ("cli", 7),
    ("demo", 7),
    ("app", 7),
    ("reload", 7),
    ("upkeep", 7),
    ("fuzz", 7),
    ("sysexits", 7),
    ("lib", 7),
    ("main", 7),
];

/// Words that only some files may have outside their tests: the words, those files or modules, and the reason.
const RESTRICTED: &[(&[&str], &[&str], &str)] = &[
    (
        &["unsafe"],
        &["src/net/sockopt.rs", "src/state/config/thread_priority.rs"],
        "two small files ask the kernel for what no library offers",
    ),
    (
        &["TcpSocket", "Socket::new", "Socket::new_raw"],
        &["src/net/dial.rs", "src/net/listen.rs", "src/net/local.rs", "src/net/sockopt.rs"],
        "an outgoing socket is opened in one place, bound to a source address of the pool",
    ),
    // The demo plays the platform and its targets; `send --proxy` is a client of a proxy.
    (
        &["TcpStream::connect"],
        // Name servers are asked from whatever address routes to them.
        &["src/cli/demo", "src/cli/send/via_proxy.rs", "src/net/resolve/query.rs"],
        "it connects from whatever address the kernel likes",
    ),
    (
        &["by_operator"],
        &["src/policy/authn/mod.rs", "src/cli/send/direct.rs"],
        "who comes over the network proves who it is",
    ),
    (
        &["println!", "print!", "eprintln!", "eprint!", "io::stdout()", "io::stderr()"],
        &[
            "src/cli",                               // its own macros of these names ignore a closed pipe
            "src/state/observability/line_queue.rs", // the writers of records and log
            "src/state/observability/log.rs",        // asks whether stderr is a terminal
        ],
        "a write to a standard stream blocks or panics",
    ),
    (&["lookup_host", "to_socket_addrs", "ToSocketAddrs"], &[], "it resolves past the guard"),
    (
        &["std::fs", "tokio::fs", "fs::read", "fs::read_to_string", "fs::write", "File::open", "File::create"],
        &[
            "src/config",
            "src/history",                           // keeps configurations, and puts one back
            "src/net/listen.rs",                     // a unix socket's mode, and the stale one of a former process
            "src/net/resolve/system.rs",             // the system's /etc/hosts and /etc/resolv.conf
            "src/net/sockopt.rs",                    // the kernel's range of local ports
            "src/state/observability/line_queue.rs", // appends a line a delivery
            "src/net/peer.rs",                       // the names of this host's users
            "src/app.rs",
            "src/cli",
        ],
        "only the configuration reads files",
    ),
];

/// What decisions never say: time is an argument, and they neither wait, reach out nor log.
const IMPURE: &[&str] = &[
    "async",
    "await",
    "Instant::now",
    "SystemTime",
    "Timestamp::now",
    "Zoned::now",
    "tokio",
    "tracing",
    "println",
    "eprintln",
    "std::fs",
    "std::env",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
];

/// Names that say nothing to an engineer of the field. Each had a meaning of its own here, and has the field's term now.
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

/// Documents that must be there.
const DOCUMENTS: &[&str] = &[
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "config.toml.example",
];

// ---- the rules

fn module_doc(file: &File) -> Vec<String> {
    let paragraph: Vec<&str> = file
        .text
        .lines()
        .map_while(|line| line.strip_prefix("//!"))
        .take_while(|line| !line.trim().is_empty())
        .collect();
    let paragraph = paragraph.join(" ");
    let has =
        |mark: char| paragraph.split_whitespace().any(|word| word.trim_end_matches(['`', ')', '*']).ends_with(mark));
    let mut wrong = Vec::new();
    if !has('.') {
        wrong.push("the module doc (`//!`, first paragraph) has no sentence".to_owned());
    }
    if !has('?') {
        wrong.push("the module doc (`//!`, first paragraph) does not ask what the file answers".to_owned());
    }
    wrong
}

fn size(file: &File) -> Vec<String> {
    let lines = file.text.lines().count();
    if lines > MAX_LINES { vec![format!("{lines} lines, {MAX_LINES} are the limit")] } else { Vec::new() }
}

fn unfinished(file: &File) -> Vec<String> {
    let marks = ["TODO", "FIXME", "XXX", "HACK"].iter().flat_map(|mark| find(&file.text, mark));
    let stubs = ["todo!", "unimplemented!", "dbg!"].iter().flat_map(|stub| find(&file.code, stub));
    marks.chain(stubs).map(|line| format!("line {line}: unfinished")).collect()
}

fn layers(file: &File) -> Vec<String> {
    let own = layer(&file.top_module());
    let mut wrong = Vec::new();
    for (line, path) in file.uses() {
        match (own, layer(&path[0])) {
            (Some(own), Some(used)) if used <= own => {}
            (_, None) => wrong.push(format!("line {line}: `crate::{}` is in no layer", path[0])),
            _ => wrong.push(format!("line {line}: `crate::{}` is not below `{}`", path[0], file.top_module())),
        }
    }
    wrong
}

fn restricted(file: &File) -> Vec<String> {
    let mut wrong = Vec::new();
    for (words, files, why) in RESTRICTED {
        let opens =
            |place: &&str| Path::new(file.path.trim_end_matches(".rs")).starts_with(place.trim_end_matches(".rs"));
        if files.iter().any(opens) {
            continue;
        }
        for word in *words {
            wrong.extend(find(&file.production, word).map(|line| format!("line {line}: `{word}`: {why}")));
        }
    }
    wrong
}

fn purity(file: &File) -> Vec<String> {
    if file.top_module() != "policy" {
        return Vec::new();
    }
    let said = |word: &'static str| find(&file.production, word).map(move |line| (line, word));
    IMPURE
        .iter()
        .flat_map(|word| said(word))
        .map(|(line, word)| format!("line {line}: `{word}` in a decision"))
        .collect()
}

fn private_names(file: &File) -> Vec<String> {
    let found = PRIVATE_NAMES.iter().flat_map(|name| find(&file.code, name).map(move |line| (line, name)));
    found.map(|(line, name)| format!("line {line}: `{name}` is a private name: use the field's term")).collect()
}

fn layer(module: &str) -> Option<u8> {
    LAYERS.iter().find(|(name, _)| *name == module).map(|(_, layer)| *layer)
}

/// Modules of one layer that use each other in a cycle. `mod.rs` gathers its children and is not part of any.
fn cycles(files: &[File]) -> Vec<String> {
    let mut uses: BTreeMap<(String, String), BTreeSet<(String, String)>> = BTreeMap::new();
    for file in files {
        let [top, module, ..] = &file.module()[..] else { continue };
        let from = (top.clone(), module.clone());
        for (_, path) in file.uses() {
            let Some(to) = path.get(1) else { continue };
            if path[0] == *top && to != module {
                uses.entry(from.clone()).or_default().insert((top.clone(), to.clone()));
            }
        }
    }
    // What uses nothing that is left, or is used by nothing left, is in no ring: take it away until nothing changes.
    loop {
        let left: BTreeSet<_> = uses.keys().cloned().collect();
        uses.values_mut().for_each(|used| used.retain(|module| left.contains(module)));
        let used: BTreeSet<_> = uses.values().flatten().cloned().collect();
        uses.retain(|module, uses| !uses.is_empty() && used.contains(module));
        if uses.len() == left.len() {
            return left.iter().map(|(top, module)| format!("{top}::{module} uses what uses it")).collect();
        }
    }
}

/// Commands that a document shows and `outgate --help` does not list. `help` answers for a list of words before `--help`.
fn unknown_commands(document: &str, help: &dyn Fn(&[&str]) -> String) -> Vec<String> {
    let listed =
        |words: &[&str], name: &str| help(words).lines().any(|line| line.split_whitespace().next() == Some(name));
    let is_name =
        |word: &&str| word.starts_with(|c: char| c.is_ascii_lowercase()) && !word.contains(['.', ':', '/', '=']);
    let mut wrong = BTreeSet::new();
    for shown in snippets(document) {
        let mut words = shown.trim_start_matches("$ ").trim_start_matches("sudo ").split_whitespace();
        match words.next() {
            Some("outgate") => {}
            Some("cargo") if shown.contains("cargo run ") => drop(words.by_ref().find(|word| *word == "--")),
            _ => continue,
        }
        for alternative in words.next().filter(is_name).unwrap_or_default().split('|').filter(|name| !name.is_empty()) {
            if !listed(&[], alternative) {
                wrong.insert(format!("outgate {alternative}"));
            } else if let Some(inner) = words.clone().next().filter(is_name)
                && help(&[alternative]).contains("\nCommands:")
                && !inner.split('|').all(|inner| listed(&[alternative], inner))
            {
                wrong.insert(format!("outgate {alternative} {inner}"));
            }
        }
    }
    wrong.into_iter().collect()
}

/// Paths of the machine that a file was written on. (Spelled in halves: this file is read, too.)
fn machine_paths(text: &str) -> Vec<String> {
    let paths = [concat!("/wo", "rk/"), concat!("/tmp/", "wt"), concat!("/root", "/"), concat!("../sha", "red")];
    paths.iter().filter(|path| text.contains(*path)).map(|path| format!("names {path}")).collect()
}

// ---- the tree keeps them

#[test]
fn every_file_keeps_the_rules() {
    let files = sources();
    assert!(files.len() > 20, "only {} files were found", files.len());
    let rules = [module_doc, size, unfinished, layers, restricted, purity, private_names];
    let mut wrong: Vec<String> = files
        .iter()
        .flat_map(|file| rules.iter().flat_map(|rule| rule(file)).map(|fault| format!("{}: {fault}", file.path)))
        .collect();
    wrong.extend(cycles(&files));
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn the_documents_exist_and_name_no_machine() {
    for document in DOCUMENTS {
        assert!(root().join(document).is_file(), "{document} is missing");
    }
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output().expect("git runs");
    if !listed.status.success() {
        return; // a source archive: nothing is tracked
    }
    let names = String::from_utf8(listed.stdout).expect("names are UTF-8");
    let mut wrong = Vec::new();
    for name in names.split_terminator('\0') {
        // A file that is deleted but still tracked, or is not text, names nothing.
        let text = fs::read_to_string(root().join(name)).unwrap_or_default();
        wrong.extend(machine_paths(&text).into_iter().map(|fault| format!("{name}: {fault}")));
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
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
    for document in pages.chain(documents) {
        let text = fs::read_to_string(&document).expect("a readable document");
        assert_eq!(unknown_commands(&text, &help), [""; 0], "{}", document.display());
    }
}

// ---- each rule catches its violation

#[test]
fn rules_tell_right_from_wrong() {
    type Rule = fn(&File) -> Vec<String>;
    let long = "//! A.\n".repeat(MAX_LINES + 1);
    let cases: &[(Rule, &str, &str, usize)] = &[
        (module_doc, "src/host.rs", "//! Hosts.\n//! Which name is it?\n", 0),
        (module_doc, "src/host.rs", "//! Hosts.\n", 1),
        (module_doc, "src/host.rs", "//! Which name is it?\n", 1),
        (module_doc, "src/host.rs", "//! Hosts.\n//!\n//! Which name is it?\n", 1),
        (module_doc, "src/host.rs", "use std::fs;\n//! Hosts. Which?\n", 2),
        (size, "src/host.rs", &long, 1),
        (size, "src/host.rs", &long[7..], 0),
        (unfinished, "src/host.rs", "// TODO: more\nfn f() { unimplemented!() }", 2),
        (unfinished, "src/host.rs", "// \"todo!\" in words\nconst METHODS: u8 = 0;", 0),
        (layers, "src/policy/guard.rs", "use crate::net::dial;", 1),
        (layers, "src/policy/guard.rs", "use crate::{names::Host, state};", 1),
        (layers, "src/policy/guard.rs", "fn f() { crate::delivery::go() }", 1),
        (layers, "src/policy/guard.rs", "use super::super::net;", 1),
        (layers, "src/policy/sign/rfc9421.rs", "use super::super::egress; use super::Draft;", 0),
        (layers, "src/policy/guard.rs", "#[cfg(test)] mod tests { use super::super::egress; use super::*; }", 0),
        (layers, "src/policy/guard.rs", "use crate::{config::At, policy::{self, egress::Hop}};", 0),
        (layers, "src/policy/guard.rs", "// use crate::net;\nconst S: &str = \"crate::net\";", 0),
        (layers, "src/names.rs", "use crate::config::Config;", 1),
        (layers, "src/names.rs", "use crate::host::canonical;", 0),
        (layers, "src/server/mod.rs", "use crate::cellar::Wine;", 1),
        (layers, "src/main.rs", "use outgate::cellar::Wine; use outgate::app;", 1),
        (layers, "src/attic.rs", "use crate::names::Host;", 1),
        (private_names, "src/host.rs", "struct Farewell(Desk); // Reach\nenum Reachability { Stays }", 2),
        (restricted, "src/net/sockopt.rs", "unsafe { f() }", 0),
        (restricted, "src/net/dial.rs", "unsafe { f() }", 1),
        (restricted, "src/net/dial.rs", "#![deny(unsafe_code)] let s = TcpSocket::new_v4();", 0),
        (restricted, "src/net/tls.rs", "let s = TcpSocket::new_v4();", 1),
        (restricted, "src/delivery/mod.rs", "let s = tokio::net::TcpStream::connect(to).await;", 1),
        (restricted, "src/delivery/mod.rs", "#[cfg(test)]\nmod tests { fn f() { TcpStream::connect(to); } }", 0),
        (restricted, "src/delivery/mod.rs", "#[cfg(test)]\nuse a::{b};\nfn f() { TcpStream::connect(to); }", 1),
        (restricted, "src/net/resolve.rs", "lookup_host(name).await", 1),
        (restricted, "src/policy/trust.rs", "use std::fs;", 1),
        (restricted, "src/config/load.rs", "use std::fs;", 0),
        (restricted, "src/configure.rs", "use std::fs;", 1),
        (restricted, "src/cli/demo/client.rs", "TcpStream::connect(proxy)", 0),
        (restricted, "src/server/entrance.rs", "Caller { stated: Some(Stated::by_operator(name)), ..caller }", 1),
        (purity, "src/policy/egress.rs", "async fn f() { Instant::now(); }", 2),
        (purity, "src/policy/egress.rs", "let c = '\"'; tracing::info!(\"x\"); let r = r#\"tokio\"#;", 1),
        (purity, "src/policy/egress.rs", "/// Not async.\nfn f(now: Instant) {}", 0),
        (purity, "src/net/dial.rs", "async fn f() { Instant::now(); }", 0),
    ];
    for (rule, path, text, faults) in cases {
        let found = rule(&File::new(path, text));
        assert_eq!(found.len(), *faults, "{path}: {text}: {found:?}");
    }
}

#[test]
fn cycles_are_found() {
    let of = |egress: &str, guard: &str, sign: &str| {
        cycles(&[
            File::new("src/policy/mod.rs", "use crate::policy::egress::Pool;"),
            File::new("src/policy/egress.rs", egress),
            File::new("src/policy/guard.rs", guard),
            File::new("src/policy/sign/hmac.rs", sign),
        ])
    };
    assert_eq!(of("use super::guard::Cleared;", "use crate::policy::Plan;", "use super::Draft;"), [""; 0]);
    assert_eq!(of("use super::guard::Cleared;", "use crate::policy::{egress};", "use super::super::egress;").len(), 2);
    assert_eq!(of("use super::guard;", "use super::sign;", "use super::super::egress;").len(), 3);
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
