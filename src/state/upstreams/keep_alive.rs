//! `Keep-Alive` of a target over HTTP/1.1: how long it keeps a connection that is idle.
//! When is it too late to send another request over it?

use std::time::Duration;

use http::{HeaderMap, HeaderName};

static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// A connection is not used in the last second before the target closes it, since the request may meet the end on its way;
/// or in the second half of a time that is shorter than twice that.
const MARGIN: Duration = Duration::from_secs(1);

/// Returns how long after a response the connection may be used again. Zero: no more. `None`: the field does not say.
///
/// The parameters are `timeout`, in seconds, and `max`, how many requests more (RFC 2068 §19.7.1.1). Of several the smallest
/// counts; one that is no number says nothing.
pub(in crate::state) fn read(fields: &HeaderMap) -> Option<Duration> {
    let lines = fields.get_all(&KEEP_ALIVE).iter().filter_map(|line| line.to_str().ok());
    let parameters = lines.flat_map(|line| line.split([',', ';'])).filter_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        let value = value.trim().trim_matches('"');
        let is_number = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
        // A number too large for this type is as good as its largest.
        is_number.then(|| (name.trim(), value.parse().unwrap_or(u64::MAX)))
    });
    let stays = parameters.filter_map(|(name, value)| match (name, value) {
        (name, 0) if name.eq_ignore_ascii_case("max") => Some(Duration::ZERO),
        (name, seconds) if name.eq_ignore_ascii_case("timeout") => {
            let timeout = Duration::from_secs(seconds);
            Some(timeout - MARGIN.min(timeout / 2))
        }
        _ => None,
    });
    stays.min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn keep_alive_says_how_long_a_connection_stays() {
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
            let mut fields = HeaderMap::new();
            for line in lines {
                fields.append(&KEEP_ALIVE, HeaderValue::from_static(line));
            }
            assert_eq!(read(&fields), expected, "{lines:?}");
        }
    }
}
