//! The older text format of Prometheus, converted from OpenMetrics.
//! Which response does a scraper get that accepts only `text/plain`?

use std::collections::HashSet;

pub(super) const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Converts OpenMetrics text. Samples are equal in both formats. The text format describes a counter under the name of
/// its samples, which ends in `_total`, and has neither units nor an end marker.
pub(super) fn from_openmetrics(text: &str) -> String {
    let counter = |line: &str| line.strip_prefix("# TYPE ")?.strip_suffix(" counter").map(str::to_owned);
    let counters: HashSet<String> = text.lines().filter_map(counter).collect();
    let mut out = String::with_capacity(text.len() + 16 * counters.len());
    for line in text.lines().filter(|line| !line.starts_with("# UNIT ") && *line != "# EOF") {
        let mut words = line.splitn(4, ' ');
        let described = match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(keyword), Some(name), Some(rest)) if counters.contains(name) => {
                Some(format!("# {keyword} {name}_total {rest}"))
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
    use super::from_openmetrics;

    #[test]
    fn text_format_describes_counters_by_the_name_of_their_samples() {
        let openmetrics = "# HELP a_seconds All.\n# TYPE a_seconds histogram\n# UNIT a_seconds seconds\n\
            a_seconds_count 1\n# HELP b Some.\n# TYPE b counter\nb_total{x=\"1\"} 2\n# EOF\n";
        let text = "# HELP a_seconds All.\n# TYPE a_seconds histogram\na_seconds_count 1\n\
            # HELP b_total Some.\n# TYPE b_total counter\nb_total{x=\"1\"} 2\n";
        assert_eq!(from_openmetrics(openmetrics), text);
    }
}
