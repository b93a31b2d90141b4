//! One case of the simulation: a seed, and perhaps a cancellation or a reset at a known place. It runs in a process.
//! How does a case run, and how is it named so that it runs again?
//!
//! tokio seeds its random numbers, which order the receivers of a `watch` channel, from a count of the runtimes in the
//! process. So each case needs a new process. The process is this test binary, which runs only `simulation::replay`.

use std::fmt;
use std::process::Command;

use super::run;
use super::scenario::Scenario;

/// The variable that names a case: `SEED`, `SEED,sweep`, `SEED,cancel,CLIENT,POLL` or `SEED,reset,OPERATION`.
const VARIABLE: &str = "OUTGATE_SIMULATION";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Case {
    pub(super) seed: u64,
    /// The scenario is a small one, whose operations are all pending at first.
    pub(super) is_sweep: bool,
    /// The task of this client's connection is dropped at this poll.
    pub(super) cancel_at: Option<(usize, u64)>,
    /// This operation of outgate on a socket meets a reset.
    pub(super) reset_at: Option<u64>,
}

/// The report of the process of a case.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) trace: Vec<String>,
    pub(super) violations: Vec<String>,
    pub(super) delivered: usize,
    pub(super) operations: u64,
    pub(super) polls: Vec<u64>,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.cancel_at, self.reset_at) {
            (Some((client, poll)), _) => write!(f, "{},cancel,{client},{poll}", self.seed),
            (None, Some(operation)) => write!(f, "{},reset,{operation}", self.seed),
            (None, None) if self.is_sweep => write!(f, "{},sweep", self.seed),
            (None, None) => self.seed.fmt(f),
        }
    }
}

impl Case {
    pub(super) fn seed(seed: u64) -> Self {
        Self { seed, is_sweep: false, cancel_at: None, reset_at: None }
    }

    pub(super) fn sweep(seed: u64) -> Self {
        Self { is_sweep: true, ..Self::seed(seed) }
    }

    fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split(',').collect();
        let (seed, numbers) = (parts.first()?.parse().ok()?, parts.get(2..).unwrap_or_default());
        let numbers = numbers.iter().map(|number| number.parse().ok()).collect::<Option<Vec<u64>>>()?;
        match (parts.get(1).copied(), numbers[..].as_ref()) {
            (None, []) => Some(Self::seed(seed)),
            (Some("sweep"), []) => Some(Self::sweep(seed)),
            (Some("cancel"), [client, poll]) => {
                Some(Self { cancel_at: Some((usize::try_from(*client).ok()?, *poll)), ..Self::sweep(seed) })
            }
            (Some("reset"), [operation]) => Some(Self { reset_at: Some(*operation), ..Self::sweep(seed) }),
            _ => None,
        }
    }

    /// Returns the command that replays the case.
    pub(super) fn command(&self) -> String {
        format!("{VARIABLE}={self} cargo test --locked --lib simulation::replay -- --include-ignored --nocapture")
    }

    fn scenario(&self) -> Scenario {
        let mut scenario = if self.is_sweep { Scenario::draw_small(self.seed) } else { Scenario::draw(self.seed) };
        if let Some((client, poll)) = self.cancel_at {
            scenario.clients[client].cancel_at = Some(poll);
        }
        scenario.rules.reset_at = self.reset_at;
        scenario
    }

    /// Runs the case in a process of its own.
    pub(super) fn run_in_process(&self) -> Report {
        let binary = std::env::current_exe().expect("the path of the test binary");
        let output = Command::new(binary)
            .args(["--exact", "simulation::replay", "--include-ignored", "--nocapture", "--test-threads=1"])
            .env(VARIABLE, self.to_string())
            .output()
            .expect("the test binary runs");
        let mut report = Report::read(&String::from_utf8_lossy(&output.stdout));
        if !output.status.success() && report.violations.is_empty() {
            report.violations.push(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        report
    }
}

impl Report {
    fn read(text: &str) -> Self {
        let mut report = Self::default();
        for (kind, value) in text.lines().filter_map(|line| line.split_once(": ")) {
            match kind {
                "event" => report.trace.push(value.to_owned()),
                "violation" => report.violations.push(value.to_owned()),
                "delivered" => report.delivered = value.parse().expect("a number"),
                "operations" => report.operations = value.parse().expect("a number"),
                "polls" => report.polls.push(value.parse().expect("a number")),
                _ => {}
            }
        }
        report
    }
}

/// Runs the case that the variable names, and prints what [`Report::read`] reads.
pub(super) fn run_named() {
    let name = std::env::var(VARIABLE).unwrap_or_else(|_| panic!("{VARIABLE} names no case"));
    let case = Case::parse(&name).unwrap_or_else(|| panic!("{VARIABLE}: {name:?} names no case"));
    let outcome = run::run(case.seed, move || case.scenario());
    let mut text: String = outcome.trace.lines().map(|event| format!("event: {event}\n")).collect();
    text.extend(outcome.violations.iter().map(|violation| format!("violation: {}\n", violation.replace('\n', " "))));
    text.extend(outcome.polls.iter().map(|polls| format!("polls: {polls}\n")));
    println!("\n{text}operations: {}\ndelivered: {}", outcome.operations, outcome.delivered);
    assert_eq!(outcome.violations.len(), 0, "{case}: violations");
}

#[test]
fn simulation_case_is_read_as_it_is_written() {
    let sweep = Case::sweep(7);
    for case in [Case::seed(7), sweep, Case { cancel_at: Some((1, 9)), ..sweep }, Case { reset_at: Some(4), ..sweep }] {
        assert_eq!(Case::parse(&case.to_string()), Some(case));
    }
    assert_eq!(Case::parse("7,reset"), None);
}
