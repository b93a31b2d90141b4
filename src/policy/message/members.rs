//! The members of a dictionary field, each with its original text.
//! Which bytes belong to which member?

use http::HeaderName;
use sfv::{BareItem, Dictionary, ListEntry, Parser};

use crate::http_message::{FieldValue, Fields};

/// A member of a dictionary (RFC 9651 §3.2).
pub(crate) struct Member<'a> {
    pub(crate) label: &'a str,
    /// The original text without surrounding white space.
    pub(crate) text: &'a str,
}

impl Member<'_> {
    /// Returns the value if it is a byte sequence without parameters.
    pub(crate) fn bytes(&self) -> Option<Vec<u8>> {
        let parsed: Dictionary = Parser::new(self.text).parse().ok()?;
        match parsed.into_iter().next() {
            Some((_, ListEntry::Item(item))) if item.params.is_empty() => match item.bare_item {
                BareItem::ByteSequence(bytes) => Some(bytes),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Returns the members of all lines of a field, in order. `None` if a line is no dictionary or a label occurs twice.
/// The last one would count (RFC 9651 §3.2), but not every reader does so.
pub(crate) fn parse_all<'a>(fields: &'a Fields, name: &'a HeaderName) -> Option<Vec<Member<'a>>> {
    let lines = fields.get_all(name).map(parse_line).collect::<Option<Vec<_>>>()?;
    let members: Vec<_> = lines.into_iter().flatten().collect();
    let mut labels: Vec<&str> = members.iter().map(|member| member.label).collect();
    labels.sort_unstable();
    labels.is_sorted_by(|one, next| one < next).then_some(members)
}

/// Returns the members of one line. The parser validates the dictionary; the member boundaries are found in the text
/// and must agree with it.
pub(crate) fn parse_line(line: FieldValue<'_>) -> Option<Vec<Member<'_>>> {
    let text = line.to_str().ok()?;
    let parsed: Dictionary = Parser::new(text).parse().ok()?;
    let members: Vec<_> = split_members(text).filter(|text| !text.is_empty()).map(member).collect();
    let same = members.len() == parsed.len() && members.iter().all(|member| parsed.contains_key(member.label));
    same.then_some(members)
}

fn member(text: &str) -> Member<'_> {
    Member { label: text.split(['=', ';']).next().unwrap_or_default(), text }
}

/// Splits at the commas outside strings. In a Display String (`%"…"`) a backslash escapes nothing (RFC 9651 §3.3.8).
fn split_members(text: &str) -> impl Iterator<Item = &str> {
    let (mut in_string, mut escaped, mut is_display, mut before) = (false, false, false, ' ');
    let at_comma = move |c: char| {
        let ends = c == ',' && !in_string;
        if !escaped && c == '"' {
            (in_string, is_display) = (!in_string, before == '%' && !in_string);
        }
        escaped = in_string && !is_display && !escaped && c == '\\';
        before = c;
        ends
    };
    text.split(at_comma).map(|part| part.trim_matches([' ', '\t']))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use proptest::prelude::*;

    fn texts(line: &str) -> Option<Vec<String>> {
        parse_line(FieldValue::new(line.as_bytes()).unwrap())
            .map(|members| members.iter().map(|member| format!("{}|{}", member.label, member.text)).collect())
    }

    #[test]
    fn dictionary_members_end_where_the_parser_says() {
        let some = |list: &[&str]| Some(list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        for (line, expected) in [
            ("", some(&[])),
            ("a=1", some(&["a|a=1"])),
            (" a=1 ,\tb;x=2, c=?0", some(&["a|a=1", "b|b;x=2", "c|c=?0"])),
            (r#"a="x, y", b=("p,q" "r");s="\", t=1""#, some(&[r#"a|a="x, y""#, r#"b|b=("p,q" "r");s="\", t=1""#])),
            (r#"a="\\", b=1"#, some(&[r#"a|a="\\""#, "b|b=1"])),
            (r#"a=%"\", b="p,b=1""#, some(&[r#"a|a=%"\""#, r#"b|b="p,b=1""#])),
            ("sig1=:YWJj:, sig2=:ZGVm:", some(&["sig1|sig1=:YWJj:", "sig2|sig2=:ZGVm:"])),
            ("a=1, a=2", None),
            ("a=1,", None),
            ("a=1,,b=2", None),
            ("A=1", None),
            (r#"a="x"#, None),
            ("keyId=\"x\",algorithm=\"rsa-sha256\"", None),
        ] {
            assert_eq!(texts(line), expected, "{line}");
        }
    }

    #[test]
    fn dictionary_member_is_bytes_without_parameters() {
        let bytes = |text: &'static str| Member { label: "a", text }.bytes();
        assert_eq!(bytes("a=:YWJj:").as_deref(), Some(&b"abc"[..]));
        for text in ["a=:YWJj:;p=1", "a=:YWJj:;p", "a=\"abc\"", "a=(:YWJj:)", "a"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }

    #[test]
    fn dictionary_labels_are_unique_across_lines() {
        let name = HeaderName::from_static("signature");
        let mut fields = Fields::default();
        fields.append(&name, &HeaderValue::from_static("a=1, b=2"));
        fields.append(&name, &HeaderValue::from_static("c=3"));
        assert_eq!(parse_all(&fields, &name).unwrap().len(), 3);
        fields.append(&name, &HeaderValue::from_static("b=2"));
        assert!(parse_all(&fields, &name).is_none());
    }

    proptest! {
        /// The members of a line always parse as the same dictionary.
        #[test]
        fn dictionary_members_read_back_as_the_same_dictionary(line in r#"[ab=,;"\\%()?01 :]{0,24}"#) {
            let value = FieldValue::new(line.as_bytes()).unwrap();
            if let Some(members) = parse_line(value) {
                let joined: Vec<&str> = members.iter().map(|member| member.text).collect();
                let (again, once): (Dictionary, Dictionary) =
                    (Parser::new(&joined.join(", ")).parse().unwrap(), Parser::new(&line).parse().unwrap());
                prop_assert_eq!(again, once);
            }
        }
    }
}
