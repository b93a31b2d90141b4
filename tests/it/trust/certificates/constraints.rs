//! Constraints of an authority: names, path lengths, and unknown critical extensions.
//! Is a chain refused that exceeds a constraint of its authority?

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, GeneralSubtree, IsCa, NameConstraints,
};

use super::generator::{Authority, Case, Der, case, common_name, extension};

fn dns(name: &str) -> GeneralSubtree {
    GeneralSubtree::DnsName(name.to_owned())
}

fn network(text: &str) -> GeneralSubtree {
    GeneralSubtree::IpAddress(text.parse::<CidrSubnet>().unwrap())
}

fn limited(permitted: Vec<GeneralSubtree>, excluded: Vec<GeneralSubtree>) -> impl Fn(&mut CertificateParams) {
    move |params| {
        let (permitted_subtrees, excluded_subtrees) = (permitted.clone(), excluded.clone());
        params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees });
    }
}

pub fn cases() -> Vec<Case> {
    let mut cases = name_constraints();
    cases.extend(path_lengths());
    cases.extend(extensions());
    cases
}

fn name_constraints() -> Vec<Case> {
    const RULE: &str = "RFC 5280 §4.2.1.10";
    let root = Authority::root("root");
    let below = |permitted: Vec<GeneralSubtree>, excluded: Vec<GeneralSubtree>, names: &[&str]| -> Vec<Der> {
        let issuer = root.issue_ca_with("issuer", limited(permitted, excluded));
        vec![issuer.leaf_for(names), issuer.der]
    };
    let r = &[&root];
    let here = "hooks.acme.example";
    let own = Authority::root_with("own", limited(vec![dns("other.example")], vec![]));
    let (upper, lower) = {
        let upper = root.issue_ca_with("upper", limited(vec![dns("other.example")], vec![]));
        let lower = upper.issue_ca("lower");
        (upper, lower)
    };
    let mut directory = DistinguishedName::new();
    directory.push(DnType::OrganizationName, "acme");
    let by_directory = root.issue_ca_with("by directory", |params| {
        limited(vec![GeneralSubtree::DirectoryName(directory.clone())], vec![])(params);
    });
    let in_directory =
        by_directory.leaf_with(|params| params.distinguished_name.push(DnType::OrganizationName, "acme"));
    let only_common_name = {
        let issuer = root.issue_ca_with("issuer", limited(vec![dns("acme.example")], vec![]));
        vec![issuer.leaf_with(|params| common_name(params, "evil.example")), issuer.der]
    };
    vec![
        case("permitted: the domain of the name", RULE, r, below(vec![dns("acme.example")], vec![], &[here])),
        case("permitted: the name itself", RULE, r, below(vec![dns(here)], vec![], &[here])),
        case("permitted: another domain", RULE, r, below(vec![dns("other.example")], vec![], &[here]))
            .refused("wrong_usage"),
        case("permitted: a domain that the name ends like", RULE, r, below(vec![dns("cme.example")], vec![], &[here]))
            .refused("wrong_usage"),
        case(
            "permitted: one of two domains",
            RULE,
            r,
            below(vec![dns("other.example"), dns("acme.example")], vec![], &[here]),
        ),
        case(
            "permitted for one name of two",
            RULE,
            r,
            below(vec![dns("acme.example")], vec![], &[here, "evil.example"]),
        )
        .refused("wrong_usage"),
        case(
            "permitted: the domain of a wildcard",
            RULE,
            r,
            below(vec![dns("acme.example")], vec![], &["*.acme.example"]),
        ),
        case(
            "permitted: a name that a wildcard also covers",
            RULE,
            r,
            below(vec![dns(here)], vec![], &["*.acme.example"]),
        )
        .refused("wrong_usage"),
        case("excluded: the domain of the name", RULE, r, below(vec![], vec![dns("acme.example")], &[here]))
            .refused("wrong_usage"),
        case("excluded: another domain", RULE, r, below(vec![], vec![dns("other.example")], &[here])),
        case("permitted, and excluded in it", RULE, r, below(vec![dns("example")], vec![dns("acme.example")], &[here]))
            .refused("wrong_usage"),
        case(
            "excluded: a name that a wildcard covers",
            RULE,
            r,
            below(vec![], vec![dns("bad.acme.example")], &["*.acme.example"]),
        )
        .refused("wrong_usage"),
        case("permitted: the network of an address", RULE, r, below(vec![network("9.9.9.0/24")], vec![], &["9.9.9.9"]))
            .target("9.9.9.9"),
        case("permitted: another network", RULE, r, below(vec![network("9.9.8.0/24")], vec![], &["9.9.9.9"]))
            .target("9.9.9.9")
            .refused("wrong_usage"),
        case(
            "excluded: the network of an address",
            RULE,
            r,
            below(vec![], vec![network("2620:fe::/32")], &["2620:fe::7"]),
        )
        .target("2620:fe::7")
        .refused("wrong_usage"),
        case(
            "domains permitted, an address in the leaf",
            "RFC 5280 §4.2.1.10: no name of that form, no restriction",
            r,
            below(vec![dns("acme.example")], vec![], &["9.9.9.9"]),
        )
        .target("9.9.9.9"),
        case(
            "the root limited to another domain",
            "RFC 5937 §3: an anchor's constraints count",
            &[&own],
            vec![own.leaf()],
        )
        .refused("wrong_usage"),
        case("limited two authorities above", "RFC 5280 §6.1.4 (g)", r, vec![lower.leaf(), lower.der, upper.der])
            .refused("wrong_usage"),
        case("a common name beyond what is permitted", "RFC 9525 §2: a common name is no name", r, only_common_name)
            .refused_if_strict("not_baseline"),
        // Known limitation: outgate does not process limits on directory names, so it refuses such an authority, as
        // §4.2.1.10 requires.
        case(
            "a directory name within what is permitted",
            "RFC 5280 §4.2.1.10: process it or reject",
            r,
            vec![in_directory, by_directory.der],
        )
        .refused("wrong_usage"),
    ]
}

fn path_lengths() -> Vec<Case> {
    const RULE: &str = "RFC 5280 §4.2.1.9";
    let most = |length: u8| {
        move |params: &mut CertificateParams| {
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(length));
        }
    };
    let root = Authority::root("root");
    let chain_below = |length: u8, more: usize| -> Vec<Der> {
        let mut chain = vec![root.issue_ca_with("limited", most(length))];
        for number in 0..more {
            let next = chain[0].issue_ca(&format!("further {number}"));
            chain.insert(0, next);
        }
        let leaf = chain[0].leaf();
        std::iter::once(leaf).chain(chain.into_iter().map(|authority| authority.der)).collect()
    };
    let short_root = Authority::root_with("short", most(0));
    let issuer = short_root.issue_ca("issuer");
    let limited = root.issue_ca_with("same", most(0));
    let self_issued = limited.issue_ca("same");
    vec![
        case("no authority allowed below, none there", RULE, &[&root], chain_below(0, 0)),
        case("no authority allowed below, one there", RULE, &[&root], chain_below(0, 1)).refused("wrong_usage"),
        case("one authority allowed below, one there", RULE, &[&root], chain_below(1, 1)),
        case("one authority allowed below, two there", RULE, &[&root], chain_below(1, 2)).refused("wrong_usage"),
        case("seven authorities", "no limit in RFC 5280; webpki's is 6", &[&root], chain_below(9, 6))
            .refused("unknown_issuer"),
        // Known limitation: the pathLenConstraint in a root's file is not part of the anchor.
        case(
            "a root that allows none below, one there",
            "RFC 5280 §6.1.1 (d): of an anchor the name and the key",
            &[&short_root],
            vec![issuer.leaf(), issuer.der],
        ),
        // Known limitation: §4.2.1.9 does not count a self-issued certificate, and webpki counts it. The verdict is that of
        // the other path, by the old key.
        case(
            "no authority allowed below, itself with another key",
            "stricter than RFC 5280 §4.2.1.9",
            &[&root],
            vec![self_issued.leaf(), self_issued.der, limited.der],
        )
        .refused("unknown_issuer"),
    ]
}

fn extensions() -> Vec<Case> {
    let root = Authority::root("root");
    let r = &[&root];
    let with = |number, critical, content: &[u8]| {
        let extension = extension(number, critical, content);
        vec![root.leaf_with(|params| params.custom_extensions.push(extension))]
    };
    let below = |number, critical, content: &[u8]| {
        let extension = extension(number, critical, content);
        let issuer = root.issue_ca_with("issuer", |params| params.custom_extensions.push(extension));
        vec![issuer.leaf(), issuer.der]
    };
    // requireExplicitPolicy: 0
    let policy: &[u8] = &[0x30, 0x03, 0x80, 0x01, 0x00];
    let good = root.leaf();
    let twice_over = |number, content: &[u8]| {
        let extension = extension(number, false, content);
        vec![root.leaf_with(|params| params.custom_extensions.push(extension))]
    };
    let (mut longer, shorter, mut other_algorithm) = (good.clone(), good[..good.len() - 1].to_vec(), good.clone());
    longer.push(0);
    // The second occurrence of ecdsa-with-SHA256, which is outside the signed part.
    let oid = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
    let at = other_algorithm.windows(8).rposition(|window| window == oid).unwrap();
    other_algorithm[at + 7] = 3;
    vec![
        case("an unknown extension", "RFC 5280 §4.2: may be ignored", r, with(999, false, &[5, 0])),
        case("an unknown critical extension", "RFC 5280 §4.2: must be rejected", r, with(999, true, &[5, 0]))
            .refused("malformed"),
        case("an unknown critical extension of the issuer", "RFC 5280 §4.2", r, below(999, true, &[5, 0]))
            .refused("malformed"),
        // Known limitation: policies are not processed. Critical ones are refused, and others are ignored.
        case("critical policy constraints", "RFC 5280 §4.2: process it or reject", r, below(36, true, policy))
            .refused("malformed"),
        case("policy constraints, not critical", "RFC 5280 §4.2.1.11 wants them critical", r, below(36, false, policy)),
        case("subjectAltName twice", "RFC 5280 §4.2: no more than one of each", r, twice_over(17, &[0x30, 0]))
            .refused("malformed"),
        case(
            "extKeyUsage twice",
            "RFC 5280 §4.2: no more than one of each",
            r,
            twice_over(37, &[0x30, 0x0a, 6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 1]),
        )
        .refused("malformed"),
        case("a byte after the end", "X.690 §10, RFC 5280 §4.1", r, vec![longer]).refused("malformed"),
        case("the last byte missing", "X.690 §10, RFC 5280 §4.1", r, vec![shorter]).refused("malformed"),
        case("one algorithm inside, another outside", "RFC 5280 §4.1.1.2: must be the same", r, vec![other_algorithm])
            .refused("malformed"),
    ]
}
