//! Compares the digests of referenced files: certificates, revocation lists and keys.
//! Which referenced files changed, and which sections name them?

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::node::Document;
use super::{Difference, SourceSnapshot, Subject};

/// Reports content that changed at the same path. Another path is already a difference of the text.
pub(super) fn compare(before: &SourceSnapshot, after: &SourceSnapshot, difference: &mut Difference) {
    let after = &*rebase(before, after);
    let is_other = |(path, digest): &(&PathBuf, &String)| before.contents.get(*path) != Some(*digest);
    let gone = before.contents.keys().filter(|path| !after.contents.contains_key(*path));
    let changed: BTreeSet<&Path> =
        after.contents.iter().filter(is_other).map(|(path, _)| path).chain(gone).map(PathBuf::as_path).collect();
    if changed.is_empty() {
        return;
    }
    let mut references = References { changed: &changed, by_path: BTreeMap::new() };
    for snapshot in [after, before] {
        for (path, text) in &snapshot.texts {
            references.collect_from(&Document::new(path, text));
        }
    }
    for path in &changed {
        let change = match (before.contents.contains_key(*path), after.contents.contains_key(*path)) {
            (true, true) => "changed",
            (false, _) => "added",
            (_, false) => "removed",
        };
        let referrer = references.by_path.get(*path);
        let folder = path.parent().and_then(|folder| references.by_path.get(folder));
        match (referrer, folder) {
            // A path that the text added or removed is already reported.
            (Some(_), _) if change != "changed" => {}
            (Some(user), _) | (None, Some(user)) => {
                difference.push(user, Subject::File, || format!("{user}: {} {change}", path.display()));
            }
            (None, None) => difference.push("", Subject::File, || format!("{} {change}", path.display())),
        }
    }
}

/// Rebases `after` onto the directory of `before`, so that their relative paths compare equal.
fn rebase<'w>(before: &SourceSnapshot, after: &'w SourceSnapshot) -> Cow<'w, SourceSnapshot> {
    let [before_dir, after_dir] =
        [before, after].map(|snapshot| snapshot.main_path().parent().unwrap_or(Path::new("")));
    if before_dir == after_dir {
        return Cow::Borrowed(after);
    }
    let rebased =
        |path: &Path| path.strip_prefix(after_dir).map_or_else(|_| path.to_owned(), |rest| before_dir.join(rest));
    Cow::Owned(SourceSnapshot {
        texts: after.texts.iter().map(|(path, text)| (rebased(path), text.clone())).collect(),
        contents: after.contents.iter().map(|(path, digest)| (rebased(path), digest.clone())).collect(),
        digest: after.digest.clone(),
    })
}

/// The sections that name changed files.
struct References<'a> {
    changed: &'a BTreeSet<&'a Path>,
    /// The dotted section by path, such as `trust.public`.
    by_path: BTreeMap<PathBuf, String>,
}

impl References<'_> {
    fn collect_from(&mut self, document: &Document<'_>) {
        for (section, value) in &document.table {
            match value.get_ref() {
                DeValue::Array(array) => {
                    array.iter().for_each(|value| self.visit_value(document, section.get_ref(), value.get_ref()));
                }
                DeValue::Table(table) => self.visit_section(document, section.get_ref(), table),
                value => self.visit_value(document, section.get_ref(), value),
            }
        }
    }

    /// Visits the named tables of a section.
    fn visit_section(&mut self, document: &Document<'_>, section: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            match value.get_ref() {
                value @ DeValue::Table(_) => {
                    self.visit_value(document, &format!("{section}.{}", name.get_ref()), value)
                }
                value => self.visit_value(document, section, value),
            }
        }
    }

    fn visit_value(&mut self, document: &Document<'_>, referrer: &str, value: &DeValue<'_>) {
        match value {
            DeValue::Table(table) => {
                table.iter().for_each(|(_, value)| self.visit_value(document, referrer, value.get_ref()))
            }
            DeValue::Array(array) => {
                array.iter().for_each(|value| self.visit_value(document, referrer, value.get_ref()))
            }
            DeValue::String(text) => self.add_if_changed(document, referrer, text),
            _ => {}
        }
    }

    fn add_if_changed(&mut self, document: &Document<'_>, referrer: &str, text: &str) {
        let found = match text.split_once(':') {
            // systemd stores a credential in a file of that name.
            Some(("credential", name)) => self
                .changed
                .iter()
                .find(|path| path.file_name().is_some_and(|file| file == name))
                .map(|path| (*path).to_owned()),
            Some(("file", path)) => Some(self.resolve_path(document, path)),
            _ => Some(self.resolve_path(document, text)),
        };
        // The configuration names the parent of a key folder.
        let is_changed = |path: &PathBuf| {
            self.changed.contains(path.as_path())
                || self.changed.range(path.as_path()..).next().is_some_and(|next| next.parent() == Some(path))
        };
        if let Some(path) = found.filter(is_changed) {
            self.by_path.entry(path).or_insert_with(|| referrer.to_owned());
        }
    }

    fn resolve_path(&self, document: &Document<'_>, path: &str) -> PathBuf {
        document.path.parent().unwrap_or(Path::new("")).join(path)
    }
}
