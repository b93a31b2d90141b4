//! Parses TOML, and turns syntax errors into problems, one per line.
//! Where is this file not valid TOML?

use toml::de::DeTable;

use super::problem::{PROBLEMS_MAX, Problem, SourceSpan};

/// Returns the table, as far as it could be parsed, and the problems.
pub(super) fn parse(file: u16, text: &str) -> (DeTable<'_>, Vec<Problem>) {
    let (table, errors) = DeTable::parse_recoverable(text);
    if let (Some(first), Some((language, start))) = (errors.first(), detect_other_format(text)) {
        let span = SourceSpan::new(file, start..start + 1);
        let problem = Problem::at(span, format!("this file is {language}, not TOML: {}", first.message()));
        return (
            table.into_inner(),
            vec![problem.help("write TOML: [server] and below it listen = [\"127.0.0.1:4750\"]")],
        );
    }
    let mut problems: Vec<Problem> =
        errors.iter().take(PROBLEMS_MAX).map(|error| to_problem(file, text, error)).collect();
    problems.sort_by_key(|problem| problem.span);
    // Further errors on the same line are mostly consequences of the first.
    problems.dedup_by_key(|problem| problem.span.map(|place| line_of(text, place)));
    (table.into_inner(), problems)
}

/// Detects JSON or YAML by the first significant line. Returns the format and the offset of that line.
fn detect_other_format(text: &str) -> Option<(&'static str, usize)> {
    let lines = text.split_inclusive('\n').scan(0, |offset, line| {
        let start = *offset;
        *offset += line.len();
        Some((start, line))
    });
    let (start, line) = lines.into_iter().find(|(_, line)| {
        let line = line.trim_start();
        !line.is_empty() && !line.starts_with('#')
    })?;
    let (start, line) = (start + line.len() - line.trim_start().len(), line.trim());
    let is_word =
        |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    let is_yaml = line == "---"
        || line.split_once(':').is_some_and(|(key, rest)| is_word(key) && (rest.is_empty() || rest.starts_with(' ')));
    match line.as_bytes().first() {
        Some(b'{') => Some(("JSON", start)),
        _ if is_yaml => Some(("YAML", start)),
        _ => None,
    }
}

fn to_problem(file: u16, text: &str, error: &toml::de::Error) -> Problem {
    let span = SourceSpan::new(file, error.span().unwrap_or_default());
    // The parser has no error codes; the test of `tests/golden/duplicate-keys.toml` fails if its texts change.
    if error.message() == "duplicate key" {
        let problem = Problem::at(span, "this key or table is defined twice")
            .label("again here")
            .help("remove one of the two definitions");
        return match first_definition(text, span) {
            Some(first) => problem.related(first, "first here"),
            None => problem,
        };
    }
    Problem::at(span, format!("not TOML: {}", error.message()))
}

/// Returns the line in which a span starts, counted from 0.
pub(super) fn line_of(text: &str, span: SourceSpan) -> usize {
    memchr::memchr_iter(b'\n', &text.as_bytes()[..text.len().min(span.start as usize)]).count()
}

/// Finds the first definition of a duplicate key or header, which the parser does not report.
fn first_definition(text: &str, duplicate: SourceSpan) -> Option<SourceSpan> {
    let key = |line: &str| line.split(['=', '#']).next().map(|key| key.trim().to_owned());
    let lines = text.split_inclusive('\n').scan(0, |offset, line| {
        let start = *offset;
        *offset += line.len();
        Some((start, line))
    });
    let before: Vec<(usize, &str)> = lines.take_while(|(start, _)| *start <= duplicate.start as usize).collect();
    let ((_, line), before) = before.split_last()?;
    let is_header = line.trim_start().starts_with('[');
    // A duplicate key is in the same table; a duplicate header may be anywhere before.
    let is_same_table = |(_, line): &&&(usize, &str)| is_header || !line.trim_start().starts_with('[');
    let (start, first) =
        before.iter().rev().take_while(|line| is_same_table(&line)).find(|(_, other)| key(other) == key(line))?;
    let start = start + (first.len() - first.trim_start().len());
    let length = key(first)?.len();
    Some(SourceSpan::new(duplicate.file, start..start + length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_definition_in(text: &str) -> Option<&str> {
        let (_, problems) = parse(0, text);
        let (span, _) = problems.first()?.related.as_ref()?;
        text.get(span.start as usize..span.end as usize)
    }

    #[test]
    fn duplicate_key_problem_names_the_first_definition() {
        assert_eq!(first_definition_in("[a]\n x = 1 # one\ny = 2\nx = 2\n"), Some("x"));
        assert_eq!(first_definition_in("[a.b] # one\nx = 1\n[c]\n[a.b]\n"), Some("[a.b]"));
        assert_eq!(first_definition_in("[a]\nx = 1\n[b]\ny = { x = 1, x = 2 }\n"), None);
    }
}
