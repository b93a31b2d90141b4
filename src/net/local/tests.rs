//! Tests with synthetic netlink messages, and with the real host.
//! Are the host's addresses distinguished from all others?

use proptest::prelude::*;

use super::*;
use crate::net::netlink::{DumpProgress, NLMSG_HEADER_LEN, aligned, walk_messages};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn with_attribute(mut body: Vec<u8>, kind: u16, value: &[u8]) -> Vec<u8> {
    body.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(aligned(body.len()), 0);
    body
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut message = u32::try_from(NLMSG_HEADER_LEN + body.len()).unwrap().to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message.resize(aligned(message.len()), 0);
    message
}

fn route(net: &str, table: u8, kind: u8) -> Vec<u8> {
    let net: IpNet = net.parse().unwrap();
    let family = if net.addr().is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let body = vec![family as u8, net.prefix_len(), 0, 0, table, 2, 254, kind, 0, 0, 0, 0];
    let body = with_attribute(body, libc::RTA_TABLE, &u32::from(table).to_ne_bytes());
    with_attribute(body, libc::RTA_DST, &octets(net.addr()))
}

fn interface_address(address: &str, index: u32, scope: u8, flags: u32) -> Vec<u8> {
    let mut body = vec![0, 24, flags as u8, scope];
    body.extend(index.to_ne_bytes());
    let body = with_attribute(body, libc::IFA_ADDRESS, &octets(ip(address)));
    with_attribute(body, libc::IFA_FLAGS, &flags.to_ne_bytes())
}

#[test]
fn local_prefixes_contain_local_routes_only() {
    const BROADCAST: u8 = libc::RTN_BROADCAST;
    let cases = [
        (route("198.51.100.0/24", 255, libc::RTN_LOCAL), Some("198.51.100.0/24")),
        (route("2001:db8:5::/64", 255, libc::RTN_LOCAL), Some("2001:db8:5::/64")),
        (route("192.0.2.2/32", 255, libc::RTN_LOCAL), Some("192.0.2.2/32")),
        (route("192.0.2.255/32", 255, BROADCAST), None),
        (route("203.0.113.0/24", 254, libc::RTN_LOCAL), None),
        (route("0.0.0.0/0", 254, libc::RTN_UNICAST), None),
        (vec![], None),
        (vec![2, 33, 0, 0, 255, 0, 0, libc::RTN_LOCAL, 0, 0, 0, 0, 8, 0, 1, 0, 192, 0, 2, 1], None),
    ];
    for (body, expected) in cases {
        assert_eq!(local_prefix(&body).map(|net| net.to_string()).as_deref(), expected, "{body:?}");
    }
}

#[test]
fn global_addresses_leave_out_unusable_ones() {
    let cases = [
        (interface_address("192.0.2.2", 2, 0, 0x80), true),
        (interface_address("192.0.2.3", 2, 0, 0x81), true), // an IPv4 secondary
        (interface_address("2001:db8::1", 2, 0, 0x80), true),
        (interface_address("2001:db8::2", 2, 0, libc::IFA_F_TEMPORARY), false),
        (interface_address("2001:db8::3", 2, 0, libc::IFA_F_TENTATIVE), false),
        (interface_address("2001:db8::4", 2, 0, libc::IFA_F_DEPRECATED), false),
        (interface_address("fe80::1", 2, libc::RT_SCOPE_LINK, 0x80), false),
        (interface_address("127.0.0.1", 1, libc::RT_SCOPE_HOST, 0x80), false),
        (interface_address("198.51.100.1", 1, 0, 0x80), false), // on lo
    ];
    for (body, is_usable) in cases {
        assert_eq!(global_address(&body).is_some(), is_usable, "{body:?}");
    }
    let point_to_point =
        with_attribute(interface_address("10.0.0.2", 3, 0, 0x80), libc::IFA_LOCAL, &octets(ip("10.0.0.1")));
    assert_eq!(global_address(&point_to_point), Some(ip("10.0.0.1")));
}

#[test]
fn netlink_dump_is_read_until_done() {
    let one = route("192.0.2.2/32", 255, libc::RTN_LOCAL);
    let datagram = [message(libc::RTM_NEWROUTE, 2, &one), message(99, 2, b"odd"), message(libc::RTM_NEWROUTE, 2, &one)];
    let mut interrupted = false;
    let mut bodies = 0;
    let walked = walk_messages(&datagram.concat(), &mut interrupted, |kind, body| {
        if kind == libc::RTM_NEWROUTE {
            assert_eq!(body, one);
            bodies += 1;
        }
    });
    assert_eq!((walked.unwrap(), bodies, interrupted), (DumpProgress::More, 2, false));

    let done = message(libc::NLMSG_DONE as u16, libc::NLM_F_DUMP_INTR as u16, &[0; 4]);
    assert_eq!(walk_messages(&done, &mut interrupted, |_, _| {}).unwrap(), DumpProgress::Done);
    assert!(interrupted);

    let refused = message(libc::NLMSG_ERROR as u16, 0, &(-libc::EPERM).to_ne_bytes());
    let error = walk_messages(&refused, &mut interrupted, |_, _| {}).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
}

#[test]
fn local_prefixes_search_is_exact() {
    let nets = ["127.0.0.0/8", "127.0.0.1/32", "192.0.2.2/32", "198.51.100.0/25", "198.51.100.128/25", "::1/128"];
    let local: LocalPrefixes = nets.iter().map(|net| net.parse::<IpNet>().unwrap()).collect();
    assert_eq!(local.prefixes().len(), 4, "covered and adjacent prefixes are merged");
    for (address, is_local) in [
        ("127.0.0.1", true),
        ("127.255.255.255", true),
        ("128.0.0.0", false),
        ("126.255.255.255", false),
        ("192.0.2.2", true),
        ("192.0.2.3", false),
        ("198.51.100.200", true),
        ("::1", true),
        ("::2", false),
        ("::", false),
    ] {
        assert_eq!(local.contains(ip(address)), is_local, "{address}");
    }
}

#[test]
fn local_prefixes_of_this_host_contain_loopback() {
    let local = match read() {
        Ok(local) => local,
        Err(error) => return assert!(error.raw_os_error().is_some(), "{error}"), // a sandbox without netlink
    };
    assert!(local.contains(ip("127.0.0.1")) && local.contains(ip("127.9.8.7")));
    assert!(!local.contains(ip("192.0.2.1")), "{local:?}");
    for address in global_addresses().unwrap() {
        assert!(local.contains(address), "{address}");
    }
}

proptest! {
    #[test]
    fn netlink_parser_does_not_panic_on_any_bytes(datagram in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut interrupted = false;
        let _ = walk_messages(&datagram, &mut interrupted, |_, body| { local_prefix(body); });
        local_prefix(&datagram);
        global_address(&datagram);
    }
}
