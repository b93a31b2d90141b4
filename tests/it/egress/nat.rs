//! A pool behind NAT: `seen_as` of a range.
//! Does everything that leaves the host show the address that targets see?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::net::Ipv4Addr;
use std::process::Command;

use serde_json::json;
use support::control::{get, with_admin_socket};
use support::scene::{Scene, scene_of};

fn scene() -> Scene {
    let range = json!([{ "cidr": "127.0.7.0/30", "seen_as": "203.0.113.16/30" }]);
    scene_of(&|config| with_admin_socket(&config.set("egress.default.ranges", &range)))
}

/// Returns the position of an address in 203.0.113.16/30 or in 127.0.7.0/30.
fn position(address: &str, network: [u8; 3], first: u8) -> u8 {
    let octets = address.parse::<Ipv4Addr>().unwrap().octets();
    assert_eq!(octets[..3], network, "{address}");
    octets[3] - first
}

#[test]
fn responses_records_and_lists_show_the_address_behind_nat() {
    let scene = scene();
    for path in ["/a", "/b"] {
        let response = scene.outgate.post(&format!("{}{path}", scene.good_url()), "", "x");
        assert_eq!(response.status, 200);
        let seen = response.field("outgate-egress");
        let record = scene.outgate.record_of(&response);
        assert_eq!(record["source"], seen);
        let local = record["local"].as_str().unwrap();
        assert_eq!(
            position(seen, [203, 0, 113], 16),
            position(local, [127, 0, 7], 0),
            "the order is that of the range"
        );
    }
    let list = Command::new(env!("CARGO_BIN_EXE_outgate"))
        .args(["egress", "list", "--config"])
        .arg(scene.outgate.folder.path("config.toml"))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&list.stdout), "203.0.113.16/30\n");
    let egress = get(&scene.outgate, "/v1/egress").json();
    let range = &egress["pools"][0]["ranges"][0];
    assert_eq!((&range["cidr"], &range["seen_as"]), (&json!("127.0.7.0/30"), &json!("203.0.113.16/30")));
}

#[test]
fn a_pool_without_nat_has_one_address_in_a_record() {
    let scene = scene_of(&Clone::clone);
    let response = scene.outgate.post(&scene.good_url(), "", "x");
    let record = scene.outgate.record_of(&response);
    assert_eq!(record["source"], response.field("outgate-egress"));
    assert!(record.get("local").is_none(), "{record}");
}

#[test]
fn a_refused_connection_is_recorded_with_the_addresses_that_the_target_saw() {
    let scene = scene();
    let (_socket, port) = support::ports::refusing();
    let config = scene.outgate.config().push("routes.signed.ports", port);
    scene.outgate.reconfigure(&config);
    let response = scene.outgate.post(&format!("https://hook.example:{port}/in"), "", "x");
    assert_eq!(response.code(), "connect_refused", "{}", response.text());
    let record = scene.outgate.record_of(&response);
    for source in [&record["source"], &record["attempts"][0]["source"]] {
        position(source.as_str().unwrap(), [203, 0, 113], 16);
    }
}
