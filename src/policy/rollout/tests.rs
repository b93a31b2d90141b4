//! Tests of the steps of a rollout, as tables and as properties of whole fleets.
//! Does an instance adopt in its turn alone, and does every failure undo the rollout?

use super::*;
use proptest::prelude::*;

const PAUSE: Duration = Duration::from_secs(60);

/// A fleet whose waves have these sizes. The instances are `i0`, `i1`, …
struct Fleet {
    waves: Vec<BTreeSet<String>>,
    reports: BTreeMap<String, InstanceReport>,
    missing: BTreeSet<String>,
    is_approved: bool,
    has_ended: bool,
    unchanged_for: Duration,
}

impl Fleet {
    fn new(sizes: &[usize]) -> Self {
        let mut names = (0..).map(|number| format!("i{number}"));
        let waves = sizes.iter().map(|size| names.by_ref().take(*size).collect()).collect();
        Self {
            waves,
            reports: BTreeMap::new(),
            missing: BTreeSet::new(),
            is_approved: false,
            has_ended: false,
            unchanged_for: Duration::ZERO,
        }
    }

    fn with(mut self, stages: &[RolloutStage]) -> Self {
        stages.iter().enumerate().for_each(|(number, stage)| self.report(&format!("i{number}"), *stage));
        self
    }

    fn report(&mut self, name: &str, stage: RolloutStage) {
        let approval = self.reports.get(name).map(|report| report.approval.clone()).unwrap_or_default();
        self.reports.insert(name.to_owned(), InstanceReport { stage, approval, detail: "a detail".to_owned() });
    }

    fn progress<'a>(&'a self, instance: &'a str) -> Progress<'a> {
        Progress {
            instance,
            waves: &self.waves,
            pause: PAUSE,
            reports: &self.reports,
            is_approved: self.is_approved,
            has_ended: self.has_ended,
            missing: &self.missing,
            unchanged_for: self.unchanged_for,
        }
    }

    fn step(&self, instance: &str) -> RolloutStep {
        self.progress(instance).next_step()
    }

    fn failure(&self) -> String {
        match self.step("i0") {
            RolloutStep::Fail(reason) => reason,
            other => panic!("{other:?}"),
        }
    }
}

use RolloutStage::{Adopted, Checked, Kept, Refused, RolledBack};

#[test]
fn rollout_instance_adopts_when_the_earlier_waves_have_kept_the_bundle() {
    for (stages, expected) in [
        (&[Checked, Checked, Checked][..], ["adopt", "wait", "wait", "wait"]),
        (&[Checked, Checked], ["wait", "wait", "wait", "wait"]), // i2 has not reported
        (&[Adopted, Checked, Checked], ["wait", "wait", "wait", "wait"]),
        (&[Kept, Checked, Checked], ["wait", "adopt", "adopt", "adopt"]),
        (&[Kept, Adopted, Checked], ["wait", "wait", "adopt", "adopt"]),
        (&[Kept, Kept, Kept], ["wait", "wait", "wait", "adopt"]),
    ] {
        let mut fleet = Fleet::new(&[1, 2]).with(stages);
        fleet.report("late", Checked);
        for (name, expected) in ["i0", "i1", "i2", "late"].into_iter().zip(expected) {
            let expected = if expected == "adopt" { RolloutStep::Adopt } else { RolloutStep::Wait };
            assert_eq!(fleet.step(name), expected, "{name} of {stages:?}");
        }
    }
}

#[test]
fn rollout_waits_for_a_second_operator_if_any_instance_asks_for_one() {
    let mut fleet = Fleet::new(&[1, 1]).with(&[Checked, Checked]);
    fleet.reports.get_mut("i1").unwrap().approval.push("a reason".to_owned());
    assert_eq!(fleet.step("i0"), RolloutStep::Wait);
    // An approval may take days, in which hosts restart.
    fleet.unchanged_for = PAUSE + ADOPTION_TIME * 1000;
    fleet.missing.insert("i0".to_owned());
    assert_eq!(fleet.step("i1"), RolloutStep::Wait);
    (fleet.is_approved, fleet.unchanged_for) = (true, Duration::ZERO);
    fleet.missing.clear();
    assert_eq!(fleet.step("i0"), RolloutStep::Adopt);
}

#[test]
fn rollout_fails_when_an_instance_refuses_goes_back_disappears_or_is_late() {
    let failure = |stages: &[RolloutStage]| Fleet::new(&[1, 1]).with(stages).failure();
    assert_eq!(failure(&[Checked, Refused]), "the bundle has a problem on i1: a detail");
    assert_eq!(failure(&[RolledBack, Checked]), "i0 went back: a detail");
    let mut fleet = Fleet::new(&[1, 2]).with(&[Kept, Adopted, Kept]);
    fleet.missing.insert("i0".to_owned());
    assert_eq!(fleet.step("i2"), RolloutStep::Wait, "i0 has kept it");
    fleet.missing.insert("i1".to_owned());
    assert_eq!(fleet.failure(), "i1 disappeared in wave 2");
    fleet.missing.clear();
    fleet.unchanged_for = PAUSE + ADOPTION_TIME;
    assert_eq!(fleet.step("i0"), RolloutStep::Wait);
    fleet.unchanged_for += Duration::from_secs(1);
    assert_eq!(fleet.failure(), "i1 has not kept the bundle 181 s after wave 2 began");
    // Once it is kept everywhere, nothing undoes it.
    let mut fleet = Fleet::new(&[1, 1]).with(&[Kept, Kept]);
    (fleet.unchanged_for, fleet.missing) = (Duration::MAX, fleet.waves.concat_names());
    assert_eq!(fleet.step("i0"), RolloutStep::Wait);
}

trait Names {
    fn concat_names(&self) -> BTreeSet<String>;
}

impl Names for Vec<BTreeSet<String>> {
    fn concat_names(&self) -> BTreeSet<String> {
        self.iter().flatten().cloned().collect()
    }
}

#[test]
fn rollout_that_has_ended_is_undone_by_those_who_adopted_and_adopted_by_none() {
    let mut fleet = Fleet::new(&[2, 2]).with(&[Kept, Adopted, Checked, RolledBack]);
    fleet.has_ended = true;
    let steps = ["i0", "i1", "i2", "i3", "late"].map(|name| fleet.step(name));
    let (back, wait) = (RolloutStep::RollBack, RolloutStep::Wait);
    assert_eq!(steps, [back.clone(), back, wait.clone(), wait.clone(), wait]);
}

/// An event of one instance.
#[derive(Clone, Copy, Debug)]
enum Happening {
    /// It decides, and does what it has decided.
    Decides,
    Checks,
    Refuses,
    /// Its pause ends, without more refusals than before.
    Keeps,
    /// It becomes unready, or refuses more than before.
    GoesBack,
    Disappears,
    Returns,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        8 => Just(Happening::Decides),
        6 => Just(Happening::Checks),
        6 => Just(Happening::Keeps),
        1 => Just(Happening::Refuses),
        1 => Just(Happening::GoesBack),
        1 => Just(Happening::Disappears),
        2 => Just(Happening::Returns),
    ]
}

proptest! {
    /// An instance adopts only after the whole of each earlier wave has kept the bundle, and a failure leaves
    /// no instance with the bundle once each has decided again.
    #[test]
    fn rollout_never_skips_a_wave_and_a_failure_leaves_no_instance_behind(
        sizes in prop::collection::vec(1..4usize, 1..4),
        happenings in prop::collection::vec((0..10usize, happening()), 0..200),
    ) {
        let mut fleet = Fleet::new(&sizes);
        let names: Vec<String> = fleet.waves.concat_names().into_iter().collect();
        for (number, happening) in happenings {
            let name = &names[number % names.len()];
            let stage = fleet.reports.get(name).map(|report| report.stage);
            match (happening, stage) {
                (Happening::Checks, None) => fleet.report(name, Checked),
                (Happening::Refuses, None) => fleet.report(name, Refused),
                (Happening::Keeps, Some(Adopted)) => fleet.report(name, Kept),
                (Happening::GoesBack, Some(Adopted)) => fleet.report(name, RolledBack),
                (Happening::Disappears, _) => drop(fleet.missing.insert(name.clone())),
                (Happening::Returns, _) => drop(fleet.missing.remove(name)),
                (Happening::Decides, _) => match fleet.step(name) {
                    RolloutStep::Adopt => {
                        prop_assert!(!fleet.has_ended && stage == Some(Checked));
                        let own = fleet.waves.iter().position(|wave| wave.contains(name)).unwrap();
                        for earlier in fleet.waves[..own].iter().flatten() {
                            prop_assert_eq!(fleet.reports[earlier].stage, Kept);
                        }
                        prop_assert!(fleet.reports.values().all(|report| report.stage != Refused));
                        fleet.report(name, Adopted);
                    }
                    RolloutStep::RollBack => {
                        prop_assert!(fleet.has_ended);
                        fleet.report(name, RolledBack);
                    }
                    RolloutStep::Fail(_) => fleet.has_ended = true,
                    RolloutStep::Wait => {}
                },
                _ => {}
            }
        }
        for name in &names {
            if let RolloutStep::Fail(_) = fleet.step(name) {
                fleet.has_ended = true;
            }
        }
        let has_bundle = |fleet: &Fleet| {
            fleet.reports.values().filter(|report| matches!(report.stage, Adopted | Kept)).count()
        };
        if fleet.has_ended {
            for name in &names {
                if fleet.step(name) == RolloutStep::RollBack {
                    fleet.report(name, RolledBack);
                }
            }
            prop_assert_eq!(has_bundle(&fleet), 0);
        } else {
            // Nothing has failed: the rest goes through in the order of the waves.
            for _ in 0..=names.len() {
                for name in &names {
                    match (fleet.reports.get(name).map(|report| report.stage), fleet.step(name)) {
                        (None, _) => fleet.report(name, Checked),
                        (Some(Adopted), _) => fleet.report(name, Kept),
                        (_, RolloutStep::Adopt) => fleet.report(name, Adopted),
                        _ => {}
                    }
                }
            }
            for _ in 0..3 * names.len() {
                for name in &names {
                    match (fleet.reports[name].stage, fleet.step(name)) {
                        (Adopted, _) => fleet.report(name, Kept),
                        (_, RolloutStep::Adopt) => fleet.report(name, Adopted),
                        _ => {}
                    }
                }
            }
            prop_assert!(fleet.missing.is_empty() || has_bundle(&fleet) <= names.len());
            prop_assert!(!fleet.missing.is_empty() || has_bundle(&fleet) == names.len());
        }
    }
}

#[test]
fn rollout_report_fits_into_what_other_instances_read() {
    let route = "r".repeat(64);
    let reasons = |count| vec![format!("trust.{route} turns verification off for the route {route}"); count];
    let report = |count, detail: &str| {
        InstanceReport { stage: Refused, approval: reasons(count), detail: detail.to_owned() }.shortened()
    };
    let longest = report(10_000, &"\u{1f980}\n".repeat(100_000));
    assert_eq!(
        (longest.approval.len(), longest.approval.last().map(String::as_str)),
        (101, Some("and 9900 more reasons"))
    );
    assert!(serde_json::to_string(&longest).unwrap().len() < 65_536);
    assert_eq!(longest.clone().shortened(), longest, "the others read what was reported");
    let forged = InstanceReport { approval: vec!["x".repeat(65_536)], ..report(0, "") }.shortened();
    assert_eq!(forged.approval[0].len(), TEXT_MAX);
    let short = report(100, "a detail");
    assert_eq!((&short.approval, short.detail.as_str()), (&reasons(100), "a detail"));
}

#[test]
fn rollout_names_what_it_waits_for() {
    let late = LATE_AFTER + Duration::from_secs(1);
    let approval = "the approval of a second operator: `outgate fleet approve` shows the change";
    for (stages, missing, unchanged_for, asks, expected) in [
        (&[Checked][..], "", LATE_AFTER, false, None),
        (
            &[Checked],
            "",
            late,
            false,
            Some("i1, which has not checked the bundle (look at its [fleet.operators] and its log)"),
        ),
        (&[Checked], "i1", late, false, Some("i0, which is not ready to adopt the bundle in wave 1")),
        (&[Adopted, Checked], "", late, false, None), // the pause
        (&[Kept, Checked], "", late, false, Some("i1, which is not ready to adopt the bundle in wave 2")),
        (&[Kept, Kept], "", late, false, None),
        (&[Checked, Checked], "", Duration::ZERO, true, Some(approval)),
        (&[Kept, Kept], "", Duration::ZERO, true, Some(approval)), // a host that joined asks
    ] {
        let mut fleet = Fleet::new(&[1, 1]).with(stages);
        fleet.missing.extend((!missing.is_empty()).then(|| missing.to_owned()));
        fleet.unchanged_for = unchanged_for;
        if asks {
            fleet.report("late", Checked);
            fleet.reports.get_mut("late").unwrap().approval.push("a reason".to_owned());
        }
        assert_eq!(fleet.progress("i0").waits_for().as_deref(), expected, "{stages:?}");
        fleet.has_ended = true;
        assert_eq!(fleet.progress("i0").waits_for(), None);
        (fleet.has_ended, fleet.is_approved) = (false, true);
        assert!(!asks || fleet.progress("i0").waits_for().is_none());
    }
}

#[test]
fn rollout_phase_is_the_open_wave_and_whether_an_approval_is_missing() {
    let mut fleet = Fleet::new(&[1, 2]);
    assert_eq!(fleet.progress("i0").phase(), (Some(0), false));
    fleet = fleet.with(&[Kept, Adopted, Checked]);
    assert_eq!(fleet.progress("i0").phase(), (Some(1), false));
    fleet.reports.get_mut("i1").unwrap().approval = vec!["a reason".to_owned()];
    assert_eq!(fleet.progress("i0").phase(), (Some(1), true));
    fleet.is_approved = true;
    assert_eq!(fleet.progress("i0").phase(), (Some(1), false));
    assert_eq!(fleet.with(&[Kept, Kept, Kept]).progress("i0").phase(), (None, false));
}

/// The tick that sees the approval begins a new phase: it must not count the hours before.
#[test]
fn rollout_that_waited_long_for_its_approval_is_not_late() {
    let begun = Instant::now();
    let mut clock = PhaseClock::new(begun);
    let waiting = (Some(0), true);
    assert_eq!(clock.unchanged_for(waiting, begun), Duration::ZERO);
    let later = begun + Duration::from_secs(3600);
    assert_eq!(clock.unchanged_for(waiting, later), Duration::from_secs(3600));
    assert_eq!(clock.unchanged_for((Some(0), false), later), Duration::ZERO);
    let end = later + Duration::from_secs(7);
    assert_eq!(clock.unchanged_for((Some(0), false), end), Duration::from_secs(7));
}
