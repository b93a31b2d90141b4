//! Tests of valid, split and invalid headers of both versions.
//! Is an address accepted only from an unambiguous header?

use super::*;

fn v2(version_command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [V2_SIGNATURE, &[version_command, family], &length, rest].concat()
}

fn rest(source: &[u8], length: usize) -> Vec<u8> {
    let mut rest = source.to_vec();
    rest.resize(length, 7);
    rest
}

fn valid_headers() -> Vec<(Vec<u8>, ProxiedSource)> {
    let ip = |text: &str| ProxiedSource::Address(text.parse().unwrap());
    let v6: Ipv6Addr = "2001:db8::7".parse().unwrap();
    let mapped: Ipv6Addr = "::ffff:192.0.2.7".parse().unwrap();
    let with_fields = [rest(&[192, 0, 2, 7], 12), vec![3, 0, 4, 1, 2, 3, 4], vec![4; 500]].concat();
    vec![
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 1 65535\r\n".to_vec(), ip("192.0.2.7")),
        (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n".to_vec(), ip("255.255.255.255")),
        (b"PROXY TCP6 2001:db8::7 ::1 0 0\r\n".to_vec(), ip("2001:db8::7")),
        (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 1 1\r\n".to_vec(), ip("192.0.2.7")),
        (b"PROXY UNKNOWN\r\n".to_vec(), ProxiedSource::Sender),
        (b"PROXY UNKNOWN ffff:f:f \xff 99999\r\n".to_vec(), ProxiedSource::Sender),
        ([&b"PROXY UNKNOWN "[..], &[b'x'; 91], b"\r\n"].concat(), ProxiedSource::Sender),
        (v2(0x21, 0x11, &rest(&[192, 0, 2, 7], 12)), ip("192.0.2.7")),
        (v2(0x21, 0x11, &with_fields), ip("192.0.2.7")),
        (v2(0x21, 0x21, &rest(&v6.octets(), 36)), ip("2001:db8::7")),
        (v2(0x21, 0x21, &rest(&mapped.octets(), 36)), ip("192.0.2.7")),
        (v2(0x21, 0x31, &rest(b"/run/s", 216)), ProxiedSource::Unix),
        (v2(0x21, 0x00, b""), ProxiedSource::Sender),
        (v2(0x21, 0x00, &[1, 2, 3]), ProxiedSource::Sender),
        (v2(0x20, 0x00, b""), ProxiedSource::Sender),
        (v2(0x20, 0x11, &rest(&[192, 0, 2, 7], 12)), ProxiedSource::Sender),
        (v2(0x20, 0xff, b""), ProxiedSource::Sender),
        (v2(0x21, 0x11, &vec![1; V2_PAYLOAD_MAX]), ip("1.1.1.1")),
    ]
}

#[test]
fn proxy_header_parser_takes_valid_headers_at_every_split() {
    for (header, source) in valid_headers() {
        let with_next_bytes = [&header[..], b"PROXY GET / \r\n"].concat();
        assert_eq!(parse(&with_next_bytes), Ok(Some((source, header.len()))), "{header:?}");
        for end in 0..header.len() {
            assert_eq!(parse(&header[..end]), Ok(None), "{end} bytes of {header:?}");
        }
    }
}

#[test]
fn proxy_header_parser_rejects_invalid_headers_with_their_error() {
    for (header, error) in [
        (b"GET / HTTP/1.1\r\n".to_vec(), ProxyHeaderError::Missing),
        (b"\x16\x03\x01".to_vec(), ProxyHeaderError::Missing),
        (b"proxy TCP4".to_vec(), ProxyHeaderError::Missing),
        (b"PROXYTCP4".to_vec(), ProxyHeaderError::Missing),
        (b"\r\n\r\n\0\r\nQUIT\r\n".to_vec(), ProxyHeaderError::Missing),
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\n".to_vec(), ProxyHeaderError::Line),
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 1\r\n".to_vec(), ProxyHeaderError::Line),
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2 3\r\n".to_vec(), ProxyHeaderError::Line),
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2 \r\n".to_vec(), ProxyHeaderError::Line),
        (b"PROXY  TCP4 192.0.2.7 198.51.100.1 1 2\r\n".to_vec(), ProxyHeaderError::Line),
        (b"PROXY TCP4  192.0.2.7 198.51.100.1 1 2\r\n".to_vec(), ProxyHeaderError::Line),
        (b"PROXY TCP4 192.0.2.07 198.51.100.1 1 2\r\n".to_vec(), ProxyHeaderError::Line),
        (b"PROXY TCP4 192.0.2.256 198.51.100.1 1 2\r\n".to_vec(), ProxyHeaderError::Line),
        (b"PROXY TCP4 2001:db8::7 ::1 1 2\r\n".to_vec(), ProxyHeaderError::Line),
        (b"PROXY TCP6 192.0.2.7 198.51.100.1 1 2\r\n".to_vec(), ProxyHeaderError::Line),
        (b"PROXY TCP6 fe80::1%lo ::1 1 2\r\n".to_vec(), ProxyHeaderError::Line),
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 1 65536\r\n".to_vec(), ProxyHeaderError::Line),
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 01 2\r\n".to_vec(), ProxyHeaderError::Line),
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 +1 2\r\n".to_vec(), ProxyHeaderError::Line),
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 -1 2\r\n".to_vec(), ProxyHeaderError::Line),
        (b"PROXY UDP4 192.0.2.7 198.51.100.1 1 2\r\n".to_vec(), ProxyHeaderError::Line),
        (b"PROXY tcp4 192.0.2.7 198.51.100.1 1 2\r\n".to_vec(), ProxyHeaderError::Line),
        (b"PROXY \r\n".to_vec(), ProxyHeaderError::Line),
        (b"PROXY TCP4 192.0.2.7\r198.51.100.1 1 2\r\n".to_vec(), ProxyHeaderError::Line),
        ([&b"PROXY UNKNOWN "[..], &[b'x'; 93]].concat(), ProxyHeaderError::TooLong),
        ([&b"PROXY UNKNOWN "[..], &[b'x'; 92], b"\r\n"].concat(), ProxyHeaderError::TooLong),
        (v2(0x11, 0x11, &rest(&[], 12)), ProxyHeaderError::Version(1)),
        (v2(0x31, 0x11, &rest(&[], 12)), ProxyHeaderError::Version(3)),
        (v2(0x22, 0x11, &rest(&[], 12)), ProxyHeaderError::Command(2)),
        (v2(0x21, 0x12, &rest(&[], 12)), ProxyHeaderError::Family(0x12)),
        (v2(0x21, 0x10, &rest(&[], 12)), ProxyHeaderError::Family(0x10)),
        (v2(0x21, 0x41, &rest(&[], 12)), ProxyHeaderError::Family(0x41)),
        (v2(0x21, 0x11, &rest(&[], 11)), ProxyHeaderError::Addresses),
        (v2(0x21, 0x21, &rest(&[], 35)), ProxyHeaderError::Addresses),
        (v2(0x21, 0x31, &rest(&[], 215)), ProxyHeaderError::Addresses),
        (v2(0x21, 0x11, &vec![1; V2_PAYLOAD_MAX + 1]), ProxyHeaderError::TooLong),
    ] {
        assert_eq!(parse(&header), Err(error), "{:?}", String::from_utf8_lossy(&header));
    }
}

#[tokio::test]
async fn proxy_header_reader_leaves_the_bytes_after_the_header() {
    for (header, source) in valid_headers() {
        let (mut client, server) = tokio::io::duplex(7);
        let sent = [&header[..], b"\x16\x03\x01 and more"].concat();
        let writing = tokio::spawn(async move { tokio::io::AsyncWriteExt::write_all(&mut client, &sent).await });
        let (mut server, mut buffer) = (server, BytesMut::new());
        assert_eq!(read_header(&mut server, &mut buffer).await, Ok(source));
        let mut rest = buffer.to_vec();
        server.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"\x16\x03\x01 and more");
        writing.await.unwrap().unwrap();
    }
    assert_eq!(read_header(&mut &b"PROXY TCP4 1"[..], &mut BytesMut::new()).await, Err(ProxyHeaderError::Cut));
    assert_eq!(read_header(&mut &b""[..], &mut BytesMut::new()).await, Err(ProxyHeaderError::Cut));
}
