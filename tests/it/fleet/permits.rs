//! The permits of a concurrency that a fleet shares, while instances want more than there are.
//! Does each busy instance get its part, and never more than there is?

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::limits::{calls, instances, leased};
use crate::support::scene::Scene;
use crate::support::store::{self, StoreServer};

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
