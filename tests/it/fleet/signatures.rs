//! Signatures of clients in a fleet: accepted once by all instances together, with a store that comes and goes.
//! Is a signature single-use in the whole fleet?

use std::sync::atomic::{AtomicU32, Ordering};

use super::{Scenery, instance_with, wait_until_all_live, wait_until_up};
use crate::identity::proofs::sign::{Key, now};
use crate::support::configuration::Config;
use crate::support::pki::Pki;
use crate::support::receiver::{Receiver, ok};
use crate::support::scene::{Scene, folder};
use crate::support::store::{self, StoreServer};
use crate::support::{Response, eventually};

/// Starts two instances with the same authorities and receivers' names, whose client signs with this key.
fn instances(server: &StoreServer, key: &Key, replay: &str) -> [Scene; 2] {
    instances_of(&format!("redis://127.0.0.1:{}", server.port), key, replay)
}

fn instances_of(store: &str, key: &Key, replay: &str) -> [Scene; 2] {
    let client = |config: &Config| {
        let billing = "[clients.billing]\npublic_keys = [\"{dir}/billing.pem\"]\n";
        config.and(billing).remove("server.allow_anonymous")
    };
    // Other tests and compilers share the processors, so a round trip may take longer than the default of 5 ms.
    let fleet = format!("store = \"{store}\"\nwait = \"1s\"\ntimeout = \"2s\"\n{replay}");
    let scenes = ["egress-1", "egress-2"].map(|name| {
        let scenery = Scenery { pki: Pki::new(), good: Receiver::plain(ok()), plain: Receiver::plain(ok()) };
        let folder = folder(&scenery.pki);
        folder.write("billing.pem", key.public_pem());
        instance_with(name, &fleet, &client, folder, scenery)
    });
    wait_until_all_live(&[&scenes[0], &scenes[1]]);
    scenes
}

pub(super) fn is_replayed(response: &Response) -> bool {
    response.code() == "client_unauthenticated" && response.text().contains("it was used before")
}

fn post_to(scene: &Scene, url: &str, fields: &str) -> Response {
    scene.outgate.post(url, fields, "hello")
}

fn wait_until_away(scenes: &[Scene]) {
    for scene in scenes {
        scene.outgate.wait_for_metric("outgate_fleet_store_up{} 0");
    }
}

/// A URL that both instances route. No receiver has its port 80, so a request fails after its signature is claimed.
const COMMON_URL: &str = "http://plain.example/in";

#[test]
fn fleet_accepts_a_signature_once_of_all_instances() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let key = Key::ed25519();
    let scenes = instances(&server, &key, "");
    for number in 0..5 {
        let fields = key.sign_request("POST", COMMON_URL, "hello", &format!(";nonce=\"{number}\""));
        let accepted = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for scene in scenes.iter().chain(&scenes) {
                let (fields, accepted) = (&fields, &accepted);
                scope.spawn(move || {
                    let response = post_to(scene, COMMON_URL, fields);
                    accepted.fetch_add(u32::from(!is_replayed(&response)), Ordering::Relaxed);
                });
            }
        });
        assert_eq!(accepted.into_inner(), 1);
    }
    // A delivery of a receiver's own instance shows that the accepted one goes through.
    let url = scenes[0].plain_url();
    let fields = key.sign_request("POST", &url, "hello", "");
    assert_eq!(post_to(&scenes[0], &url, &fields).status, 200);
    assert!(is_replayed(&post_to(&scenes[0], &url, &fields)));
    let used = server.cli(&["--raw", "eval", "return #redis.call('keys', 'outgate:{*}:used')", "0"]);
    assert_eq!(used.trim(), "6");
    let key_of_one = server.cli(&["--raw", "eval", "return redis.call('keys', 'outgate:{*}:used')[1]", "0"]);
    let lifetime: i64 = server.cli(&["--raw", "ttl", key_of_one.trim()]).trim().parse().unwrap_or_default();
    assert!((300..=420).contains(&lifetime), "until no instance accepts it: {lifetime} s");
}

/// The client library repeats a call of a cluster if the connection ends before the answer.
#[test]
fn fleet_accepts_a_fresh_signature_whose_claim_a_cluster_gets_twice() {
    if !store::is_installed() {
        return;
    }
    let (_node, tap) = store::cluster_behind_relay();
    let key = Key::ed25519();
    let scenes = instances_of(&format!("redis-cluster://{}", tap.address), &key, "");
    let accept = |number: u32| {
        let fields = key.sign_request("POST", COMMON_URL, "hello", &format!(";nonce=\"{number}\""));
        let response = post_to(&scenes[0], COMMON_URL, &fields);
        assert!(!is_replayed(&response) && response.code() != "internal", "{number}: {response:?}");
        let replayed = post_to(&scenes[1], COMMON_URL, &fields);
        assert!(is_replayed(&replayed), "{number}: {replayed:?}");
    };
    // Otherwise, the answer that is lost could be that the server does not have the script.
    accept(0);
    let before = tap.traffic().len();
    tap.close_in_place_of_answers("}:used\r\n", 1);
    accept(1);
    assert!(tap.traffic().len() > before, "an answer was lost");
}

#[test]
fn fleet_accepts_a_twilio_token_once_of_all_instances() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let key = Key::rsa();
    let scenes = instances(&server, &key, "");
    let token = key.twilio_token("billing", "/in", "", "plain.example", "hello", now() + 200);
    let send = |scene: &Scene| {
        let mut client = scene.outgate.connect();
        let fields = format!("Authorization: Basic eDp5\r\nTwilio-Client-Validation: {token}\r\n");
        client.send(format!(
            "POST {COMMON_URL} HTTP/1.1\r\nHost: plain.example\r\n{fields}Content-Length: 5\r\n\r\nhello"
        ));
        client.response()
    };
    let responses = [send(&scenes[0]), send(&scenes[1])];
    assert!(responses[0].code() != "client_unauthenticated", "{:?}", responses[0]);
    assert!(is_replayed(&responses[1]), "{:?}", responses[1]);
}

#[test]
fn fleet_refuses_signatures_while_the_store_is_away_unless_each_instance_may_accept_one() {
    if !store::is_installed() {
        return;
    }
    let key = Key::ed25519();
    for (replay, is_local) in [("", false), ("replay = \"fleet-or-local\"", true)] {
        let mut server = StoreServer::start();
        let scenes = instances(&server, &key, replay);
        server.kill();
        wait_until_away(&scenes);
        let url = scenes[0].plain_url();
        let fields = key.sign_request("POST", &url, "hello", "");
        let response = post_to(&scenes[0], &url, &fields);
        if is_local {
            assert_eq!(response.status, 200, "{response:?}");
            assert!(is_replayed(&post_to(&scenes[0], &url, &fields)), "the instance remembers it");
            assert!(scenes[0].outgate.has_metric("outgate_fleet_local_signatures_total 1"));
        } else {
            assert_eq!((response.status, response.code()), (500, "internal"), "{response:?}");
            assert_eq!(response.json()["details"], "fleet_store_away");
            assert_eq!(response.field("retry-after"), "1");
            assert!(scenes[0].plain.requests().is_empty());
        }
        server.restart_empty();
        scenes.iter().for_each(wait_until_up);
        let mut number = 0;
        eventually("signatures are accepted again", || {
            number += 1;
            let fields = key.sign_request("POST", &url, "hello", &format!(";nonce=\"{number}\""));
            post_to(&scenes[0], &url, &fields).status == 200
        });
    }
}
