//! Tests of the fields of a message.
//! Do lines keep their order, their spelling and their values through every change?

use http::header;
use proptest::prelude::*;

use super::*;

fn parse(lines: &[(&str, &str)]) -> Fields {
    let mut fields = Fields::default();
    for (name, value) in lines {
        fields.append_parsed(&[httparse::Header { name, value: value.as_bytes() }], 0);
    }
    fields
}

fn written(fields: &Fields) -> String {
    let mut out = Vec::new();
    fields.write(&mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn fields_keep_the_order_and_the_spelling_of_their_sender() {
    let fields = parse(&[("HOST", "h"), ("X-One", "1"), ("x-two", "2"), ("X-ONE", "3")]);
    assert_eq!(written(&fields), "HOST: h\r\nX-One: 1\r\nx-two: 2\r\nX-ONE: 3\r\n");
    let values: Vec<_> = fields.get_all("x-one").map(|value| value.to_str().unwrap()).collect();
    assert_eq!((values, fields.get(header::HOST).unwrap().as_bytes()), (vec!["1", "3"], &b"h"[..]));
    assert!(!fields.contains("x-on") && !fields.contains("x-three"));
}

#[test]
fn set_field_keeps_its_place_and_spelling() {
    let mut fields = parse(&[("A", "1"), ("Content-LENGTH", "5"), ("b", "2"), ("content-length", "5")]);
    fields.insert(header::CONTENT_LENGTH, &HeaderValue::from_static("7"));
    fields.insert_first(header::HOST, &HeaderValue::from_static("h"));
    fields.insert(header::VIA, &HeaderValue::from_static("v"));
    assert_eq!(written(&fields), "host: h\r\nA: 1\r\nContent-LENGTH: 7\r\nb: 2\r\nvia: v\r\n");
    fields.insert_first(header::VIA, &HeaderValue::from_static("w"));
    fields.remove("B");
    assert_eq!(written(&fields), "host: h\r\nA: 1\r\nContent-LENGTH: 7\r\nvia: w\r\n");
    assert_eq!(fields.len(), 4);
}

#[test]
fn values_of_outgates_own_are_checked_like_others() {
    let mut fields = parse(&[("a", "1")]);
    fields.insert(header::VIA, ["1.1", " ", "p"]);
    fields.insert(header::CONTENT_LENGTH, u64::MAX);
    fields.append(header::SERVER, ["x", "\r\ny: z"]);
    assert_eq!(written(&fields), "a: 1\r\nvia: 1.1 p\r\ncontent-length: 18446744073709551615\r\n");
}

#[test]
fn value_with_a_line_end_is_none() {
    for (bytes, is_valid) in
        [(&b"a\tb \x80"[..], true), (b"", true), (b"a\nb", false), (b"a\r", false), (b"\x7f", false)]
    {
        assert_eq!(FieldValue::new(bytes).is_some(), is_valid, "{bytes:?}");
    }
}

#[test]
fn sensitive_value_stays_sensitive_and_is_not_shown() {
    let mut secret = HeaderValue::from_static("s3cret");
    secret.set_sensitive(true);
    let fields = Fields::from_iter([(header::AUTHORIZATION, secret)]);
    assert!(!format!("{fields:?}").contains("s3cret"));
    assert!(HeaderMap::from(&fields)[header::AUTHORIZATION].is_sensitive());
}

proptest! {
    /// The fields behave as a list of lines without an index does.
    #[test]
    fn fields_equal_a_plain_list(
        changes in proptest::collection::vec((0..4usize, "[A-Ca-c]{1,2}", "[a-z]{0,3}"), 0..24),
    ) {
        let (mut fields, mut list): (_, Vec<(String, String)>) = (Fields::default(), Vec::new());
        for (change, name, value) in &changes {
            let (header, field) = (HeaderName::try_from(name).unwrap(), HeaderValue::try_from(value).unwrap());
            let first = list.iter().position(|(own, _)| own.eq_ignore_ascii_case(name));
            match change {
                0 => {
                    fields.append_parsed(&[httparse::Header { name, value: value.as_bytes() }], 0);
                    list.push((name.clone(), value.clone()));
                }
                1 => {
                    fields.append(&header, &field);
                    list.push((header.as_str().to_owned(), value.clone()));
                }
                2 => {
                    fields.remove(name);
                    list.retain(|(own, _)| !own.eq_ignore_ascii_case(name));
                }
                _ => {
                    fields.insert(&header, &field);
                    let spelling = first.map_or(header.as_str().to_owned(), |first| list[first].0.clone());
                    let mut at = 0;
                    list.retain(|(own, _)| {
                        at += 1;
                        !own.eq_ignore_ascii_case(name) || Some(at - 1) == first
                    });
                    let line = (spelling, value.clone());
                    first.map(|first| list[first] = line.clone()).unwrap_or_else(|| list.push(line));
                }
            }
        }
        let lines: String = list.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        prop_assert_eq!(written(&fields), lines);
        for (name, _) in &list {
            let expected: Vec<_> =
                list.iter().filter(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_bytes()).collect();
            prop_assert_eq!(fields.get_all(name).map(FieldValue::as_bytes).collect::<Vec<_>>(), expected);
        }
    }
}
