//! One side of a comparison: a value of one file, or the merged values of several files.
//! What are the members of a value, and does it equal another?

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::redact;

/// Keys that name the tables of a list.
const NAME_KEYS: [&str; 2] = ["name", "id"];
/// The most bytes of a value that are shown.
const SHOWN_MAX: usize = 200;
/// The digits of a hash that are shown, of 64.
const HASH_SHOWN: usize = 16;

/// A parsed file.
pub(super) struct Document<'a> {
    pub(super) path: &'a Path,
    pub(super) table: DeTable<'a>,
    /// The spans of values that must not be shown, sorted by start.
    secrets: Vec<Range<usize>>,
}

impl<'a> Document<'a> {
    pub(super) fn new(path: &'a Path, text: &'a str) -> Self {
        let table = DeTable::parse_recoverable(text).0.into_inner();
        let mut secrets = redact::secret_spans(&table);
        secrets.sort_by_key(|span| span.start);
        Self { path, table, secrets }
    }

    fn is_secret(&self, span: &Range<usize>) -> bool {
        let after = self.secrets.partition_point(|secret| secret.start <= span.start);
        after > 0 && self.secrets[after - 1].end >= span.end
    }
}

#[derive(Clone)]
pub(super) enum Node<'a> {
    Value(&'a Document<'a>, &'a Spanned<DeValue<'a>>),
    /// The merged members of several files, or no members.
    Members(BTreeMap<&'a str, Node<'a>>),
    Elements(Vec<Node<'a>>),
}

impl<'a> Node<'a> {
    pub(super) fn empty() -> Self {
        Self::Members(BTreeMap::new())
    }

    /// Merges the sections of all files.
    pub(super) fn from_documents(documents: &'a [Document<'a>]) -> Self {
        let mut sections: BTreeMap<&str, Vec<Node<'_>>> = BTreeMap::new();
        for document in documents {
            for (name, value) in &document.table {
                sections.entry(name.get_ref()).or_default().push(Node::Value(document, value));
            }
        }
        Self::Members(sections.into_iter().map(|(name, parts)| (name, Self::merge(parts))).collect())
    }

    /// Merges the parts of a section from several files.
    fn merge(mut parts: Vec<Self>) -> Self {
        if parts.len() > 1 {
            let lists: Option<Vec<_>> = parts.iter().map(Self::to_list).collect();
            if let Some(lists) = lists {
                return Self::Elements(lists.concat());
            }
            let tables: Option<Vec<_>> = parts.iter().map(Self::members).collect();
            if let Some(tables) = tables {
                return Self::Members(tables.into_iter().flatten().collect());
            }
        }
        parts.swap_remove(0)
    }

    /// Returns the members by name, also of a list of tables that have names.
    pub(super) fn members(&self) -> Option<BTreeMap<&'a str, Node<'a>>> {
        if let Node::Members(members) = self {
            return Some(members.clone());
        }
        if let Node::Value(document, value) = self
            && let DeValue::Table(table) = value.get_ref()
        {
            return Some(table.iter().map(|(name, value)| (&**name.get_ref(), Node::Value(document, value))).collect());
        }
        let elements = self.to_list().filter(|elements| !elements.is_empty())?;
        let count = elements.len();
        let named: Option<BTreeMap<_, _>> =
            elements.into_iter().map(|element| Some((element.name()?, element))).collect();
        // A list with a duplicate name is a list without names.
        named.filter(|named| named.len() == count)
    }

    /// Returns the elements of a list.
    pub(super) fn elements(&self) -> Option<Vec<Node<'a>>> {
        self.to_list()
    }

    fn to_list(&self) -> Option<Vec<Node<'a>>> {
        match self {
            Node::Elements(elements) => Some(elements.clone()),
            Node::Members(_) => None,
            Node::Value(document, value) => {
                let elements = value.get_ref().as_array()?;
                Some(elements.iter().map(|value| Node::Value(document, value)).collect())
            }
        }
    }

    fn name(&self) -> Option<&'a str> {
        let Node::Value(_, value) = self else { return None };
        let table = value.get_ref().as_table()?;
        NAME_KEYS.iter().find_map(|name| table.get(*name)?.get_ref().as_str())
    }

    /// Returns whether both values mean the same, regardless of their spelling.
    pub(super) fn is_equal(&self, other: &Self) -> bool {
        match (self, other) {
            (Node::Value(_, one), Node::Value(_, other)) => values_are_equal(one.get_ref(), other.get_ref()),
            _ => false, // compared by their members
        }
    }
}

impl Node<'_> {
    /// Returns the whole text, which is equal for equal values. It may contain secrets.
    pub(super) fn canonical_text(&self) -> String {
        let mut text = String::new();
        if let Node::Value(_, value) = self {
            write_toml(None, value, &mut text);
        }
        text
    }
}

fn values_are_equal(one: &DeValue<'_>, other: &DeValue<'_>) -> bool {
    match (one, other) {
        (DeValue::String(one), DeValue::String(other)) => one == other,
        (DeValue::Integer(one), DeValue::Integer(other)) => {
            one.as_str() == other.as_str() && one.radix() == other.radix()
        }
        (DeValue::Float(one), DeValue::Float(other)) => one.as_str() == other.as_str(),
        (DeValue::Boolean(one), DeValue::Boolean(other)) => one == other,
        (DeValue::Datetime(one), DeValue::Datetime(other)) => one == other,
        (DeValue::Array(one), DeValue::Array(other)) => {
            one.len() == other.len()
                && one.iter().zip(other.iter()).all(|(one, other)| values_are_equal(one.get_ref(), other.get_ref()))
        }
        (DeValue::Table(one), DeValue::Table(other)) => {
            let has = |name: &str, value: &Spanned<_>| {
                other.get(name).is_some_and(|other| values_are_equal(value.get_ref(), other.get_ref()))
            };
            one.len() == other.len() && one.iter().all(|(name, value)| has(name.get_ref(), value))
        }
        _ => false,
    }
}

impl fmt::Display for Node<'_> {
    /// Writes the value as TOML on one line, shortened and without secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        match self {
            Node::Value(document, value) => write_toml(Some(document), value, &mut text),
            // Merged nodes are compared by their members and never shown.
            Node::Members(_) | Node::Elements(_) => text.push('…'),
        }
        let end = text.floor_char_boundary(SHOWN_MAX);
        f.write_str(&text[..end])?;
        if end < text.len() { f.write_str(" …") } else { Ok(()) }
    }
}

/// Writes a value as TOML. With a `document` the text is for display: shortened and without secrets.
fn write_toml(document: Option<&Document<'_>>, value: &Spanned<DeValue<'_>>, out: &mut String) {
    if document.is_some() && out.len() > SHOWN_MAX {
        return;
    }
    match value.get_ref() {
        DeValue::Array(array) => {
            out.push('[');
            for (number, value) in array.iter().enumerate() {
                out.push_str(if number > 0 { ", " } else { "" });
                write_toml(document, value, out);
            }
            out.push(']');
        }
        DeValue::Table(table) => {
            out.push_str("{ ");
            for (number, (name, value)) in table.iter().enumerate() {
                out.push_str(if number > 0 { ", " } else { "" });
                out.push_str(name.get_ref());
                out.push_str(" = ");
                write_toml(document, value, out);
            }
            out.push_str(" }");
        }
        _ if document.is_some_and(|document| document.is_secret(&value.span())) => out.push_str("(hidden)"),
        DeValue::String(text) => match text.strip_prefix("sha256:").filter(|_| document.is_some()) {
            Some(hash) if hash.len() > HASH_SHOWN => {
                out.push_str(&format!("\"sha256:{}…\"", &hash[..hash.floor_char_boundary(HASH_SHOWN)]));
            }
            _ => out.push_str(&format!("{:?}", &**text)),
        },
        DeValue::Integer(number) => out.push_str(&number.to_string()),
        DeValue::Float(number) => out.push_str(&number.to_string()),
        DeValue::Boolean(is) => out.push_str(if *is { "true" } else { "false" }),
        DeValue::Datetime(time) => out.push_str(&time.to_string()),
    }
}
