//! Renders problems as annotated source text, as log lines, and as JSON.
//! What does a problem look like?

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet, normalize_untrusted_str};
use serde_json::{Value, json};

use super::WarningCode;
use super::key_index::KeyIndex;
use super::problem::{Problem, Severity, SourceMap, SourceSpan};

/// The most bytes between two annotations of one excerpt.
const EXCERPT_MAX: u32 = 64 * 1024;

/// Renders problems with excerpts, separated by blank lines. `styled` adds colours for terminals.
pub fn render(problems: &[Problem], sources: &SourceMap, styled: bool) -> String {
    let renderer = if styled { Renderer::styled() } else { Renderer::plain() };
    let mut out = String::new();
    for problem in problems {
        if !out.is_empty() {
            out.push('\n');
        }
        out.push_str(&renderer.render(&[render_problem(problem, sources)]));
        out.push('\n');
    }
    out
}

fn render_problem<'a>(problem: &'a Problem, sources: &'a SourceMap) -> Group<'a> {
    let level = match problem.severity {
        Severity::Problem | Severity::Contained => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let title = level.primary_title(normalize_untrusted_str(&problem.message));
    let mut group = Group::with_title(match problem.code {
        Some(code) => title.id(code.as_str()),
        None => title,
    });
    let first =
        problem.span.map(|place| Annotation { span: place, kind: AnnotationKind::Primary, label: &problem.label });
    let second = problem.related.as_ref().map(|(place, label)| Annotation {
        span: *place,
        kind: AnnotationKind::Context,
        label,
    });
    match (first, second) {
        (Some(first), Some(second)) if fit_in_one_excerpt(first.span, second.span) => {
            group = add_excerpt(group, sources, &[first, second]);
        }
        (first, second) => {
            for mark in [first, second].into_iter().flatten() {
                group = add_excerpt(group, sources, &[mark]);
            }
        }
    }
    if let Some(help) = &problem.help {
        group = group.element(Level::HELP.message(normalize_untrusted_str(help)));
    }
    group
}

/// Returns whether both fit into one excerpt. The renderer searches the text in between for line ends.
fn fit_in_one_excerpt(first: SourceSpan, second: SourceSpan) -> bool {
    first.file == second.file && first.start.abs_diff(second.start) <= EXCERPT_MAX
}

/// A span to underline, and its label.
struct Annotation<'a> {
    span: SourceSpan,
    kind: AnnotationKind,
    label: &'a str,
}

/// Adds the lines from the first annotation to the last; all are in one file.
fn add_excerpt<'a>(group: Group<'a>, sources: &'a SourceMap, marks: &[Annotation<'a>]) -> Group<'a> {
    let file = marks.first().map(|mark| mark.span.file);
    let Some((file, (path, text))) = file.and_then(|file| Some((file, sources.get(file)?))) else {
        return group;
    };
    let path = display_path(path);
    let spans: Vec<Range<usize>> = marks.iter().map(|mark| clamp_span(text, mark.span)).collect();
    if spans.iter().all(|span| span.end == 0) {
        // An empty span: the problem concerns the file as a whole.
        return group.element(Origin::path(path));
    }
    let start = spans.iter().map(|span| line_start(text, span.start)).min().unwrap_or(0);
    let end = spans.iter().map(|span| line_end(text, span.end)).max().unwrap_or(text.len());
    let mut snippet = Snippet::source(&text[start..end]).line_start(sources.line(file, start)).path(path);
    for (mark, span) in marks.iter().zip(spans) {
        let label = (!mark.label.is_empty()).then(|| normalize_untrusted_str(mark.label));
        snippet = snippet.annotation(mark.kind.span(span.start - start..span.end - start).label(label));
    }
    group.element(snippet)
}

fn display_path(path: &Path) -> Cow<'_, str> {
    path.to_string_lossy()
}

/// Clamps a span to the text.
fn clamp_span(text: &str, span: SourceSpan) -> Range<usize> {
    let clamp = |offset: u32| text.floor_char_boundary(offset as usize);
    clamp(span.start)..clamp(span.end.max(span.start))
}

fn line_start(text: &str, offset: usize) -> usize {
    text[..offset].rfind('\n').map_or(0, |newline| newline + 1)
}

fn line_end(text: &str, offset: usize) -> usize {
    text[offset..].find('\n').map_or(text.len(), |newline| offset + newline)
}

/// Renders each problem as `FILE:LINE:COLUMN: MESSAGE; LABEL; HELP [CODE]`, for a log.
pub fn to_log_lines(problems: &[Problem], sources: &SourceMap) -> Vec<String> {
    let line = |problem: &Problem| {
        let position = problem.span.and_then(|place| position(place, sources));
        let place = position
            .map(|(path, line, column)| format!("{}:{line}:{column}: ", display_path(path)))
            .unwrap_or_default();
        let texts = [problem.message.as_str(), &problem.label, problem.help.as_deref().unwrap_or_default()];
        let texts: Vec<&str> = texts.into_iter().filter(|text| !text.is_empty()).collect();
        let code = problem.code.map_or(String::new(), |code| format!(" [{code}]"));
        normalize_untrusted_str(&format!("{place}{}{code}", texts.join("; ")))
    };
    problems.iter().map(line).collect()
}

/// Returns the file, line and column of a span. Both count from 1, and the column counts characters.
fn position(span: SourceSpan, sources: &SourceMap) -> Option<(&Path, usize, usize)> {
    let (path, text) = sources.get(span.file)?;
    let start = clamp_span(text, span).start;
    Some((path, sources.line(span.file, start), 1 + text[line_start(text, start)..start].chars().count()))
}

/// Renders an array with one object per problem: `severity`, `file`, `line`, `column` (both from 1; the column counts
/// characters), `key`, `code` (of warnings), `message`, `label`, `help`; `null` where there is none.
pub fn to_json(problems: &[Problem], sources: &SourceMap) -> Value {
    let mut keys = BTreeMap::new();
    problems.iter().map(|problem| problem_to_json(problem, sources, &mut keys)).collect()
}

fn problem_to_json(problem: &Problem, sources: &SourceMap, keys: &mut BTreeMap<u16, KeyIndex>) -> Value {
    let severity = match problem.severity {
        Severity::Problem | Severity::Contained => "problem",
        Severity::Warning => "warning",
    };
    let mut object = json!({
        "severity": severity, "code": problem.code.map(WarningCode::as_str), "file": null, "line": null, "column": null, "key": null,
        "message": problem.message, "label": problem.label, "help": problem.help,
    });
    if let Some(span) = problem.span
        && let Some((path, line, column)) = position(span, sources)
        && let Some((_, text)) = sources.get(span.file)
    {
        object["file"] = display_path(path).into();
        object["line"] = line.into();
        object["column"] = column.into();
        let keys = keys.entry(span.file).or_insert_with(|| KeyIndex::parse(text));
        object["key"] = keys.key_at(span.start as usize).into();
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "[server]\nlisten = [\"é\", \"systemd\"]\n\n[[routes]]\nname = \"a\"\n\n[[routes]]\nname = \"b\"\n";

    fn span_of(word: &str) -> SourceSpan {
        let start = u32::try_from(TEXT.find(word).unwrap()).unwrap();
        SourceSpan { file: 0, start, end: start + u32::try_from(word.len()).unwrap() }
    }

    #[test]
    fn problems_have_file_line_and_column_in_json_and_log_lines() {
        let mut sources = SourceMap::default();
        sources.add(Path::new("c.toml"), TEXT);
        let problems = [
            Problem::at(span_of("\"systemd\""), "no"),
            Problem::at(span_of("\"b\""), "no").help("yes"),
            Problem::warning(WarningCode::Unused, None, "all of it"),
        ];
        let json = to_json(&problems, &sources);
        assert_eq!(
            (&json[0]["key"], &json[0]["line"], &json[0]["column"]),
            (&json!("server.listen"), &json!(2), &json!(16))
        );
        assert_eq!((&json[1]["key"], &json[1]["help"]), (&json!("routes.name"), &json!("yes")));
        let lines = to_log_lines(&problems, &sources);
        assert_eq!(lines, ["c.toml:2:16: no", "c.toml:8:8: no; yes", "all of it [unused]"]);
        assert_eq!((&json[2]["severity"], &json[2]["file"]), (&json!("warning"), &Value::Null));
    }

    #[test]
    fn render_accepts_a_span_beyond_the_text() {
        let mut sources = SourceMap::default();
        sources.add(Path::new("c.toml"), "é");
        for (start, end) in [(0, 0), (1, 1), (1, 9), (9, 3)] {
            let problem = Problem::at(SourceSpan { file: 0, start, end }, "m")
                .related(SourceSpan { file: 7, start: 0, end: 1 }, "n");
            assert!(render(&[problem], &sources, false).starts_with("error: m"));
        }
    }
}
