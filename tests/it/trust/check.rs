//! The problems and warnings of `outgate check` for trust policies.
//! Does `check` report every mistake in a trust policy before a webhook fails?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::process::Command;

use rcgen::{ExtendedKeyUsagePurpose, date_time_ymd};
use support::Folder;
use support::pki::{Identity, Pki};
use support::scene::folder;

fn check(folder: &Folder, trust: &str) -> (bool, String) {
    let text = format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\nallow_anonymous = true\n[admin]\nlisten = []\n[egress.default]\n\
         ranges = [\"127.0.7.0\"]\n[[routes]]\nname = \"r\"\nhosts = [\"*\"]\ntrust = \"t\"\n[trust.t]\n{trust}\n"
    );
    let path = folder.write_config("config.toml", &text);
    let output = Command::new(env!("CARGO_BIN_EXE_outgate")).arg("check").arg("--config").arg(path).output().unwrap();
    (output.status.success(), String::from_utf8(output.stderr).unwrap())
}

fn keep(folder: &Folder, name: &str, identity: &Identity) {
    folder.write(&format!("{name}.pem"), identity.chain_pem());
    let key = folder.write(&format!("{name}.key"), identity.key_pem());
    std::fs::set_permissions(key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
}

const ROOTS: &str = "roots = [\"{dir}/ca.pem\"]";
const PINS: [&str; 2] =
    ["sha256/47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=", "sha256/n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg="];

#[test]
fn check_reports_wrong_and_weak_trust() {
    let (pki, other) = (Pki::new(), Pki::new());
    let folder = folder(&pki);
    let client = |change: fn(&mut rcgen::CertificateParams)| {
        pki.leaf_with(&["us"], |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            change(params);
        })
    };
    keep(&folder, "client", &client(|_| {}));
    keep(&folder, "old", &client(|params| params.not_after = date_time_ymd(2026, 2, 1)));
    keep(&folder, "server", &client(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]));
    folder.write("ca.crl", pki.revoked(&[]));
    folder.write("old.crl", pki.revoked_until(&[], (2026, 2, 1)));
    folder.write("other.crl", other.revoked(&[]));
    folder.write("broken.crl", "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n");
    let [one, two] = PINS;
    let identity = |certificate: &str, key: &str| {
        format!("{ROOTS}\nidentity = {{ certificate = \"{{dir}}/{certificate}\", key = \"{{dir}}/{key}\" }}")
    };
    let lists = |lists: &str| format!("{ROOTS}\ncrls = [\"{{dir}}/{lists}\"]");
    let root_alone = format!("{ROOTS}\nstrict = true\nmin_version = \"1.3\"");
    for (trust, is_good, words) in [
        (root_alone, true, &["valid, with 1 warning"][..]), // any user may read the folder, so anonymous clients work
        (identity("client.pem", "client.key"), true, &["valid, with 1 warning"]),
        (identity("client.pem", "old.key"), false, &["the key does not match the certificate"]),
        (identity("client.pem", "client.pem"), false, &["no private key in PEM was found"]),
        (identity("none.pem", "client.key"), false, &["none.pem does not exist"]),
        (
            identity("old.pem", "old.key"),
            true,
            &[
                "the certificate in ",
                "expired at 2026-02-01",
                "targets will not trust it",
                "outgate loads the new file at once",
            ],
        ),
        (identity("server.pem", "server.key"), true, &["the certificate is not for clients"]),
        (format!("{ROOTS}\npins = [\"{one}\", \"{two}\"]"), true, &["valid, with 1 warning"]),
        (format!("{ROOTS}\npins = [\"{one}\"]"), false, &["this pin has no backup", "the pin of a key that is kept"]),
        (format!("{ROOTS}\npins = [\"{one}\", \"{one}\"]"), false, &["this pin has no backup"]),
        (lists("ca.crl"), true, &["valid, with 1 warning"]),
        (
            lists("old.crl"),
            true,
            &["has been out of date since 2026-02-01", "outgate refuses targets whose certificates it covers"],
        ),
        (
            format!("{}\ncrl_policy = \"lenient\"", lists("old.crl")),
            true,
            &["outgate uses it until the file is replaced"],
        ),
        (lists("none.crl"), false, &["none.crl does not exist"]),
        (lists("broken.crl"), false, &["revocation list 1 of ", "is not usable: it cannot be read"]),
        (lists("ca.pem"), false, &["does not hold a certificate revocation list"]),
        (
            lists("other.crl"),
            true,
            &["1 of 1 roots have no revocation list: outgate refuses the certificates that they issued"],
        ),
        (
            format!("{}\ncrl_policy = \"lenient\"", lists("other.crl")),
            true,
            &["no revocation list is issued by one of the roots"],
        ),
        (format!("{ROOTS}\ncrl_policy = \"lenient\""), false, &["crl_policy has no effect without crls"]),
        ("strict = false".into(), true, &["outgate accepts certificates that violate the rules of public authorities"]),
        ("verify = \"none\"".into(), true, &["trust t verifies no certificate"]),
        (format!("verify = \"none\"\npins = [\"{one}\", \"{two}\"]"), false, &["so pins has no effect"]),
        ("verify = \"none\"\ncrls = [\"{dir}/ca.crl\"]".into(), false, &["so crls has no effect"]),
        ("verify = \"none\"\nstrict = true".into(), false, &["so strict has no effect"]),
    ] {
        let (good, printed) = check(&folder, &trust);
        assert_eq!(good, is_good, "{trust}:\n{printed}");
        for words in words {
            assert!(printed.contains(words), "{trust}: no {words:?} in\n{printed}");
        }
    }
}

#[test]
fn trust_roots_that_are_no_authorities_are_trusted_for_themselves_and_reported() {
    let pki = Pki::new();
    let folder = folder(&pki);
    let root = |name: &str, change: fn(&mut rcgen::CertificateParams)| {
        let mut params = rcgen::CertificateParams::new([]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        change(&mut params);
        let der = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        folder.write(name, der.pem());
    };
    root("no.pem", |params| params.is_ca = rcgen::IsCa::ExplicitNoCa);
    root("silent.pem", |params| params.is_ca = rcgen::IsCa::NoCa);
    root("mute.pem", |params| params.key_usages = vec![rcgen::KeyUsagePurpose::CrlSign]);
    root("ended.pem", |params| {
        params.is_ca = rcgen::IsCa::ExplicitNoCa;
        params.not_after = date_time_ymd(2026, 2, 1);
    });
    let old = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/certificates/version1-authority.pem");
    std::fs::copy(old, folder.path("old.pem")).unwrap();
    let alone = "only the certificate itself is trusted, for its own names; certificates that it issued are refused";
    for (file, words) in [
        ("no.pem", ["is not an authority (basicConstraints: CA:FALSE)", alone]),
        ("silent.pem", ["does not state that it is an authority (no basicConstraints)", alone]),
        ("mute.pem", ["may not sign certificates (keyUsage without keyCertSign)", alone]),
        ("ended.pem", ["expired at 2026-02-01", "outgate refuses peers that present it"]),
        ("old.pem", ["is older than version 3", "it is treated as one, for every name"]),
    ] {
        let (good, printed) = check(&folder, &format!("roots = [\"{{dir}}/{file}\"]"));
        assert!(good && printed.contains("warning[unusual_root]: certificate 1 of "), "{file}:\n{printed}");
        words.iter().for_each(|words| assert!(printed.contains(words), "{file}: no {words:?} in\n{printed}"));
    }
}

#[test]
fn trust_roots_that_cannot_be_used_or_read_are_problems() {
    let pki = Pki::new();
    let folder = folder(&pki);
    let root = |name: &str, change: &dyn Fn(&mut rcgen::CertificateParams)| {
        let mut params = rcgen::CertificateParams::new([]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "root");
        // A random number could have the bytes that this test looks for.
        params.serial_number = Some(1.into());
        change(&mut params);
        let der = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        folder.write(name, der.pem());
        der.der().to_vec()
    };
    root("clients.pem", &|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    root("client.pem", &|params| {
        params.is_ca = rcgen::IsCa::ExplicitNoCa;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    let garbled = |number| {
        move |params: &mut rcgen::CertificateParams| {
            // A NULL, which is neither a time nor a name.
            params.custom_extensions = vec![rcgen::CustomExtension::from_oid_content(&[2, 5, 29, number], vec![5, 0])];
        }
    };
    root("usage.pem", &garbled(15));
    root("purpose.pem", &garbled(37));
    // A text in place of notBefore, which is a UTCTime of 13 bytes. webpki does not read the dates of an authority.
    let mut unreadable = root("unreadable.pem", &|_| {});
    let not_before = unreadable.windows(2).position(|bytes| bytes == [0x17, 13]).unwrap();
    unreadable[not_before] = 0x16;
    folder.write("unreadable.pem", support::pki::pem("CERTIFICATE", &unreadable));
    for (file, words) in [
        (
            "clients.pem",
            "it may not issue certificates for this purpose (extended key usage without serverAuth). Its extended key \
             usage",
        ),
        ("client.pem", "lacks serverAuth: it cannot be trusted directly, either"),
        ("usage.pem", "its keyUsage cannot be read or occurs twice"),
        ("purpose.pem", "its extended key usage cannot be read or occurs twice"),
        ("unreadable.pem", "it cannot be read as a certificate (RFC 5280 §4.1)"),
    ] {
        let (good, printed) = check(&folder, &format!("roots = [\"{{dir}}/{file}\"]"));
        assert!(
            !good && printed.contains("is not usable as a root: ") && printed.contains(words),
            "{file}:\n{printed}"
        );
    }
}

#[test]
fn trust_intermediates_must_be_authorities() {
    let pki = Pki::new();
    let folder = folder(&pki);
    keep(&folder, "leaf", &pki.leaf(&["hook.example"]));
    let check =
        |file: &str, more: &str| check(&folder, &format!("{ROOTS}\nintermediates = [\"{{dir}}/{file}\"]\n{more}"));
    assert!(check("ca.pem", "").0);
    for (file, more, words) in [
        ("leaf.pem", "", "leaf.pem is not an authority, so no certificate path can contain it"),
        ("none.pem", "", "none.pem does not exist"),
        ("ca.pem", "verify = \"none\"", "so intermediates has no effect"),
    ] {
        let (good, printed) = check(file, more);
        assert!(!good && printed.contains(words), "{file}:\n{printed}");
    }
}

#[test]
fn revocation_list_of_the_future_is_a_warning() {
    let pki = Pki::new();
    let folder = folder(&pki);
    folder.write("late.crl", pki.revoked_from(&[], (3000, 1, 1)));
    let (good, printed) = check(&folder, &format!("{ROOTS}\ncrls = [\"{{dir}}/late.crl\"]"));
    assert!(
        good && printed.contains("has a thisUpdate in the future: outgate ignores the list until then"),
        "{printed}"
    );
}

#[test]
fn explain_shows_the_trust_of_a_target() {
    let pki = Pki::new();
    let folder = folder(&pki);
    folder.write("ca.crl", pki.revoked(&[]));
    keep(&folder, "client", &pki.leaf(&["us"]));
    let [one, two] = PINS;
    check(
        &folder,
        &format!(
            "{ROOTS}\nstrict = true\npins = [\"{one}\", \"{two}\"]\ncrls = [\"{{dir}}/ca.crl\"]\n\
             identity = {{ certificate = \"{{dir}}/client.pem\", key = \"{{dir}}/client.key\" }}"
        ),
    );
    let explain = Command::new(env!("CARGO_BIN_EXE_outgate"))
        .args(["explain", "POST", "https://hooks.acme.com/", "--config"])
        .arg(folder.path("config.toml"))
        .output()
        .unwrap();
    let printed = String::from_utf8(explain.stdout).unwrap();
    let expected = "t: certificates are verified against 1 root, TLS 1.2 or newer, under the rules of the Web PKI, 2 \
                    pinned keys, 1 revocation list, required, and outgate presents a client certificate";
    assert!(printed.contains(expected), "{printed}");
}
