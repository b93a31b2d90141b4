//! The history of adopted configurations, rollback, and drift of the files.
//! Can every change be rolled back, also after an interrupted rollback?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use aws_lc_rs::digest;
use data_encoding::HEXLOWER;
use outgate::config;
use outgate::history::{History, restore};
use support::configuration::Replace;
use support::control::{exit_code_and_output, json, run, status, with_admin_socket};
use support::notify::NotifySocket;
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{Scene, config as scene_config, folder as scene_folder, scene_of};
use support::{Folder, Outgate, eventually};

/// A main file and an included file. A comment in each has the version.
struct Version {
    main: String,
    include: (&'static str, String),
}

fn version(scene: &Scene, number: u32, watch: bool) -> Version {
    let name = if number == 1 { "a.toml" } else { "b.toml" };
    let text = format!("include = [\"conf.d/*.toml\"]\n# v{number}\n");
    let config = scene_config(&scene.good, &scene.plain, &format!("[timeouts]\nidle = \"{number}s\"\n"));
    let text = format!("{text}{}", with_admin_socket(&config).set("server.watch", watch));
    let include = format!("# v{number}\n[limits.of-{number}]\nrate = \"{number}/s\"\n");
    Version { main: scene.outgate.folder.placed(&text), include: (name, include) }
}

/// Writes the files one by one, as an operator does.
fn write(scene: &Scene, version: &Version) {
    let folder = &scene.outgate.folder;
    fs::create_dir_all(folder.path("conf.d")).unwrap();
    for other in ["a.toml", "b.toml"].iter().filter(|name| **name != version.include.0) {
        let _ = fs::remove_file(folder.path("conf.d").join(other));
    }
    fs::write(folder.path("conf.d").join(version.include.0), &version.include.1).unwrap();
    folder.write("next", &version.main);
    fs::rename(folder.path("next"), folder.path("config.toml")).unwrap();
}

/// Returns the versions of the files that the configuration loads.
fn versions(main: &Path) -> BTreeSet<String> {
    let loaded = config::load(main)
        .unwrap_or_else(|rejected| panic!("{}", config::render(&rejected.problems, &rejected.sources, false)));
    let texts = &loaded.config.snapshot.texts;
    let names: Vec<_> = texts.iter().map(|(path, _)| path.file_name().unwrap().to_owned()).collect();
    let first = |text: &str| text.lines().find(|line| line.starts_with("# v")).unwrap().to_owned();
    let found: BTreeSet<_> = texts.iter().map(|(_, text)| first(text)).collect();
    let expected = if found.contains("# v1") { "a.toml" } else { "b.toml" };
    assert_eq!(names, ["config.toml", expected], "{found:?}");
    found
}

/// Starts a scene that adopts two versions as numbers 2 and 3. With `watch`, the second version watches files.
fn scene(watch: bool) -> Scene {
    let scene = scene_of(&with_admin_socket);
    for number in [1, 2] {
        write(&scene, &version(&scene, number, watch && number == 2));
        let (code, _, err) = exit_code_and_output(&run(&scene, &["reload"]));
        assert_eq!(code, 0, "{err}");
        eventually("it is in force", || status(&scene)["configuration"]["number"] == number + 1);
    }
    scene
}

fn file(scene: &Scene, name: &str) -> Option<String> {
    fs::read_to_string(scene.outgate.folder.path(name)).ok()
}

#[test]
fn history_lists_adopted_configurations_and_rollback_restores_their_includes() {
    for watch in [false, true] {
        let scene = scene(watch);
        let (code, out, err) = exit_code_and_output(&run(&scene, &["rollback", "2", "--dry-run"]));
        assert!(code == 1 && out.contains("limits.of-1: added") && err.contains("nothing was written"), "{out} {err}");
        assert!(file(&scene, "conf.d/a.toml").is_none());

        let (code, out, err) = exit_code_and_output(&run(&scene, &["rollback", "2"]));
        assert!(code == 0 && out.contains("timeouts: idle \"2s\" → \"1s\""), "{out} {err}");
        assert!(err.contains("configuration 4 is active") && err.contains("rollback to 2"), "{err}");
        let expected = version(&scene, 1, false);
        assert_eq!(file(&scene, "config.toml"), Some(expected.main));
        assert_eq!(file(&scene, "conf.d/a.toml"), Some(expected.include.1));
        assert_eq!(file(&scene, "conf.d/b.toml"), None);
        // The replaced file is saved.
        assert_eq!(file(&scene, "conf.d/.b.toml.before-rollback"), Some(version(&scene, 2, watch).include.1));

        let list = || json(&run(&scene, &["history", "--json"]));
        // The reply waits for the write of the history, but not for long.
        eventually("the rollback is in the history", || list()[0]["number"] == 4);
        let entries = list();
        let entry_text = |index: usize, key: &str| entries[index][key].to_string();
        let numbers: Vec<_> = (0..4).map(|index| entry_text(index, "number")).collect();
        assert_eq!(numbers, ["4", "3", "2", "1"]);
        assert_eq!((entry_text(0, "how"), entry_text(3, "how")), ("\"rollback to 2\"".into(), "\"start\"".into()));
        assert!(
            entry_text(0, "by").contains("(uid ")
                && entry_text(0, "in_force") == "true"
                && entry_text(1, "in_force") == "false"
        );
        let (_, out, _) = exit_code_and_output(&run(&scene, &["history"]));
        assert!(out.starts_with("*4 ") && out.lines().count() == 4, "{out}");
        let (_, out, _) = exit_code_and_output(&run(&scene, &["history", "3"]));
        assert!(out.contains("limits.of-2: added: { rate = \"2/s\" }"), "{out}");

        let (code, _, err) = exit_code_and_output(&run(&scene, &["rollback", "2"]));
        assert!(code == 0 && err.contains("nothing to do"), "{err}");
        assert_eq!(exit_code_and_output(&run(&scene, &["rollback", "9"])).0, 2);
        eventually("no unfinished rollback is reported", || {
            !scene.outgate.admin("/readyz").text().contains("rollback")
        });
    }
}

#[test]
fn rollback_refuses_a_configuration_that_is_not_valid_now() {
    let scene = scene(false);
    let before = file(&scene, "config.toml");
    let folder = &scene.outgate.folder;
    // The active configuration does not need the key. The previous one does.
    let text = before.unwrap().replace_one("\"k1\"", "\"k2\"").replace_one("/key\"", "/key2\"");
    fs::copy(folder.path("key"), folder.path("key2")).unwrap();
    folder.write("config.toml", &text);
    assert_eq!(exit_code_and_output(&run(&scene, &["reload"])).0, 0);
    fs::remove_file(folder.path("key")).unwrap();
    for number in ["2", "3"] {
        let (code, _, err) = exit_code_and_output(&run(&scene, &["rollback", number]));
        assert!(code == 78 && err.contains("has no secret") && err.contains("not restored"), "{err}");
    }
    assert_eq!(file(&scene, "config.toml"), Some(text));
    assert_eq!(status(&scene)["configuration"]["number"], 4);
    assert!(!folder.path(".config.toml.rollback").exists());
}

#[test]
fn rollback_writes_only_files_of_the_configuration() {
    let scene = scene(false);
    let folder = &scene.outgate.folder;
    // An attacker who took over the proxy can write its state directory, and waits for root to restore it.
    let elsewhere = support::Folder::new();
    let entry = folder.path("state/history/000002/entry.json");
    let text = fs::read_to_string(&entry).unwrap();
    for path in [elsewhere.path("x.toml"), folder.path("conf.d/../../x.toml")] {
        let here = folder.path("conf.d/a.toml").display().to_string();
        fs::write(&entry, text.replace_all(&here, path.to_str().unwrap())).unwrap();
        let (code, _, err) = exit_code_and_output(&run(&scene, &["rollback", "2"]));
        assert!(
            code == 73
                && err.contains("x.toml, which the restored configuration does not read, or which is neither below"),
            "{code} {err}"
        );
        assert!(!path.exists() && !folder.path(".config.toml.rollback").exists());
    }
    fs::write(&entry, text).unwrap();
    let main = folder.path("state/history/000002/texts.json");
    fs::remove_file(&main).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &main).unwrap();
    let (code, _, err) = exit_code_and_output(&run(&scene, &["rollback", "2"]));
    assert_eq!(code, 66, "{err}");
    assert_eq!(status(&scene)["configuration"]["number"], 3);
}

/// The proxy can write the history, an interrupted rollback and the responses of its socket.
#[test]
fn rollback_by_root_does_not_trust_state_that_the_proxy_can_write() {
    let scene = scene(false);
    let (folder, elsewhere) = (&scene.outgate.folder, Folder::new());
    let victim = elsewhere.write("victim", "untouched");
    let is_refused = |words: &[&str], expected: i32, why: &str| {
        let (code, _, err) = exit_code_and_output(&run(&scene, words));
        assert!(code == expected && err.contains(why), "{words:?}: {code} {err}");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
    };
    // A link of the operator in the folder of the configuration.
    let link = folder.path("link.pem");
    std::os::unix::fs::symlink(&victim, &link).unwrap();
    let kept = folder.path("state/history/000002");
    let entry = fs::read_to_string(kept.join("entry.json")).unwrap();
    let include = folder.path("conf.d/a.toml").display().to_string();
    let texts = fs::read_to_string(kept.join("texts.json")).unwrap();
    let named = texts.replace_one("conf.d/*.toml", "link.pem");
    let hash = |text: &str| HEXLOWER.encode(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
    for text in [&texts, &named] {
        fs::write(kept.join("texts.json"), text).unwrap();
        let entry = entry.replace_all(&include, link.to_str().unwrap()).replace_one(&hash(&texts), &hash(text));
        fs::write(kept.join("entry.json"), entry).unwrap();
        is_refused(&["rollback", "2"], 73, "link.pem, which the restored configuration does not read");
    }
    fs::write(kept.join("texts.json"), texts.replace_one("idle", "Idle")).unwrap();
    fs::write(kept.join("entry.json"), &entry).unwrap();
    is_refused(&["rollback", "2"], 66, "configuration 2 in ");
    fs::write(kept.join("texts.json"), texts).unwrap();

    // A forged interrupted rollback.
    let journal = folder.path(".config.toml.rollback");
    fs::create_dir(&journal).unwrap();
    let manifest = serde_json::json!({
        "number": 2, "files": [folder.path("config.toml"), elsewhere.path("new")], "removed": [victim],
    });
    fs::copy(folder.path("config.toml"), journal.join("0")).unwrap();
    fs::write(journal.join("1"), "").unwrap();
    fs::write(journal.join("manifest.json"), manifest.to_string()).unwrap();
    for words in [&["rollback", "2"][..], &["rollback", "--finish"]] {
        is_refused(words, 73, "new, which the restored configuration does not read");
        assert!(!elsewhere.path("new").exists());
    }
    fs::remove_dir_all(journal).unwrap();

    // A folder that other users may write to.
    let open = |mode| set_mode(folder.path("x").parent().unwrap(), mode);
    open(0o777);
    is_refused(&["rollback", "2"], 73, "is open to others");
    open(0o755);

    // A proxy that uses another configuration file.
    let other = folder.write("other.toml", file(&scene, "config.toml").unwrap());
    is_refused(&["rollback", "2", "--config", other.to_str().unwrap()], 2, "the running proxy uses ");
    assert_eq!(status(&scene)["configuration"]["number"], 3);
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A user with write access to the folder of an include could replace a file with a link to any file.
#[test]
fn rollback_follows_no_link_in_a_folder_that_another_user_may_write() {
    use std::os::unix::fs::symlink;
    let scene = scene(false);
    let (folder, elsewhere) = (&scene.outgate.folder, Folder::new());
    let victim = elsewhere.write("victim", "untouched");
    let (conf, link) = (folder.path("conf.d"), folder.path("conf.d/a.toml"));
    let is_refused = |open: &Path| {
        for words in [&["rollback", "2"][..], &["rollback", "2", "--dry-run"]] {
            let (code, _, err) = exit_code_and_output(&run(&scene, words));
            let why = format!("{} is open to others", open.display());
            assert!(code == 73 && err.contains(&why), "{words:?}: {code} {err}");
            assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
        }
        assert!(!folder.path(".config.toml.rollback").exists());
    };
    symlink(&victim, &link).unwrap();
    set_mode(&conf, 0o777);
    is_refused(&conf);
    set_mode(&conf, 0o755);

    // The operator's link leads through a folder that other users may write to.
    let open = elsewhere.path("open");
    fs::create_dir(&open).unwrap();
    symlink(&victim, open.join("next.toml")).unwrap();
    set_mode(&open, 0o777);
    fs::remove_file(&link).unwrap();
    symlink(open.join("next.toml"), &link).unwrap();
    is_refused(&open);

    // Only a file of the current configuration is in the open folder.
    fs::remove_file(&link).unwrap();
    fs::rename(&conf, folder.path("away")).unwrap();
    symlink(&open, &conf).unwrap();
    is_refused(&open);
    fs::remove_file(&conf).unwrap();
    fs::rename(folder.path("away"), &conf).unwrap();

    // If no other user may write there, rollback replaces the file that the operator's link leads to.
    fs::write(&victim, "# the operator's\n").unwrap();
    symlink(&victim, &link).unwrap();
    let (code, _, err) = exit_code_and_output(&run(&scene, &["rollback", "2"]));
    assert_eq!(code, 0, "{err}");
    assert_eq!(fs::read_to_string(&victim).unwrap(), version(&scene, 1, false).include.1);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
}

/// Rollback repeats the check when it writes, because a folder may have been opened since the rollback began.
#[test]
fn rollback_checks_the_folders_again_when_it_writes() {
    let stopped = StoppedScene::new();
    let folder = &stopped.scene.outgate.folder;
    let history = History::for_reading(folder.path("state/history"));
    let entry = history.entry(2).unwrap();
    let overlay = restore::overlay(&stopped.main, &entry, &history.snapshot(&entry).unwrap());
    let begun = restore::begin(&stopped.main, overlay).unwrap();
    set_mode(&folder.path("conf.d"), 0o777);
    let error = begun.finish().unwrap_err();
    assert!(error.to_string().contains("conf.d is open to others"), "{error}");
    set_mode(&folder.path("conf.d"), 0o755);
    assert!(stopped.rollback(&["--finish"]).status().unwrap().success());
    assert_eq!(versions(&stopped.main), BTreeSet::from(["# v1".to_owned()]));
}

#[test]
fn rollback_repeated_keeps_the_files_that_the_first_one_replaced() {
    let scene = scene(false);
    let edit = |text: &str| {
        let main = file(&scene, "config.toml").unwrap();
        scene.outgate.folder.write("config.toml", format!("{main}# {text}\n"));
    };
    for (text, saved) in [("one", ".config.toml.before-rollback"), ("two", ".config.toml.before-rollback-2")] {
        edit(text);
        let (code, _, err) = exit_code_and_output(&run(&scene, &["rollback", "2"]));
        assert!(code == 0 && err.contains(&format!("/{saved}\n")), "{code} {err}");
        assert!(file(&scene, saved).unwrap().ends_with(&format!("# {text}\n")), "{text}");
    }
    assert!(file(&scene, ".config.toml.before-rollback").unwrap().ends_with("# one\n"));
}

#[test]
fn rollback_without_a_running_proxy_requires_offline_and_takes_a_lock() {
    let stopped = StoppedScene::new();
    let mut without_offline = Command::new(env!("CARGO_BIN_EXE_outgate"));
    without_offline
        .args(["rollback", "2", "--config"])
        .arg(&stopped.main)
        .arg("--state")
        .arg(stopped.scene.outgate.folder.path("state"));
    let (code, _, err) = exit_code_and_output(&without_offline.output().unwrap());
    assert!(code == 69 && err.contains("--offline writes the files without it"), "{code} {err}");
    let held = restore::lock(&stopped.main).unwrap().unwrap();
    let (code, _, err) = exit_code_and_output(&stopped.rollback(&["2"]).output().unwrap());
    assert!(code == 75 && err.contains("is running"), "{code} {err}");
    drop(held);
    assert_eq!(versions(&stopped.main), BTreeSet::from(["# v2".to_owned()]));
    let (code, _, err) = exit_code_and_output(&stopped.rollback(&["2"]).output().unwrap());
    assert!(code == 0 && err.contains("the next start or reload activates"), "{code} {err}");
    assert_eq!(versions(&stopped.main), BTreeSet::from(["# v1".to_owned()]));
}

#[test]
fn rollback_may_move_the_admin_socket_that_carries_its_request() {
    let scene = scene(false);
    let moved = file(&scene, "config.toml").unwrap().replace_one("admin.sock", "moved.sock");
    scene.outgate.folder.write("config.toml", moved);
    let before = format!("unix:{}", scene.outgate.folder.path("admin.sock").display());
    assert_eq!(exit_code_and_output(&run(&scene, &["reload", "--admin", &before])).0, 0);
    let (code, _, err) = exit_code_and_output(&run(&scene, &["rollback", "3"]));
    assert!(code == 0 && err.contains("configuration 5 is active") && err.contains("rollback to 3"), "{code} {err}");
}

#[test]
fn rollback_restores_a_deleted_file_without_wider_permissions() {
    use std::os::unix::fs::PermissionsExt;
    let scene = scene_of(&with_admin_socket);
    let include = scene.outgate.folder.path("conf.d/a.toml");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    write(&scene, &version(&scene, 1, false));
    fs::set_permissions(&include, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(exit_code_and_output(&run(&scene, &["reload"])).0, 0);
    write(&scene, &version(&scene, 2, false));
    assert_eq!(exit_code_and_output(&run(&scene, &["reload"])).0, 0);
    let main = scene.outgate.folder.path("config.toml");
    let of_main = mode(&main);
    // The main file was deleted by mistake.
    fs::remove_file(&main).unwrap();
    let socket = format!("unix:{}", scene.outgate.folder.path("admin.sock").display());
    let words = ["rollback", "2", "--admin", &socket, "--config", main.to_str().unwrap()];
    let (code, _, err) = exit_code_and_output(&run(&scene, &words));
    assert_eq!(code, 0, "{err}");
    assert_eq!((mode(&include), mode(&main)), (0o600, of_main));
    assert_eq!(versions(&main), BTreeSet::from(["# v1".to_owned()]));
}

#[test]
fn history_continues_its_numbers_after_a_restart_without_a_duplicate() {
    let mut scene = scene(false);
    scene.outgate = scene.outgate.restarted();
    assert_eq!(status(&scene)["configuration"]["number"], 3);
    assert_eq!(json(&run(&scene, &["history", "--json"])).as_array().unwrap().len(), 3);
    // The next start reports the change that was made while no process ran.
    write(&scene, &version(&scene, 1, false));
    scene.outgate = scene.outgate.restarted();
    let kept = || json(&run(&scene, &["history", "--json"]));
    eventually("it is kept, too", || kept()[0]["number"] == 4);
    let entries = kept();
    assert_eq!(entries[0]["how"], "start");
    assert!(entries[0]["changes"].to_string().contains("limits.of-2: removed"), "{entries}");
    // The history keeps `server.history` configurations.
    let main = version(&scene, 2, false).main.replace_one("watch = false", "watch = false\nhistory = 2");
    scene.outgate.folder.write("config.toml", main);
    assert_eq!(exit_code_and_output(&run(&scene, &["reload"])).0, 0);
    let count = || fs::read_dir(scene.outgate.folder.path("state/history")).unwrap().count();
    eventually("two are left", || count() == 2 && kept()[0]["number"] == 5);
}

#[test]
fn history_that_cannot_be_written_is_reported_until_it_can() {
    let scene = scene(false);
    let (history, aside) = (scene.outgate.folder.path("state/history"), scene.outgate.folder.path("state/aside"));
    let change = |number: u32| {
        write(&scene, &version(&scene, number, false));
        assert_eq!(exit_code_and_output(&run(&scene, &["reload"])).0, 0, "the configuration is adopted nevertheless");
    };
    let is_reported = || {
        let metric = scene.outgate.admin("/metrics").text().lines().any(|line| line == "outgate_history_failed 1");
        (scene.outgate.admin("/readyz").text().contains("the active configuration is not in the history"), metric)
    };
    fs::rename(&history, &aside).unwrap();
    fs::write(&history, "no folder").unwrap();
    change(1);
    eventually("the failure is reported", || is_reported() == (true, true));
    scene.outgate.wait_for_metric("outgate_alerts{name=\"OutgateHistoryFailed\"} 1");
    fs::remove_file(&history).unwrap();
    fs::rename(&aside, &history).unwrap();
    change(2);
    eventually("the report ends", || is_reported() == (false, false));
    assert_eq!(json(&run(&scene, &["history", "--json"]))[0]["number"], 5);
}

#[test]
fn history_has_no_entry_of_a_start_that_failed() {
    let scene = scene(false);
    let state = Folder::new();
    let start = |listen: &str| {
        let text = file(&scene, "config.toml").unwrap().replace_one("listen = [\"127.0.0.1:0\"]", listen);
        let config = scene.outgate.folder.write("second.toml", text.replace_one("admin.sock", "second.sock"));
        let mut second = Command::new(env!("CARGO_BIN_EXE_outgate"));
        second.args(["run", "--config"]).arg(config).env("STATE_DIRECTORY", state.path("")).output().unwrap()
    };
    let (code, _, err) = exit_code_and_output(&start(&format!("listen = [\"{}\"]", scene.outgate.proxy)));
    assert!(code == 69 && err.contains("cannot listen"), "{err}");
    assert_eq!(fs::read_dir(state.path("history")).unwrap().count(), 0);
}

#[test]
fn drift_of_files_from_the_active_configuration_is_reported_within_seconds() {
    let scene = scene(false);
    let metric = |value: u8| {
        let line = format!("outgate_config_drift {value}");
        scene.outgate.wait_for_metric(&line);
    };
    metric(0);
    // The check may have seen a change that the scene made before its reload.
    let count = |words: &str| scene.outgate.log.all().iter().filter(|line| line.contains(words)).count();
    let reports = || (count("the configuration on disk differs from the active one"), count("is the active one again"));
    eventually("an earlier drift has ended", || reports().0 == reports().1);
    let before = reports().0;
    // Each change is one rename, so that no check sees an intermediate state.
    let include = version(&scene, 1, false).include;
    let (path, folder) = (scene.outgate.folder.path("conf.d").join(include.0), &scene.outgate.folder);
    fs::rename(folder.write("next", &include.1), &path).unwrap();
    metric(1);
    eventually("the drift is in the readiness", || {
        let ready = scene.outgate.admin("/readyz");
        ready.status == 200
            && ready.text().contains("the configuration on disk differs from the active one: limits.of-1: added")
    });
    assert!(status(&scene)["drift"]["what"].as_str().unwrap().starts_with("limits.of-1"));
    fs::remove_file(&path).unwrap();
    metric(0);
    // A file that the configuration names is part of the comparison.
    scene.outgate.folder.write("key", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD");
    metric(1);
    eventually("the drift of the key", || scene.outgate.admin("/readyz").text().contains("signers.platform: "));
    assert_eq!(exit_code_and_output(&run(&scene, &["reload"])).0, 0);
    metric(0);
    eventually("two reports and their ends", || reports().1 >= before + 2);
    assert_eq!(reports(), (before + 2, before + 2));
}

#[test]
fn watch_loads_a_change_without_a_file_event() {
    // The test writes through another name of the file, which is in another folder, so the watch has no event.
    let (pki, elsewhere) = (Pki::new(), Folder::new());
    let (good, plain) = (Receiver::plain(ok()), Receiver::plain(ok()));
    let folder = scene_folder(&pki);
    let text = scene_config(&good, &plain, "[timeouts]\nidle = \"2s\"\n");
    let text = folder.placed(&with_admin_socket(&text).set("server.watch", true));
    let main = folder.write("config.toml", &text);
    fs::hard_link(&main, elsewhere.path("x")).unwrap();
    let path = elsewhere.path("notify");
    let notify = NotifySocket::bind(&path);
    let outgate = Outgate::run_in_with(folder, &[("NOTIFY_SOCKET", &path)]);
    let scene = Scene { pki, outgate, good, plain };
    // The watch requests one reload after the start. The change comes after it.
    notify.wait_for("RELOADING=1");
    notify.wait_for("READY=1");
    fs::write(elsewhere.path("x"), text.replace_one("idle = \"2s\"", "idle = \"9s\"")).unwrap();
    eventually("it is in force", || status(&scene)["configuration"]["changes"][0] == "timeouts: idle \"2s\" → \"9s\"");
}

/// A scene with a stopped proxy, for interrupted rollbacks.
struct StoppedScene {
    scene: Scene,
    main: PathBuf,
}

impl StoppedScene {
    /// Stops the proxy.
    fn new() -> Self {
        let mut scene = scene(false);
        scene.outgate.signal("KILL");
        scene.outgate.wait();
        let main = scene.outgate.folder.path("config.toml");
        Self { scene, main }
    }

    fn rollback(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
        command.arg("rollback").args(words).arg("--config").arg(&self.main);
        command.args(words.first().filter(|word| **word != "--finish").map(|_| "--offline"));
        command.arg("--state").arg(self.scene.outgate.folder.path("state"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    fn assert_valid(&self) {
        let check = Command::new(env!("CARGO_BIN_EXE_outgate")).arg("check").arg("--config").arg(&self.main).output();
        assert!(check.as_ref().unwrap().status.success(), "{}", exit_code_and_output(check.as_ref().unwrap()).2);
    }
}

#[test]
fn rollback_killed_at_any_moment_leaves_one_whole_configuration() {
    let stopped = StoppedScene::new();
    let start = Instant::now();
    assert!(stopped.rollback(&["2"]).status().unwrap().success());
    let whole = start.elapsed();
    assert_eq!(versions(&stopped.main), BTreeSet::from(["# v1".to_owned()]));
    let rounds = if support::required() { 400 } else { 60 };
    for round in 0..rounds {
        // Rollbacks alternate, so the other version is the one that may be incomplete.
        let number = if versions(&stopped.main).contains("# v1") { "3" } else { "2" };
        let mut child = stopped.rollback(&[number]).spawn().unwrap();
        // The kill moves from the start of the rollback to shortly after its end.
        std::thread::sleep(whole.mul_f64(1.2 * f64::from(round) / f64::from(rounds)));
        let _ = child.kill();
        let _ = child.wait();
        assert_eq!(versions(&stopped.main).len(), 1, "killed in round {round}");
        if round % 10 == 0 {
            stopped.assert_valid();
        }
    }
    assert!(stopped.rollback(&["3"]).status().unwrap().success());
    assert_eq!(versions(&stopped.main), BTreeSet::from(["# v2".to_owned()]));
    assert!(!stopped.scene.outgate.folder.path(".config.toml.rollback").exists());
}

#[test]
fn rollback_interrupted_between_any_two_steps_loads_one_whole_set() {
    let stopped = StoppedScene::new();
    let folder = &stopped.scene.outgate.folder;
    let (one, two) = (BTreeSet::from(["# v1".to_owned()]), BTreeSet::from(["# v2".to_owned()]));
    let history = History::for_reading(folder.path("state/history"));
    let entry = history.entry(2).unwrap();
    let overlay = || restore::overlay(&stopped.main, &entry, &history.snapshot(&entry).unwrap());
    assert_eq!(overlay().removed, BTreeSet::from([folder.path("conf.d/b.toml")]));

    // An unfinished folder is ignored until it has its final name.
    fs::create_dir(folder.path(".config.toml.rollback-unfinished")).unwrap();
    folder.write(".config.toml.rollback-unfinished/0", "half");
    assert_eq!(versions(&stopped.main), two);
    restore::begin(&stopped.main, overlay()).unwrap();
    assert_eq!(versions(&stopped.main), one, "the rollback folder has its final name");
    let version = version(&stopped.scene, 1, false);
    folder.write(".config.toml.rollback-next", "half a file");
    assert_eq!(versions(&stopped.main), one);
    fs::write(&stopped.main, &version.main).unwrap();
    assert_eq!(versions(&stopped.main), one, "the main file is restored");
    stopped.assert_valid();
    // The next start completes the rollback and reports it.
    let running = Outgate::run_in(Folder::linked(folder));
    let ready = running.admin("/readyz").text();
    assert!(ready.contains("a rollback to configuration 2 has not finished"), "{ready}");
    let mut status_command = Command::new(env!("CARGO_BIN_EXE_outgate"));
    let found = json(&status_command.args(["status", "--json", "--config"]).arg(&stopped.main).output().unwrap());
    assert_eq!(found["configuration"]["how"], "rollback to 2");
    let (code, _, err) = exit_code_and_output(&stopped.rollback(&["--finish"]).output().unwrap());
    assert!(code == 0 && err.contains("finished the interrupted rollback to configuration 2"), "{err}");
    assert_eq!(versions(&stopped.main), one);
    assert_eq!(fs::read_to_string(folder.path("conf.d/a.toml")).unwrap(), version.include.1);
    eventually("the report ends", || !running.admin("/readyz").text().contains("rollback"));
    // An invalid rollback folder is an error.
    fs::create_dir(folder.path(".config.toml.rollback")).unwrap();
    assert!(config::load(&stopped.main).is_err());
}

/// A copy of an entry must not allow offline guesses of a file's secret.
#[test]
fn history_keeps_keyed_digests_of_secrets() {
    let scene = scene_of(&|text| text.to_owned());
    let folder = &scene.outgate.folder;
    let (history, key) = (folder.path("state/history"), folder.path("key"));
    let entry = || fs::read_to_string(history.join("000001/entry.json"));
    eventually("the entry is written", || entry().is_ok());
    let plain = HEXLOWER.encode(digest::digest(&digest::SHA256, &fs::read(&key).unwrap()).as_ref());
    let kept: serde_json::Value = serde_json::from_str(&entry().unwrap()).unwrap();
    assert!(kept["contents"][key.to_str().unwrap()].is_string() && !kept.to_string().contains(&plain), "{kept:#}");
    let loaded = config::load(&folder.path("config.toml")).unwrap();
    assert!(!kept.to_string().contains(&loaded.config.snapshot.digest), "{kept:#}");
    let metadata = fs::metadata(folder.path("state/history.key")).unwrap();
    assert_eq!((metadata.len(), std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777), (32, 0o600));
    // A restart with the same files adds no entry. A changed secret adds one.
    let outgate = scene.outgate.restarted();
    assert_eq!(History::for_reading(history.clone()).entries().unwrap().len(), 1);
    outgate.after_reload(|| drop(outgate.folder.write("key", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD")));
    let history = History::for_reading(history);
    eventually("an entry of the changed secret", || history.entries().is_ok_and(|entries| entries.len() == 2));
}

/// Entries cannot be compared without the key of their digests.
#[test]
fn history_says_that_it_cannot_compare_when_the_key_of_its_digests_is_lost() {
    let scene = scene_of(&|text| text.to_owned());
    let path = scene.outgate.folder.path("state/history");
    let history = History::for_reading(path.clone());
    let entries = |count: usize| {
        eventually("an entry", || history.entries().is_ok_and(|entries| entries.len() == count));
        history.entries().unwrap()
    };
    entries(1);
    fs::remove_file(path.with_extension("key")).unwrap();
    let outgate = scene.outgate.restarted();
    let entries = entries(2);
    let changes = &entries[1].difference.changes;
    assert!(changes.len() == 1 && changes[0].starts_with("cannot compare with configuration 1: "), "{changes:?}");
    let is_reported =
        |lines: &[String]| lines.iter().any(|line| line.contains("cannot compare with configuration 1")).then_some(());
    outgate.log.wait_for("the log line", is_reported);
    // The new key differs from that of the first entry.
    let written = config::load(&outgate.folder.path("config.toml")).unwrap().config.snapshot.clone();
    let error = history.difference(&entries[0], &written).unwrap_err();
    assert_eq!(error.to_string(), "its digests were made with another key");
    assert!(history.is_same(&entries[1], &written));
}
