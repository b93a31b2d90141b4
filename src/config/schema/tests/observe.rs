//! Notes what the parser asks of each key, in tests only.
//! Which type, words and range does the parser expect?

use std::cell::RefCell;

use super::super::Schema;

/// One question of the parser, with the dotted key that it is about.
pub(in crate::config) enum Question {
    Shape(String, Shape),
    Table(String, &'static Schema),
    /// The keys of the table are these names.
    Members(String, Vec<String>),
    /// The table must have the key.
    Required(String, &'static str),
}

/// The form of a value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::config) enum Shape {
    /// A string, and what its text must be, such as "a duration".
    Text(Option<&'static str>),
    Choice(Vec<String>),
    Boolean,
    Integer(u32, u32),
    /// A number from 0 to this.
    Decimal(u32),
    /// The other shapes of the key are those of the items.
    List {
        not_empty: bool,
    },
    /// A table with the keys of the schema with this path.
    Table(&'static str),
}

thread_local! {
    /// The questions so far. `None`: no test collects them.
    static QUESTIONS: RefCell<Option<Vec<Question>>> = const { RefCell::new(None) };
}

/// Returns the questions of the parser on this thread while `parse` runs.
pub(super) fn during(parse: impl FnOnce()) -> Vec<Question> {
    QUESTIONS.set(Some(Vec::new()));
    parse();
    QUESTIONS.take().unwrap_or_default()
}

fn note(question: impl FnOnce() -> Question) {
    QUESTIONS.with_borrow_mut(|questions| {
        if let Some(questions) = questions {
            questions.push(question());
        }
    });
}

pub(in crate::config) fn shape(key: &str, shape: Shape) {
    note(|| Question::Shape(key.to_owned(), shape));
}

pub(in crate::config) fn table(key: &str, schema: &'static Schema) {
    note(|| Question::Table(key.to_owned(), schema));
}

pub(in crate::config) fn required(key: &str, required: &'static str) {
    note(|| Question::Required(key.to_owned(), required));
}

pub(in crate::config) fn members<'n>(key: &str, names: impl Iterator<Item = &'n str>) {
    note(|| Question::Members(key.to_owned(), names.map(str::to_owned).collect()));
}
