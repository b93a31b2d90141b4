//! Tests of the state of one key, with paused time.
//! Which delivery gets a permit that another one leaves?

use super::*;

#[test]
fn limiter_state_takes_64_bytes() {
    assert_eq!(size_of::<LimiterState>() + 2 * size_of::<usize>(), 64);
}

#[tokio::test(start_paused = true)]
async fn concurrency_permit_that_is_granted_to_a_gone_delivery_goes_to_the_next() {
    let limiter = Arc::new(LimiterState::default());
    let deadline = Instant::now() + Duration::from_secs(1);
    let (first, _) = limiter.try_acquire_permit(1).ok().unwrap();
    let (second, third) = (Arc::clone(&limiter), Arc::clone(&limiter));
    let second = tokio::spawn(async move { second.acquire_permit(deadline).await.map(drop) });
    tokio::task::yield_now().await;
    let third = tokio::spawn(async move { third.acquire_permit(deadline).await.map(drop) });
    tokio::task::yield_now().await;
    assert_eq!(limiter.usage(None, 0).waiting, 2);
    drop(first);
    // The second delivery has got the permit, and is not polled again.
    second.abort();
    assert!(second.await.unwrap_err().is_cancelled());
    assert!(third.await.unwrap().is_ok());
    let usage = limiter.usage(None, 0);
    assert_eq!((usage.in_flight, usage.waiting), (0, 0));
    assert!(limiter.0.lock().extras.is_none());
}
