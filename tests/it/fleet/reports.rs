//! Calls to the store whose answers are lost or late: they count once, and few of them are on their way at once.
//! What does the store count when an instance tells it the same again, or when all keys have something to tell?

use super::{instance, wait_until_up};
use crate::support::configuration::{Config, token_hash};
use crate::support::scene::Scene;
use crate::support::store::{self, StoreServer};
use crate::support::wiretap::Wiretap;
use crate::support::{Response, eventually};

/// The end of the name of a rate in a call to the store.
const RATE: &str = "}:rate\r\n";

/// Starts an instance that reaches the store through the relay, with a limit of each tenant.
fn instance_through(tap: &Wiretap, limit: &str, timeouts: &str) -> Scene {
    let limit = format!("[limits.l]\nscope = \"fleet\"\nper = [\"tenant\"]\n{limit}\n");
    let client = format!("[clients.billing]\ntokens = [\"{}\"]\ntenants = [\"*\"]\n", token_hash("t0ken"));
    let limited = |config: &Config| {
        config.and(&limit).and(&client).add("routes.*.limits", ["l"]).remove("server.allow_anonymous")
    };
    let scene = instance("egress-1", &format!("store = \"redis://{}\"\n{timeouts}", tap.address), &limited);
    wait_until_up(&scene);
    scene
}

fn send(scene: &Scene, tenant: &str) -> Response {
    let fields = format!("Proxy-Authorization: Bearer t0ken\r\nOutgate-Tenant: {tenant}\r\n");
    scene.outgate.post(&scene.plain_url(), &fields, "x")
}

/// Returns the number of calls about a rate that the instance has sent.
fn calls_sent(tap: &Wiretap) -> usize {
    let count = |sent: &[u8]| sent.windows(RATE.len()).filter(|window| *window == RATE.as_bytes()).count();
    tap.traffic().iter().map(|one| count(&one.sent)).sum()
}

/// The limit gives a token an hour.
#[test]
fn fleet_store_counts_tokens_of_the_share_once_if_its_answer_is_lost() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let tap = server.wiretap();
    let scene = instance_through(&tap, "rate = \"1/h\"\nburst = 10", "wait = \"500ms\"\ntimeout = \"1s\"");
    // Otherwise, the answer that is lost could be that the server does not have the script.
    assert_eq!(send(&scene, "another").status, 200);
    let before = calls_sent(&tap);
    // The store grants a token that the instance does not get, and then learns of the token of the share.
    tap.close_in_place_of_answers(RATE, 2);
    assert_eq!(send(&scene, "acme").status, 200);
    assert!(scene.outgate.has_metric("outgate_fleet_share_deliveries_total 1"));
    eventually("the instance tells the store again", || calls_sent(&tap) >= before + 3);
    wait_until_up(&scene);
    // This token is the store's, which answers the calls of one key in order.
    assert_eq!(send(&scene, "acme").status, 200);
    assert!(scene.outgate.has_metric("outgate_fleet_share_deliveries_total 1"));
    let hours = "local last, time = 0, redis.call('TIME') for _, key in ipairs(redis.call('keys', '*:rate')) do \
                 last = math.max(last, redis.call('HGET', key, 'arrival') - time[1] * 1000000) end \
                 return math.floor(last / 3600000000 + 0.5)";
    assert_eq!(server.cli(&["--raw", "eval", hours, "0"]).trim(), "3", "a token that was lost, and two that were used");
}

/// Calls for which no delivery waits take turns, of which there are 64. A delivery of another key does not wait behind them.
#[test]
fn fleet_store_that_returns_learns_of_many_keys_one_after_another() {
    if !store::is_installed() {
        return;
    }
    let mut server = StoreServer::start();
    let tap = server.wiretap();
    let scene = instance_through(&tap, "rate = \"1/h\"\nburst = 2", "timeout = \"10s\"");
    server.kill();
    scene.outgate.wait_for_metric("outgate_fleet_store_up{} 0");
    for number in 0..200 {
        assert_eq!(send(&scene, &format!("tenant-{number}")).status, 200);
    }
    tap.hold_answers(RATE);
    server.restart_empty();
    eventually("the instance tells the store of its keys", || calls_sent(&tap) >= 64);
    assert_eq!(send(&scene, "another").status, 200);
    eventually("the instance asks for the delivery", || calls_sent(&tap) >= 65);
    assert_eq!(calls_sent(&tap), 65, "the calls before it have no answer yet");
}

/// The store does not answer the first delivery. When its wait ends, it takes a permit of the share, and so do those beside it.
#[test]
fn fleet_metric_counts_permits_of_the_share_that_deliveries_get_together() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let tap = server.wiretap();
    let scene = instance_through(&tap, "concurrency = 4", "wait = \"1s\"\ntimeout = \"10s\"");
    tap.hold_answers("}:permits\r\n");
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| assert_eq!(send(&scene, "acme").status, 200));
        }
    });
    assert!(scene.outgate.has_metric("outgate_fleet_store_up{} 1"));
    assert!(scene.outgate.has_metric("outgate_fleet_share_deliveries_total 3"));
}
