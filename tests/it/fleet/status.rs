//! `outgate fleet status`: the instances of a fleet, as each of them shows it.
//! Does an operator see the whole fleet?

use super::{instance, wait_until_all_live};
use crate::support::control::{exit_code_and_output, json, run, with_admin_socket};
use crate::support::store::{self, StoreServer};

#[test]
fn fleet_status_shows_the_live_instances_and_a_store_that_is_away() {
    if !store::is_installed() {
        return;
    }
    let mut server = StoreServer::start();
    let fleet = format!("store = \"redis://127.0.0.1:{}\"", server.port);
    let [first, second] = ["egress-1", "egress-2"].map(|name| instance(name, &fleet, &with_admin_socket));
    wait_until_all_live(&[&first, &second]);
    let status = json(&run(&first, &["fleet", "status", "--json"]));
    assert_eq!((&status["instance"], &status["live"]), (&"egress-1".into(), &2.into()), "{status}");

    server.kill();
    second.outgate.wait_for_metric("outgate_fleet_store_up{} 0");
    let (code, _, error) = exit_code_and_output(&run(&second, &["fleet", "status"]));
    assert_eq!(code, 69, "{error}");
    assert!(error.contains("the store of the fleet has been away for"), "{error}");
}
