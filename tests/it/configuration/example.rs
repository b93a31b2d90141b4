//! A comparison of `config.toml.example` with the keys that the code reads.
//! Does the example document every key and no other?

use std::collections::BTreeSet;
use std::path::Path;

use crate::support::configuration::Replace;
use outgate::config::{self, DeliveryLog, Loaded};
use toml::de::{DeTable, DeValue};

fn load(path: &str) -> Loaded {
    config::load_with_environment(Path::new(path), &|_| None)
        .unwrap_or_else(|rejected| panic!("{}", config::render(&rejected.problems, &rejected.sources, false)))
}

#[test]
fn example_configuration_loads() {
    let loaded = load("config.toml.example");
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
}

#[test]
fn example_configuration_states_the_defaults() {
    let (example, bare) = (load("config.toml.example").config, load("tests/golden/bare.toml").config);
    let general = |config: &config::Config| {
        let DeliveryLog::Stdout = config.log.deliveries.value else { panic!("{:?}", config.log) };
        format!(
            "{:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?}",
            config.server.name,
            config.server.listen[0].address,
            config.server.allow_anonymous.value,
            config.server.max_connections.as_ref().map_or(20_000, |written| written.value),
            config.server.max_connections_per_ip,
            config.server.max_deliveries,
            config.server.drain_timeout,
            config.server.workers,
            config.admin.listen[0].address,
            config.guard.ports[0].value,
            config.resolver.hosts,
            config.timeouts,
            config.log.level,
        )
    };
    assert_eq!(general(&example), general(&bare));
}

/// Returns the example with its optional settings, which are lines that start with # and no space.
pub(super) fn with_all_settings() -> String {
    let line = |line: &'static str| match line.strip_prefix('#') {
        Some(setting) if !setting.is_empty() && !setting.starts_with(' ') => setting,
        _ => line,
    };
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/config.toml.example"))
        .lines()
        .map(|text| line(text).to_owned() + "\n")
        .collect()
}

/// Returns a dotted path, with * in place of an operator's name.
fn keys(table: &DeTable<'_>, path: &str, found: &mut BTreeSet<String>) {
    for (key, value) in table {
        let named = [
            "admin.users",
            "egress",
            "clients",
            "trust",
            "signers",
            "credentials",
            "limits",
            "captures",
            "traces.headers",
            "fleet.operators",
        ]
        .contains(&path);
        let key = if named { "*" } else { key.get_ref() };
        let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        if !named {
            found.insert(path.clone());
        }
        match value.get_ref() {
            // The settings of `server.tls` and `trust.NAME.identity`, which have them.
            DeValue::Table(_) if ["admin.listen.tls", "publish.listen.tls", "fleet.identity"].contains(&&*path) => {}
            DeValue::Table(table) => keys(table, &path, found),
            DeValue::Array(array) => {
                let tables = array.iter().filter_map(|element| element.get_ref().as_table());
                tables.for_each(|table| keys(table, &path, found));
            }
            _ => {}
        }
    }
}

#[test]
fn example_configuration_has_every_key_and_no_other() {
    let text = with_all_settings();
    let mut found = BTreeSet::new();
    keys(DeTable::parse(&text).unwrap().get_ref(), "", &mut found);
    assert_eq!(found, config::known_keys().collect());
}

#[test]
fn example_configuration_has_a_comment_for_every_key() {
    let mut comment = false;
    let mut open = 0;
    for line in with_all_settings().lines() {
        let key = line
            .split_once(" = ")
            .filter(|(key, _)| open == 0 && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
        assert!(key.is_none() || comment, "no comment above: {line}");
        open += line.matches(['[', '{']).count();
        open -= line.matches([']', '}']).count();
        comment = line.starts_with("# ");
    }
}

const WIDTH: usize = 118;

/// Renders a comment as Markdown, with quoted text as code.
fn rendered(comment: &str) -> String {
    let mut out = String::new();
    let mut rest = comment;
    while let Some(at) = rest.find(['"', '`', '*']) {
        let (before, from) = rest.split_at(at);
        out += before;
        let mark = &from[..1];
        let end = from[1..].find(mark).filter(|_| mark != "*").map_or(0, |end| end + 1);
        match mark {
            "*" => out += "\\*",
            "`" => out += &from[..=end],
            _ => out += &format!("`{}`", &from[..=end]),
        }
        rest = &from[end + 1..];
    }
    let mut lines = vec![String::new()];
    for word in (out + rest).split(' ') {
        let line = lines.last_mut().expect("a line");
        match line.is_empty() {
            true => word.clone_into(line),
            false if line.len() + 1 + word.len() <= WIDTH => *line += &format!(" {word}"),
            false => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}

/// Returns the keys of a table in the order of the parser.
fn keys_of(table: &str) -> Vec<String> {
    let prefix = if table.is_empty() { String::new() } else { format!("{table}.") };
    let keys = config::known_keys().filter_map(|key| key.strip_prefix(&prefix).map(str::to_owned));
    keys.filter(|key| !key.contains('.')).collect()
}

fn code_list(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Returns the path of a table in `known_keys`, and its heading. Further examples have their name in the heading.
fn table_of(header: &str, received: &mut BTreeSet<String>) -> (String, String) {
    let name = header.trim_matches(['[', ']']);
    let Some((kind, _)) = name.rsplit_once('.') else {
        return (name.to_owned(), format!("`{header}`"));
    };
    let first = received.insert(kind.to_owned());
    let heading = if first { format!("`[{kind}.NAME]`") } else { format!("Another example: `{header}`") };
    (format!("{kind}.*"), heading)
}

/// Renders `docs/configuration.md`: the tables and keys of the parser, with the values and comments of the example.
fn reference() -> (String, BTreeSet<String>) {
    let mut page = include_str!("configuration.head.md").to_owned();
    page += &format!("\n## The main file\n\nKeys and tables: {}.\n", code_list(&keys_of("")));
    let (mut table, mut received, mut found) = (String::new(), BTreeSet::new(), BTreeSet::new());
    let (mut comment, mut open) = (Vec::new(), 0_usize);
    let mut entry: Option<(String, Vec<String>, String)> = None;
    for line in include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/config.toml.example")).lines() {
        if let Some(text) = line.strip_prefix("# ") {
            comment.push(text);
            continue;
        }
        let setting = line.strip_prefix('#').unwrap_or(line);
        let balance = setting.matches(['[', '{']).count();
        if open > 0 {
            let (_, lines, _) = entry.as_mut().expect("an open entry");
            lines.push(if line.starts_with('#') { format!("  {setting}") } else { line.to_owned() });
        } else if setting.starts_with('[') {
            let (path, heading) = table_of(setting, &mut received);
            found.extend(path.strip_suffix(".*").filter(|kind| kind.contains('.')).map(str::to_owned));
            page += &format!("\n## {heading}\n\n{}\n", rendered(&comment.join(" ")));
            if !heading.starts_with("Another") {
                page += &format!("\nKeys: {}.\n", code_list(&keys_of(&path)));
            }
            table = path;
        } else if let Some((key, _)) = setting.split_once(" = ").filter(|_| !comment.concat().starts_with("As above")) {
            let left_out = if line.starts_with('#') { "Not set in the example. " } else { "" };
            let path = if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") };
            let text = rendered(&format!("{left_out}{}", comment.join(" ")));
            entry = Some((path, vec![setting.to_owned()], text));
        }
        comment.clear();
        open = open + balance - setting.matches([']', '}']).count();
        if let Some((path, lines, text)) = entry.take_if(|_| open == 0) {
            let title = path.replace('*', "NAME");
            page += &format!("\n### `{title}`\n\n```toml\n{}\n```\n\n{text}\n", lines.join("\n"));
            let inner = keys_of(&path);
            if !inner.is_empty() {
                page += &format!("\nKeys of this table: {}.\n", code_list(&inner));
                found.extend(inner.iter().map(|key| format!("{path}.{key}")));
            }
            found.insert(path);
        }
    }
    (page, found)
}

/// This command writes the page again: `BLESS=1 cargo test --test it configuration::example::`.
#[test]
fn configuration_reference_is_generated_from_the_example() {
    let (page, found) = reference();
    let tables = keys_of("").into_iter().filter(|key| !["include", "acknowledge"].contains(&key.as_str()));
    let expected: BTreeSet<String> = config::known_keys().collect();
    let tables: BTreeSet<String> = tables.collect();
    assert_eq!(found.union(&tables).cloned().collect::<BTreeSet<_>>(), expected, "a key is missing in the page");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &page).expect("the page is written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = written.lines().zip(page.lines()).find(|(written, made)| written != made);
    assert!(written == page, "the page differs: write it again with BLESS=1: {differs:?}");
}

#[test]
fn packaged_configuration_loads() {
    assert!(load("packaging/config.toml").warnings.is_empty());
}

#[test]
fn readme_configuration_loads() {
    let readme = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md"));
    let section = readme.split("\n## Ten lines\n").nth(1).expect("the section");
    let toml = section.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("the configuration");
    assert_eq!(toml.lines().count(), 10, "{toml}");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ten_lines");
    std::fs::create_dir_all(&folder).expect("a folder");
    let key = folder.join("platform");
    std::fs::write(&key, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("a key");
    let toml = toml.replace_one("/etc/outgate/keys/platform-2026-11", &key.display().to_string());
    let path = folder.join("config.toml");
    std::fs::write(&path, toml).expect("a configuration");
    let loaded = load(&path.display().to_string()).config;
    assert_eq!(loaded.routes.len(), 1);
}
