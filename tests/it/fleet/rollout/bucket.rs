//! Bundles in a bucket, which lacks them, has others, or does not answer.
//! Does an instance adopt only the bundle whose digest the store has, and does an operator learn of one that it cannot read?

use jiff::SignedDuration;
use outgate::policy::rollout::bundle::digest;
use serde_json::Value;

use super::{Fleet, GUARD, is_delivered};
use crate::operating::captures_s3;
use crate::support::control::get;
use crate::support::{Folder, eventually, store};

/// The bucket has the bundle, and the store its digest.
#[test]
fn rollout_takes_its_bundle_from_a_bucket_and_refuses_one_that_was_replaced_there() {
    if !store::is_installed() || !captures_s3::is_installed() {
        return;
    }
    let root = Folder::new();
    std::fs::create_dir(root.path("bundles")).unwrap();
    let bucket = captures_s3::Server::start(&root.path(""), 0);
    let environment = captures_s3::environment(&bucket);
    let fleet = Fleet::start_with(1, "bundles = \"s3://bundles/eu\"", &environment, &|_, _| {}).rolled_out(GUARD);
    assert!(is_delivered(&fleet.scenes[0]));
    let stored = fleet.field("digest");
    assert_eq!(fleet.field("document"), "");
    let object = root.path(&format!("bundles/eu/{stored}"));
    let document = std::fs::read_to_string(&object).unwrap();
    assert_eq!(digest(&document), stored);
    // The next bundle is replaced by the first one, before the instance sees it.
    for (start, content, reason) in
        [("0000", document, "the store has another digest"), ("1111", "x".repeat(5_000_000), "5000000 bytes")]
    {
        let next = format!("{start}{}", &stored[4..]);
        std::fs::write(root.path(&format!("bundles/eu/{next}")), content).unwrap();
        fleet.forge(&[("digest", &next)]);
        let log = &fleet.scenes[0].outgate.log;
        log.wait_for(reason, |lines| lines.iter().any(|line| line.contains(reason)).then_some(()));
    }
    assert!(is_delivered(&fleet.scenes[0]));
}

/// The bucket lacks the bundle, and then it does not answer.
#[test]
fn rollout_whose_bundle_an_instance_cannot_read_is_a_problem_of_the_fleet() {
    if !store::is_installed() || !captures_s3::is_installed() {
        return;
    }
    let root = Folder::new();
    std::fs::create_dir_all(root.path("bundles/eu")).unwrap();
    let bucket = captures_s3::Server::start(&root.path(""), 0);
    let environment = captures_s3::environment(&bucket);
    let fleet = Fleet::start_with(2, "bundles = \"s3://bundles/eu\"", &environment, &|_, _| {});
    let problems = || {
        let status = get(&fleet.scenes[0].outgate, "/v1/fleet").json();
        let found = status["problems"].as_array().into_iter().flatten().cloned();
        found.filter(|found| found["problem"] == "bundle_unreadable").collect::<Vec<Value>>()
    };
    let announced = |age| fleet.signed(1, SignedDuration::from_secs(age), &["egress-a"]);
    let (document, signature) = announced(1);
    fleet.forge(&[("digest", &digest(&document)), ("signature", &signature)]);
    eventually("each instance is named", || {
        let subjects: Vec<_> = problems().iter().map(|found| found["subject"].clone()).collect();
        subjects == ["egress-a", "egress-b"]
    });
    let metrics = [
        "outgate_fleet_problems{problem=\"bundle_unreadable\"} 2",
        "outgate_alerts{name=\"OutgateFleetBundleUnreadable\"} 2",
    ];
    let observed = || fleet.scenes.iter().any(|scene| metrics.iter().all(|metric| scene.outgate.has_metric(metric)));
    eventually("the observer raises the alert", observed);
    std::fs::write(root.path(&format!("bundles/eu/{}", digest(&document))), &document).unwrap();
    eventually("the problem ends with the bundle", || problems().is_empty());

    drop(bucket);
    let (document, signature) = announced(2);
    fleet.forge(&[("digest", &digest(&document)), ("signature", &signature)]);
    eventually("a bucket that does not answer is a problem", || problems().len() == 2);
    let what = problems()[0]["what"].as_str().unwrap().to_owned();
    assert!(what.starts_with("egress-a cannot read the bundle of the rollout, and tries again: the bucket"), "{what}");
}
