//! Limits with `scope = "fleet"`: rates and concurrency of several instances together, with a store that comes and goes.
//! Does one limit hold for the whole fleet?

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::{instance, restarted, wait_until_all_live, wait_until_stored, wait_until_up};
use crate::support::configuration::{Config, Replace};
use crate::support::scene::Scene;
use crate::support::scrape::Scrape;
use crate::support::store::{self, StoreServer};
use crate::support::{Client, control, eventually};

/// Starts instances whose routes have this limit.
pub(super) fn instances<const N: usize>(server: &StoreServer, limit: &str) -> [Scene; N] {
    let names = std::array::from_fn(|number| format!("egress-{number}"));
    instances_with(server, names, &format!("[limits.l]\nscope = \"fleet\"\n{limit}\n"), &["l"])
}

/// Starts instances with these names whose routes have these limits.
fn instances_with<const N: usize>(
    server: &StoreServer,
    names: [String; N],
    limits: &str,
    of_routes: &[&str],
) -> [Scene; N] {
    let limited =
        |config: &Config| config.and(limits).add("routes.*.limits", of_routes).add("server.state", "{dir}/state");
    let limited = |config: &Config| control::with_admin_socket(&limited(config));
    // Other tests and compilers share the processors, so a round trip may take longer than the default of 5 ms.
    let fleet = format!("store = \"redis://127.0.0.1:{}\"\nwait = \"500ms\"\ntimeout = \"1s\"", server.port);
    let scenes = names.map(|name| instance(&name, &fleet, &limited));
    wait_until_all_live(&scenes.iter().collect::<Vec<_>>());
    scenes
}

fn is_delivered(scene: &Scene) -> bool {
    let response = scene.outgate.post(&scene.plain_url(), "", "x");
    assert!(response.status == 200 || response.code() == "rate_limited", "{response:?}");
    response.status == 200
}

/// Returns how many deliveries the instances admit while each gets as many as it can take.
fn hammer(scenes: &[Scene], time: Duration) -> (u32, Duration) {
    let (delivered, begun) = (AtomicU32::new(0), Instant::now());
    std::thread::scope(|scope| {
        for scene in scenes {
            scope.spawn(|| {
                while begun.elapsed() < time {
                    delivered.fetch_add(u32::from(is_delivered(scene)), Ordering::Relaxed);
                }
            });
        }
    });
    (delivered.into_inner(), begun.elapsed())
}

pub(super) fn calls(scene: &Scene) -> f64 {
    Scrape::of(&scene.outgate).sum("outgate_fleet_store_calls_total", &[])
}

/// Returns the permits that the store counts for all instances.
pub(super) fn leased(server: &StoreServer) -> u32 {
    let script = "local n = 0 for _, key in ipairs(redis.call('keys', '*:permits')) do for _, lease in ipairs(redis.call('hvals', key)) do n = n + string.match(lease, '^%d+') end end return n";
    let printed = server.cli(&["--raw", "eval", script, "0"]);
    printed.trim().parse().unwrap_or_else(|_| panic!("{printed}"))
}

#[test]
fn fleet_rate_holds_for_all_instances_together() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let scenes: [Scene; 2] = instances(&server, "rate = \"40/s\"\nburst = 40");
    let (delivered, time) = hammer(&scenes, Duration::from_secs(4));
    let most = 40.0 * time.as_secs_f64() + 40.0;
    assert!(f64::from(delivered) <= most, "{delivered} in {time:?}");
    // A part of the burst is in the time for which instances may hold tokens.
    assert!(f64::from(delivered) >= 0.8 * most, "{delivered} in {time:?}");
    assert!(server.cli(&["keys", "*"]).lines().any(|key| key.starts_with("outgate:{") && key.ends_with("}:rate")));
}

/// The limit gives ten deliveries and then none for an hour.
#[test]
fn fleet_rate_continues_with_the_share_of_what_was_left_while_the_store_is_away() {
    if !store::is_installed() {
        return;
    }
    let mut server = StoreServer::start();
    let scenes: [Scene; 2] = instances(&server, "rate = \"1/h\"\nburst = 10");
    let [first, second] = &scenes;
    assert!((0..4).all(|_| is_delivered(first)));
    assert!(is_delivered(second), "the second instance learns that five of ten are left");
    // Idle tokens go back, so that all of the burst is counted.
    let counted = || server.cli(&["--raw", "eval", "return #redis.call('keys', '*:rate')", "0"]).trim() == "1";
    eventually("the key is in the store", counted);
    server.kill();
    for scene in &scenes {
        scene.outgate.wait_for_metric("outgate_fleet_store_up{} 0");
    }
    let admitted = |scene: &Scene| (0..12).filter(|_| is_delivered(scene)).count();
    let away = [admitted(first), admitted(second)];
    assert!(away.iter().all(|count| (1..=5).contains(count)), "neither nothing nor everything: {away:?}");
    assert!(away.iter().sum::<usize>() <= 6, "the share of what was left: {away:?}");
    let shares: f64 =
        scenes.iter().map(|scene| Scrape::of(&scene.outgate).sum("outgate_fleet_share_deliveries_total", &[])).sum();
    assert!(shares > 0.0 && shares <= 6.0, "{shares}");
    let limits = control::get(&first.outgate, "/v1/limits").json();
    assert_eq!((&limits["limits"][0]["scope"], &limits["limits"][0]["divided_by"]), (&"fleet".into(), &2.into()));
    let explained = control::run(first, &["explain", "POST", &first.plain_url(), "--running"]);
    let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(
        explained.contains("this instance continues with its share, 1/2, of each limit of the fleet"),
        "{explained}"
    );
    // The store has lost its data. What the shares gave is counted when it returns.
    server.restart_empty();
    scenes.iter().for_each(wait_until_up);
    let after: usize = scenes.iter().map(admitted).sum();
    assert!((1..=10).contains(&after), "the burst of an empty store, less what the shares gave: {after}");
    assert_eq!(scenes.iter().map(admitted).sum::<usize>(), 0);
}

/// The limit gives ten deliveries and then none for an hour. The first instance gets no more deliveries.
#[test]
fn fleet_store_learns_what_the_share_of_a_key_gave_that_is_not_used_again() {
    if !store::is_installed() {
        return;
    }
    let mut server = StoreServer::start();
    let [first, second]: [Scene; 2] = instances(&server, "rate = \"1/h\"\nburst = 10");
    server.kill();
    first.outgate.wait_for_metric("outgate_fleet_store_up{} 0");
    assert!((0..3).all(|_| is_delivered(&first)));
    server.restart_empty();
    eventually("the store knows the key", || server.cli(&["keys", "*:rate"]).contains(":rate"));
    wait_until_up(&second);
    assert_eq!((0..12).filter(|_| is_delivered(&second)).count(), 7);
}

/// The limit gives ten deliveries and then none for an hour, until a reload.
#[test]
fn fleet_rate_that_a_reload_raises_admits_deliveries_at_once() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let [scene]: [Scene; 1] = instances(&server, "rate = \"1/h\"\nburst = 10");
    assert_eq!((0..12).filter(|_| is_delivered(&scene)).count(), 10);
    let file = scene.outgate.folder.path("config.toml");
    let text = std::fs::read_to_string(&file).expect("the configuration");
    let text = text.replace_one("1/h", "1000/s");
    let reloaded = control::reload(&scene, &text);
    assert!(reloaded.contains("1000"), "{reloaded}");
    eventually("the raised rate admits a delivery", || is_delivered(&scene));
}

/// An intruder replaces a key by one of another type, so that the server refuses each call about it. outgate pauses between its
/// attempts.
#[test]
fn fleet_key_of_a_wrong_type_causes_few_calls() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let [scene]: [Scene; 1] = instances(&server, "rate = \"1/h\"\nburst = 10");
    assert!(is_delivered(&scene));
    let replaced = server.cli(&[
        "--raw",
        "eval",
        "local key = redis.call('keys', '*:rate')[1] redis.call('del', key) redis.call('set', key, 'x') return key",
        "0",
    ]);
    assert!(replaced.contains(":rate"), "{replaced}");
    let (mut admitted, before, begun) = (0, calls(&scene), Instant::now());
    while begun.elapsed() < Duration::from_secs(2) {
        admitted += u32::from(is_delivered(&scene));
        std::thread::sleep(Duration::from_millis(50)); // a client that is not in a hurry
    }
    let frequency = (calls(&scene) - before) / begun.elapsed().as_secs_f64();
    assert!(admitted <= 10 && frequency < 40.0, "{admitted} deliveries, {frequency} calls a second");
    scene.outgate.log.wait_for_lines(1, &["a call to the store of the fleet has failed", "WRONGTYPE"]);
}

/// A limit has delayed the delivery for longer than it may wait for the store.
#[test]
fn fleet_rate_asks_the_store_after_another_limit_has_delayed_the_delivery() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let limits = "[limits.slow]\nscope = \"fleet\"\nrate = \"1/s\"\nburst = 1\nwait = \"30s\"\n\
                  [limits.usual]\nscope = \"fleet\"\nrate = \"1000/s\"\nburst = 1\nwait = \"30s\"\n";
    let [scene] = instances_with(&server, ["egress-1".to_owned()], limits, &["slow", "usual"]);
    for _ in 0..3 {
        assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").status, 200);
    }
    assert!(scene.outgate.has_metric("outgate_fleet_share_deliveries_total 0"));
}

/// The limit gives ten deliveries and then none for an hour.
#[test]
fn fleet_rate_continues_with_a_share_after_a_restart_while_the_store_is_away() {
    if !store::is_installed() {
        return;
    }
    let mut server = StoreServer::start();
    let scenes: [Scene; 2] = instances(&server, "rate = \"1/h\"\nburst = 10");
    scenes.iter().for_each(|scene| wait_until_stored(scene, "\"live\":2"));
    server.kill();
    let mut scenes = scenes.map(restarted);
    let admitted = |scene: &Scene| (0..12).filter(|_| is_delivered(scene)).count();
    assert_eq!([admitted(&scenes[0]), admitted(&scenes[1])], [5, 5], "each has its half of the burst");
    let [first, _] = &scenes;
    first.outgate.log.wait_for_lines(1, &["the store of the fleet is away", "its share, 1/2, of each limit"]);

    // A damaged file is reported, and the instance has the whole limit, as at its first start.
    let file = first.outgate.folder.path("state/fleet.json");
    std::fs::write(&file, "{\"prefix\":\"outgate\",\"live\":0").expect("the file can be written");
    scenes = scenes.map(restarted);
    assert_eq!([admitted(&scenes[0]), admitted(&scenes[1])], [10, 5]);
    let [first, second] = &scenes;
    first.outgate.log.wait_for_lines(1, &["cannot read", "state/fleet.json", "takes the whole of each limit"]);
    assert!(!second.outgate.log.all().iter().any(|line| line.contains("cannot read")));
    server.restart_empty();
    wait_until_all_live(&[first, second]);
    wait_until_stored(first, "\"live\":2");
}

/// A stopped server accepts connections and answers nothing. A delivery waits for `fleet.wait`, and not for the timeout.
#[test]
fn fleet_delivery_does_not_wait_for_a_store_that_hangs() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let limited = |config: &Config| {
        let limit = "[limits.l]\nscope = \"fleet\"\nrate = \"100/s\"\nper = [\"host\"]\n";
        config.and(limit).add("routes.*.limits", ["l"])
    };
    let fleet = format!("store = \"redis://127.0.0.1:{}\"\ntimeout = \"10s\"", server.port);
    let scene = instance("egress-1", &fleet, &limited);
    wait_until_up(&scene);
    server.signal("STOP");
    let begun = Instant::now();
    assert!(is_delivered(&scene));
    // The wait is 5 ms and the timeout 10 s: the rest is left for a busy machine.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    server.signal("CONT");
    wait_until_up(&scene);
}

/// Starts a delivery that is in flight until its client sends the body. `None`: it is refused.
pub(super) fn start_upload(scene: &Scene) -> Option<Client> {
    start_upload_to(scene, &scene.plain_url())
}

/// Starts deliveries that are in flight until their clients send the bodies.
pub(super) fn start_uploads(scene: &Scene, count: usize) -> Vec<Client> {
    let uploads: Vec<Client> = (0..count).filter_map(|_| start_upload(scene)).collect();
    assert_eq!(uploads.len(), count);
    uploads
}

pub(super) fn start_upload_to(scene: &Scene, url: &str) -> Option<Client> {
    let started = scene.outgate.try_start_upload(url, "", 5);
    started.map_err(|refusal| assert_eq!(refusal.code(), "concurrency_limited", "{refusal:?}")).ok()
}

#[test]
fn fleet_concurrency_holds_for_all_instances_and_returns_from_one_that_was_killed() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let [first, second]: [Scene; 2] = instances(&server, "concurrency = 4");
    let mut uploads = start_uploads(&first, 3);
    let last = start_upload(&second).expect("one of four is left");
    for scene in [&first, &second] {
        assert!(start_upload(scene).is_none(), "four are in flight");
    }
    // A delivery that ends leaves its permit to the whole fleet.
    let mut ended = uploads.pop().expect("three uploads");
    ended.send("12345");
    assert_eq!(ended.next_response("POST").status, 200);
    let mut taken = None;
    eventually("the permit reaches the other instance", || {
        taken = start_upload(&second);
        taken.is_some()
    });
    assert!(start_upload(&first).is_none());
    // The leases of an instance that dies end after five seconds.
    first.outgate.signal("KILL");
    let mut more = Vec::new();
    eventually("the permits of the killed instance return", || {
        more.extend(start_upload(&second));
        more.len() == 2
    });
    assert!(start_upload(&second).is_none());
    drop(last);
}

/// A delivery waits for the store for half a second here. The store answers at once that there is no permit, and is not late.
#[test]
fn fleet_concurrency_holds_for_deliveries_that_wait_longer_than_the_store_needs() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let [first, second]: [Scene; 2] = instances(&server, "concurrency = 2");
    let _in_flight = start_uploads(&first, 2);
    std::thread::scope(|scope| {
        for number in 0..16 {
            let second = &second;
            scope.spawn(move || {
                // The ends of the waits are at different times: a wait may end while the store is asked again.
                std::thread::sleep(Duration::from_millis(3 * number));
                assert!((0..4).all(|_| start_upload(second).is_none()), "two are in flight");
            });
        }
    });
    assert!(second.outgate.has_metric("outgate_fleet_share_deliveries_total 0"));
}

/// An instance that has just started asks the store about its first delivery.
#[test]
fn fleet_concurrency_holds_for_the_first_deliveries_of_an_instance() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let [first]: [Scene; 1] = instances(&server, "concurrency = 4");
    let _in_flight = start_uploads(&first, 4);
    let limit = "[limits.l]\nscope = \"fleet\"\nconcurrency = 4\n";
    let limited = |config: &Config| config.and(limit).add("routes.*.limits", ["l"]);
    let fleet = format!("store = \"redis://127.0.0.1:{}\"\nwait = \"500ms\"", server.port);
    let next = instance("egress-9", &fleet, &limited);
    assert!((0..4).all(|_| start_upload(&next).is_none()), "four are in flight");
}

/// During an upgrade, the next process of an instance serves beside the former one.
#[test]
fn fleet_concurrency_holds_for_two_processes_with_the_name_of_one_instance() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let names = ["egress-1", "egress-1"].map(str::to_owned);
    let limits = "[limits.l]\nscope = \"fleet\"\nconcurrency = 4\n";
    let [former, next]: [Scene; 2] = instances_with(&server, names, limits, &["l"]);
    let _in_flight = start_uploads(&former, 4);
    assert!((0..8).all(|_| start_upload(&next).is_none()), "four are in flight");
}

/// The first instance has more deliveries that wait than the limit allows. Each of its permits could go to one of them.
#[test]
fn fleet_concurrency_is_shared_by_instances_that_want_all_of_it() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let [first, second]: [Scene; 2] = instances(&server, "concurrency = 4\nwait = \"60s\"");
    let (sender, started) = std::sync::mpsc::channel::<(&str, Client)>();
    let upload = |name: &'static str, scene: &Scene| {
        let client = start_upload(scene).expect("a permit within a minute");
        sender.send((name, client)).expect("the test reads it");
    };
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| upload("first", &first));
        }
        let next = || started.recv().expect("a delivery starts");
        let mut in_flight: Vec<Client> = (0..4).map(|_| next().1).collect();
        scope.spawn(|| upload("second", &second));
        eventually("the store knows that the second wants a permit", || {
            let rows = server.cli(&["--raw", "eval", "local n = 0 for _, key in ipairs(redis.call('keys', '*:permits')) do n = n + redis.call('hlen', key) end return n", "0"]);
            rows.trim() == "2"
        });
        // The first asks for more permits every 50 ms. Other calls are those of a second.
        let before = calls(&first);
        eventually("the first has asked again", || calls(&first) >= before + 12.0);
        let end = |mut upload: Client| {
            upload.send("12345");
            assert_eq!(upload.next_response("POST").status, 200);
        };
        end(in_flight.remove(0));
        let (name, upload) = next();
        assert_eq!(name, "second", "the first has three of four in flight, and the second one");
        end(upload);
        in_flight.into_iter().for_each(end);
        // The second wants no more: the first has all again.
        (0..8).for_each(|_| end(next().1));
    });
}

#[test]
fn fleet_concurrency_continues_with_a_share_while_the_store_is_away() {
    if !store::is_installed() {
        return;
    }
    let mut server = StoreServer::start();
    let scenes: [Scene; 2] = instances(&server, "concurrency = 4");
    server.kill();
    for scene in &scenes {
        scene.outgate.wait_for_metric("outgate_fleet_store_up{} 0");
    }
    let uploads: Vec<Vec<Client>> =
        scenes.iter().map(|scene| (0..4).filter_map(|_| start_upload(scene)).collect()).collect();
    assert_eq!(uploads.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2]);
    let shares = |scene: &Scene| Scrape::of(&scene.outgate).sum("outgate_fleet_share_deliveries_total", &[]);
    assert_eq!([shares(&scenes[0]), shares(&scenes[1])], [2.0, 2.0]);
    server.restart_empty();
    scenes.iter().for_each(wait_until_up);
    // The deliveries in flight count in the empty store, too.
    eventually("the store knows the deliveries in flight", || leased(&server) == 4);
    assert!(scenes.iter().all(|scene| start_upload(scene).is_none()));
}

#[test]
fn fleet_metric_counts_a_permit_of_the_share_that_a_delivery_has_waited_for() {
    if !store::is_installed() {
        return;
    }
    let mut server = StoreServer::start();
    let [first, _second]: [Scene; 2] = instances(&server, "concurrency = 4\nwait = \"60s\"");
    // The report of limits has the keys of recent deliveries.
    assert!(is_delivered(&first));
    server.kill();
    first.outgate.wait_for_metric("outgate_fleet_store_up{} 0");
    let mut uploads = start_uploads(&first, 2);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| start_upload(&first));
        eventually("one waits", || control::get(&first.outgate, "/v1/limits").text().contains("\"waiting\":1"));
        let mut ended = uploads.remove(0);
        ended.send("12345");
        assert_eq!(ended.next_response("POST").status, 200);
        assert!(waits.join().expect("no panic").is_some());
    });
    assert!(first.outgate.has_metric("outgate_fleet_share_deliveries_total 3"));
}

/// A burst of deliveries takes tokens ahead; the rest goes back.
#[test]
fn fleet_rate_costs_few_calls_for_a_busy_key_and_returns_the_tokens_of_an_idle_one() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let scenes: [Scene; 1] = instances(&server, "rate = \"1000/s\"\nburst = 1000");
    let before = calls(&scenes[0]);
    let mut client = scenes[0].outgate.connect();
    // The burst has as many that no instance must hold back, so that a fast machine is not refused.
    let delivered = 600;
    for number in 0..delivered {
        client.send(crate::support::post(&scenes[0].plain_url(), "", "x"));
        assert_eq!(client.next_response("POST").status, 200, "delivery {number}");
    }
    // Announcements are calls, too: one a second.
    let cost = (calls(&scenes[0]) - before) / f64::from(delivered);
    eprintln!("{delivered} deliveries, {cost:.3} calls each");
    assert!(cost < 0.3, "{delivered} deliveries cost {cost} calls each");
    let arrival_is_past = "local key = redis.call('keys', '*:rate')[1] if not key then return 1 end local time = redis.call('TIME') return (redis.call('HGET', key, 'arrival') - time[1] * 1000000 - time[2] <= 0) and 1 or 0";
    eventually("the tokens are back", || server.cli(&["--raw", "eval", arrival_is_past, "0"]).trim() == "1");
}
