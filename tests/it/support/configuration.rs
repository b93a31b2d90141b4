//! A configuration that a test changes key by key, and text that a test changes word by word.
//! How does a test change the usual configuration, so that a misspelt key fails the test?

use std::fmt;

use serde::Serialize;
use toml::{Table, Value};

/// Returns the hash of a token, in the form of the configuration.
pub fn token_hash(token: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes());
    format!("sha256:{}", data_encoding::HEXLOWER.encode(digest.as_ref()))
}

/// A configuration document. Its methods return a changed copy. They panic if a key to replace or remove does not
/// exist, or a key to add does.
///
/// A path is dotted. Routes are an array of tables, so a segment below `routes` is the name of a route, or `*` for every
/// route.
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct Config(Table);

impl Config {
    pub fn parse(text: &str) -> Self {
        Self(text.parse().unwrap_or_else(|error| panic!("{error}\n{text}")))
    }

    /// Replaces the value of a key that exists.
    pub fn set(&self, path: &str, value: impl Serialize) -> Self {
        let value = Value::try_from(value).unwrap();
        self.changed(path, |table, key| match table.get_mut(key) {
            Some(old) => *old = value.clone(),
            None => panic!("{path} does not exist"),
        })
    }

    /// Adds a key that does not exist, and the tables above it.
    pub fn add(&self, path: &str, value: impl Serialize) -> Self {
        let value = Value::try_from(value).unwrap();
        self.changed(path, |table, key| {
            assert!(table.insert(key.into(), value.clone()).is_none(), "{path} exists already");
        })
    }

    /// Appends an element to an array that exists.
    pub fn push(&self, path: &str, value: impl Serialize) -> Self {
        let value = Value::try_from(value).unwrap();
        self.changed(path, |table, key| match table.get_mut(key) {
            Some(Value::Array(array)) => array.push(value.clone()),
            other => panic!("{path} is no array: {other:?}"),
        })
    }

    /// Removes a key that exists.
    pub fn remove(&self, path: &str) -> Self {
        self.changed(path, |table, key| {
            assert!(table.remove(key).is_some(), "{path} does not exist");
        })
    }

    /// Adds keys in TOML to a route.
    pub fn route(&self, name: &str, more: &str) -> Self {
        self.changed(&format!("routes.{name}.name"), |route, _| merge(route, Self::parse(more).0))
    }

    /// Pins a name to an address, without DNS.
    pub fn host(&self, name: &str, address: &str) -> Self {
        let mut copy = self.clone();
        let hosts = copy.0["resolver"]["hosts"].as_table_mut().unwrap();
        hosts.insert(name.into(), vec![address].into());
        copy
    }

    /// Adds sections in TOML. Routes come after those that exist.
    pub fn and(&self, more: &str) -> Self {
        let mut copy = self.clone();
        merge(&mut copy.0, Self::parse(more).0);
        copy
    }

    fn changed(&self, path: &str, mut change: impl FnMut(&mut Table, &str)) -> Self {
        let mut copy = self.clone();
        let segments: Vec<_> = path.split('.').collect();
        descend(&mut copy.0, path, &segments, &mut change);
        copy
    }
}

impl fmt::Display for Config {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

fn descend(table: &mut Table, path: &str, segments: &[&str], change: &mut impl FnMut(&mut Table, &str)) {
    let [segment, rest @ ..] = segments else { unreachable!("a path has a segment") };
    let [name, below @ ..] = rest else { return change(table, segment) };
    match table.entry(*segment).or_insert_with(|| Table::new().into()) {
        Value::Table(inner) => descend(inner, path, rest, change),
        Value::Array(routes) => {
            let mut matches = 0;
            for route in routes.iter_mut().filter_map(Value::as_table_mut) {
                if *name == "*" || route.get("name").and_then(Value::as_str) == Some(*name) {
                    matches += 1;
                    descend(route, path, below, change);
                }
            }
            assert_ne!(matches, 0, "{path}: no {name} in {segment}");
        }
        other => panic!("{path}: {segment} is {other}"),
    }
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (None, value) => drop(into.insert(key, value)),
            (Some(Value::Table(into)), Value::Table(from)) => merge(into, from),
            (Some(Value::Array(into)), Value::Array(from)) if from.first().is_some_and(Value::is_table) => {
                into.extend(from)
            }
            (Some(old), _) => panic!("{key} is {old} already"),
        }
    }
}

/// Replacements that panic if the text does not contain `old`.
pub trait Replace {
    /// Replaces the only occurrence of `old`.
    fn replace_one(&self, old: &str, new: &str) -> String;
    /// Replaces every occurrence of `old`: there is at least one.
    fn replace_all(&self, old: &str, new: &str) -> String;
}

impl Replace for str {
    fn replace_one(&self, old: &str, new: &str) -> String {
        assert_eq!(self.matches(old).count(), 1, "{old:?} in {self}");
        self.replace(old, new)
    }
    fn replace_all(&self, old: &str, new: &str) -> String {
        assert!(self.contains(old), "no {old:?} in {self}");
        self.replace(old, new)
    }
}

/// The builder's own tests: a change that changes nothing must fail.
mod tests {
    const TEXT: &str =
        "[server]\nlisten = [\"a\"]\n[[routes]]\nname = \"one\"\n[[routes]]\nname = \"two\"\nports = [1]\n";

    #[test]
    fn a_change_of_a_configuration_that_matches_nothing_panics() {
        let config = super::Config::parse(TEXT);
        type Change = fn(&super::Config) -> super::Config;
        let changes: [(&str, Change); 8] = [
            ("the key is misspelt", |config| config.set("server.liste", ["b"])),
            ("one route lacks the key", |config| config.set("routes.*.ports", [2])),
            ("no such route", |config| config.set("routes.three.ports", [2])),
            ("the key exists", |config| config.add("routes.two.ports", [2])),
            ("the section exists", |config| config.and("[server]\nlisten = []\n")),
            ("the array does not exist", |config| config.push("routes.one.ports", 2)),
            ("the removed key does not exist", |config| config.remove("server.workers")),
            ("the path leads through a value", |config| config.add("server.listen.more", 1)),
        ];
        for (case, change) in changes {
            let outcome = std::panic::catch_unwind(|| change(&config));
            assert!(outcome.is_err(), "{case}: {}", outcome.unwrap());
        }
    }

    #[test]
    fn a_change_of_a_configuration_reaches_its_key_and_no_other() {
        let config = super::Config::parse(TEXT)
            .set("server.listen", ["b"])
            .add("limits.few.concurrency", 1)
            .add("routes.*.limits", ["few"])
            .push("routes.two.ports", 2)
            .and("[[routes]]\nname = \"three\"\n")
            .remove("routes.two.name");
        let expected = "[server]\nlisten = [\"b\"]\n[limits.few]\nconcurrency = 1\n[[routes]]\nname = \"one\"\n\
                        limits = [\"few\"]\n[[routes]]\nports = [1, 2]\nlimits = [\"few\"]\n[[routes]]\nname = \"three\"\n";
        assert_eq!(config, super::Config::parse(expected));
        assert_eq!(super::Config::parse(&config.to_string()), config);
    }
}
