//! What is wrong with a configuration, and where: file, line, column, the text underlined, what to write instead.
//! How is an operator told?

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::WarningCode;
use crate::names::pluralize;

/// More problems than these nobody reads.
pub(super) const PROBLEMS_MAX: usize = 1000;

/// A range of bytes in one of the [`SourceMap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceSpan {
    pub file: u16,
    pub start: u32,
    pub end: u32,
}

/// Of problems that are alike, one for each of thousands of tenants, these are told.
const SIMILAR_MAX: usize = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Keeps a configuration from being adopted.
    Problem,
    /// Of one tenant alone: the configuration is adopted, and what is wrong is left out.
    Contained,
    /// Keeps nothing.
    Warning,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub severity: Severity,
    /// The code of a warning; a problem has none.
    pub code: Option<WarningCode>,
    /// `None`: about the whole, or a file that could not be read.
    pub span: Option<SourceSpan>,
    /// What is wrong, in lower case.
    pub message: String,
    /// What stands under the underline, if the message alone is not enough.
    pub label: String,
    /// What to write instead.
    pub help: Option<String>,
    /// Another place that matters: "first defined here".
    pub related: Option<(SourceSpan, String)>,
}

impl Problem {
    pub fn at(span: SourceSpan, message: impl Into<String>) -> Self {
        Self { span: Some(span), ..Self::general(message) }
    }
    pub fn general(message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Problem,
            code: None,
            span: None,
            message: message.into(),
            label: String::new(),
            help: None,
            related: None,
        }
    }
    pub fn warning(code: WarningCode, span: Option<SourceSpan>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, code: Some(code), span, ..Self::general(message) }
    }
    pub fn contained(span: SourceSpan, message: impl Into<String>) -> Self {
        Self { severity: Severity::Contained, ..Self::at(span, message) }
    }
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }
    #[must_use]
    pub fn related(mut self, span: SourceSpan, label: impl Into<String>) -> Self {
        self.related = Some((span, label.into()));
        self
    }
}

/// The files that were read, in order; a [`SourceSpan`] points into them by number.
#[derive(Clone, Debug, Default)]
pub struct SourceMap(Vec<SourceFile>);

#[derive(Clone, Debug)]
struct SourceFile {
    path: PathBuf,
    text: Arc<str>,
    /// Where each line but the first starts, once it was asked for: tens of thousands of warnings may be in one file.
    lines: Arc<OnceLock<Vec<usize>>>,
}

impl SourceMap {
    pub fn add(&mut self, path: &Path, text: impl Into<Arc<str>>) -> u16 {
        self.0.push(SourceFile { path: path.to_owned(), text: text.into(), lines: Arc::default() });
        u16::try_from(self.0.len() - 1).unwrap_or(u16::MAX)
    }
    pub fn get(&self, file: u16) -> Option<(&Path, &str)> {
        self.0.get(usize::from(file)).map(|source| (source.path.as_path(), &*source.text))
    }
    /// The line of an offset in a file, counted from 1.
    pub(super) fn line(&self, file: u16, offset: usize) -> usize {
        let Some(source) = self.0.get(usize::from(file)) else { return 1 };
        let starts = || memchr::memchr_iter(b'\n', source.text.as_bytes()).map(|newline| newline + 1).collect();
        1 + source.lines.get_or_init(starts).partition_point(|start| *start <= offset)
    }
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|source| source.path.as_path())
    }
    /// Put another text in the place of a file's: the same, byte for byte, but for what may not be shown.
    pub(super) fn replace(&mut self, file: u16, text: String) {
        if let Some(source) = self.0.get_mut(usize::from(file)) {
            debug_assert_eq!(source.text.len(), text.len(), "places would point elsewhere");
            (source.text, source.lines) = (text.into(), Arc::default());
        }
    }
}

/// The first of them, problems before warnings, and how many more there are.
pub fn truncate_similar(problems: impl Iterator<Item = Problem>, location: &str) -> Vec<Problem> {
    let (warnings, problems): (Vec<_>, Vec<_>) = problems.partition(|problem| problem.severity == Severity::Warning);
    let mut shown = Vec::new();
    for (mut list, noun) in [(problems, "more problem"), (warnings, "more warning")] {
        let more = list.len().saturating_sub(SIMILAR_MAX);
        list.truncate(SIMILAR_MAX);
        let last = list.last().filter(|_| more > 0).map(|last| Problem {
            severity: last.severity,
            code: last.code,
            span: last.span,
            ..Problem::general(format!("{} {location}", pluralize(more, noun)))
        });
        shown.extend(list.into_iter().chain(last));
    }
    shown
}

/// The candidate nearest to a mistyped word, if one is near enough to be meant.
pub fn closest_match<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near = candidates.into_iter().map(|candidate| (levenshtein(word, candidate), candidate));
    let (distance, candidate) = near.min_by_key(|&(distance, _)| distance)?;
    (distance <= (word.chars().count() / 3).max(1)).then_some(candidate)
}

/// Levenshtein distance: insertions, deletions and replacements from one word to the other.
fn levenshtein(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::{Problem, SIMILAR_MAX, Severity, closest_match, truncate_similar};

    #[test]
    fn truncate_similar_keeps_the_first_problems_and_counts_the_rest() {
        let many = |count, severity| (0..count).map(move |i| Problem { severity, ..Problem::general(format!("{i}")) });
        let shown = truncate_similar(
            many(SIMILAR_MAX, Severity::Warning).chain(many(10_000, Severity::Contained)),
            "below /keys",
        );
        let severities = |severity| shown.iter().filter(|problem| problem.severity == severity).count();
        assert_eq!((severities(Severity::Contained), severities(Severity::Warning)), (SIMILAR_MAX + 1, SIMILAR_MAX));
        assert_eq!(shown[SIMILAR_MAX].message, "9980 more problems below /keys");
    }

    #[test]
    fn closest_match_finds_typos_and_no_unrelated_word() {
        let names = ["default", "public", "per-host"];
        for (word, expected) in [
            ("defualt", Some("default")),
            ("pubic", Some("public")),
            ("per_host", Some("per-host")),
            ("billing", None),
            ("x", None),
        ] {
            assert_eq!(closest_match(word, names), expected, "{word}");
        }
        assert_eq!(closest_match("anything", []), None);
    }
}
