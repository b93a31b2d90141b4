//! Tests of bundles: their form, their signatures and their age.
//! Does an instance read only what an operator has signed lately?

use super::super::OperatorKey;
use super::super::operators::tests::{new_key, operators};
use super::*;

fn bundle() -> Bundle {
    Bundle {
        fleet: "outgate".to_owned(),
        number: 3,
        created_at: "2026-11-27T21:00:00Z".parse().unwrap(),
        author: "alice".to_owned(),
        waves: vec![["i0".to_owned()].into(), ["i1".to_owned(), "i2".to_owned()].into()],
        pause_seconds: 300,
        files: [("00000-routes.toml".to_owned(), "[guard]\n".to_owned())].into(),
    }
}

#[test]
fn bundle_has_one_form_and_belongs_to_one_fleet() {
    let document = bundle().document();
    assert_eq!(Bundle::parse(&document, "outgate"), Ok(bundle()));
    assert_eq!(Bundle::parse(&document, "staging"), Err(BundleError::OtherFleet("outgate".to_owned())));
    let refused = |document: &str| Bundle::parse(document, "outgate").unwrap_err().to_string();
    assert!(refused(&document[..document.len() - 1]).contains("malformed: EOF"));
    for wrong in [document.replacen(':', ": ", 1), document.replacen('{', "{\"number\":3,", 1), format!("{document}\n")]
    {
        assert!(refused(&wrong).contains("malformed"), "{wrong}");
    }
    let with = |change: &dyn Fn(&mut Bundle)| {
        let mut changed = bundle();
        change(&mut changed);
        refused(&changed.document())
    };
    let name = |name: &str| with(&|bundle| drop(bundle.files.insert(name.to_owned(), String::new())));
    for wrong in ["../x.toml", "a/b.toml", ".x.toml", "x.json", "", "x\n.toml"] {
        assert!(name(wrong).contains("is not the name of a file"), "{wrong}");
    }
    assert!(with(&|bundle| bundle.waves.clear()).contains("a wave is empty"));
    assert!(with(&|bundle| bundle.waves.push(bundle.waves[0].clone())).contains("an instance is in two waves"));
    assert!(with(&|bundle| bundle.pause_seconds = 3601).contains("longer than an hour"));
    assert!(with(&|bundle| bundle.files.clear()).contains("the number of files"));
    assert_eq!(file_name(7, std::path::Path::new("/etc/a b/c.d é.toml")), "00007-c.d__.toml");
}

#[test]
fn bundle_is_started_within_an_hour_and_adopted_within_ninety_days() {
    let (bundle, hours) = (bundle(), jiff::SignedDuration::from_hours);
    let at = |age: i64| {
        let now = bundle.created_at + hours(age);
        (bundle.may_start(now).is_ok(), bundle.may_be_adopted(now).is_ok(), bundle.renewal(now).is_some())
    };
    for (age, expected) in [
        (-2, (false, false, false)),
        (-1, (true, true, false)),
        (1, (true, true, false)),
        (2, (false, true, false)),
        (76 * 24, (false, true, false)),
        (77 * 24, (false, true, true)),
        (90 * 24, (false, true, true)),
        (90 * 24 + 1, (false, false, true)),
    ] {
        assert_eq!(at(age), expected, "{age}");
    }
    let renewal = bundle.renewal(bundle.created_at + hours(80 * 24)).unwrap();
    assert_eq!(renewal, "its repetition: in 10 days, hosts that join adopt the bundle no longer");
    for extreme in [Timestamp::MIN, Timestamp::MAX] {
        let bundle = Bundle { created_at: extreme, ..bundle.clone() };
        assert!(bundle.may_be_adopted("2026-11-27T21:00:00Z".parse().unwrap()).is_err());
    }
}

#[test]
fn statements_differ_by_meaning_and_digest() {
    let digest = digest("x");
    let texts = [
        Statement::Start.text(&digest),
        Statement::Approve.text(&digest),
        Statement::Abort.text(&digest),
        Statement::Start.text(&digest[1..]),
    ];
    assert_eq!(texts.iter().collect::<BTreeSet<_>>().len(), texts.len());
    assert!(texts.iter().all(|text| text.starts_with("outgate fleet rollout v1\n")));
}

/// A document that no operator has signed reaches no parser, so the signature is the reason, whatever it is.
#[test]
fn bundle_is_parsed_only_after_its_signature_has_been_verified() {
    let ((alice, of_alice), (bob, of_bob), (mallory, _)) = (new_key(), new_key(), new_key());
    let (operators, _) = operators("bundle", [&of_alice, &of_bob]);
    let verify = |document: &str, key: &OperatorKey| {
        let signature = key.sign(&Statement::Start.text(&digest(document)));
        SignedBundle::verify(document, &signature, "outgate", &operators).map(|bundle| bundle.number)
    };
    let document = bundle().document();
    assert_eq!(verify(&document, &alice), Ok(3));
    assert_eq!(verify(&document, &bob), Err(BundleError::OtherAuthor("alice".to_owned())));
    for unsigned in [&document, "{", "", &Bundle { fleet: "staging".to_owned(), ..bundle() }.document()] {
        assert_eq!(verify(unsigned, &mallory), Err(BundleError::Unsigned), "{unsigned}");
    }
    assert!(matches!(verify("{", &alice), Err(BundleError::Malformed(_))));
    // No byte of a document that is too long is hashed.
    let huge = "x".repeat(DOCUMENT_MAX + 1);
    let verified = SignedBundle::verify(&huge, "", "outgate", &operators).map(|bundle| bundle.number);
    assert_eq!(verified, Err(BundleError::TooLarge(DOCUMENT_MAX + 1)));
}

#[test]
fn bundle_has_its_limits_and_no_more() {
    let parse = |change: &dyn Fn(&mut Bundle)| {
        let mut changed = bundle();
        change(&mut changed);
        let expected = changed.clone();
        Bundle::parse(&changed.document(), "outgate").map(|bundle| assert_eq!(bundle, expected))
    };
    let malformed = |reason: &str| Err(BundleError::Malformed(reason.to_owned()));
    assert_eq!(parse(&|bundle| bundle.number = NUMBER_MAX), Ok(()));
    assert_eq!(parse(&|bundle| bundle.number = NUMBER_MAX + 1), malformed("its number is too large"));
    assert_eq!(parse(&|bundle| bundle.pause_seconds = 3600), Ok(()));
    let files = |count: usize| (0..count).map(|n| (format!("{n}.toml"), String::new())).collect();
    assert_eq!(parse(&|bundle| bundle.files = files(FILES_MAX)), Ok(()));
    assert_eq!(parse(&|bundle| bundle.files = files(FILES_MAX + 1)), malformed("the number of files"));
    // A document of the largest size, and one that is a byte longer.
    let filled = |length: usize| {
        let mut filled = bundle();
        let text = "x".repeat(length - filled.document().len());
        filled.files.values_mut().for_each(|file| file.push_str(&text));
        filled.document()
    };
    let ((alice, of_alice), (_, of_bob)) = (new_key(), new_key());
    let (operators, _) = operators("bundle", [&of_alice, &of_bob]);
    for (length, expected) in [(DOCUMENT_MAX, Ok(())), (DOCUMENT_MAX + 1, Err(BundleError::TooLarge(DOCUMENT_MAX + 1)))]
    {
        let document = filled(length);
        assert_eq!(document.len(), length);
        assert_eq!(Bundle::parse(&document, "outgate").map(drop), expected);
        let signature = alice.sign(&Statement::Start.text(&digest(&document)));
        assert_eq!(SignedBundle::verify(&document, &signature, "outgate", &operators).map(drop), expected);
    }
}

#[test]
fn bundle_digest_is_sha_256_in_hexadecimal_digits() {
    // FIPS 180-4, the example "abc".
    assert_eq!(digest("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    let signed = SignedBundle::unverified(bundle());
    assert_eq!(signed.digest(), digest(&bundle().document()));
}

#[test]
fn bundle_file_name_has_at_most_a_hundred_characters_of_the_path() {
    let name = |length: usize| file_name(3, Path::new(&format!("/etc/{}.toml", "a".repeat(length))));
    assert_eq!(name(100), format!("00003-{}.toml", "a".repeat(100)));
    assert_eq!(name(101), name(100));
    assert!(is_file_name(&name(101)));
}

#[test]
fn bundle_is_approved_by_another_operator_than_its_author() {
    let ((alice, of_alice), (bob, of_bob), (mallory, _)) = (new_key(), new_key(), new_key());
    let (operators, _) = operators("bundle", [&of_alice, &of_bob]);
    let signed = SignedBundle::unverified(bundle());
    let signer = |statement: Statement, key: &OperatorKey| {
        let signature = key.sign(&statement.text(signed.digest()));
        signed.signer(statement, &signature, &operators).map(ToOwned::to_owned)
    };
    for (statement, by_alice) in
        [(Statement::Start, Some("alice")), (Statement::Approve, None), (Statement::Abort, Some("alice"))]
    {
        assert_eq!(signer(statement, &alice).as_deref(), by_alice, "{statement:?} of the author");
        assert_eq!(signer(statement, &bob).as_deref(), Some("bob"), "{statement:?}");
        assert_eq!(signer(statement, &mallory), None, "{statement:?}");
    }
    let abort = alice.sign(&Statement::Abort.text(signed.digest()));
    assert_eq!(signed.signer(Statement::Start, &abort, &operators), None, "it is of another statement");
}

#[test]
fn bundle_replaces_the_files_of_the_former_bundle() {
    let former = ["00000-routes.toml", "00001-gone.toml"].map(ToOwned::to_owned).into();
    let overlay = bundle().overlay(Path::new("/state/rollout"), former);
    let path = |name: &str| Path::new("/state/rollout").join(name);
    assert_eq!(overlay.texts, [(path("00000-routes.toml"), b"[guard]\n".to_vec())].into());
    assert_eq!(overlay.removed, [path("00001-gone.toml")].into());
}
