//! Revocation lists: of the leaf, of authorities, out of date, missing, or of another authority with the same name.
//! Is a revoked certificate refused, and is an unknown status handled by `crl_policy`?

use rcgen::KeyUsagePurpose;

use super::generator::{Authority, Case, Der, case};

/// A leaf has serial number 7, an authority 9.
const LEAF: u64 = 7;
const ISSUER: u64 = 9;

pub fn cases() -> Vec<Case> {
    let root = Authority::root("root");
    let issuer = root.issue_ca("issuer");
    let presented = || -> Vec<Der> { vec![issuer.leaf(), issuer.der.clone()] };
    let r = &[&root];
    let same_name_other_key = Authority::root("issuer");
    let mute = root.issue_ca_with("mute", |params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign]);
    let lenient = "crl_policy = \"lenient\"";
    let rule = "RFC 5280 §6.3.3";
    let required = "RFC 5280 §6.3.3, crl_policy = \"require\"";
    let passed = "crl_policy = \"lenient\": what no list speaks of passes";
    let both = |of_issuer: &[u64], of_root: &[u64]| vec![issuer.list(of_issuer), root.list(of_root)];
    let stale = |revoked: &[u64]| issuer.list_of(revoked, "2026-11-01T00:00:00Z", "2026-12-01T12:00:00Z");
    let older = issuer.list_of(&[], "2026-11-20T00:00:00Z", "2026-12-20T00:00:00Z");
    let older_with = issuer.list_of(&[LEAF], "2026-11-20T00:00:00Z", "2026-12-20T00:00:00Z");
    vec![
        case("no lists at all", "RFC 5280 §6.3: none configured, none asked", r, presented()),
        case("lists that revoke others", rule, r, presented()).lists(both(&[1, 2], &[3])),
        case("the leaf revoked", rule, r, presented()).lists(both(&[LEAF], &[])).refused("revoked"),
        case("the issuer revoked", rule, r, presented()).lists(both(&[], &[ISSUER])).refused("revoked"),
        case(
            "the leaf's serial number revoked by another issuer",
            "RFC 5280 §6.3.3 (b): of the same issuer",
            r,
            presented(),
        )
        .lists(both(&[], &[LEAF])),
        case("a list of the root missing", required, r, presented())
            .lists(vec![issuer.list(&[])])
            .refused("revocation_unknown"),
        case("a list of the issuer missing", required, r, presented())
            .lists(vec![root.list(&[])])
            .refused("revocation_unknown"),
        case("a leaf under the root, whose list is there", rule, r, vec![root.leaf()]).lists(vec![root.list(&[])]),
        case("a list of the root missing, lenient", passed, r, presented()).lists(vec![issuer.list(&[])]).more(lenient),
        case("a list of the issuer missing, lenient", passed, r, presented()).lists(vec![root.list(&[])]).more(lenient),
        case("the leaf revoked, lenient", rule, r, presented())
            .lists(vec![issuer.list(&[LEAF])])
            .more(lenient)
            .refused("revoked"),
        case("a list a second before its next", "RFC 5280 §5.1.2.5", r, presented())
            .lists(vec![stale(&[]), root.list(&[])])
            .at("2026-12-01T11:59:59Z"),
        case("a list in the second of its next", "RFC 5280 §5.1.2.5: by then there is another", r, presented())
            .lists(vec![stale(&[]), root.list(&[])])
            .refused("revocation_stale"),
        case("a list out of date, lenient", "crl_policy = \"lenient\": what is there counts", r, presented())
            .lists(vec![stale(&[]), root.list(&[])])
            .more(lenient),
        case(
            "the leaf revoked by a list out of date, lenient",
            "crl_policy = \"lenient\": what is there counts",
            r,
            presented(),
        )
        .lists(vec![stale(&[LEAF]), root.list(&[])])
        .more(lenient)
        .refused("revoked"),
        case("revoked since the older of two lists", "RFC 5280 §5: the newest is complete", r, presented())
            .lists(vec![older, issuer.list(&[LEAF]), root.list(&[])])
            .refused("revoked"),
        case("revoked in the older of two lists only", "RFC 5280 §5.3.1: removed from hold", r, presented())
            .lists(vec![older_with, issuer.list(&[]), root.list(&[])]),
        case("a list by another key with the issuer's name", "RFC 5280 §6.3.3 (g): its signature", r, presented())
            .lists(vec![same_name_other_key.list(&[LEAF]), root.list(&[])])
            .refused("revocation_unknown"),
        case(
            "a list of an authority that may not sign lists",
            "RFC 5280 §6.3.3 (f): cRLSign",
            r,
            vec![mute.leaf(), mute.der.clone()],
        )
        .lists(vec![mute.list(&[]), root.list(&[])])
        .refused("revocation_unknown"),
    ]
}
