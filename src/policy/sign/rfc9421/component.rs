//! The components that a signature covers (RFC 9421 §2): derived ones, fields, and members of fields.
//! Which value does a component identifier have in a webhook?

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::HeaderName;
use sfv::{BareItem, Dictionary, FieldType, Item, List, ListEntry, Parser};

use crate::http_message::{FieldValue, Fields};
use crate::policy::message::SignableRequest;
use crate::policy::sign::error::SignError;
use crate::policy::sign::scheme::SigningInput;

/// The derived components of a request that take no parameter (RFC 9421 §2.2).
const DERIVED_COMPONENTS: [&str; 7] =
    ["@method", "@target-uri", "@authority", "@scheme", "@request-target", "@path", "@query"];

/// Fields that cannot be covered: each hop has its own, or HTTP/2 has none.
const HOP_BY_HOP: [&str; 14] = [
    "connection",
    "content-length",
    "expect",
    "forwarded",
    "keep-alive",
    "max-forwards",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
    "x-forwarded-for",
];

/// Structured fields whose type is known, for the parameter `sf` (RFC 9421 §2.1.1).
const STRUCTURED_FIELDS: [(&str, StructuredType); 8] = [
    ("accept-ch", StructuredType::List),
    ("cache-status", StructuredType::List),
    ("content-digest", StructuredType::Dictionary),
    ("idempotency-key", StructuredType::Item),
    ("priority", StructuredType::Dictionary),
    ("repr-digest", StructuredType::Dictionary),
    ("signature-agent", StructuredType::Dictionary),
    ("want-content-digest", StructuredType::Dictionary),
];

#[derive(Clone, Copy, Debug)]
enum StructuredType {
    Dictionary,
    List,
    Item,
}

/// A part of a webhook that a signature covers.
#[derive(Debug)]
pub(super) struct Component {
    /// The name in quotes, and the parameters, as RFC 9651 §4.1.3 serializes them.
    pub(super) identifier: String,
    part: ComponentSource,
}

#[derive(Debug)]
enum ComponentSource {
    Derived(&'static str),
    /// The value of the query parameter with this encoded name.
    QueryParam(String),
    Field(HeaderName, FieldForm),
}

/// The form of a field's value in the signature base.
#[derive(Debug)]
enum FieldForm {
    Lines,
    Strict(StructuredType),
    /// The dictionary member of this key (RFC 9421 §2.1.2).
    Member(String),
    /// Each line as a byte sequence (RFC 9421 §2.1.3).
    Bytes,
}

impl Component {
    /// Parses an identifier, whose name may have no quotes: `@method`, `x-event;bs`, `"priority";key="u"`. The error
    /// continues a sentence that begins with the identifier.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let quoted = match text.find(';') {
            _ if text.starts_with('"') => text.to_owned(),
            Some(end) => format!("\"{}\"{}", &text[..end], &text[end..]),
            None => format!("\"{text}\""),
        };
        let item: Item =
            Parser::new(&quoted).parse().map_err(|_| "is not a component identifier (RFC 9421 §2)".to_owned())?;
        let BareItem::String(name) = &item.bare_item else { return Err("does not begin with a name".into()) };
        let parameters: Vec<(&str, &BareItem)> =
            item.params.iter().map(|(name, value)| (name.as_str(), value)).collect();
        let part = match name.as_str() {
            "@query-param" => match parameters[..] {
                [("name", BareItem::String(name))] => ComponentSource::QueryParam(name.as_str().to_owned()),
                _ => return Err("needs the name of the query parameter: @query-param;name=\"NAME\"".into()),
            },
            "@status" => return Err("is a component of responses".into()),
            name if name.starts_with('@') => match DERIVED_COMPONENTS.into_iter().find(|known| *known == name) {
                Some(known) if parameters.is_empty() => ComponentSource::Derived(known),
                Some(_) => return Err("takes no parameter in a request".into()),
                None => {
                    return Err(format!(
                        "does not exist; the components are {}, @query-param",
                        DERIVED_COMPONENTS.join(", ")
                    ));
                }
            },
            name => parse_field(name, &parameters)?,
        };
        Ok(Self { identifier: item.serialize(), part })
    }

    /// Returns the member of `Signature-Agent` that belongs to the signature with this label.
    pub(super) fn agent_member(label: &str) -> Self {
        let part = ComponentSource::Field(super::SIGNATURE_AGENT.clone(), FieldForm::Member(label.to_owned()));
        Self { identifier: format!("\"signature-agent\";key=\"{label}\""), part }
    }

    /// Returns whether the component is the whole of this field, in any form.
    pub(super) fn covers_field(&self, name: &HeaderName) -> bool {
        matches!(&self.part, ComponentSource::Field(field, FieldForm::Lines | FieldForm::Strict(_) | FieldForm::Bytes) if field == name)
    }

    pub(super) fn refers_to_field(&self, name: &HeaderName) -> bool {
        matches!(&self.part, ComponentSource::Field(field, _) if field == name)
    }

    /// Returns whether the component contains the host of the target.
    pub(super) fn is_destination(&self) -> bool {
        matches!(self.part, ComponentSource::Derived("@authority" | "@target-uri"))
    }

    /// Returns the value in the signature base; `None` if the request has no such field, member or parameter.
    pub(super) fn value(&self, input: &SigningInput<'_>, fields: &Fields) -> Result<Option<String>, SignError> {
        match &self.part {
            ComponentSource::Derived("@target-uri") => Ok(Some(input.url())),
            ComponentSource::Derived("@scheme") => Ok(Some(input.target.scheme.as_str().to_owned())),
            ComponentSource::Derived(name) => {
                // The target is in origin-form; `Host` has the authority of the target.
                let sent =
                    SignableRequest { method: input.method, target: input.path_and_query, fields, has_body: true };
                sent.component(name).map(|value| Some(value.into_owned())).map_err(SignError::Unsignable)
            }
            ComponentSource::QueryParam(name) => query_param(input.path_and_query, name),
            ComponentSource::Field(name, form) => match fields.get_all(name).collect::<Vec<_>>()[..] {
                [] => Ok(None),
                ref lines => form.value_of(lines),
            },
        }
    }
}

fn parse_field(name: &str, parameters: &[(&str, &BareItem)]) -> Result<ComponentSource, String> {
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(format!("is not in lower case: write {}", name.to_ascii_lowercase()));
    }
    let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| "cannot be the name of a field".to_owned())?;
    match name {
        "host" => return Err("does not exist in HTTP/2: cover @authority".into()),
        "signature" | "signature-input" => return Err("carries the signature, which cannot cover itself".into()),
        name if HOP_BY_HOP.contains(&name) || name.starts_with("outgate-") => {
            return Err("is a hop-by-hop field: the receiver gets another value, or none".into());
        }
        _ => {}
    }
    let form = match parameters {
        [] => FieldForm::Lines,
        [("sf", BareItem::Boolean(true))] => match STRUCTURED_FIELDS.iter().find(|(known, _)| *known == name) {
            Some((_, structure)) => FieldForm::Strict(*structure),
            None => return Err("takes no `sf`: outgate does not know the type of the field; remove `sf`".into()),
        },
        [("bs", BareItem::Boolean(true))] => FieldForm::Bytes,
        [("key", BareItem::String(key))] => FieldForm::Member(key.as_str().to_owned()),
        [("req" | "tr", _)] => return Err("takes no `req` or `tr`: a webhook is a request without trailers".into()),
        _ => return Err("takes one parameter at most: sf, bs or key=\"NAME\"".into()),
    };
    Ok(ComponentSource::Field(header, form))
}

impl FieldForm {
    fn value_of(&self, lines: &[FieldValue<'_>]) -> Result<Option<String>, SignError> {
        const NOT_ASCII: SignError = SignError::Unsignable("a field that the signature covers is not ASCII");
        const NOT_STRUCTURED: SignError =
            SignError::Unsignable("a field that the signature covers is not a structured field (RFC 9651)");
        if let Self::Bytes = self {
            let line = |line: &FieldValue<'_>| format!(":{}:", BASE64_STANDARD.encode(line.as_bytes().trim_ascii()));
            return Ok(Some(lines.iter().map(line).collect::<Vec<_>>().join(", ")));
        }
        let texts = lines.iter().map(|line| line.to_str().map(str::trim_ascii));
        let joined = texts.collect::<Result<Vec<_>, _>>().map_err(|_| NOT_ASCII)?.join(", ");
        let parser = Parser::new(&joined);
        Ok(match self {
            Self::Lines | Self::Bytes => Some(joined),
            Self::Strict(StructuredType::Item) => Some(parser.parse::<Item>().map_err(|_| NOT_STRUCTURED)?.serialize()),
            Self::Strict(StructuredType::List) => parser.parse::<List>().map_err(|_| NOT_STRUCTURED)?.serialize(),
            Self::Strict(StructuredType::Dictionary) => {
                parser.parse::<Dictionary>().map_err(|_| NOT_STRUCTURED)?.serialize()
            }
            Self::Member(key) => {
                let members: Dictionary = parser.parse().map_err(|_| NOT_STRUCTURED)?;
                let member = members.into_iter().find(|(name, _)| name.as_str() == key).map(|(_, member)| member);
                match member {
                    None => None,
                    Some(ListEntry::Item(item)) => Some(item.serialize()),
                    Some(list) => List::from_iter([list]).serialize(),
                }
            }
        })
    }
}

/// Returns the parameter, percent-encoded again (RFC 9421 §2.2.8). A parameter that occurs twice cannot be covered.
fn query_param(path_and_query: &str, name: &str) -> Result<Option<String>, SignError> {
    let query = path_and_query.split_once('?').map_or("", |(_, query)| query);
    // A space is `+` in a form, and `%20` in a component.
    let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20");
    let mut values =
        form_urlencoded::parse(query.as_bytes()).filter(|(other, _)| encode(other) == name).map(|(_, value)| value);
    let value = values.next().map(|value| encode(&value));
    match values.next() {
        None => Ok(value),
        Some(_) => Err(SignError::Unsignable("a query parameter that the signature covers occurs twice")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::sign::fixture::Sample;

    #[test]
    fn components_have_the_values_of_rfc_9421() {
        let fields = vec![
            ("x-empty", ""),
            ("x-two", "a "),
            ("x-two", "b,  c"),
            ("x-obs", "caf\u{e9}"),
            ("priority", "u=1 ,  i"),
            ("example-dict", "a=1, b=2;x=1;y=2, c=(a b c), d"),
        ];
        let path_and_query =
            "/path?param=value&foo=bar&baz=batman&qux=&var=this%20is%20a%20big%0Avalue&twice=1&twice=2";
        let sample = Sample { fields, path_and_query: path_and_query.into(), ..Sample::body("{}") };
        for (identifier, expected) in [
            ("@method", Some("POST")),
            ("@target-uri", Some(&*format!("https://hooks.acme.example{path_and_query}"))),
            ("@scheme", Some("https")),
            ("@authority", Some("hooks.acme.example")),
            ("@request-target", Some(path_and_query)),
            ("@path", Some("/path")),
            ("@query-param;name=\"baz\"", Some("batman")),
            ("@query-param;name=\"qux\"", Some("")),
            ("@query-param;name=\"var\"", Some("this%20is%20a%20big%0Avalue")),
            ("@query-param;name=\"none\"", None),
            ("x-empty", Some("")),
            ("x-two", Some("a, b,  c")),
            ("x-two;bs", Some(":YQ==:, :YiwgIGM=:")),
            ("x-obs;bs", Some(":Y2Fmw6k=:")),
            ("priority;sf", Some("u=1, i")),
            ("\"priority\";key=\"u\"", Some("1")),
            ("example-dict;key=\"a\"", Some("1")),
            ("example-dict;key=\"b\"", Some("2;x=1;y=2")),
            ("example-dict;key=\"c\"", Some("(a b c)")),
            ("example-dict;key=\"d\"", Some("?1")),
            ("example-dict;key=\"e\"", None),
            ("x-none", None),
        ] {
            let component = Component::parse(identifier).unwrap();
            let value = sample.with_input(|input| component.value(input, input.headers)).unwrap();
            assert_eq!(value.as_deref(), expected, "{identifier}");
        }
        for identifier in ["@query-param;name=\"twice\"", "x-obs", "x-obs;key=\"a\""] {
            let component = Component::parse(identifier).unwrap();
            assert!(sample.with_input(|input| component.value(input, input.headers)).is_err(), "{identifier}");
        }
    }

    #[test]
    fn components_that_cannot_be_covered_are_refused() {
        for (identifier, why) in [
            ("", "cannot be the name"),
            ("@status", "responses"),
            ("@nothing", "does not exist; the components are @method"),
            ("@query-param", "needs the name"),
            ("@method;req", "takes no parameter"),
            ("Content-Type", "write content-type"),
            ("x y", "cannot be the name"),
            ("x\"y", "not a component identifier"),
            ("host", "@authority"),
            ("connection", "hop-by-hop"),
            ("via", "hop-by-hop"),
            ("outgate-tenant", "hop-by-hop"),
            ("signature", "itself"),
            ("x-a;sf", "outgate does not know the type of the field"),
            ("x-a;tr", "without trailers"),
            ("x-a;bs;sf", "one parameter at most"),
            ("x-a;key=1", "one parameter at most"),
        ] {
            let refused = Component::parse(identifier).unwrap_err();
            assert!(refused.contains(why), "{identifier}: {refused}");
        }
    }
}
