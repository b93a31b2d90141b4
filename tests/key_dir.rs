//! A key of its own for each tenant, from a directory that an operator changes with `mv` and `cp`.
//! Whose key signs this webhook, now, and is it ever another's?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::{Value, json};
use support::pki::Pki;
use support::receiver::{Receiver, Seen, ok};
use support::scene::{SECRET, config, folder};
use support::signature::{verifies, verify};
use support::{Answer, Folder, Outgate, required};

const NAMES: [&str; 3] = ["acme", "globex", "initech"];

struct Place {
    outgate: Outgate,
    receiver: Receiver,
}

fn new_key(scheme: &str) -> String {
    let output =
        Command::new(env!("CARGO_BIN_EXE_outgate")).args(["keys", "new", "--scheme", scheme]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Whole, for nobody else to read, and unseen from the folder of the configuration.
fn put(folder: &Folder, name: &str, secret: &str) {
    let (path, elsewhere) = (folder.path(name), Folder::new());
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let new = elsewhere.write("new", secret);
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(new, path).unwrap();
}

/// The signer `platform` has a `key_dir`, and other keys only as `more` says; the client may send for any tenant.
fn text(receiver: &Receiver, more: &str) -> String {
    let client = "[clients.billing]\nnetworks = [\"127.0.0.0/8\"]\ntenants = [\"*\"]\n";
    let keys = "keys = [{ id = \"k1\", secret = \"file:{dir}/key\" }]";
    config(receiver, receiver, client).replace(keys, &format!("key_dir = \"{{dir}}/keys\"\n{more}"))
}

impl Place {
    /// Each tenant with one key, `k1`.
    fn new(more: &str) -> Self {
        let pki = Pki::new();
        let receiver = Receiver::tls(pki.leaf(&["hook.example"]), ok());
        let folder = folder(&pki);
        for name in NAMES {
            put(&folder, &format!("keys/{name}/k1.key"), &new_key("standard-webhooks"));
        }
        let outgate = Outgate::run(folder, &text(&receiver, more));
        Self { outgate, receiver }
    }

    fn folder(&self) -> &Folder {
        &self.outgate.folder
    }

    fn secret(&self, file: &str) -> String {
        fs::read_to_string(self.folder().path("keys").join(file)).unwrap().trim().to_owned()
    }

    /// A secret each, in the order of `NAMES`.
    fn secrets(&self) -> Vec<String> {
        NAMES.iter().map(|name| self.secret(&format!("{name}/k1.key"))).collect()
    }

    fn try_post(&self, tenant: Option<&str>) -> Answer {
        let url = format!("https://hook.example:{}/in", self.receiver.port());
        let tenant = tenant.map_or(String::new(), |tenant| format!("Outgate-Tenant: {tenant}\r\n"));
        self.outgate.post(&url, &tenant, "{}")
    }

    fn deliver(&self, tenant: Option<&str>) -> Seen {
        let answer = self.try_post(tenant);
        assert_eq!(answer.status, 200, "{tenant:?}: {answer:?}");
        self.receiver.seen().pop().unwrap()
    }

    fn refused(&self, tenant: Option<&str>) -> (u16, String, Value) {
        let before = self.receiver.seen().len();
        let answer = self.try_post(tenant);
        assert_eq!(self.receiver.seen().len(), before, "{tenant:?}: {answer:?}");
        (answer.status, answer.code().to_owned(), answer.json()["details"].clone())
    }

    /// What the log says after `change`: adopted, or why not.
    fn after(&self, change: impl FnOnce(&Folder)) -> Vec<String> {
        let before = self.outgate.log.all().len();
        change(self.folder());
        let is_word = |line: &String| line.contains("configuration reloaded") || line.contains("not adopted");
        let heard = |lines: &[String]| lines[before..].iter().any(is_word).then(|| lines[before..].to_vec());
        self.outgate.log.until("word of a reload", heard)
    }

    fn adopts(&self, change: impl FnOnce(&Folder)) {
        let said = self.after(change).join("\n");
        assert!(said.contains("configuration reloaded") && !said.contains("not adopted"), "{said}");
    }
}

/// By the keys of which of these a webhook verifies.
fn signed_by(seen: &Seen, secrets: &[String]) -> Vec<usize> {
    (0..secrets.len()).filter(|i| verifies(seen, &secrets[*i])).collect()
}

/// Two folders become each other's, at once.
fn swap(folder: &Folder, one: &str, other: &str) {
    let path = |name: &str| folder.path("keys").join(name);
    renameat_with(CWD, path(one), CWD, path(other), RenameFlags::EXCHANGE).unwrap();
}

#[test]
fn each_webhook_is_signed_with_its_tenants_key_and_no_others_also_after_a_swap() {
    let place = Place::new("");
    let secrets = place.secrets();
    let expect = |order: [usize; 3]| {
        for (name, own) in NAMES.iter().zip(order) {
            let seen = place.deliver(Some(name));
            assert_eq!(signed_by(&seen, &secrets), [own], "{name}: {seen:?}");
            verify(&seen, &secrets[own]);
        }
    };
    expect([0, 1, 2]);
    for order in [[1, 0, 2], [0, 1, 2], [1, 0, 2]] {
        place.adopts(|folder| swap(folder, "acme", "globex"));
        expect(order);
    }
    // Overwritten where it stands, to the same length.
    let path = place.folder().path("keys/initech/k1.key");
    place.adopts(|_| fs::write(&path, new_key("standard-webhooks")).unwrap());
    let seen = place.deliver(Some("initech"));
    assert_eq!(signed_by(&seen, &secrets), [0; 0]);
    verify(&seen, &place.secret("initech/k1.key"));
    let records = place.outgate.records(13);
    assert!(records.iter().all(|record| record["signatures"] == json!(["k1"])), "{records:?}");
    assert_eq!((&records[0]["tenant"], &records[1]["tenant"]), (&json!("acme"), &json!("globex")));
}

#[test]
fn swaps_under_load_never_lend_a_key() {
    let place = Place::new("");
    let secrets = place.secrets();
    let (swaps, url) = (10, format!("https://hook.example:{}/in", place.receiver.port()));
    let stop = std::sync::atomic::AtomicBool::new(false);
    let load = |who: usize| {
        let (mut client, mut count) = (place.outgate.connect(), 0);
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            let fields = format!("Outgate-Tenant: {}\r\nWebhook-Id: {who}-{count}\r\n", NAMES[who]);
            client.send(support::post(&url, &fields, "{}"));
            assert_eq!(client.answer().status, 200);
            count += 1;
        }
        (who, count)
    };
    let sent: Vec<(usize, usize)> = std::thread::scope(|scope| {
        let load = &load;
        let threads: Vec<_> = (0..NAMES.len()).map(|who| scope.spawn(move || load(who))).collect();
        (0..swaps).for_each(|_| place.adopts(|folder| swap(folder, "acme", "globex")));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let (seen, total) = (place.receiver.seen(), sent.iter().map(|(_, count)| count).sum::<usize>());
    assert!(seen.len() == total && sent.iter().all(|(_, count)| *count > 0), "{} {sent:?}", seen.len());
    for seen in &seen {
        let who: usize = seen.field("webhook-id").split('-').next().unwrap().parse().unwrap();
        let by = signed_by(seen, &secrets);
        // The two that swap have had either key, one at a time; the third has had its own, and nobody else it.
        assert!(by.len() == 1 && (by[0] == 2) == (who == 2), "{who} by {by:?}");
    }
}

#[test]
fn who_has_no_folder_is_refused() {
    let place = Place::new("");
    let (forbidden, missing, unknown) = ("client_forbidden".to_owned(), json!("no_tenant"), json!("no_tenant_key"));
    assert_eq!(place.refused(None), (403, forbidden.clone(), missing));
    for name in ["nobody", "ACME", "acme/", ".", "..", "../keys/acme", "acme/k1.key", "acme\t", ".new", "k1.key"] {
        let expected = if name.ends_with('\t') { continue } else { (403, forbidden.clone(), unknown.clone()) };
        assert_eq!(place.refused(Some(name)), expected, "{name}");
    }
    let detail = place.try_post(Some("nobody")).json()["detail"].clone();
    assert_eq!(detail, "there is no signing key for tenant \"nobody\"");
    place.deliver(Some("acme"));
    place.adopts(|folder| fs::remove_dir_all(folder.path("keys/acme")).unwrap());
    assert_eq!(place.refused(Some("acme")), (403, forbidden, unknown));
    place.deliver(Some("globex"));
    let record = place.outgate.records(1).into_iter().find(|record| record["tenant"] == "nobody").unwrap();
    assert_eq!((&record["signatures"], &record["details"]), (&json!([]), &json!("no_tenant_key")));
    assert!(record["cause"].as_str().unwrap().contains("signer platform"), "{record}");
}

#[test]
fn keys_are_rotated_with_cp_and_mv_alone() {
    let place = Place::new("");
    let old = place.secret("acme/k1.key");
    let path = |name: &str| place.folder().path(&format!("keys/acme/{name}"));
    place.adopts(|folder| put(folder, "keys/acme/k2.from-2090-01-01.key", &new_key("standard-webhooks")));
    let new = place.secret("acme/k2.from-2090-01-01.key");
    let both = [old, new];
    assert_eq!(signed_by(&place.deliver(Some("acme")), &both), [0]);
    place.adopts(|_| fs::rename(path("k2.from-2090-01-01.key"), path("k2.from-2026-01-01T12:00:00Z.key")).unwrap());
    assert_eq!(signed_by(&place.deliver(Some("acme")), &both), [0, 1]);
    place.adopts(|_| fs::rename(path("k1.key"), path("k1.until-2026-02-01.key")).unwrap());
    assert_eq!(signed_by(&place.deliver(Some("acme")), &both), [1]);
    let records = place.outgate.records(3);
    let used: Vec<&Value> = records.iter().map(|record| &record["signatures"]).collect();
    assert_eq!(used, [&json!(["k1"]), &json!(["k2", "k1"]), &json!(["k2"])]);
}

#[test]
fn shared_keys_are_for_those_without_a_folder_alone() {
    let place = Place::new("keys = [{ id = \"shared\", secret = \"file:{dir}/key\" }]");
    let mut secrets = place.secrets();
    secrets.push(SECRET.to_owned());
    for (tenant, own) in [(None, 3), (Some("nobody"), 3), (Some("acme"), 0), (Some("globex"), 1)] {
        assert_eq!(signed_by(&place.deliver(tenant), &secrets), [own], "{tenant:?}");
    }
    // Whose keys have ended, or are not there yet, is not signed for with those of all.
    let said = place.after(|folder| {
        let path = |name: &str| folder.path(&format!("keys/acme/{name}"));
        fs::rename(path("k1.key"), path("k1.until-2026-01-01.key")).unwrap();
    });
    let said = said.join("\n");
    assert!(
        said.contains("no key of the tenant acme of the signer platform is in force") && said.contains("reloaded"),
        "{said}"
    );
    assert_eq!(place.refused(Some("acme")), (500, "internal".into(), Value::Null));
    place.adopts(|folder| fs::remove_file(folder.path("keys/globex/k1.key")).unwrap());
    assert_eq!(place.refused(Some("globex")), (500, "internal".into(), Value::Null));
    place.adopts(|folder| fs::remove_dir(folder.path("keys/globex")).unwrap());
    assert_eq!(signed_by(&place.deliver(Some("globex")), &secrets), [3]);
}

/// What `/metrics` says of the folders that are broken.
fn broken(place: &Place) -> String {
    let text = place.outgate.admin("/metrics").text();
    let line = "outgate_tenants_with_keys{signer=\"platform\",folder=\"broken\"} ";
    text.lines().find_map(|found| found.strip_prefix(line)).unwrap().to_owned()
}

#[test]
fn a_broken_key_keeps_its_tenants_keys_as_they_were_and_nobody_elses() {
    let place = Place::new("keys = [{ id = \"shared\", secret = \"file:{dir}/key\" }]");
    let path = |name: &str| place.folder().path(name);
    let mut order = [1, 2];
    let secrets = place.secrets();
    let breaks = [
        ("keys/acme/k2.key", "whsec_c2hvcnQ=", "is 5 bytes long"),
        ("keys/acme/k2.key", " \n", "is empty"),
        ("keys/acme/k2.key", "-----BEGIN PRIVATE KEY-----", "the secret in "),
        ("keys/acme/k2.from-soon.key", SECRET, "is not named like a key"),
        ("keys/acme/k1.pem", SECRET, "have the same id, k1"),
    ];
    for (name, content, fault) in breaks {
        let said = place.after(|folder| {
            put(folder, name, content);
            swap(folder, "globex", "initech");
        });
        order.swap(0, 1);
        let told = |said: &[String]| {
            let line = said.iter().find(|line| line.contains(path(name).to_str().unwrap())).cloned();
            let line = line.unwrap_or_else(|| panic!("{name}: {said:?}"));
            assert!(line.contains("ERROR") && line.contains(fault) && !line.contains("c2hvcnQ"), "{line}");
        };
        told(&said);
        assert!(!said.join("\n").contains("not adopted"), "{said:?}");
        let expect = |order: [usize; 2]| {
            for (own, tenant) in [0, order[0], order[1]].into_iter().zip(NAMES) {
                assert_eq!(signed_by(&place.deliver(Some(tenant)), &secrets), [own], "{tenant}");
            }
        };
        expect(order);
        let ready = place.outgate.admin("/readyz").text();
        assert!(ready.contains("signer platform: the folders of 1 tenants are broken (acme the first)"), "{ready}");
        assert_eq!(broken(&place), "1");
        // The others' keys go on changing; who is broken is told each time.
        told(&place.after(|folder| swap(folder, "globex", "initech")));
        order.swap(0, 1);
        expect(order);
        place.adopts(|_| fs::remove_file(path(name)).unwrap());
        assert_eq!((broken(&place).as_str(), place.outgate.admin("/readyz").text().as_str()), ("0", "ready\n"));
        expect(order);
    }
}

#[test]
fn who_begins_with_a_broken_folder_is_refused_until_it_is_mended() {
    let pki = Pki::new();
    let receiver = Receiver::tls(pki.leaf(&["hook.example"]), ok());
    let folder = folder(&pki);
    let key = new_key("standard-webhooks");
    for (file, secret) in [("globex/k1.key", &*key), ("acme/k1.key", "short"), ("initech/k1.key", "")] {
        put(&folder, &format!("keys/{file}"), secret);
    }
    symlink("globex", folder.path("keys/mallory")).unwrap();
    let outgate = Outgate::run(folder, &text(&receiver, "keys = [{ id = \"shared\", secret = \"file:{dir}/key\" }]"));
    let place = Place { outgate, receiver };
    // Neither with those of all, nor, through a link, with another's.
    for name in ["acme", "initech", "mallory"] {
        assert_eq!(place.refused(Some(name)), (500, "internal".into(), Value::Null), "{name}");
        let said = run(&["keys", "list", "--tenant", name], place.folder()).1;
        assert!(said.contains(&format!("the folder of tenant {name} is broken")), "{said}");
    }
    verify(&place.deliver(Some("globex")), key.trim());
    verify(&place.deliver(Some("nobody")), SECRET);
    assert_eq!(broken(&place), "3");
    let (is_valid, said) = check(place.folder());
    assert!(!is_valid && said.contains("valid but for single tenants: 3 problems, "), "{said}");
    place.after(|folder| put(folder, "keys/acme/k1.key", &key));
    verify(&place.deliver(Some("acme")), key.trim());
    assert_eq!(place.refused(Some("initech")).0, 500);
    assert_eq!(broken(&place), "2");
}

#[test]
fn a_directory_that_is_gone_leaves_all_as_they_were() {
    let place = Place::new("");
    let secrets = place.secrets();
    let said = place.after(|folder| fs::rename(folder.path("keys"), folder.path("elsewhere")).unwrap()).join("\n");
    assert!(said.contains("not adopted") && said.contains("/keys does not exist"), "{said}");
    for (own, tenant) in NAMES.iter().enumerate() {
        assert_eq!(signed_by(&place.deliver(Some(tenant)), &secrets), [own], "{tenant}");
    }
    // Back, and changed: that it is only back is nothing to tell.
    place.adopts(|folder| {
        put(folder, "elsewhere/acme/k1.key", &secrets[1]);
        fs::rename(folder.path("elsewhere"), folder.path("keys")).unwrap();
    });
    assert_eq!(signed_by(&place.deliver(Some("acme")), &secrets), [1]);
    assert_eq!(place.outgate.admin("/readyz").text(), "ready\n");
}

/// The problems and warnings of `outgate check`.
fn check(folder: &Folder) -> (bool, String) {
    let file = folder.path("config.toml");
    let output = Command::new(env!("CARGO_BIN_EXE_outgate")).args(["check", "--config"]).arg(file).output().unwrap();
    (output.status.success(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn links_lead_nowhere_but_from_the_directory_itself() {
    let place = Place::new("");
    let (folder, secrets) = (place.folder(), place.secrets());
    for (link, to) in [("keys/mallory", "acme"), ("keys/globex/k2.key", "../acme/k1.key")] {
        symlink(to, folder.path(link)).unwrap();
        let (is_valid, said) = check(folder);
        assert!(!is_valid && said.contains(&format!("{link} is a link")), "{said}");
        fs::remove_file(folder.path(link)).unwrap();
    }
    assert!(check(folder).0);
    // All at once, the other way around.
    fs::rename(folder.path("keys"), folder.path("v1")).unwrap();
    place.adopts(|folder| {
        for (from, to) in NAMES.iter().zip(["globex", "initech", "acme"]) {
            put(
                folder,
                &format!("v2/{to}/k1.key"),
                &fs::read_to_string(folder.path(&format!("v1/{from}/k1.key"))).unwrap(),
            );
        }
        symlink("v2", folder.path("keys")).unwrap();
    });
    for (i, tenant) in ["globex", "initech", "acme"].iter().enumerate() {
        assert_eq!(signed_by(&place.deliver(Some(tenant)), &secrets), [i], "{tenant}");
    }
    place.adopts(|folder| {
        symlink("v1", folder.path("next")).unwrap();
        fs::rename(folder.path("next"), folder.path("keys")).unwrap();
    });
    assert_eq!(signed_by(&place.deliver(Some("acme")), &secrets), [0]);
    place.adopts(|folder| put(folder, "v1/acme/k1.key", &secrets[2]));
    assert_eq!(signed_by(&place.deliver(Some("acme")), &secrets), [2]);
}

#[test]
fn what_an_operator_should_see_to_is_told_and_no_more_than_can_be_read() {
    let place = Place::new("");
    let folder = place.folder();
    assert!(!check(folder).1.contains("keys/"), "{}", check(folder).1);
    put(folder, "keys/README", "read by people");
    put(folder, "keys/acme/k1.key~", "an editor's");
    fs::create_dir_all(folder.path("keys/acme/archive")).unwrap();
    fs::create_dir_all(folder.path("keys/.hidden")).unwrap();
    fs::set_permissions(folder.path("keys/globex/k1.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let (is_valid, said) = check(folder);
    assert!(is_valid, "{said}");
    let warnings: Vec<&str> = said.lines().filter(|line| line.starts_with("warning")).collect();
    let named = |part: &str| warnings.iter().any(|line| line.contains(part));
    assert!(named("keys/acme/k1.key~ is not read"), "{said}");
    assert!(named("every user of this host can open") && named("keys/globex/k1.key"), "{said}");
    assert!(!said.contains("README") && !said.contains("archive") && !said.contains("hidden"), "{said}");
    for i in 0..50 {
        put(folder, &format!("keys/t{i}/k1.until-2026-01-01.key"), SECRET);
        put(folder, &format!("keys/u{i}/k1.key"), "short");
    }
    let (is_valid, said) = check(folder);
    let count = |part: &str| said.matches(part).count();
    assert!(!is_valid && count("error: ") == 21 && said.contains("30 more problems below "), "{said}");
    assert!(count("is in force") == 20 && said.contains("30 more warnings below "), "{said}");
}

fn run(arguments: &[&str], folder: &Folder) -> (String, String) {
    let file = folder.path("config.toml");
    let output =
        Command::new(env!("CARGO_BIN_EXE_outgate")).args(arguments).arg("--config").arg(file).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr))
}

#[test]
fn keys_are_listed_and_published_for_one_tenant_at_a_time() {
    let pki = Pki::new();
    let receiver = Receiver::tls(pki.leaf(&["hook.example"]), ok());
    let folder = folder(&pki);
    for file in ["shared.pem", "keys/acme/a1.pem", "keys/acme/a2.from-2090-01-01.pem", "keys/globex/a1.pem"] {
        put(&folder, file, &new_key("rfc9421"));
    }
    let keys = "keys = [{ id = \"all\", secret = \"file:{dir}/shared.pem\" }]";
    let text = text(&receiver, keys).replace("\"standard-webhooks\"", "\"rfc9421\"");
    let place = Place { outgate: Outgate::run(folder, &text), receiver };
    let listed = |more: &[&str]| -> Vec<(String, Value, String)> {
        let (out, _) = run(&[&["keys", "list", "--json"], more].concat(), place.folder());
        let list: Value = serde_json::from_str(&out).unwrap();
        let word = |key: &Value, name: &str| key[name].as_str().unwrap().to_owned();
        list.as_array()
            .unwrap()
            .iter()
            .map(|key| (word(key, "id"), key["tenant"].clone(), word(key, "state")))
            .collect()
    };
    let row = |id: &str, tenant: Value, state: &str| (id.to_owned(), tenant, state.to_owned());
    assert_eq!(listed(&[]), [row("all", Value::Null, "active")]);
    assert_eq!(listed(&["--tenant", "nobody"]), [row("all", Value::Null, "active")]);
    let acme = [row("a2", json!("acme"), "announced"), row("a1", json!("acme"), "active")];
    assert_eq!(listed(&["--tenant", "acme"]), acme);
    let said = run(&["keys", "list"], place.folder()).1;
    assert!(said.contains("signer platform: 2 tenants have keys of their own"), "{said}");

    let kids = |set: &Value| -> Vec<String> {
        set["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
    };
    for (query, arguments, expected) in [
        ("", &[][..], &["all"][..]),
        ("?tenant=nobody", &["--tenant", "nobody"], &["all"]),
        ("?tenant=acme", &["--tenant", "acme"], &["a2", "a1"]),
        ("?tenant=%67lobex", &["--tenant", "globex"], &["a1"]),
    ] {
        let served = place.outgate.admin(&format!("/keys{query}")).json();
        assert_eq!(kids(&served), expected, "{query}");
        let public = run(&[&["keys", "public"], arguments].concat(), place.folder()).0;
        assert_eq!(serde_json::from_str::<Value>(&public).unwrap(), served, "{query}");
        let path = "/.well-known/http-message-signatures-directory";
        assert_eq!(kids(&place.outgate.admin(&format!("{path}{query}")).json()).len(), expected.len(), "{query}");
    }
    // Two tenants may call their keys alike: the thumbprints tell them apart.
    let thumbprint =
        |tenant: &str| place.outgate.admin(&format!("/keys?tenant={tenant}")).json()["keys"][0]["x"].clone();
    assert_ne!(thumbprint("acme"), thumbprint("globex"));
}

#[test]
fn explain_tells_whose_key_signs() {
    let place = Place::new("");
    let url = format!("https://hook.example:{}/in", place.receiver.port());
    let explain =
        |tenant: &[&str]| run(&[&["explain", "POST", &url, "--client", "billing"], tenant].concat(), place.folder()).0;
    assert!(explain(&["--tenant", "acme"]).contains("platform: standard-webhooks with k1, of tenant acme alone"));
    assert!(
        explain(&["--tenant", "nobody"])
            .contains("403 client_forbidden: there is no signing key for tenant \"nobody\"")
    );
    assert!(explain(&[]).contains("name the tenant in Outgate-Tenant"));
    let shared = text(&place.receiver, "keys = [{ id = \"shared\", secret = \"file:{dir}/key\" }]");
    place.outgate.reconfigure(&shared);
    let told = explain(&["--tenant", "nobody"]);
    assert!(told.contains("with shared, which tenants share: nobody has no folder of its own"), "{told}");
    assert!(explain(&[]).contains("with shared, which tenants share: none is named"));
}

/// Set in the process that runs inside of a user namespace, where fewer folders may be watched.
const INSIDE: &str = "OUTGATE_TEST_INSIDE";

/// This test again, in a user namespace with this many watches. True inside, where it goes on.
fn with_watches(count: u32, name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        fs::write("/proc/sys/user/max_inotify_watches", count.to_string()).unwrap();
        return true;
    }
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user"]);
        command
    };
    let can = unshare().args(["test", "-w", "/proc/sys/user/max_inotify_watches"]).status();
    if !can.is_ok_and(|status| status.success()) {
        assert!(!required(), "this host cannot make user namespaces");
        eprintln!("skipped: needs unshare and user namespaces");
        return false;
    }
    let exe = std::env::current_exe().unwrap();
    let status = unshare().arg(exe).args([name, "--exact", "--nocapture"]).env(INSIDE, "1").status().unwrap();
    assert!(status.success(), "{name} failed inside its namespace");
    false
}

#[test]
fn folders_that_cannot_be_watched_are_looked_over() {
    if !with_watches(5, "folders_that_cannot_be_watched_are_looked_over") {
        return;
    }
    let place = Place::new("");
    // The directory, the folder it is in, and a folder a tenant: one of ten is surely not watched.
    place.adopts(|folder| {
        for i in 0..10 {
            put(folder, &format!("staged/t{i}/k1.key"), SECRET);
        }
        for i in 0..10 {
            let to = Path::new("keys").join(format!("t{i}"));
            fs::rename(folder.path(&format!("staged/t{i}")), folder.path(to.to_str().unwrap())).unwrap();
        }
    });
    place.outgate.log.until("a warning", |lines| {
        lines.iter().any(|line| line.contains("folders of keys are not watched: the limit fs.inotify")).then_some(())
    });
    let secret = new_key("standard-webhooks");
    place.adopts(|folder| put(folder, "keys/t9/k1.key", &secret));
    verify(&place.deliver(Some("t9")), secret.trim());
    let said = place.after(|folder| put(folder, "keys/t9/k2.key", "short")).join("\n");
    assert!(said.contains("ERROR") && said.contains("keys/t9/k2.key"), "{said}");
    place.adopts(|folder| put(folder, "keys/t9/k2.key", &new_key("standard-webhooks")));
}
