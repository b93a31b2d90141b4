//! The field `Max-Forwards` of an `OPTIONS` request.
//! Does outgate itself respond to this request, and how many more proxies may forward it?

use http::{Method, header};

use super::target::single_value;
use crate::delivery::refusal::Refusal;
use crate::http_message::{Fields, Text};

/// Returns whether outgate itself must respond to a request: `OPTIONS` with `Max-Forwards: 0` (RFC 9110 §7.6.2).
pub(in crate::delivery) fn is_for_outgate(method: &Method, fields: Option<&Fields>) -> Result<bool, Refusal> {
    let Some(fields) = fields else { return Ok(false) };
    Ok(max_forwards(method, fields)? == Some(0))
}

/// Returns how many more proxies may forward an `OPTIONS` request (RFC 9110 §7.6.2).
fn max_forwards(method: &Method, fields: &Fields) -> Result<Option<u64>, Refusal> {
    if method != Method::OPTIONS {
        return Ok(None);
    }
    let Some(value) = single_value(fields, &header::MAX_FORWARDS)? else { return Ok(None) };
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Refusal::malformed("Max-Forwards is not a number"));
    }
    // No chain of proxies is longer than this type's maximum.
    Ok(Some(value.parse().unwrap_or(u64::MAX)))
}

/// Decrements `Max-Forwards`, as a proxy must that forwards the request (RFC 9110 §7.6.2).
pub(in crate::delivery) fn decrement(method: &Method, fields: &mut Fields) {
    if let Ok(Some(remaining)) = max_forwards(method, fields) {
        fields.insert(header::MAX_FORWARDS, Text(remaining.saturating_sub(1)));
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn max_forwards_is_read_and_decremented() {
        let fields = |value: &'static str| Fields::from_iter([(header::MAX_FORWARDS, HeaderValue::from_static(value))]);
        assert_eq!(max_forwards(&Method::OPTIONS, &fields("0")).unwrap(), Some(0));
        let mut two = fields("2");
        decrement(&Method::OPTIONS, &mut two);
        assert_eq!(two.get(header::MAX_FORWARDS).unwrap(), "1");
        for wrong in ["x", "", "+5", "-1", "1 2"] {
            assert!(max_forwards(&Method::OPTIONS, &fields(wrong)).is_err(), "{wrong}");
        }
        let huge = fields("99999999999999999999999");
        assert_eq!(max_forwards(&Method::OPTIONS, &huge).unwrap(), Some(u64::MAX));
        assert_eq!(max_forwards(&Method::POST, &fields("0")).unwrap(), None);
    }
}
