//! The check of Standard Webhooks 1.0.0 as a receiver's library does it.
//! Does one of the signatures match the body that arrived?

use aws_lc_rs::hmac;
use base64::Engine;

use super::receiver::ReceivedRequest;

pub fn verify(received: &ReceivedRequest, secret: &str) {
    assert!(verifies(received, secret), "{received:?}");
    let age = jiff::Timestamp::now().as_second() - received.field("webhook-timestamp").parse::<i64>().unwrap();
    assert!((0..30).contains(&age));
}

pub fn verifies(received: &ReceivedRequest, secret: &str) -> bool {
    let engine = base64::engine::general_purpose::STANDARD;
    let key = engine.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let mut signed = format!("{}.{}.", received.field("webhook-id"), received.field("webhook-timestamp")).into_bytes();
    signed.extend_from_slice(&received.body);
    let expected = format!("v1,{}", engine.encode(hmac::sign(&key, &signed)));
    received.field("webhook-signature").split(' ').any(|one| one == expected)
}
