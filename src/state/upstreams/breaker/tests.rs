//! Tests of a full table with the circuits of several clients.
//! Which circuit does a full table evict?

use super::*;
use crate::config;
use crate::names::{Host, PoolName, Scheme, Target, TenantName};

const MINUTE: Duration = Duration::from_secs(60);

fn key(client: &str, target: &str, tenant: Option<&str>) -> BreakerKey {
    let target = Target { scheme: Scheme::Https, host: Host::Name(target.into()), port: 443 };
    BreakerKey {
        upstream: Hashed::new(Upstream { target, pool: PoolName::new("default"), trial: None }),
        requirements: RouteRequirements { timeouts: [Duration::from_secs(1); 6], trust: [0; 32] },
        client: ClientName::new(client),
        tenant: tenant.map(TenantName::new),
    }
}

fn breaker_config() -> BreakerConfig {
    let config = config::Circuit { failures: 1, window: MINUTE, open: MINUTE, open_max: MINUTE };
    BreakerConfig::compile(&config).unwrap()
}

fn fail(breakers: &Arc<CircuitBreakers>, key: &BreakerKey, failure: UpstreamFailure, now: Instant) {
    if let Ok(attempt) = breakers.begin(key.clone(), breaker_config(), now) {
        attempt.failed(failure, "connect_refused", now);
    }
}

#[test]
fn circuits_of_one_client_do_not_evict_those_of_others() {
    let (breakers, now) = (Arc::new(CircuitBreakers::with_capacity(4)), Instant::now());
    let quiet = key("quiet", "down.example", None);
    fail(&breakers, &quiet, UpstreamFailure::Unreachable, now);
    for number in 0..20 {
        fail(&breakers, &key("busy", &format!("{number}.example"), None), UpstreamFailure::Unreachable, now);
    }
    for number in 0..20 {
        let tenant = number.to_string();
        fail(&breakers, &key("busy", "slow.example", Some(&tenant)), UpstreamFailure::NoResponse, now);
    }
    let check = |key: &BreakerKey| breakers.check(key, now);
    assert!(check(&quiet).is_err(), "the circuit of the other client is still open");
    assert!(check(&key("busy", "slow.example", Some("19"))).is_err(), "the newest circuit is in the table");
    assert!(check(&key("busy", "0.example", None)).is_ok(), "the oldest circuit of the client was evicted");
    assert_eq!((breakers.open_count(), breakers.count.get(), breakers.shares.lock().total()), (4, 4, 4));
}

#[test]
fn circuits_that_are_swept_return_their_share() {
    let (breakers, now) = (Arc::new(CircuitBreakers::with_capacity(4)), Instant::now());
    for number in 0..3 {
        fail(&breakers, &key("client", &format!("{number}.example"), None), UpstreamFailure::Unreachable, now);
    }
    breakers.sweep(None, now);
    assert_eq!((breakers.count.get(), breakers.shares.lock().total()), (0, 0));
    assert!(breakers.shards.iter().all(|shard| shard.lock().is_empty()));
}

#[test]
fn circuit_refuses_deliveries_until_its_pause_ends_and_a_probe_closes_it() {
    let (breakers, start) = (Arc::new(CircuitBreakers::with_capacity(4)), Instant::now());
    let key = key("client", "down.example", None);
    fail(&breakers, &key, UpstreamFailure::Unreachable, start);
    let pause = breakers.retry_after(&key, start).unwrap();
    assert!(pause >= MINUTE, "{pause:?}");
    assert!(breakers.check(&key, start + pause - Duration::from_millis(1)).is_err());
    let probe = breakers.begin(key.clone(), breaker_config(), start + pause).ok().unwrap();
    assert!(breakers.begin(key.clone(), breaker_config(), start + pause).is_err(), "one probe at a time");
    probe.succeeded(UpstreamSuccess::Response, start + pause);
    assert_eq!((breakers.retry_after(&key, start + pause), breakers.open_count()), (None, 0));
    let transitions = breakers.take_events();
    assert!(matches!(
        transitions.as_slice(),
        [
            CircuitEvent { transition: CircuitTransition::Open { .. }, .. },
            CircuitEvent { transition: CircuitTransition::Closed { .. }, .. }
        ]
    ));
}
