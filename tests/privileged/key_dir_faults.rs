//! A key directory with broken keys, missing keys, links, or more folders than can be watched.
//! Which tenants does an error affect, and how is it reported?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{SECRET, folder};
use support::signature::{verifies, verify};
use support::tenants::{NAMES, Scene, check, new_key, run, signed_by, swap, text, write_key};
use support::{Outgate, eventually, required};

/// Returns the number of broken folders in `/metrics`.
fn broken(scene: &Scene) -> String {
    let text = scene.outgate.admin("/metrics").text();
    let line = "outgate_tenants_with_keys{signer=\"platform\",folder=\"broken\"} ";
    text.lines().find_map(|found| found.strip_prefix(line)).unwrap().to_owned()
}

#[test]
fn a_broken_key_keeps_its_tenants_keys_as_they_were_and_nobody_elses() {
    let scene = Scene::new("keys = [{ id = \"shared\", secret = \"file:{dir}/key\" }]");
    let path = |name: &str| scene.folder().path(name);
    let mut order = [1, 2];
    let secrets = scene.secrets();
    let breaks = [
        ("keys/acme/k2.key", "whsec_c2hvcnQ=", "is 5 bytes long"),
        ("keys/acme/k2.key", " \n", "is empty"),
        ("keys/acme/k2.key", "-----BEGIN PRIVATE KEY-----", "the secret in "),
        ("keys/acme/k2.from-soon.key", SECRET, "is not named like a key"),
        ("keys/acme/k1.pem", SECRET, "have the same id, k1"),
    ];
    for (name, content, expected) in breaks {
        let printed = scene.log_after(|folder| {
            write_key(folder, name, content);
            swap(folder, "globex", "initech");
        });
        order.swap(0, 1);
        let assert_logged = |printed: &[String]| {
            let line = printed.iter().find(|line| line.contains(path(name).to_str().unwrap())).cloned();
            let line = line.unwrap_or_else(|| panic!("{name}: {printed:?}"));
            assert!(line.contains("ERROR") && line.contains(expected) && !line.contains("c2hvcnQ"), "{line}");
        };
        assert_logged(&printed);
        assert!(!printed.join("\n").contains("not adopted"), "{printed:?}");
        let expect = |order: [usize; 2]| {
            for (own, tenant) in [0, order[0], order[1]].into_iter().zip(NAMES) {
                assert_eq!(signed_by(&scene.deliver(Some(tenant)), &secrets), [own], "{tenant}");
            }
        };
        expect(order);
        let ready = scene.outgate.admin("/readyz").text();
        assert!(
            ready.contains("signer platform: the key folders of 1 tenant have problems (the first is acme)"),
            "{ready}"
        );
        assert_eq!(broken(&scene), "1");
        // Changes of other tenants' keys still take effect. Each reload reports the broken folders.
        assert_logged(&scene.log_after(|folder| swap(folder, "globex", "initech")));
        order.swap(0, 1);
        expect(order);
        scene.change_and_adopt(|_| fs::remove_file(path(name)).unwrap());
        assert_eq!((broken(&scene).as_str(), scene.outgate.admin("/readyz").text().as_str()), ("0", "ready\n"));
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
        write_key(&folder, &format!("keys/{file}"), secret);
    }
    symlink("globex", folder.path("keys/mallory")).unwrap();
    let outgate = Outgate::run(folder, &text(&receiver, "keys = [{ id = \"shared\", secret = \"file:{dir}/key\" }]"));
    let scene = Scene { outgate, receiver };
    // Neither the shared keys nor the keys of another tenant behind a link sign for this tenant.
    for name in ["acme", "initech", "mallory"] {
        assert_eq!(scene.refused(Some(name)), (500, "internal".into(), Value::Null), "{name}");
        let printed = run(&["keys", "list", "--tenant", name], scene.folder()).1;
        assert!(printed.contains(&format!("the key folder of tenant {name} has problems")), "{printed}");
    }
    verify(&scene.deliver(Some("globex")), key.trim());
    verify(&scene.deliver(Some("nobody")), SECRET);
    assert_eq!(broken(&scene), "3");
    let (is_valid, printed) = check(scene.folder());
    assert!(!is_valid && printed.contains("valid, except for single tenants: 3 problems, "), "{printed}");
    scene.log_after(|folder| write_key(folder, "keys/acme/k1.key", &key));
    verify(&scene.deliver(Some("acme")), key.trim());
    assert_eq!(scene.refused(Some("initech")).0, 500);
    assert_eq!(broken(&scene), "2");
}

#[test]
fn a_directory_that_is_gone_leaves_all_as_they_were() {
    let scene = Scene::new("");
    let secrets = scene.secrets();
    let printed =
        scene.log_after(|folder| fs::rename(folder.path("keys"), folder.path("elsewhere")).unwrap()).join("\n");
    assert!(printed.contains("not adopted") && printed.contains("/keys does not exist"), "{printed}");
    for (own, tenant) in NAMES.iter().enumerate() {
        assert_eq!(signed_by(&scene.deliver(Some(tenant)), &secrets), [own], "{tenant}");
    }
    // The directory returns with a change, because an unchanged one causes no log line.
    scene.change_and_adopt(|folder| {
        write_key(folder, "elsewhere/acme/k1.key", &secrets[1]);
        fs::rename(folder.path("elsewhere"), folder.path("keys")).unwrap();
    });
    assert_eq!(signed_by(&scene.deliver(Some("acme")), &secrets), [1]);
    assert_eq!(scene.outgate.admin("/readyz").text(), "ready\n");
}

#[test]
fn links_in_a_key_dir_are_problems() {
    let scene = Scene::new("");
    let folder = scene.folder();
    for (link, to) in [("keys/mallory", "acme"), ("keys/globex/k2.key", "../acme/k1.key")] {
        symlink(to, folder.path(link)).unwrap();
        let (is_valid, printed) = check(folder);
        assert!(!is_valid && printed.contains(&format!("{link} is a symbolic link")), "{printed}");
        fs::remove_file(folder.path(link)).unwrap();
    }
    assert!(check(folder).0);
}

#[test]
fn key_dir_itself_may_be_a_link_that_changes() {
    let scene = Scene::new("");
    let (folder, secrets) = (scene.folder(), scene.secrets());
    // All folders are repaired at once.
    fs::rename(folder.path("keys"), folder.path("v1")).unwrap();
    scene.change_and_adopt(|folder| {
        for (from, to) in NAMES.iter().zip(["globex", "initech", "acme"]) {
            write_key(
                folder,
                &format!("v2/{to}/k1.key"),
                &fs::read_to_string(folder.path(&format!("v1/{from}/k1.key"))).unwrap(),
            );
        }
        symlink("v2", folder.path("keys")).unwrap();
    });
    for (i, tenant) in ["globex", "initech", "acme"].iter().enumerate() {
        assert_eq!(signed_by(&scene.deliver(Some(tenant)), &secrets), [i], "{tenant}");
    }
    scene.change_and_adopt(|folder| {
        symlink("v1", folder.path("next")).unwrap();
        fs::rename(folder.path("next"), folder.path("keys")).unwrap();
    });
    assert_eq!(signed_by(&scene.deliver(Some("acme")), &secrets), [0]);
    scene.change_and_adopt(|folder| write_key(folder, "v1/acme/k1.key", &secrets[2]));
    assert_eq!(signed_by(&scene.deliver(Some("acme")), &secrets), [2]);
}

#[test]
fn what_an_operator_should_see_to_is_told_and_no_more_than_can_be_read() {
    let scene = Scene::new("");
    let folder = scene.folder();
    assert!(!check(folder).1.contains("keys/"), "{}", check(folder).1);
    write_key(folder, "keys/README", "read by people");
    write_key(folder, "keys/acme/k1.key~", "an editor's");
    fs::create_dir_all(folder.path("keys/acme/archive")).unwrap();
    fs::create_dir_all(folder.path("keys/.hidden")).unwrap();
    fs::set_permissions(folder.path("keys/globex/k1.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let (is_valid, printed) = check(folder);
    assert!(is_valid, "{printed}");
    let warnings: Vec<&str> = printed.lines().filter(|line| line.starts_with("warning")).collect();
    let named = |part: &str| warnings.iter().any(|line| line.contains(part));
    assert!(named("keys/acme/k1.key~ is ignored"), "{printed}");
    assert!(named("every user of this host can open") && named("keys/globex/k1.key"), "{printed}");
    assert!(!printed.contains("README") && !printed.contains("archive") && !printed.contains("hidden"), "{printed}");
    for i in 0..50 {
        write_key(folder, &format!("keys/t{i}/k1.until-2026-01-01.key"), SECRET);
        write_key(folder, &format!("keys/u{i}/k1.key"), "short");
    }
    let (is_valid, printed) = check(folder);
    let count = |part: &str| printed.matches(part).count();
    assert!(!is_valid && count("error: ") == 21 && printed.contains("30 more problems below "), "{printed}");
    assert!(count("is in force") == 20 && printed.contains("30 more warnings below "), "{printed}");
}

/// An environment variable of the process in a user namespace, where fewer folders can be watched.
const INSIDE: &str = "OUTGATE_TEST_INSIDE";

/// Runs the test again in a user namespace with this many watches. Returns true inside the namespace.
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
    let status = unshare()
        .arg(exe)
        .args([&format!("key_dir_faults::{name}"), "--exact", "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{name} failed inside its namespace");
    false
}

#[test]
fn folders_that_cannot_be_watched_are_looked_over() {
    if !with_watches(5, "folders_that_cannot_be_watched_are_looked_over") {
        return;
    }
    let scene = Scene::new("");
    // The directory, its parent and ten folders of tenants exceed the limit, so at least one is not watched.
    scene.change_and_adopt(|folder| {
        for i in 0..10 {
            write_key(folder, &format!("staged/t{i}/k1.key"), SECRET);
        }
        for i in 0..10 {
            let to = Path::new("keys").join(format!("t{i}"));
            fs::rename(folder.path(&format!("staged/t{i}")), folder.path(to.to_str().unwrap())).unwrap();
        }
    });
    scene.outgate.log.wait_for("a warning", |lines| {
        lines.iter().any(|line| line.contains("folders of keys are not watched: the limit fs.inotify")).then_some(())
    });
    // The first change is many renames, which outgate may adopt in more than one reload. This was the last one.
    eventually("the key that was moved last is in force", || {
        scene.try_post(Some("t9")).status == 200 && verifies(&scene.receiver.requests().pop().unwrap(), SECRET)
    });
    let secret = new_key("standard-webhooks");
    scene.change_and_adopt(|folder| write_key(folder, "keys/t9/k1.key", &secret));
    verify(&scene.deliver(Some("t9")), secret.trim());
    let printed = scene.log_after(|folder| write_key(folder, "keys/t9/k2.key", "short")).join("\n");
    assert!(printed.contains("ERROR") && printed.contains("keys/t9/k2.key"), "{printed}");
    scene.change_and_adopt(|folder| write_key(folder, "keys/t9/k2.key", &new_key("standard-webhooks")));
}
