//! Bundles in a bucket, which lacks them, has others, or does not answer.
//! Does an instance adopt only the bundle whose digest the store has, and does an operator learn of one that it cannot read?

use std::collections::BTreeMap;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};

use jiff::SignedDuration;
use outgate::policy::rollout::bundle::digest;
use serde_json::Value;

use super::{CLOSED, Fleet, GUARD, is_delivered};
use crate::operating::captures_s3;
use crate::support::control::{exit_code_and_output, get};
use crate::support::receiver::Receiver;
use crate::support::{Folder, TEST_TIMEOUT, eventually, store};

/// A service with the bucket `bundles` in memory.
struct Bucket {
    receiver: Receiver,
    objects: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    /// The objects for which the service was asked, and for which it does not answer while `_held` exists.
    silent: Arc<Mutex<Vec<String>>>,
    _held: Sender<()>,
}

/// The object that the service never returns.
const SILENT: &str = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";

impl Bucket {
    fn start() -> Self {
        let (objects, silent) =
            (Arc::<Mutex<BTreeMap<String, Vec<u8>>>>::default(), Arc::<Mutex<Vec<String>>>::default());
        let (held, wait) = channel();
        let (stored, asked, wait) = (Arc::clone(&objects), Arc::clone(&silent), Mutex::new(wait));
        let receiver = Receiver::plain(Arc::new(move |request| {
            let [method, path] = [0, 1].map(|word| request.line.split(' ').nth(word).unwrap().to_owned());
            let name = path.rsplit('/').next().unwrap().to_owned();
            if name == SILENT {
                asked.lock().unwrap().push(name);
                let _ = wait.lock().unwrap().recv_timeout(TEST_TIMEOUT);
                return (Vec::new(), false);
            }
            let mut stored = stored.lock().unwrap();
            if method == "PUT" {
                stored.insert(name.clone(), request.body.clone());
            }
            let Some(object) = stored.get(&name) else {
                return (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(), false);
            };
            let length = if method == "PUT" { 0 } else { object.len() };
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nETag: \"1\"\r\n\
                 Last-Modified: Fri, 27 Nov 2026 10:00:00 GMT\r\n\r\n"
            );
            let body = if method == "GET" { object.as_slice() } else { b"" };
            ([head.as_bytes(), body].concat(), false)
        }));
        Self { receiver, objects, silent, _held: held }
    }

    fn fleet(&self, count: usize) -> Fleet {
        let environment = [
            ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", self.receiver.port())),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", "outgate".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "secret".to_owned()),
        ];
        Fleet::start_with(count, "bundles = \"s3://bundles/eu\"", &environment, &|_, _| {})
    }

    /// Returns how often an instance has asked for an object that the bucket lacks.
    fn attempts(&self, name: &str) -> usize {
        self.receiver.requests().iter().filter(|request| request.line.contains(name)).count()
    }
}

/// Starts a fleet whose bucket `bundles` is a folder in the returned one.
fn start_with_bucket(count: usize) -> (Folder, captures_s3::Server, Fleet) {
    let root = Folder::new();
    std::fs::create_dir_all(root.path("bundles/eu")).unwrap();
    let bucket = captures_s3::Server::start(&root.path(""), 0);
    let environment = captures_s3::environment(&bucket);
    let fleet = Fleet::start_with(count, "bundles = \"s3://bundles/eu\"", &environment, &|_, _| {});
    (root, bucket, fleet)
}

/// The bucket has the bundle, and the store its digest.
#[test]
fn rollout_takes_its_bundle_from_a_bucket_and_refuses_one_that_was_replaced_there() {
    if !store::is_installed() || !captures_s3::is_installed() {
        return;
    }
    let (root, _bucket, fleet) = start_with_bucket(1);
    let fleet = fleet.rolled_out(GUARD);
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
    let (root, bucket, fleet) = start_with_bucket(2);
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

/// The verdict on the bundle before says nothing about one that the instance has not read.
#[test]
fn rollout_has_no_report_of_an_instance_that_cannot_read_its_bundle() {
    if !store::is_installed() {
        return;
    }
    let bucket = Bucket::start();
    let fleet = bucket.fleet(1);
    let announced = |number| {
        let (document, signature) = fleet.signed(number, SignedDuration::ZERO, &["egress-z", "egress-a"]);
        (digest(&document), document, signature)
    };
    let (first, document, signature) = announced(1);
    bucket.objects.lock().unwrap().insert(first.clone(), document.into());
    fleet.forge(&[("digest", &first), ("signature", &signature)]);
    eventually("the first bundle is checked", || fleet.field("report:egress-a").contains("checked"));
    let (second, _, signature) = announced(2);
    fleet.forge(&[("digest", &second), ("signature", &signature)]);
    fleet.store.nodes[0].cli(&["hdel", "outgate:{rollout}", "report:egress-a"]);
    // Before its second attempt, the instance reports what it knows.
    eventually("the instance has tried twice to read it", || bucket.attempts(&second) >= 2);
    assert_eq!(fleet.field("report:egress-a"), "");
    let known = fleet.known();
    assert_eq!((&known["digest"], &known["rollout"]), (&second.clone().into(), &Value::Null), "{known}");
    let (_, shown, _) = fleet.run(&["fleet", "rollout", "--status"]);
    assert!(shown.starts_with("this instance cannot read the bundle of the rollout, and tries again: "), "{shown}");
    // The operator can replace it. Until the store has a bundle that can be read, the fleet has a problem.
    let problems = || {
        let status = get(&fleet.scenes[0].outgate, "/v1/fleet").json();
        let found = status["problems"].as_array().unwrap().iter().map(|found| found["problem"].clone());
        found.filter(|found| found.as_str().unwrap().contains("bundle")).collect::<Vec<Value>>()
    };
    eventually("the instance announces the problem", || problems() == ["bundle_unreadable"]);
    assert_eq!(exit_code_and_output(&fleet.command(CLOSED, &[]).output().unwrap()).0, 0);
    fleet.wait_for("the next bundle is read", |known| !known["rollout"].is_null());
    eventually("the bundle is no problem any more", || problems().is_empty());
}

/// Without operators an instance follows no rollout.
#[test]
fn rollout_is_no_problem_after_the_last_operator_was_removed() {
    if !store::is_installed() {
        return;
    }
    let bucket = Bucket::start();
    let fleet = bucket.fleet(1);
    let problems = || get(&fleet.scenes[0].outgate, "/v1/fleet").json()["problems"].to_string();
    let outgate = &fleet.scenes[0].outgate;
    let config = outgate.config();
    fleet.forge(&[("digest", &"0".repeat(64)), ("signature", "x")]);
    eventually("the bundle cannot be read", || problems().contains("bundle_unreadable"));
    outgate.reconfigure(&config.remove("fleet.operators"));
    eventually("the bundle is no problem", || !problems().contains("bundle_unreadable"));
    outgate.reconfigure(&config);
    eventually("the operators are back", || problems().contains("bundle_unreadable"));
    // A rollout that waits is a problem of the same kind.
    let (code, _, err) = exit_code_and_output(&fleet.command(GUARD, &[]).output().unwrap());
    assert_eq!(code, 0, "{err}");
    eventually("the rollout waits for its approval", || problems().contains("rollout_waiting"));
    outgate.reconfigure(&config.remove("fleet.operators"));
    eventually("no rollout waits", || !problems().contains("rollout_waiting"));
}

/// A fetch ends after ten seconds, and the health of the instance is looked at each second.
#[test]
fn rollout_goes_back_while_the_bucket_does_not_answer() {
    if !store::is_installed() {
        return;
    }
    let bucket = Bucket::start();
    let fleet = bucket.fleet(1).rolled_out(GUARD);
    let scene = &fleet.scenes[0];
    assert!(is_delivered(scene));
    assert_eq!(exit_code_and_output(&fleet.command(CLOSED, &["--pause", "10m"]).output().unwrap()).0, 0);
    fleet.wait_for_stage(0, "adopted");
    fleet.forge(&[("digest", SILENT)]);
    eventually("the instance asks for the bundle", || !bucket.silent.lock().unwrap().is_empty());
    eventually("the instance goes back", || is_delivered(scene));
    let ended = scene.outgate.log.all().into_iter().filter(|line| line.contains("cannot read the bundle"));
    assert_eq!(ended.count(), 0, "the fetch goes on");
    eventually("the fetch ends", || fleet.known()["bundle_error"].is_string());
}
