//! Standard Webhooks 1.0.0, as a receiver's library checks it.
//! Does one of the signatures fit the body that arrived?

use aws_lc_rs::hmac;
use base64::Engine;

use super::receiver::Seen;

pub fn verify(seen: &Seen, secret: &str) {
    assert!(verifies(seen, secret), "{seen:?}");
    let age = jiff::Timestamp::now().as_second() - seen.field("webhook-timestamp").parse::<i64>().unwrap();
    assert!((0..30).contains(&age));
}

pub fn verifies(seen: &Seen, secret: &str) -> bool {
    let engine = base64::engine::general_purpose::STANDARD;
    let key = engine.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let mut signed = format!("{}.{}.", seen.field("webhook-id"), seen.field("webhook-timestamp")).into_bytes();
    signed.extend_from_slice(&seen.body);
    let expected = format!("v1,{}", engine.encode(hmac::sign(&key, &signed)));
    seen.field("webhook-signature").split(' ').any(|one| one == expected)
}
