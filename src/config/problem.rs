//! Problems of a configuration: the message, the span in the source, and the advice.
//! What does a problem tell the operator?

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::WarningCode;
use crate::names::pluralize;

/// The most problems that one load reports.
pub(super) const PROBLEMS_MAX: usize = 1000;

/// A range of bytes in a file of the [`SourceMap`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceSpan {
    pub file: u16,
    pub start: u32,
    pub end: u32,
}

impl SourceSpan {
    /// Converts a range of offsets. Files are far smaller than 4 GiB.
    pub(super) fn new(file: u16, range: Range<usize>) -> Self {
        let offset = |offset: usize| u32::try_from(offset).unwrap_or(u32::MAX);
        Self { file, start: offset(range.start), end: offset(range.end) }
    }
}

/// The most similar problems that are listed, such as one for each of thousands of tenants.
const SIMILAR_MAX: usize = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Prevents the configuration from being adopted.
    Problem,
    /// Concerns one tenant: the configuration is adopted nevertheless.
    Contained,
    /// Prevents nothing.
    Warning,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub severity: Severity,
    /// The code of a warning; a problem has none.
    pub code: Option<WarningCode>,
    /// `None`: the problem concerns the whole configuration, or a file that could not be read.
    pub span: Option<SourceSpan>,
    /// The problem, in lower case.
    pub message: String,
    /// The label of the underlined text; empty if the message suffices.
    pub label: String,
    /// The advice: what to write or do instead.
    pub help: Option<String>,
    /// A related span with its label, such as "first here".
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

/// The files that were read, in order; [`SourceSpan::file`] is an index into them.
#[derive(Clone, Debug, Default)]
pub struct SourceMap(Vec<SourceFile>);

#[derive(Clone, Debug)]
struct SourceFile {
    path: PathBuf,
    text: Arc<str>,
    /// The offset of each line but the first, computed once: one file may have tens of thousands of warnings.
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
    /// Returns the line of an offset in a file, counted from 1.
    pub(super) fn line(&self, file: u16, offset: usize) -> usize {
        let Some(source) = self.0.get(usize::from(file)) else { return 1 };
        let starts = || memchr::memchr_iter(b'\n', source.text.as_bytes()).map(|newline| newline + 1).collect();
        1 + source.lines.get_or_init(starts).partition_point(|start| *start <= offset)
    }
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|source| source.path.as_path())
    }
    /// Replaces the text of a file by a redacted one of the same length.
    pub(super) fn replace(&mut self, file: u16, text: String) {
        if let Some(source) = self.0.get_mut(usize::from(file)) {
            debug_assert_eq!(source.text.len(), text.len(), "a redacted text keeps its length");
            (source.text, source.lines) = (text.into(), Arc::default());
        }
    }
}

/// Returns the first problems, then the first warnings, each with the number of omitted ones.
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

/// Returns the candidate closest to a mistyped word, if one is close enough.
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
