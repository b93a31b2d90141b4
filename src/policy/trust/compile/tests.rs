//! Tests of the problems and warnings of trust policies.
//! Is a policy that is weak or without effect reported, and no other?

use rcgen::ExtendedKeyUsagePurpose::{Any, ClientAuth, CodeSigning, ServerAuth};
use rcgen::{ExtendedKeyUsagePurpose, IsCa, KeyPair};

use super::super::tests::{at, file, pem_file, trust, written};
use super::*;
use crate::config::{ClientIdentity, Secret};
use crate::policy::fixture::messages;
use crate::policy::fixture::pki::Authority;

const ROOTS_REFUSE: &str = "roots have no revocation list: outgate refuses the certificates that they issued";
const NONE_OF_ROOTS: &str = "warning: no revocation list is issued by one of the roots: the lists apply only to \
                             intermediate authorities that targets send";

/// Returns the messages about a policy.
fn reported(roots: Vec<Roots>, change: impl FnOnce(&mut config::Trust)) -> Vec<String> {
    let (mut written, mut problems) = (written(roots, VerifyMode::Full), Vec::new());
    change(&mut written.value);
    let _ = compile_trust(&TrustName::new("t"), &written, &aws_lc_rs::default_provider(), &mut problems);
    assert!(problems.iter().all(|problem| problem.span.is_some() && problem.help.is_some()));
    messages(&problems)
}

#[test]
fn root_without_a_revocation_list_is_reported_if_one_is_required() {
    let [a, b, c] = ["a", "b", "c"].map(Authority::root);
    let reported = |lists: &[&Authority]| {
        let lists: Vec<_> = lists.iter().map(|authority| authority.list(|_| {})).collect();
        let parts: Vec<_> = lists.iter().map(Vec::as_slice).collect();
        reported(vec![file(&[&a.der, &b.der])], |written| written.crls = vec![pem_file("ca.crl", &parts)])
    };
    assert_eq!(reported(&[&a, &b]), [""; 0]);
    assert_eq!(reported(&[&a, &b, &c]), [""; 0]);
    assert_eq!(reported(&[&a]), [format!("warning: 1 of 2 {ROOTS_REFUSE}")]);
    assert_eq!(reported(&[&b, &c]), [format!("warning: 1 of 2 {ROOTS_REFUSE}")]);
    assert_eq!(reported(&[&c]), [format!("warning: 2 of 2 {ROOTS_REFUSE}")]);
    let no_lists = self::reported(vec![file(&[&a.der])], |_| {});
    assert_eq!(no_lists, [""; 0], "no list is configured");
    let unreadable = self::reported(vec![file(&[&a.der])], |written| {
        written.crls = vec![pem_file("ca.crl", &[b"odd"])];
    });
    assert_eq!(unreadable, ["revocation list 1 of ca.crl is not usable: it cannot be read"]);
}

#[test]
fn lists_of_no_root_are_reported_if_they_are_optional() {
    let [a, b, c] = ["a", "b", "c"].map(Authority::root);
    let reported = |roots: Vec<Roots>, authority: &Authority| {
        let list = authority.list(|_| {});
        reported(roots, |written| {
            (written.crls, written.crl_policy) = (vec![pem_file("ca.crl", &[&list])], Some(at(CrlPolicy::Lenient)));
        })
    };
    let files = || file(&[&a.der, &b.der]);
    assert_eq!(reported(vec![files()], &a), [""; 0]);
    assert_eq!(reported(vec![files()], &c), [NONE_OF_ROOTS]);
    // An operator who trusts all of Mozilla's roots has lists of some of them only.
    assert_eq!(reported(vec![files(), Roots::Mozilla], &c), [""; 0]);
    assert_eq!(reported(vec![Roots::Mozilla], &c), [""; 0]);
    assert_eq!(reported(vec![files(), Roots::Mozilla], &a), [""; 0]);
}

#[test]
fn policy_that_verifies_nothing_has_no_other_warning_about_lists() {
    let (root, other) = (Authority::root("root"), Authority::root("other").list(|_| {}));
    let reported = reported(vec![file(&[&root.der])], |written| {
        (written.verify, written.crls) = (at(VerifyMode::None), vec![pem_file("ca.crl", &[&other])]);
    });
    assert_eq!(reported.len(), 2, "{reported:?}");
    assert!(reported[0].starts_with("warning: trust t verifies no certificate: "), "{reported:?}");
    assert_eq!(reported[1], "trust t verifies no certificate, so crls has no effect");
}

#[test]
fn setting_that_has_no_effect_or_weakens_public_roots_is_reported() {
    let root = Authority::root("root");
    let list = root.list(|_| {});
    for policy in [CrlPolicy::Require, CrlPolicy::Lenient] {
        let with_lists = |crls: Vec<_>| {
            reported(vec![file(&[&root.der])], |written| {
                (written.crls, written.crl_policy) = (crls, Some(at(policy)));
            })
        };
        assert_eq!(with_lists(vec![]), ["crl_policy has no effect without crls"]);
        assert_eq!(with_lists(vec![pem_file("ca.crl", &[&list])]), [""; 0]);
    }
    let weak = ["warning: outgate accepts certificates that violate the rules of public authorities"];
    let with_strict = |roots, strict: Option<bool>| reported(roots, |written| written.strict = strict.map(at));
    let files = || file(&[&root.der]);
    assert_eq!(with_strict(vec![Roots::Mozilla], Some(false)), weak);
    assert_eq!(with_strict(vec![files(), Roots::Mozilla], Some(false)), weak);
    assert_eq!(with_strict(vec![files()], Some(false)), [""; 0]);
    for strict in [None, Some(true)] {
        assert_eq!(with_strict(vec![Roots::Mozilla], strict), [""; 0], "{strict:?}");
        assert_eq!(with_strict(vec![files()], strict), [""; 0], "{strict:?}");
    }
}

#[test]
fn intermediates_are_authorities() {
    let root = Authority::root("root");
    let (middle, leaf) = (root.intermediate("middle").der, root.leaf(|_| {}));
    let not_ca = root.intermediate_with("not", |params| params.is_ca = IsCa::ExplicitNoCa).der;
    let files = [pem_file("one.pem", &[&leaf, &middle]), pem_file("two.pem", &[&not_ca, b"odd", &root.der])];
    let no_path = "is not an authority, so no certificate path can contain it";
    assert_eq!(
        reported(vec![file(&[&root.der])], |written| written.intermediates = files.to_vec()),
        [
            format!("certificate 1 of one.pem {no_path}"),
            format!("certificate 1 of two.pem {no_path}"),
            "certificate 2 of two.pem is not an X.509 certificate".to_owned(),
        ]
    );
    let compiled = trust(&[&root.der], |written| written.intermediates = files.to_vec());
    assert_eq!(compiled.intermediates, [middle, root.der]);
}

#[test]
fn identity_that_is_not_for_clients_is_reported() {
    let root = Authority::root("root");
    let reported = |purposes: &[ExtendedKeyUsagePurpose]| {
        let key = KeyPair::generate().unwrap();
        let leaf = root.leaf_of(&key, |params| params.extended_key_usages = purposes.to_vec());
        let identity = ClientIdentity {
            certificate: pem_file("identity.pem", &[&leaf]),
            key: at(Secret::new(key.serialize_pem().into_bytes())),
        };
        reported(vec![file(&[&root.der])], |written| written.identity = Some(at(identity)))
    };
    for purposes in [&[][..], &[ClientAuth], &[Any], &[ServerAuth, ClientAuth], &[ServerAuth, Any]] {
        assert_eq!(reported(purposes), [""; 0], "{purposes:?}");
    }
    for purposes in [&[ServerAuth][..], &[CodeSigning, ServerAuth]] {
        let expected = ["warning: the certificate is not for clients: targets may refuse it"];
        assert_eq!(reported(purposes), expected, "{purposes:?}");
    }
}

#[test]
fn trust_counts_its_lists_and_directly_trusted_certificates() {
    let root = Authority::root("root");
    let empty = trust(&[&root.der], |_| {});
    assert_eq!((empty.crl_count(), empty.directly_trusted_count()), (0, 0));
    let (list, leaves) = (root.list(|_| {}), [root.leaf(|_| {}), root.leaf(|_| {})]);
    let full = trust(&[&root.der, &leaves[0], &leaves[1]], |written| {
        written.crls = vec![pem_file("a.crl", &[&list, &list]), pem_file("b.crl", &[&list])];
    });
    assert_eq!((full.crl_count(), full.directly_trusted_count()), (3, 2));
    assert_eq!(format!("{full:?}"), format!("Trust({:?})", full.name));
}
