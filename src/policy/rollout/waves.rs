//! The plan of the waves, from the sizes that an operator gives.
//! Which instance is in which wave?

use std::collections::BTreeSet;
use std::str::FromStr;

/// The size of the fleet's part that has adopted a bundle after a wave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaveSize {
    Instances(usize),
    Percent(usize),
    All,
}

impl FromStr for WaveSize {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "write a number of instances (1), a percentage of at most 100%, or all";
        let number = |text: &str| text.parse::<usize>().ok().filter(|number| *number > 0).ok_or(EXPECTED);
        match text.strip_suffix('%') {
            _ if text == "all" => Ok(Self::All),
            Some(percent) => number(percent).and_then(|percent| match percent {
                1..=100 => Ok(Self::Percent(percent)),
                _ => Err(EXPECTED),
            }),
            None => number(text).map(Self::Instances),
        }
    }
}

/// Divides the instances, in the order of their names. A size counts the instances of the earlier waves, too. The last wave
/// has all that are left.
pub fn plan_waves(instances: &BTreeSet<String>, sizes: &[WaveSize]) -> Vec<BTreeSet<String>> {
    let mut names = instances.iter().cloned();
    let mut planned = 0;
    let mut waves = Vec::new();
    for size in sizes.iter().chain([&WaveSize::All]) {
        let until = match size {
            WaveSize::Instances(count) => *count,
            WaveSize::Percent(percent) => (instances.len() * percent).div_ceil(100),
            WaveSize::All => instances.len(),
        };
        let wave: BTreeSet<String> = names.by_ref().take(until.saturating_sub(planned)).collect();
        planned += wave.len();
        waves.extend((!wave.is_empty()).then_some(wave));
    }
    waves
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waves_grow_to_the_whole_fleet_and_none_is_empty() {
        let sizes = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<WaveSize>>();
        for (count, given, expected) in [
            (8, &["1", "25%", "all"][..], &[1, 1, 6][..]),
            (10, &["1", "25%"], &[1, 2, 7]),
            (3, &["1", "25%", "all"], &[1, 2]),
            (1, &["1", "all"], &[1]),
            (4, &["100%"], &[4]),
            (4, &["9"], &[4]),
            (0, &["1"], &[]),
        ] {
            let instances = (0..count).map(|number| format!("egress-{number}")).collect();
            let waves = plan_waves(&instances, &sizes(given));
            assert_eq!(waves.iter().map(BTreeSet::len).collect::<Vec<_>>(), expected, "{count} {given:?}");
            assert_eq!(waves.into_iter().flatten().collect::<BTreeSet<_>>(), instances);
        }
        for wrong in ["0", "0%", "", "%", "-1", "some"] {
            assert!(wrong.parse::<WaveSize>().is_err(), "{wrong}");
        }
    }
}
