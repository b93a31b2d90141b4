//! The `Keep-Alive` field of a target over HTTP/1.1: the time for which it keeps an idle connection.
//! Until when may outgate send another request over the connection?

use std::time::Duration;

use http::HeaderName;

use crate::http_message::Fields;

static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// The time before the target closes a connection in which outgate does not use it: the request and the FIN could cross. A
/// timeout of less than twice this loses its second half instead.
const MARGIN: Duration = Duration::from_secs(1);

/// Returns the time after a response within which the connection may be used again. Zero: it may not. `None`: the field has
/// no such parameter.
///
/// The parameters are `timeout`, in seconds, and `max`, the number of further requests (RFC 2068 §19.7.1.1). The smallest of
/// several values counts. A value that is no number is ignored.
pub(in crate::state) fn read(fields: &Fields) -> Option<Duration> {
    let lines = fields.get_all(&KEEP_ALIVE).filter_map(|line| line.to_str().ok());
    let parameters = lines.flat_map(|line| line.split([',', ';'])).filter_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        let value = value.trim().trim_matches('"');
        let is_number = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
        // A number that overflows is treated as the maximum.
        is_number.then(|| (name.trim(), value.parse().unwrap_or(u64::MAX)))
    });
    let timeouts = parameters.filter_map(|(name, value)| match (name, value) {
        (name, 0) if name.eq_ignore_ascii_case("max") => Some(Duration::ZERO),
        (name, seconds) if name.eq_ignore_ascii_case("timeout") => {
            let timeout = Duration::from_secs(seconds);
            Some(timeout - MARGIN.min(timeout / 2))
        }
        _ => None,
    });
    timeouts.min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn keep_alive_limits_the_idle_time_of_a_connection() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        for (lines, expected) in [
            (&["timeout=5"][..], seconds(4)),
            (&["timeout=5, max=100"], seconds(4)),
            (&["Timeout = \"75\""], seconds(74)),
            (&["timeout=1"], Some(Duration::from_millis(500))),
            (&["timeout=0"], seconds(0)),
            (&["max=0"], seconds(0)),
            (&["timeout=60, max=0"], seconds(0)),
            (&["timeout=60", "timeout=5"], seconds(4)),
            (&["timeout=99999999999999999999999"], seconds(u64::MAX - 1)),
            (&["max=1"], None),
            (&["timeout"], None),
            (&["timeout="], None),
            (&["timeout=-1"], None),
            (&["timeout=+5"], None),
            (&["timeout=5s"], None),
            (&["xtimeout=5"], None),
            (&[""], None),
            (&[], None),
        ] {
            let mut fields = Fields::default();
            for line in lines {
                fields.append(&KEEP_ALIVE, &HeaderValue::from_static(line));
            }
            assert_eq!(read(&fields), expected, "{lines:?}");
        }
    }
}
