//! Keys of tenants in a `key_dir`, which an operator changes with `mv` and `cp`.
//! Which key signs the webhook of a tenant, and is it ever the key of another tenant?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::fs;
use std::io::Write;

use serde_json::{Value, json};
use support::Outgate;
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{SECRET, folder};
use support::signature::verify;
use support::tenants::{NAMES, Scene, new_key, run, signed_by, swap, text, write_key};

#[test]
fn key_dir_signs_with_the_key_of_the_tenant_also_after_a_swap() {
    let scene = Scene::new("");
    let secrets = scene.secrets();
    let expect = |order: [usize; 3]| {
        for (name, own) in NAMES.iter().zip(order) {
            let received = scene.deliver(Some(name));
            assert_eq!(signed_by(&received, &secrets), [own], "{name}: {received:?}");
            verify(&received, &secrets[own]);
        }
    };
    expect([0, 1, 2]);
    for order in [[1, 0, 2], [0, 1, 2], [1, 0, 2]] {
        scene.change_and_adopt(|folder| swap(folder, "acme", "globex"));
        expect(order);
    }
    // The key is overwritten in place with the same length. One write without truncation shows outgate no half of a key.
    let path = scene.folder().path("keys/initech/k1.key");
    scene.change_and_adopt(|_| {
        let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all(new_key("standard-webhooks").as_bytes()).unwrap();
    });
    let received = scene.deliver(Some("initech"));
    assert_eq!(signed_by(&received, &secrets), [0; 0]);
    verify(&received, &scene.secret("initech/k1.key"));
    let records = scene.outgate.records(13);
    assert!(records.iter().all(|record| record["signatures"] == json!(["k1"])), "{records:?}");
    for (tenant, count) in [("acme", 4), ("globex", 4), ("initech", 5)] {
        assert_eq!(records.iter().filter(|record| record["tenant"] == tenant).count(), count, "{tenant}: {records:?}");
    }
}

#[test]
fn key_dir_swaps_under_load_never_sign_with_the_key_of_another_tenant() {
    let scene = Scene::new("");
    let secrets = scene.secrets();
    let (swaps, url) = (10, format!("https://hook.example:{}/in", scene.receiver.port()));
    let stop = std::sync::atomic::AtomicBool::new(false);
    let load = |tenant: usize| {
        let (mut client, mut count) = (scene.outgate.connect(), 0);
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            let fields = format!("Outgate-Tenant: {}\r\nWebhook-Id: {tenant}-{count}\r\n", NAMES[tenant]);
            client.send(support::post(&url, &fields, "{}"));
            assert_eq!(client.response().status, 200);
            count += 1;
        }
        (tenant, count)
    };
    let sent: Vec<(usize, usize)> = std::thread::scope(|scope| {
        let load = &load;
        let threads: Vec<_> = (0..NAMES.len()).map(|tenant| scope.spawn(move || load(tenant))).collect();
        (0..swaps).for_each(|_| scene.change_and_adopt(|folder| swap(folder, "acme", "globex")));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let (received, total) = (scene.receiver.requests(), sent.iter().map(|(_, count)| count).sum::<usize>());
    support::law::assert_law(&scene.outgate, &support::law::delivered(total));
    assert!(received.len() == total && sent.iter().all(|(_, count)| *count > 0), "{} {sent:?}", received.len());
    for received in &received {
        let tenant: usize = received.field("webhook-id").split('-').next().unwrap().parse().unwrap();
        let by = signed_by(received, &secrets);
        // Each webhook has one signature. The third tenant never swaps, so only its own key signs for it.
        assert!(by.len() == 1 && (by[0] == 2) == (tenant == 2), "{tenant} by {by:?}");
    }
}

#[test]
fn key_dir_refuses_webhooks_of_tenants_without_a_folder() {
    let scene = Scene::new("");
    let (forbidden, missing, unknown) = ("client_forbidden".to_owned(), json!("no_tenant"), json!("no_tenant_key"));
    assert_eq!(scene.refused(None), (403, forbidden.clone(), missing));
    for name in
        ["without-folder", "ACME", "acme/", ".", "..", "../keys/acme", "acme/k1.key", "acme\t", ".new", "k1.key"]
    {
        let expected = if name.ends_with('\t') { continue } else { (403, forbidden.clone(), unknown.clone()) };
        assert_eq!(scene.refused(Some(name)), expected, "{name}");
    }
    let response = scene.try_post(Some("without-folder"));
    assert_eq!(response.json()["detail"], "the tenant in Outgate-Tenant has no signing key");
    scene.deliver(Some("acme"));
    // One rename takes all keys away. A removal takes them one by one, and outgate may adopt a state in between.
    scene.change_and_adopt(|folder| fs::rename(folder.path("keys/acme"), folder.path("acme-before")).unwrap());
    assert_eq!(scene.refused(Some("acme")), (403, forbidden, unknown));
    scene.deliver(Some("globex"));
    // outgate records the tenant that the client named, although no key signed for it.
    let record = scene.outgate.record_of(&response);
    assert_eq!(record["tenant"], "without-folder");
    assert_eq!(record["signatures"], json!([]));
    assert_eq!(record["details"], "no_tenant_key");
    assert!(record["cause"].as_str().unwrap().contains("signer platform"), "{record}");
}

#[test]
fn key_dir_keys_are_rotated_with_cp_and_mv() {
    let scene = Scene::new("");
    let old = scene.secret("acme/k1.key");
    let path = |name: &str| scene.folder().path(&format!("keys/acme/{name}"));
    scene.change_and_adopt(|folder| {
        write_key(folder, "keys/acme/k2.from-2090-01-01.key", &new_key("standard-webhooks"))
    });
    let new = scene.secret("acme/k2.from-2090-01-01.key");
    let both = [old, new];
    assert_eq!(signed_by(&scene.deliver(Some("acme")), &both), [0]);
    scene.change_and_adopt(|_| {
        fs::rename(path("k2.from-2090-01-01.key"), path("k2.from-2026-01-01T12:00:00Z.key")).unwrap()
    });
    assert_eq!(signed_by(&scene.deliver(Some("acme")), &both), [0, 1]);
    scene.change_and_adopt(|_| fs::rename(path("k1.key"), path("k1.until-2026-02-01.key")).unwrap());
    assert_eq!(signed_by(&scene.deliver(Some("acme")), &both), [1]);
    let records = scene.outgate.records(3);
    let used: Vec<&Value> = records.iter().map(|record| &record["signatures"]).collect();
    assert_eq!(used, [&json!(["k1"]), &json!(["k2", "k1"]), &json!(["k2"])]);
}

#[test]
fn shared_keys_sign_only_for_tenants_without_a_folder() {
    let scene = Scene::new("keys = [{ id = \"shared\", secret = \"file:{dir}/key\" }]");
    let mut secrets = scene.secrets();
    secrets.push(SECRET.to_owned());
    for (tenant, own) in [(None, 3), (Some("without-folder"), 3), (Some("acme"), 0), (Some("globex"), 1)] {
        assert_eq!(signed_by(&scene.deliver(tenant), &secrets), [own], "{tenant:?}");
    }
    // The shared keys do not sign for a tenant whose own keys have ended.
    let printed = scene.log_after(|folder| {
        let path = |name: &str| folder.path(&format!("keys/acme/{name}"));
        fs::rename(path("k1.key"), path("k1.until-2026-01-01.key")).unwrap();
    });
    let printed = printed.join("\n");
    assert!(
        printed.contains("no key of the tenant acme of the signer platform is in force")
            && printed.contains("reloaded"),
        "{printed}"
    );
    assert_eq!(scene.refused(Some("acme")), (500, "internal".into(), Value::Null));
    scene.change_and_adopt(|folder| fs::remove_file(folder.path("keys/globex/k1.key")).unwrap());
    assert_eq!(scene.refused(Some("globex")), (500, "internal".into(), Value::Null));
    scene.change_and_adopt(|folder| fs::remove_dir(folder.path("keys/globex")).unwrap());
    assert_eq!(signed_by(&scene.deliver(Some("globex")), &secrets), [3]);
}

/// The refusal has a code that blames the operator, and uses neither a permit of a limit nor a connection.
#[test]
fn key_dir_refuses_a_tenant_without_an_active_key_before_its_limits() {
    let scene = Scene::new("");
    let path = |name: &str| scene.folder().path(&format!("keys/acme/{name}"));
    scene.change_and_adopt(|_| fs::rename(path("k1.key"), path("k1.until-2026-01-01.key")).unwrap());
    let text = text(&scene.receiver, "").add("routes.signed.limits", ["once"]).add("limits.once.rate", "1/h");
    scene.outgate.reconfigure(&text);
    for _ in 0..2 {
        assert_eq!(scene.refused(Some("acme")), (500, "internal".into(), Value::Null));
        assert_eq!(scene.try_post(Some("acme")).json()["blame"], "outgate");
    }
    let records = scene.outgate.records(4);
    assert!(records.iter().all(|record| record["source"].is_null()), "{records:?}");
    scene.deliver(Some("globex"));
}

#[test]
fn key_dir_keys_are_listed_and_published_per_tenant() {
    let pki = Pki::new();
    let receiver = Receiver::tls(pki.leaf(&["hook.example"]), ok());
    let folder = folder(&pki);
    for file in ["shared.pem", "keys/acme/a1.pem", "keys/acme/a2.from-2090-01-01.pem", "keys/globex/a1.pem"] {
        write_key(&folder, file, &new_key("rfc9421"));
    }
    let keys = "keys = [{ id = \"all\", secret = \"file:{dir}/shared.pem\" }]";
    let text = text(&receiver, keys).set("signers.platform.scheme", "rfc9421");
    let scene = Scene { outgate: Outgate::run(folder, &text), receiver };
    let listed = |more: &[&str]| -> Vec<(String, Value, String)> {
        let (out, _) = run(&[&["keys", "list", "--json"], more].concat(), scene.folder());
        let list: Value = serde_json::from_str(&out).unwrap();
        let text_of = |key: &Value, name: &str| key[name].as_str().unwrap().to_owned();
        list.as_array()
            .unwrap()
            .iter()
            .map(|key| (text_of(key, "id"), key["tenant"].clone(), text_of(key, "state")))
            .collect()
    };
    let row = |id: &str, tenant: Value, state: &str| (id.to_owned(), tenant, state.to_owned());
    assert_eq!(listed(&[]), [row("all", Value::Null, "active")]);
    assert_eq!(listed(&["--tenant", "without-folder"]), [row("all", Value::Null, "active")]);
    let acme = [row("a2", json!("acme"), "announced"), row("a1", json!("acme"), "active")];
    assert_eq!(listed(&["--tenant", "acme"]), acme);
    let printed = run(&["keys", "list"], scene.folder()).1;
    assert!(printed.contains("signer platform: 2 tenants have their own keys"), "{printed}");

    let kids = |set: &Value| -> Vec<String> {
        set["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
    };
    let thumbprints = |arguments: &[&str]| -> Vec<String> {
        let json = run(&[&["keys", "list", "--json"], arguments].concat(), scene.folder()).0;
        let listed: Value = serde_json::from_str(&json).unwrap();
        listed.as_array().unwrap().iter().map(|key| key["thumbprint"].as_str().unwrap().to_owned()).collect()
    };
    for (query, arguments, count) in [
        ("", &[][..], 1),
        ("?tenant=without-folder", &["--tenant", "without-folder"], 1),
        ("?tenant=acme", &["--tenant", "acme"], 2),
        ("?tenant=%67lobex", &["--tenant", "globex"], 1),
    ] {
        let served = scene.outgate.admin(&format!("/keys{query}")).json();
        let expected = thumbprints(arguments);
        assert_eq!((kids(&served), expected.len()), (expected.clone(), count), "{query}");
        let public = run(&[&["keys", "public"], arguments].concat(), scene.folder()).0;
        assert_eq!(serde_json::from_str::<Value>(&public).unwrap(), served, "{query}");
        let path = "/.well-known/http-message-signatures-directory";
        assert_eq!(kids(&scene.outgate.admin(&format!("{path}{query}")).json()).len(), expected.len(), "{query}");
    }
    // Two tenants may use the same key identifier, so the thumbprints must differ.
    let thumbprint =
        |tenant: &str| scene.outgate.admin(&format!("/keys?tenant={tenant}")).json()["keys"][0]["x"].clone();
    assert_ne!(thumbprint("acme"), thumbprint("globex"));
}

#[test]
fn explain_names_the_tenant_whose_key_signs() {
    let scene = Scene::new("");
    let url = format!("https://hook.example:{}/in", scene.receiver.port());
    let explain =
        |tenant: &[&str]| run(&[&["explain", "POST", &url, "--client", "billing"], tenant].concat(), scene.folder()).0;
    assert!(explain(&["--tenant", "acme"]).contains("platform: standard-webhooks with k1, of tenant acme only"));
    assert!(
        explain(&["--tenant", "without-folder"])
            .contains("403 client_forbidden: the tenant in Outgate-Tenant has no signing key")
    );
    assert!(explain(&[]).contains("name the tenant in Outgate-Tenant"));
    let shared = text(&scene.receiver, "keys = [{ id = \"shared\", secret = \"file:{dir}/key\" }]");
    scene.outgate.reconfigure(&shared);
    let explanation = explain(&["--tenant", "without-folder"]);
    assert!(explanation.contains("with shared, shared by tenants: without-folder has no key folder"), "{explanation}");
    assert!(explain(&[]).contains("with shared, shared by tenants: the request names no tenant"));
}
