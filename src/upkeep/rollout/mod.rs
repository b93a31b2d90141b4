//! Follows the rollout of the fleet: checks the bundle, adopts it in this instance's turn, and goes back if it fails.
//! What does this instance do with the bundle that the operators have signed?

mod adoption;
mod health;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, mem};

use jiff::Timestamp;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::audit::{Event, ROLLOUT_FAILED};
use crate::history::bundle_folder::{AdoptedBundle, BundleFolder};
use crate::policy::rollout::bundle::{SignedBundle, Statement};
use crate::policy::rollout::{InstanceReport, PhaseClock, Progress, RolloutStage, RolloutStep, shortened};
use crate::state::Runtime;
use crate::state::config::reload_queue::BundleRequest;
use crate::state::fleet::{Fleet, FleetError, RolloutView};
use health::HealthWatch;

const INTERVAL: Duration = Duration::from_secs(1);
/// The time in which a tick waits for a bundle. A fetch that takes longer goes on beside the next ticks, which watch the health.
const FETCH_WAIT: Duration = Duration::from_millis(200);
/// The time without an announcement after which an instance counts as gone. The announcement itself lasts five seconds.
const MISSING_AFTER: Duration = Duration::from_secs(5);

/// Follows rollouts until the process ends. Without operators in the configuration it only waits for some.
pub async fn run(runtime: Arc<Runtime>, fleet: Arc<Fleet>, state: std::path::PathBuf) {
    let opened = runtime.history_reader.run(move || {
        let folder = BundleFolder::open(&state)?;
        folder.state().map(|state| (folder, state))
    });
    let (folder, state) = match opened.await.unwrap_or_else(|_| Err(io::Error::other("the read panicked"))) {
        Ok(opened) => opened,
        Err(error) => {
            let reason =
                format!("it cannot read its own state: {error}. Restore the file from a backup, and restart outgate");
            warn!("this instance follows no rollout: {reason}");
            return fleet.set_rollout(RolloutView { state_error: Some(reason), ..RolloutView::default() });
        }
    };
    let health = HealthWatch::new(&runtime);
    let view = RolloutView { state, folder: Some(folder.clone()), ..RolloutView::default() };
    let mut follower = Follower {
        runtime,
        fleet,
        folder,
        health,
        view,
        facts: BTreeMap::new(),
        judged: Default::default(),
        fetch: Default::default(),
        report: None,
        is_undo_pending: false,
        clock: PhaseClock::new(Instant::now()),
        last_seen: BTreeMap::new(),
    };
    follower.recover().await;
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        follower.health.sample(&follower.runtime);
        if follower.runtime.active_config().plan.operators.is_empty() {
            follower.forget();
        } else {
            follower.watch_health().await;
            if follower.fleet.is_up() && follower.follow().await.unwrap_or(false) {
                follower.step().await;
            } else {
                // What the store did not tell is no fault of an instance.
                follower.restart_clock();
            }
        }
        follower.fleet.set_rollout(follower.view.clone());
    }
}

struct Follower {
    runtime: Arc<Runtime>,
    fleet: Arc<Fleet>,
    folder: BundleFolder,
    health: HealthWatch,
    view: RolloutView,
    /// The facts in the store, without the document.
    facts: BTreeMap<String, String>,
    /// The digest and the signature that were verified last, and the digest of the configuration then.
    judged: (String, String, [u8; 32]),
    /// The digest of the bundle that is on its way from the bucket, and its fetch. Dropping the fetch ends it.
    fetch: (String, JoinSet<Result<String, FleetError>>),
    /// The report of this instance about a bundle that it has not adopted.
    report: Option<InstanceReport>,
    /// Whether the files or the active configuration are still those of a bundle from which this instance returns.
    is_undo_pending: bool,
    clock: PhaseClock,
    /// When each planned instance was last live.
    last_seen: BTreeMap<String, Instant>,
}

impl Follower {
    /// Finishes a switch that the end of the process has interrupted.
    async fn recover(&mut self) {
        let Some(mut adopted) = self.view.state.adopted.clone() else { return };
        let (folder, digest) = (self.folder.clone(), adopted.digest.clone());
        let Ok(is_current) = self.runtime.history_reader.run(move || folder.has(&digest)).await else { return };
        if adopted.stage == RolloutStage::RolledBack && is_current {
            self.undo(adopted).await;
        } else if adopted.stage != RolloutStage::RolledBack && !is_current {
            adopted.stage = RolloutStage::Checked;
            self.set_adopted(adopted).await;
        }
    }

    /// Forgets the rollout, because the store has another one, or because no operator is left. Only what is on the disk stays.
    fn forget(&mut self) {
        let RolloutView { state, folder, .. } = mem::take(&mut self.view);
        self.view = RolloutView { state, folder, ..RolloutView::default() };
        (self.judged, self.report) = Default::default();
        self.restart_clock();
    }

    /// Begins with the rollout of this digest, unless it is the one that this instance follows.
    fn begin(&mut self, digest: &str) {
        if self.view.digest.as_deref() != Some(digest) {
            self.forget();
            self.view.digest = Some(digest.to_owned());
        }
    }

    fn restart_clock(&mut self) {
        (self.clock, self.last_seen) = (PhaseClock::new(Instant::now()), BTreeMap::new());
    }

    /// Keeps the adopted bundle when its pause is over, or goes back if this instance is worse off than before. It needs no
    /// store.
    async fn watch_health(&mut self) {
        let Some(mut adopted) = self.view.state.adopted.clone() else { return };
        if adopted.stage == RolloutStage::RolledBack && self.is_undo_pending {
            return self.undo(adopted).await;
        }
        if adopted.stage != RolloutStage::Adopted {
            return;
        }
        if let Some(reason) = self.health.fault(&self.runtime, adopted.before) {
            self.go_back(adopted, reason).await;
        } else if self.health.adopted_for() >= Duration::from_secs(adopted.pause_seconds) {
            info!("rollout {}: this instance has kept the bundle", adopted.number);
            adopted.stage = RolloutStage::Kept;
            self.set_adopted(adopted).await;
        }
    }

    /// Exchanges facts with the store, and judges a bundle that it has not seen. Returns whether it knows the rollout in the
    /// store.
    async fn follow(&mut self) -> Result<bool, FleetError> {
        // The store may have another rollout by now, and the report of this instance is not about that one.
        let known = self.view.digest.clone().unwrap_or_default();
        let own = self.own_report(&known).and_then(|report| serde_json::to_string(&report).ok());
        let own = own.map(|report| (format!("report:{}", self.fleet.instance), report));
        let version = self.facts.get("version").cloned().unwrap_or_default();
        if let Some(facts) = self.fleet.report_rollout(&version, &known, own.as_slice()).await? {
            self.facts = facts;
        }
        // A change of the active configuration may change the operators, and what the bundle changes.
        if self.judged != self.subject(&self.facts) {
            let mut facts = self.fleet.report_rollout("", "", &[]).await?.unwrap_or_default();
            if !self.judge(&facts).await {
                return Ok(false);
            }
            facts.remove("document");
            (self.judged, self.facts) = (self.subject(&facts), facts);
        }
        self.read_facts();
        self.see_instances().await?;
        Ok(true)
    }

    /// Returns what a judgment depends on.
    fn subject(&self, facts: &BTreeMap<String, String>) -> (String, String, [u8; 32]) {
        let fact = |name: &str| facts.get(name).cloned().unwrap_or_default();
        (fact("digest"), fact("signature"), self.runtime.active_config().plan.digest)
    }

    fn own_report(&self, digest: &str) -> Option<InstanceReport> {
        let report = match self.view.state.adopted.as_ref().filter(|adopted| adopted.digest == digest) {
            Some(own) if own.stage != RolloutStage::Checked => Some(InstanceReport::new(own.stage, own.detail.clone())),
            _ => self.report.clone(),
        };
        report.map(InstanceReport::shortened)
    }

    /// Returns the document of the rollout. `None`: its fetch goes on.
    async fn document(&mut self, facts: &BTreeMap<String, String>, digest: &str) -> Option<Result<String, FleetError>> {
        // A bundle that was verified before needs no bucket.
        if let Some(known) = self.view.bundle.as_ref().filter(|bundle| bundle.digest() == digest) {
            return Some(Ok(known.document()));
        }
        if self.fetch.0 != digest || self.fetch.1.is_empty() {
            self.fetch = (digest.to_owned(), JoinSet::new());
            let (fleet, facts) = (Arc::clone(&self.fleet), facts.clone());
            self.fetch.1.spawn(async move { fleet.document(&facts).await });
        }
        let fetched = timeout(FETCH_WAIT, self.fetch.1.join_next()).await.ok()??;
        Some(fetched.unwrap_or_else(|panic| Err(FleetError::Bucket(io::Error::other(panic)))))
    }

    /// Verifies and checks a bundle. Returns false if its document is not here, or its number cannot be stored now.
    async fn judge(&mut self, facts: &BTreeMap<String, String>) -> bool {
        let Some(digest) = facts.get("digest") else {
            self.begin("");
            return true;
        };
        let document = match self.document(facts, digest).await {
            None => return false,
            Some(Ok(document)) => document,
            Some(Err(error)) => {
                self.begin(digest);
                let reason = shortened(&error.to_string());
                // The errors of two attempts may differ: one line is enough.
                if self.view.fetch_error.is_none() {
                    warn!("cannot read the bundle of the rollout, and tries again: {reason}");
                }
                self.view.fetch_error = Some(reason);
                return false;
            }
        };
        let signature = facts.get("signature").map(String::as_str).unwrap_or_default();
        let (active, seen) = (self.runtime.active_config(), self.view.state.seen);
        let verified = SignedBundle::verify(&document, signature, &self.fleet.prefix, &active.plan.operators);
        let verified = verified.map_err(|error| error.to_string()).and_then(|bundle| match &self.view.state.adopted {
            _ if bundle.digest() != digest => Err("the store has another digest than that of the bundle".to_owned()),
            Some(own) if own.digest == bundle.digest() => Ok(Arc::new(bundle)),
            Some(own) if bundle.number == own.number => {
                Err(format!("its number, {}, is that of the bundle that this instance has adopted", own.number))
            }
            _ if bundle.number < seen => {
                Err(format!("its number, {}, is below {seen}, which this instance has seen", bundle.number))
            }
            _ => bundle.may_be_adopted(Timestamp::now()).map_err(|error| error.to_string()).map(|()| Arc::new(bundle)),
        });
        // Before it is on the disk that this rollout exists, a restart could begin an earlier one.
        if let Some(number) = verified.as_ref().ok().map(|bundle| bundle.number).filter(|number| *number > seen)
            && !self.remember(|state| state.seen = number).await
        {
            return false;
        }
        self.begin(digest);
        self.view.fetch_error = None;
        match verified {
            Ok(bundle) => {
                self.check(&bundle).await;
                self.view.bundle = Some(bundle);
            }
            Err(reason) => {
                warn!("this instance refuses the rollout: {reason}");
                (self.view.bundle, self.view.problem) = (None, Some(reason.clone()));
                self.report = Some(InstanceReport::new(RolloutStage::Refused, reason));
            }
        }
        true
    }

    /// Compares a bundle with the active configuration of this host.
    async fn check(&mut self, bundle: &Arc<SignedBundle>) {
        let (folder, bundle) = (self.folder.clone(), bundle.bundle());
        let check = |reply| BundleRequest::Check { folder, bundle, reply };
        let Some(check) = self.runtime.reload_queue.ask_about_bundle(check).await else { return };
        let stage = if check.problem.is_some() { RolloutStage::Refused } else { RolloutStage::Checked };
        let detail = check.problem.clone().unwrap_or_default();
        (self.view.difference, self.view.problem) = (check.outcome.difference, check.problem);
        self.report = Some(InstanceReport { stage, approval: check.approval, detail });
    }

    /// Reads the facts about the verified bundle. A statement of an operator counts only with a valid signature.
    fn read_facts(&mut self) {
        let active = self.runtime.active_config();
        let (bundle, operators) = (self.view.bundle.as_deref(), &active.plan.operators);
        let signer = |statement, signature: &String| bundle?.signer(statement, signature, operators).map(str::to_owned);
        self.view.approver = self
            .facts
            .iter()
            .filter(|(name, _)| name.starts_with("approval:"))
            .find_map(|(_, signature)| signer(Statement::Approve, signature));
        let aborter = self.facts.get("abort").and_then(|signature| signer(Statement::Abort, signature));
        let stated = self.facts.get("failure").map(|text| shortened(text));
        let failure = aborter.map(|name| format!("{name} has aborted it")).or(stated);
        let is_over = bundle.is_some_and(|bundle| bundle.number <= self.view.state.ended);
        self.view.ended = failure.or_else(|| is_over.then(|| "it has ended before".to_owned()));
        let report = |(name, text): (&String, &String)| {
            let report: InstanceReport = serde_json::from_str(text).ok()?;
            Some((name.strip_prefix("report:")?.to_owned(), report.shortened()))
        };
        self.view.reports = self.facts.iter().filter_map(report).collect();
        if let Some(own) = bundle.and_then(|bundle| self.own_report(bundle.digest())) {
            self.view.reports.insert(self.fleet.instance.clone(), own);
        }
    }

    async fn see_instances(&mut self) -> Result<(), FleetError> {
        if self.view.is_in_progress() {
            let (live, now) = (self.fleet.live_instances().await?, Instant::now());
            let planned = self.view.bundle.iter().flat_map(|bundle| bundle.waves.iter().flatten());
            for name in planned {
                let seen = self.last_seen.entry(name.clone()).or_insert(now);
                if live.contains(name) {
                    *seen = now;
                }
            }
        }
        Ok(())
    }

    /// Does what this instance has to do now.
    async fn step(&mut self) {
        let Some(bundle) = self.view.bundle.clone() else { return };
        // A rollout begins when all planned instances keep the former one, or it has failed.
        let is_interrupted =
            |own: &AdoptedBundle| own.stage == RolloutStage::Adopted && own.is_planned && own.number < bundle.number;
        if let Some(own) = self.view.state.adopted.clone().filter(is_interrupted) {
            return self.go_back(own, "the rollout has failed while this instance was away".to_owned()).await;
        }
        let missing: BTreeSet<String> = self
            .last_seen
            .iter()
            .filter(|(_, seen)| seen.elapsed() > MISSING_AFTER)
            .map(|(name, _)| name.clone())
            .collect();
        let mut progress = Progress {
            instance: &self.fleet.instance,
            waves: &bundle.waves,
            pause: bundle.pause(),
            reports: &self.view.reports,
            is_approved: self.view.approver.is_some(),
            has_ended: self.view.ended.is_some(),
            missing: &missing,
            unchanged_for: Duration::ZERO,
        };
        let phase = progress.phase();
        progress.unchanged_for = self.clock.unchanged_for(phase, Instant::now());
        let step = progress.next_step();
        self.view.wave = phase.0;
        self.view.waits_for = progress.waits_for().or_else(|| bundle.renewal(Timestamp::now()));
        let own = self.view.state.adopted.clone().filter(|own| own.digest == bundle.digest());
        let is_final = own.as_ref().is_some_and(|own| own.is_final);
        self.view.is_kept = is_final || phase.0.is_none() && self.view.ended.is_none();
        if self.view.ended.is_some() && !is_final && bundle.number > self.view.state.ended {
            let number = bundle.number;
            if self.remember(|state| state.ended = number).await {
                let reason = self.view.ended.clone().unwrap_or_default();
                let event = Event::new(ROLLOUT_FAILED, number.to_string(), Timestamp::now(), reason);
                self.runtime.audit.record(event.with("digest", bundle.digest()));
            }
        }
        if let Some(mut own) =
            own.clone().filter(|own| self.view.is_kept && own.stage == RolloutStage::Kept && !own.is_final)
        {
            info!("rollout {}: all instances have kept the bundle", own.number);
            own.is_final = true;
            self.set_adopted(own).await;
        }
        match step {
            RolloutStep::Wait => {}
            RolloutStep::Adopt => self.adopt(bundle).await,
            RolloutStep::RollBack => {
                let Some(own) = own.filter(|own| !own.is_final) else { return };
                self.go_back(own, self.view.ended.clone().unwrap_or_default()).await;
            }
            RolloutStep::Fail(reason) => {
                let reason = shortened(&reason);
                warn!("rollout {} has failed: {reason}", bundle.number);
                // The next tick repeats what the store did not take.
                let version = self.facts.get("version").map(String::as_str).unwrap_or_default();
                let _ = self.fleet.report_rollout(version, bundle.digest(), &[("failure".to_owned(), reason)]).await;
            }
        }
    }
}
