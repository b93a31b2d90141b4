//! Typed access to a parsed file; the reader collects problems and continues.
//! Does this value have the expected type?

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use toml::de::{DeTable, DeValue};

use super::files::FileTracker;
use super::pending_rollback::Overlay;
use super::problem::{Problem, SourceMap, SourceSpan, closest_match};
#[cfg(test)]
use super::schema::tests::observe;
use super::schema::{Schema, UnknownKey};
use super::units::{self, ValueError};
use super::{KeyDirs, Located};

/// Looks up environment variables, for `env:NAME` and `$CREDENTIALS_DIRECTORY`.
pub type Environment<'e> = dyn Fn(&str) -> Option<OsString> + 'e;

/// The state of one load: its inputs, and the problems and paths that it collects.
pub(super) struct Reader<'e> {
    pub(super) environment: &'e Environment<'e>,
    pub(super) sources: SourceMap,
    pub(super) files: FileTracker,
    /// The key directories of the previous load, whose unchanged folders are reused.
    pub(super) previous_key_dirs: &'e KeyDirs,
    pub(super) key_dirs: KeyDirs,
    pub(super) problems: Vec<Problem>,
    /// Syntax errors, kept apart: other problems on the same line are mostly their consequences.
    pub(super) syntax_errors: Vec<Problem>,
    /// Files that replace those on disk, such as those of an unfinished rollback.
    pub(super) overlay: Option<Overlay>,
    /// The folder with the files of the fleet's bundle. `None`: the configuration has none.
    pub(super) bundle_dir: Option<PathBuf>,
    pub(super) declared_sections: super::DeclaredSections,
}

/// A table whose unknown keys have been reported.
pub(super) struct Table<'a> {
    pub(super) span: SourceSpan,
    /// Dotted: `egress.default`; empty for a file.
    pub(super) key: String,
    /// `None`: the table is not written.
    entries: Option<&'a DeTable<'a>>,
    schema: &'static Schema,
    /// Keys that the operator wrote under another name; they do not count as missing.
    aliased: Vec<&'static str>,
}

/// A value of any type, and the dotted key that it belongs to.
pub(super) struct Value<'a> {
    pub(super) span: SourceSpan,
    pub(super) key: String,
    pub(super) node: &'a DeValue<'a>,
}

/// The advice for an empty list; `None`: the list may be empty.
pub(super) type EmptyListHelp = Option<&'static str>;

impl<'a> Value<'a> {
    pub(super) fn located<T>(&self, value: T) -> Located<T> {
        Located { value, span: self.span }
    }

    fn child(&self, node: &'a toml::Spanned<DeValue<'a>>, key: String) -> Value<'a> {
        Value { span: SourceSpan::new(self.span.file, node.span()), key, node: node.get_ref() }
    }

    fn type_description(&self) -> &'static str {
        match self.node {
            DeValue::String(_) => "this is a string",
            DeValue::Integer(_) => "this is a whole number",
            DeValue::Float(_) => "this is a decimal number",
            DeValue::Boolean(_) => "this is true or false",
            DeValue::Datetime(_) => "this is a date or time",
            DeValue::Array(_) => "this is a list",
            DeValue::Table(_) => "this is a table",
        }
    }

    pub(super) fn is_table(&self) -> bool {
        self.node.is_table()
    }

    pub(super) fn is_boolean(&self) -> bool {
        self.node.is_bool()
    }

    /// Returns whether the value is `false` or `[]`, which request nothing.
    pub(super) fn is_empty_or_false(&self) -> bool {
        match self.node {
            DeValue::Boolean(written) => !written,
            DeValue::Array(array) => array.is_empty(),
            _ => false,
        }
    }
}

impl<'a> Table<'a> {
    pub(super) fn from_file(
        reader: &mut Reader<'_>,
        file: u16,
        root: &'a DeTable<'a>,
        schema: &'static Schema,
    ) -> Self {
        Self::checked(reader, SourceSpan::new(file, 0..0), String::new(), root, schema)
    }

    /// Opens a value as a table, and reports keys that the schema does not have.
    pub(super) fn open(reader: &mut Reader<'_>, value: &Value<'a>, schema: &'static Schema) -> Option<Self> {
        let DeValue::Table(entries) = value.node else {
            let help = format!("write {} with its keys: {}", schema.title, schema.keys.join(", "));
            reader.wrong_type(value, "a table", help);
            return None;
        };
        Some(Self::checked(reader, value.span, value.key.clone(), entries, schema))
    }

    /// Returns the section `key` of a file; an empty table if it is not written.
    pub(super) fn section(&self, reader: &mut Reader<'_>, key: &str, schema: &'static Schema) -> Self {
        let value = self.read(reader, key, |reader, value| Self::open(reader, value, schema));
        value.unwrap_or_else(|| Self { span: self.span, key: key.into(), entries: None, schema, aliased: Vec::new() })
    }

    fn checked(
        reader: &mut Reader<'_>,
        span: SourceSpan,
        key: String,
        entries: &'a DeTable<'a>,
        schema: &'static Schema,
    ) -> Self {
        #[cfg(test)]
        observe::table(&key, schema);
        let mut table = Self { span, key, entries: Some(entries), schema, aliased: Vec::new() };
        for (word, node) in entries {
            if !schema.contains(word.get_ref()) {
                let value = Value {
                    span: SourceSpan::new(span.file, word.span()),
                    key: table.child_key(word.get_ref()),
                    node: node.get_ref(),
                };
                table.aliased.extend(reader.unknown_key(&value, word.get_ref(), schema));
            }
        }
        table
    }

    pub(super) fn child_key(&self, key: &str) -> String {
        if self.key.is_empty() { key.into() } else { format!("{}.{key}", self.key) }
    }

    pub(super) fn get(&self, key: &str) -> Option<Value<'a>> {
        debug_assert!(self.schema.contains(key), "{key} is not a key of {}", self.schema.title);
        let node = self.entries?.get(key)?;
        Some(Value {
            span: SourceSpan::new(self.span.file, node.span()),
            key: self.child_key(key),
            node: node.get_ref(),
        })
    }

    pub(super) fn read<T>(
        &self,
        reader: &mut Reader<'_>,
        key: &str,
        read: impl FnOnce(&mut Reader<'_>, &Value<'a>) -> Option<T>,
    ) -> Option<T> {
        self.get(key).and_then(|value| read(reader, &value))
    }

    pub(super) fn read_list<T>(
        &self,
        reader: &mut Reader<'_>,
        key: &str,
        if_empty: EmptyListHelp,
        mut read: impl FnMut(&mut Reader<'_>, &Value<'a>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let list = reader.list(&self.get(key)?, if_empty)?;
        Some(list.iter().filter_map(|value| read(reader, value)).collect())
    }

    /// Returns whether the key is written, even under an alias.
    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some() || self.aliased.contains(&key)
    }

    /// Returns one span per entry, from its key to the end of its value.
    pub(super) fn key_spans(&self) -> Vec<SourceSpan> {
        let entries = self.entries.into_iter().flatten();
        entries.map(|(key, value)| SourceSpan::new(self.span.file, key.span().start..value.span().end)).collect()
    }

    /// Reports a problem if the key is not written.
    pub(super) fn require(&self, reader: &mut Reader<'_>, key: &'static str, help: &str) {
        #[cfg(test)]
        observe::required(&self.key, key);
        if !self.has(key) && !reader.has_syntax_errors(self.span.file) {
            reader.problems.push(Problem::at(self.span, format!("`{}` has no `{key}`", self.key)).help(help));
        }
    }
}

impl Reader<'_> {
    pub(super) fn has_syntax_errors(&self, file: u16) -> bool {
        self.syntax_errors.iter().any(|problem| problem.span.is_some_and(|span| span.file == file))
    }

    pub(super) fn wrong_type(&mut self, value: &Value<'_>, expected: &str, help: impl Into<String>) {
        let message = format!("`{}` is not {expected}", value.key);
        self.problems.push(Problem::at(value.span, message).label(value.type_description()).help(help));
    }

    /// Reports a key that the table does not have. Returns the key that was probably intended.
    fn unknown_key(&mut self, value: &Value<'_>, word: &str, schema: &'static Schema) -> Option<&'static str> {
        let problem = Problem::at(value.span, format!("unknown key `{}`", value.key));
        let (problem, intended) = match schema.classify(word) {
            UnknownKey::Reserved if value.is_empty_or_false() => return None,
            UnknownKey::Reserved => {
                let message = format!("this version does not support \"{word}\" yet");
                (Problem::at(value.span, message).help("remove it"), None)
            }
            UnknownKey::Alias(name) => (problem.help(format!("this is called `{name}`")), Some(name)),
            UnknownKey::Similar(name) => (problem.help(format!("did you mean `{name}`?")), Some(name)),
            UnknownKey::OtherTable(title) => (problem.help(format!("`{word}` belongs to {title}")), None),
            UnknownKey::Unrecognized => {
                (problem.help(format!("the keys of {} are {}", schema.title, schema.keys.join(", "))), None)
            }
        };
        self.problems.push(problem);
        intended
    }

    pub(super) fn text<'a>(&mut self, value: &Value<'a>) -> Option<&'a str> {
        #[cfg(test)]
        observe::shape(&value.key, observe::Shape::Text(None));
        let DeValue::String(text) = value.node else {
            self.wrong_type(value, "a string", "write a string, in quotes");
            return None;
        };
        Some(text)
    }

    /// Parses a string or a TOML date-time.
    pub(super) fn parse<T>(
        &mut self,
        value: &Value<'_>,
        parse: fn(&str) -> Result<T, ValueError>,
    ) -> Option<Located<T>> {
        #[cfg(test)]
        observe::shape(&value.key, observe::Shape::Text(parse("").err().map(|error| error.expected)));
        let (unquoted, text) = match value.node {
            DeValue::String(text) => (false, text.to_string()),
            // TOML has a type for times, so they need no quotes.
            DeValue::Datetime(time) => (false, time.to_string()),
            DeValue::Integer(number) => (true, number.to_string()),
            DeValue::Float(number) => (true, number.to_string()),
            DeValue::Boolean(_) | DeValue::Array(_) | DeValue::Table(_) => {
                self.wrong_type(value, "a string", "write one string, in quotes");
                return None;
            }
        };
        match parse(&text) {
            Ok(_) if unquoted => self.wrong_type(value, "a string", "write it in quotes"),
            Ok(parsed) => return Some(value.located(parsed)),
            Err(ValueError { expected, reason, help }) => {
                let message = format!("`{}` is not {expected}", value.key);
                self.problems.push(Problem::at(value.span, message).label(reason).help(help));
            }
        }
        None
    }

    pub(super) fn boolean(&mut self, value: &Value<'_>) -> Option<Located<bool>> {
        #[cfg(test)]
        observe::shape(&value.key, observe::Shape::Boolean);
        let DeValue::Boolean(written) = value.node else {
            self.wrong_type(value, "true or false", "write true or false, without quotes");
            return None;
        };
        Some(value.located(*written))
    }

    pub(super) fn integer(&mut self, value: &Value<'_>, range: RangeInclusive<u32>) -> Option<Located<u32>> {
        #[cfg(test)]
        observe::shape(&value.key, observe::Shape::Integer(*range.start(), *range.end()));
        let help = format!("write a whole number from {} to {}, without quotes", range.start(), range.end());
        let DeValue::Integer(written) = value.node else {
            self.wrong_type(value, "a whole number", help);
            return None;
        };
        let number = u32::from_str_radix(written.as_str(), written.radix()).ok();
        let Some(number) = number.filter(|number| range.contains(number)) else {
            self.problems.push(Problem::at(value.span, format!("`{}` is out of range", value.key)).help(help));
            return None;
        };
        Some(value.located(number))
    }

    pub(super) fn port(&mut self, value: &Value<'_>) -> Option<Located<u16>> {
        let port = self.integer(value, 1..=u16::MAX.into())?;
        u16::try_from(port.value).ok().map(|port| value.located(port))
    }

    /// Parses one of a few fixed words.
    pub(super) fn parse_choice<T: Copy>(&mut self, value: &Value<'_>, choices: &[(&str, T)]) -> Option<Located<T>> {
        #[cfg(test)]
        observe::shape(
            &value.key,
            observe::Shape::Choice(choices.iter().map(|(word, _)| (*word).to_owned()).collect()),
        );
        let quoted: Vec<String> = choices.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        let all = format!("write one of {}", quoted.join(", "));
        let DeValue::String(text) = value.node else {
            self.wrong_type(value, "a string", all);
            return None;
        };
        if let Some((_, chosen)) = choices.iter().find(|(word, _)| *word == text) {
            return Some(value.located(*chosen));
        }
        let closest = closest_match(&text.to_ascii_lowercase(), choices.iter().map(|(word, _)| *word));
        self.report_unknown_value(value, closest.map_or(all, |word| format!("did you mean \"{word}\"?")));
        None
    }

    pub(super) fn report_unknown_value(&mut self, value: &Value<'_>, help: impl Into<String>) {
        self.problems.push(Problem::at(value.span, format!("unknown value for `{}`", value.key)).help(help));
    }

    pub(super) fn list<'a>(&mut self, value: &Value<'a>, if_empty: EmptyListHelp) -> Option<Vec<Value<'a>>> {
        #[cfg(test)]
        observe::shape(&value.key, observe::Shape::List { not_empty: if_empty.is_some() });
        let DeValue::Array(array) = value.node else {
            let help = if value.is_table() { "write a list, [ … ]" } else { "write a list: put [ and ] around it" };
            self.wrong_type(value, "a list", help);
            return None;
        };
        if let Some(help) = if_empty.filter(|_| array.is_empty()) {
            self.problems.push(Problem::at(value.span, format!("`{}` is empty", value.key)).help(help));
        }
        Some(array.iter().map(|node| value.child(node, value.key.clone())).collect())
    }

    /// Returns the members of a table whose keys are names, in the order of the text.
    pub(super) fn members<'a>(&mut self, value: &Value<'a>, help: &str) -> Vec<(Located<&'a str>, Value<'a>)> {
        let DeValue::Table(entries) = value.node else {
            self.wrong_type(value, "a table", help);
            return Vec::new();
        };
        let member = |(word, node): (&'a toml::Spanned<_>, &'a toml::Spanned<_>)| {
            let name: &'a std::borrow::Cow<'a, str> = word.get_ref();
            let at = Located { value: &**name, span: SourceSpan::new(value.span.file, word.span()) };
            (at, value.child(node, format!("{}.{name}", value.key)))
        };
        #[cfg(test)]
        observe::members(&value.key, entries.keys().map(|word| word.get_ref().as_ref()));
        let mut members: Vec<_> = entries.iter().map(member).collect();
        members.sort_by_key(|(name, _)| name.span);
        members
    }

    /// Returns the named tables `[section.NAME]` of all files, and reports duplicate names.
    pub(super) fn named_tables<'a>(
        &mut self,
        files: &[Table<'a>],
        section: &str,
        schema: &'static Schema,
    ) -> Vec<(&'a str, Table<'a>)> {
        let mut first = BTreeMap::new();
        let mut tables = Vec::new();
        for value in files.iter().filter_map(|file| file.get(section)) {
            let help = format!("give it a name: write [{section}.NAME]");
            for (name, value) in self.members(&value, &help) {
                if !value.is_table() {
                    self.wrong_type(&value, "a table", help.as_str());
                    continue;
                }
                if let Err(error) = units::name(&name) {
                    let message = format!("`{}` is not {}", value.key, error.expected);
                    self.problems.push(Problem::at(name.span, message).label(error.reason).help(error.help));
                }
                let Some(table) = Table::open(self, &value, schema) else { continue };
                if let Some(first) = first.insert(name.value, name.span) {
                    let message = format!("`{}` is defined twice", value.key);
                    let problem = Problem::at(name.span, message).label("again here").related(first, "first here");
                    self.problems.push(problem.help("give one of them another name"));
                }
                self.declared_sections.add(section, name.value, table.span, table.key_spans());
                tables.push((name.value, table));
            }
        }
        tables
    }
}
