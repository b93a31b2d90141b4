//! Targets that refuse, stall, reset, trickle, lie about lengths, flood or never close.
//! Do only the deliveries to the bad target fail, each with the code of its fault?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::time::Duration;

use crate::bad_target::{Behaviour, start};
use crate::bystander::{BROKEN_OFF, CIRCUIT_OPEN, Fault, Harm, Processor, circuit, has_circuits, pin};
use crate::support::configuration::Config;
use crate::support::ports::refusing;
use crate::support::scene::{Scene, scene_of};

/// The timeouts of the bad route.
const RESPONSE: Duration = Duration::from_millis(300);
const TOTAL: Duration = Duration::from_millis(800);

/// The usual scene with a route to a bad target and to its healthy control.
fn scene(port: u16, control: u16) -> Scene {
    let bad = format!(
        "{}[[routes]]\nname = \"bad\"\nhosts = [\"bad.example\"]\nports = [{port}, {control}]\n\
         plaintext = \"allow\"\ntimeouts = {{ response = \"{RESPONSE:?}\", total = \"{TOTAL:?}\" }}\n",
        circuit()
    );
    scene_of(&|config: &Config| config.host("bad.example", "127.0.0.1").and(&bad))
}

/// Runs deliveries to the bad target beside those to a healthy one. Each must have the outcome `seen` for its client and
/// `recorded` in its record.
fn run(name: &'static str, port: u16, seen: &str, recorded: &str) -> Harm {
    let control = start(Behaviour::Respond);
    let pinned = pin(Processor::Own);
    let scene = scene(port, control);
    let fault = Fault { name, harmed: "clients of this target", reported: "records, outgate_deliveries_total" };
    let urls = [control, port].map(|port| format!("http://bad.example:{port}/in"));
    let [control, bad] = &urls;
    let harm = fault.run_load_by_law(&scene.outgate, &scene.plain_url(), &[(seen, recorded)], [control, bad]);
    drop(pinned);
    let mut outcomes: BTreeSet<_> = harm.counts.keys().map(String::as_str).collect();
    if has_circuits() {
        outcomes.remove(CIRCUIT_OPEN);
    }
    assert_eq!(outcomes, BTreeSet::from([seen]));
    // The fault ends with its deliveries: no connection to the target stays.
    scene.outgate.wait_for_metric("outgate_client_connections 0");
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").status, 200);
    harm
}

#[test]
fn refusing_target_harms_its_own_clients_only() {
    let (_reserved, port) = refusing();
    run("target refuses", port, "connect_refused", "connect_refused");
}

#[test]
fn stalling_target_harms_its_own_clients_until_the_response_timeout() {
    let harm = run("target stalls", start(Behaviour::Stall), "response_timeout", "response_timeout");
    assert!(harm.longest >= RESPONSE, "{:?}", harm.longest);
}

#[test]
fn resetting_target_harms_its_own_clients_only() {
    run("target resets", start(Behaviour::Reset), "connection_lost", "connection_lost");
}

#[test]
fn target_that_trickles_a_head_harms_its_own_clients_until_the_response_timeout() {
    let harm = run("target trickles the head", start(Behaviour::TrickleHead), "response_timeout", "response_timeout");
    assert!(harm.longest >= RESPONSE, "{:?}", harm.longest);
}

#[test]
fn target_that_trickles_a_body_harms_its_own_clients_until_the_total_timeout() {
    let harm = run("target trickles the body", start(Behaviour::TrickleBody), BROKEN_OFF, "response_timeout");
    assert!(harm.longest >= TOTAL, "{:?}", harm.longest);
}

#[test]
fn target_that_announces_a_wrong_length_harms_its_own_clients_only() {
    run("target announces a wrong length", start(Behaviour::WrongLength), BROKEN_OFF, "connection_lost");
}

#[test]
fn target_that_floods_interim_responses_harms_its_own_clients_only() {
    run("target floods 1xx", start(Behaviour::FloodInterim), "response_malformed", "response_malformed");
}

#[test]
fn target_that_never_closes_harms_its_own_clients_until_the_total_timeout() {
    let harm = run("target never closes", start(Behaviour::NeverClose), BROKEN_OFF, "response_timeout");
    assert!(harm.longest >= TOTAL, "{:?}", harm.longest);
}
