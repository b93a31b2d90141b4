//! The older text format of Prometheus, converted from OpenMetrics, and the choice between the two.
//! Which format does a scraper get?

use std::collections::HashSet;

use http::{HeaderMap, header};

const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPENMETRICS_MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MetricsFormat {
    /// Prometheus text 0.0.4.
    Text,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl MetricsFormat {
    /// Returns the format that `Accept` prefers (RFC 9110 §12.5.1). As with other exporters, a request that does not name
    /// OpenMetrics gets the text format, which every tool reads.
    pub(super) fn negotiate(headers: &HeaderMap) -> Self {
        let quality = |media_type: &str| {
            let lists = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
            let ranges = lists.flat_map(|list| list.split(',')).filter_map(|range| {
                let mut parts = range.split(';').map(str::trim);
                let is_match = parts.next()?.eq_ignore_ascii_case(media_type);
                let quality = parts.find_map(|part| part.strip_prefix("q=")).map_or(Ok(1.0), str::parse::<f32>);
                Some(quality.unwrap_or(0.0)).filter(|_| is_match)
            });
            ranges.fold(0.0, f32::max)
        };
        let openmetrics = quality("application/openmetrics-text");
        if openmetrics > 0.0 && openmetrics >= quality("text/plain") { Self::OpenMetrics } else { Self::Text }
    }

    pub(super) fn media_type(self) -> &'static str {
        match self {
            Self::Text => MEDIA_TYPE,
            Self::OpenMetrics => OPENMETRICS_MEDIA_TYPE,
        }
    }

    /// Converts metrics from OpenMetrics.
    pub(super) fn convert(self, openmetrics: String) -> String {
        match self {
            Self::Text => from_openmetrics(&openmetrics),
            Self::OpenMetrics => openmetrics,
        }
    }
}

/// Converts OpenMetrics text. The text format describes a counter under the name of its samples, which ends in `_total`.
/// It has neither units, nor exemplars, nor an end marker.
fn from_openmetrics(text: &str) -> String {
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
        out.push_str(described.as_deref().unwrap_or_else(|| without_exemplar(line)));
        out.push('\n');
    }
    out
}

/// Removes the exemplar of a sample, which follows its value: `name{labels} 1 # {trace_id="…"} 0.5`.
fn without_exemplar(line: &str) -> &str {
    if line.starts_with('#') {
        return line;
    }
    let (mut is_quoted, mut is_escaped) = (false, false);
    let end = line.char_indices().find(|&(index, c)| {
        let is_start = !is_quoted && line[index..].starts_with(" # {");
        is_quoted ^= c == '"' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        is_start
    });
    end.map_or(line, |(index, _)| &line[..index])
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn text_format_describes_counters_by_the_name_of_their_samples() {
        let openmetrics = "# HELP a_seconds All.\n# TYPE a_seconds histogram\n# UNIT a_seconds seconds\n\
            a_seconds_count 1\n# HELP b Some.\n# TYPE b counter\nb_total{x=\"1\"} 2\n# EOF\n";
        let text = "# HELP a_seconds All.\n# TYPE a_seconds histogram\na_seconds_count 1\n\
            # HELP b_total Some.\n# TYPE b_total counter\nb_total{x=\"1\"} 2\n";
        assert_eq!(from_openmetrics(openmetrics), text);
    }

    #[test]
    fn text_format_has_no_exemplars() {
        let openmetrics = "a_bucket{le=\"1\"} 2 # {trace_id=\"0af7\"} 0.5 1.6\n\
            b{file=\"x # {y\"} 1\nb{file=\"\\\" # {y\\\\\"} 1 # {trace_id=\"0af7\"} 0.5\n";
        let text = "a_bucket{le=\"1\"} 2\nb{file=\"x # {y\"} 1\nb{file=\"\\\" # {y\\\\\"} 1\n";
        assert_eq!(from_openmetrics(openmetrics), text);
    }

    #[test]
    fn openmetrics_is_for_scrapers_that_name_it() {
        let format = |accept: &[&'static str]| {
            let fields = accept.iter().map(|accept| (header::ACCEPT, HeaderValue::from_static(accept)));
            MetricsFormat::negotiate(&fields.collect())
        };
        let openmetrics: [&[&str]; 4] = [
            &["application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"],
            &["application/openmetrics-text; version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"],
            &["text/plain", "application/OpenMetrics-Text"],
            &["application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;q=0.2"],
        ];
        for accept in openmetrics {
            assert_eq!(format(accept), MetricsFormat::OpenMetrics, "{accept:?}");
        }
        let text: [&[&str]; 6] = [
            &[],
            &["*/*"],
            &["text/html,application/xhtml+xml,*/*;q=0.8"],
            &["text/plain, application/openmetrics-text;q=0.5"],
            &["application/openmetrics-text;q=0"],
            &["application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"],
        ];
        for accept in text {
            assert_eq!(format(accept), MetricsFormat::Text, "{accept:?}");
        }
    }
}
