//! Path building: roots, cross-signatures, order, missing and superfluous certificates.
//! Is a path found exactly if one exists?

use rcgen::IsCa;

use super::generator::{Authority, Case, Der, NAME, case, common_name, pin, self_signed};

pub fn cases() -> Vec<Case> {
    let root = Authority::root("root");
    let issuer = root.issue_ca("issuer");
    let leaf = issuer.leaf();
    let untrusted_root = Authority::root("stranger");
    let impostor = Authority::root("root");
    let (other_root, upper) = (Authority::root("other root"), root.issue_ca("upper"));
    let deep = upper.issue_ca("deep");
    let crossed = untrusted_root.cross_sign(&issuer, |_| {});
    let expired_cross =
        root.cross_sign(&crossed, |params| params.not_after = super::generator::date("2026-01-01T00:00:00Z"));
    let by_cross = issuer.leaf();
    // Two authorities that certify only each other.
    let (one, two) = (Authority::root("one"), Authority::root("two"));
    let ring = [one.cross_sign(&two, |_| {}).der, two.cross_sign(&one, |_| {}).der];
    let flipped = |der: &Der, at: usize| {
        let mut der = der.clone();
        der[at] ^= 1;
        der
    };
    // The number exceeds the limit of verified signatures. The last certificate issued the leaf.
    let namesakes: Vec<_> = (0..110).map(|_| other_root.issue_ca("root")).collect();
    let bad_signature = namesakes.last().map(Authority::leaf).unwrap();
    let bad_signature = flipped(&bad_signature, bad_signature.len() - 1);
    let many = std::iter::once(bad_signature)
        .chain(namesakes.into_iter().map(|same_name_other_key| same_name_other_key.der))
        .collect();
    let is_ca = |params: &mut rcgen::CertificateParams| params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let r = &[&root];
    let show = |more: &[&Der]| [&[&leaf], more].concat().into_iter().cloned().collect::<Vec<Der>>();
    let last = |der: &Der| der.len() - 1;
    let mut cases = vec![
        case("a leaf directly under the root", "RFC 5280 §6.1", r, vec![root.leaf()]),
        case("a leaf, its issuer, the root", "RFC 5280 §6.1", r, show(&[&issuer.der])),
        case("two intermediates", "RFC 5280 §6.1", r, vec![deep.leaf(), deep.der.clone(), upper.der.clone()]),
        case(
            "two intermediates in the wrong order",
            "RFC 8446 §4.4.2: be prepared for any order",
            r,
            vec![deep.leaf(), upper.der.clone(), deep.der.clone()],
        ),
        case("the root sent too", "RFC 8446 §4.4.2: the anchor may be there", r, show(&[&issuer.der, &root.der])),
        case("the issuer sent twice", "RFC 8446 §4.4.2: extraneous certificates", r, show(&[&issuer.der, &issuer.der])),
        case("the leaf sent twice", "RFC 8446 §4.4.2: extraneous certificates", r, show(&[&leaf, &issuer.der])),
        case(
            "an unrelated certificate in between",
            "RFC 8446 §4.4.2: extraneous certificates",
            r,
            show(&[&untrusted_root.der, &issuer.der]),
        ),
        case(
            "bytes that are no certificate in between",
            "RFC 8446 §4.4.2: extraneous certificates",
            r,
            show(&[&b"junk".to_vec(), &issuer.der]),
        ),
        case("the issuer not sent", "RFC 8446 §4.4.2: the sender's chain; nothing is fetched", r, show(&[]))
            .refused("unknown_issuer"),
        case("the upper of two intermediates not sent", "RFC 5280 §6.1", r, vec![deep.leaf(), deep.der.clone()])
            .refused("unknown_issuer"),
        case("issued by another root", "RFC 5280 §6.1.1 (d)", r, vec![untrusted_root.leaf()]).refused("unknown_issuer"),
        case(
            "issued by another root, with that root",
            "RFC 5280 §6.1.1 (d)",
            r,
            vec![untrusted_root.leaf(), untrusted_root.der.clone()],
        )
        .refused("unknown_issuer"),
        case("trusted elsewhere only", "RFC 5280 §6.1.1 (d)", &[&other_root], show(&[&issuer.der, &root.der]))
            .refused("unknown_issuer"),
        case("signed by another key with the root's name", "RFC 5280 §6.1.3 (a) (1)", r, vec![impostor.leaf()])
            .refused("unknown_issuer"),
        case(
            "signed by another key with the issuer's name",
            "RFC 5280 §6.1.3 (a) (1): another authority of one name",
            r,
            vec![issuer.same_name_other_key().leaf(), issuer.der.clone()],
        )
        .refused("unknown_issuer"),
        case(
            "signed by another key, without a key identifier",
            "RFC 5280 §4.2.1.1: without an identifier nobody knows whose the signature should be",
            r,
            vec![impostor.leaf_with(|params| params.use_authority_key_identifier_extension = false)],
        )
        .refused("unknown_issuer"),
        case(
            "an expired leaf with its root's name",
            "RFC 5280 §6.1.3 (a) (2); not self-signed: the root's key is another",
            r,
            vec![root.leaf_with(|params| {
                common_name(params, "root");
                params.distinguished_name.remove(rcgen::DnType::OrganizationName);
                params.not_after = super::generator::date("2026-11-02T00:00:00Z");
            })],
        )
        .refused("expired"),
        case(
            "a bit of the leaf's signature flipped",
            "RFC 5280 §6.1.3 (a) (1)",
            r,
            vec![flipped(&leaf, last(&leaf)), issuer.der.clone()],
        )
        .refused("bad_signature"),
        case(
            "a bit of the issuer's signature flipped",
            "RFC 5280 §6.1.3 (a) (1)",
            r,
            vec![leaf.clone(), flipped(&issuer.der, last(&issuer.der))],
        )
        .refused("bad_signature"),
        case(
            "cross-signed, the trusted one sent first",
            "RFC 4158 §2.4: try other paths",
            r,
            vec![by_cross.clone(), issuer.der.clone(), crossed.der.clone()],
        ),
        case(
            "cross-signed, the trusted one sent last",
            "RFC 4158 §2.4: try other paths",
            r,
            vec![by_cross.clone(), crossed.der.clone(), untrusted_root.der.clone(), issuer.der.clone()],
        ),
        case(
            "cross-signed, only the untrusted one sent",
            "RFC 5280 §6.1.1 (d)",
            r,
            vec![by_cross.clone(), crossed.der.clone()],
        )
        .refused("unknown_issuer"),
        case(
            "cross-signed, one of the two expired",
            "RFC 4158 §2.4: try other paths",
            r,
            vec![by_cross.clone(), expired_cross.der.clone(), issuer.der.clone()],
        ),
        case(
            "cross-signed, and the other root trusted instead",
            "RFC 4158 §2.4",
            &[&untrusted_root],
            vec![by_cross.clone(), issuer.der.clone(), crossed.der.clone()],
        ),
        case(
            "two authorities that certify each other",
            "RFC 4158 §5.2: loops",
            r,
            vec![one.leaf(), ring[0].clone(), ring[1].clone()],
        )
        .refused("unknown_issuer"),
        case("signed badly by the last of many issuers of the root's name", "RFC 4158 §5.2: bounded work", r, many)
            .refused("unknown_issuer"),
        case("self-signed", "BR §7.1.2.7: issued by a CA", r, vec![self_signed(|_| {})]).refused("self_signed"),
        case(
            "self-signed and expired",
            "the order of verdicts: a new date would not help",
            r,
            vec![self_signed(|params| params.not_after = super::generator::date("2026-11-02T00:00:00Z"))],
        )
        .refused("self_signed"),
        case("self-signed authority", "RFC 5280 §6.1.1 (d)", r, vec![self_signed(is_ca)]).refused("self_signed"),
        case(
            "self-signed with the root's name",
            "RFC 5280 §6.1.3 (a) (1)",
            r,
            vec![self_signed(|params| {
                common_name(params, "root");
                params.distinguished_name.remove(rcgen::DnType::OrganizationName);
            })],
        )
        .refused("self_signed"),
        case("nothing that could be a certificate", "RFC 5280 §4.1", r, vec![b"junk".to_vec()]).refused("malformed"),
    ];
    let own = self_signed(|_| {});
    cases.push(
        case(
            "self-signed, and configured as a root",
            "RFC 5280 §6.1: an anchor by the operator's word",
            r,
            vec![own.clone()],
        )
        .root(own),
    );
    cases.extend(pins());
    cases
}

/// RFC 7469 §2.6: a pin matches if any certificate of the validated chain has the key.
fn pins() -> Vec<Case> {
    const RULE: &str = "RFC 7469 §2.6";
    let root = Authority::root("root");
    let issuer = root.issue_ca("issuer");
    let (bystander, spare) = (root.issue_ca("bystander"), Authority::root("spare"));
    let leaf = issuer.leaf();
    let presented = || vec![leaf.clone(), bystander.der.clone(), issuer.der.clone()];
    let pinned = |der: &Der| format!("pins = [{:?}, {:?}]", pin(der), pin(&spare.der));
    let other = Authority::root("other");
    let crossed = other.cross_sign(&issuer, |_| {});
    let both = vec![leaf.clone(), crossed.der.clone(), issuer.der.clone()];
    vec![
        case("the leaf's key pinned", RULE, &[&root], presented()).more(pinned(&leaf)),
        case("the issuer's key pinned", RULE, &[&root], presented()).more(pinned(&issuer.der)),
        case("the root's key pinned", RULE, &[&root], presented()).more(pinned(&root.der)),
        case("only the key of an unused certificate pinned", RULE, &[&root], presented())
            .more(pinned(&bystander.der))
            .refused("pin_mismatch"),
        case("only keys pinned that are not there", RULE, &[&root], presented())
            .more(format!("pins = [{:?}, {:?}]", pin(&spare.der), pin(&other.der)))
            .refused("pin_mismatch"),
        case("pinned to the second of two paths", RULE, &[&root, &other], both).more(pinned(&root.der)),
        case("pinned, but for another name", "RFC 7469 §2.6: after the chain is validated", &[&root], presented())
            .more(pinned(&leaf))
            .target(&format!("not.{NAME}"))
            .refused("name_mismatch"),
    ]
}
