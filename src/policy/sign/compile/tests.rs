//! Tests of signers and of their keys in time.
//! Which key signs at which time, and which problems are reported?

use super::*;
use crate::config::{HmacAlgorithm, Secret, SigningKey};
use crate::names::KeyId;
use crate::policy::fixture::{at, config, messages, signer as written};
use crate::policy::sign::{KeyState, directory, jwks, new_key, valid_id};
use jiff::Timestamp;

fn key_of(scheme: &str, start: u32, id: &str, from: Option<&str>, until: Option<&str>) -> Located<SigningKey> {
    let day = |text: &str| format!("{text}T00:00:00Z").parse().unwrap();
    let secret = at(start + 1, Secret::new(new_key(scheme, None).unwrap().as_bytes().to_vec()));
    at(start, SigningKey { id: KeyId::new(id), secret, from: from.map(day), until: until.map(day) })
}

fn key(start: u32, id: &str, from: Option<&str>, until: Option<&str>) -> Located<SigningKey> {
    key_of("standard-webhooks", start, id, from, until)
}

fn compiled_as(signer: config::Signer) -> (Option<Arc<Signer>>, Vec<Problem>) {
    let name = SignerName::new("platform");
    let config = Config { signers: [(name.clone(), at(10, signer))].into(), ..config() };
    let mut problems = vec![];
    let signer = compile(&config, None, &mut problems).remove(&name);
    (signer, problems)
}

fn compiled(scheme: &str, keys: Vec<Located<SigningKey>>) -> (Option<Arc<Signer>>, Vec<Problem>) {
    compiled_as(config::Signer { keys, ..written(scheme) })
}

#[test]
fn signers_compile_reports_each_problem() {
    let scheme = "standard-webhooks";
    let mut short = key(20, "a", None, None);
    short.value.secret.value = Secret::new(b"whsec_c2hvcnQ=".to_vec());
    for (scheme, keys, expected) in [
        (scheme, vec![key(20, "a", None, None)], vec![]),
        (scheme, vec![], vec!["the signer platform has no key"]),
        (scheme, vec![key(20, "a", None, None), key(30, "a", None, None)], vec!["two keys have the id a"]),
        (scheme, vec![key(20, "a", Some("2027-01-02"), Some("2027-01-01"))], vec!["the key a ends before it begins"]),
        (scheme, vec![short], vec!["the secret of the key a is 5 bytes long, not 24 to 64"]),
        ("standard-webhook", vec![key(20, "a", None, None)], vec!["no scheme is named \"standard-webhook\""]),
    ] {
        let (_, problems) = compiled(scheme, keys);
        assert_eq!(messages(&problems), expected);
    }
    let (_, problems) = compiled("standard_webhooks", vec![]);
    let help = "did you mean \"standard-webhooks\"? the schemes are standard-webhooks, rfc9421, twilio, sendgrid, \
                stripe, github, slack, shopify, hmac";
    assert_eq!(problems[1].help.as_deref(), Some(help));
}

#[test]
fn signer_lists_active_keys_newest_first_and_warns_of_gaps() {
    let keys = vec![
        key(20, "first", None, Some("2027-02-01")),
        key(30, "second", Some("2027-01-15"), Some("2027-03-01")),
        key(40, "third", Some("2027-03-10"), None),
    ];
    let (signer, problems) = compiled("standard-webhooks", keys);
    assert!(problems.is_empty(), "{problems:?}");
    let signer = signer.unwrap();
    let gap = "no key of the signer platform is in force";
    let to_come = format!("warning: {gap} from 2027-03-01T00:00:00Z until 2027-03-10T00:00:00Z");
    let now = format!("{gap} until 2027-03-10T00:00:00Z");
    for (time, expected, problem) in [
        ("2026-12-01T00:00:00Z", &["first"][..], None),
        ("2027-01-15T00:00:00Z", &["second", "first"], None),
        ("2027-01-30T00:00:00Z", &["second", "first"], Some(&to_come)),
        ("2027-02-01T00:00:00Z", &["second"], Some(&to_come)),
        ("2027-03-01T00:00:00Z", &[], Some(&now)),
        ("2027-03-10T00:00:00Z", &["third"], None),
    ] {
        let time: Timestamp = time.parse().unwrap();
        let ids: Vec<&str> = signer.keys_of(None).unwrap().active_keys(time).map(|key| key.id.as_str()).collect();
        assert_eq!(ids, expected, "{time}");
        assert_eq!(messages(&signer.problems(time)), Vec::from_iter(problem.cloned()), "{time}");
    }
}

/// A signer without keys, or with a rejected one, is reported once: its gap is not judged.
#[test]
fn signer_without_all_of_its_keys_has_no_gap() {
    let mut short = key(20, "a", None, None);
    short.value.secret.value = Secret::new(b"whsec_c2hvcnQ=".to_vec());
    for keys in [vec![], vec![short]] {
        let (signer, problems) = compiled("standard-webhooks", keys);
        let signer = signer.unwrap();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!((signer.next_gap(Timestamp::UNIX_EPOCH), signer.problems(Timestamp::UNIX_EPOCH).len()), (None, 0));
        assert_eq!(signer.tenants(), None);
    }
    let (signer, _) = compiled("standard-webhooks", vec![key(20, "a", None, Some("2027-01-01"))]);
    assert_eq!(signer.unwrap().next_gap(Timestamp::UNIX_EPOCH), Some("2027-01-01T00:00:00Z".parse().unwrap()));
}

#[test]
fn webhook_ids_are_restricted_to_safe_characters() {
    for (id, expected) in [
        ("msg_p5jXN8AQM9LWM0D4loKWxJek", true),
        ("a", true),
        ("", false),
        ("a.b", false),
        ("a b", false),
        ("a\r\n", false),
        ("ä", false),
        (&"a".repeat(256), true),
        (&"a".repeat(257), false),
    ] {
        assert_eq!(valid_id(id), expected, "{id}");
    }
}

#[test]
fn signing_schemes_refuse_options_of_other_schemes() {
    let (text, number) = (|start| Some(at(start, "{body}".to_owned())), |start| Some(at(start, HmacAlgorithm::Sha1)));
    let full = |scheme: &str| config::Signer {
        keys: vec![key_of(scheme, 20, "a", None, None)],
        algorithm: number(31),
        message: text(32),
        headers: Some(vec![at(33, "X-A: {signature}".into())]),
        ..written(scheme)
    };
    assert_eq!(messages(&compiled_as(full("hmac")).1), [""; 0]);
    let takes_no = |names: &[&str], scheme: &str| -> Vec<String> {
        names.iter().map(|name| format!("the scheme {scheme} does not support `{name}`")).collect()
    };
    assert_eq!(messages(&compiled_as(full("twilio")).1), takes_no(&["message", "headers"], "twilio"));
    let (_, problems) = compiled_as(full("github"));
    assert_eq!(messages(&problems), takes_no(&["algorithm", "message", "headers"], "github"));
    assert_eq!(problems.iter().map(|problem| problem.span.unwrap().start).collect::<Vec<_>>(), [31, 32, 33]);
}

#[test]
fn single_signature_schemes_sign_with_the_newest_key() {
    for scheme in ["github", "slack", "shopify", "twilio", "sendgrid"] {
        let key = |start, id, from| key_of(scheme, start, id, from, None);
        let (signer, problems) = compiled(scheme, vec![key(20, "old", None), key(30, "new", Some("2027-01-15"))]);
        assert!(problems.is_empty(), "{problems:?}");
        let signer = signer.unwrap();
        for (time, expected, states) in [
            ("2027-01-14T23:59:59Z", "old", [KeyState::Announced, KeyState::Active]),
            ("2027-01-15T00:00:00Z", "new", [KeyState::Active, KeyState::Replaced]),
        ] {
            let time: Timestamp = time.parse().unwrap();
            let signing: Vec<&str> = signer.signing_keys(None, time).map(KeyId::as_str).collect();
            assert_eq!(signing, [expected], "{scheme}");
            assert_eq!(signer.list(None, time).map(|key| key.state).collect::<Vec<_>>(), states, "{scheme}");
        }
        let (_, problems) = compiled(scheme, vec![key(20, "a", None), key(30, "b", None)]);
        assert_eq!(messages(&problems), ["the keys a and b begin at the same time"], "{scheme}");
    }
    for scheme in ["standard-webhooks", "rfc9421", "stripe"] {
        let key = |start, id| key_of(scheme, start, id, None, None);
        let (signer, problems) = compiled(scheme, vec![key(20, "a"), key(30, "b")]);
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(signer.unwrap().signing_keys(None, Timestamp::UNIX_EPOCH).count(), 2, "{scheme}");
    }
}

#[test]
fn signing_schemes_parse_their_generated_keys() {
    for scheme in crate::policy::sign::schemes() {
        let headers = (scheme == "hmac").then(|| vec![at(33, "X-A: {signature}".to_owned())]);
        let keys = vec![key_of(scheme, 20, "a", None, None)];
        let (signer, problems) = compiled_as(config::Signer { headers, keys, ..written(scheme) });
        assert!(problems.is_empty(), "{scheme}: {problems:?}");
        assert_eq!(signer.unwrap().scheme(), scheme);
    }
    assert!(new_key("github", Some("ed25519")).is_err() && new_key("git", None).is_err());
    assert!(new_key("rfc9421", Some("rsa-pss-sha512")).unwrap().starts_with("-----BEGIN PRIVATE KEY-----"));
}

#[test]
fn public_keys_are_published_before_they_sign_until_they_end() {
    let keys = |scheme| {
        vec![
            key_of(scheme, 20, "ended", None, Some("2027-01-01")),
            key_of(scheme, 30, "active", None, Some("2027-06-01")),
            key_of(scheme, 40, "announced", Some("2027-05-01"), None),
        ]
    };
    let now = "2027-02-01T00:00:00Z".parse().unwrap();
    let signers = |scheme| {
        let signer = compiled(scheme, keys(scheme)).0.unwrap();
        [(signer.name().clone(), signer)].into()
    };
    let kids = |set: &serde_json::Value| -> Vec<String> {
        set["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(kids(&jwks(&signers("github"), None, now)), [""; 0]);
    let listed = |scheme| {
        let signers = signers(scheme);
        let list = |key: crate::policy::sign::ListedKey<'_>| (key.state.as_str(), key.written.is_some());
        signers["platform"].list(None, now).map(list).collect::<Vec<_>>()
    };
    let states = ["announced", "ended", "active"];
    assert_eq!(listed("rfc9421"), states.map(|state| (state, false)), "the scheme has no encoding of its own");
    assert_eq!(listed("github"), states.map(|state| (state, false)));
    assert_eq!(KeyState::Replaced.as_str(), "replaced");
    // A directory is of keys for HTTP Message Signatures, each of them once.
    assert_eq!(kids(&directory(&signers("sendgrid"), None, now)), [""; 0]);
    assert_eq!(kids(&jwks(&signers("sendgrid"), None, now)).len(), 2);
    let signers = signers("rfc9421");
    // A signature is good for a while, also one that was made in the last second.
    for (moment, count) in [("2027-06-01T00:04:59Z", 2), ("2027-06-01T00:05:00Z", 1)] {
        assert_eq!(kids(&jwks(&signers, None, moment.parse().unwrap())).len(), count, "{moment}");
    }
    let entries = directory(&signers, None, now);
    assert_eq!(kids(&jwks(&signers, None, now)), kids(&entries));
    let thumbprints: Vec<_> = signers["platform"]
        .list(None, now)
        .filter(|key| key.state != KeyState::Ended)
        .map(|key| key.public.unwrap().thumbprint())
        .collect();
    assert_eq!(kids(&entries), thumbprints);
    assert_eq!(
        (&entries["keys"][0]["nbf"], &entries["keys"][1]["exp"]),
        (&1_809_129_600.into(), &1_811_808_000.into())
    );
    assert!(entries["keys"][0].get("exp").is_none() && entries["keys"][0].get("d").is_none());
    let twice = [
        (SignerName::new("other"), signers["platform"].clone()),
        (SignerName::new("platform"), signers["platform"].clone()),
    ];
    assert_eq!(kids(&directory(&twice.into(), None, now)), thumbprints);
}
