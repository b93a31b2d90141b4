//! `outgate egress probe --targets`: probes the targets of many customers, a few connections at a time.
//! How are ten thousand targets probed without a flood of connections to one host?

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::signal;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::mail::{Message, messages};
use super::measurement::{Measured, RangeToAllow, silent_ranges};
use super::report::BulkReport;
use super::targets::{self, ListedTarget};
use super::verdict::{Attempt, ProbedTarget, Verdict};
use crate::cli::ValidConfig;
use crate::cli::local_runtime::{run_locally, usage_error};
use crate::cli::new_file::write_secret;
use crate::config::{duration_argument, parse_url};
use crate::delivery::{self, ProbeRequest};
use crate::names::{ClientName, TenantName, escape_in_json, pluralize};
use crate::policy::egress::{AnnouncedRange, NewRanges, Pool};
use crate::state::Runtime;
use crate::sysexits;

/// Hosts that are probed at the same time.
const HOSTS_MAX: usize = 16;
/// Connections to one host at the same time.
const CONNECTIONS_PER_HOST_MAX: usize = 4;
/// The longest part of a customer's name in the name of a file, in bytes.
const SLUG_MAX: usize = 40;

#[derive(Args)]
pub(super) struct BulkArgs {
    /// Probe the targets of this file, one a line: `URL CUSTOMER`, or CSV with the header url,customer,contact; - is stdin
    #[arg(long, value_name = "FILE")]
    pub(super) targets: Option<PathBuf>,
    /// Print CSV
    #[arg(long, conflicts_with_all = ["json", "url"])]
    csv: bool,
    /// Write a mail for each customer whose allow-list lacks addresses into this new or empty folder
    #[arg(long, value_name = "DIR", conflicts_with = "url")]
    mail: Option<PathBuf>,
    /// The name of your organisation, for the mails
    #[arg(long, value_name = "NAME", conflicts_with = "url", value_parser = sender_argument)]
    sender: Option<String>,
    /// The address of the published list, which the mails name
    #[arg(long, value_name = "URL", conflicts_with = "url", value_parser = url_argument)]
    list_url: Option<String>,
    /// The time for the first tries of all addresses with one target
    #[arg(long, value_name = "TIME", conflicts_with = "url", value_parser = duration_argument, default_value = "5m")]
    pub(super) target_timeout: Duration,
    /// The timeout of the command, which then reports what it knows
    #[arg(long, value_name = "TIME", conflicts_with = "url", value_parser = duration_argument, default_value = "1h")]
    total_timeout: Duration,
}

/// The settings of all probes.
pub(super) struct BulkSettings {
    pub client: ClientName,
    pub tenant: Option<TenantName>,
    pub pool: Option<Arc<Pool>>,
    pub new: NewRanges,
    pub sources_max: usize,
    pub timeout: Option<Duration>,
    /// The time for the first tries of a target.
    pub limit: Duration,
}

impl BulkArgs {
    pub(super) fn run(
        self,
        file: &Path,
        valid: ValidConfig,
        settings: BulkSettings,
        is_json: bool,
    ) -> Result<ExitCode, ExitCode> {
        let listed = read_targets(file)?;
        if self.mail.is_some() && listed.iter().all(|listed| listed.contact.is_none()) {
            eprintln!("outgate: {}: no target has a contact: the mails have no recipient", file.display());
        }
        if let Some(folder) = &self.mail {
            prepare_folder(folder).map_err(|error| cannot_create(folder, &error))?;
        }
        let started = Timestamp::now();
        let new_ranges = new_ranges(&valid, &settings, started);
        let settings = Arc::new(settings);
        let (incomplete, mut attempts) = run_locally(valid, async |runtime| {
            let sources = runtime.sources.snapshot();
            let is_whole = |cidr: IpNet| IpNet::aggregate(&sources.usable_ranges(&[cidr])) == [cidr];
            let incomplete = new_ranges.iter().filter(|range| !is_whole(range.cidr)).map(|range| range.seen_as);
            (incomplete.collect::<BTreeSet<_>>(), self.probe_all(runtime, &settings, &listed).await)
        })?;
        let new = RangeToAllow::merge(new_ranges);
        let silent = silent_ranges(
            attempts.iter().filter_map(|(index, attempt)| Some((&listed.get(*index)?.target, attempt.as_ref().ok()?))),
        );
        let interrupted = || Err((Verdict::Unfinished, "The probe was interrupted.".to_owned()));
        let results = listed.into_iter().enumerate().map(|(index, listed)| {
            ProbedTarget::new(listed, attempts.remove(&index).unwrap_or_else(interrupted), &silent)
        });
        let results: Vec<ProbedTarget> = results.collect();
        let messages = messages(&results, self.sender.as_deref(), self.list_url.as_deref());
        let (results, messages, ended) = (&results[..], &messages[..], Timestamp::now());
        let report = BulkReport { started, ended, new, incomplete, results, messages };
        match (is_json, self.csv) {
            (true, _) => println!("{}", escape_in_json(&format!("{:#}", report.to_json()))),
            (_, true) => print!("{}", report.to_csv()),
            _ => print!("{}", report.to_text()),
        }
        if let Some(folder) = &self.mail {
            write_mails(folder, messages).map_err(|error| cannot_create(folder, &error))?;
        }
        let is_allowed = |result: &ProbedTarget| result.verdict == Verdict::Allowed;
        let all = report.incomplete.is_empty() && results.iter().all(is_allowed);
        Ok(if all { ExitCode::SUCCESS } else { ExitCode::from(sysexits::UNAVAILABLE) })
    }

    /// Probes the targets of each host in turn, and those of several hosts at a time, until all have an outcome, the time
    /// is over, or the operator interrupts.
    async fn probe_all(
        &self,
        runtime: &Arc<Runtime>,
        settings: &Arc<BulkSettings>,
        listed: &[ListedTarget],
    ) -> HashMap<usize, Attempt> {
        let mut hosts: BTreeMap<_, Vec<(usize, ListedTarget)>> = BTreeMap::new();
        for (index, target) in listed.iter().enumerate() {
            hosts.entry(target.target.host.clone()).or_default().push((index, target.clone()));
        }
        let deadline = Instant::now() + self.total_timeout;
        let (sender, mut outcomes) = mpsc::channel(HOSTS_MAX);
        let (queue, mut workers) = (Arc::new(Mutex::new(hosts.into_values())), JoinSet::new());
        for _ in 0..HOSTS_MAX {
            let (queue, sender) = (Arc::clone(&queue), sender.clone());
            let (runtime, settings) = (Arc::clone(runtime), Arc::clone(settings));
            workers.spawn(async move {
                while let Some(targets) = { queue.lock().next() } {
                    probe_host(&runtime, &settings, targets, &sender).await;
                }
            });
        }
        drop(sender);
        let mut interrupt = pin!(signal::ctrl_c());
        let mut known = HashMap::new();
        loop {
            tokio::select! {
                biased; // an outcome that exists is reported
                next = outcomes.recv() => match next {
                    Some((index, outcome)) => drop(known.insert(index, outcome)),
                    None => break known,
                },
                () = sleep_until(deadline) => break known,
                _ = &mut interrupt => break known,
            }
        }
    }
}

impl BulkSettings {
    fn request<'a>(&'a self, url: &'a str) -> ProbeRequest<'a> {
        ProbeRequest {
            url,
            client: &self.client,
            tenant: self.tenant.as_ref(),
            pool: self.pool.as_ref(),
            new: &self.new,
            max_sources: self.sources_max,
            connections_max: CONNECTIONS_PER_HOST_MAX,
            confirms: true,
            limit: Some(self.limit),
            timeout: self.timeout,
            echo: None,
        }
    }

    async fn probe(&self, runtime: &Arc<Runtime>, request: &ProbeRequest<'_>) -> Attempt {
        let report = delivery::probe(runtime, request).await.map_err(|refusal| refused(runtime, &refusal))?;
        Ok(Measured::new(&report, matches!(self.new, NewRanges::Within(_)), Timestamp::now()))
    }
}

/// Probes the targets of one host, one after the other. Customers may share a target, such as the webhook service of a
/// chat: it is probed once.
async fn probe_host(
    runtime: &Arc<Runtime>,
    settings: &BulkSettings,
    targets: Vec<(usize, ListedTarget)>,
    outcomes: &mpsc::Sender<(usize, Attempt)>,
) {
    let mut known = HashMap::new();
    for (index, listed) in targets {
        let request = settings.request(&listed.url);
        let outcome = match delivery::probe_route(runtime, &request) {
            Err(refusal) => Err(refused(runtime, &refusal)),
            Ok((target, route)) => {
                let connections = (target, route.name.clone());
                if !known.contains_key(&connections) {
                    known.insert(connections.clone(), settings.probe(runtime, &request).await);
                }
                known[&connections].clone()
            }
        };
        // The receiver is gone when the command ends.
        let _ = outcomes.send((index, outcome)).await;
    }
}

fn refused(runtime: &Runtime, refusal: &delivery::refusal::Refusal) -> (Verdict, String) {
    let detail = refusal.detail(&runtime.active_config().plan.redactor).to_string();
    (Verdict::Refused, format!("{}: {detail}", refusal.code.name()))
}

/// Returns the new ranges of all pools that may be probed.
fn new_ranges(valid: &ValidConfig, settings: &BulkSettings, now: Timestamp) -> Vec<AnnouncedRange> {
    let pools = valid.plan.pools.values();
    let pools = pools.filter(|pool| settings.pool.as_ref().is_none_or(|chosen| chosen.name() == pool.name()));
    pools.flat_map(|pool| pool.compared_ranges(&settings.new, now).new).collect()
}

fn read_targets(path: &Path) -> Result<Vec<ListedTarget>, ExitCode> {
    let mut bytes = Vec::new();
    let read = match path.as_os_str() == "-" {
        true => io::stdin().lock().take(targets::FILE_MAX + 1).read_to_end(&mut bytes),
        false => File::open(path).and_then(|file| file.take(targets::FILE_MAX + 1).read_to_end(&mut bytes)),
    };
    let report = |code: u8, reason: &str| {
        eprintln!("outgate: {}: {reason}", path.display());
        ExitCode::from(code)
    };
    match read {
        Err(error) => return Err(report(sysexits::NO_INPUT, &error.to_string())),
        Ok(length) if length as u64 > targets::FILE_MAX => {
            return Err(report(sysexits::DATA, "the file is longer than 16 MiB; divide it"));
        }
        Ok(_) => {}
    }
    let (listed, unknown) = targets::parse(&bytes)
        .map_err(|errors| report(sysexits::DATA, &errors.join(&format!("\noutgate: {}: ", path.display()))))?;
    if !unknown.is_empty() {
        eprintln!("outgate: {}: the command ignores the columns {}", path.display(), unknown.join(", "));
    }
    Ok(listed)
}

/// Creates the folder of the mails. A mail of a former probe must not be sent again, so it is empty.
fn prepare_folder(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    match fs::read_dir(folder)?.next() {
        Some(_) => Err(io::Error::new(io::ErrorKind::DirectoryNotEmpty, "the folder is not empty: name a new one")),
        None => Ok(()),
    }
}

fn write_mails(folder: &Path, messages: &[Message<'_>]) -> io::Result<()> {
    for (number, message) in (1..).zip(messages) {
        let is_plain = |c: char| c.is_ascii_alphanumeric();
        let mut slug = message.customer.to_lowercase().replace(|c| !is_plain(c), "-");
        slug.truncate(SLUG_MAX);
        write_secret(&folder.join(format!("{number:04}-{}.txt", slug.trim_matches('-'))), message.to_mail())?;
    }
    eprintln!("outgate: {} in {}", pluralize(messages.len(), "mail"), folder.display());
    Ok(())
}

fn cannot_create(folder: &Path, error: &io::Error) -> ExitCode {
    eprintln!("outgate: cannot write the mails to {}: {error}", folder.display());
    ExitCode::from(sysexits::CANNOT_CREATE)
}

fn sender_argument(text: &str) -> Result<String, &'static str> {
    match text.trim() {
        "" => Err("the name is empty"),
        name if name.contains(char::is_control) => Err("the name has a control character"),
        name => Ok(name.to_owned()),
    }
}

fn url_argument(text: &str) -> Result<String, &'static str> {
    parse_url(text).map(|_| text.to_owned())
}

/// Returns the new ranges that the operator names, if a pool has each of them.
pub(super) fn named_ranges(valid: &ValidConfig, ranges: &[IpNet]) -> Result<NewRanges, ExitCode> {
    let now = Timestamp::now();
    for range in ranges {
        let new = NewRanges::Within(vec![*range]);
        if valid.plan.pools.values().all(|pool| pool.compared_ranges(&new, now).new.is_empty()) {
            return Err(usage_error(&format!(
                "--range: no pool has a range within {range}; write the new range into a pool with its `from` first"
            )));
        }
    }
    Ok(NewRanges::Within(ranges.to_vec()))
}
