//! The comparison of deliveries before and after the adoption of a bundle.
//! Does this instance refuse or fail more deliveries than before?

use serde::{Deserialize, Serialize};

/// The deliveries that are needed for a verdict.
const DELIVERIES_MIN: u64 = 20;
/// The refused or failed deliveries that are needed for a verdict.
const FAILURES_MIN: u64 = 5;
/// The least difference of the shares.
const DIFFERENCE_MIN: f64 = 0.01;
/// The least difference in standard errors: chance alone exceeds it once in 700 comparisons.
const STANDARD_ERRORS: f64 = 3.0;

/// The deliveries of a period, and those of them that were refused or failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcomes {
    pub deliveries: u64,
    pub failures: u64,
}

impl Outcomes {
    /// Returns the outcomes since an earlier count.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            deliveries: self.deliveries.saturating_sub(earlier.deliveries),
            failures: self.failures.saturating_sub(earlier.failures),
        }
    }

    /// Returns whether the share of failures is clearly higher than `before`: by one percentage point and by three standard
    /// errors of the difference, in at least 20 deliveries and 5 failures. With fewer than 20 deliveries before, the missing
    /// ones count as successes.
    pub fn is_worse_than(self, before: Self) -> bool {
        if self.deliveries < DELIVERIES_MIN || self.failures < FAILURES_MIN {
            return false;
        }
        let (now, then) = (self.deliveries as f64, before.deliveries.max(DELIVERIES_MIN) as f64);
        let difference = self.failures as f64 / now - before.failures as f64 / then;
        let both = (self.failures + before.failures) as f64 / (now + then);
        let standard_error = (both * (1.0 - both) * (1.0 / now + 1.0 / then)).sqrt();
        difference >= DIFFERENCE_MIN && difference > STANDARD_ERRORS * standard_error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rollout_health_compares_shares_and_needs_enough_deliveries() {
        for (before, after, expected) in [
            ((1000, 10), (1000, 10), false),
            ((1000, 10), (1000, 60), true),
            ((1000, 10), (1000, 19), false), // less than one percentage point
            ((100, 1), (100, 6), false),     // chance
            ((1000, 0), (19, 19), false),    // too few deliveries
            ((1000, 0), (1000, 4), false),   // too few failures
            ((1000, 0), (20, 5), true),
            ((36, 0), (36, 8), false), // exactly three standard errors
            ((36, 0), (36, 9), true),
            ((0, 0), (20, 3), false),
            ((0, 0), (20, 10), true), // no delivery before counts as 20 successes
            ((20, 20), (20, 20), false),
            ((1000, 900), (1000, 10), false),
        ] {
            let outcomes = |(deliveries, failures)| Outcomes { deliveries, failures };
            assert_eq!(outcomes(after).is_worse_than(outcomes(before)), expected, "{before:?} {after:?}");
        }
    }

    #[test]
    fn rollout_health_counts_from_the_adoption_on() {
        let outcomes = |deliveries, failures| Outcomes { deliveries, failures };
        assert_eq!(outcomes(12, 3).since(outcomes(10, 2)), outcomes(2, 1));
        assert_eq!(outcomes(1, 0).since(outcomes(10, 2)), outcomes(0, 0), "the counters began again");
    }
}
