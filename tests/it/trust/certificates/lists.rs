//! Revocation lists that rcgen cannot write: sharded, with a limited scope, with another key, or of the future.
//! Is each list applied exactly to the certificates in its scope?

use rcgen::{CertificateParams, CrlDistributionPoint, KeyUsagePurpose as Usage};
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate};

use super::generator::{Authority, Case, Der, GOOD, case};

/// A leaf has serial number 7, an authority 9.
const LEAF: u8 = 7;
const ISSUER: u8 = 9;

/// A revocation list (RFC 5280 §5.1) that is valid at the time of the cases.
struct List<'a> {
    revoked: &'a [u8],
    from: &'a str,
    number: u8,
    /// The contents of the SEQUENCE of issuingDistributionPoint.
    scope: Option<Vec<u8>>,
    has_key_id: bool,
}

const LIST: List<'static> = List { revoked: &[], from: "261128000000Z", number: 1, scope: None, has_key_id: true };

fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let contents = parts.concat();
    let length = u16::try_from(contents.len()).unwrap();
    let [high, low] = length.to_be_bytes();
    let head = match length {
        0..=0x7F => vec![tag, low],
        0x80..=0xFF => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    [head, contents].concat()
}

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 2;
const UTC_TIME: u8 = 0x17;
const OCTETS: u8 = 4;

impl List<'_> {
    fn by(&self, issuer: &Authority) -> Der {
        let (_, parsed) = X509Certificate::from_der(&issuer.der).unwrap();
        let key_id = parsed.extensions().iter().find_map(|found| match found.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
            _ => None,
        });
        let extension = |number: u8, is_critical: bool, value: &[u8]| {
            let critical: &[u8] = if is_critical { &[1, 1, 0xFF] } else { &[] };
            der(SEQUENCE, &[&[6, 3, 0x55, 0x1D, number], critical, &der(OCTETS, &[value])])
        };
        let mut extensions = vec![extension(20, false, &der(INTEGER, &[&[self.number]]))];
        if self.has_key_id {
            extensions.push(extension(35, false, &der(SEQUENCE, &[&der(0x80, &[key_id.unwrap()])])));
        }
        extensions.extend(self.scope.as_ref().map(|scope| extension(28, true, &der(SEQUENCE, &[scope]))));
        let time = |text: &str| der(UTC_TIME, &[text.as_bytes()]);
        let entry = |serial: &u8| der(SEQUENCE, &[&der(INTEGER, &[&[*serial]]), &time("261120000000Z")]);
        let entries: Vec<u8> = self.revoked.iter().flat_map(entry).collect();
        let revoked = if entries.is_empty() { vec![] } else { der(SEQUENCE, &[&entries]) };
        // ecdsa-with-SHA256
        let algorithm = der(SEQUENCE, &[&[6, 8, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 4, 3, 2]]);
        let text = der(
            SEQUENCE,
            &[
                &der(INTEGER, &[&[1]]),
                &algorithm,
                parsed.subject().as_raw(),
                &time(self.from),
                &time("270128000000Z"),
                &revoked,
                &der(0xA0, &[&der(SEQUENCE, &[&extensions.concat()])]),
            ],
        );
        let signature = der(3, &[&[0], &issuer.sign_bytes(&text)]);
        der(SEQUENCE, &[&text, &algorithm, &signature])
    }
}

const ONLY_USERS: &[u8] = &[0x81, 1, 0xFF];
const ONLY_AUTHORITIES: &[u8] = &[0x82, 1, 0xFF];

/// Returns a fullName with one URI.
fn at(uri: &str) -> Vec<u8> {
    der(0xA0, &[&der(0xA0, &[&der(0x86, &[uri.as_bytes()])])])
}

fn listed_at(uri: &str) -> impl Fn(&mut CertificateParams) {
    move |params| params.crl_distribution_points = vec![CrlDistributionPoint { uris: vec![uri.to_owned()] }]
}

pub fn cases() -> Vec<Case> {
    let root = Authority::root("root");
    let r = &[&root];
    let leaf = || vec![root.leaf()];
    let unknown = "revocation_unknown";
    let later = "261202000000Z";
    let mut cases = vec![
        case("a list of the future, alone", "RFC 5280 §5.1.2.4: thisUpdate is when it was issued", r, leaf())
            .lists(vec![List { from: later, ..LIST }.by(&root)])
            .refused(unknown),
        case("a list of the future, lenient", "crl_policy = \"lenient\": as if it were not there", r, leaf())
            .lists(vec![List { from: later, revoked: &[LEAF], ..LIST }.by(&root)])
            .more("crl_policy = \"lenient\""),
        case("revoked now, no more in a list of the future", "RFC 5280 §5.1.2.4", r, leaf())
            .lists(vec![List { from: later, ..LIST }.by(&root), List { revoked: &[LEAF], ..LIST }.by(&root)])
            .refused("revoked"),
        case("of two lists of one date, the greater number revokes", "RFC 5280 §5.2.3", r, leaf())
            .lists(vec![LIST.by(&root), List { number: 2, revoked: &[LEAF], ..LIST }.by(&root)])
            .refused("revoked"),
        case("of two lists of one date, the smaller number revokes", "RFC 5280 §5.2.3", r, leaf())
            .lists(vec![List { revoked: &[LEAF], ..LIST }.by(&root), List { number: 2, ..LIST }.by(&root)]),
    ];
    cases.extend(shards(&root));
    cases.extend(keys(&root));
    cases
}

/// §6.3.3 (b) (2).
fn shards(root: &Authority) -> Vec<Case> {
    let r = &[root];
    let (one, two) = ("http://crl.example/1.crl", "http://crl.example/2.crl");
    let leaf = |uri: &str| vec![root.leaf_with(listed_at(uri))];
    let shard = |uri: &str, revoked: &[u8]| List { scope: Some(at(uri)), revoked, ..LIST }.by(root);
    let scoped = |scope: &[u8], revoked: &[u8]| List { scope: Some(scope.to_vec()), revoked, ..LIST }.by(root);
    let issuer = root.issue_ca("issuer");
    let below = || vec![issuer.leaf(), issuer.der.clone()];
    let (shards, scope) = ("RFC 5280 §6.3.3 (b) (2) (i)", "RFC 5280 §6.3.3 (b) (2) (ii) and (iii)");
    let unknown = "revocation_unknown";
    vec![
        case("a list of the leaf's distribution point", shards, r, leaf(one)).lists(vec![shard(one, &[])]),
        case("revoked in the list of its distribution point", shards, r, leaf(one))
            .lists(vec![shard(two, &[]), shard(one, &[LEAF])])
            .refused("revoked"),
        case("revoked in the list of another distribution point", shards, r, leaf(one))
            .lists(vec![shard(two, &[LEAF]), shard(one, &[])]),
        case("a list of another distribution point only", shards, r, leaf(one))
            .lists(vec![shard(two, &[])])
            .refused(unknown),
        case("a list of a distribution point, and a leaf without", shards, r, vec![root.leaf()])
            .lists(vec![shard(one, &[])])
            .refused(unknown),
        case("a list of users without distribution point, a leaf revoked", scope, r, vec![root.leaf()])
            .lists(vec![scoped(ONLY_USERS, &[LEAF])])
            .refused("revoked"),
        case("a list of users and one of authorities", scope, r, below()).lists(vec![
            issuer.list(&[]),
            scoped(ONLY_USERS, &[ISSUER]),
            scoped(ONLY_AUTHORITIES, &[]),
        ]),
        case("a list of authorities, one revoked", scope, r, below())
            .lists(vec![issuer.list(&[]), scoped(ONLY_AUTHORITIES, &[ISSUER])])
            .refused("revoked"),
        case("a list of authorities only, for a leaf", scope, r, vec![root.leaf()])
            .lists(vec![scoped(ONLY_AUTHORITIES, &[])])
            .refused(unknown),
        case("a list of users only, for an authority", scope, r, below())
            .lists(vec![issuer.list(&[]), scoped(ONLY_USERS, &[])])
            .refused(unknown),
    ]
}

/// §5.2.1: an authority that has changed its key keeps its name.
fn keys(root: &Authority) -> Vec<Case> {
    let old = root.issue_ca("issuer");
    let new = root.issue_ca("issuer");
    let mute = Authority::root_with("mute", |params| params.key_usages = vec![Usage::KeyCertSign]);
    let of_old = || vec![old.leaf(), new.der.clone(), old.der.clone()];
    let unnamed = |from, revoked, by| List { from, revoked, has_key_id: false, ..LIST }.by(by);
    let rule = "RFC 5280 §5.2.1, §6.3.3 (f) and (g)";
    let (earlier, now) = ("261120000000Z", "261128000000Z");
    let older = |revoked| List { from: earlier, revoked, ..LIST }.by(&old);
    vec![
        case("two keys of one name, revoked by the one that issued it", rule, &[root], of_old())
            .lists(vec![root.list(&[]), new.list(&[]), older(&[LEAF])])
            .refused("revoked"),
        case("two keys of one name, its number revoked by the other", rule, &[root], of_old()).lists(vec![
            root.list(&[]),
            new.list(&[LEAF.into()]),
            older(&[]),
        ]),
        case("two keys of one name, a list of the other only", rule, &[root], of_old())
            .lists(vec![root.list(&[]), new.list(&[])])
            .refused("revocation_unknown"),
        case("two keys of one name, distinguished by the signature", rule, &[root], of_old())
            .lists(vec![root.list(&[]), unnamed(now, &[], &new), unnamed(earlier, &[LEAF], &old)])
            .refused("revoked"),
        case("a list of a root that may not sign lists", "RFC 5280 §6.3.3 (f): cRLSign", &[&mute], vec![mute.leaf()])
            .lists(vec![mute.list(&[])])
            .refused("revocation_unknown"),
    ]
}

/// Without its scope, the list would apply to every certificate of its issuer, also to those that another list revokes.
#[test]
fn revocation_list_with_an_unreadable_distribution_point_is_refused() {
    let root = Authority::root("root");
    let uri = "http://crl.example/1.crl";
    // { commonName "1" }. RFC 5280 A.2 omits the tag of the SET.
    let name = der(SEQUENCE, &[&[6, 3, 0x55, 4, 3], &der(0x0C, &[b"1"])]);
    let relative = der(0xA0, &[&der(0xA1, &[&name])]);
    let relative_set = der(0xA0, &[&der(0xA1, &[&der(0x31, &[&name])])]);
    // A name that is shorter than its length, and a list of a name that is no text and one that is.
    let cut_off = der(0xA0, &[&der(0xA0, &[&[0x86, 9, b'h']])]);
    let no_text = der(0xA0, &[&der(0xA0, &[&der(0x86, &[&[0xFF]]), &der(0x86, &[uri.as_bytes()])])]);
    let point = "the name of its distribution point cannot be read, or is relative to its issuer";
    for (label, scope, words) in [
        ("relative", relative.clone(), point),
        ("relative, with the tag of a set", relative_set, "is relative to its issuer"),
        ("a first name that is cut off", cut_off, point),
        ("relative, of users", [relative.as_slice(), ONLY_USERS].concat(), point),
        ("authorities before users", [ONLY_AUTHORITIES, ONLY_USERS].concat(), point),
        ("users twice", [ONLY_USERS, ONLY_USERS].concat(), point),
    ] {
        let list = List { scope: Some(scope), ..LIST }.by(&root);
        let leaf = root.leaf_with(listed_at(uri));
        let case = case(label, "RFC 5280 §6.3.3 (b) (2) (i)", &[&root], vec![leaf]).lists(vec![list]);
        let problems = case.compile(false).err().unwrap_or_else(|| format!("{label}: the list is taken"));
        assert!(problems.contains("revocation list 1 of ") && problems.contains(words), "{label}:\n{problems}");
    }
    for scope in [ONLY_USERS.to_vec(), no_text] {
        let list = List { scope: Some(scope), ..LIST }.by(&root);
        let case = case("of users, or of a point", "", &[&root], vec![root.leaf_with(listed_at(uri))]);
        assert_eq!(case.lists(vec![list]).verdict(false), GOOD);
    }
}
