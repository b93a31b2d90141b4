//! `config.toml.example` documents what the code reads, all of it and nothing else.
//! Has the example drifted from the configuration?

use std::collections::BTreeSet;
use std::path::Path;

use outgate::config::{self, Deliveries, Loaded};
use toml::de::{DeTable, DeValue};

fn load(path: &str) -> Loaded {
    config::load_in(Path::new(path), &|_| None)
        .unwrap_or_else(|rejected| panic!("{}", config::render(&rejected.problems, &rejected.sources, false)))
}

#[test]
fn the_example_loads_as_it_stands() {
    let loaded = load("config.toml.example");
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
}

#[test]
fn the_example_states_the_defaults() {
    let (example, bare) = (load("config.toml.example").config, load("tests/golden/bare.toml").config);
    let general = |config: &config::Config| {
        let Deliveries::Stdout = config.log.deliveries.value else { panic!("{:?}", config.log) };
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

/// The example with the settings that it leaves out: lines that start with # and no space.
fn with_all_settings() -> String {
    let line = |line: &'static str| match line.strip_prefix('#') {
        Some(setting) if !setting.is_empty() && !setting.starts_with(' ') => setting,
        _ => line,
    };
    include_str!("../config.toml.example").lines().map(|text| line(text).to_owned() + "\n").collect()
}

/// Dotted, with * where the operator gives a name.
fn keys(table: &DeTable<'_>, path: &str, found: &mut BTreeSet<String>) {
    for (key, value) in table {
        let named = ["egress", "clients", "trust", "signers", "credentials", "limits"].contains(&path);
        let key = if named { "*" } else { key.get_ref() };
        let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        if !named {
            found.insert(path.clone());
        }
        match value.get_ref() {
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
fn the_example_has_every_key_and_no_other() {
    let text = with_all_settings();
    let mut found = BTreeSet::new();
    keys(DeTable::parse(&text).unwrap().get_ref(), "", &mut found);
    assert_eq!(found, config::known_keys().collect());
}

#[test]
fn every_key_of_the_example_has_its_comment() {
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

#[test]
fn what_the_package_installs_loads() {
    assert!(load("packaging/config.toml").warnings.is_empty());
}
