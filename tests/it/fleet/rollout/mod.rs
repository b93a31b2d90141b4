//! Rollouts of signed bundles, with a store that others may write to: a fleet whose instances have operators.
//! Does every instance adopt only what operators have signed, in its turn, and return if the rollout fails?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod bucket;
mod failures;
mod intruders;
mod replaced;
mod waves;

use std::path::Path;
use std::process::{Child, Command, Stdio};

use jiff::{SignedDuration, Timestamp};
use outgate::policy::rollout::OperatorKey;
use outgate::policy::rollout::bundle::{Bundle, Statement, digest};
use serde_json::Value;

use super::restarted;
use crate::support::audit::records_in;
use crate::support::configuration::Config;
use crate::support::control::{exit_code_and_output, get, run};
use crate::support::pki::Pki;
use crate::support::receiver::{Receiver, ok};
use crate::support::scene::{Scene, config, folder};
use crate::support::store::{Store, StoreForm};
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

    /// Stops and undoes a rollout as bob.
    fn abort(&self, number: u64) {
        let key = self.desk.path("bob.pem").display().to_string();
        let (code, _, err) = self.run(&["fleet", "abort", &number.to_string(), "--key", &key]);
        assert_eq!(code, 0, "{err}");
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

pub(super) fn is_delivered(scene: &Scene) -> bool {
    scene.outgate.post(&scene.plain_url(), "", "x").status == 200
}

/// Returns the records of changes that came from rollouts.
fn rollouts(scene: &Scene) -> Vec<Value> {
    let records = records_in(&scene.outgate.folder.path("audit.jsonl"));
    records.into_iter().filter(|record| record["source"] == "fleet").collect()
}
