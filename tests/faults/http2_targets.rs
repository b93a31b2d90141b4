//! HTTP/2 targets that flood: with frames that cost outgate more than them, or by giving no window.
//! Do only the deliveries to that target fail, each within its timeouts?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;
use std::time::Duration;

use crate::bystander::{BROKEN_OFF, CIRCUIT_OPEN, Fault, Processor, circuit, has_circuits, pin};
use crate::support::Outgate;
use crate::support::frames::{FrameTarget, Progress, Script, frame, ok_response};
use crate::support::http2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, SETTINGS, WINDOW_UPDATE, field,
};
use crate::support::pki::Pki;
use crate::support::receiver::{Receiver, ok};
use crate::support::scene::{config, folder};

/// The response timeout and the total timeout where a delivery ends by one of them.
const SHORT: (Duration, Duration) = (Duration::from_millis(300), Duration::from_millis(800));
/// The same where outgate ends the flood: a busy machine must not turn this end into a timeout.
const LONG: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(12));
/// The longest wait of a client, on a busy machine.
const WAIT_MAX: Duration = Duration::from_secs(15);
/// `:status: 200` and `103`: an index of the static table, and a literal with an indexed name (RFC 7541 §6.1, §6.2.2).
const STATUS_200: &[u8] = b"\x88";
const STATUS_103: &[u8] = b"\x08\x03103";
const TIMEOUT: &[(&str, &str)] = &[("response_timeout", "response_timeout")];
const TOO_LARGE: (&str, &str) = ("response_too_large", "response_too_large");
/// outgate ends the connection of a flood. The deliveries that share it are lost with it.
const MALFORMED: (&str, &str) = ("response_malformed", "response_malformed");
const SETTINGS_INITIAL_WINDOW_SIZE: u16 = 4;

/// Sends deliveries to a target whose response is `flood` of the stream, beside the bystander. Each must have one of the
/// `outcomes`: what its client sees, and the code of its record.
fn run(
    name: &'static str,
    settings: &[(u16, u32)],
    outcomes: &[(&str, &str)],
    flood: impl Fn(u32) -> Vec<u8> + Send + Sync + 'static,
) {
    let pki = Pki::new();
    let (good, plain) = (Receiver::tls(pki.leaf(&["hook.example"]), ok()), Receiver::plain(ok()));
    let of_the_fault = pin(Processor::Fault);
    let control = FrameTarget::start(&pki, &[], at_the_end(ok_response));
    let bad = FrameTarget::start(&pki, settings, at_the_end(flood));
    drop(of_the_fault);
    let own = pin(Processor::Own);
    let (response, total) = if outcomes == TIMEOUT { SHORT } else { LONG };
    let text = config(&good, &plain, "")
        .push("routes.signed.ports", control.address.port())
        .push("routes.signed.ports", bad.address.port())
        .set("routes.signed.timeouts.response", format!("{response:?}"))
        .add("routes.signed.timeouts.total", format!("{total:?}"))
        .and(circuit());
    let outgate = Outgate::run(folder(&pki), &text);
    let fault = Fault { name, harmed: "clients of this target", reported: "records, outgate_deliveries_total" };
    let healthy = format!("http://plain.example:{}/in", plain.port());
    let harm = fault.run_load_by_law(&outgate, &healthy, outcomes, [&control.url(), &bad.url()]);
    drop(own);
    let is_expected =
        |seen: &String| outcomes.iter().any(|(expected, _)| expected == seen) || has_circuits() && seen == CIRCUIT_OPEN;
    assert!(!harm.counts.is_empty() && harm.counts.keys().all(is_expected), "{:?}", harm.counts);
    assert!(harm.longest < WAIT_MAX, "a client waited {:?}", harm.longest);
    outgate.wait_for_metric("outgate_client_connections 0");
}

/// Writes this for each complete request.
fn at_the_end(respond: impl Fn(u32) -> Vec<u8> + Send + Sync + 'static) -> Script {
    Arc::new(move |event| if event.progress == Progress::End { respond(event.stream) } else { Vec::new() })
}

/// Returns a flood of one kind of frame, before a response that never comes.
fn frames_of(one: Vec<u8>, bytes: usize) -> impl Fn(u32) -> Vec<u8> + Send + Sync {
    let flood = one.repeat(bytes / one.len());
    move |_| flood.clone()
}

const MIB: usize = 1 << 20;

#[test]
fn http2_target_that_floods_pings_harms_its_own_clients_only() {
    let flood = frames_of(frame(PING, 0, 0, &[0; 8]), 4 * MIB);
    run("HTTP/2 target: PING flood", &[], &[MALFORMED], flood);
}

#[test]
fn http2_target_that_floods_settings_harms_its_own_clients_only() {
    let flood = frames_of(frame(SETTINGS, 0, 0, &[]), 4 * MIB);
    run("HTTP/2 target: SETTINGS flood", &[], &[MALFORMED], flood);
}

#[test]
fn http2_target_that_floods_window_updates_harms_its_own_clients_only() {
    let flood = frames_of(frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()), 4 * MIB);
    run("HTTP/2 target: WINDOW_UPDATE flood", &[], &[MALFORMED], flood);
}

#[test]
fn http2_target_that_floods_empty_data_harms_its_own_clients_only() {
    // The response has begun for some of the deliveries that share the connection.
    let outcomes = [(BROKEN_OFF, "response_malformed"), MALFORMED];
    run("HTTP/2 target: empty DATA frames", &[], &outcomes, |stream| {
        [frame(HEADERS, END_HEADERS, stream, STATUS_200), frame(DATA, 0, stream, &[]).repeat(400_000)].concat()
    });
}

#[test]
fn http2_target_that_floods_continuations_harms_its_own_clients_only() {
    run("HTTP/2 target: CONTINUATION flood", &[], &[TOO_LARGE, MALFORMED], |stream| {
        [frame(HEADERS, 0, stream, STATUS_200), frame(CONTINUATION, 0, stream, &[]).repeat(100_000)].concat()
    });
}

#[test]
fn http2_target_that_sends_a_header_list_bomb_harms_its_own_clients_only() {
    run("HTTP/2 target: header list bomb", &[], &[TOO_LARGE, MALFORMED], |stream| {
        let entry = [&[0x40], &field("x-bomb", &"v".repeat(3900))[1..]].concat();
        let block = [STATUS_200, &entry, &[0x80 | 62; 12_000]].concat();
        frame(HEADERS, END_HEADERS | END_STREAM, stream, &block)
    });
}

#[test]
fn http2_target_that_floods_interim_responses_harms_its_own_clients_only() {
    run("HTTP/2 target: 1xx flood", &[], &[MALFORMED], |stream| {
        frame(HEADERS, END_HEADERS, stream, STATUS_103).repeat(100_000)
    });
}

/// The target takes no byte of the body.
#[test]
fn http2_target_without_a_window_harms_its_own_clients_until_the_timeout() {
    let settings = [(SETTINGS_INITIAL_WINDOW_SIZE, 0)];
    run("HTTP/2 target without a window", &settings, TIMEOUT, |_| Vec::new());
}
