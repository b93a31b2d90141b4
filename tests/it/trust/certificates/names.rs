//! The names of a leaf: their fields, wildcards, addresses and internationalized names.
//! Does a certificate prove exactly its own names?

use rcgen::SanType;

use super::generator::{Authority, Case, NAME, case, common_name, names};

const DNS: u8 = 0x82;
const IP: u8 = 0x87;

pub fn cases() -> Vec<Case> {
    let root = Authority::root("root");
    let r = &[&root];
    let leaf_with_names = |names: &[&str]| vec![root.leaf_for(names)];
    let raw = |raw: &[(u8, &[u8])]| {
        let extension = names(raw);
        vec![root.leaf_with(|params| {
            params.subject_alt_names.clear();
            params.custom_extensions.push(extension);
        })]
    };
    let kinds = |kinds: Vec<SanType>| {
        vec![root.leaf_with(|params| {
            params.subject_alt_names = kinds;
            common_name(params, NAME);
        })]
    };
    let wild = "RFC 9525 §6.3: the whole left-most label, and no more";
    let mismatch = "name_mismatch";
    let mut cases = vec![
        case("the name", "RFC 9525 §6.3", r, leaf_with_names(&[NAME])),
        case("the name in capitals", "RFC 9525 §6.3: case does not count", r, leaf_with_names(&["HOOKS.Acme.Example"])),
        case("the last of three names", "RFC 9525 §6.1", r, leaf_with_names(&["a.example", "b.example", NAME])),
        case("another name", "RFC 9525 §6.3", r, leaf_with_names(&["other.example"])).refused(mismatch),
        case("the domain of the name", "RFC 9525 §6.3", r, leaf_with_names(&["acme.example"])).refused(mismatch),
        case("a name below the name", "RFC 9525 §6.3", r, leaf_with_names(&["in.hooks.acme.example"]))
            .refused(mismatch),
        case(
            "the name with a dot at its end",
            "RFC 5280 §4.2.1.6, RFC 1034 §3.5: preferred syntax",
            r,
            raw(&[(DNS, b"hooks.acme.example.")]),
        )
        .refused(mismatch),
        case(
            "the name with a NUL and more",
            "RFC 5280 §4.2.1.6: IA5, preferred syntax",
            r,
            raw(&[(DNS, b"hooks.acme.example\0.evil.example")]),
        )
        .refused(mismatch),
        case("in the common name only", "RFC 9525 §2; BR §7.1.4.3", r, kinds(vec![])).refused("no_subject_alt_name"),
        case("a subjectAltName without names", "RFC 5280 §4.2.1.6: at least one", r, raw(&[]))
            .refused("no_subject_alt_name"),
        case(
            "an e-mail address only",
            "RFC 9525 §2",
            r,
            kinds(vec![SanType::Rfc822Name("ops@acme.example".try_into().unwrap())]),
        )
        .refused("no_subject_alt_name"),
        case(
            "a URI only",
            "RFC 9525 §6.1: no URI-ID is asked for",
            r,
            kinds(vec![SanType::URI("https://hooks.acme.example/".try_into().unwrap())]),
        )
        .refused("no_subject_alt_name"),
        case(
            "a common name that is right, a name that is not",
            "RFC 9525 §2",
            r,
            vec![root.leaf_with(|params| {
                params.subject_alt_names = vec![SanType::DnsName("other.example".try_into().unwrap())];
                common_name(params, NAME);
            })],
        )
        .refused(mismatch),
        case("a wildcard", wild, r, leaf_with_names(&["*.acme.example"])),
        case("a wildcard, and its own domain asked for", wild, r, leaf_with_names(&["*.acme.example"]))
            .target("acme.example")
            .refused(mismatch),
        case("a wildcard, two labels below asked for", wild, r, leaf_with_names(&["*.acme.example"]))
            .target("in.hooks.acme.example")
            .refused(mismatch),
        case("a wildcard for a part of a label", wild, r, leaf_with_names(&["ho*.acme.example"])).refused(mismatch),
        case("a wildcard before a part of a label", wild, r, leaf_with_names(&["*ks.acme.example"])).refused(mismatch),
        case("a wildcard that is not left-most", wild, r, leaf_with_names(&["hooks.*.example"])).refused(mismatch),
        case("two wildcards", wild, r, leaf_with_names(&["*.*.example"])).refused(mismatch),
        case("a wildcard for everything", wild, r, leaf_with_names(&["*"])).target("example").refused(mismatch),
        case("a wildcard for a top-level domain", "BR §3.2.2.6", r, leaf_with_names(&["*.example"]))
            .target("acme.example")
            .refused(mismatch),
        // Known limitation: outgate has no list of public suffixes. BR §3.2.2.6 forbids authorities to issue this.
        case(
            "a wildcard below a registry of two labels",
            "not closed here: BR §3.2.2.6",
            r,
            leaf_with_names(&["*.co.uk"]),
        )
        .target("acme.co.uk"),
        case("a wildcard for a label of an IDN", "RFC 9525 §6.3", r, leaf_with_names(&["*.acme.example"]))
            .target("xn--hk-fkaa.acme.example"),
        case("an IDN in A-labels", "RFC 9525 §6.3, RFC 5280 §7.2", r, leaf_with_names(&["xn--hks-sna.example"]))
            .target("xn--hks-sna.example"),
        case("an IDN in A-labels, another asked for", "RFC 9525 §6.3", r, leaf_with_names(&["xn--hks-sna.example"]))
            .target("xn--hks-tna.example")
            .refused(mismatch),
        case("an IDN in U-labels", "RFC 5280 §7.2: A-labels only", r, raw(&[(DNS, "höks.example".as_bytes())]))
            .target("xn--hks-sna.example")
            .refused(mismatch),
    ];
    cases.extend(addresses(&root));
    cases
}

fn addresses(root: &Authority) -> Vec<Case> {
    let r = &[root];
    let leaf_with_names = |names: &[&str]| vec![root.leaf_for(names)];
    let raw = |raw: &[(u8, &[u8])]| {
        let extension = names(raw);
        vec![root.leaf_with(|params| {
            params.subject_alt_names.clear();
            params.custom_extensions.push(extension);
        })]
    };
    let rule = "RFC 9525 §6.4, RFC 5280 §4.2.1.6: octet for octet";
    let mismatch = "name_mismatch";
    vec![
        case("an IPv4 address", rule, r, leaf_with_names(&["9.9.9.9"])).target("9.9.9.9"),
        case("an IPv6 address", rule, r, leaf_with_names(&["2620:fe::7"])).target("2620:fe::7"),
        case("another IPv4 address", rule, r, leaf_with_names(&["9.9.9.8"])).target("9.9.9.9").refused(mismatch),
        case("another IPv6 address", rule, r, leaf_with_names(&["2620:fe::8"])).target("2620:fe::7").refused(mismatch),
        case("a name, and an address asked for", rule, r, leaf_with_names(&[NAME])).target("9.9.9.9").refused(mismatch),
        case("an address, and a name asked for", rule, r, leaf_with_names(&["9.9.9.9"])).refused(mismatch),
        case("an IPv4 address as a DNS name", rule, r, raw(&[(DNS, b"9.9.9.9")])).target("9.9.9.9").refused(mismatch),
        case("an IPv6 address as a DNS name", rule, r, raw(&[(DNS, b"2620:fe::7")]))
            .target("2620:fe::7")
            .refused(mismatch),
        case("an IPv4 address as an IPv4-mapped one", rule, r, leaf_with_names(&["::ffff:9.9.9.9"]))
            .target("9.9.9.9")
            .refused(mismatch),
        case("an address of five bytes", rule, r, raw(&[(IP, &[9, 9, 9, 9, 0])])).target("9.9.9.9").refused(mismatch),
        case("a network, as name constraints write it", rule, r, raw(&[(IP, &[9, 9, 9, 9, 255, 255, 255, 255])]))
            .target("9.9.9.9")
            .refused(mismatch),
        case("a wildcard for a part of an address", rule, r, raw(&[(DNS, b"*.0.2.7")]))
            .target("9.9.9.9")
            .refused(mismatch),
        case(
            "an address in the common name only",
            "RFC 9525 §2",
            r,
            vec![root.leaf_with(|params| {
                params.subject_alt_names.clear();
                common_name(params, "9.9.9.9");
            })],
        )
        .target("9.9.9.9")
        .refused("no_subject_alt_name"),
    ]
}
