//! Tests with blocks of the RFC, and of hostile peers.
//! Which sections are malformed, and does a rewritten block have the same fields?

use FieldSection::{Request, Response, Trailers};

use super::*;

const LIST_MAX: usize = 64 * 1024;

pub(in crate::net::hpack) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

fn field(kind: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut block = Vec::new();
    encode(&mut block, kind, name, value);
    block
}

fn entries(decoder: &HpackDecoder) -> Vec<(String, usize)> {
    decoder.entries.iter().map(|entry| (String::from_utf8_lossy(&entry.name).into_owned(), entry.size())).collect()
}

fn violated_rule(decoder: &mut HpackDecoder, section: FieldSection, block: &[u8]) -> Option<FieldRule> {
    decoder.decode_and_validate(block, section, None).unwrap().violated
}

/// Returns the block, rewritten without references.
fn rewritten(decoder: &mut HpackDecoder, block: &[u8]) -> Vec<u8> {
    let mut rewritten = RewrittenBlock::new(LIST_MAX);
    assert_eq!(decoder.decode_and_validate(block, Request, Some(&mut rewritten)).unwrap().violated, None);
    rewritten.block
}

/// RFC 7541 Appendix C.3 and C.4: the same requests, without and with Huffman coding.
#[test]
fn hpack_decodes_the_rfc_requests_and_fills_the_table() {
    for blocks in [
        [
            "828684410f7777772e6578616d706c652e636f6d",
            "828684be58086e6f2d6361636865",
            "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
        ],
        [
            "828684418cf1e3c2e5f23a6ba0ab90f4ff",
            "828684be5886a8eb10649cbf",
            "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        ],
    ] {
        let mut decoder = HpackDecoder::default();
        let written: Vec<_> = blocks.iter().map(|block| rewritten(&mut decoder, &hex(block))).collect();
        let expected = [("custom-key", 54), ("cache-control", 53), (":authority", 57)];
        assert_eq!(entries(&decoder), expected.map(|(name, size)| (name.to_owned(), size)));
        // Each rewritten block refers only to the static table.
        let authority = field(0, b":authority", b"www.example.com");
        let last =
            [&[EMPTY_TABLE, 0x82, 0x87, 0x85][..], &authority, &field(0, b"custom-key", b"custom-value")].concat();
        assert_eq!(written[2], last);
        let second =
            [&[EMPTY_TABLE, 0x82, 0x86, 0x84][..], &authority, &field(0, b"cache-control", b"no-cache")].concat();
        assert_eq!(written[1], second);
    }
}

/// RFC 7541 Appendix C.6, whose table holds 256 bytes, and RFC 9113 §6.5.2.
#[test]
fn hpack_decodes_the_rfc_responses_with_their_size() {
    let mut decoder = HpackDecoder::default();
    let first = "3fe101488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae\
                 82ae43d3";
    let fields = [7 + 3, 13 + 7, 4 + 29, 8 + 23];
    let size = fields.iter().sum::<usize>() + fields.len() * ENTRY_OVERHEAD;
    assert_eq!(
        decoder.decode_and_validate(&hex(first), Response, None),
        Ok(CheckedBlock { size, violated: None, is_interim: false })
    );
    // `:status: 307` evicts `:status: 302`.
    assert_eq!(violated_rule(&mut decoder, Response, &hex("4883640effc1c0bf")), None);
    let names: Vec<String> = entries(&decoder).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, [":status", "location", "date", "cache-control"]);
}

#[test]
fn hpack_reports_the_rule_that_a_malformed_field_violates() {
    let status = field(0, b":status", b"200");
    for (name, value, rule) in [
        ("X", "y", FieldRule::FieldName),
        ("", "y", FieldRule::FieldName),
        ("x y", "z", FieldRule::FieldName),
        ("x:", "z", FieldRule::FieldName),
        ("x", "a\nb", FieldRule::FieldValue),
        ("x", "\0", FieldRule::FieldValue),
        ("x", "\x7f", FieldRule::FieldValue),
        ("connection", "close", FieldRule::ConnectionField),
        ("keep-alive", "1", FieldRule::ConnectionField),
        ("proxy-connection", "close", FieldRule::ConnectionField),
        ("transfer-encoding", "chunked", FieldRule::ConnectionField),
        ("upgrade", "h2c", FieldRule::ConnectionField),
        ("te", "gzip", FieldRule::ConnectionField),
        (":unknown", "x", FieldRule::PseudoHeader),
    ] {
        let bad = field(0, name.as_bytes(), value.as_bytes());
        assert_eq!(violated_rule(&mut HpackDecoder::default(), Request, &bad), Some(rule), "{name}: {value:?}");
        assert_eq!(violated_rule(&mut HpackDecoder::default(), Trailers, &bad), Some(rule), "{name}: {value:?}");
        let block = [status.clone(), bad].concat();
        assert_eq!(violated_rule(&mut HpackDecoder::default(), Response, &block), Some(rule), "{name}: {value:?}");
    }
    for value in [" x", "x ", "\tx", "x\t", " "] {
        let spaced = field(0, b"x", value.as_bytes());
        assert_eq!(
            violated_rule(&mut HpackDecoder::default(), Trailers, &spaced),
            Some(FieldRule::WhiteSpace),
            "{value:?}"
        );
        let block = [status.clone(), spaced.clone()].concat();
        assert_eq!(
            violated_rule(&mut HpackDecoder::default(), Response, &block),
            Some(FieldRule::WhiteSpace),
            "{value:?}"
        );
        // The server refuses such a request with a response.
        assert_eq!(violated_rule(&mut HpackDecoder::default(), Request, &spaced), None, "{value:?}");
    }
    for (name, value) in [("x", "a b"), ("x", ""), ("x", "\u{e9}"), ("te", "trailers"), ("x!#$%&'*+-.^_`|~9", "\u{80}")]
    {
        assert_eq!(
            violated_rule(&mut HpackDecoder::default(), Trailers, &field(0, name.as_bytes(), value.as_bytes())),
            None,
            "{name}"
        );
    }
}

#[test]
fn hpack_requires_pseudo_headers_once_and_before_regular_fields() {
    let pseudo = |name: &str, value: &str| field(0, name.as_bytes(), value.as_bytes());
    let (path, status, other) = (pseudo(":path", "/"), pseudo(":status", "200"), pseudo("x", "y"));
    for (section, block, rule) in [
        (Request, vec![&path, &other], None),
        (Request, vec![&other, &path], Some(FieldRule::PseudoHeader)),
        (Request, vec![&path, &path], Some(FieldRule::PseudoHeader)),
        (Request, vec![&status], Some(FieldRule::PseudoHeader)),
        (Request, vec![&pseudo(":method", "a b")], Some(FieldRule::FieldValue)),
        (Request, vec![&pseudo(":method", "")], Some(FieldRule::FieldValue)),
        (Request, vec![&pseudo(":path", " /")], Some(FieldRule::WhiteSpace)),
        (Response, vec![&status, &other], None),
        (Response, vec![&other, &status], Some(FieldRule::PseudoHeader)),
        (Response, vec![&status, &status], Some(FieldRule::PseudoHeader)),
        (Response, vec![&status, &path], Some(FieldRule::PseudoHeader)),
        (Response, vec![&other], Some(FieldRule::PseudoHeader)),
        (Response, vec![], Some(FieldRule::PseudoHeader)),
        (Trailers, vec![&other], None),
        (Trailers, vec![], None),
        (Trailers, vec![&status], Some(FieldRule::PseudoHeader)),
        (Trailers, vec![&path, &other], Some(FieldRule::PseudoHeader)),
    ] {
        let block: Vec<u8> = block.into_iter().flatten().copied().collect();
        assert_eq!(violated_rule(&mut HpackDecoder::default(), section, &block), rule, "{section:?} {block:?}");
    }
    for (status, rule) in [("200", None), ("103", None), ("999", None)]
        .into_iter()
        .chain(["101", "20", "2000", "099", "2x0", ""].map(|status| (status, Some(FieldRule::Status))))
    {
        let checked = HpackDecoder::default().decode_and_validate(&pseudo(":status", status), Response, None).unwrap();
        assert_eq!((checked.violated, checked.is_interim), (rule, status == "103"), "{status}");
    }
}

#[test]
fn hpack_validates_a_table_entry_at_each_use() {
    let mut decoder = HpackDecoder::default();
    let bad = field(WITH_INDEXING, b"x-name", b"a\0");
    assert_eq!(violated_rule(&mut decoder, Request, &bad), Some(FieldRule::FieldValue));
    assert_eq!(violated_rule(&mut decoder, Request, &[0x80 | 62]), Some(FieldRule::FieldValue));
    // The name of the entry is still valid.
    assert_eq!(
        rewritten(&mut decoder, &[WITH_INDEXING | 62, 1, b'v']),
        [&[EMPTY_TABLE][..], &field(0, b"x-name", b"v")].concat()
    );
    assert_eq!(rewritten(&mut decoder, &[0x80 | 62]), [&[EMPTY_TABLE][..], &field(0, b"x-name", b"v")].concat());
    let spaced = field(WITH_INDEXING, b"x", b" y");
    assert_eq!(violated_rule(&mut decoder, Request, &spaced), None);
    assert_eq!(violated_rule(&mut decoder, Trailers, &[0x80 | 62]), Some(FieldRule::WhiteSpace));
}

/// The field has 4,000 bytes, and each later reference has one or three.
#[test]
fn hpack_bounds_the_rewritten_size_of_a_repeated_field() {
    for uses in [vec![0x80 | 62; 10_000], [0x0f, 0x2f, 1, b'v'].repeat(10_000)] {
        let block = [field(WITH_INDEXING, &[b'n'; 4000], b"v"), uses].concat();
        let mut rewritten = RewrittenBlock::new(LIST_MAX);
        let checked = HpackDecoder::default().decode_and_validate(&block, Request, Some(&mut rewritten)).unwrap();
        assert_eq!(checked.size, 10_001 * (4001 + ENTRY_OVERHEAD));
        assert!(rewritten.block.len() < LIST_MAX + 100, "{}", rewritten.block.len());
        // h2 still finds that the section is too large.
        let size = HpackDecoder::default().decode_and_validate(&rewritten.block, Request, None).unwrap().size;
        assert!(size >= LIST_MAX, "{size}");
    }
}

#[test]
fn hpack_reports_a_compression_error() {
    for block in [&[0x80][..], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff], &[0x80 | 62], &[0, 5, b'x'], &[0x3f, 0xe2, 0x1f]]
    {
        assert_eq!(
            HpackDecoder::default().decode_and_validate(block, Request, None),
            Err(CompressionError),
            "{block:?}"
        );
    }
}
