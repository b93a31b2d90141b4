//! Findings of checks, in words for an operator, each with the command that corrects it.
//! Is this host right, and if not, what should the operator do?

use std::process::ExitCode;

use serde::Serialize;

use super::super::escape_control_characters;
use crate::names::pluralize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::cli) enum Level {
    Ok,
    /// It may fail later, or for some deliveries.
    Warning,
    /// Deliveries fail, or will fail soon.
    Problem,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(in crate::cli) struct Finding {
    /// The name of the check.
    pub(in crate::cli) check: &'static str,
    pub(in crate::cli) level: Level,
    pub(in crate::cli) message: String,
    /// The command or the change that corrects it. `null`: there is nothing to correct.
    pub(in crate::cli) fix: Option<String>,
}

impl Finding {
    fn new(level: Level, message: impl Into<String>, fix: Option<String>) -> Self {
        Self { check: "", level, message: message.into(), fix }
    }
    pub(in crate::cli) fn ok(message: impl Into<String>) -> Self {
        Self::new(Level::Ok, message, None)
    }
    pub(super) fn warning(message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(Level::Warning, message, Some(fix.into()))
    }
    pub(in crate::cli) fn problem(message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(Level::Problem, message, Some(fix.into()))
    }
}

/// Prints one line for each finding, and the correction below it.
pub(in crate::cli) fn print_findings(findings: &[Finding]) {
    for Finding { check, level, message, fix } in findings {
        let level = match level {
            Level::Ok => "ok",
            Level::Warning => "WARNING",
            Level::Problem => "PROBLEM",
        };
        println!("{level:<9}{check:<14}{}", escape_control_characters(message));
        for line in fix.iter().flat_map(|fix| fix.lines()) {
            println!("{:<9}{:<14}fix: {}", "", "", escape_control_characters(line));
        }
    }
    let count = |wanted| findings.iter().filter(|finding| finding.level == wanted).count();
    let (problems, warnings) = (count(Level::Problem), count(Level::Warning));
    eprintln!("{}, {}", pluralize(problems, "problem"), pluralize(warnings, "warning"));
}

/// Returns success unless there is a problem.
pub(in crate::cli) fn exit_code(findings: &[Finding]) -> ExitCode {
    let has_problem = findings.iter().any(|finding| finding.level == Level::Problem);
    if has_problem { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
