//! OAuth 2.0 tokens of credentials in a fleet: fetched once, stored sealed, and fetched by each instance if the store fails.
//! Does the target get a token, and the endpoint one request?

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::{Scenery, instance_with, wait_until_all_live};
use crate::support::configuration::{Config, Replace};
use crate::support::pki::Pki;
use crate::support::receiver::{Reaction, Receiver, ok};
use crate::support::scene::{Scene, folder};
use crate::support::store::{self, StoreServer};
use crate::support::{Response, eventually};

pub(super) const FLEET_KEY: &str = "6b6a7c1d0f2e4a5b8c9d0e1f2a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d";

/// A store and a token endpoint, which grants hunter2-1, hunter2-2 and so on.
struct Fleet {
    pki: Pki,
    server: StoreServer,
    endpoint: Receiver,
}

fn fleet(lifetime: u32, delay: Duration) -> Fleet {
    let pki = Pki::new();
    let endpoint = endpoint(&pki, lifetime, delay);
    Fleet { pki, server: StoreServer::start(), endpoint }
}

/// Starts a token endpoint, which grants hunter2-1, hunter2-2 and so on.
pub(super) fn endpoint(pki: &Pki, lifetime: u32, delay: Duration) -> Receiver {
    let count = AtomicUsize::new(0);
    let grant: Reaction = Arc::new(move |_| {
        std::thread::sleep(delay); // the endpoint takes this time, in which other instances ask for the token
        let number = 1 + count.fetch_add(1, Ordering::SeqCst);
        let body = format!(r#"{{"access_token":"hunter2-{number}","token_type":"Bearer","expires_in":{lifetime}}}"#);
        (format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes(), true)
    });
    Receiver::tls(pki.leaf(&["other.example"]), grant)
}

/// Returns the section of a credential with a token of this endpoint.
pub(super) fn credential_of(endpoint: &Receiver) -> String {
    format!(
        "[credentials.acme]\ntype = \"oauth2\"\ntoken_url = \"https://other.example:{}/token\"\nclient_id = \"platform\"\n\
         client_secret = \"file:{{dir}}/client\"\n",
        endpoint.port()
    )
}

impl Fleet {
    fn instance(&self, name: &str, target: Reaction) -> Scene {
        self.instance_of(name, target, FLEET_KEY, "")
    }

    fn instance_of(&self, name: &str, target: Reaction, fleet_key: &str, credential: &str) -> Scene {
        let good = Receiver::tls(self.pki.leaf(&["hook.example"]), target);
        let scenery = Scenery { pki: Pki::new(), good, plain: Receiver::plain(ok()) };
        let folder = folder(&self.pki);
        for (name, text) in [("client", "secret"), ("fleet-key", fleet_key)] {
            let path = folder.write(name, text);
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("a new file");
        }
        let credential = credential_of(&self.endpoint) + credential + "\n";
        let change = |config: &Config| config.and(&credential).route("signed", "credential = \"acme\"");
        // Other tests and compilers share the processors, so a round trip may take longer than the default of 5 ms.
        let port = self.server.port;
        let fleet = format!(
            "store = \"redis://127.0.0.1:{port}\"\nwait = \"1s\"\ntimeout = \"1s\"\nkey = \"file:{{dir}}/fleet-key\""
        );
        instance_with(name, &fleet, &change, folder, scenery)
    }

    fn instances<const N: usize>(&self) -> [Scene; N] {
        let scenes = std::array::from_fn(|number| self.instance(&format!("egress-{number}"), ok()));
        wait_until_all_live(&scenes.iter().collect::<Vec<_>>());
        scenes
    }

    fn fetches(&self) -> usize {
        self.endpoint.requests().len()
    }

    /// Returns the key of the only token in the store.
    fn token_key(&self) -> String {
        let keys = self.server.cli(&["keys", "*:token"]);
        let [key] = keys.lines().collect::<Vec<_>>()[..] else { panic!("{keys}") };
        key.to_owned()
    }
}

fn post(scene: &Scene) -> Response {
    scene.outgate.post(&scene.good_url(), "", "{}")
}

/// Posts a webhook, and returns the token that the target received.
fn token(scene: &Scene) -> String {
    let response = post(scene);
    assert_eq!(response.status, 200, "{}", response.text());
    tokens(scene).pop().expect("a request")
}

fn tokens(scene: &Scene) -> Vec<String> {
    let requests = scene.good.requests();
    requests
        .iter()
        .map(|request| request.field("authorization").trim_start_matches("Bearer hunter2-").to_owned())
        .collect()
}

#[test]
fn fleet_fetches_a_token_once_and_the_store_has_it_sealed() {
    if !store::is_installed() {
        return;
    }
    let fleet = fleet(3600, Duration::from_millis(300));
    let scenes = fleet.instances::<4>();
    std::thread::scope(|scope| {
        let found: Vec<_> = scenes.iter().map(|scene| scope.spawn(|| token(scene))).collect();
        assert!(found.into_iter().all(|found| found.join().unwrap() == "1"));
    });
    assert_eq!(fleet.fetches(), 1);
    let metric = |result: &str| format!("outgate_token_requests_total{{credential=\"acme\",result=\"{result}\"}} 1");
    let count = |result: &str| scenes.iter().filter(|scene| scene.outgate.has_metric(&metric(result))).count();
    assert_eq!((count("granted"), count("shared")), (1, 3));

    // The token ends in the store before the minute in which outgate would not send it.
    let key = fleet.token_key();
    let left: u64 = fleet.server.cli(&["pttl", &key]).trim().parse().unwrap();
    assert!((3_400_000..=3_540_000).contains(&left), "{left}");
    let name = key.trim_start_matches("outgate:{").trim_end_matches("}:token");
    assert!(name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit()), "{key}");
    let stored = fleet.server.cli(&["get", &key]);
    assert!(stored.len() > 50, "{stored}");
    for secret in ["hunter2", "Bearer", "acme", "other.example"] {
        assert!(!stored.contains(secret) && !key.contains(secret), "{secret}");
    }
}

#[test]
fn fleet_refreshes_a_token_once() {
    if !store::is_installed() {
        return;
    }
    // A token is refreshed after three seconds, and used for four and a half.
    let fleet = fleet(6, Duration::from_millis(300));
    let scenes = fleet.instances::<3>();
    eventually("all instances have the fourth token", || {
        // At the same time, so that a refresh is due on several instances.
        std::thread::scope(|scope| {
            let found: Vec<_> = scenes.iter().map(|scene| scope.spawn(|| token(scene))).collect();
            found.into_iter().all(|found| found.join().is_ok_and(|token| token == "4"))
        })
    });
    let seen: Vec<BTreeSet<String>> = scenes.iter().map(|scene| tokens(scene).into_iter().collect()).collect();
    assert_eq!(fleet.fetches(), 4, "{seen:?}");
}

#[test]
fn fleet_token_that_a_target_refused_is_not_taken_from_the_store_again() {
    if !store::is_installed() {
        return;
    }
    let fleet = fleet(3600, Duration::ZERO);
    let first_is_refused: Reaction = Arc::new(|request| {
        let refused = request.field("authorization") == "Bearer hunter2-1" && request.line.contains("/in");
        let status =
            if refused { "401 Unauthorized\r\nWWW-Authenticate: Bearer error=\"invalid_token\"" } else { "200 OK" };
        (format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").into_bytes(), true)
    });
    let [first, second] = ["egress-1", "egress-2"].map(|name| fleet.instance(name, first_is_refused.clone()));
    wait_until_all_live(&[&first, &second]);
    for scene in [&first, &second] {
        assert_eq!(post(scene).status, 401);
    }
    assert_eq!((fleet.fetches(), tokens(&second)), (1, vec!["1".to_owned()]));
    assert!(!fleet.token_key().is_empty(), "the store still has the refused token");
    assert_eq!((token(&first), fleet.fetches()), ("2".to_owned(), 2));
    assert_eq!((token(&second), fleet.fetches()), ("2".to_owned(), 2), "the other instance takes the new token");
}

#[test]
fn fleet_token_that_is_damaged_or_of_another_credential_is_fetched_again() {
    if !store::is_installed() {
        return;
    }
    let fleet = fleet(3600, Duration::ZERO);
    let scenes = fleet.instances::<4>();
    assert_eq!(token(&scenes[0]), "1");
    let key = fleet.token_key();
    assert_eq!(fleet.server.cli(&["set", &key, "garbage"]).trim(), "OK");
    assert_eq!(token(&scenes[1]), "2");

    let other_credential = fleet.instance_of("egress-4", ok(), FLEET_KEY, "scopes = [\"write\"]");
    let other_key = fleet.instance_of("egress-5", ok(), &FLEET_KEY.chars().rev().collect::<String>(), "");
    wait_until_all_live(&[&scenes[0], &scenes[1], &scenes[2], &scenes[3], &other_credential, &other_key]);
    for (scene, own, taken) in [(&other_credential, "3", "4"), (&other_key, "5", "6")] {
        let before = fleet.server.cli(&["keys", "*:token"]);
        assert_eq!(token(scene), own, "it has its own token");
        let keys = fleet.server.cli(&["keys", "*:token"]);
        let other = keys.lines().find(|key| !before.contains(key)).unwrap();
        assert_eq!(fleet.server.cli(&["copy", other, &key, "replace"]).trim(), "1");
        let reader = if own == "3" { &scenes[2] } else { &scenes[3] };
        assert_eq!(token(reader), taken, "the instance does not take the token of the other");
    }
}

#[test]
fn fleet_token_is_fetched_by_each_instance_while_the_store_or_another_instance_fails() {
    if !store::is_installed() {
        return;
    }
    let mut fleet = fleet(3600, Duration::ZERO);
    let scenes = fleet.instances::<5>();
    assert_eq!(token(&scenes[0]), "1");
    let key = fleet.token_key();

    // An instance that was killed has left its lease, and no token.
    assert_eq!(fleet.server.cli(&["del", &key]).trim(), "1");
    let lease = key.replace_one(":token", ":fetch");
    assert_eq!(fleet.server.cli(&["set", &lease, "egress-9", "px", "600000"]).trim(), "OK");
    assert_eq!(token(&scenes[1]), "2");

    // A key of another type is an error of the server.
    assert_eq!(fleet.server.cli(&["del", &key]).trim(), "1");
    assert_eq!(fleet.server.cli(&["hset", &key, "a", "b"]).trim(), "1");
    assert_eq!(token(&scenes[2]), "3");

    fleet.server.signal("STOP");
    assert_eq!(token(&scenes[3]), "4");
    fleet.server.signal("CONT");
    fleet.server.kill();
    scenes[4].outgate.wait_for_metric("outgate_fleet_store_up{} 0");
    assert_eq!(token(&scenes[4]), "5");
}

#[test]
fn fleet_key_that_is_too_short_is_a_problem() {
    let folder = crate::support::Folder::new();
    let path = folder.write("key", "hunter2");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let text = "[fleet]\nstore = \"rediss://valkey.internal\"\nkey = \"file:{dir}/key\"\n";
    let config = folder.write_config("config.toml", text);
    let check = std::process::Command::new(env!("CARGO_BIN_EXE_outgate"))
        .args(["check", "--config"])
        .arg(config)
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&check.stdout).into_owned() + &String::from_utf8_lossy(&check.stderr);
    assert!(
        printed.contains("`fleet.key` has 7 bytes and can be guessed") && !printed.contains("hunter2"),
        "{printed}"
    );
}
