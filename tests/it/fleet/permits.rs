//! The permits of a concurrency that a fleet shares, while instances want more than there are, and after a store lost its data.
//! Does each busy instance get its part, and never more than there is?

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::limits::{calls, instances, leased, start_upload, start_uploads};
use super::wait_until_up;
use crate::support::scene::Scene;
use crate::support::store::{self, StoreServer};
use crate::support::{Client, eventually};

/// Returns how many deliveries each instance admits while `clients` of each send one after another.
fn hammer(server: &StoreServer, scenes: &[Scene], clients: usize, max: u32) -> Vec<u32> {
    let (begun, is_over) = (Instant::now(), AtomicBool::new(false));
    let before: Vec<f64> = scenes.iter().map(calls).collect();
    let deliver = |scene: &Scene| {
        let mut delivered = 0;
        while !is_over.load(Ordering::Relaxed) {
            let response = scene.outgate.post(&scene.plain_url(), "", "x");
            assert!(response.status == 200 || response.code() == "concurrency_limited", "{response:?}");
            delivered += u32::from(response.status == 200);
        }
        delivered
    };
    let deliver = &deliver;
    let delivered: Vec<u32> = std::thread::scope(|scope| {
        let threads: Vec<Vec<_>> =
            scenes.iter().map(|scene| (0..clients).map(|_| scope.spawn(move || deliver(scene))).collect()).collect();
        // The subject is what each instance gets in this time, which has several terms of each.
        while begun.elapsed() < Duration::from_secs(5) {
            let leased = leased(server);
            assert!(leased <= max, "{leased} permits of {max}");
            std::thread::sleep(Duration::from_millis(20)); // between two looks at the store
        }
        is_over.store(true, Ordering::Relaxed);
        let sum = |threads: Vec<std::thread::ScopedJoinHandle<'_, u32>>| {
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        };
        threads.into_iter().map(sum).collect()
    });
    let seconds = begun.elapsed().as_secs_f64();
    let calls: Vec<f64> = scenes.iter().zip(before).map(|(scene, before)| (calls(scene) - before) / seconds).collect();
    eprintln!("{delivered:?} deliveries, {calls:.1?} calls a second");
    delivered
}

/// The parts are equal in time. Beside other programs, the instances do not get equal parts of the processors.
fn assert_each_has_a_part(delivered: &[u32]) {
    let fair = delivered.iter().sum::<u32>() / u32::try_from(delivered.len()).expect("few");
    assert!(delivered.iter().all(|count| *count > 0 && count * 4 >= fair), "{delivered:?}");
}

#[test]
fn fleet_concurrency_of_one_goes_round_between_busy_instances() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let scenes: [Scene; 2] = instances(&server, "concurrency = 1\nwait = \"60s\"");
    assert_each_has_a_part(&hammer(&server, &scenes, 3, 1));
}

#[test]
fn fleet_concurrency_goes_round_between_more_instances_than_permits() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let scenes: [Scene; 5] = instances(&server, "concurrency = 3\nwait = \"60s\"");
    assert_each_has_a_part(&hammer(&server, &scenes, 2, 3));
}

/// The share of each instance is two of four.
#[test]
fn fleet_concurrency_holds_after_the_store_was_restarted_empty() {
    if !store::is_installed() {
        return;
    }
    let mut server = StoreServer::start();
    let scenes: [Scene; 2] = instances(&server, "concurrency = 4");
    let [first, second] = &scenes;
    let _in_flight = start_uploads(first, 2);
    server.kill();
    for scene in &scenes {
        scene.outgate.wait_for_metric("outgate_fleet_store_up{} 0");
    }
    server.restart_empty();
    scenes.iter().for_each(wait_until_up);
    let more: Vec<Client> = (0..4).filter_map(|_| start_upload(second)).collect();
    assert_eq!(more.len(), 2, "of four, two are in flight");
    eventually("the store knows the deliveries in flight", || leased(&server) == 4);
}

/// No call of the second instance fails before its first delivery.
#[test]
fn fleet_concurrency_holds_after_the_store_was_restarted_empty_between_two_calls() {
    if !store::is_installed() {
        return;
    }
    let mut server = StoreServer::start();
    let scenes: [Scene; 2] = instances(&server, "concurrency = 4");
    let [first, second] = &scenes;
    let _in_flight = start_uploads(first, 2);
    server.kill();
    server.restart_empty();
    let (begun, mut more) = (Instant::now(), Vec::<Client>::new());
    // The subject is the time until each instance has noticed and leased its permits again.
    while begun.elapsed() < Duration::from_secs(3) {
        more.extend(start_upload(second));
        assert!(more.len() <= 2, "of four, two are in flight");
    }
    assert_eq!((more.len(), leased(&server)), (2, 4));
}
