//! A proxy at its limit of deliveries in flight.
//! Which deliveries count, which wait, and which are refused?

use crate::support;

use std::io::{Read, Write};

use serde_json::json;
use support::scene::{Scene, config, scene};
use support::{Client, control, eventually, post, tunnel_scene};

fn scene_with(key: &str) -> Scene {
    let scene = scene();
    let text = config(&scene.good, &scene.plain, "");
    scene.outgate.reconfigure(&text.and(&format!("[server]\n{key}\n")));
    scene
}

fn head(scene: &Scene) -> String {
    let url = scene.plain_url();
    format!("POST {url} HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n")
}

/// Starts a delivery that is in flight until its client sends the body.
fn in_flight(scene: &Scene) -> Client {
    scene.outgate.start_upload(&scene.plain_url(), 1)
}

#[test]
fn max_deliveries_refuses_one_more_delivery_before_its_body_is_read() {
    let scene = scene_with("max_deliveries = 2");
    let (mut first, _second) = (in_flight(&scene), in_flight(&scene));
    scene.outgate.wait_for_metric("outgate_deliveries_in_flight 2");
    let mut third = scene.outgate.connect();
    third.send(head(&scene));
    let response = third.next_response("POST");
    assert_eq!((response.status, response.code(), response.field("retry-after")), (429, "concurrency_limited", "1"));
    let problem = response.json();
    assert!(problem["detail"].as_str().unwrap().contains("the proxy as a whole is busy"), "{problem}");
    assert_eq!((&problem["details"], &problem["retryable"]), (&json!("busy"), &json!(true)));
    scene.outgate.wait_for_metric("outgate_deliveries_shed_total 1");
    let record = &scene.outgate.records(1)[0];
    assert_eq!((&record["code"], &record["bytes_sent"]), (&json!("concurrency_limited"), &json!(0)));
    // A request without a route is refused at once, with its own code.
    assert_eq!(scene.outgate.post("https://unrouted.example/", "", "x").code(), "no_route");
    first.send("x");
    assert_eq!(first.response().status, 200);
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").status, 200);
}

#[test]
fn max_deliveries_queues_deliveries_in_order_of_arrival() {
    /// On a loaded machine a delivery may wait for longer than outgate allows. Then another round shows the order.
    const ROUNDS: usize = 20;
    let scene = scene_with("max_deliveries = 1");
    let is_complete = (0..ROUNDS).any(|_| {
        let before = scene.plain.requests().len();
        let mut first = in_flight(&scene);
        let mut queued = Vec::new();
        for waiting in 1..=3 {
            let mut client = scene.outgate.connect();
            client.send(post(&scene.plain_url(), &format!("X-Number: {waiting}\r\n"), "x"));
            let is_waiting = format!("outgate_deliveries_waiting {waiting}");
            eventually("it waits, or was refused", || scene.outgate.has_metric(&is_waiting) || client.has_input());
            queued.push(client);
        }
        first.send("x");
        assert_eq!(first.response().status, 200);
        let statuses: Vec<_> = queued.iter_mut().map(|client| client.response().status).collect();
        scene.outgate.wait_for_metric("outgate_deliveries_in_flight 0");
        if statuses.contains(&429) {
            return false;
        }
        assert_eq!(statuses, [200; 3]);
        let requests = scene.plain.requests();
        let received: Vec<_> = requests[before..].iter().map(|received| received.field("x-number")).collect();
        assert_eq!(received, ["", "1", "2", "3"]);
        true
    });
    assert!(is_complete, "in each of {ROUNDS} rounds a delivery was refused");
}

#[test]
fn max_deliveries_frees_the_permit_of_a_client_that_hangs_up() {
    let scene = scene_with("max_deliveries = 1");
    drop(in_flight(&scene));
    scene.outgate.wait_for_metric("outgate_deliveries_in_flight 0");
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").status, 200);
}

#[test]
fn max_deliveries_does_not_count_open_tunnels() {
    let scene = tunnel_scene::manual_scene("");
    let text = tunnel_scene::config(scene.listener.local_addr().unwrap().port(), "");
    scene.outgate.reconfigure(&text.add("server.max_deliveries", 1));
    let (_one, _other) = (scene.open(), scene.open());
    let mut client = scene.outgate.connect();
    client.send(post(&format!("http://{}/", scene.authority()), "", "x"));
    let mut target = scene.accept();
    assert!(target.read(&mut [0; 1]).unwrap() == 1);
    target.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
    assert_eq!(client.response().status, 200);
}

#[test]
fn max_deliveries_does_not_count_a_delivery_that_waits_for_its_limit() {
    let scene = scene();
    let text = config(&scene.good, &scene.plain, "[limits.one]\nconcurrency = 1\nper = [\"host\"]\nwait = \"1m\"\n");
    let text = text.add("server.max_deliveries", 2);
    scene.outgate.reconfigure(&control::with_admin_socket(&text.add("routes.*.limits", ["one"])));
    let mut first = in_flight(&scene);
    let mut waiting: Vec<_> = (0..5)
        .map(|_| {
            let mut client = scene.outgate.connect();
            client.send(post(&scene.plain_url(), "", "x"));
            client
        })
        .collect();
    // The deliveries wait in the queue of the limit.
    let url = scene.plain_url();
    let explained = || control::exit_code_and_output(&control::run(&scene, &["explain", "POST", &url, "--running"])).1;
    eventually("five deliveries wait for the limit", || explained().contains("5 waiting"));
    assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").status, 200, "to another host");
    first.send("x");
    assert!(waiting.iter_mut().all(|client| client.response().status == 200));
}

#[test]
fn max_deliveries_counts_a_connect_until_its_tunnel_is_open() {
    let scene = tunnel_scene::manual_scene("");
    let text = tunnel_scene::config(scene.listener.local_addr().unwrap().port(), "");
    let text = text.add("server.max_deliveries", 1);
    scene.outgate.reconfigure(&text.set("routes.*.timeouts.tls", "1m"));
    let mut client = scene.outgate.connect();
    client.send(support::tunnel::connect(&scene.authority(), ""));
    let mut verified = scene.accept();
    assert_eq!(verified.read(&mut [0; 1]).unwrap(), 1, "a ClientHello, to which the test does not respond");
    let response = scene.outgate.post(&format!("http://{}/", scene.authority()), "", "x");
    assert_eq!((response.status, &response.json()["details"]), (429, &json!("busy")));
}
