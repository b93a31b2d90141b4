//! Validity periods to the second, and their maximum length.
//! Is a chain accepted exactly during its validity, and is a period that is too long refused?

use super::generator::{Authority, Case, Der, case, date};

pub fn cases() -> Vec<Case> {
    const VALIDITY: &str = "RFC 5280 §4.1.2.5: notBefore through notAfter, inclusive";
    let root = Authority::root("root");
    let r = &[&root];
    let leaf = |from: &str, until: &str| {
        let (from, until) = (date(from), date(until));
        vec![root.leaf_with(|params| (params.not_before, params.not_after) = (from, until))]
    };
    let month = || leaf("2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z");
    let below = |from: &str, until: &str| -> Vec<Der> {
        let (from, until) = (date(from), date(until));
        let issuer = root.issue_ca_with("issuer", |params| (params.not_before, params.not_after) = (from, until));
        vec![issuer.leaf(), issuer.der]
    };
    let old_root = Authority::root_with("old root", |params| params.not_after = date("2026-01-01T00:00:00Z"));
    let mut cases = vec![
        case("at notBefore", VALIDITY, r, month()).at("2026-11-01T00:00:00Z"),
        case("a second before notBefore", VALIDITY, r, month()).at("2026-10-31T23:59:59Z").refused("not_yet_valid"),
        case("at notAfter", VALIDITY, r, month()).at("2026-12-01T00:00:00Z"),
        case("a second after notAfter", VALIDITY, r, month()).at("2026-12-01T00:00:01Z").refused("expired"),
        case(
            "the end before the beginning",
            "RFC 5280 §4.1.2.5",
            r,
            leaf("2026-12-02T00:00:00Z", "2026-11-01T00:00:00Z"),
        )
        .refused("malformed"),
        case(
            "beyond 2049, in GeneralizedTime",
            "RFC 5280 §4.1.2.5.2",
            r,
            leaf("2026-11-01T00:00:00Z", "2051-01-01T00:00:00Z"),
        )
        .refused_if_strict("validity_too_long"),
        case(
            "no end at all: 99991231235959Z",
            "RFC 5280 §4.1.2.5; BR §6.3.2",
            r,
            vec![root.leaf_with(|params| {
                params.not_after = rcgen::date_time_ymd(9999, 12, 31) + time::Duration::seconds(86_399);
            })],
        )
        .refused_if_strict("validity_too_long"),
        case("an issuer that has expired", VALIDITY, r, below("2020-01-01T00:00:00Z", "2026-11-30T00:00:00Z"))
            .refused("expired"),
        case("an issuer that is not valid yet", VALIDITY, r, below("2026-12-02T00:00:00Z", "2030-01-01T00:00:00Z"))
            .refused("not_yet_valid"),
        // Known limitation: path validation ignores an anchor's dates. `check` and a metric report them.
        case(
            "a root that has expired",
            "RFC 5280 §6.1.1 (d): of an anchor the name and the key",
            &[&old_root],
            vec![old_root.leaf()],
        ),
        case(
            "expired, and of an unknown issuer",
            "the order of verdicts: the date is seen first",
            r,
            vec![Authority::root("stranger").leaf_with(|params| params.not_after = date("2026-11-02T00:00:00Z"))],
        )
        .refused("expired"),
    ];
    cases.extend(lifetimes(&root));
    cases
}

/// BR §6.3.2 (ballot SC-081v3): a started day counts as a whole day.
fn lifetimes(root: &Authority) -> Vec<Case> {
    const RULE: &str = "BR §6.3.2";
    let days = |description, from: &str, days: i64, seconds: i64, now| {
        let from = date(from);
        // The period includes both ends, so the difference is one second less than the days.
        let until = from + time::Duration::days(days) + time::Duration::seconds(seconds - 1);
        let leaf = root.leaf_with(|params| (params.not_before, params.not_after) = (from, until));
        case(description, RULE, &[root], vec![leaf]).at(now)
    };
    let too_long = "validity_too_long";
    let (y26, y27, y29) = ("2026-03-15T00:00:00Z", "2027-03-15T00:00:00Z", "2029-03-15T00:00:00Z");
    let (early, later, last) = ("2026-03-20T00:00:00Z", "2027-03-20T00:00:00Z", "2029-03-20T00:00:00Z");
    vec![
        days("398 days, issued in the last second of 398", "2026-03-14T23:59:59Z", 398, 0, early),
        days("398 days and a second", "2026-03-14T23:59:59Z", 398, 1, early).refused_if_strict(too_long),
        days("200 days, issued in the first second of 200", y26, 200, 0, early),
        days("200 days and a second", y26, 200, 1, early).refused_if_strict(too_long),
        days("398 days, issued too late for that", y26, 398, 0, early).refused_if_strict(too_long),
        days("200 days, issued in the last second of 200", "2027-03-14T23:59:59Z", 200, 0, later),
        days("100 days, issued in the first second of 100", y27, 100, 0, later),
        days("100 days and a second", y27, 100, 1, later).refused_if_strict(too_long),
        days("100 days, issued in the last second of 100", "2029-03-14T23:59:59Z", 100, 0, last),
        days("47 days, issued in the first second of 47", y29, 47, 0, last),
        days("47 days and a second", y29, 47, 1, last).refused_if_strict(too_long),
        days("six days", "2026-11-28T00:00:00Z", 6, 0, "2026-12-01T00:00:00Z"),
    ]
}
