//! Removes secrets from the texts of a support bundle.
//! Which parts of a text may support not see?

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::config::{Config, SourceMap};
use crate::policy::redact::Redactor;

/// The text in place of a secret.
const MASK: &str = "***";
/// The shortest text that is searched as a secret: a shorter one would match by chance.
const SECRET_MIN: usize = 8;
/// Words before a credential in a header field (RFC 7617, RFC 6750).
const CREDENTIAL_SCHEMES: [&str; 2] = ["Basic", "Bearer"];
/// Settings of a unit whose values may be secrets.
const SECRET_SETTINGS: [&str; 4] = ["Environment", "SetCredential", "SetCredentialEncrypted", "PassEnvironment"];
/// Fields of a record that may have a secret of a target: Slack, Discord and others have it in the path.
const SECRET_FIELDS: [&str; 1] = ["path"];

/// The rules of one bundle. The configuration may show more in its own logs (`redact.path = "full"`); a bundle leaves
/// the host, and has the strictest rules.
pub(super) struct Scrubber {
    redactor: Redactor,
    /// The contents of the files and variables that the configuration refers to.
    secrets: BTreeSet<Vec<u8>>,
}

impl Scrubber {
    /// `None`: the configuration is not valid, and its secrets were not read.
    pub(super) fn new(config: Option<&Config>) -> Self {
        let mut scrubber = Self { redactor: Redactor::default(), secrets: BTreeSet::new() };
        let Some(config) = config else { return scrubber };
        let texts: BTreeSet<_> = sources(&config.sources).map(|(path, _)| path).collect();
        for path in config.files.iter().filter(|path| !texts.contains(path.as_path())) {
            fs::read(path).into_iter().for_each(|content| scrubber.add(&content));
        }
        for (_, text) in sources(&config.sources) {
            let names = text.split("\"env:").skip(1).filter_map(|rest| rest.split('"').next());
            for value in names.filter_map(std::env::var_os) {
                scrubber.add(value.as_encoded_bytes());
            }
        }
        scrubber
    }

    fn add(&mut self, content: &[u8]) {
        let lines = content.split(|byte| *byte == b'\n').chain([content]);
        let secrets = lines.map(<[u8]>::trim_ascii).filter(|line| line.len() >= SECRET_MIN);
        self.secrets.extend(secrets.map(<[u8]>::to_vec));
    }

    /// Returns a file of the configuration without comments, secrets and the random parts of values.
    pub(super) fn toml(&self, redacted: &str) -> String {
        match redacted.parse::<toml::Table>() {
            Ok(mut table) => {
                table.iter_mut().for_each(|(_, value)| self.toml_value(value));
                table.to_string()
            }
            // Its structure is unknown, and so is what may be secret.
            Err(_) => "# The file is not valid TOML: it is left out.\n".to_owned(),
        }
    }

    fn toml_value(&self, value: &mut toml::Value) {
        match value {
            toml::Value::String(text) => *text = self.line(text),
            toml::Value::Array(values) => values.iter_mut().for_each(|value| self.toml_value(value)),
            toml::Value::Table(table) => table.iter_mut().for_each(|(_, value)| self.toml_value(value)),
            _ => {}
        }
    }

    /// Returns a message or a value without queries, random words, phone numbers and HTTP credentials.
    pub(super) fn line(&self, text: &str) -> String {
        let text = self.redactor.message(text).to_string();
        let is_scheme = |word: &str| CREDENTIAL_SCHEMES.iter().any(|scheme| word.eq_ignore_ascii_case(scheme));
        let mut before = "";
        let words =
            text.split(' ').map(|word| if is_scheme(std::mem::replace(&mut before, word)) { MASK } else { word });
        words.collect::<Vec<_>>().join(" ")
    }

    /// Returns lines of a log. A line of JSON is scrubbed field by field.
    pub(super) fn lines(&self, text: &str) -> String {
        let line = |line: &str| match serde_json::from_str::<Value>(line) {
            Ok(value @ Value::Object(_)) => self.json(value).to_string() + "\n",
            _ => self.line(line) + "\n",
        };
        text.lines().map(line).collect()
    }

    pub(super) fn json(&self, value: Value) -> Value {
        match value {
            Value::String(text) => self.line(&text).into(),
            Value::Array(values) => values.into_iter().map(|value| self.json(value)).collect(),
            Value::Object(fields) => fields
                .into_iter()
                .map(|(name, value)| match SECRET_FIELDS.contains(&name.as_str()) && value.is_string() {
                    true => (name, MASK.into()),
                    false => (name, self.json(value)),
                })
                .collect(),
            other => other,
        }
    }

    /// Returns the text of a unit without the values that may be secrets.
    pub(super) fn unit(&self, text: &str) -> String {
        let line = |line: &str| match line.split_once('=') {
            Some((key, _)) if SECRET_SETTINGS.contains(&key.trim()) => format!("{key}={MASK}\n"),
            _ => format!("{line}\n"),
        };
        text.lines().map(line).collect()
    }

    /// Replaces whatever is a secret of the configuration after all.
    pub(super) fn last(&self, mut content: Vec<u8>) -> Vec<u8> {
        for secret in self.secrets.iter().rev() {
            while let Some(at) = memchr::memmem::find(&content, secret) {
                content.splice(at..at + secret.len(), MASK.bytes());
            }
        }
        content
    }
}

/// Returns the files of a configuration, with the text that problems may show.
pub(super) fn sources(sources: &SourceMap) -> impl Iterator<Item = (&std::path::Path, &str)> {
    (0..).map_while(move |file| sources.get(file))
}
