//! Generated certificate chains, each with its verdict and the rule behind it.
//! Is every chain that must not prove a name refused with the right cause?

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test may panic; its modules are its own")]

mod baseline;
mod chains;
mod constraints;
mod lists;
mod names;
mod revocation;
mod roots;
use crate::support;
mod generator;
mod times;
mod usages;
mod vectors;
mod verdicts;

use std::collections::BTreeSet;

use generator::{Authority, Case, GOOD, case};
use outgate::policy::trust::error::VerifyError;

fn cases() -> Vec<Case> {
    let modules: [fn() -> Vec<Case>; 10] = [
        baseline::cases,
        chains::cases,
        constraints::cases,
        lists::cases,
        names::cases,
        revocation::cases,
        roots::cases,
        times::cases,
        usages::cases,
        vectors::cases,
    ];
    modules.iter().flat_map(|module| module()).collect()
}

#[test]
fn certificate_chains_get_the_verdict_of_the_table() {
    let cases = cases();
    let mut mismatches = Vec::new();
    for case in &cases {
        for (strict, expected) in [(true, case.strict), (false, case.loose)] {
            let found = case.verdict(strict);
            if found != expected {
                let Case { description, rule, .. } = case;
                mismatches.push(format!("{description} (strict = {strict}): {found}, but {expected} by {rule}"));
            }
        }
    }
    assert!(mismatches.is_empty(), "{} of {}:\n{}", mismatches.len(), cases.len(), mismatches.join("\n"));
}

#[test]
fn certificate_chain_with_one_changed_bit_is_refused() {
    let root = Authority::root("root");
    let good = case("good", "RFC 5280 §6.1", &[&root], vec![root.leaf()]);
    assert_eq!(good.verdict(true), GOOD);
    for (at, corrupted) in good.corrupted().enumerate() {
        assert_ne!(corrupted.verdict(false), GOOD, "byte {at}");
    }
}

#[test]
fn certificate_suite_covers_every_verdict() {
    let cases = cases();
    assert!(cases.len() >= 60, "{} chains", cases.len());
    let description: BTreeSet<_> = cases.iter().map(|case| case.description).collect();
    assert_eq!(description.len(), cases.len(), "every chain is another");
    assert!(cases.iter().all(|case| !case.rule.is_empty()));
    let covered: BTreeSet<_> = cases.iter().flat_map(|case| [case.strict, case.loose]).collect();
    let all: BTreeSet<_> = VerifyError::ALL.iter().map(|error| error.as_str()).chain([GOOD]).collect();
    assert_eq!(covered, all, "the chains cover every verdict");
}

/// An operator can send this text to the owner of the target.
#[test]
fn unknown_issuer_names_the_issuer_that_was_not_sent() {
    let root = Authority::root("root");
    let issuer = root.issue_ca("Acme R3");
    let untrusted_root = Authority::root("stranger");
    for (presented, expected) in [
        (
            vec![issuer.leaf()],
            "the server did not send the certificate of the issuer \"CN=Acme R3\". If the issuer is an intermediate \
             authority, configure the server to send its full chain; if the issuer is a root, the route does not trust \
             it",
        ),
        (
            vec![untrusted_root.leaf(), untrusted_root.der.clone()],
            "the chain that the server sent ends at \"CN=stranger\", which is not a trusted authority",
        ),
        (
            vec![root.same_name_other_key().leaf()],
            "the route trusts an authority called \"CN=root\", but another key signed the certificate",
        ),
    ] {
        let refused = case("", "", &[&root], presented).rejection(false).unwrap();
        assert_eq!((refused.error, refused.issuer.as_deref()), (VerifyError::UnknownIssuer, Some(expected)));
    }
}
