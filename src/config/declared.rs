//! Named sections as they are written, including those with errors.
//! Is a problem only the consequence of another problem?

use super::Config;
use super::problem::{Problem, Severity, SourceSpan};

/// Every `[SECTION.NAME]` of the files.
#[derive(Clone, Debug, Default)]
pub struct DeclaredSections(Vec<DeclaredSection>);

#[derive(Clone, Debug)]
struct DeclaredSection {
    /// The kind of section, such as `signers`.
    kind: String,
    name: String,
    span: SourceSpan,
    /// One span per entry, from its key to the end of its value.
    key_spans: Vec<SourceSpan>,
}

impl DeclaredSections {
    pub(super) fn add(&mut self, kind: &str, name: &str, span: SourceSpan, key_spans: Vec<SourceSpan>) {
        self.0.push(DeclaredSection { kind: kind.to_owned(), name: name.to_owned(), span, key_spans });
    }

    /// Returns the spans of sections with a part that could not be read. A problem of such a section as a whole may
    /// be a consequence of that part.
    pub fn broken_sections(&self, problems: &[Problem]) -> Vec<SourceSpan> {
        let problems = problems.iter().filter(|problem| problem.severity == Severity::Problem);
        let problem_spans: Vec<SourceSpan> = problems.filter_map(|problem| problem.span).collect();
        let is_inside = |part: &SourceSpan, place: &SourceSpan| {
            part.file == place.file && part.start <= place.start && place.end <= part.end
        };
        let is_broken = |section: &&DeclaredSection| {
            problem_spans
                .iter()
                .any(|place| *place == section.span || section.key_spans.iter().any(|part| is_inside(part, place)))
        };
        self.0.iter().filter(is_broken).map(|section| section.span).collect()
    }
}

impl Config {
    /// Returns whether `[SECTION.NAME]` is written, even if it was rejected: a reference to it is no second problem.
    pub fn declares(&self, kind: &str, name: &str) -> bool {
        let is_read = match kind {
            "egress" => self.egress.contains_key(name),
            "clients" => self.clients.contains_key(name),
            "trust" => self.trust.contains_key(name),
            "signers" => self.signers.contains_key(name),
            "credentials" => self.credentials.contains_key(name),
            _ => self.limits.contains_key(name),
        };
        is_read || self.declared_sections.0.iter().any(|section| section.kind == kind && section.name == name)
    }
}
