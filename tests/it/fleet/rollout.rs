//! Rollouts of signed bundles: waves, refusals, failures, approvals and forgeries, with a store that others may write to.
//! Does every instance adopt only what operators have signed, in its turn, and return if the rollout fails?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::process::{Child, Command, Stdio};

use jiff::{SignedDuration, Timestamp};
use outgate::policy::rollout::OperatorKey;
use outgate::policy::rollout::bundle::{Bundle, Statement, digest};
use serde_json::{Value, json};

use super::restarted;
use crate::operating::captures_s3;

use crate::support::audit::{records_in, until_recorded};
use crate::support::configuration::{Config, Replace};
use crate::support::control::{call, exit_code_and_output, get, run};
use crate::support::pki::Pki;
use crate::support::receiver::{Receiver, ok};
use crate::support::scene::{Scene, config, folder};
use crate::support::store::{self, Store, StoreForm};
use crate::support::{Folder, Outgate, eventually};

pub(super) const GUARD: &str = "[guard]\nallow = [\"127.0.0.0/8\"]\n";
/// The same without access to the receivers.
const CLOSED: &str = "[timeouts]\nidle = \"91s\"\n";

/// A fleet whose instances have no guard of their own. The operators are alice and bob; mallory is none.
pub(super) struct Fleet {
    pub(super) scenes: Vec<Scene>,
    pub(super) store: Store,
    /// The keys and the files of the bundles.
    pub(super) desk: Folder,
}

/// The keys of `[fleet]` that name the operators.
pub(super) const OPERATORS: &str =
    "operators = { alice = { key = \"{dir}/alice.pub.pem\" }, bob = { key = \"{dir}/bob.pub.pem\" } }";

pub(super) fn new_desk() -> Folder {
    let desk = Folder::new();
    ["alice", "bob", "mallory"].iter().for_each(|name| new_key(&desk, name));
    desk
}

/// Gives the host of an instance the public keys of the operators.
pub(super) fn copy_keys(desk: &Folder, host: &Folder) {
    for file in ["alice.pub.pem", "bob.pub.pem"] {
        host.write(file, std::fs::read(desk.path(file)).unwrap());
    }
}

fn new_key(desk: &Folder, name: &str) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    desk.write(&format!("{name}.pem"), key.serialize_pem());
    desk.write(&format!("{name}.pub.pem"), key.public_key_pem());
}

impl Fleet {
    fn start(count: usize) -> Self {
        Self::start_with(count, "", &[], &|_, _| {})
    }

    /// Kills an instance and starts it again.
    fn restart(&mut self, number: usize) {
        let scene = self.scenes.remove(number);
        self.scenes.insert(number, restarted(scene));
    }

    /// `more` has further keys of `[fleet]`; `prepare` changes the folder of an instance before it starts.
    fn start_with(count: usize, more: &str, environment: &[(&str, String)], prepare: &dyn Fn(&str, &Folder)) -> Self {
        let (store, desk) = (Store::start(StoreForm::Single), new_desk());
        // A busy machine answers late, and a store that is away delays a rollout.
        let fleet = format!("{}timeout = \"5s\"\n{more}\n{OPERATORS}", store.settings);
        let change = |config: &Config| {
            let config = config.push("admin.listen", "unix:{dir}/admin.sock").remove("guard");
            config.add("server.state", "{dir}/state").add("audit.file", "{dir}/audit.jsonl")
        };
        let start = |number| {
            let (pki, name) = (Pki::new(), name(number));
            let own = folder(&pki);
            copy_keys(&desk, &own);
            prepare(name, &own);
            let (good, plain) = (Receiver::tls(pki.leaf(&["hook.example"]), ok()), Receiver::plain(ok()));
            let config = config(&good, &plain, &format!("[fleet]\ninstance = \"{name}\"\n{fleet}\n"));
            own.write_config("config.toml", &change(&config));
            let variables: Vec<_> = environment.iter().map(|(name, value)| (*name, Path::new(value))).collect();
            Scene { pki, outgate: Outgate::run_in_with(own, &variables), good, plain }
        };
        let scenes: Vec<Scene> = (0..count).map(start).collect();
        let fleet = Self { scenes, store, desk };
        eventually("all instances are live", || {
            fleet.known()["live_instances"].as_array().is_some_and(|live| live.len() == count)
        });
        fleet
    }

    /// Returns a bundle that alice has signed, and the signature. Each wave has one instance.
    fn signed(&self, number: u64, age: SignedDuration, waves: &[&str]) -> (String, String) {
        let bundle = Bundle {
            fleet: "outgate".to_owned(),
            number,
            created_at: Timestamp::now() - age,
            author: "alice".to_owned(),
            waves: waves.iter().map(|name| [(*name).to_owned()].into()).collect(),
            pause_seconds: 1,
            files: [("00000-closed.toml".to_owned(), CLOSED.to_owned())].into(),
        };
        let key = OperatorKey::parse(&std::fs::read(self.desk.path("alice.pem")).unwrap()).unwrap();
        let document = bundle.document();
        let signature = key.sign(&Statement::Start.text(&digest(&document)));
        (document, signature)
    }

    /// Runs a command of the operator at the first instance.
    pub(super) fn run(&self, words: &[&str]) -> (i32, String, String) {
        exit_code_and_output(&run(&self.scenes[0], words))
    }

    pub(super) fn command(&self, bundle: &str, more: &[&str]) -> Command {
        let file = self.desk.write("bundle.toml", bundle);
        let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
        command.args(["fleet", "rollout"]).arg(file).arg("--key").arg(self.desk.path("alice.pem")).args(more);
        command.arg("--config").arg(self.scenes[0].outgate.folder.path("config.toml"));
        command
    }

    /// Starts a rollout of alice and follows it.
    pub(super) fn watch(&self, bundle: &str, more: &[&str]) -> Child {
        let mut command = self.command(bundle, more);
        command.arg("--watch").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    pub(super) fn approve(&self, number: u64, operator: &str) -> (i32, String, String) {
        let key = self.desk.path(&format!("{operator}.pem")).display().to_string();
        self.run(&["fleet", "approve", &number.to_string(), "--key", &key])
    }

    /// Rolls a bundle out to the whole fleet, with bob's approval.
    fn rolled_out(self, bundle: &str) -> Self {
        let watch = self.watch(bundle, &["--canary", "all", "--pause", "1s"]);
        self.wait_for("the change needs an approval", |known| known["rollout"]["outcome"] == "waiting_for_approval");
        let number = self.known()["rollout"]["number"].as_u64().unwrap();
        assert_eq!(self.approve(number, "bob").0, 0);
        let (code, out, err) = exit_code_and_output(&watch.wait_with_output().unwrap());
        assert_eq!(code, 0, "{out}{err}");
        self
    }

    pub(super) fn known(&self) -> Value {
        get(&self.scenes[0].outgate, "/v1/fleet/rollout").json()
    }

    pub(super) fn wait_for(&self, description: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let mut known = Value::Null;
        eventually(description, || {
            known = self.known();
            condition(&known)
        });
        known
    }

    fn stage(&self, number: usize) -> String {
        self.known()["rollout"]["instances"][name(number)]["stage"].as_str().unwrap_or_default().to_owned()
    }

    fn wait_for_stage(&self, number: usize, stage: &str) {
        eventually(&format!("{} is {stage}", name(number)), || self.stage(number) == stage);
    }

    fn wait_for_failure(&self) -> String {
        let known = self.wait_for("the rollout has failed", |known| known["rollout"]["outcome"] == "failed");
        known["rollout"]["failure"].as_str().unwrap().to_owned()
    }

    /// Waits until the instance that observes the fleet reports a problem of the rollout, and raises the alert.
    fn wait_for_problem(&self, problem: &str, alert: &str) {
        let metrics = [
            format!("outgate_fleet_problems{{problem=\"{problem}\"}} 1"),
            format!("outgate_alerts{{name=\"{alert}\"}} 1"),
        ];
        eventually(problem, || {
            self.scenes.iter().any(|scene| metrics.iter().all(|metric| scene.outgate.has_metric(metric)))
        });
    }

    /// Sets fields of the rollout in the store, as an intruder could.
    fn forge(&self, fields: &[(&str, &str)]) {
        let mut words = vec!["hset", "outgate:{rollout}"];
        words.extend(fields.iter().flat_map(|(field, value)| [*field, value]));
        self.store.nodes[0].cli(&words);
        self.store.nodes[0].cli(&["hincrby", "outgate:{rollout}", "version", "1"]);
    }

    fn field(&self, name: &str) -> String {
        self.store.nodes[0].cli(&["--raw", "hget", "outgate:{rollout}", name]).trim_end().to_owned()
    }
}

pub(super) fn name(number: usize) -> &'static str {
    ["egress-a", "egress-b", "egress-c"][number]
}

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

pub(super) fn is_delivered(scene: &Scene) -> bool {
    scene.outgate.post(&scene.plain_url(), "", "x").status == 200
}

/// Returns the records of changes that came from rollouts.
fn rollouts(scene: &Scene) -> Vec<Value> {
    let records = records_in(&scene.outgate.folder.path("audit.jsonl"));
    records.into_iter().filter(|record| record["source"] == "fleet").collect()
}

#[test]
fn rollout_reaches_the_fleet_in_waves_after_a_second_operator_has_approved() {
    if !store::is_installed() {
        return;
    }
    let mut fleet = Fleet::start(3);
    assert!(fleet.scenes.iter().all(|scene| !is_delivered(scene)));
    let watch = fleet.watch(GUARD, &["--canary", "1", "--then", "2", "--then", "all", "--pause", "1s"]);
    fleet.wait_for("the change needs an approval", |known| known["rollout"]["outcome"] == "waiting_for_approval");
    fleet.wait_for_problem("rollout_waiting", "OutgateFleetRolloutWaits");
    let (code, shown, _) = fleet.run(&["fleet", "status"]);
    assert!(code == 1 && shown.contains("problem: rollout 1 waits for the approval of a second operator"), "{shown}");
    for operator in ["alice", "mallory"] {
        assert_ne!(fleet.approve(1, operator).0, 0, "{operator}");
    }
    assert_ne!(fleet.approve(2, "bob").0, 0, "there is no rollout 2");
    assert_eq!(fleet.known()["rollout"]["outcome"], "waiting_for_approval");
    let key = fleet.desk.path("bob.pem").display().to_string();
    let (code, preview, err) = fleet.run(&["fleet", "approve", "1", "--key", &key, "--dry-run"]);
    assert_eq!(code, 0, "{err}");
    assert_eq!(fleet.known()["rollout"]["approver"], Value::Null, "a dry run signs nothing");
    let (code, out, err) = fleet.approve(1, "bob");
    assert_eq!((code, &out), (0, &preview), "{err}");
    assert!(out.contains("guard: allow") && out.contains("approval: guard.allow has 127.0.0.0/8"), "{out}");
    let (code, out, err) = exit_code_and_output(&watch.wait_with_output().unwrap());
    assert_eq!(code, 0, "{out}{err}");
    assert!(err.contains("wave 1 egress-a; wave 2 egress-b; wave 3 egress-c"), "{err}");
    assert!(out.contains("approved by bob: in progress") && out.contains("approved by bob: kept"), "{out}");
    let mut times = Vec::new();
    for scene in &fleet.scenes {
        assert!(is_delivered(scene));
        let record = until_recorded(&scene.outgate, "configuration.updated", 1).remove(0);
        assert_eq!((&record["source"], &record["actor_sid"]), (&json!("fleet"), &json!("alice, bob")), "{record:#}");
        let requested = &record["event_data"]["requested_by"][0];
        assert_eq!(requested, &json!({ "source": "fleet", "rollout": 1, "author": "alice", "approver": "bob" }));
        times.push(record["event_date"].as_str().unwrap_or_else(|| panic!("{record:#}")).to_owned());
    }
    assert!(times.is_sorted(), "{times:?}");
    for (event_type, operator) in [("rollout.started", "alice"), ("rollout.approved", "bob")] {
        let record = until_recorded(&fleet.scenes[0].outgate, event_type, 1).remove(0);
        assert_eq!((&record["resource_sid"], &record["event_data"]["operator"]), (&json!("1"), &json!(operator)));
        assert_eq!((&record["source"], &record["actor_type"]), (&json!("admin"), &json!("user")), "{record:#}");
    }
    let (_, history, _) = fleet.run(&["history"]);
    assert!(history.contains("rollout 1 of alice, approved by bob"), "{history}");
    assert!(fleet.run(&["fleet", "rollout", "--status"]).1.contains("rollout 1 of alice, approved by bob: kept"));
    let (code, _, err) = fleet.run(&["check"]);
    assert!(code == 0 && err.contains("1 file of the bundle of the fleet"), "{err}");
    // A restart keeps the bundle, and changes nothing.
    fleet.restart(2);
    assert!(is_delivered(&fleet.scenes[2]));
    // A small change needs no second operator.
    let timeouts = format!("{GUARD}{CLOSED}");
    let watch = fleet.watch(&timeouts, &["--pause", "1s"]);
    let (code, out, err) = exit_code_and_output(&watch.wait_with_output().unwrap());
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(fleet.known()["rollout"]["approver"], Value::Null);
}

#[test]
fn rollout_that_one_host_refuses_is_adopted_by_none() {
    if !store::is_installed() {
        return;
    }
    // Paths in a bundle are relative to the main file of each host.
    let fleet = Fleet::start_with(2, "", &[], &|name, folder| {
        if name == "egress-a" {
            folder.write("partner.pem", Pki::new().pem);
        }
    });
    let bundle = "[trust.partner]\nroots = [\"partner.pem\"]\n";
    let watch = fleet.watch(bundle, &["--pause", "1s"]);
    let (code, out, err) = exit_code_and_output(&watch.wait_with_output().unwrap());
    assert_eq!(code, 1, "{out}{err}");
    assert!(
        out.contains("the bundle has a problem on egress-b") && out.contains("partner.pem does not exist"),
        "{out}"
    );
    assert!(fleet.scenes.iter().all(|scene| rollouts(scene).is_empty()));
    fleet.wait_for_problem("rollout_failed", "OutgateFleetRolloutFailed");
    let (code, shown, _) = fleet.run(&["fleet", "status"]);
    assert!(
        code == 1 && shown.contains("problem: rollout 1 has failed: the bundle has a problem on egress-b"),
        "{shown}"
    );
    for scene in &fleet.scenes {
        let record = until_recorded(&scene.outgate, "rollout.failed", 1).remove(0);
        assert_eq!((&record["resource_sid"], &record["source"]), (&json!("1"), &json!("internal")), "{record:#}");
        assert!(record["description"].as_str().is_some_and(|it| it.contains("a problem on egress-b")), "{record:#}");
    }
    // The instance of the operator refuses at once what no host may have from a bundle.
    for (bundle, expected) in [
        ("[server]\nname = \"x\"\n", "only the main file may have it"),
        ("[fleet.operators.mallory]\nkey = \"x\"\n", "only the main file may have it"),
        ("[signers.s]\nscheme = \"github\"\nkeys = [{ id = \"k\", secret = \"hunter2hunter2hunter2\" }]\n", "secret"),
    ] {
        let (code, _, err) = exit_code_and_output(&fleet.command(bundle, &[]).output().unwrap());
        assert!(code != 0 && err.contains(expected), "{code} {err}");
        assert!(!err.contains("hunter2"), "{err}");
    }
    assert_eq!(fleet.known()["rollout"]["number"], 1);
}

#[test]
fn rollout_that_raises_refusals_is_rolled_back_everywhere() {
    if !store::is_installed() {
        return;
    }
    let fleet = Fleet::start(3).rolled_out(GUARD);
    assert!(fleet.scenes.iter().all(is_delivered));
    let watch = fleet.watch(CLOSED, &["--canary", "2", "--pause", "10m"]);
    (0..2).for_each(|number| fleet.wait_for_stage(number, "adopted"));
    eventually("egress-b goes back", || {
        is_delivered(&fleet.scenes[1]);
        fleet.stage(1) == "rolled_back"
    });
    let (code, out, err) = exit_code_and_output(&watch.wait_with_output().unwrap());
    assert_eq!(code, 1, "{out}{err}");
    assert!(out.contains("egress-b went back: it refused or failed"), "{out}");
    for (number, scene) in fleet.scenes.iter().enumerate() {
        assert!(is_delivered(scene), "{}", name(number));
        let count = if number < 2 { 1 } else { 0 };
        let back = rollouts(scene).into_iter().filter(|record| record["event_type"] == "configuration.rolled_back");
        assert_eq!(back.count(), count, "{}", name(number));
    }
    assert_eq!(fleet.stage(2), "checked");
    // An intruder lets the failed rollout begin again, and states that the others have kept it.
    fleet.store.nodes[0].cli(&["hdel", "outgate:{rollout}", "failure"]);
    let kept = json!({ "stage": "kept", "approval": [], "detail": "" }).to_string();
    let names = [0, 1].map(|number| format!("report:{}", name(number)));
    fleet.forge(&[(&names[0], &kept), (&names[1], &kept)]);
    let failed =
        fleet.wait_for("the failure is forged away", |known| known["rollout"]["failure"] == "it has ended before");
    assert_eq!(failed["rollout"]["outcome"], "failed");
    assert_eq!(fleet.stage(2), "checked");
    assert!(is_delivered(&fleet.scenes[2]));
}

#[test]
fn rollout_fails_when_an_instance_is_killed_in_its_wave_and_it_returns_after_its_restart() {
    if !store::is_installed() {
        return;
    }
    let mut fleet = Fleet::start(3).rolled_out(GUARD);
    assert_eq!(
        exit_code_and_output(&fleet.command(CLOSED, &["--canary", "2", "--pause", "10m"]).output().unwrap()).0,
        0
    );
    (0..2).for_each(|number| fleet.wait_for_stage(number, "adopted"));
    fleet.scenes[1].outgate.signal("KILL");
    assert_eq!(fleet.wait_for_failure(), "egress-b disappeared in wave 1");
    fleet.wait_for_stage(0, "rolled_back");
    assert!(is_delivered(&fleet.scenes[0]));
    fleet.restart(1);
    fleet.wait_for_stage(1, "rolled_back");
    assert!(fleet.scenes.iter().all(is_delivered));
}

#[test]
fn rollout_survives_restarts_of_instance_and_store_and_an_operator_aborts_it() {
    if !store::is_installed() {
        return;
    }
    let mut fleet = Fleet::start(2).rolled_out(GUARD);
    assert_eq!(exit_code_and_output(&fleet.command(CLOSED, &["--pause", "10m"]).output().unwrap()).0, 0);
    fleet.wait_for_stage(0, "adopted");
    fleet.restart(0);
    fleet.wait_for("the instance knows the rollout", |known| known["rollout"]["number"] == 2);
    assert!(!is_delivered(&fleet.scenes[0]), "it still has the bundle");
    // Another rollout has to wait.
    let (code, _, err) = exit_code_and_output(&fleet.command(GUARD, &[]).output().unwrap());
    assert!(code == 69 && err.contains("rollout 2 is not over"), "{code} {err}");
    let key = |name: &str| fleet.desk.path(&format!("{name}.pem")).display().to_string();
    assert_ne!(fleet.run(&["fleet", "abort", "2", "--key", &key("mallory")]).0, 0);
    assert_eq!(fleet.run(&["fleet", "abort", "2", "--key", &key("bob")]).0, 0);
    assert_eq!(fleet.wait_for_failure(), "bob has aborted it");
    fleet.wait_for_stage(0, "rolled_back");
    assert!(fleet.scenes.iter().all(is_delivered));
    // A store that has lost its data changes nothing, and the numbers go on.
    fleet.store.nodes[0].kill();
    fleet.store.nodes[0].restart_empty();
    fleet.wait_for("the store is empty", |known| known["rollout"].is_null() && known["next_number"] == 3);
    let watch = fleet.watch(&format!("{GUARD}{CLOSED}"), &["--pause", "1s"]);
    let (code, out, err) = exit_code_and_output(&watch.wait_with_output().unwrap());
    assert_eq!(code, 0, "{out}{err}");
}

/// An intruder can write to the store, and has a bundle that was signed once.
#[test]
fn rollout_refuses_forged_replayed_huge_and_truncated_bundles_and_forged_approvals() {
    if !store::is_installed() {
        return;
    }
    let fleet = Fleet::start(1).rolled_out(GUARD);
    let facts = ["document", "digest", "signature", "approval:bob"].map(|name| (name, fleet.field(name)));
    let [(_, document), _, (_, signature), (_, approval)] = &facts;
    let watch = fleet.watch(CLOSED, &["--pause", "1s"]);
    assert_eq!(exit_code_and_output(&watch.wait_with_output().unwrap()).0, 0);
    assert!(!is_delivered(&fleet.scenes[0]));
    let refuses = |reason: &str, fields: &[(&str, &str)]| {
        fleet.store.nodes[0].cli(&["hdel", "outgate:{rollout}", "report:egress-a", "failure"]);
        fleet.forge(fields);
        eventually(reason, || fleet.field("report:egress-a").contains(reason));
        assert!(!is_delivered(&fleet.scenes[0]), "{reason}");
    };
    let old: Vec<(&str, &str)> = facts.iter().map(|(name, value)| (*name, value.as_str())).collect();
    refuses("its number, 1, is below 2, which this instance has seen", &old);
    let newer = document.replace_one("\"number\":1", "\"number\":3");
    let unsigned = "the signature of the bundle is that of no operator";
    refuses(unsigned, &[("document", &newer), ("digest", &digest(&newer))]);
    let by_mallory = newer.replace_one("alice", "mallory");
    refuses(unsigned, &[("document", &by_mallory), ("digest", &digest(&by_mallory))]);
    let truncated = &newer[..newer.len() / 2];
    refuses(unsigned, &[("document", truncated), ("digest", &digest(truncated))]);
    refuses("the store has another digest", &[("document", document), ("digest", "x"), ("signature", signature)]);
    fleet.store.nodes[0].cli(&["setrange", "huge", "5000000", "x"]);
    fleet.store.nodes[0].cli(&[
        "eval",
        "redis.call('hset', KEYS[1], 'document', redis.call('get', 'huge'), 'digest', 'y')",
        "1",
        "outgate:{rollout}",
    ]);
    refuses(unsigned, &[]); // the store gives out no document that is too long
    // A bundle of alice waits for bob, whatever the store says: his old approval is for another bundle, and alice's
    // signature is none. She replaces what does not verify: nobody can abort that.
    assert_eq!(exit_code_and_output(&fleet.command(GUARD, &["--pause", "1s"]).output().unwrap()).0, 0);
    fleet.wait_for_stage(0, "checked");
    let own = fleet.field("signature");
    fleet.forge(&[("approval:bob", approval), ("approval:carol", &own), ("approval:alice", &own)]);
    let claimed = json!({ "stage": "kept", "approval": [], "detail": "" }).to_string();
    fleet.forge(&[("report:egress-z", &claimed)]);
    fleet.wait_for("the forged report is known", |known| known["rollout"]["instances"]["egress-z"]["stage"] == "kept");
    assert_eq!(fleet.known()["rollout"]["outcome"], "waiting_for_approval");
    assert_eq!(fleet.approve(3, "bob").0, 0);
    fleet.wait_for("the bundle is kept", |known| known["rollout"]["outcome"] == "kept");
    assert!(is_delivered(&fleet.scenes[0]));
    // A rollout that all have kept is not undone by a failure.
    fleet.forge(&[("failure", "forged")]);
    fleet.wait_for("the forged failure is known", |known| known["rollout"]["failure"] == "forged");
    assert_eq!(fleet.known()["rollout"]["outcome"], "kept");
    assert_eq!((fleet.stage(0), is_delivered(&fleet.scenes[0])), ("kept".to_owned(), true));
}

/// The instance was away during a rollout that was aborted. An intruder has kept its bundle, which alice has signed.
#[test]
fn rollout_refuses_a_bundle_older_than_one_it_has_seen_and_one_that_was_signed_long_ago() {
    if !store::is_installed() {
        return;
    }
    let mut fleet = Fleet::start(1).rolled_out(GUARD);
    let day = SignedDuration::from_hours(24);
    let replay = |fleet: &Fleet, number: u64, age: SignedDuration, waves: &[&str]| {
        let (document, signature) = fleet.signed(number, age, waves);
        fleet.store.nodes[0].cli(&["hdel", "outgate:{rollout}", "report:egress-a", "failure", "approval:bob"]);
        let digest = digest(&document);
        fleet.forge(&[("document", &document), ("digest", &digest), ("signature", &signature)]);
    };
    let refuses = |fleet: &Fleet, reason: &str| {
        eventually(reason, || fleet.field("report:egress-a").contains(reason));
        assert!(is_delivered(&fleet.scenes[0]), "{reason}");
        let (code, shown, _) = fleet.run(&["fleet", "status"]);
        assert!(code == 1 && shown.contains(&format!("refuses the rollout in the store: {reason}")), "{shown}");
    };
    // The instance sees rollout 3, which it does not adopt: egress-z has to be the first.
    replay(&fleet, 3, SignedDuration::ZERO, &["egress-z", "egress-a"]);
    fleet.wait_for_stage(0, "checked");
    replay(&fleet, 2, SignedDuration::from_mins(30), &["egress-a"]);
    refuses(&fleet, "its number, 2, is below 3, which this instance has seen");
    fleet.restart(0);
    replay(&fleet, 2, SignedDuration::from_mins(31), &["egress-a"]);
    refuses(&fleet, "its number, 2, is below 3, which this instance has seen");
    for age in [day * 91, SignedDuration::from_hours(-2)] {
        replay(&fleet, 4, age, &["egress-a"]);
        refuses(&fleet, "the bundle was signed at");
    }
    // The admin listener starts no rollout with a bundle that was signed before.
    let (document, signature) = fleet.signed(4, SignedDuration::from_hours(2), &["egress-a"]);
    let body = json!({ "statement": "start", "document": document, "signature": signature }).to_string();
    let refused = call(&fleet.scenes[0].outgate, "POST", "/v1/fleet/rollout", &body);
    assert!(refused.status == 400 && refused.text().contains("the bundle was signed at"), "{}", refused.text());
    // A host that comes late adopts the bundle of a rollout that all others kept weeks ago.
    fleet.forge(&[("report:egress-z", &json!({ "stage": "kept" }).to_string())]);
    replay(&fleet, 4, day * 80, &["egress-z"]);
    eventually("the bundle is adopted", || !is_delivered(&fleet.scenes[0]));
    let repeat = "problem: rollout 4 waits for its repetition: in ";
    eventually(repeat, || fleet.run(&["fleet", "status"]).1.contains(repeat));
}

/// The steps of docs/fleet.md: the files of the host lose a section, which takes effect only together with the bundle.
#[test]
fn section_moves_from_the_file_of_a_host_into_the_first_bundle() {
    if !store::is_installed() {
        return;
    }
    let mut fleet = Fleet::start(1);
    let outgate = &fleet.scenes[0].outgate;
    let bare = outgate.config().add("server.watch", false);
    outgate.replace_config(&bare.and(GUARD));
    fleet.restart(0);
    assert!(is_delivered(&fleet.scenes[0]));
    let (code, _, err) = exit_code_and_output(&fleet.command(GUARD, &[]).output().unwrap());
    assert!(code != 0 && err.contains("`guard` is in two files"), "{code} {err}");
    fleet.scenes[0].outgate.replace_config(&bare);
    let (code, out, err) = exit_code_and_output(&fleet.command(GUARD, &["--pause", "1s"]).output().unwrap());
    assert_eq!(code, 0, "{out}{err}");
    let kept = fleet.wait_for("the bundle is kept", |known| known["rollout"]["outcome"] == "kept");
    assert_eq!(kept["rollout"]["approver"], Value::Null, "the host permits the same as before");
    assert!(is_delivered(&fleet.scenes[0]));
    // The same files again are a rollout with a new number and a new time.
    let watch = fleet.watch(GUARD, &["--pause", "1s"]);
    let (code, out, err) = exit_code_and_output(&watch.wait_with_output().unwrap());
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("rollout 2 of alice: kept"), "{out}");
}
