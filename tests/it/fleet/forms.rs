//! Every form of a store: one server, sentinels and a cluster, each with the user of docs/fleet.md.
//! Does each feature of a fleet work with each form, before and after a server is lost?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use super::connections::assert_share_gave_nothing;
use super::limits::start_upload_to;
use super::moves::{assign, wait_for};
use super::rollout::{Fleet, GUARD, OPERATORS, copy_keys, is_delivered, name, new_desk};
use super::signatures::is_replayed;
use super::tokens::{FLEET_KEY, credential_of, endpoint};
use super::{Scenery, instance_with, wait_until_all_live, wait_until_up};
use crate::identity::proofs::sign::Key;
use crate::support::configuration::Config;
use crate::support::control::{exit_code_and_output, get};
use crate::support::eventually;
use crate::support::pki::Pki;
use crate::support::receiver::{Receiver, ok};
use crate::support::scene::{Scene, folder};
use crate::support::store::{self, PASSWORD, Store, StoreForm, StoreServer};

/// Two instances with all features, which have their targets in common.
struct Complete {
    fleet: Fleet,
    key: Key,
    endpoint: Receiver,
    range: &'static str,
}

fn start(form: StoreForm, range: &'static str) -> Complete {
    let (store, desk) = (Store::start(form).with_documented_user(), new_desk());
    let (pki, key) = (Pki::new(), Key::ed25519());
    let endpoint = endpoint(&pki, 3600, Duration::ZERO);
    let (good, plain) = (Receiver::tls(pki.leaf(&["hook.example"]), ok()), Receiver::plain(ok()));
    // Other tests and compilers share the processors, so a round trip may take longer than the default of 5 ms.
    let fleet = format!(
        "{}wait = \"1s\"\ntimeout = \"2s\"\nkey = \"file:{{dir}}/fleet-key\"\n{OPERATORS}\n\
         [clients.billing]\npublic_keys = [\"{{dir}}/billing.pem\"]\n[circuit]\nfailures = 6\n\
         [limits.rate]\nscope = \"fleet\"\nrate = \"1/h\"\nburst = 4\nper = [\"host\"]\n\
         [limits.permits]\nscope = \"fleet\"\nconcurrency = 2\n{}",
        store.settings,
        credential_of(&endpoint)
    );
    let limited = |name: &str, hosts: &str| {
        format!(
            "[[routes]]\nname = \"{name}\"\nhosts = [{hosts}]\nports = [{}]\nplaintext = \"allow\"\nlimits = [\"{name}\"]\n",
            plain.port()
        )
    };
    let routes = limited("rate", "\"rate-1.example\", \"rate-2.example\"") + &limited("permits", "\"permits.example\"");
    let change = |config: &Config| {
        let config = ["rate-1.example", "rate-2.example", "permits.example"]
            .iter()
            .fold(config.and(&routes), |config, host| config.host(host, "127.0.0.1"));
        let config = config.push("admin.listen", "unix:{dir}/admin.sock").remove("guard");
        let config = config.add("server.state", "{dir}/state").add("audit.file", "{dir}/audit.jsonl");
        let config = config.route("signed", "credential = \"acme\"").push("routes.plain.ports", 80);
        config.set("egress.default.ranges", [range])
    };
    let scenes = [0, 1].map(|number| {
        let host = folder(&pki);
        host.write("billing.pem", key.public_pem());
        for (file, secret) in [("password", PASSWORD), ("client", "secret"), ("fleet-key", FLEET_KEY)] {
            let path = host.write(file, secret);
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        copy_keys(&desk, &host);
        let scenery = Scenery { pki: Pki::new(), good: good.clone(), plain: plain.clone() };
        instance_with(name(number), &fleet, &change, host, scenery)
    });
    wait_until_all_live(&[&scenes[0], &scenes[1]]);
    Complete { fleet: Fleet { scenes: scenes.into(), store, desk }, key, endpoint, range }
}

impl Complete {
    fn scenes(&self) -> [&Scene; 2] {
        [&self.fleet.scenes[0], &self.fleet.scenes[1]]
    }

    /// Uses each feature. `round` is 1 or 2.
    fn use_all(&self, round: usize) {
        self.roll_out(round);
        let scenes = self.scenes();
        let [first, second] = scenes;
        let at = |host: &str| format!("http://{host}:{}/in", first.plain.port());

        // Two of the burst on each instance.
        let url = at(&format!("rate-{round}.example"));
        let sends = |scene: &Scene| {
            let response = scene.outgate.post(&url, "", "x");
            assert!(response.status == 200 || response.code() == "rate_limited", "{response:?}");
            response.status == 200
        };
        for scene in [first, second, first, second] {
            eventually("one of the burst is left", || sends(scene));
        }
        assert!(scenes.iter().all(|scene| !sends(scene)), "the burst is used up");

        let url = at("permits.example");
        let mut uploads: Vec<_> = (0..2).filter_map(|_| start_upload_to(first, &url)).collect();
        assert_eq!(uploads.len(), 2);
        assert!(start_upload_to(second, &url).is_none(), "two are in flight");
        uploads.clear();
        eventually("a permit reaches the other instance", || start_upload_to(second, &url).is_some());

        let url = first.plain_url();
        let fields = self.key.sign_request("POST", &url, "hello", &format!(";nonce=\"{round}\""));
        assert_eq!(first.outgate.post(&url, &fields, "hello").status, 200);
        let second_use = second.outgate.post(&url, &fields, "hello");
        assert!(is_replayed(&second_use), "{second_use:?}");

        for scene in scenes {
            assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").status, 200);
            assert_eq!(first.good.requests().last().unwrap().field("authorization"), "Bearer hunter2-1");
        }
        assert_eq!(self.endpoint.requests().len(), 1, "one instance has fetched the token");

        // No receiver has port 80.
        let down = "http://plain.example/in";
        eventually("the circuit is open", || first.outgate.post(down, "", "x").code() == "target_circuit_open");
        let hints = || get(&second.outgate, "/v1/circuits").json()["hints"].clone();
        eventually("the hint reaches the other instance", || hints()[0]["instance"] == name(0));

        assign(first, &[self.range, "--to", name(1)]);
        wait_for(second, name(0), "free", "0");
        wait_for(first, name(1), "active", "4");
        assert_eq!(first.outgate.post(&url, "", "x").code(), "no_egress");
        assign(second, &[self.range, "--release"]);
        wait_for(second, name(0), "active", "4");
        assert!(is_delivered(first) && is_delivered(second));

        scenes.iter().for_each(|scene| assert_share_gave_nothing_new(scene, round));
        for node in &self.fleet.store.nodes {
            assert_eq!(node.cli(&["acl", "log"]).trim(), "", "the documented user may do what outgate does");
        }
    }

    /// The first bundle needs an approval, and the next ones need none.
    fn roll_out(&self, round: usize) {
        let bundle = format!("{GUARD}[timeouts]\nidle = \"9{round}s\"\n");
        let watch = self.fleet.watch(&bundle, &["--canary", "1", "--then", "all", "--pause", "1s"]);
        if round == 1 {
            self.fleet
                .wait_for("the bundle waits for bob", |known| known["rollout"]["outcome"] == "waiting_for_approval");
            assert_eq!(self.fleet.approve(1, "bob").0, 0);
        }
        let (code, out, err) = exit_code_and_output(&watch.wait_with_output().unwrap());
        assert_eq!(code, 0, "{out}{err}");
        assert!(err.contains("wave 1 egress-a; wave 2 egress-b"), "{err}");
        assert!(self.scenes().into_iter().all(is_delivered));
        let reports = self.fleet.known()["rollout"]["instances"].clone();
        assert!([0, 1].iter().all(|number| reports[name(*number)]["stage"] == "kept"), "{reports}");
    }

    /// Waits until the instances have noticed that a server is gone, and have reached the store again.
    fn wait_until_recovered(&self) {
        for scene in self.scenes() {
            scene.outgate.log.wait_for_lines(1, &["the store of the fleet is away"]);
            wait_until_up(scene);
        }
        wait_until_all_live(&self.scenes());
    }

    fn master_of(&self, key: &str) -> usize {
        let nodes = &self.fleet.store.nodes;
        let has =
            |node: &StoreServer| node.cli(&["role"]).starts_with("master") && node.cli(&["exists", key]).trim() == "1";
        nodes.iter().position(has).unwrap()
    }

    /// Moves the slot of a key to another master, key by key as `redis-cli --cluster reshard` does.
    fn move_slot(&self, key: &str) {
        let nodes = &self.fleet.store.nodes;
        let from = &nodes[self.master_of(key)];
        let to = nodes.iter().find(|node| node.port != from.port && node.cli(&["role"]).starts_with("master")).unwrap();
        let [from_id, to_id] = [from, to].map(|node| node.cli(&["cluster", "myid"]).trim().to_owned());
        let slot = from.cli(&["cluster", "keyslot", key]).trim().to_owned();
        let set = |node: &StoreServer, words: &[&str]| {
            let answer = node.cli(&[&["cluster", "setslot", &slot], words].concat());
            assert_eq!(answer.trim(), "OK", "{words:?}");
        };
        set(to, &["importing", &from_id]);
        set(from, &["migrating", &to_id]);
        let port = to.port.to_string();
        eventually("the slot is empty", || {
            let keys = from.cli(&["cluster", "getkeysinslot", &slot, "100"]);
            let keys: Vec<_> = keys.lines().filter(|key| !key.is_empty()).collect();
            let migrate = ["migrate", "127.0.0.1", &port, "", "0", "5000", "keys"];
            if !keys.is_empty() {
                from.cli(&[&migrate[..], &keys].concat());
            }
            keys.is_empty()
        });
        for node in [to, from] {
            set(node, &["node", &to_id]);
        }
        wait_until_all_live(&self.scenes());
        self.scenes().iter().for_each(|scene| wait_until_up(scene));
    }
}

/// While no server is lost, no share decides.
fn assert_share_gave_nothing_new(scene: &Scene, round: usize) {
    if round == 1 {
        assert_share_gave_nothing(scene);
        assert!(
            scene.outgate.has_metric("outgate_fleet_store_errors_total 0"),
            "{}",
            scene.outgate.admin("/metrics").text()
        );
    }
}

#[test]
fn fleet_features_work_as_the_documented_user() {
    if !store::is_installed() {
        return;
    }
    start(StoreForm::Single, "127.0.69.0/30").use_all(1);
}

#[test]
fn fleet_features_work_with_sentinels_before_and_after_a_failover() {
    if !store::is_installed() {
        return;
    }
    let mut complete = start(StoreForm::Sentinels, "127.0.70.0/30");
    complete.use_all(1);
    complete.fleet.store.nodes.remove(0).kill();
    complete.wait_until_recovered();
    complete.use_all(2);
}

#[test]
fn fleet_features_work_with_a_cluster_whose_slots_move_and_whose_masters_fail() {
    if !store::is_installed() {
        return;
    }
    let mut complete = start(StoreForm::Cluster, "127.0.71.0/30");
    complete.use_all(1);
    for name in ["instances", "rollout"] {
        complete.move_slot(&format!("outgate:{{{name}}}"));
    }
    // The master of the announcements, and all that the cluster has on it.
    let master = complete.master_of("outgate:{instances}");
    complete.fleet.store.nodes.remove(master).kill();
    complete.wait_until_recovered();
    complete.use_all(2);
}
