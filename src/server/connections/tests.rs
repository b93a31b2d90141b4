//! Tests of the open client connections.
//! Which connection is evicted, and how many are?

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use jiff::Timestamp;

use super::*;
use crate::policy::fixture::{at, config};
use crate::state::config::ActiveConfig;
use crate::state::observability::records::Records;

fn test_runtime() -> Arc<Runtime> {
    let mut config = config();
    config.server.allow_anonymous.value = true;
    config.resolver.servers = vec![at(6, ([127, 0, 0, 1], 53).into())];
    let (plan, _) = crate::policy::compile(&config, Timestamp::UNIX_EPOCH).unwrap();
    Arc::new(Runtime::new(ActiveConfig::new(plan, &config.resolver, None).unwrap(), Records::in_memory()))
}

#[tokio::test]
async fn max_connections_evicts_no_second_connection_when_another_opens_meanwhile() {
    let (runtime, connections) = (test_runtime(), Connections::new());
    let [oldest, newer, newcomer] = [(); 3].map(|()| connections.open(&runtime));
    let _evictable = [&oldest, &newer].map(OpenConnection::mark_unidentified);
    let evictable = || connections.0.evictions.lock().unidentified.len();
    let mut capacity = pin!(newcomer.wait_for_capacity(2));
    assert!(is_pending(capacity.as_mut()).await);
    assert_eq!(evictable(), 1, "the oldest makes room");
    let elsewhere = connections.open(&runtime);
    assert!(is_pending(capacity.as_mut()).await);
    assert_eq!(evictable(), 1, "it has not closed yet");
    drop((oldest, elsewhere));
    capacity.await;
    assert_eq!(evictable(), 1);
}

#[tokio::test]
async fn max_connections_waits_for_connections_that_the_limit_of_their_address_has_evicted() {
    let (runtime, connections) = (test_runtime(), Connections::new());
    let address = Some(IpAddr::from([192, 0, 2, 1]));
    let (mut stranger, mut newcomer) = (connections.open(&runtime), connections.open(&runtime));
    stranger.register_client(address, 1).unwrap();
    let evictable = stranger.mark_unidentified();
    let identified = connections.open(&runtime);
    let _idle = connections.mark_idle(identified.id(), &Arc::default());
    newcomer.register_client(address, 1).unwrap();
    let mut capacity = pin!(newcomer.wait_for_capacity(2));
    assert!(is_pending(capacity.as_mut()).await);
    assert_eq!(connections.0.evictions.lock().idle.len(), 1, "the stranger is closing");
    // Its task closes the connection after the last use of its eviction.
    evictable.evicted().await;
    drop(evictable);
    assert!(is_pending(capacity.as_mut()).await);
    assert_eq!(connections.0.evictions.lock().idle.len(), 1);
    drop(stranger);
    capacity.await;
    assert_eq!(connections.0.evictions.lock().idle.len(), 1);
}

#[tokio::test]
async fn connections_that_wait_for_capacity_do_not_wait_for_each_other() {
    let (runtime, connections) = (test_runtime(), Connections::new());
    let [served, first, second, third] = [(); 4].map(|()| connections.open(&runtime));
    let mut first_waits = Box::pin(first.wait_for_capacity(1));
    let mut second_waits = Box::pin(second.wait_for_capacity(1));
    let mut third_waits = Box::pin(third.wait_for_capacity(1));
    assert!(is_pending(first_waits.as_mut()).await && is_pending(second_waits.as_mut()).await);
    assert!(is_pending(third_waits.as_mut()).await);
    drop(served);
    first_waits.as_mut().await;
    drop(first_waits);
    assert!(is_pending(second_waits.as_mut()).await, "the first has the capacity");
    drop(second_waits);
    drop((first, second));
    third_waits.await;
}

/// Polls once.
async fn is_pending(work: Pin<&mut impl Future<Output = ()>>) -> bool {
    let mut work = Some(work);
    poll_fn(|cx| Poll::Ready(work.take().is_some_and(|work| work.poll(cx).is_pending()))).await
}

#[test]
fn client_key_is_an_ipv4_address_or_an_ipv6_64() {
    for (address, expected) in [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("::1", "::"),
    ] {
        assert_eq!(client_key(address.parse().unwrap()), expected.parse::<IpAddr>().unwrap());
    }
}
