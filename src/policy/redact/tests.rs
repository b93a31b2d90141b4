//! The redactor's tables of examples, and its law: a planted secret or number never survives.
//! Is everything private removed, and everything else kept?

use std::borrow::Cow;

use http::HeaderName;
use proptest::prelude::*;

use super::{PathForm, Redacted, Redactor, RoutePaths};
use crate::config::{Located, Problem, Redact, Secret};
use crate::host;
use crate::http_message::FieldName;
use crate::names::TenantName;
use crate::policy::fixture::{at, messages};

/// The default settings, with a key if there is one.
fn redactor(path: PathForm, key: Option<&[u8]>) -> Redactor {
    let mut problems = Vec::new();
    let written = Redact { path, ..written(key) };
    let redactor = Redactor::compile(&written, &mut problems);
    assert_eq!(messages(&problems), [""; 0]);
    redactor
}

fn written(key: Option<&[u8]>) -> Redact {
    let hmac_key: Option<Located<Secret>> = key.map(|key| at(7, Secret::new(key.to_vec())));
    Redact { path: PathForm::default(), phone_numbers: true, headers: Vec::new(), hmac_key }
}

const KEY: &[u8] = b"0123456789abcdef";

fn path_by(redactor: &Redactor, host: &str, path: &str) -> String {
    let host = host::canonical(host).expect("a host");
    redactor.path(&RoutePaths::default(), &host, path).expect("a path").to_string()
}

fn masked(host: &str, path: &str) -> String {
    path_by(&Redactor::default(), host, path)
}

#[test]
fn redact_shows_paths_in_part_or_whole() {
    for (form, expected) in
        [(PathForm::None, false), (PathForm::Template, false), (PathForm::Masked, true), (PathForm::Full, true)]
    {
        let redactor = Redactor { path: form, ..Redactor::default() };
        assert_eq!(redactor.shows_paths(), expected, "{form:?}");
    }
}

#[test]
fn redact_replaces_queries_to_their_end() {
    for (message, expected) in [
        ("GET /in?key=1 failed", "GET /in?*** failed"),
        ("see \"/in?key=1 x\" and /out?a", "see \"/in?*** x\" and /out?***"),
        // A literal of bytes, as the HTTP/2 library writes it: its query may have spaces, and its fragment is replaced, too.
        ("path b\"/in?key=1 2#3\" of 4#5", "path b\"/in?***\" of 4#5"),
        ("path b\"/ab\" and /in?a b", "path b\"/ab\" and /in?*** b"),
        ("path b\"/in#f g\"", "path b\"/in#***\""),
        ("an empty one? yes", "an empty one? yes"),
    ] {
        assert_eq!(Redactor::default().message(message).as_str(), expected);
    }
}

#[test]
fn redact_keeps_paths_of_words_and_short_identifiers() {
    let host = host::canonical("a.example").expect("a host");
    for path in [
        "/",
        "",
        "*",
        "/webhooks/orders",
        "/v1/deliveryStatusCallbackHandler/42",
        "/v1/OrderStatusChangedCallback/42",
        "/v1/deliveryStatusCallbackHandlerForProduction2",
        "/a//b/",
        "/2024-11-26/order-confirmation-2024",
        "/2024-11-26T10:11:12.123456Z",
        "/api/v2/internationalization-of-notifications",
        "/months-structure/lengths-strings",
        "/customers/1234567/events",
        "/addresses/192.168.100.10",
        "/versions/10.200.300.4",
        "/%7Euser/caf%C3%A9",
        "/100%/x",
        "/webhooks/message-status-callback-for-production",
    ] {
        let redactor = Redactor::default();
        let written = redactor.path(&RoutePaths::default(), &host, path).expect("a path");
        assert_eq!(written.as_str(), path);
        assert!(matches!(written, Redacted(Cow::Borrowed(_))), "copied: {path}");
    }
}

#[test]
fn redact_masks_the_secrets_of_webhook_services() {
    for (host, path, written) in [
        ("hooks.slack.com", "/services/T024/B7AB/short", "/services/T024/B7AB/***"),
        ("hooks.slack.com", "//services/./T024/B7AB/short", "//services/./T024/B7AB/***"),
        ("hooks.slack.com", "/%73ervices/T024/B7AB/short", "/%73ervices/T024/B7AB/***"),
        ("hooks.slack.com", "/workflows/T0/A1/17/short", "/workflows/T0/A1/***/***"),
        ("discord.com", "/api/webhooks/123456/tok", "/api/webhooks/123456/***"),
        ("canary.discord.com", "/api/webhooks/123456/tok/slack", "/api/webhooks/123456/***/***"),
        ("acme.webhook.office.com", "/webhookb2/a@b/IncomingWebhook/c/d", "/webhookb2/***/***/***/***"),
        ("prod-1.westeurope.logic.azure.com", "/workflows/a/triggers", "/workflows/***/***"),
        ("api.telegram.org", "/bot1:short/sendMessage", "/***/***"),
        ("hooks.zapier.com", "/hooks/catch/123/abc/", "/hooks/catch/123/***/"),
        ("maker.ifttt.com", "/trigger/paid/with/key/abc", "/trigger/paid/with/key/***"),
        ("hooks.slack.com", "/status", "/status"),
        ("slack.com", "/services/T024/B7AB/short", "/services/T024/B7AB/short"),
        ("evildiscord.com", "/api/webhooks/123456/tok", "/api/webhooks/123456/tok"),
    ] {
        assert_eq!(masked(host, path), written, "{host}{path}");
    }
}

#[test]
fn redact_masks_random_segments_and_uuids() {
    for secret in [
        "9f86d081884c7d659a2feaa0c55ad015",
        "f47ac10b-58cc-4372-a567-0e02b2c3d479",
        "AC0123456789abcdef0123456789abcdef",
        "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
        "xoxb-17653672481-19874698323-pdFZKVeTuE8sk7oOcHrzqqgy",
        "sk%5Flive%5F4eC39HqLyjWDarjtT1zdp7dc",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N",
        "%252525252525252541",
        // An escape divides a random text into two that are too short.
        "kXvQmZrB%74YpLwNsDgH",
    ] {
        assert_eq!(masked("a.example", &format!("/hooks/{secret}/x")), "/hooks/***/x", "{secret}");
    }
}

/// Outgate decodes four further layers. What is encoded more often may hide a secret.
#[test]
fn redact_masks_segments_with_more_layers_of_encoding_than_it_removes() {
    for (path, written) in [
        ("/hooks/%255A/x", "/hooks/%255A/x"),
        ("/hooks/%252525255A/x", "/hooks/%252525255A/x"),
        ("/hooks/%25252525255A/x", "/hooks/***/x"),
    ] {
        assert_eq!(masked("a.example", path), written);
    }
}

#[test]
fn redact_removes_the_last_four_digits_of_phone_numbers() {
    for (path, written) in [
        ("/sms/+1234567", "/sms/+123XXXX"),
        ("/sms/+123456", "/sms/+123456"),
        ("/sms/+4420794601%202024", "/sms/+442079XXXX%202024"),
        ("/sms/415%20%20555-0123", "/sms/415%20%20555-0123"),
        ("/sms/+819012345678", "/sms/+81901234XXXX"),
        ("/sms/%2B819012345678/in", "/sms/%2B81901234XXXX/in"),
        // IIS decodes %uXXXX.
        ("/sms/%u002B8%u0031901234567%u0038/in", "/sms/%u002B8%u0031901234XXXX/in"),
        ("/sms/%2b81901234567%38", "/sms/%2b81901234XXXX"),
        ("/sms/%252B819012345678", "/sms/***"),
        ("/sms/819012345678", "/sms/81901234XXXX"),
        ("/sms/to819012345678x", "/sms/to81901234XXXXx"),
        ("/sms/+1-415-555-0123", "/sms/+1-415-555-XXXX"),
        ("/sms/+1-2-3-4-5-6-7-8-9-0-1-2-3-4-5-6", "/sms/+1-2-3-4-5-6-X-X-X-X-X-X-X-X-X-6"),
        ("/sms/+1-415-555-0123-2024", "/sms/+1-415-555-XXXX-XXXX"),
        ("/sms/+14155550123-20245", "/sms/+1415555XXXX-20245"),
        ("/sms/%2B14155550123%2D2024", "/sms/%2B1415555XXXX%2DXXXX"),
        ("/sms/+14155550123.1", "/sms/+1415555XXXX.X"),
        ("/sms/0081-90-1234-5678-90", "/sms/0081-90-1234-XXXX-XX"),
        ("/sms/415-555-0123-2", "/sms/415-555-XXXX-2"),
        // The country code 1 without `+`, and groups of the same lengths in other numbers.
        ("/sms/1-415-555-0123", "/sms/1-415-555-XXXX"),
        ("/sms/1 (415) 555-0123", "/sms/1 (415) 555-XXXX"),
        ("/sms/1-415-555-012", "/sms/1-415-555-012"),
        ("/sms/12-41-555-0123", "/sms/12-41-555-0123"),
        ("/sms/01-23.45-67.89", "/sms/01-23.45-67.89"),
        // What follows a number is read from its end on, and a sign alone is none.
        ("/sms/415-555-0100%20415555019", "/sms/415-555-XXXX%20415555019"),
        ("/sms/a+b-1234567", "/sms/a+b-1234567"),
        ("/sms/090-1234-5678%20200", "/sms/090-1234-XXXX%20200"),
        ("/sms/090%201234%205678%201", "/sms/090%201234%20XXXX%201"),
        ("/sms/01%2023%2045%2067%2089-12", "/sms/01%2023%2045%20XX%20XX-12"),
        ("/sms/(415)%20555-0123", "/sms/(415)%20555-XXXX"),
        ("/sms/415-555-0123", "/sms/415-555-XXXX"),
        ("/sms/090-1234-5678", "/sms/090-1234-XXXX"),
        ("/sms/01%2023%2045%2067%2089", "/sms/01%2023%2045%20XX%20XX"),
        ("/sms/0081%2090%201234%205678", "/sms/0081%2090%201234%20XXXX"),
        ("/from/+14155550123/to/+14155550199", "/from/+1415555XXXX/to/+1415555XXXX"),
    ] {
        assert_eq!(masked("a.example", path), written);
    }
    let keeps = Redactor::compile(&Redact { phone_numbers: false, ..written(None) }, &mut Vec::new());
    assert_eq!(path_by(&keeps, "a.example", "/sms/%252B819012345678"), "/sms/%252B819012345678");
    assert_eq!(keeps.text("+14155550123").as_str(), "+14155550123");
}

#[test]
fn redact_removes_phone_numbers_from_text_of_every_form() {
    for (text, written) in [
        ("id +14155550123 of", "id +1415555XXXX of"),
        ("+14155550123 200 ms", "+1415555XXXX 200 ms"),
        ("to=%2B81%2090%201234%205678&x=1", "to=%2B81%2090%201234%20XXXX&x=1"),
        ("to=%252B819012345678&x=1", "to=***&x=1"),
        ("\"From: +1 (415) 555-0123\"", "\"From: +1 (415) 555-XXXX\""),
        ("tel:+819012345678;ext=9", "tel:+81901234XXXX;ext=9"),
        ("für 090-1234-5678 …", "für 090-1234-XXXX …"),
        (
            "65536 bytes at 2026-11-26T10:11:12Z from 10.100.200.123:443",
            "65536 bytes at 2026-11-26T10:11:12Z from 10.100.200.123:443",
        ),
    ] {
        assert_eq!(Redactor::default().text(text).as_str(), written);
    }
}

#[test]
fn redact_removes_random_words_and_queries_from_messages() {
    let token = "dozjgNryP4J3jVmNHl0w5N";
    for (message, written) in [
        (format!("with decoding it is \"/in/{token}\""), "with decoding it is \"/in/***\""),
        (format!("malformed path (\"/in?a={token}&b=c\"): bad"), "malformed path (\"/in?***\"): bad"),
        (
            "malformed path (b\"/ a?x='hunter2 more\") of b\"/in\"?".to_owned(),
            "malformed path (b\"/ a?***\") of b\"/in\"?",
        ),
        ("malformed path (b\"/ a#hunter2 more\"), stream #5".to_owned(), "malformed path (b\"/ a#***\"), stream #5"),
        ("is it /in?x y? yes".to_owned(), "is it /in?*** y? yes"),
        ("the target refused the connection".to_owned(), "the target refused the connection"),
        ("may not send for tenant \"+819012345678\"".to_owned(), "may not send for tenant \"+81901234XXXX\""),
        ("10.0.0.1: Private-Use (RFC 1918)".to_owned(), "10.0.0.1: Private-Use (RFC 1918)"),
    ] {
        assert_eq!(Redactor::default().message(&message).as_str(), written);
    }
}

#[test]
fn redact_keeps_a_proven_tenant_and_masks_a_claim() {
    let redactor = Redactor::default();
    for (tenant, proven, claimed) in [
        ("acme", "acme", "acme"),
        ("f47ac10b-58cc-4372-a567-0e02b2c3d479", "f47ac10b-58cc-4372-a567-0e02b2c3d479", "***"),
        ("+819012345678", "+81901234XXXX", "+81901234XXXX"),
    ] {
        let tenant = TenantName::new(tenant);
        assert_eq!(redactor.tenant(&tenant, true).as_str(), proven);
        assert_eq!(redactor.tenant(&tenant, false).as_str(), claimed);
    }
    let headers = ["outgate-tenant", "webhook-id", "x-number"].map(HeaderName::from_static).to_vec();
    let redactor = Redactor::compile(&Redact { headers, ..written(None) }, &mut Vec::new());
    assert_eq!(redactor.tenant(&TenantName::new("acme"), true).as_str(), "***");
    assert_eq!(redactor.webhook_id("msg_1", false).as_str(), "***");
}

#[test]
fn redact_masks_the_values_of_secret_headers() {
    let headers = vec![HeaderName::from_static("x-number")];
    let redactor = Redactor::compile(&Redact { headers, ..written(None) }, &mut Vec::new());
    for (name, value, shown) in [
        ("authorization", "Bearer x", "***"),
        ("set-cookie", "a=b", "***"),
        ("webhook-signature", "v1,x", "***"),
        ("x-api-key", "x", "***"),
        ("x-number", "12", "***"),
        ("x-from", "+14155550123", "+1415555XXXX"),
        ("etag", "\"9f86d081884c7d659a2feaa0c55ad015\"", "\"9f86d081884c7d659a2feaa0c55ad015\""),
    ] {
        assert_eq!(redactor.header(FieldName::from(name), value).as_str(), shown, "{name}");
    }
}

#[test]
fn redact_writes_a_path_in_the_form_that_its_route_names() {
    let host = host::canonical("hooks.slack.com").expect("a host");
    let sent = "/services/T/B/s/+14155550123";
    let path = |form, conditions: &[&str], path| {
        let conditions = conditions.iter().map(|condition| (*condition).into()).collect();
        let route = RoutePaths { form: Some(form), conditions };
        Redactor::default().path(&route, &host, path).map(|path| path.to_string())
    };
    assert_eq!(path(PathForm::Full, &[""], sent).as_deref(), Some("/services/T/B/s/+1415555XXXX"));
    assert_eq!(path(PathForm::Masked, &[""], sent).as_deref(), Some("/services/T/B/***/***"));
    assert_eq!(path(PathForm::None, &[""], sent), None);
    for (conditions, template) in [
        (&[""] as &[_], "/*"),
        (&["/services/", "/serv", "/"], "/services/*"),
        (&["/services"], "/services/*"),
        (&[sent], sent),
        (&["/other"], "/*"),
    ] {
        assert_eq!(path(PathForm::Template, conditions, sent).as_deref(), Some(template));
    }
}

#[test]
fn redact_writes_equal_keyed_hashes_for_equal_secrets() {
    let path = |key: &[u8], path: &str| path_by(&redactor(PathForm::Masked, Some(key)), "a.example", path);
    let one = "/h/9f86d081884c7d659a2feaa0c55ad015";
    assert_eq!(path(KEY, one), path(KEY, "/h/%39f86d081884c7d659a2feaa0c55ad015"));
    assert_ne!(path(KEY, one), path(b"another key of 24 bytes.", one));
    assert_ne!(path(KEY, one), path(KEY, "/h/9f86d081884c7d659a2feaa0c55ad016"));
    let written = path(KEY, one);
    assert!(written.starts_with("/h/hmac:") && written.len() == "/h/hmac:".len() + 16, "{written}");
    let number = path(KEY, "/+81-90-1234-5678");
    let (shown, hash) = number.split_once('~').expect("a hash");
    assert_eq!(shown, "/+81-90-1234-XXXX");
    assert_eq!(path(KEY, "/%2B819012345678"), format!("/%2B81901234XXXX~{hash}"));
    assert!(!path(KEY, "/+819012345679").ends_with(hash));
    let with_country = path(KEY, "/+14155550123");
    let (_, hash) = with_country.split_once('~').expect("a hash");
    assert_eq!(path(KEY, "/1-415-555-0123"), format!("/1-415-555-XXXX~{hash}"));
}

#[test]
fn redact_rejects_a_key_that_can_be_guessed() {
    let mut problems: Vec<Problem> = Vec::new();
    let _ = Redactor::compile(&written(Some(b"short")), &mut problems);
    assert_eq!(messages(&problems), ["`redact.hmac_key` has 5 bytes and can be guessed"]);
}

/// Percent-encodes some bytes of a text, `layers` times. `wide`: as `%uXXXX`.
fn encode(text: &str, which: &[bool], layers: usize, wide: bool) -> String {
    let once = |text: &str| -> String {
        text.bytes()
            .zip(which.iter().cycle())
            .map(|(byte, encode)| match *encode || !byte.is_ascii_alphanumeric() {
                true if wide => format!("%u{byte:04x}"),
                true => format!("%{byte:02x}"),
                false => char::from(byte).to_string(),
            })
            .collect()
    };
    (0..layers).fold(text.to_owned(), |text, _| once(&text))
}

/// Returns the text in each of its decoded forms.
fn readings(text: &str) -> Vec<String> {
    let mut readings = vec![text.to_owned()];
    for layer in 0..4 {
        let decoded = super::decode::Decoded::new(&readings[layer]).bytes().to_vec();
        readings.push(String::from_utf8_lossy(&decoded).into_owned());
    }
    readings
}

fn separated(number: &str, separator: &str) -> String {
    let digits = number.as_bytes().chunks(3).map(String::from_utf8_lossy);
    digits.collect::<Vec<_>>().join(separator)
}

proptest! {
    #[test]
    fn redact_lets_no_planted_secret_or_number_survive(
        secret in "[A-Za-z0-9_-]{43}|[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
        number in "[1-9][0-9]{9,13}",
        separator in "[-. ]?",
        before in "[a-z]{0,8}",
        which: [bool; 7],
        layers in 0..4usize,
        wide: bool,
        has_key: bool,
    ) {
        let redactor = redactor(PathForm::Masked, has_key.then_some(KEY));
        let dialled = format!("+{}", separated(&number, &separator));
        let (sent_secret, sent_number) = (encode(&secret, &which, layers, wide), encode(&dialled, &which, layers, wide));
        let path = format!("/{before}/{sent_secret}/{sent_number}/x");
        let written = path_by(&redactor, "a.example", &path);
        let message = redactor.message(&format!("{before} {sent_secret}: \"{sent_number}\" {number}")).to_string();
        let text = redactor.text(&format!("a={sent_number}&{number}")).to_string();
        let claim = redactor.claim(&sent_secret).to_string();
        for output in [&written, &message, &text, &claim] {
            for reading in readings(output) {
                prop_assert!(!reading.contains(&number) && !reading.contains(&dialled), "{path} -> {output}");
                // Of 43 random characters, fewer than one in a million look like words.
                prop_assert!(!reading.contains(&secret), "{path} -> {output}");
            }
        }
    }

    #[test]
    fn redact_keeps_words(words in proptest::collection::vec("[a-z]{1,3}[aeiou]", 1..6), separator in "[-_/. ]") {
        let text = words.join(&separator);
        let message = Redactor::default().message(&text).to_string();
        prop_assert_eq!(&message, &text);
        prop_assert_eq!(masked("a.example", &format!("/{text}")), format!("/{text}"));
    }
}
