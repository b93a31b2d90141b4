//! Warning codes, and the list `acknowledge`, which hides warnings by their code.
//! Which warnings has the operator acknowledged?

use std::collections::BTreeMap;

use super::Located;
use super::problem::{Problem, Severity, closest_match};
use super::reader::{Reader, Table};
use super::schema;
use super::warning_code::WarningCode;
use crate::names::pluralize;

/// The most warnings of one code that are shown; the others are counted.
const WARNINGS_PER_CODE_MAX: usize = 25;
/// The most problems that are shown; the others are counted.
const PROBLEMS_SHOWN_MAX: usize = 1000;

/// Reads the codes of `acknowledge`.
pub(super) fn read_acknowledged(reader: &mut Reader<'_>, file: &Table<'_>) -> Vec<Located<WarningCode>> {
    let read = |reader: &mut Reader<'_>, value: &super::reader::Value<'_>| {
        let text = reader.text(value)?;
        let found = WarningCode::ALL.iter().find(|code| code.as_str() == text);
        if found.is_none() {
            let problem = Problem::at(value.span, format!("no warning has the code \"{text}\""));
            let help = match closest_match(text, WarningCode::ALL.iter().map(|code| code.as_str())) {
                Some(closest) => format!("did you mean \"{closest}\"?"),
                None => "write the code that `outgate check` shows with a warning: warning[CODE]".to_owned(),
            };
            reader.problems.push(problem.help(help));
        }
        found.map(|code| value.located(*code))
    };
    file.read_list(reader, schema::ACKNOWLEDGE, None, read).unwrap_or_default()
}

/// Removes acknowledged warnings, and warns of codes that no warning has. Returns the remaining problems and the
/// number of removed ones.
pub fn apply_acknowledgements(found: Vec<Problem>, acknowledged: &[Located<WarningCode>]) -> (Vec<Problem>, usize) {
    let (before, present) = (found.len(), count_by_code(&found));
    let mut found = remove_acknowledged(found, acknowledged);
    let removed = before - found.len();
    let is_acknowledged = |code| acknowledged.iter().any(|other| other.value == code);
    if !is_acknowledged(WarningCode::AcknowledgedNothing) {
        let unused = acknowledged.iter().filter(|code| !present.contains_key(&code.value));
        found.extend(unused.map(|code| {
            let message = format!("no warning has the code \"{code}\" now", code = code.value);
            Problem::warning(WarningCode::AcknowledgedNothing, Some(code.span), message)
                .help("remove it from `acknowledge`")
        }));
    }
    (found, removed)
}

/// Removes acknowledged warnings. It does not report unused codes, because not all warnings are known yet.
pub fn remove_acknowledged(mut found: Vec<Problem>, acknowledged: &[Located<WarningCode>]) -> Vec<Problem> {
    found.retain(|problem| problem.code.is_none_or(|code| acknowledged.iter().all(|other| other.value != code)));
    found
}

/// Returns the first problems and the first warnings of each code, with the number of the others.
pub fn summarize(found: &[Problem]) -> Vec<Problem> {
    let mut seen: BTreeMap<Option<WarningCode>, usize> = BTreeMap::new();
    let is_shown = |problem: &&Problem| {
        let count = seen.entry(problem.code).or_default();
        *count += 1;
        *count <= if problem.code.is_some() { WARNINGS_PER_CODE_MAX } else { PROBLEMS_SHOWN_MAX }
    };
    let mut shown: Vec<Problem> = found.iter().filter(is_shown).cloned().collect();
    for (code, count) in seen {
        match code {
            Some(code) if count > WARNINGS_PER_CODE_MAX => {
                let message = format!("{} of this kind", pluralize(count - WARNINGS_PER_CODE_MAX, "more warning"));
                let help = format!("to hide them, write acknowledge = [\"{code}\"] at the top of the main file");
                shown.push(Problem::warning(code, None, message).help(help));
            }
            None if count > PROBLEMS_SHOWN_MAX => {
                shown.push(Problem::general(pluralize(count - PROBLEMS_SHOWN_MAX, "more problem")));
            }
            _ => {}
        }
    }
    shown
}

fn count_by_code(found: &[Problem]) -> BTreeMap<WarningCode, usize> {
    let mut codes = BTreeMap::new();
    for code in found.iter().filter(|problem| problem.severity == Severity::Warning).filter_map(|problem| problem.code)
    {
        *codes.entry(code).or_default() += 1;
    }
    codes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SourceSpan;

    #[test]
    fn warning_codes_are_unique_and_sorted() {
        let mut words: Vec<_> = WarningCode::ALL.iter().map(|code| code.as_str()).collect();
        words.dedup();
        assert_eq!(words.len(), WarningCode::ALL.len());
        assert!(words.is_sorted());
    }

    #[test]
    fn summarize_limits_warnings_per_code_and_counts_the_rest() {
        let many = (0..80_000).map(|number| Problem::warning(WarningCode::Plaintext, None, number.to_string()));
        let found: Vec<_> =
            many.chain([Problem::warning(WarningCode::Unused, None, "x"), Problem::general("y")]).collect();
        let shown = summarize(&found);
        assert_eq!(shown.len(), WARNINGS_PER_CODE_MAX + 3);
        assert_eq!(shown.last().unwrap().message, "79975 more warnings of this kind");
    }

    #[test]
    fn acknowledged_code_without_a_warning_is_reported() {
        let at = |value| Located { value, span: SourceSpan { file: 0, start: 0, end: 0 } };
        let found = vec![Problem::warning(WarningCode::Unused, None, "x"), Problem::general("y")];
        let (remaining, removed) =
            apply_acknowledgements(found, &[at(WarningCode::Unused), at(WarningCode::Plaintext)]);
        let codes: Vec<_> = remaining.iter().map(|problem| problem.code).collect();
        assert_eq!((codes, removed), (vec![None, Some(WarningCode::AcknowledgedNothing)], 1));
    }
}
