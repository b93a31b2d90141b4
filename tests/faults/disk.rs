//! A full disk below the delivery log.
//! Do deliveries go on, and are the lost records counted and reported?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::bystander::{Fault, for_a_period};
use crate::support::pki::Pki;
use crate::support::receiver::{Receiver, ok};
use crate::support::scene::{config, folder};
use crate::support::scrape::Scrape;
use crate::support::{Outgate, eventually};

/// The kernel answers each write to `/dev/full` with ENOSPC.
#[test]
fn full_disk_below_the_delivery_log_harms_no_delivery_and_lost_records_are_counted() {
    let plain = Receiver::plain(ok());
    let outgate =
        Outgate::run(folder(&Pki::new()), &config(&plain, &plain, "").add("log.deliveries", "file:/dev/full"));
    let url = format!("http://plain.example:{}/in", plain.port());
    let fault = Fault {
        name: "disk of the delivery log full",
        harmed: "no client; outgate loses the records",
        reported: "outgate_records_lost_total, OutgateRecordsLost",
    };
    let (harm, delivered) = fault.run(outgate.proxy, &url, |harm| {
        for_a_period(|| assert_eq!(harm.send(outgate.proxy, &url).status, 200));
    });
    let expected = (delivered + harm.counts["delivered"]) as f64;
    eventually("each delivery is counted, and its record as lost", || {
        let scrape = Scrape::of(&outgate);
        let count = |name: &str| scrape.sum(name, &[]);
        count("outgate_deliveries_total") == expected && count("outgate_records_lost_total") == expected
    });
    outgate.log.wait_for_lines(1, &["alert OutgateRecordsLost"]);
    assert_eq!(outgate.admin("/readyz").status, 200);
}
