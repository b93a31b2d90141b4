//! The routes whose deliveries are counted in series of their own.
//! How many routes may have series of their own?

use crate::config::{self, Located, Problem, RouteMetrics};

/// The most routes with series of their own. With names of 64 bytes and every step and outcome, the series of one take
/// some 30 kB of a scrape, and those of all 4 MB.
pub const OWN_SERIES_MAX: usize = 128;

pub(super) fn has_own(route: &config::Route) -> bool {
    route.metrics.value == RouteMetrics::Own
}

pub(super) fn check(routes: &[Located<config::Route>], problems: &mut Vec<Problem>) {
    let mut own = routes.iter().filter(|route| has_own(route));
    if let Some(first) = own.nth(OWN_SERIES_MAX) {
        let count = OWN_SERIES_MAX + 1 + own.count();
        let message = format!("{count} routes have metrics = \"own\", and {OWN_SERIES_MAX} may");
        let help = "leave the key out for most routes, which then share one set of series: records tell them apart";
        problems.push(Problem::at(first.metrics.span, message).help(help));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::fixture::{at, messages, route};

    #[test]
    fn own_series_are_bounded_in_number() {
        let own = |n: usize| {
            let mut route = route(n as u32, &format!("r{n}"), "hooks.acme.example");
            route.value.metrics = at(n as u32, RouteMetrics::Own);
            route
        };
        let mut routes: Vec<_> = (0..OWN_SERIES_MAX).map(own).collect();
        routes.push(route(0, "shared", "hooks.acme.example"));
        let mut problems = Vec::new();
        check(&routes, &mut problems);
        assert_eq!(messages(&problems), [""; 0]);
        routes.extend([own(1000), own(1001)]);
        check(&routes, &mut problems);
        assert_eq!(messages(&problems), ["130 routes have metrics = \"own\", and 128 may"]);
    }
}
