//! `outgate fleet rollout`: signs a bundle of configuration files and starts its rollout, or shows one.
//! Which instance adopts the bundle when, and have all of them kept it?

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::control::{AdminRequest, ProxySelector, print_outcome, print_rejection};
use super::super::{escape_control_characters, print_problems};
use crate::config::{self, duration_argument};
use crate::policy::rollout::OperatorKey;
use crate::policy::rollout::bundle::{Bundle, PAUSE_MAX, Statement, digest, file_name};
use crate::policy::rollout::waves::{WaveSize, plan_waves};
use crate::state::config::status::{ReloadOutcome, ReloadVerdict};
use crate::sysexits;

/// The resource of the admin listener.
pub(super) const ROLLOUT: &str = "/v1/fleet/rollout";
const ROLLOUT_CHECK: &str = "/v1/fleet/rollout/check";
/// The interval between two looks at the rollout.
const POLL: Duration = Duration::from_secs(1);
/// The time without an answer after which the command ends.
const AWAY_MAX: Duration = Duration::from_secs(30);

#[derive(Args)]
#[command(after_help = "Examples:
  outgate fleet rollout fleet.toml --dry-run
  outgate fleet rollout fleet.toml --key alice.pem --canary 1 --then 25% --then all --watch
  outgate fleet rollout --status --watch

The bundle has FILE and the files that its `include` names. The command prints the change, as the instance of this host
computes it, and why this instance asks for an approval. Each instance checks the bundle on its own host. A wave begins when all
instances of the waves before have kept the bundle; its instances keep it after the pause, unless they are not ready or
refuse more than before. Then every instance returns to its former bundle. The end of this command ends no rollout.

Exit code 0: the rollout has begun; with --watch, all instances keep it; with --dry-run, the instance of this host would adopt
it. 1: with --watch, the rollout has failed, or the fleet has it no longer; or the key cannot be read, or is of no operator. 78:
a file has a problem, also on the host of this instance. 69: outgate does not start the rollout, is not running, or does not
reach the store; that ends --watch after 30 seconds.")]
pub(in crate::cli) struct Rollout {
    /// The main file of the bundle
    #[arg(value_name = "FILE", required_unless_present = "status")]
    file: Option<PathBuf>,
    /// The private Ed25519 key of an operator of [fleet.operators]
    #[arg(long, value_name = "FILE", required_unless_present_any = ["status", "dry_run"])]
    key: Option<PathBuf>,
    /// The size of the first wave: a number of instances, a percentage, or all
    #[arg(long, value_name = "SIZE", default_value = "1")]
    canary: WaveSize,
    /// How many instances have the bundle after the next wave: 5, 25%, all. The last wave has all that are left
    #[arg(long, value_name = "SIZE")]
    then: Vec<WaveSize>,
    /// The time for which each wave is watched, at most an hour
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = pause_argument)]
    pause: Duration,
    /// Print the change and the waves, and start nothing
    #[arg(long, conflicts_with_all = ["status", "watch"])]
    dry_run: bool,
    /// Follow the rollout, with --status the last one, until all instances keep it, or it has failed
    #[arg(long)]
    watch: bool,
    /// Show the last rollout
    #[arg(long, conflicts_with_all = ["file", "key"])]
    status: bool,
    /// Print JSON, with --status
    #[arg(long, requires = "status", conflicts_with = "watch")]
    json: bool,
    #[command(flatten)]
    proxy: ProxySelector,
}

fn pause_argument(text: &str) -> Result<Duration, String> {
    let pause = duration_argument(text)?;
    if pause <= PAUSE_MAX { Ok(pause) } else { Err(format!("it is longer than {} s", PAUSE_MAX.as_secs())) }
}

/// A file of the operator, with its name in the bundle.
struct BundleFile {
    name: String,
    path: String,
    text: String,
}

impl BundleFile {
    fn new((position, (path, text)): (usize, &(PathBuf, Arc<str>))) -> Self {
        Self { name: file_name(position, path), path: path.display().to_string(), text: text.to_string() }
    }
}

impl Rollout {
    pub(super) fn run(self) -> Result<ExitCode, ExitCode> {
        let known: Value = self.proxy.send(&AdminRequest::get(ROLLOUT))?;
        let Some(file) = &self.file else {
            return match (known["rollout"]["number"].as_u64(), known["digest"].as_str()) {
                (Some(number), Some(digest)) if self.watch => self.follow(number, digest),
                _ => {
                    let shown = if self.json { format!("{known:#}") } else { describe(&known) };
                    println!("{shown}");
                    Ok(ExitCode::SUCCESS)
                }
            };
        };
        let files = config::read_bundle_files(file).map_err(|error| {
            print_problems(&error.problems, &error.sources);
            ExitCode::from(sysexits::CONFIG)
        })?;
        let files: Vec<BundleFile> = files.iter().enumerate().map(BundleFile::new).collect();
        let key = self.key.as_deref().map(|path| read_key(path, &known)).transpose()?;
        let author = key.as_ref().map(|(_, author)| author.clone()).unwrap_or_default();
        let bundle = self.bundle(&files, author, &known);
        let document = bundle.document();
        self.check(&document, &files, &known)?;
        let Some((key, _)) = key.filter(|_| !self.dry_run) else {
            eprintln!("the waves would be: {}", describe_waves(&bundle.waves));
            return Ok(ExitCode::SUCCESS);
        };
        let digest = digest(&document);
        let signature = key.sign(&Statement::Start.text(&digest));
        let body = json!({ "statement": Statement::Start, "signature": signature, "document": document });
        self.proxy.send(&AdminRequest::post(ROLLOUT, body.to_string().into_bytes()))?;
        eprintln!("rollout {} has begun: {}", bundle.number, describe_waves(&bundle.waves));
        if self.watch { self.follow(bundle.number, &digest) } else { Ok(ExitCode::SUCCESS) }
    }

    fn bundle(&self, files: &[BundleFile], author: String, known: &Value) -> Bundle {
        let instances: BTreeSet<String> = serde_json::from_value(known["live_instances"].clone()).unwrap_or_default();
        let sizes: Vec<WaveSize> = std::iter::once(self.canary).chain(self.then.iter().copied()).collect();
        Bundle {
            fleet: known["fleet"].as_str().unwrap_or_default().to_owned(),
            number: known["next_number"].as_u64().unwrap_or_default(),
            created_at: Timestamp::now(),
            author,
            waves: plan_waves(&instances, &sizes),
            pause_seconds: self.pause.as_secs(),
            files: files.iter().map(|file| (file.name.clone(), file.text.clone())).collect(),
        }
    }

    /// Prints what the bundle changes on the host of the instance, or its problems there, with the files of the operator.
    fn check(&self, document: &str, files: &[BundleFile], known: &Value) -> Result<(), ExitCode> {
        let body = json!({ "document": document });
        let check = self.proxy.send(&AdminRequest::post(ROLLOUT_CHECK, body.to_string().into_bytes()))?;
        let mut outcome: ReloadOutcome = serde_json::from_value(check.clone()).map_err(|error| {
            eprintln!("outgate: cannot parse the response of the proxy: {error}");
            ExitCode::from(sysexits::UNAVAILABLE)
        })?;
        if outcome.outcome == ReloadVerdict::Rejected {
            let name_file = |report: String, file: &BundleFile| report.replace(&file.name, &file.path);
            outcome.report = files.iter().fold(outcome.report, name_file);
            return Err(print_rejection(&outcome));
        }
        print_outcome(&outcome);
        let instance = known["instance"].as_str().unwrap_or_default();
        let reasons = check["approval"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let reasons = reasons.map(|reason| format!("approval: {reason} (on {instance})"));
        let nothing =
            (outcome.outcome == ReloadVerdict::Unchanged).then(|| format!("the bundle changes nothing on {instance}"));
        reasons.chain(nothing).for_each(|line| println!("{}", escape_control_characters(&line)));
        Ok(())
    }

    /// Prints each change of the rollout until it is over, or until the store has it no longer.
    fn follow(&self, number: u64, digest: &str) -> Result<ExitCode, ExitCode> {
        let (mut shown, mut is_seen, mut answered_at) = (String::new(), false, Instant::now());
        loop {
            let known = match self.proxy.try_send(&AdminRequest::get(ROLLOUT)) {
                Ok(known) => known,
                // The rollout goes on while the store or the instance of this host is away for a moment.
                Err(error) if answered_at.elapsed() > AWAY_MAX => return Err(error.report()),
                Err(_) => {
                    std::thread::sleep(POLL);
                    continue;
                }
            };
            answered_at = Instant::now();
            let rollout = &known["rollout"];
            if known["digest"] == digest {
                is_seen = true;
                let line = describe(&known);
                if line != shown {
                    println!("{line}");
                    shown = line;
                }
                match rollout["outcome"].as_str() {
                    Some("kept") => return Ok(ExitCode::SUCCESS),
                    Some("failed") if has_returned(rollout) => return Ok(ExitCode::FAILURE),
                    None if known["refusal"].is_string() => return Ok(ExitCode::FAILURE),
                    _ => {}
                }
            } else if is_lost(&known, number, is_seen) {
                eprintln!(
                    "outgate: the fleet has rollout {number} no longer: the next one has replaced it, or the store has lost it"
                );
                return Err(ExitCode::FAILURE);
            }
            std::thread::sleep(POLL);
        }
    }
}

/// Returns whether the store has another rollout than the one that is followed, or none. After the start of a rollout, the
/// instance shows the former one for a moment. After its own start, it shows no digest.
fn is_lost(known: &Value, number: u64, is_seen: bool) -> bool {
    let is_later = known["rollout"]["number"].as_u64().is_some_and(|other| other >= number);
    known["digest"].is_string() && (is_seen || is_later)
}

/// Returns whether all live instances have returned to their former bundle.
fn has_returned(rollout: &Value) -> bool {
    rollout["returning"].as_array().is_none_or(Vec::is_empty)
}

/// Reads the key of an operator, and finds the operator's name.
pub(super) fn read_key(path: &Path, known: &Value) -> Result<(OperatorKey, String), ExitCode> {
    let failed = |message: String| {
        eprintln!("outgate: {}: {message}", path.display());
        ExitCode::FAILURE
    };
    let pem = std::fs::read(path).map(zeroize::Zeroizing::new).map_err(|error| failed(error.to_string()))?;
    let key = OperatorKey::parse(&pem).map_err(failed)?;
    let public = key.public_key();
    let mut operators = known["operators"].as_object().into_iter().flatten();
    match operators.find(|(_, key)| key.as_str() == Some(public.as_str())) {
        Some((name, _)) => Ok((key, name.clone())),
        None => Err(failed("no operator of [fleet.operators] has this key".to_owned())),
    }
}

fn describe_waves(waves: &[BTreeSet<String>]) -> String {
    let names = |wave: &BTreeSet<String>| Vec::from_iter(wave.iter().map(String::as_str)).join(", ");
    let waves = waves.iter().zip(1..).map(|(wave, number)| format!("wave {number} {}", names(wave)));
    Vec::from_iter(waves).join("; ")
}

/// Describes the last rollout in one line, with the stage of each instance.
fn describe(known: &Value) -> String {
    let rollout = &known["rollout"];
    let line = match (known["refusal"].as_str(), known["bundle_error"].as_str()) {
        _ if !rollout.is_null() => describe_rollout(rollout),
        (Some(reason), _) => format!("this instance refuses the rollout of the fleet: {reason}"),
        (None, Some(error)) => format!("this instance cannot read the bundle of the rollout, and tries again: {error}"),
        (None, None) => "the fleet has no rollout".to_owned(),
    };
    escape_control_characters(&line)
}

fn describe_rollout(rollout: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().replace('_', " ");
    let stages = rollout["instances"].as_object().into_iter().flatten();
    let stages: Vec<_> = stages.map(|(name, report)| format!("{name} {}", text(&report["stage"]))).collect();
    let by = text(&rollout["author"]);
    let approver = rollout["approver"].as_str().map(|name| format!(", approved by {name}")).unwrap_or_default();
    let failure = rollout["failure"].as_str().map(|reason| format!(": {reason}")).unwrap_or_default();
    let (number, outcome) = (&rollout["number"], text(&rollout["outcome"]));
    let waves = rollout["waves"].as_array().map_or(0, Vec::len);
    let is_over = rollout["outcome"] == "kept" || rollout["outcome"] == "failed";
    let wave = rollout["wave"].as_u64().filter(|_| !is_over).map(|wave| format!(", wave {wave} of {waves}"));
    let waits = rollout["waits_for"].as_str().map(|what| format!("; it waits for {what}")).unwrap_or_default();
    let (wave, stages) = (wave.unwrap_or_default(), stages.join(", "));
    format!("rollout {number} of {by}{approver}: {outcome}{wave}{failure}; {stages}{waits}")
}
