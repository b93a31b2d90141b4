//! Blocks of the RFC, and what hostile peers make of blocks.
//! Is what comes out what h2 can take, and no larger?

use super::*;

pub(in crate::net::hpack) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

fn names(decoder: &Decoder) -> Vec<(String, usize)> {
    decoder.entries.iter().map(|entry| (String::from_utf8_lossy(&entry.name.text).into_owned(), entry.size)).collect()
}

/// RFC 7541 Appendix C.3 and C.4: the same requests, without and with Huffman coding.
#[test]
fn requests_of_the_rfc_are_well_formed_and_fill_the_table() {
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
        let mut decoder = Decoder::default();
        for block in blocks {
            assert_eq!(decoder.check(&hex(block)), Ok(None), "{block}");
        }
        let expected = [("custom-key", 54), ("cache-control", 53), (":authority", 57)];
        assert_eq!(names(&decoder), expected.map(|(name, size)| (name.to_owned(), size)));
    }
}

#[test]
fn malformed_field_gets_a_placeholder_of_the_same_size() {
    let mut decoder = Decoder::default();
    let bad = encode(WITH_INDEXING, b"X-Bad", b"value");
    let good = encode(WITH_INDEXING, b"x-good", b"1");
    let repaired = decoder.check(&[good.clone(), bad].concat()).unwrap().unwrap();
    let placeholder = encode(WITH_INDEXING, b"xxxxx", b"xxxxx");
    assert_eq!(repaired, Repaired { block: [good, placeholder].concat(), is_malformed: true });
    // By its index it is malformed again.
    assert!(decoder.check(&[0x80 | 62]).unwrap().unwrap().is_malformed);
    assert_eq!(decoder.check(&[0x80 | 63]), Ok(None));

    // A malformed value under a good name keeps the name, by which others may be named.
    let mut decoder = Decoder::default();
    let repaired = decoder.check(&encode(WITH_INDEXING, b"x-name", b"a\0")).unwrap().unwrap();
    let placeholder = encode(WITH_INDEXING, b"x-name", b"xx");
    assert_eq!(repaired, Repaired { block: placeholder, is_malformed: true });
    assert!(decoder.check(&[0x80 | 62]).unwrap().unwrap().is_malformed);
    let by_name = [WITH_INDEXING | 62, 1, b'v'];
    assert_eq!(decoder.check(&by_name), Ok(None));
    assert_eq!(decoder.check(&[0x80 | 62]), Ok(None));

    // No placeholder can have this name: who names the next field by it means the name nevertheless.
    let mut decoder = Decoder::default();
    let repaired = decoder.check(&encode(WITH_INDEXING, b":method", b"")).unwrap().unwrap();
    assert_eq!(repaired, Repaired { block: encode(WITH_INDEXING, b"xxxxxxx", b""), is_malformed: true });
    let repaired = decoder.check(&by_name).unwrap().unwrap();
    assert_eq!(repaired, Repaired { block: encode(WITH_INDEXING, b":method", b"v"), is_malformed: false });
    assert_eq!(decoder.check(&[0x80 | 62]), Ok(None));
}

/// 4,000 bytes that each of the others names in three.
#[test]
fn block_that_names_one_field_over_and_over_grows_little_and_ends_at_a_limit() {
    for (name, value) in
        [(vec![b'n'; 4000], &b"\0"[..]), (vec![b'N'; 4000], b"v"), (vec![b'n'; 4000], b"v"), (b":method".to_vec(), b"")]
    {
        let first = encode(WITH_INDEXING, &name, value);
        let block = |count: usize| [first.clone(), [0x0f, 0x2f, 1, 0].repeat(count)].concat();
        let count = DECODED_MAX / (name.len() + 1 + ENTRY_OVERHEAD) - 1;
        let repaired = Decoder::default().check(&block(count)).unwrap().unwrap();
        assert!(repaired.block.len() <= 4 * block(count).len(), "{} of {}", repaired.block.len(), block(count).len());
        assert_eq!(Decoder::default().check(&block(count + 2)), Err(Fault::TooLarge));
    }
    let mut decoder = Decoder::default();
    assert_eq!(decoder.check(&encode(WITH_INDEXING, b"x", &[b'v'; 4000])), Ok(None));
    assert_eq!(decoder.check(&[0x80 | 62; 60]), Ok(None));
    assert_eq!(decoder.check(&[0x80 | 62; 70]), Err(Fault::TooLarge));
}

#[test]
fn fields_that_h2_would_end_the_connection_for_are_malformed() {
    for (name, value) in [
        ("X", "y"),
        ("", "y"),
        ("x y", "z"),
        (":unknown", "x"),
        (":status", "200"),
        (":method", "a b"),
        (":method", ""),
        ("x", "a\nb"),
        ("x", "\0"),
        ("x", "\x7f"),
    ] {
        let repaired = Decoder::default().check(&encode(0, name.as_bytes(), value.as_bytes())).unwrap();
        assert!(repaired.is_some_and(|repaired| repaired.is_malformed), "{name}: {value:?}");
    }
    assert_eq!(Decoder::default().check(&encode(0, b"x", " \u{e9} ".as_bytes())), Ok(None));
}

#[test]
fn block_that_cannot_be_decompressed_is_told_apart() {
    for block in [&[0x80][..], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff], &[0x80 | 62], &[0, 5, b'x'], &[0x3f, 0xe2, 0x1f]]
    {
        assert_eq!(Decoder::default().check(block), Err(Undecodable), "{block:?}");
    }
}
