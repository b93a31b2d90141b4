//! Header fields that belong to one hop or to outgate, and that no other hop gets.
//! Which fields must a proxy remove, and which must it keep although `Connection` names them?

use http::{HeaderName, Version, header};

use crate::http_message::{FieldName, FieldValue, Fields};
use crate::net::http_client::parse_content_length;

/// Fields of the connection, never of the message (RFC 9110 §7.6.1).
static HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("keep-alive"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
];

/// Fields that `Connection` must not name: without one of them, the message would change or lose its signature.
const END_TO_END: [&str; 15] = [
    "host",
    "content-length",
    "content-type",
    "content-encoding",
    "content-digest",
    "authorization",
    "cookie",
    "date",
    "signature",
    "signature-input",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
    "cache-control",
    "via",
];

/// Returns whether `Connection` names an end-to-end field. outgate refuses such a request, and ignores the name in a
/// response.
pub(in crate::delivery) fn connection_names_end_to_end(fields: &Fields) -> bool {
    named_by_connection(fields).any(|name| END_TO_END.contains(&name.as_str()))
}

/// Removes the fields of the hop that the message came over, and every `Outgate-*`. Those of a client are for outgate, and
/// those of a target are forged.
pub(in crate::delivery) fn strip(fields: &mut Fields) {
    let named: Vec<_> = named_by_connection(fields).filter(|name| !END_TO_END.contains(&name.as_str())).collect();
    fields.retain_names(|name| !is_of_hop(name) && !named.iter().any(|named| name == *named));
}

/// Returns whether a field is of one hop in any case, or for outgate.
fn is_of_hop(name: FieldName<'_>) -> bool {
    name.starts_with("outgate-") || HOP_BY_HOP.iter().any(|hop_by_hop| name == *hop_by_hop)
}

fn named_by_connection(fields: &Fields) -> impl Iterator<Item = HeaderName> {
    let lines = fields.get_all(&header::CONNECTION);
    let options = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    options
        .map(<[u8]>::trim_ascii)
        .filter(|option| !is_common_option(option))
        .filter_map(|option| HeaderName::from_bytes(option).ok())
}

fn is_common_option(option: &[u8]) -> bool {
    option.is_empty() || option.eq_ignore_ascii_case(b"close") || option.eq_ignore_ascii_case(b"keep-alive")
}

/// Removes a Content-Length that is not one number (RFC 9110 §8.6), where no body proves it: in responses to HEAD, and 304.
pub(in crate::delivery) fn remove_malformed_content_length(fields: &mut Fields) {
    let mut lengths = fields.get_all(&header::CONTENT_LENGTH);
    let is_number = |length: FieldValue<'_>| parse_content_length(length.as_bytes()).is_some();
    let is_one_number = lengths.next().is_none_or(is_number) && lengths.next().is_none();
    drop(lengths);
    if !is_one_number {
        fields.remove(header::CONTENT_LENGTH);
    }
}

/// Removes from an interim response (1xx) the fields of the hop, and the length that it must not have (RFC 9110 §8.6).
pub(in crate::delivery) fn strip_interim(fields: &mut Fields) {
    strip(fields);
    fields.remove(header::CONTENT_LENGTH);
}

/// Appends `Via` with the version in which outgate received the message, and its pseudonym (RFC 9110 §7.6.3).
pub(in crate::delivery) fn add_via(fields: &mut Fields, version: Version, pseudonym: &str) {
    let version = match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    };
    fields.append(header::VIA, [version, " ", pseudonym]);
}

/// Returns whether the message has passed a proxy of this pseudonym.
pub(in crate::delivery) fn has_via(fields: &Fields, pseudonym: &str) -> bool {
    fields.get_all(&header::VIA).filter_map(|value| value.to_str().ok()).any(|value| {
        value
            .split(',')
            .any(|hop| hop.split_ascii_whitespace().nth(1).is_some_and(|by| by.eq_ignore_ascii_case(pseudonym)))
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn fields(list: &[(&'static str, &'static str)]) -> Fields {
        list.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn strip_removes_hop_by_hop_and_outgate_fields() {
        let mut map = fields(&[
            ("connection", "close, X-Hop"),
            ("x-hop", "1"),
            ("te", "trailers"),
            ("proxy-authorization", "Basic eDp5"),
            ("outgate-tenant", "acme"),
            ("authorization", "Bearer t"),
            ("x-kept", "1"),
        ]);
        strip(&mut map);
        let mut left: Vec<_> = map.iter().map(|(name, _)| name.to_lowercase()).collect();
        left.sort_unstable();
        assert_eq!(left, ["authorization", "x-kept"]);
    }

    #[test]
    fn strip_keeps_end_to_end_fields_that_connection_names() {
        for name in END_TO_END {
            let mut map = Fields::default();
            let connection = HeaderValue::from_static(name);
            map.insert(header::CONNECTION, &connection);
            map.insert(HeaderName::from_static(name), &HeaderValue::from_static("kept"));
            map.append(header::CONNECTION, &connection);
            map.insert(HeaderName::from_static("outgate-error"), &HeaderValue::from_static("forged"));
            assert!(connection_names_end_to_end(&map), "{name}");
            strip(&mut map);
            assert!(map.contains(name) && !map.contains("outgate-error"), "{name}");
        }
    }

    #[test]
    fn via_with_the_own_pseudonym_is_recognised() {
        assert!(has_via(&fields(&[("via", "1.0 a, 1.1 Outgate (x)")]), "outgate"));
        assert!(!has_via(&fields(&[("via", "1.1 outgate-2")]), "outgate"));
    }
}
