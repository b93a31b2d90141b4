//! Rules of each file: its module doc, its size, and words that only some files may contain. Clippy enforces further rules
//! (`clippy.toml`). Does every file follow ARCHITECTURE.md and CONTRIBUTING.md?

use std::path::Path;

use super::reading::{File, find, sources};
use super::{assert_found, assert_kept};

const MAX_LINES: usize = 400;

/// Words that only some files may contain outside their tests.
struct Restriction {
    words: &'static [&'static str],
    /// The files and folders that may contain the words.
    allowed: &'static [&'static str],
    reason: &'static str,
}

const RESTRICTIONS: &[Restriction] = &[
    Restriction {
        words: &["Instant::now", "SystemTime::now", "Timestamp::now", "Zoned::now"],
        allowed: &[
            "src/app.rs",
            "src/cli",
            "src/config/key_dir/scan.rs", // compares the times of files
            "src/delivery",
            "src/net",
            "src/panics/mod.rs", // the time of the last panic
            "src/reload",
            "src/server",
            "src/simulation", // sets the clock
            "src/state",
            "src/upkeep.rs",
            "src/upkeep/addresses.rs",
            "src/upkeep/alerts/mod.rs",
            "src/upkeep/notices.rs",
            "src/upkeep/rollout",
        ],
        reason: "time is an argument of every decision",
    },
    Restriction {
        words: &["StatusCode"],
        allowed: &[
            "src/cli/control", // a client of the admin listener
            "src/delivery",
            "src/fuzz.rs",
            "src/http_message.rs",       // the responses of targets and of outgate
            "src/net/http_client/http1", // reads the responses of targets
            "src/policy/credential",     // reads the responses of token endpoints and targets
            "src/server",
        ],
        reason: "an error knows no status: the table in `src/delivery/refusal/table.rs` has them",
    },
    Restriction {
        words: &["by_operator"],
        allowed: &["src/policy/authn/caller.rs", "src/cli/send/direct.rs"],
        reason: "a client of the network proves its identity",
    },
    Restriction {
        words: &["without_proof"],
        allowed: &["src/policy/authn/mod.rs", "src/delivery/inspect"],
        reason: "only a request that is not sent has a client without a proof",
    },
    Restriction {
        words: &["from_handshake"],
        allowed: &["src/policy/authn/caller.rs", "src/net/tls/accept.rs"],
        reason: "only TLS verifies client certificates",
    },
    Restriction {
        words: &["after_connect"],
        allowed: &["src/policy/authn/caller.rs", "src/delivery/tunnel/mod.rs"],
        reason: "only an accepted CONNECT authorizes the requests in its tunnel",
    },
    Restriction {
        words: &["fetch_update", "compare_exchange", "compare_exchange_weak", "Ordering::Acquire", "Ordering::Release"],
        allowed: &["src/state/counters.rs"],
        reason: "`tests/loom` checks each atomic that carries a rule between threads",
    },
];

/// Words that decisions never contain. Decisions do not wait, read files, clocks or the environment, or log. Clippy
/// forbids sockets.
const IMPURE: &[&str] = &["async", "await", "tokio", "tracing", "std::env", "std::fs", "SystemTime", "elapsed"];

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
    let mut violations = Vec::new();
    if !has('.') {
        violations.push("the module doc (`//!`, first paragraph) has no sentence".to_owned());
    }
    if !has('?') {
        violations.push("the module doc (`//!`, first paragraph) does not ask what the file answers".to_owned());
    }
    violations
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

fn restricted(file: &File) -> Vec<String> {
    let mut violations = Vec::new();
    for Restriction { words, allowed, reason } in RESTRICTIONS {
        if !allowed.iter().any(|path| is_below(file, path)) {
            let found = words.iter().flat_map(|word| find(&file.production, word).map(move |line| (line, word)));
            violations.extend(found.map(|(line, word)| format!("line {line}: `{word}`: {reason}")));
        }
    }
    violations
}

/// Returns whether the file is at the path, or below the folder at the path.
fn is_below(file: &File, path: &str) -> bool {
    Path::new(&file.path).starts_with(path)
}

/// Returns the allowed paths that contain none of the words.
fn stale_permissions(files: &[File]) -> Vec<String> {
    let needs = |file: &File, words: &[&str]| words.iter().any(|word| find(&file.production, word).next().is_some());
    let mut stale = Vec::new();
    for Restriction { words, allowed, .. } in RESTRICTIONS {
        let is_stale = |path: &&&str| !files.iter().any(|file| is_below(file, path) && needs(file, words));
        stale.extend(allowed.iter().filter(is_stale).map(|path| format!("{path} has none of {words:?}")));
    }
    stale
}

fn purity(file: &File) -> Vec<String> {
    if file.top_module() != "policy" {
        return Vec::new();
    }
    let found = IMPURE.iter().flat_map(|word| find(&file.production, word).map(move |line| (line, word)));
    found.map(|(line, word)| format!("line {line}: `{word}` in a decision")).collect()
}

#[test]
fn every_file_keeps_the_rules() {
    assert_kept(&[module_doc, size, unfinished, restricted, purity]);
    assert_eq!(stale_permissions(&sources()), [""; 0]);
}

#[test]
fn rules_find_each_violation() {
    let long = "//! A.\n".repeat(MAX_LINES + 1);
    assert_found(&[
        (module_doc, "src/host.rs", "//! Hosts.\n//! Which name is it?\n", 0),
        (module_doc, "src/host.rs", "//! Hosts.\n", 1),
        (module_doc, "src/host.rs", "//! Which name is it?\n", 1),
        (module_doc, "src/host.rs", "//! Hosts.\n//!\n//! Which name is it?\n", 1),
        (module_doc, "src/host.rs", "use std::fs;\n//! Hosts. Which?\n", 2),
        (size, "src/host.rs", &long, 1),
        (size, "src/host.rs", &long[7..], 0),
        (unfinished, "src/host.rs", "// TODO: more\nfn f() { unimplemented!() }", 2),
        (unfinished, "src/host.rs", "// \"todo!\" in words\nconst METHODS: u8 = 0;", 0),
        (restricted, "src/policy/egress.rs", "fn f() { Instant::now(); let now: Timestamp; }", 1),
        (restricted, "src/net/dial.rs", "fn f() { Instant::now(); }", 0),
        (restricted, "src/upkeep.rs", "let now = Timestamp::now();", 0),
        (restricted, "src/upkeeper.rs", "let now = Timestamp::now();", 1),
        (restricted, "src/state/mod.rs", "fn f() -> StatusCode { StatusCode::OK }", 2),
        (restricted, "src/state/mod.rs", "#[cfg(test)]\nmod tests { fn f() { StatusCode::OK } }", 0),
        (restricted, "src/state/mod.rs", "#[cfg(test)]\nuse a::{b};\nfn f() { StatusCode::OK }", 1),
        (restricted, "src/server/entrance.rs", "Caller::by_operator(name)", 1),
        (purity, "src/policy/egress.rs", "async fn f() { g().await; }", 2),
        (purity, "src/policy/egress.rs", "std::fs::metadata(p); SystemTime::UNIX_EPOCH.elapsed();", 3),
        (purity, "src/policy/egress.rs", "let c = '\"'; tracing::info!(\"x\"); let r = r#\"tokio\"#;", 1),
        (purity, "src/policy/egress.rs", "/// Not async.\nfn f(now: Instant) {}", 0),
        (purity, "src/net/dial.rs", "async fn f() {}", 0),
    ]);
    let permissions: usize = RESTRICTIONS.iter().map(|restriction| restriction.allowed.len()).sum();
    assert_eq!(stale_permissions(&[File::new("src/upkeep.rs", "Timestamp::now()")]).len(), permissions - 1);
}
