//! The connection of an instance to its store: TLS and ACL users, sentinels, clusters, and stores that go away.
//! Does an instance find its store, and report one that is away?

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use outgate::net::store::Store;
use rcgen::ExtendedKeyUsagePurpose;
use serde_json::Value;

use super::{Scenery, instance, instance_with, wait_until_all_live, wait_until_up};
use crate::support::configuration::{Config, token_hash};
use crate::support::control::run;
use crate::support::eventually;
use crate::support::pki::Pki;
use crate::support::receiver::{Receiver, ok};
use crate::support::scene::{Scene, folder};
use crate::support::scrape::Scrape;
use crate::support::store::{self, LOOPBACK, StoreServer, permit_documented_user, replicated, sentinel_of};

fn unchanged(config: &Config) -> Config {
    config.clone()
}

fn wait_until_away(scene: &Scene) {
    scene.outgate.wait_for_metric("outgate_fleet_store_up{} 0");
}

#[test]
fn fleet_counts_its_live_instances_and_forgets_one_that_was_killed() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let fleet = format!("store = \"redis://127.0.0.1:{}\"", server.port);
    let [first, second] = ["egress-1", "egress-2"].map(|name| instance(name, &fleet, &unchanged));
    wait_until_all_live(&[&first, &second]);
    let keys = server.cli(&["keys", "*"]);
    let keys: std::collections::BTreeSet<_> = keys.split_whitespace().collect();
    let names = ["outgate:{instances}", "outgate:{instances}:announcements", "outgate:{instances}:state"];
    assert_eq!(keys, names.into());
    first.outgate.signal("KILL");
    // Its announcement ends after five seconds.
    wait_until_all_live(&[&second]);
}

#[test]
fn fleet_store_that_goes_away_is_reported_and_found_again() {
    if !store::is_installed() {
        return;
    }
    let mut server = StoreServer::start();
    let scene = instance("egress-1", &format!("store = \"redis://127.0.0.1:{}\"", server.port), &unchanged);
    wait_until_up(&scene);
    let finding = || {
        let findings: Value = serde_json::from_slice(&run(&scene, &["doctor", "--json"]).stdout).unwrap();
        findings.as_array().unwrap().iter().find(|it| it["check"] == "store").cloned().unwrap()
    };
    let found = finding();
    assert!(found["message"].as_str().unwrap().starts_with("the store of the fleet answers after"), "{found}");
    server.kill();
    wait_until_away(&scene);
    let found = finding();
    assert!(found["level"] == "problem" && found["message"].as_str().unwrap().contains("refused"), "{found}");
    let ready = scene.outgate.admin("/readyz");
    assert_eq!(ready.status, 200, "an instance without its store serves traffic");
    assert!(ready.text().contains("the store of the fleet has been away for"), "{}", ready.text());
    scene.outgate.wait_for_metric("outgate_alerts{name=\"OutgateFleetStoreAway\"} 1");
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").status, 200);
    server.restart_empty();
    wait_until_up(&scene);
    assert!(!scene.outgate.admin("/readyz").text().contains("fleet"));
    scene.outgate.log.wait_for_lines(1, &["the store of the fleet answers again"]);
    // A server that is stopped accepts connections and answers nothing.
    server.signal("STOP");
    wait_until_away(&scene);
    assert!(scene.outgate.admin("/readyz").text().contains("the store of the fleet"), "a slow store is reported, too");
    server.signal("CONT");
    wait_until_up(&scene);
}

/// The server accepts only TLS, a client certificate of its authority, and an ACL user with the rights of docs/fleet.md.
#[test]
fn fleet_store_is_reached_over_tls_as_an_acl_user() {
    if !store::is_installed() {
        return;
    }
    let pki = Pki::new();
    let files = crate::support::Folder::new();
    let server = pki.leaf(&["localhost"]);
    let client =
        pki.leaf_with(&["egress-1"], |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    files.write("ca.pem", &pki.pem);
    for (name, identity) in [("server", &server), ("client", &client)] {
        files.write(&format!("{name}.pem"), identity.chain_pem());
        files.write(&format!("{name}.key"), identity.key_pem());
    }
    let tls = ["--tls-port", "{port}", "--tls-cert-file", "{dir}/server.pem", "--tls-key-file", "{dir}/server.key"];
    let client_tls = ["--tls", "--cacert", "{dir}/ca.pem", "--cert", "{dir}/client.pem", "--key", "{dir}/client.key"];
    let settings = [&tls[..], &["--tls-ca-cert-file", "{dir}/ca.pem"]].concat();
    let server = StoreServer::start_in(files, &settings, &client_tls);
    permit_documented_user(&server);
    assert_eq!(server.cli(&["config", "set", "requirepass", "another"]).trim(), "OK");

    let start = |ca: &str, password: &str| {
        let scenery = Scenery { pki: Pki::new(), good: Receiver::plain(ok()), plain: Receiver::plain(ok()) };
        let folder = folder(&scenery.pki);
        folder.write("password", password);
        std::fs::set_permissions(folder.path("password"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let fleet = format!(
            "store = \"rediss://localhost:{}\"\nuser = \"outgate\"\npassword = \"file:{{dir}}/password\"\nca = \"{ca}\"\n\
             identity = {{ certificate = \"{}\", key = \"{}\" }}",
            server.port,
            server.path("client.pem"),
            server.path("client.key")
        );
        let limit = "[limits.l]\nscope = \"fleet\"\nrate = \"100/s\"\nconcurrency = 10\n";
        let limited = |config: &Config| config.and(limit).add("routes.*.limits", ["l"]);
        instance_with("egress-1", &format!("{fleet}\nwait = \"1s\""), &limited, folder, scenery)
    };
    let scene = start(&server.path("ca.pem"), "hunter2\n");
    wait_until_up(&scene);
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").status, 200);
    assert_share_gave_nothing(&scene);
    assert!(scene.outgate.has_metric("outgate_fleet_store_errors_total 0"), "the user may do what outgate does");
    for (ca, password, error) in [
        ("{dir}/ca.pem", "hunter2", "certificate"), // the authority of other certificates
        (server.path("ca.pem").as_str(), "wrong", "password authentication failed"),
    ] {
        let scene = start(ca, password);
        let line = scene.outgate.log.wait_for("the error", |lines| {
            lines.iter().find(|line| line.contains("the store of the fleet is away")).cloned()
        });
        assert!(line.to_lowercase().contains(&error.to_lowercase()) && !line.contains("hunter2"), "{line}");
        assert!(scene.outgate.has_metric("outgate_fleet_store_up{} 0"));
    }
}

#[test]
fn fleet_store_is_the_master_that_the_sentinels_name() {
    if !store::is_installed() {
        return;
    }
    let [mut master, replica] = replicated(LOOPBACK);
    let sentinel = sentinel_of(LOOPBACK, master.port);
    eventually("the sentinel knows the replica", || {
        sentinel.cli(&["sentinel", "replicas", "outgate"]).contains("slave")
    });
    let fleet = format!("store = \"redis-sentinel://127.0.0.1:{}/outgate\"", sentinel.port);
    let scene = instance("egress-1", &fleet, &unchanged);
    wait_until_up(&scene);
    master.kill();
    wait_until_away(&scene);
    // The sentinels make the replica the master.
    wait_until_up(&scene);
    assert!(replica.cli(&["info", "replication"]).contains("role:master"));
    assert_eq!(replica.cli(&["exists", "outgate:{instances}"]).trim(), "1");
}

/// A stopped sentinel accepts connections and answers nothing, as one does whose host is frozen.
#[test]
fn fleet_master_is_found_while_the_first_sentinels_hang() {
    if !store::is_installed() {
        return;
    }
    let master = StoreServer::start();
    let sentinels: Vec<_> = (0..4).map(|_| sentinel_of(LOOPBACK, master.port)).collect();
    let nodes: Vec<_> = sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port)).collect();
    sentinels[..3].iter().for_each(|sentinel| sentinel.signal("STOP"));
    let fleet = format!("store = \"redis-sentinel://{}/outgate\"", nodes.join(","));
    let scene = instance("egress-1", &fleet, &unchanged);
    wait_until_up(&scene);
    assert_eq!(master.cli(&["exists", "outgate:{instances}"]).trim(), "1");
}

/// The connection to a sentinel can die without a sign, as behind a firewall that has forgotten it.
#[test]
fn fleet_master_is_found_over_a_new_connection_to_the_sentinel() {
    if !store::is_installed() {
        return;
    }
    let master = StoreServer::start();
    let sentinel = sentinel_of(LOOPBACK, master.port);
    let tap = sentinel.wiretap();
    // In this time, the library does not notice that a sentinel no longer answers.
    let fleet = format!("store = \"redis-sentinel://{}/outgate\"\ntimeout = \"150ms\"", tap.address);
    let scene = instance("egress-1", &fleet, &unchanged);
    wait_until_up(&scene);
    tap.freeze();
    let known = tap.traffic().len();
    assert_ne!(master.cli(&["--raw", "client", "kill", "type", "normal"]).trim(), "0");
    assert!(tap.wait_for_connections(known + 1).len() > known, "another connection to the sentinel");
    wait_until_up(&scene);
}

/// A call may fail long after other connections have replaced its own.
#[test]
fn fleet_store_is_up_when_a_call_fails_on_a_connection_that_was_replaced() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let tap = server.wiretap();
    let text = format!("[fleet]\nstore = \"redis://{}\"\ninstance = \"egress-1\"\ntimeout = \"1s\"", tap.address);
    let config = outgate::config::parse(&text, std::path::Path::new("config.toml")).ok().unwrap().config;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Arc::new(Store::new(config.fleet.as_ref().unwrap(), 1).unwrap());
        store.connect().await.unwrap();
        store.set_up();
        tap.freeze();
        let call = tokio::spawn({
            let store = Arc::clone(&store);
            async move { store.set("former", b"1", Duration::from_secs(60)).await }
        });
        tap.wait_for_sent("former");
        store.disconnect();
        store.connect().await.unwrap();
        store.set_up();
        call.await.unwrap().expect_err("no answer in time");
        assert!(store.is_up());
        store.set("next", b"1", Duration::from_secs(60)).await.unwrap();
    });
}

/// An intruder writes values to the store that are not UTF-8. outgate skips them, and the store stays up for it.
#[test]
fn fleet_store_with_values_that_are_no_text_is_up() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let scene = instance("egress-1", &format!("store = \"redis://127.0.0.1:{}\"", server.port), &unchanged);
    wait_until_up(&scene);
    let written = server.cli(&[
        "eval",
        "redis.call('zadd', KEYS[1], 9e15, 'forged') redis.call('hset', KEYS[2], 'forged', '\\255') \
         return redis.call('hset', KEYS[3], 'assignments', '\\255', 'assignments_version', 7)",
        "3",
        "outgate:{instances}",
        "outgate:{instances}:announcements",
        "outgate:{instances}:state",
    ]);
    assert!(written.contains('2'), "{written}");
    scene.outgate.log.wait_for_lines(1, &["the assignments of ranges in the store are refused"]);
    // The observer reads all announcements every two seconds.
    let calls = || Scrape::of(&scene.outgate).sum("outgate_fleet_store_calls_total", &[]);
    let before = calls();
    eventually("the instance has read them", || calls() >= before + 8.0);
    assert!(scene.outgate.has_metric("outgate_fleet_store_errors_total 0"));
    assert!(scene.outgate.has_metric("outgate_fleet_store_up{} 1"));
}

#[test]
fn fleet_store_of_several_addresses_is_the_one_that_accepts_writes() {
    if !store::is_installed() {
        return;
    }
    let master = StoreServer::start();
    let port = master.port.to_string();
    let replica = StoreServer::start_with(&["--replicaof", "127.0.0.1", &port], &[]);
    let fleet = format!("store = \"redis://127.0.0.1:{},127.0.0.1:{port}\"", replica.port);
    let scene = instance("egress-1", &fleet, &unchanged);
    wait_until_up(&scene);
    assert_eq!(master.cli(&["exists", "outgate:{instances}"]).trim(), "1");
}

/// A listener that accepts nothing lets the kernel connect, and answers nothing.
#[test]
fn fleet_store_is_found_behind_addresses_that_hang() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let hanging: Vec<_> = (0..6).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
    let hosts: Vec<_> = hanging.iter().map(|one| one.local_addr().expect("an address").to_string()).collect();
    let fleet = format!("store = \"redis://{},127.0.0.1:{}\"\ntimeout = \"200ms\"", hosts.join(","), server.port);
    let scene = instance("egress-1", &fleet, &unchanged);
    wait_until_up(&scene);
    assert_eq!(server.cli(&["exists", "outgate:{instances}"]).trim(), "1");
}

pub(super) fn assert_share_gave_nothing(scene: &Scene) {
    assert!(
        scene.outgate.has_metric("outgate_fleet_share_deliveries_total 0"),
        "{}",
        scene.outgate.admin("/metrics").text()
    );
}

/// Each key is in one slot, and each master loads the scripts.
#[test]
fn fleet_limits_of_many_keys_are_counted_in_a_cluster() {
    if !store::is_installed() {
        return;
    }
    let nodes = store::cluster();
    let fleet = format!("store = \"redis-cluster://127.0.0.1:{}\"\nwait = \"1s\"\ntimeout = \"2s\"", nodes[0].port);
    let limit = "[limits.l]\nscope = \"fleet\"\nrate = \"1/h\"\nburst = 2\nconcurrency = 1\nper = [\"tenant\"]\n";
    let client = format!("[clients.billing]\ntokens = [\"{}\"]\ntenants = [\"*\"]\n", token_hash("t0ken"));
    let tenants =
        |config: &Config| config.and(limit).and(&client).add("routes.*.limits", ["l"]).remove("server.allow_anonymous");
    let [first, second] = ["egress-1", "egress-2"].map(|name| instance(name, &fleet, &tenants));
    wait_until_all_live(&[&first, &second]);
    for number in 0..12 {
        let send = |scene: &Scene| {
            let fields = format!("Proxy-Authorization: Bearer t0ken\r\nOutgate-Tenant: tenant-{number}\r\n");
            scene.outgate.post(&scene.plain_url(), &fields, "x")
        };
        let is_delivered = |scene: &Scene| send(scene).status == 200;
        // The permit of the first delivery goes back after 50 ms, and the other instance may then have it.
        let response = send(&first);
        assert_eq!(response.status, 200, "{response:?}");
        eventually("the other instance delivers", || is_delivered(&second));
        for scene in [&first, &second] {
            eventually("the burst is used up", || send(scene).code() == "rate_limited");
        }
    }
    [&first, &second].iter().for_each(|scene| assert_share_gave_nothing(scene));
    let masters_with_keys = nodes.iter().filter(|node| node.cli(&["role"]).starts_with("master"));
    assert_eq!(masters_with_keys.filter(|node| node.cli(&["keys", "*:rate"]).contains("outgate:")).count(), 3);
}

#[test]
fn fleet_store_may_be_a_cluster() {
    if !store::is_installed() {
        return;
    }
    let nodes = store::cluster();
    let fleet = format!("store = \"redis-cluster://127.0.0.1:{}\"", nodes[0].port);
    let [first, second] = ["egress-1", "egress-2"].map(|name| instance(name, &fleet, &unchanged));
    wait_until_all_live(&[&first, &second]);
    let has_key = |node: &&store::StoreServer| node.cli(&["keys", "*"]).contains("outgate:{instances}");
    eventually("one master and its replica have the key", || nodes.iter().filter(has_key).count() == 2);
}
