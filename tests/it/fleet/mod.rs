//! Fleets: several instances that share a store.
//! Does each promise hold for all hosts together?
//!
//! Needs redis-server and redis-cli: skipped where one is missing, required with `OUTGATE_TEST_ALL=1`.

mod connections;
mod forms;
mod hints;
mod limits;
mod lost;
mod moves;
mod permit_properties;
mod permits;
mod properties;
mod reports;
mod rollout;
mod scripts;
mod signatures;
mod status;
mod tokens;

use crate::support::Folder;
use crate::support::configuration::Config;
use crate::support::pki::Pki;
use crate::support::receiver::{Receiver, ok};
use crate::support::scene::{Scene, config, folder};
use crate::support::{Outgate, eventually};

/// Starts the usual scene as an instance of a fleet. `fleet` has the keys of its section.
fn instance(name: &str, fleet: &str, change: &dyn Fn(&Config) -> Config) -> Scene {
    let pki = Pki::new();
    let good = Receiver::tls(pki.leaf(&["hook.example"]), ok());
    let plain = Receiver::plain(ok());
    instance_with(name, fleet, change, folder(&pki), Scenery { pki, good, plain })
}

struct Scenery {
    pki: Pki,
    good: Receiver,
    plain: Receiver,
}

fn instance_with(
    name: &str,
    fleet: &str,
    change: &dyn Fn(&Config) -> Config,
    folder: Folder,
    Scenery { pki, good, plain }: Scenery,
) -> Scene {
    // A busy machine answers late. Unless a test sets the timeout, the store is not away then.
    let timeout = if fleet.contains("timeout") { "" } else { "timeout = \"2s\"\n" };
    let config = config(&good, &plain, &format!("[fleet]\ninstance = \"{name}\"\n{timeout}{fleet}\n"));
    let outgate = Outgate::run(folder, &change(&config));
    Scene { pki, outgate, good, plain }
}

/// Waits until the instance has stored that about its fleet in `server.state`, which is `state` in its folder.
fn wait_until_stored(scene: &Scene, text: &str) {
    let file = scene.outgate.folder.path("state/fleet.json");
    eventually(text, || std::fs::read_to_string(&file).is_ok_and(|stored| stored.contains(text)));
}

/// Kills the instance and starts it again.
fn restarted(scene: Scene) -> Scene {
    Scene { outgate: scene.outgate.restarted(), ..scene }
}

fn wait_until_up(scene: &Scene) {
    scene.outgate.wait_for_metric("outgate_fleet_store_up{} 1");
}

/// Waits until each of the instances knows that all are live.
fn wait_until_all_live(scenes: &[&Scene]) {
    let line = format!("outgate_fleet_instances {}", scenes.len());
    eventually(&line, || scenes.iter().all(|scene| scene.outgate.has_metric(&line)));
}
