//! Reads the section `redact`, and the `redact` of a route.
//! Which parts of a request may records, logs and responses have?

use http::HeaderName;

use super::reader::{Reader, Table, Value};
use super::units::ValueError;
use super::{Located, Secret, schema, secret};

/// The section `redact`.
#[derive(Clone, Debug)]
pub struct Redact {
    pub path: PathForm,
    /// Whether phone numbers lose their last four digits.
    pub phone_numbers: bool,
    /// Header fields whose values are secret, besides those that always are.
    pub headers: Vec<HeaderName>,
    /// The key of the hashes that stand for secrets.
    pub hmac_key: Option<Located<Secret>>,
}

/// The form in which the path of a request is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PathForm {
    /// As it was sent, except for phone numbers.
    Full,
    /// Secret segments are replaced.
    #[default]
    Masked,
    /// The path condition of the route, which contains nothing else of the request.
    Template,
    /// The path is not written.
    None,
}

pub(super) fn read_redact(reader: &mut Reader<'_>, file: &Table<'_>) -> Redact {
    let table = file.section(reader, "redact", &schema::REDACT);
    let path = table.read(reader, "path", read_path_form);
    let phone_numbers = table.read(reader, "phone_numbers", |reader, value| reader.boolean(value));
    let headers = table.read_list(reader, "headers", None, |reader, value| reader.parse(value, header_name));
    let hmac_key = table.read(reader, "hmac_key", secret::read);
    Redact {
        path: path.map(|path| path.value).unwrap_or_default(),
        phone_numbers: phone_numbers.is_none_or(|phone_numbers| phone_numbers.value),
        headers: headers.unwrap_or_default().into_iter().map(|header| header.value).collect(),
        hmac_key,
    }
}

/// Reads the `redact` of a route. A missing key has the value of the section.
pub(super) fn read_route_redact(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Located<PathForm>> {
    let table = Table::open(reader, value, &schema::ROUTE_REDACT)?;
    table.read(reader, "path", read_path_form)
}

fn read_path_form(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Located<PathForm>> {
    let forms = [
        ("full", PathForm::Full),
        ("masked", PathForm::Masked),
        ("template", PathForm::Template),
        ("none", PathForm::None),
    ];
    reader.parse_choice(value, &forms)
}

pub(super) fn header_name(text: &str) -> Result<HeaderName, ValueError> {
    text.parse().map_err(|_| ValueError {
        expected: "the name of a header field",
        reason: "has a character that a name cannot have".to_owned(),
        help: "write the name alone: \"X-Customer-Number\"".to_owned(),
    })
}
