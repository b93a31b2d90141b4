//! A GET request to an echo service, on a connection that a probe has opened.
//! Which source address does the outside world see?

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use tokio::time::timeout;

use crate::names::Target;

/// The largest response of an echo service, in bytes.
const BODY_MAX: usize = 16 * 1024;

/// Asks the service, and returns the first address in the body of its response: `198.51.100.17`, or in JSON.
/// `None`: the target is no echo service, and is not asked.
pub(super) async fn ask<S>(
    stream: S,
    target: &Target,
    path: Option<&str>,
    limit: Duration,
) -> Option<Result<IpAddr, String>>
where
    S: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let path = path?;
    let exchange = async {
        let (mut sender, connection) = http1::handshake(stream).await.map_err(|error| error.to_string())?;
        let driver = tokio::spawn(connection);
        let request = Request::get(path)
            .header(header::HOST, target.authority().to_string())
            .header(header::ACCEPT, "text/plain, application/json")
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), BODY_MAX).collect().await;
        driver.abort();
        let body =
            body.map_err(|_| format!("the response is longer than {BODY_MAX} bytes, or ended early"))?.to_bytes();
        let address = first_address(&String::from_utf8_lossy(&body)).filter(|_| status.is_success());
        address.ok_or_else(|| format!("the response (status {}) has no address", status.as_u16()))
    };
    let answer = timeout(limit, exchange).await;
    Some(answer.unwrap_or_else(|_| Err(format!("no response within {} ms", limit.as_millis()))))
}

fn first_address(text: &str) -> Option<IpAddr> {
    let is_part = |c: char| c.is_ascii_hexdigit() || c == '.' || c == ':';
    let mut words = text.split(|c: char| !is_part(c)).map(|word| word.trim_matches('.'));
    words.find_map(|word| word.parse::<IpAddr>().ok()).map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn echo_address_is_found_in_text_and_json() {
        for (text, address) in [
            ("198.51.100.17\n", Some("198.51.100.17")),
            (r#"{"ip":"2001:db8:5::1","country":"DE"}"#, Some("2001:db8:5::1")),
            ("Your address is 198.51.100.17.", Some("198.51.100.17")),
            ("::ffff:198.51.100.17", Some("198.51.100.17")),
            ("<html>no address, face: dead</html>", None),
            ("", None),
        ] {
            assert_eq!(first_address(text), address.map(|address| address.parse().unwrap()), "{text}");
        }
    }
}
