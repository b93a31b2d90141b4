//! The older text format of Prometheus, made of OpenMetrics.
//! What does a scraper read that asks for `text/plain`?

use std::collections::HashSet;

pub(super) const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Samples are the same in both. Here a counter is described by the name of its samples, with `_total`; there is no unit, and
/// no end.
pub(super) fn of_openmetrics(text: &str) -> String {
    let counter = |line: &str| line.strip_prefix("# TYPE ")?.strip_suffix(" counter").map(str::to_owned);
    let counters: HashSet<String> = text.lines().filter_map(counter).collect();
    let mut out = String::with_capacity(text.len() + 16 * counters.len());
    for line in text.lines().filter(|line| !line.starts_with("# UNIT ") && *line != "# EOF") {
        let mut words = line.splitn(4, ' ');
        let described = match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(what), Some(name), Some(rest)) if counters.contains(name) => {
                Some(format!("# {what} {name}_total {rest}"))
            }
            _ => None,
        };
        out.push_str(described.as_deref().unwrap_or(line));
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::of_openmetrics;

    #[test]
    fn counters_are_described_by_the_name_of_their_samples() {
        let openmetrics = "# HELP a_seconds All.\n# TYPE a_seconds histogram\n# UNIT a_seconds seconds\n\
            a_seconds_count 1\n# HELP b Some.\n# TYPE b counter\nb_total{x=\"1\"} 2\n# EOF\n";
        let text = "# HELP a_seconds All.\n# TYPE a_seconds histogram\na_seconds_count 1\n\
            # HELP b_total Some.\n# TYPE b_total counter\nb_total{x=\"1\"} 2\n";
        assert_eq!(of_openmetrics(openmetrics), text);
    }
}
