//! The difference between two configurations, as one line of text per change.
//! What would change?
//!
//! The comparison works on the trees of TOML and not on `Config`, so that it covers every key.

mod node;
mod referenced_files;
mod sensitive;

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::SourceSnapshot;
use node::{Document, Node};
pub use sensitive::{ResourceChanges, Sensitivity};
use sensitive::{Subject, sensitivity};

/// The most changes that are listed; the others are counted.
const CHANGES_MAX: usize = 100;
/// The keys that take effect only at a restart.
const RESTART_KEYS: [&str; 3] = ["server.reuse_port", "server.workers", "server.state"];
/// The keys of listeners. systemd passes sockets only at the start.
const LISTENER_KEYS: [&str; 2] = ["server.listen", "admin.listen"];
const RESTART_NOTE: &str = " (takes effect at the next restart)";

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// One line per change: `routes.acme: egress "default" → "eu"`.
    pub changes: Vec<String>,
    /// The number of changes that are not listed.
    pub more: usize,
    /// The changes of keys, tokens and logs, by kind and resource: also of those that are not listed above.
    #[serde(skip)]
    pub sensitive: BTreeMap<(Sensitivity, String), ResourceChanges>,
}

impl Difference {
    /// Returns the number of changes, including those that are not listed.
    pub fn count(&self) -> usize {
        self.changes.len() + self.more
    }

    /// Compares two configurations as written. White space, comments and the order of keys do not count.
    pub fn between(before: &SourceSnapshot, after: &SourceSnapshot) -> Self {
        let mut difference = Self::default();
        // The documents borrow the texts: a configuration may have a hundred thousand routes.
        let texts = (changed_documents(before, after), changed_documents(after, before));
        difference.compare(&KeyPath::default(), Node::from_documents(&texts.0), Node::from_documents(&texts.1));
        referenced_files::compare(before, after, &mut difference);
        difference
    }

    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Adds a change of `table`, such as `clients.billing`.
    fn push(&mut self, table: &str, subject: Subject<'_>, change: impl Fn() -> String) {
        if let Some(kind) = sensitivity(table, subject) {
            self.sensitive.entry((kind, table.to_owned())).or_default().push(&change);
        }
        if self.changes.len() < CHANGES_MAX {
            self.changes.push(change());
        } else {
            self.more += 1;
        }
    }

    fn push_key(&mut self, path: &KeyPath, change: impl Fn() -> String) {
        let (table, key) = if path.is_section() { (&path.key, "") } else { (&path.table, &*path.key) };
        self.push(table, Subject::Key(key), change);
    }

    fn compare(&mut self, path: &KeyPath, before: Node<'_>, after: Node<'_>) {
        if let (Some(before), Some(after)) = (before.members(), after.members()) {
            self.compare_members(path, before, after);
        } else if let (Some(before), Some(after)) = (before.elements(), after.elements()) {
            self.compare_elements(path, &before, &after);
        } else if !before.is_equal(&after) {
            self.push_key(path, || format!("{path} {before} → {after}{}", path.restart_note("")));
        }
    }

    fn compare_members<'a>(
        &mut self,
        path: &KeyPath,
        mut before: BTreeMap<&'a str, Node<'a>>,
        after: BTreeMap<&'a str, Node<'a>>,
    ) {
        // Sorted by name, over both sides.
        let mut sides: BTreeMap<&str, (Option<Node<'_>>, Option<Node<'_>>)> = BTreeMap::new();
        for (name, after) in after {
            let before = before.remove(name);
            if !before.as_ref().is_some_and(|before| before.is_equal(&after)) {
                sides.insert(name, (before, Some(after)));
            }
        }
        sides.extend(before.into_iter().map(|(name, before)| (name, (Some(before), None))));
        for (name, sides) in sides {
            let path = path.child(name);
            let is_table = |node: &Node<'_>| node.members().is_some();
            match sides {
                (Some(before), Some(after)) => self.compare(&path, before, after),
                // A section as a whole is not reported; its members are.
                (Some(before), None) if path.is_section() && is_table(&before) => {
                    self.compare(&path, before, Node::empty());
                }
                (None, Some(after)) if path.is_section() && is_table(&after) => {
                    self.compare(&path, Node::empty(), after);
                }
                (Some(before), None) if is_table(&before) => {
                    let table = path.dotted();
                    self.push(&table, Subject::Table, || format!("{table}: removed"));
                }
                (None, Some(after)) if is_table(&after) => {
                    let table = path.dotted();
                    self.push(&table, Subject::Table, || format!("{table}: added: {after}"));
                }
                (Some(node), None) => {
                    self.push_key(&path, || format!("{path} {node} removed{}", path.restart_note("")))
                }
                (None, Some(node)) => self.push_key(&path, || format!("{path} {node} added{}", path.restart_note(""))),
                (None, None) => {}
            }
        }
    }

    /// Compares lists as sets. A list that is only in another order is reported as such.
    fn compare_elements(&mut self, path: &KeyPath, before: &[Node<'_>], after: &[Node<'_>]) {
        // Keyed by the canonical text, because lists may be long.
        let mut unmatched: HashMap<String, usize> = HashMap::new();
        for element in before {
            *unmatched.entry(element.canonical_text()).or_default() += 1;
        }
        let mut take_match = |element: &&Node<'_>| match unmatched.get_mut(&element.canonical_text()) {
            Some(count) if *count > 0 => {
                *count -= 1;
                true
            }
            _ => false,
        };
        let added: Vec<_> = after.iter().filter(|element| !take_match(element)).collect();
        let removed: Vec<_> = before.iter().filter(take_match).collect();
        if removed.is_empty() && added.is_empty() {
            return self.push_key(path, || format!("{path} in another order"));
        }
        let removed = removed.into_iter().map(|element| (element, "removed"));
        for (element, change) in removed.chain(added.into_iter().map(|element| (element, "added"))) {
            self.push_key(path, || {
                let element = element.to_string();
                format!("{path} {element} {change}{}", path.restart_note(&element))
            });
        }
    }
}

/// Returns the documents whose texts differ from the other side.
fn changed_documents<'a>(snapshot: &'a SourceSnapshot, other: &SourceSnapshot) -> Vec<Document<'a>> {
    let others: HashMap<_, _> = other.texts.iter().map(|(path, text)| (path, text)).collect();
    let changed = snapshot.texts.iter().filter(|(path, text)| others.get(path) != Some(&text));
    changed.map(|(path, text)| Document::new(path, text)).collect()
}

/// The path of a key, such as the key `egress` of `routes.acme`.
#[derive(Default)]
struct KeyPath {
    table: String,
    key: String,
}

impl KeyPath {
    fn child(&self, name: &str) -> Self {
        Self { table: self.dotted(), key: name.to_owned() }
    }
    fn dotted(&self) -> String {
        if self.table.is_empty() { self.key.clone() } else { format!("{}.{}", self.table, self.key) }
    }
    fn is_section(&self) -> bool {
        self.table.is_empty()
    }

    fn restart_note(&self, element: &str) -> &'static str {
        let dotted = self.dotted();
        let is_systemd_socket = LISTENER_KEYS.contains(&dotted.as_str()) && element == "\"systemd\"";
        if RESTART_KEYS.contains(&dotted.as_str()) || is_systemd_socket { RESTART_NOTE } else { "" }
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_section() { write!(f, "{}:", self.key) } else { write!(f, "{}: {}", self.table, self.key) }
    }
}

impl fmt::Display for Difference {
    /// Writes one line per change.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for change in &self.changes {
            writeln!(f, "{change}")?;
        }
        match self.more {
            0 => Ok(()),
            more => writeln!(f, "and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests;
