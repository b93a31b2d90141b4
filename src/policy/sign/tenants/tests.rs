//! Tests of the keys of tenants, which are read from the folders of a `key_dir`.
//! Does a tenant sign with its own keys alone, and with those of the last folder that had no problem?

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use jiff::Timestamp;

use super::*;
use crate::config;
use crate::names::{KeyId, SignerName};
use crate::policy::fixture::messages;
use crate::policy::sign::error::SignError;
use crate::policy::sign::fixture::Sample;
use crate::policy::sign::scheme::SigningInput;
use crate::policy::sign::signer::{Signer, Signers};
use crate::policy::sign::{self, new_key};

/// A folder with a configuration and its keys, which is removed at the end.
struct Folder {
    path: PathBuf,
    signer: &'static str,
}

impl Folder {
    /// `signer` is the text of `[signers.platform]`.
    fn new(name: &str, signer: &'static str) -> Self {
        let path = std::env::temp_dir().join(format!("outgate-tenants-{name}-{}", std::process::id()));
        std::fs::create_dir_all(path.join("keys")).unwrap();
        Self { path, signer }
    }

    fn write(&self, file: &str, secret: &str) {
        let path = self.path.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, secret).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    }

    /// Compiles the signer, and returns it with the messages of the problems.
    fn compile(&self, previous: Option<&Signers>) -> (Signers, Vec<String>) {
        let text = format!("[signers.platform]\n{}\nkey_dir = \"keys\"\n", self.signer);
        let config = match config::parse(&text, &self.path.join("config.toml")) {
            Ok(loaded) => loaded.config,
            Err(rejected) => *rejected.partial.unwrap(),
        };
        let mut problems = Vec::new();
        let signers = sign::compile(&config, previous, &mut problems);
        let folder = format!("{}/", self.path.display());
        (signers, messages(&problems).iter().map(|message| message.replace(&folder, "")).collect())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

const STANDARD: &str = "scheme = \"standard-webhooks\"";

fn key(scheme: &str) -> String {
    new_key(scheme, None).unwrap().to_string()
}

fn platform(signers: &Signers) -> &Signer {
    &signers[&SignerName::new("platform")]
}

fn tenant(name: &str) -> TenantName {
    TenantName::new(name)
}

/// Signs a webhook of this tenant with this id. Returns the ids of the keys.
fn sign(signers: &Signers, name: Option<&str>, id: &str) -> Result<Vec<String>, SignError> {
    let name = name.map(tenant);
    Sample::body("{}").with_input(|input| {
        let signature = platform(signers).sign(&SigningInput { tenant: name.as_ref(), id, ..*input })?;
        assert!(!signature.headers.is_empty());
        Ok(signature.keys.iter().map(KeyId::to_string).collect())
    })
}

fn signature_of(signers: &Signers, name: &str) -> String {
    let name = tenant(name);
    Sample::body("{}").with_input(|input| {
        let signature = platform(signers).sign(&SigningInput { tenant: Some(&name), ..*input }).unwrap();
        format!("{:?}", signature.headers)
    })
}

#[test]
fn tenant_signs_with_the_keys_of_its_folder_alone() {
    let folder = Folder::new("own", STANDARD);
    folder.write("keys/acme/k1.key", &key("standard-webhooks"));
    folder.write("keys/acme/k2.key", &key("standard-webhooks"));
    folder.write("keys/globex/k3.key", &key("standard-webhooks"));
    let (signers, problems) = folder.compile(None);
    assert_eq!(problems, [""; 0]);
    let signer = platform(&signers);
    assert_eq!((signer.tenants(), signer.shares_a_secret()), (Some(2), false));
    assert!(signer.has_own_keys(&tenant("acme")) && !signer.has_own_keys(&tenant("other")));
    let of = |name| sign(&signers, name, "msg_1").map(|keys| keys.join(" "));
    assert_eq!(of(Some("acme")), Ok("k1 k2".to_owned()));
    assert_eq!(of(Some("globex")), Ok("k3".to_owned()));
    assert_eq!(of(Some("other")), Err(SignError::NoTenantKeys));
    assert_eq!(of(None), Err(SignError::NoTenant));
    let unsafe_id = sign(&signers, Some("acme"), "a.b").unwrap_err();
    assert_eq!(unsafe_id.to_string(), "the webhook id has characters that cannot be signed");
}

#[test]
fn tenants_without_a_folder_share_the_written_keys() {
    let folder =
        Folder::new("shared", "scheme = \"standard-webhooks\"\nkeys = [{ id = \"all\", secret = \"file:key\" }]");
    folder.write("key", &key("standard-webhooks"));
    folder.write("keys/acme/k1.key", &key("standard-webhooks"));
    let (signers, problems) = folder.compile(None);
    assert_eq!(problems, [""; 0]);
    assert!(platform(&signers).shares_a_secret());
    let of = |name| sign(&signers, name, "msg_1").map(|keys| keys.join(" "));
    assert_eq!([of(Some("acme")), of(Some("other")), of(None)], ["k1", "all", "all"].map(|keys| Ok(keys.to_owned())));
    // The private half of a key pair is no secret that receivers have.
    let pairs = Folder::new("pairs", "scheme = \"rfc9421\"\nkeys = [{ id = \"all\", secret = \"file:key\" }]");
    pairs.write("key", &key("rfc9421"));
    let (signers, problems) = pairs.compile(None);
    assert_eq!((problems, platform(&signers).shares_a_secret()), (vec![], false));
}

#[test]
fn tenant_keeps_its_keys_while_its_folder_has_a_problem() {
    let folder = Folder::new("problem", STANDARD);
    folder.write("keys/acme/k1.key", &key("standard-webhooks"));
    folder.write("keys/globex/k2.key", &key("standard-webhooks"));
    let (first, _) = folder.compile(None);
    let (acme, globex) = (signature_of(&first, "acme"), signature_of(&first, "globex"));
    folder.write("keys/acme/k1.key", "whsec_c2hvcnQ=");
    folder.write("keys/globex/k2.key", &key("standard-webhooks"));
    let expected = ["contained: the secret in keys/acme/k1.key is 5 bytes long, not 24 to 64"];
    let (second, problems) = folder.compile(Some(&first));
    assert_eq!(problems, expected);
    assert_eq!(platform(&second).broken_tenants().collect::<Vec<_>>(), [&tenant("acme")]);
    assert_eq!(signature_of(&second, "acme"), acme, "the last key without a problem");
    let changed = signature_of(&second, "globex");
    assert_ne!(changed, globex);
    // The problem is reported as long as it lasts.
    let (third, problems) = folder.compile(Some(&second));
    assert_eq!(problems, expected);
    assert_eq!((signature_of(&third, "acme"), signature_of(&third, "globex")), (acme.clone(), changed));
    // Without a previous plan there is no key.
    let (alone, _) = folder.compile(None);
    assert_eq!(sign(&alone, Some("acme"), "msg_1"), Err(SignError::NoActiveKey));
    folder.write("keys/acme/k1.key", &key("standard-webhooks"));
    let (mended, problems) = folder.compile(Some(&third));
    assert_eq!((problems, platform(&mended).broken_tenants().count()), (vec![], 0));
    assert_ne!(signature_of(&mended, "acme"), acme);
}

/// Keys that were parsed for another scheme are not those of this one.
#[test]
fn tenant_keys_of_another_scheme_are_parsed_again() {
    let folder = Folder::new("scheme", STANDARD);
    folder.write("keys/acme/k1.key", &key("standard-webhooks"));
    let (first, _) = folder.compile(None);
    let other = Folder { path: folder.path.clone(), signer: "scheme = \"rfc9421\"" };
    let (second, problems) = other.compile(Some(&first));
    assert!(problems[0].starts_with("contained: the secret in keys/acme/k1.key"), "{problems:?}");
    assert_eq!(sign(&second, Some("acme"), "msg_1"), Err(SignError::NoActiveKey));
}

#[test]
fn tenant_of_a_scheme_with_one_signature_has_one_newest_key() {
    let folder = Folder::new("single", "scheme = \"github\"");
    folder.write("keys/acme/k1.key", &key("github"));
    folder.write("keys/acme/k2.key", &key("github"));
    let (signers, problems) = folder.compile(None);
    assert_eq!(problems, ["contained: the key keys/acme/k2.key begins at the same time as k1.key"]);
    assert_eq!(platform(&signers).broken_tenants().count(), 1);
    // The webhook is of 2021.
    let (mut name, from) = ("k2.key".to_owned(), |year: i32| format!("k2.from-{year}-01-01.key"));
    for (next, expected) in [(from(2022), "k1"), (from(2020), "k2")] {
        let acme = folder.path.join("keys/acme");
        std::fs::rename(acme.join(&name), acme.join(&next)).unwrap();
        let (signers, problems) = folder.compile(None);
        assert_eq!(problems, [""; 0]);
        assert_eq!(sign(&signers, Some("acme"), "msg_1"), Ok(vec![expected.to_owned()]));
        name = next;
    }
}

#[test]
fn tenant_without_a_key_in_force_is_a_warning() {
    let folder = Folder::new("gap", STANDARD);
    folder.write("keys/acme/k1.until-2027-01-01.key", &key("standard-webhooks"));
    let (signers, _) = folder.compile(None);
    let (signer, at) = (platform(&signers), |text: &str| text.parse::<Timestamp>().unwrap());
    let end = at("2027-01-01T00:00:00Z");
    assert_eq!(signer.next_gap(at("2026-01-01T00:00:00Z")), Some(end));
    assert_eq!(messages(&signer.problems(at("2026-01-01T00:00:00Z"))), [""; 0]);
    let none = "warning: no key of the tenant acme of the signer platform is in force";
    assert_eq!(messages(&signer.problems(end)), [none]);
    // A folder with a problem of its own has been reported.
    folder.write("keys/broken/k1.key", "whsec_c2hvcnQ=");
    assert_eq!(messages(&platform(&folder.compile(None).0).problems(end)), [none]);
    // One tenant of many must not fill the report.
    (0..20)
        .for_each(|number| folder.write(&format!("keys/t{number}/k1.until-2027-01-01.key"), &key("standard-webhooks")));
    let (signers, _) = folder.compile(None);
    let reported = messages(&platform(&signers).problems(end));
    let last = reported.last().unwrap().replace(&format!("{}/", folder.path.display()), "");
    assert_eq!((reported.len(), last.as_str()), (21, "warning: 1 more warning below keys"));
}

/// Twilio's scheme hashes a body that is no form into the query, before any signer signs.
#[test]
fn signer_has_the_changes_of_its_scheme() {
    let of = |scheme: &'static str, name| {
        let folder = Folder::new(name, scheme);
        folder.write("keys/acme/k1.key", &key("twilio"));
        let (signers, _) = folder.compile(None);
        Sample::body("{}").with_input(|input| platform(&signers).mutations(input).unwrap().path_and_query)
    };
    assert!(of("scheme = \"twilio\"", "twilio").unwrap().contains("bodySHA256="));
    assert_eq!(of("scheme = \"github\"", "github"), None);
}
